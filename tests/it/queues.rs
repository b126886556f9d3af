//! The queues between the stages: that they are seen to fill, and to be empty when nothing waits.

use serde_json::{Value, json};

use super::connector::{TOPIC, Writer, envelope, event};
use super::running::{Items, Running, item_fields, until};
use freshet::time::{Offset, Partition};

/// Bytes that a row brings along in a column that the contract does not have: on the wire it weighs, in the index it does not.
const WEIGHT: usize = 20_000;
/// The broker keeps 5 MiB of a partition.
const AHEAD_MAX_MESSAGES: i64 = 100;

fn held(running: &Running) -> [i64; 3] {
    let m = running.service().status().metrics();
    [m.source_queue.held(), m.decoded.held(), m.pending.held()]
}

#[tokio::test(flavor = "multi_thread")]
async fn queues_are_seen_to_fill_and_to_empty() {
    let mut items = Items::new("debezium").await;
    let mut fields = item_fields();
    fields.as_array_mut().unwrap().push(json!({"name": "weight", "type": "string"}));
    let writer = Writer::new(&items.registry, &format!("{TOPIC}-value"), &envelope(&fields));
    let mut config = items.config();
    (config.engine.decoded_max_batches, config.engine.epoch_max_events) = (1, 1);
    let running = Running::start_with_stand_in(config).await;
    let read = running.service().read_position();
    let weight = "x".repeat(WEIGHT);
    let (mut seen, mut sent) = ([false; 3], 0);
    until("each queue holding something", async || {
        let done = read().get(&Partition::new(TOPIC, 0)).unwrap_or(Offset(0)).0;
        while sent - done < AHEAD_MAX_MESSAGES {
            // Now and then another text; the rest changes nothing, so that little has to be embedded.
            let row = json!({"id": 2, "name": format!("{}", sent / 50), "note": null, "stock": 1, "weight": weight});
            items.connector.send(2, Some(writer.message(event("u", Value::Null, row))));
            sent += 1;
        }
        for (seen, held) in seen.iter_mut().zip(held(&running)) {
            *seen |= held > 0;
        }
        seen == [true; 3]
    })
    .await;
    running.reflects(&items.connector).await;
    until("empty queues", async || held(&running) == [0; 3]).await;
    running.stop().await;
}
