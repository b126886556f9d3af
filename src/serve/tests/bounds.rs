//! What a client may take: places, time, connections, bytes.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

#[tokio::test]
async fn one_search_too_many_is_sent_away_at_once() {
    let api = Api::open(|c| c.concurrency_max = 2).await;
    let waiting = || api.search(json!({"query": "a", "filter": "wait"}));
    let (first, second, ()) = tokio::join!(waiting(), waiting(), async {
        while api.stand_in.begun.load(Ordering::SeqCst) < 2 {
            tokio::task::yield_now().await;
        }
        let answer = api.search(json!({"query": "a"})).await;
        assert_eq!(answer.headers()["retry-after"], "1");
        assert_eq!(failure(answer).await.1, "overloaded");
        assert_eq!(failure(api.ask("GET", "/v1/items/1", "").await).await.1, "overloaded");
        // What reads no index is answered all the same.
        assert_eq!(api.ask("GET", "/healthz", "").await.status().as_u16(), 200);
        let m = api.status.metrics();
        assert_eq!((m.searches_running.get(), m.searches_refused.get()), (2, 2));
        api.stand_in.go_on.notify_waiters();
    });
    assert!(first.status().is_success() && second.status().is_success());
    assert!(api.search(json!({"query": "a"})).await.status().is_success());
    assert_eq!(api.status.metrics().searches_running.get(), 0);
}

#[tokio::test]
async fn no_request_outlives_its_time() {
    let api = Api::open(|c| c.timeout_ms = 50).await;
    let late = failure(api.search(json!({"query": "a", "filter": "never"})).await).await;
    assert_eq!((late.0, late.1.as_str()), (504, "timeout"));
    assert!(late.2.contains("50 ms"), "{}", late.2);
    assert_eq!(api.status.metrics().searches_running.get(), 0, "the search was given up");

    // A client that promises a body and does not send it.
    let mut socket = tokio::net::TcpStream::connect(api.server.address()).await.unwrap();
    let head = "POST /v1/search HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: 100\r\n\r\n{";
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    // The connection may be reset behind the answer, which is complete by then.
    let _ = socket.read_to_string(&mut answer).await;
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("request_timeout"), "{answer}");
}

#[tokio::test]
async fn a_query_that_is_still_embedded_has_its_place_after_its_time_was_up() {
    let api = Api::open(|c| (c.concurrency_max, c.timeout_ms) = (1, 200)).await;
    let (held, hold) = std::sync::mpsc::channel();
    *api.stand_in.hold.lock().unwrap() = Some(hold);
    assert_eq!(failure(api.search(json!({"query": "held"})).await).await.1, "timeout");
    assert_eq!(failure(api.search(json!({"query": "a"})).await).await.1, "overloaded");
    assert_eq!(api.status.metrics().searches_running.get(), 1);
    drop(held);
    while api.status.metrics().searches_running.get() > 0 {
        tokio::task::yield_now().await;
    }
    assert!(api.search(json!({"query": "a"})).await.status().is_success());
}

#[tokio::test]
async fn connections_are_bounded_and_further_ones_wait() {
    let api = Api::open(|c| c.connections_max = 2).await;
    let connect = async || tokio::net::TcpStream::connect(api.server.address()).await.unwrap();
    let ask = async |socket: &mut tokio::net::TcpStream| {
        socket.write_all(b"GET /healthz HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
        let mut answer = [0; 12];
        socket.read_exact(&mut answer).await.map(|_| String::from_utf8_lossy(&answer).into_owned())
    };
    let (mut first, mut second) = (connect().await, connect().await);
    assert_eq!(ask(&mut first).await.unwrap(), "HTTP/1.1 200");
    assert_eq!(ask(&mut second).await.unwrap(), "HTTP/1.1 200");
    let mut third = connect().await;
    let mut waiting = Box::pin(ask(&mut third));
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut waiting).await.is_err(), "it is not its turn");
    drop(first);
    assert_eq!(waiting.await.unwrap(), "HTTP/1.1 200");
}

#[tokio::test]
async fn a_large_body_is_refused_however_it_comes() {
    let api = Api::open(|_| ()).await;
    // In chunks, without a length that could be looked at beforehand.
    let head = "POST /v1/search HTTP/1.1\r\nhost: h\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunk = format!("{:x}\r\n{}\r\n", 1000, " ".repeat(1000));
    let request = format!("{head}{}0\r\n\r\n", chunk.repeat(9));
    let mut socket = tokio::net::TcpStream::connect(api.server.address()).await.unwrap();
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("body_too_large"), "{answer}");

    // With a length that nobody has to read for: the answer comes before the body.
    let head = "POST /v1/search HTTP/1.1\r\nhost: h\r\nconnection: close\r\nexpect: 100-continue\r\ncontent-length: 99999999999\r\n\r\n";
    let mut socket = tokio::net::TcpStream::connect(api.server.address()).await.unwrap();
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");

    // What fits exactly is read.
    let body = r#"{"query": "a"}"#;
    let body = format!("{body}{}", " ".repeat(2048 - body.len()));
    assert!(api.ask("POST", "/v1/search", &body).await.status().is_success());
    assert_eq!(failure(api.ask("POST", "/v1/search", &format!("{body} ")).await).await.0, 413);
}
