//! What lies between a service and its object store: it hands on, or fails as networks and stores do.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Well,
    /// Every request is answered with 503.
    Refusing,
    /// Some answers are lost with their connection, when what was asked for has been done.
    Losing,
    /// Every answer comes late.
    Late,
}

pub struct Between {
    pub endpoint: String,
    way: watch::Sender<Way>,
    failures: Arc<AtomicUsize>,
}

impl Between {
    pub async fn new(store: &str) -> Between {
        let store = store.strip_prefix("http://").expect("an endpoint without TLS").to_string();
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (way, ways) = watch::channel(Way::Well);
        let failures = Arc::new(AtomicUsize::new(0));
        let counted = failures.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, store.parse().unwrap(), ways.clone(), counted.clone()));
            }
        });
        Between { endpoint, way, failures }
    }

    /// From now on; connections of before are closed.
    pub fn set(&self, way: Way) {
        self.way.send_replace(way);
        self.failures.store(0, Ordering::SeqCst);
    }

    /// How often it has failed in this way.
    pub fn failures(&self) -> usize {
        self.failures.load(Ordering::SeqCst)
    }
}

/// A connection, as long as the way stays. Whatever goes wrong with it is the client's to notice.
async fn serve(client: TcpStream, store: SocketAddr, mut ways: watch::Receiver<Way>, failures: Arc<AtomicUsize>) {
    let way = *ways.borrow_and_update();
    let (from, mut to) = client.into_split();
    let work = async {
        if way == Way::Refusing {
            failures.fetch_add(1, Ordering::SeqCst);
            return refuse(from, &mut to).await;
        }
        let (answers, mut requests) = TcpStream::connect(store).await?.into_split();
        let mut from = from;
        let asked = async { tokio::io::copy(&mut from, &mut requests).await.map(drop) };
        let answered = answer(answers, &mut to, way, &failures);
        tokio::select! {
            done = asked => done,
            done = answered => done,
        }
    };
    tokio::select! {
        _ = work => {}
        _ = ways.changed() => {}
    }
}

async fn answer(
    mut from: OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    way: Way,
    failures: &AtomicUsize,
) -> std::io::Result<()> {
    let mut bytes = vec![0; 1 << 16];
    loop {
        let read = from.read(&mut bytes).await?;
        if read == 0 {
            return Ok(());
        }
        match way {
            Way::Losing if rand::random_bool(0.03) => {
                failures.fetch_add(1, Ordering::SeqCst);
                return Ok(());
            }
            Way::Late => {
                failures.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            _ => {}
        }
        to.write_all(&bytes[..read]).await?;
    }
}

/// Answers one request, which is read to its end first: a client that still writes would not read.
async fn refuse(mut from: OwnedReadHalf, to: &mut OwnedWriteHalf) -> std::io::Result<()> {
    let mut request = Vec::new();
    let head = loop {
        if let Some(end) = request.windows(4).position(|some| some == b"\r\n\r\n") {
            break end + 4;
        }
        if from.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    };
    let lines = String::from_utf8_lossy(&request[..head]).to_lowercase();
    let body: usize =
        lines.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok()).unwrap_or(0);
    while request.len() < head + body && from.read_buf(&mut request).await? > 0 {}
    let answer = "HTTP/1.1 503 Slow Down\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    to.write_all(answer.as_bytes()).await
}
