//! Raw in the running service: everything lands, a start reads raw and Kafka right after it, and what cannot follow on raw is refused.

use std::collections::BTreeMap;

use freshet::raw::RawTable;
use serde_json::Value;

use super::connector::{TOPIC, Writer, envelope, event};
use super::running::{Items, Running, item_fields, items, row, until};

async fn landed(case: &Items) -> Vec<(i32, i64)> {
    let folder = case.folder.path().join("data/raw/shop__item");
    let table = RawTable::open(folder.to_str().unwrap(), &BTreeMap::new(), "items", &TOPIC.into()).await.unwrap();
    table.landed().iter().map(|(partition, next)| (partition.number, next.0)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_reads_raw_and_kafka_right_after_it() {
    let mut case = Items::new("debezium").await;
    let writer = Writer::new(&case.registry, "v", &envelope(&item_fields()));
    let put = |case: &mut Items, id: i64, name: &str| {
        case.connector.send(id, Some(writer.message(event("u", Value::Null, row(id, name, None, id)))));
    };
    let running = case.start().await;
    for id in 1..=6 {
        put(&mut case, id, "first");
    }
    put(&mut case, 2, "second");
    // The last that a partition says is a delete, and then garbage: neither leaves a row behind.
    case.connector.send(3, None);
    case.connector.raw(0, Some(case.connector.key(4)), Some(vec![7]));
    running.reflects(&case.connector).await;
    running.stop().await;
    assert_eq!(landed(&case).await, case.connector.end(), "what was read has landed when the service has ended");

    put(&mut case, 7, "third");
    case.connector.flush();
    let running = case.start().await;
    running.reflects(&case.connector).await;
    until("live", async || running.state().await.0 == "live").await;
    let status = running.status().await;
    assert_eq!(status["source"]["messages"], 1, "the others came from raw");
    assert_eq!(status["embed"]["computed"], 1, "{status}");
    assert_eq!((&status["quarantine"]["open"], &status["quarantine"]["total"]), (&1.into(), &1.into()), "{status}");
    let all = [
        (1, "first", None, 1),
        (2, "second", None, 2),
        (4, "first", None, 4),
        (5, "first", None, 5),
        (6, "first", None, 6),
        (7, "third", None, 7),
    ];
    assert_eq!(running.items().await, items(all));
    running.stop().await;
    assert_eq!(landed(&case).await, case.connector.end());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_was_made_anew_is_not_taken_for_the_old_one() {
    let mut case = Items::new("debezium").await;
    let writer = Writer::new(&case.registry, "v", &envelope(&item_fields()));
    let running = case.start().await;
    for id in 1..=6 {
        case.connector.send(id, Some(writer.message(event("c", Value::Null, row(id, "old", None, 0)))));
    }
    running.reflects(&case.connector).await;
    running.stop().await;

    // Another broker has a topic of the same name, with less in it; or with so much that raw's place is in it.
    for new in [1, 30] {
        let mut anew = Items::new("debezium").await;
        let writer = Writer::new(&anew.registry, "v", &envelope(&item_fields()));
        for id in 1..=new {
            anew.connector.send(id, Some(writer.message(event("c", Value::Null, row(id, "new", None, 0)))));
        }
        anew.connector.flush();
        let config = case.folder.config(&anew.broker.bootstrap_servers(), &anew.registry.url());
        let running = Running::start_with_stand_in(config).await;
        until("the refusal", async || running.state().await.0 == "failed").await;
        let why = running.state().await.1;
        for part in [TOPIC, "made anew", "data/raw/shop__item"] {
            assert!(why.contains(part), "{part} is not in {why}");
        }
        assert_eq!(running.items().await.len(), 6, "what the index holds is served meanwhile");
        running.stop().await;
    }
}
