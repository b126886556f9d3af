//! Rows without an envelope, as `ExtractNewRecordState` leaves them, from the socket to the index.

use serde_json::{Value, json};

use super::connector::{TOPIC, Writer};
use super::running::{Items, item_fields, items, row};

/// The row's schema with what the transformation adds.
fn flat() -> Value {
    let mut fields = item_fields();
    let added = [
        json!({"name": "__deleted", "type": ["null", "string"], "default": null}),
        json!({"name": "__op", "type": ["null", "string"], "default": null}),
        json!({"name": "__source_ts_ms", "type": ["null", "long"], "default": null}),
    ];
    fields.as_array_mut().unwrap().extend(added);
    json!({"type": "record", "name": "Value", "namespace": TOPIC, "fields": fields})
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_without_an_envelope_are_written_and_deleted() {
    let mut case = Items::new("flattened").await;
    let writer = Writer::new(&case.registry, &format!("{TOPIC}-value"), &flat());
    let with = |row: Value, op: Value, deleted: Value| {
        let mut row = row;
        row["__op"] = op;
        row["__deleted"] = deleted;
        writer.message(row)
    };
    let put = |op: &str, row: Value| with(row, json!(op), json!("false"));
    let running = case.start().await;

    case.connector.send(1, Some(put("r", row(1, "wool scarf", Some("new"), 1))));
    case.connector.send(2, Some(put("c", row(2, "silk scarf", None, 2))));
    case.connector.send(3, Some(put("c", row(3, "felt hat", None, 3))));
    // Without `add.fields` there is no operation, and without a rewritten delete no mark.
    case.connector.send(4, Some(with(row(4, "straw hat", None, 4), Value::Null, Value::Null)));
    running.reflects(&case.connector).await;
    let all = items([
        (1, "wool scarf", Some("new"), 1),
        (2, "silk scarf", None, 2),
        (3, "felt hat", None, 3),
        (4, "straw hat", None, 4),
    ]);
    assert_eq!(running.items().await, all);

    // An update that leaves a long value out; a delete rewritten to a row (with made-up values) and its tombstone; a tombstone alone.
    case.connector.send(1, Some(put("u", row(1, "wool scarf, long", Some("__debezium_unavailable_value"), 10))));
    case.connector.send(2, Some(with(row(2, "", None, 0), json!("d"), json!("true"))));
    case.connector.send(2, None);
    case.connector.send(3, None);
    // A delete that only the mark tells, and one of a key that never was.
    case.connector.send(4, Some(with(row(4, "straw hat", None, 4), Value::Null, json!("true"))));
    case.connector.send(9, Some(with(row(9, "", None, 0), json!("d"), json!("true"))));
    running.reflects(&case.connector).await;
    assert_eq!(running.items().await, items([(1, "wool scarf, long", Some("new"), 10)]));
    assert_eq!(running.status().await["quarantine"]["total"], 0);

    case.connector.resend(case.connector.sent());
    running.reflects(&case.connector).await;
    assert_eq!(running.items().await, items([(1, "wool scarf, long", Some("new"), 10)]), "everything once more");

    case.connector.send(8, Some(with(row(8, "fur hat", None, 1), json!("c"), json!("maybe"))));
    running.reflects(&case.connector).await;
    assert_eq!(running.items().await, items([(1, "wool scarf, long", Some("new"), 10)]), "is it there, or is it not?");
    assert_eq!(running.status().await["quarantine"]["total"], 1);
    running.stop().await;
}
