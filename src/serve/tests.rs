//! The API over a real socket, with stand-ins for the index and the model.

mod bounds;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::FutureExt;
use serde_json::{Map, Value, json};
use tokio::sync::Notify;

use super::*;
use crate::source::Watermarks;
use crate::time::{Epoch, Offset, Partition, Position};

/// A view of three rows whose vectors are the axes. What its filter says is what goes wrong.
struct StandIn {
    shape: Shape,
    /// How many searches have begun, and what lets those end that wait.
    begun: AtomicUsize,
    go_on: Notify,
    /// Until its other end goes, the query "held" is embedded.
    hold: std::sync::Mutex<Option<std::sync::mpsc::Receiver<()>>>,
}

impl StandIn {
    fn row(n: usize) -> Map<String, Value> {
        json!({"id": n, "name": format!("axis {n}"), "price": null}).as_object().unwrap().clone()
    }

    fn hits(vector: &[f32], k: usize, columns: Option<&[String]>) -> Hits {
        let mut order: Vec<usize> = (0..3).collect();
        order.sort_by(|a, b| vector[*b].total_cmp(&vector[*a]));
        let hit = |n: usize| {
            let mut row = StandIn::row(n);
            row.retain(|name, _| columns.is_none_or(|c| c.contains(name)));
            Hit { key: text(n), score: vector[n], row: text(row) }
        };
        Hits { hits: order.into_iter().take(k).map(hit).collect(), epoch: Epoch(7), position: position() }
    }
}

fn text(value: impl serde::Serialize) -> Json {
    serde_json::to_string(&value).unwrap().into()
}

fn position() -> Arc<Position> {
    Arc::new([(Partition::new("t", 0), Offset(41)), (Partition::new("t", 1), Offset(9))].into_iter().collect())
}

impl Searcher for StandIn {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn search(&self, search: Search) -> BoxFuture<'_, Result<Hits, SearchError>> {
        async move {
            self.begun.fetch_add(1, Ordering::SeqCst);
            match search.filter.as_deref() {
                Some("wait") => self.go_on.notified().await,
                Some("never") => std::future::pending().await,
                Some("panic") => panic!("a search of a test panics"),
                Some("bad") => return Err(SearchError::BadFilter("there is no column bad".into())),
                Some("away") => return Err(SearchError::Unavailable("s3 secret".into())),
                Some("broken") => return Err(SearchError::Internal("a secret".into())),
                _ => {}
            }
            Ok(StandIn::hits(&search.vector, search.k, search.columns.as_deref()))
        }
        .boxed()
    }

    fn item<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Item, SearchError>> {
        let found = match key.parse::<usize>() {
            Ok(n @ 0..3) => {
                Ok(Item { key: text(n), row: text(StandIn::row(n)), epoch: Epoch(7), position: position() })
            }
            Ok(_) => Err(SearchError::NoSuchKey(key.into())),
            Err(_) => Err(SearchError::BadKey(format!("{key:?} is not a whole number"))),
        };
        std::future::ready(found).boxed()
    }

    fn similar<'a>(&'a self, key: &'a str, k: usize) -> BoxFuture<'a, Result<Hits, SearchError>> {
        async move {
            let item = self.item(key).await?;
            let mut hits = StandIn::hits(&[0.3, 0.2, 0.1], 3, None);
            hits.hits.retain(|hit| hit.key != item.key);
            hits.hits.truncate(k);
            Ok(hits)
        }
        .boxed()
    }
}

impl EmbedQuery for StandIn {
    fn embed_query(&self, text: &str) -> Result<Vec<f32>, SearchError> {
        if text == "held" {
            let held = self.hold.lock().unwrap().take();
            assert!(held.is_some_and(|held| held.recv().is_err()));
        }
        let axis = text.len() % 3;
        Ok((0..3).map(|n| if n == axis { 1.0 } else { 0.5 / (n + 1) as f32 }).collect())
    }
}

struct Api {
    server: Server,
    status: Arc<Status>,
    stand_in: Arc<StandIn>,
    state: Arc<ServeState>,
    client: reqwest::Client,
}

impl Api {
    async fn closed(change: impl FnOnce(&mut config::Serve)) -> Api {
        let mut config = config::Serve {
            listen: ([127, 0, 0, 1], 0).into(),
            body_max_bytes: 2048,
            k_max: 5,
            timeout_ms: 60_000,
            connections_max: 64,
            concurrency_max: 8,
        };
        change(&mut config);
        let status = Arc::new(Status::new(Arc::new(Metrics::new())));
        let shape = Shape { dimension: 3, columns: ["id", "name", "price"].map(String::from).to_vec() };
        let stand_in =
            Arc::new(StandIn { shape, begun: AtomicUsize::new(0), go_on: Notify::new(), hold: Default::default() });
        let state = Arc::new(ServeState::new(config, status.clone()));
        let server = Server::start(state.clone()).await.unwrap();
        Api { server, status, stand_in, state, client: reqwest::Client::new() }
    }

    async fn open(change: impl FnOnce(&mut config::Serve)) -> Api {
        let api = Api::closed(change).await;
        api.state.open(api.stand_in.clone(), api.stand_in.clone());
        api
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.server.address())
    }

    async fn ask(&self, method: &str, path: &str, body: &str) -> reqwest::Response {
        let method = method.parse().unwrap();
        self.client.request(method, self.url(path)).body(body.to_string()).send().await.unwrap()
    }

    async fn search(&self, body: Value) -> reqwest::Response {
        self.ask("POST", "/v1/search", &body.to_string()).await
    }
}

/// Status, code and sentence of an answer that is no success, which has the one shape that all of them have.
async fn failure(answer: reqwest::Response) -> (u16, String, String) {
    let status = answer.status();
    assert!(!status.is_success());
    assert_eq!(answer.headers()["content-type"], "application/json");
    assert_eq!(answer.headers().contains_key("retry-after"), status.as_u16() == 503, "{status}");
    let body: Value = answer.json().await.unwrap();
    assert_eq!(names(&body), ["error"]);
    assert_eq!(names(&body["error"]), ["code", "message"]);
    let text = |name: &str| body["error"][name].as_str().unwrap().to_string();
    assert!(!text("message").is_empty());
    (status.as_u16(), text("code"), text("message"))
}

fn names(object: &Value) -> Vec<&str> {
    object.as_object().unwrap().keys().map(String::as_str).collect()
}

#[tokio::test]
async fn answers_have_the_promised_shapes() {
    let api = Api::open(|_| ()).await;
    let told = json!({"t": {"0": 41, "1": 9}});

    let answer = api.search(json!({"vector": [0.0, 1.0, 0.5], "k": 2, "columns": ["name"]})).await;
    assert_eq!(answer.headers()["content-type"], "application/json");
    assert_eq!(answer.headers()["cache-control"], "no-store");
    let answer: Value = answer.json().await.unwrap();
    assert_eq!(names(&answer), ["hits", "epoch", "position", "took_ms"]);
    assert_eq!((&answer["epoch"], &answer["position"]), (&json!(7), &told));
    assert!(answer["took_ms"].as_f64() > Some(0.0));
    let hits = json!([
        {"key": 1, "score": 1.0, "row": {"name": "axis 1"}},
        {"key": 2, "score": 0.5, "row": {"name": "axis 2"}},
    ]);
    assert_eq!(answer["hits"], hits);

    let item: Value = api.ask("GET", "/v1/items/2", "").await.json().await.unwrap();
    let row = json!({"id": 2, "name": "axis 2", "price": null});
    assert_eq!(item, json!({"key": 2, "row": row, "epoch": 7, "position": told}));

    let similar: Value = api.ask("GET", "/v1/similar/0?k=1", "").await.json().await.unwrap();
    assert_eq!(names(&similar), ["hits", "epoch", "position", "took_ms"]);
    assert_eq!((&similar["hits"][0]["key"], similar["hits"].as_array().unwrap().len()), (&json!(1), 1));

    let status: Value = api.ask("GET", "/v1/status", "").await.json().await.unwrap();
    for part in ["state", "why", "epoch", "position", "lag", "freshness_ms", "embed", "quarantine", "index"] {
        assert!(!status[part].is_null(), "{part}");
    }
    let page = api.ask("GET", "/", "").await;
    assert!(page.headers()["content-type"].to_str().unwrap().starts_with("text/html"));
    assert!(page.headers()["content-security-policy"].to_str().unwrap().contains("default-src 'none'"));
    assert!(page.text().await.unwrap().contains("/v1/search"));
    let head = api.ask("HEAD", "/v1/items/2", "").await;
    assert_eq!((head.status().as_u16(), head.bytes().await.unwrap().len()), (200, 0));
}

#[tokio::test]
async fn a_query_is_embedded_once_and_a_vector_never() {
    let api = Api::open(|_| ()).await;
    for _ in 0..3 {
        let answer: Value = api.search(json!({"query": "four"})).await.json().await.unwrap();
        assert_eq!((&answer["hits"][0]["key"], answer["hits"].as_array().unwrap().len()), (&json!(1), 3));
    }
    api.search(json!({"vector": [1, 0, 0]})).await;
    let m = api.status.metrics();
    assert_eq!((m.queries_computed.get(), m.queries_cached.get()), (1, 2));
}

#[tokio::test]
async fn every_mistake_has_its_status_and_its_code() {
    let api = Api::open(|_| ()).await;
    let large = format!(r#"{{"query": "{}"}}"#, "x".repeat(4000));
    let search = "/v1/search";
    for (method, path, body, status, code) in [
        ("POST", search, "{", 400, "bad_json"),
        ("POST", search, "", 400, "bad_json"),
        ("POST", search, "{}", 400, "bad_request"),
        ("POST", search, r#"{"query": "a", "vector": [1, 0, 0]}"#, 400, "bad_request"),
        ("POST", search, r#"{"query": "a", "limit": 5}"#, 400, "bad_request"),
        ("POST", "/v1/search?k=3", r#"{"query": "a"}"#, 400, "bad_request"),
        ("POST", search, r#"{"vector": [1, 0]}"#, 400, "bad_vector"),
        ("POST", search, r#"{"vector": [0, 0, 0]}"#, 400, "bad_vector"),
        ("POST", search, r#"{"query": "a", "k": 6}"#, 400, "bad_k"),
        ("POST", search, r#"{"query": "a", "columns": ["nothing"]}"#, 400, "unknown_column"),
        ("POST", search, r#"{"query": "a", "filter": "bad"}"#, 400, "bad_filter"),
        ("POST", search, r#"{"query": "a", "filter": " "}"#, 400, "bad_filter"),
        ("POST", search, &large, 413, "body_too_large"),
        ("GET", "/v1/items/9", "", 404, "not_found"),
        ("GET", "/v1/items/nine", "", 400, "bad_key"),
        ("GET", "/v1/items/%FF", "", 400, "bad_key"),
        ("GET", "/v1/items/1?k=3", "", 400, "bad_request"),
        ("GET", "/v1/similar/9", "", 404, "not_found"),
        ("GET", "/v1/similar/1?k=6", "", 400, "bad_k"),
        ("GET", "/v1/similar/1?n=1", "", 400, "bad_request"),
        ("GET", "/v1/items", "", 404, "unknown_path"),
        ("GET", "/nothing", "", 404, "unknown_path"),
        ("POST", "/v2/search", "{}", 404, "unknown_path"),
        ("GET", search, "", 405, "method_not_allowed"),
        ("DELETE", "/v1/items/1", "", 405, "method_not_allowed"),
        ("POST", "/metrics", "", 405, "method_not_allowed"),
    ] {
        let answer = api.ask(method, path, body).await;
        let allow = answer.headers().get("allow").map(|a| a.to_str().unwrap().to_string());
        let expected = (status == 405).then(|| if path == search { "POST" } else { "GET, HEAD" }.to_string());
        assert_eq!(allow, expected, "{method} {path}");
        let (found, said, _) = failure(answer).await;
        assert_eq!((found, said.as_str()), (status, code), "{method} {path} {body}");
    }
    assert_eq!(api.stand_in.begun.load(Ordering::SeqCst), 1, "only the filter is judged by the index");
}

#[tokio::test]
async fn what_goes_wrong_inside_is_not_told() {
    let api = Api::open(|_| ()).await;
    for (filter, status, code) in
        [("broken", 500, "internal"), ("panic", 500, "internal"), ("away", 503, "unavailable")]
    {
        let (found, said, message) = failure(api.search(json!({"query": "a", "filter": filter})).await).await;
        assert_eq!((found, said.as_str()), (status, code));
        assert!(!message.contains("secret"), "{message}");
    }
    assert_eq!(api.status.metrics().searches_running.get(), 0, "each has given its place back");
    assert!(api.search(json!({"query": "a"})).await.status().is_success());
}

#[tokio::test]
async fn alive_is_not_ready() {
    let api = Api::closed(|_| ()).await;
    let codes = async || {
        (api.ask("GET", "/healthz", "").await.status().as_u16(), api.ask("GET", "/readyz", "").await.status().as_u16())
    };
    assert_eq!(codes().await, (200, 503));
    for path in ["/v1/items/1", "/v1/similar/1", "/readyz"] {
        assert_eq!(failure(api.ask("GET", path, "").await).await.1, "not_ready", "{path}");
    }
    assert_eq!(failure(api.search(json!({"query": "a"})).await).await.1, "not_ready");
    assert_eq!(api.ask("GET", "/v1/status", "").await.status().as_u16(), 200, "it can say how it is");
    api.state.open(api.stand_in.clone(), api.stand_in.clone());
    assert_eq!(codes().await, (200, 503), "an index that is open may still be empty");
    api.status.set_state(State::Live, "caught up");
    assert_eq!(codes().await, (200, 200));
    api.status.set_waiting(Wait::Peer, Some("the broker is away".into()));
    assert_eq!(codes().await, (200, 200), "what the index holds is worth having");
    api.status.set_state(State::Failed, "the disk is full");
    assert_eq!(codes().await, (503, 503));
    let (_, code, message) = failure(api.ask("GET", "/healthz", "").await).await;
    assert_eq!((code.as_str(), message.as_str()), ("failed", "the disk is full"));
}

#[tokio::test]
async fn a_server_that_stops_answers_what_was_asked_and_accepts_nothing_more() {
    let api = Api::open(|_| ()).await;
    let url = api.url("/v1/search");
    let client = api.client.clone();
    let asking = tokio::spawn(client.post(url.clone()).body(r#"{"query": "a", "filter": "wait"}"#).send());
    while api.stand_in.begun.load(Ordering::SeqCst) < 1 {
        tokio::task::yield_now().await;
    }
    let stopping = tokio::spawn(api.server.stop(Duration::from_secs(60)));
    // The listener is gone before the search has ended.
    while tokio::net::TcpStream::connect(url.trim_start_matches("http://").trim_end_matches("/v1/search")).await.is_ok()
    {
        tokio::task::yield_now().await;
    }
    assert!(!stopping.is_finished());
    api.stand_in.go_on.notify_waiters();
    assert!(asking.await.unwrap().unwrap().status().is_success());
    assert!(stopping.await.unwrap(), "all answers were given");
}

/// One sample of Prometheus's text format: name, labels, value.
type Sample = (String, BTreeMap<String, String>, f64);

/// Reads the text format strictly: each family has its help and its type before its samples, and appears once.
fn samples(text: &str) -> Vec<(String, Vec<Sample>)> {
    let mut families: Vec<(String, String, Vec<Sample>)> = Vec::new();
    let mut helped = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            helped = rest.split_once(' ').expect("a help has a text").0.to_string();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(name, helped, "the help stands before the type");
            assert!(families.iter().all(|(n, ..)| n != name), "{name} appears twice");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            families.push((name.into(), kind.into(), Vec::new()));
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line:?} is no sample"));
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            let labels = labels.strip_suffix('}').unwrap_or_else(|| panic!("{line:?} does not close its labels"));
            let label = |pair: &str| {
                let (name, value) = pair.split_once("=\"").unwrap();
                (name.to_string(), value.strip_suffix('"').unwrap().to_string())
            };
            let labels = labels.split(',').filter(|pair| !pair.is_empty()).map(label).collect();
            let (family, kind, of) = families.last_mut().expect("a type stands before its samples");
            let suffix = name.strip_prefix(family.as_str()).unwrap_or_else(|| panic!("{name} below {family}"));
            let fits =
                if kind == "histogram" { ["_bucket", "_sum", "_count"].contains(&suffix) } else { suffix.is_empty() };
            assert!(fits, "{line}");
            of.push((name.into(), labels, value.parse().unwrap_or_else(|_| panic!("{line:?} has no value"))));
        }
    }
    families.into_iter().map(|(name, _, of)| (name, of)).collect()
}

#[tokio::test]
async fn metrics_can_be_read_by_prometheus() {
    let api = Api::open(|_| ()).await;
    api.search(json!({"query": "a"})).await;
    api.search(json!({"query": "a", "filter": "bad"})).await;
    api.status.observe_freshness([3, 40, 700]);
    api.status.set_watermarks([(Partition::new("t", 3), Watermarks { low: Offset(5), high: Offset(17) })]);
    let answer = api.ask("GET", "/metrics", "").await;
    assert_eq!(answer.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let families = samples(&answer.text().await.unwrap());
    let of = |name: &str| &families.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("no {name}")).1;

    let label = |sample: &Sample, name: &str| sample.1.get(name).cloned().unwrap_or_default();
    let lag = &of("freshet_lag_events")[0];
    assert_eq!((label(lag, "topic"), label(lag, "partition"), lag.2), ("t".into(), "3".into(), 12.0));
    for status in ["200", "400"] {
        let counts =
            |s: &&Sample| s.0.ends_with("_count") && label(s, "route") == "search" && label(s, "status") == status;
        assert_eq!(of("freshet_request_seconds").iter().find(counts).map(|s| s.2), Some(1.0), "{status}");
    }
    // A histogram's buckets grow, and the last one counts all.
    let freshness = of("freshet_freshness_seconds");
    let buckets: Vec<&Sample> = freshness.iter().filter(|s| s.0.ends_with("_bucket")).collect();
    assert!(buckets.windows(2).all(|pair| pair[0].2 <= pair[1].2));
    assert_eq!((label(buckets[buckets.len() - 1], "le"), buckets[buckets.len() - 1].2), ("+Inf".into(), 3.0));
    let sum = freshness.iter().find(|s| s.0.ends_with("_sum")).unwrap().2;
    assert!((sum - 0.743).abs() < 1e-9, "{sum}");
    // Every figure that the metrics have is in the text.
    for series in api.status.metrics().series() {
        let known = families.iter().any(|(_, of)| of.iter().any(|s| s.0 == *series));
        assert!(known, "{series} is not shown");
    }
}

#[tokio::test]
async fn a_rebuild_is_asked_for_from_this_machine_alone() {
    let api = Api::open(|_| ()).await;
    api.status.set_table("t");
    assert_eq!(api.ask("GET", "/v1/rebuild", "").await.status(), 405);
    // A browser says whose page it shows.
    let of_page = api.client.post(api.url("/v1/rebuild")).header("Origin", "https://example.org").send().await.unwrap();
    assert_eq!(of_page.status(), 403);
    assert!(!api.status.is_asked_to_rebuild());
    let answer = api.ask("POST", "/v1/rebuild", "").await;
    assert_eq!(answer.status(), 202);
    assert_eq!(answer.json::<Value>().await.unwrap(), json!({"table": "t"}));
    assert!(api.status.is_asked_to_rebuild());
}
