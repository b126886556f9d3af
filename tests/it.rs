//! The whole service over real sockets: an embedded broker and registry, the shipped dataflow, the HTTP API.

mod it {
    mod sql;
}

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use freshet::config;
use freshet::demo::{Shop, TOPIC, TOPICS};
use freshet::engine::Service;
use freshet::source::embedded::{Broker, Producer, Registry};
use serde_json::{Value, json};

async fn start(broker: &Broker, registry: &Registry, data: &Path) -> Service {
    start_with(broker, registry, data, |_| ()).await
}

async fn start_with(
    broker: &Broker,
    registry: &Registry,
    data: &Path,
    change: impl FnOnce(&mut config::Config),
) -> Service {
    let (brokers, url) = (broker.bootstrap_servers(), registry.url());
    let data = data.to_string_lossy().into_owned();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("dataflows/product");
    let config = config::load_with(&folder, |name| match name {
        "KAFKA_BOOTSTRAP_SERVERS" => Some(brokers.clone()),
        "SCHEMA_REGISTRY_URL" => Some(url.clone()),
        "FRESHET_DATA_DIR" => Some(data.clone()),
        "FRESHET_LISTEN" => Some("127.0.0.1:0".into()),
        other => std::env::var(other).ok(),
    });
    let mut config = config.unwrap();
    change(&mut config);
    Service::start(config, Arc::new(|_| ())).await.unwrap()
}

async fn get(service: &Service, path: &str) -> (u16, Value) {
    let answer = reqwest::get(format!("http://{}{path}", service.address())).await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap_or_default())
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < Duration::from_secs(60), "{what} did not come about within 60 s");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn search(service: &Service, query: &str) -> Value {
    let url = format!("http://{}/v1/search", service.address());
    let body = json!({"query": query, "k": 1}).to_string();
    reqwest::Client::new().post(url).body(body).send().await.unwrap().json().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_in_the_table_is_what_is_found() {
    let broker = Broker::start(&TOPICS).unwrap();
    let registry = Registry::start().await.unwrap();
    let data = tempfile::tempdir().unwrap();
    let mut shop = Shop::new(7, 30, Producer::new(&broker.bootstrap_servers()).unwrap(), &registry).unwrap();
    for id in shop.ids() {
        shop.snapshot(id, id == 30).unwrap();
    }
    shop.flush().unwrap();
    let service = start(&broker, &registry, data.path()).await;
    let status = service.status().clone();
    let m = status.metrics();
    until("30 rows", async || m.index_rows.get() == 30 && status.lag_total() == 0).await;

    // A text that changed is found by its meaning; a price that changed embeds nothing; what was deleted is gone.
    shop.edit(3, None, Some("A singing teapot for astronauts.".into()), None).unwrap();
    until("the teapot", async || search(&service, "teapot for astronauts").await["hits"][0]["key"] == 3).await;
    let asked = m.embeds_asked.get();
    shop.edit(4, None, None, Some(12_345)).unwrap();
    until("the price", async || get(&service, "/v1/items/4").await.1["row"]["list_price"].as_f64() == Some(123.45))
        .await;
    assert_eq!(m.embeds_asked.get(), asked, "a price asks for no vector");
    shop.delete(5).unwrap();
    until("the delete", async || get(&service, "/v1/items/5").await.0 == 404).await;

    // Garbage is quarantined, and what comes after it arrives.
    let producer = Producer::new(&broker.bootstrap_servers()).unwrap();
    for garbage in [&b"\x00\x00\x00\x00\x01\x02"[..], b"not avro", b"\x00\x00\x00\xff\xff\x00", b""] {
        producer.send(TOPIC, 0, Some(b"k"), Some(garbage)).unwrap();
    }
    producer.flush().unwrap();
    until("four rejects", async || m.quarantine_open.get() == 4).await;
    let held = std::fs::read_to_string(data.path().join("index/product.quarantine.jsonl")).unwrap();
    let rules: Vec<Value> = held.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["rule"].clone()).collect();
    assert_eq!(rules, ["body", "wire", "unknown_schema", "wire"]);

    // A new column arrives with a schema of its own while the registry is away: it waits, and quarantines nothing.
    registry.set_down(true);
    shop.add_column();
    shop.edit(6, Some("A kite shaped like a whale".into()), None, None).unwrap();
    until("waiting", async || get(&service, "/v1/status").await.1["state"] == "waiting").await;
    registry.set_down(false);
    until("the whale", async || get(&service, "/v1/items/6").await.1["row"]["name"] == "A kite shaped like a whale")
        .await;
    assert_eq!(m.quarantine_open.get(), 4);

    // A broker that is away is waited for, and said; what was written meanwhile by others would be read afterwards.
    broker.set_down(true).unwrap();
    until("waiting", async || get(&service, "/v1/status").await.1["state"] == "waiting").await;
    assert_eq!(search(&service, "teapot for astronauts").await["hits"][0]["key"], 3, "searches go on");
    broker.set_down(false).unwrap();
    shop.edit(8, None, Some("A lantern that hums in the fog.".into()), None).unwrap();
    until("the lantern", async || search(&service, "humming lantern").await["hits"][0]["key"] == 8).await;
    assert_eq!(m.quarantine_open.get(), 4);

    // A restart embeds nothing of what the index holds, and goes on.
    let before = get(&service, "/v1/status").await.1;
    service.stop().await;
    shop.delete(7).unwrap();
    // Hydrating holds the whole view: a bound on waiting keys that is smaller than it must not stop it.
    let small = |c: &mut config::Config| (c.engine.pending_max_keys, c.engine.epoch_max_events) = (5, 1);
    let service = start_with(&broker, &registry, data.path(), small).await;
    let status = service.status().clone();
    assert!(get(&service, "/v1/status").await.1["epoch"].as_u64() >= before["epoch"].as_u64(), "answers never go back");
    until("the delete after the restart", async || get(&service, "/v1/items/7").await.0 == 404).await;
    until("live", async || get(&service, "/v1/status").await.1["state"] == "live").await;
    assert_eq!((status.metrics().embeds_computed.get(), status.metrics().index_rows.get()), (0, 28));

    // The index is the shop's table, row by row.
    for id in shop.ids() {
        let (code, item) = get(&service, &format!("/v1/items/{id}")).await;
        let product = shop.get(id).unwrap();
        assert_eq!((code, &item["row"]["name"]), (200, &json!(product.name)), "{id}");
        assert_eq!(item["row"]["description"], json!(product.description));
    }
    service.stop().await;
}
