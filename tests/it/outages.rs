//! Peers that are away for a while: the service waits and says so, loses nothing and sets nothing aside.

use std::time::{Duration, Instant};

use freshet::source::embedded::Broker;
use serde_json::{Value, json};

use super::connector::{PARTITIONS, TOPIC, Writer, envelope, event, key_schema};
use super::running::{Items, Running, item_fields, items, row, until};

fn writer(case: &Items, extra: &str) -> Writer {
    let mut fields = item_fields();
    fields.as_array_mut().unwrap().push(json!({"name": extra, "type": ["null", "string"], "default": null}));
    Writer::new(&case.registry, &format!("{TOPIC}-value"), &envelope(&fields))
}

fn put(case: &mut Items, writer: &Writer, id: i64, name: &str) {
    let value = writer.message(event("c", Value::Null, row(id, name, None, id)));
    case.connector.send(id, Some(value));
}

/// How long a peer that is away has to be said to be, without a break.
const WATCHED: Duration = Duration::from_secs(2);

/// Until it waits, for a reason that names the peer; and then it goes on saying so.
async fn waits_for(running: &Running, peer: &str) {
    until(&format!("waiting for {peer}"), async || {
        let (state, why) = running.state().await;
        state == "waiting" && why.contains(peer)
    })
    .await;
    let begun = Instant::now();
    while begun.elapsed() < WATCHED {
        let (state, why) = running.state().await;
        assert!(state == "waiting" && why.contains(peer), "{state} after {:?}: {why}", begun.elapsed());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let metrics = running.service().status().metrics().render().unwrap();
    assert!(metrics.contains(r#"freshet_state_info{state="waiting"} 1"#), "{metrics}");
}

async fn nothing_was_set_aside(running: &Running) {
    let told = running.status().await;
    assert_eq!(told["quarantine"], json!({"open": 0, "total": 0}));
    assert!(told["decode"]["rejects"].as_object().unwrap().values().all(|n| *n == 0), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_are_away_are_waited_for() {
    let mut case = Items::new("debezium").await;
    let first = writer(&case, "first");
    put(&mut case, &first, 1, "an anchor");
    case.connector.flush();

    // Both are away when the service starts. It is there all the same, and says that it is not ready.
    case.broker.set_down(true).unwrap();
    case.registry.set_down(true);
    let running = case.start().await;
    waits_for(&running, &case.broker.bootstrap_servers()).await;
    assert_eq!(running.get("/healthz").await.0, 200);
    assert_eq!(running.get("/readyz").await.0, 503);
    case.broker.set_down(false).unwrap();
    waits_for(&running, &case.registry.url()).await;
    case.registry.set_down(false);
    running.reflects(&case.connector).await;
    until("live", async || running.state().await.0 == "live").await;
    assert_eq!(running.get("/readyz").await.0, 200);

    // The registry goes, and a schema comes that nobody has asked for yet. What it has told already needs no registry.
    case.registry.set_down(true);
    put(&mut case, &first, 2, "a buoy");
    running.reflects(&case.connector).await;
    let second = writer(&case, "second");
    put(&mut case, &second, 3, "a capstan");
    put(&mut case, &first, 5, "a davit");
    case.connector.flush();
    waits_for(&running, &case.registry.url()).await;
    let (code, found) = running.post("/v1/search", json!({"query": "a buoy", "k": 1})).await;
    assert_eq!((code, &found["hits"][0]["key"]), (200, &json!(2)), "searches go on");
    assert_eq!(running.get("/readyz").await.0, 200, "what the index holds is worth having");
    case.registry.set_down(false);
    running.reflects(&case.connector).await;
    until("live", async || running.state().await.0 == "live").await;

    // The broker goes; what is written meanwhile waits at its writer and comes when it is back.
    case.broker.set_down(true).unwrap();
    put(&mut case, &first, 4, "a cleat");
    waits_for(&running, &case.broker.bootstrap_servers()).await;
    let (code, found) = running.post("/v1/search", json!({"query": "a davit", "k": 1})).await;
    assert_eq!((code, &found["hits"][0]["key"]), (200, &json!(5)), "searches go on");
    case.broker.set_down(false).unwrap();
    running.reflects(&case.connector).await;
    until("live", async || running.state().await.0 == "live").await;

    let all = items([
        (1, "an anchor", None, 1),
        (2, "a buoy", None, 2),
        (3, "a capstan", None, 3),
        (4, "a cleat", None, 4),
        (5, "a davit", None, 5),
    ]);
    assert_eq!(running.items().await, all);
    nothing_was_set_aside(&running).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_away_holds_up_no_partition_of_another() {
    let broker = Broker::start_with_second(TOPIC, PARTITIONS, 1).unwrap();
    let mut case = Items::at(broker, "debezium").await;
    let first = writer(&case, "first");
    (1..=2).for_each(|id| put(&mut case, &first, id, "an anchor"));
    case.connector.flush();
    let running = case.start().await;
    running.reflects(&case.connector).await;
    until("live", async || running.state().await.0 == "live").await;

    case.broker.set_second_down(true).unwrap();
    waits_for(&running, &format!("{TOPIC}/1")).await;
    put(&mut case, &first, 4, "a buoy");
    until("the partition of the first", async || running.get("/v1/items/4").await.0 == 200).await;
    let (state, why) = running.state().await;
    assert!(state == "waiting" && !why.contains(&format!("{TOPIC}/0")), "{state}: {why}");
    let before = running.status().await["lag"][TOPIC].clone();
    assert_eq!(before, json!({"0": 0, "1": 0}), "what was known of it is still told");

    case.broker.set_second_down(false).unwrap();
    put(&mut case, &first, 3, "a capstan");
    running.reflects(&case.connector).await;
    until("live", async || running.state().await.0 == "live").await;
    nothing_was_set_aside(&running).await;
    running.stop().await;
}

/// Lag is 0 when a connector is away, and all looks well; that it has fallen silent is what can be known.
#[tokio::test(flavor = "multi_thread")]
async fn a_connector_that_falls_silent_is_named_until_it_writes_again() {
    let mut case = Items::new("debezium").await;
    let first = writer(&case, "first");
    put(&mut case, &first, 1, "an anchor");
    case.connector.flush();
    let mut config = case.config();
    let prefix = TOPIC.split('.').next().unwrap();
    config.kafka.heartbeat_topics = vec![format!("__debezium-heartbeat.{prefix}")];
    config.kafka.heartbeat_max_silence_s = 2;
    let running = Running::start_with_stand_in(config).await;
    running.reflects(&case.connector).await;
    until("live", async || running.state().await.0 == "live").await;
    waits_for(&running, "__debezium-heartbeat").await;
    assert_eq!(running.get("/readyz").await.0, 200, "what the index holds is worth having");
    put(&mut case, &first, 2, "a buoy");
    running.reflects(&case.connector).await;
    until("live", async || running.state().await.0 == "live").await;
    running.stop().await;
}

/// A service that is stopped while it waits ends all the same, and the next one finds everything.
#[tokio::test(flavor = "multi_thread")]
async fn waiting_does_not_hold_up_the_end() {
    let mut case = Items::new("debezium").await;
    let first = writer(&case, "first");
    put(&mut case, &first, 1, "an anchor");
    let running = case.start().await;
    running.reflects(&case.connector).await;
    case.registry.set_down(true);
    let second = writer(&case, "second");
    put(&mut case, &second, 2, "a buoy");
    case.connector.flush();
    waits_for(&running, &case.registry.url()).await;
    running.stop().await;

    let running = case.start().await;
    waits_for(&running, &case.registry.url()).await;
    assert_eq!(running.items().await, items([(1, "an anchor", None, 1)]), "served while it waits");
    case.registry.set_down(false);
    running.reflects(&case.connector).await;
    assert_eq!(running.items().await, items([(1, "an anchor", None, 1), (2, "a buoy", None, 2)]));
    nothing_was_set_aside(&running).await;
    running.stop().await;
}

/// The schema of items with name and note in each other's place: the same bytes mean something else, and every one of them fits.
fn swapped() -> Value {
    let mut fields = item_fields();
    for field in fields.as_array_mut().unwrap() {
        match field["name"].as_str().unwrap() {
            "name" => *field = json!({"name": "note", "type": "string"}),
            "note" => *field = json!({"name": "name", "type": ["null", "string"], "default": null}),
            _ => {}
        }
    }
    envelope(&fields)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_means_something_else_is_refused_by_name() {
    let mut case = Items::new("debezium").await;
    let first = Writer::new(&case.registry, "v", &envelope(&item_fields()));
    put(&mut case, &first, 1, "an anchor");
    let running = case.start().await;
    running.reflects(&case.connector).await;
    let before = running.items().await;
    running.stop().await;

    // The registry was made anew, and gave the first id to another schema.
    case.registry.forget();
    case.registry.register_as(1, "k", &key_schema().to_string());
    case.registry.register_as(first.id, "v", &swapped().to_string());
    put(&mut case, &first, 2, "a buoy");
    case.connector.flush();
    for _ in 0..2 {
        let running = case.start().await;
        until("the refusal", async || running.state().await.0 == "failed").await;
        let why = running.state().await.1;
        for part in [&case.registry.url(), &format!("under the id {}", first.id), "made anew"] {
            assert!(why.contains(part), "{part} is not in {why}");
        }
        assert_eq!(running.items().await, before, "nothing was read by it");
        nothing_was_set_aside(&running).await;
        running.stop().await;
    }

    // Restored, it is believed again.
    case.registry.register_as(first.id, "v", &envelope(&item_fields()).to_string());
    let running = case.start().await;
    running.reflects(&case.connector).await;
    assert_eq!(running.items().await, items([(1, "an anchor", None, 1), (2, "a buoy", None, 2)]));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_are_asked_after_while_they_are_used() {
    let mut case = Items::new("debezium").await;
    let first = Writer::new(&case.registry, "v", &envelope(&item_fields()));
    put(&mut case, &first, 1, "an anchor");
    let running = case.start().await;
    running.reflects(&case.connector).await;

    // It has forgotten: nothing is read until it is restored.
    case.registry.forget();
    let mut id = 1;
    until("the question", async || {
        id += 1;
        put(&mut case, &first, id, "a buoy");
        case.connector.flush();
        let (state, why) = running.state().await;
        state == "waiting" && why.contains("no longer has the schema")
    })
    .await;
    let text = envelope(&item_fields()).to_string();
    case.registry.register_as(1, "k", &key_schema().to_string());
    case.registry.register_as(first.id, "v", &text);
    running.reflects(&case.connector).await;
    assert_eq!(running.items().await.len() as i64, id);

    // And now it gives the id to another one.
    case.registry.register_as(first.id, "v", &swapped().to_string());
    until("the refusal", async || {
        id += 1;
        put(&mut case, &first, id, "a cleat");
        case.connector.flush();
        running.state().await.0 == "failed"
    })
    .await;
    assert!(running.state().await.1.contains("made anew"));
    nothing_was_set_aside(&running).await;
    running.stop().await;
}
