//! The shipped dataflow and the demo's shop: what happens in the table is what is found.

use std::path::Path;

use freshet::config;
use freshet::demo::{Shop, TOPICS};
use freshet::source::embedded::{Broker, Producer, Registry};
use serde_json::json;

use super::running::{Running, until};

/// The shipped dataflow, with peers of this process and its data in a folder of the test's.
fn shipped(broker: &Broker, registry: &Registry, data: &Path) -> config::Config {
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
    config.unwrap()
}

async fn nearest(running: &Running, query: &str) -> serde_json::Value {
    running.post("/v1/search", json!({"query": query, "k": 1})).await.1["hits"][0]["key"].clone()
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
    let running = Running::start(shipped(&broker, &registry, data.path())).await;
    let status = running.service().status().clone();
    let m = status.metrics();
    until("30 rows", async || m.index_rows.get() == 30 && status.lag_total() == 0).await;

    // A text that changed is found by its meaning; a price that changed embeds nothing; what was deleted is gone.
    shop.edit(3, None, Some("A singing teapot for astronauts.".into()), None).unwrap();
    let teapot =
        async || running.get("/v1/items/3").await.1["row"]["description"] == "A singing teapot for astronauts.";
    until("the teapot", teapot).await;
    assert_eq!(nearest(&running, "teapot for astronauts").await, 3);
    let asked = m.embeds_asked.get();
    shop.edit(4, None, None, Some(12_345)).unwrap();
    until("the price", async || running.get("/v1/items/4").await.1["row"]["list_price"].as_f64() == Some(123.45)).await;
    assert_eq!(m.embeds_asked.get(), asked, "a price asks for no vector");
    shop.delete(5).unwrap();
    until("the delete", async || running.get("/v1/items/5").await.0 == 404).await;

    // A new column arrives with a schema of its own.
    shop.add_column();
    shop.edit(6, Some("A kite shaped like a whale".into()), None, None).unwrap();
    until("the whale", async || running.get("/v1/items/6").await.1["row"]["name"] == "A kite shaped like a whale")
        .await;
    assert_eq!(nearest(&running, "whale-shaped kite").await, 6);
    assert_eq!(m.quarantine_open.get(), 0);

    // A restart embeds nothing of what the index holds, and goes on.
    let before = running.status().await;
    running.stop().await;
    shop.delete(7).unwrap();
    let mut config = shipped(&broker, &registry, data.path());
    // Hydrating holds the whole view: a bound on waiting keys that is smaller than it must not stop it.
    (config.engine.pending_max_keys, config.engine.epoch_max_events) = (5, 1);
    let running = Running::start(config).await;
    let status = running.service().status().clone();
    assert!(running.status().await["epoch"].as_u64() >= before["epoch"].as_u64(), "answers never go back");
    until("the delete after the restart", async || running.get("/v1/items/7").await.0 == 404).await;
    until("live", async || running.state().await.0 == "live").await;
    assert_eq!((status.metrics().embeds_computed.get(), status.metrics().index_rows.get()), (0, 28));

    // The index is the shop's table, row by row.
    for id in shop.ids() {
        let (code, item) = running.get(&format!("/v1/items/{id}")).await;
        let product = shop.get(id).unwrap();
        assert_eq!((code, &item["row"]["name"]), (200, &json!(product.name)), "{id}");
        assert_eq!(item["row"]["description"], json!(product.description));
    }
    running.stop().await;
}
