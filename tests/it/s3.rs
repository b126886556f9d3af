//! The service with raw and index on an object store: it goes on, mends what is lost, is rebuilt, and one that another has taken the index from ends.

use std::time::Duration;

use freshet::storage::{self, Storage};
use futures::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt};
use serde_json::{Value, json};

use super::between::{Between, Way};
use super::connector::{TOPIC, Writer, envelope, event};
use super::running::{Items, Running, item_fields, items, row, until};

/// A dataflow whose tables lie in the bucket, under a prefix of its own.
struct Case {
    items: Items,
    between: Between,
    writer: Writer,
    uri: String,
}

impl Case {
    async fn new() -> Case {
        let variable = |name: &str| {
            std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run `make s3`, which starts SeaweedFS"))
        };
        let (bucket, endpoint) = (variable("FRESHET_S3_BUCKET"), variable("FRESHET_S3_ENDPOINT"));
        variable("AWS_ACCESS_KEY_ID");
        let items = Items::new("debezium").await;
        let between = Between::new(&endpoint).await;
        let endpoint = &between.endpoint;
        let uri = format!("s3://{bucket}/{:016x}", rand::random::<u64>());
        let file = items.folder.path().join("dataflow.toml");
        let mut text = std::fs::read_to_string(&file).unwrap();
        for part in ["raw", "index"] {
            let options =
                format!(r#"options = {{ endpoint = "{endpoint}", allow_http = true, region = "us-east-1" }}"#);
            let given = format!(r#"uri = "data/{part}""#);
            assert!(text.contains(&given));
            text = text.replace(&given, &format!("uri = \"{uri}/{part}\"\n{options}"));
        }
        std::fs::write(file, text).unwrap();
        let writer = Writer::new(&items.registry, "v", &envelope(&item_fields()));
        Case { items, between, writer, uri }
    }

    fn put(&mut self, id: i64, name: &str) {
        let value = event("u", Value::Null, row(id, name, None, id));
        self.items.connector.send(id, Some(self.writer.message(value)));
    }

    /// The objects under a part of the index.
    async fn objects(&self, part: &str) -> Vec<object_store::path::Path> {
        let Storage { store, path, .. } = self.index();
        let under = format!("{path}/{part}");
        let all: Vec<_> = store.list(Some(&path)).map_ok(|object| object.location).try_collect().await.unwrap();
        all.into_iter().filter(|at| at.as_ref().starts_with(&under)).collect()
    }

    fn index(&self) -> Storage {
        let config = self.items.config().index;
        assert_eq!(config.uri, format!("{}/index", self.uri));
        storage::open(&config.uri, &config.options).unwrap()
    }
}

async fn live(running: &Running) {
    until("live", async || running.state().await.0 == "live").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_on_s3_goes_on_is_mended_and_rebuilt() {
    let mut case = Case::new().await;
    let running = case.items.start().await;
    (1..=30).for_each(|id| case.put(id, &format!("thing {}", id / 2)));
    running.reflects(&case.items.connector).await;
    live(&running).await;
    assert_eq!(running.post("/v1/rebuild", json!({})).await.0, 202);
    until("the new table", async || running.status().await["index"]["table"] == "items.1").await;
    case.put(31, "one more");
    case.items.connector.send(1, None);
    running.reflects(&case.items.connector).await;
    let rows = running.items().await;
    assert_eq!((rows.len(), &rows[&31]), (30, &("one more".into(), None, 31)));
    running.stop().await;

    let running = case.items.start().await;
    live(&running).await;
    let status = running.status().await;
    assert_eq!((&status["index"]["upserted"], &status["embed"]["computed"]), (&json!(0), &json!(0)), "{status}");
    assert_eq!(running.items().await, rows);
    running.stop().await;
    assert!(case.objects("items.lance/").await.is_empty(), "the table before is removed");

    let data = case.objects("items.1.lance/data/").await;
    assert!(!data.is_empty());
    case.index().store.delete(&data[0]).await.unwrap();
    let running = case.items.start().await;
    live(&running).await;
    let status = running.status().await;
    assert_eq!((&status["index"]["table"], &status["embed"]["computed"]), (&json!("items.2"), &json!(0)), "{status}");
    assert_eq!(running.items().await, rows);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_last_has_the_index() {
    let mut case = Case::new().await;
    let first = case.items.start().await;
    (1..=5).for_each(|id| case.put(id, "a thing"));
    first.reflects(&case.items.connector).await;
    live(&first).await;
    // The other one on another machine: with an embedding store of its own, and without raw, which has one writer too.
    let mut config = case.items.config();
    config.embed.store = case.items.folder.path().join("data/others");
    config.raw = None;
    let second = Running::start_with_stand_in(config).await;
    live(&second).await;
    until("the end of the first", async || first.state().await.0 == "failed").await;
    let why = first.state().await.1;
    assert!(why.contains("another service has taken the index items at s3://"), "{why}");
    first.stop().await;
    case.put(6, "another thing");
    second.reflects(&case.items.connector).await;
    let all = [1, 2, 3, 4, 5].map(|id| (id, "a thing", None, id));
    let mut expected = items(all);
    expected.insert(6, ("another thing".into(), None, 6));
    assert_eq!(second.items().await, expected);
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_is_probed() {
    let case = Case::new().await;
    let config = case.items.config().index;
    storage::probe(&config.uri, &config.options).await.unwrap();
    assert!(case.objects("").await.is_empty(), "a probe leaves nothing");
    let mut options = config.options.clone();
    options.insert("endpoint".into(), "http://127.0.0.1:1".into());
    options.insert("connect_timeout".into(), "1s".into());
    let probed = tokio::time::timeout(Duration::from_secs(300), storage::probe(&config.uri, &options)).await;
    assert!(probed.is_ok_and(|probed| probed.is_err()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_is_waited_for() {
    let mut case = Case::new().await;
    let running = case.items.start().await;
    (1..=10).for_each(|id| case.put(id, "a thing"));
    running.reflects(&case.items.connector).await;
    live(&running).await;
    let away = async |case: &mut Case, table: &str| {
        case.items.connector.flush();
        until(table, async || {
            let status = running.status().await;
            assert_ne!(status["state"], "failed", "{}", status["why"]);
            let told = [&status["why"], &status["raw"]["waiting"]];
            status["state"] == "waiting" && told.iter().any(|why| why.as_str().is_some_and(|why| why.contains(table)))
        })
        .await;
        assert_eq!(running.get("/readyz").await.0, 200);
        case.between.set(Way::Well);
        running.reflects(&case.items.connector).await;
        live(&running).await;
    };
    for table in ["the index at", "shop__item"] {
        case.between.set(Way::Refusing);
        (6..=15).for_each(|id| case.put(id, &format!("another thing beside {table}")));
        away(&mut case, table).await;
    }
    case.between.set(Way::Refusing);
    case.items.connector.raw(0, None, Some(b"no event".to_vec()));
    away(&mut case, "items.quarantine").await;
    let status = running.status().await;
    assert_eq!((&status["quarantine"]["open"], &status["index"]["rows"]), (&json!(1), &json!(15)), "{status}");
    running.stop().await;
    whole(&case).await;
}

/// Raw alone is on the store, and its queue is short: what is read waits in it, until reading has to wait too.
#[tokio::test(flavor = "multi_thread")]
async fn raw_that_is_away_holds_up_reading_once_its_queue_is_full() {
    let mut case = Case::new().await;
    let mut config = case.items.config();
    config.index.uri = case.items.folder.path().join("data/index").to_str().unwrap().into();
    config.index.options.clear();
    let raw = config.raw.as_mut().unwrap();
    (raw.queue_max_bytes, raw.commit_max_bytes) = (4096, 1024);
    let running = Running::start_with_stand_in(config).await;
    (1..=10).for_each(|id| case.put(id, "a thing"));
    running.reflects(&case.items.connector).await;
    live(&running).await;

    case.between.set(Way::Refusing);
    case.put(1, "a thing that the index has and raw has not");
    running.reflects(&case.items.connector).await;
    until("raw, which waits alone", async || !running.status().await["raw"]["waiting"].is_null()).await;
    assert_eq!(running.state().await.0, "live", "searches are as fresh as before");
    (1..=200).for_each(|id| case.put(id, "another thing"));
    case.items.connector.flush();
    until("waiting for raw", async || {
        let (state, why) = running.state().await;
        state == "waiting" && why.contains("shop__item")
    })
    .await;
    // What comes while reading stands still is seen all the same.
    (1..=50).for_each(|id| case.put(id, "a third thing"));
    case.items.connector.flush();
    let sent: i64 = case.items.connector.end().iter().map(|(_, next)| next).sum();
    until("the lag", async || {
        let status = running.status().await;
        let done: i64 = status["position"][TOPIC].as_object().unwrap().values().map(|n| n.as_i64().unwrap()).sum();
        assert_eq!(status["state"], "waiting", "{status}");
        status["lag_total"].as_i64().unwrap() == sent - done
    })
    .await;
    case.between.set(Way::Well);
    running.reflects(&case.items.connector).await;
    live(&running).await;
    running.stop().await;
    whole(&case).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_lost_and_late_cost_nothing() {
    let mut case = Case::new().await;
    let running = case.items.start().await;
    (1..=10).for_each(|id| case.put(id, "a thing"));
    running.reflects(&case.items.connector).await;
    live(&running).await;
    for way in [Way::Late, Way::Losing] {
        case.between.set(way);
        let mut n = 0;
        while case.between.failures() < 20 {
            n += 1;
            case.put(n % 40, &format!("thing {}", n % 7));
            if n % 10 == 0 {
                running.reflects(&case.items.connector).await;
            }
        }
    }
    case.between.set(Way::Well);
    running.reflects(&case.items.connector).await;
    let rows = running.items().await;
    running.stop().await;
    whole(&case).await;
    // A start compares all of the view with the index, and has nothing to mend.
    let running = case.items.start().await;
    live(&running).await;
    let status = running.status().await;
    assert_eq!((&status["index"]["upserted"], &status["embed"]["computed"]), (&json!(0), &json!(0)), "{status}");
    assert_eq!(running.items().await, rows);
    running.stop().await;
}

/// Every offset has landed once.
async fn whole(case: &Case) {
    let end = case.items.connector.end();
    assert_eq!(case.items.landed().await, end.into_iter().map(|(p, next)| (p, (0..next).collect())).collect());
}
