//! Writer schemas that change while the service runs: what keeps the contract is read, what breaks it is said and set aside.

use serde_json::{Value, json};

use super::connector::{TOPIC, Writer, envelope, event};
use super::running::{Items, Running, items, row};

fn field(name: &str, of: Value) -> Value {
    json!({"name": name, "type": of})
}

fn optional(name: &str, of: &str) -> Value {
    json!({"name": name, "type": ["null", of], "default": null})
}

async fn start() -> (Items, Running) {
    let items = Items::new("debezium").await;
    let running = items.start().await;
    (items, running)
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_come_go_and_change_places() {
    let started = std::time::Instant::now();
    let (mut case, running) = start().await;
    let (id, name, stock) = (field("id", json!("long")), field("name", json!("string")), field("stock", json!("long")));
    let note = optional("note", "string");
    let schemas = [
        json!([id, name, note, stock]),
        // Gains a column that the contract does not have, in the midst of the others.
        json!([id, optional("colour", "string"), name, note, stock]),
        // Loses one that the contract has a default for.
        json!([id, name, stock]),
        // In another order, and narrower: what an int holds, a long holds.
        json!([field("stock", json!("int")), note, name, field("id", json!("int"))]),
    ];
    let writers: Vec<Writer> = schemas
        .iter()
        .map(|fields| Writer::new(&case.registry, &format!("{TOPIC}-value"), &envelope(fields)))
        .collect();
    // The schemas alternate, as they do when several tasks of a connector are restarted one by one.
    let rows = [
        row(1, "first", Some("one"), 1),
        json!({"id": 2, "colour": "red", "name": "second", "note": "two", "stock": 2}),
        json!({"id": 3, "name": "third", "stock": 3}),
        row(4, "fourth", Some("four"), 4),
    ];
    for id in [1, 4, 2, 3, 4, 1, 3, 2] {
        let n = id as usize - 1;
        case.connector.send(id, Some(writers[n].message(event("u", Value::Null, rows[n].clone()))));
    }
    running.reflects(&case.connector).await;
    let all = items([
        (1, "first", Some("one"), 1),
        (2, "second", Some("two"), 2),
        (3, "third", None, 3),
        (4, "fourth", Some("four"), 4),
    ]);
    assert_eq!(running.items().await, all);

    // The same key under a schema without the column: what is not there is the contract's default, not what was there before.
    case.connector
        .send(1, Some(writers[2].message(event("u", Value::Null, json!({"id": 1, "name": "first", "stock": 1})))));
    running.reflects(&case.connector).await;
    assert_eq!(running.items().await[&1], ("first".into(), None, 1));
    assert_eq!(running.status().await["quarantine"]["total"], 0);
    let seconds = started.elapsed().as_secs();
    for writer in &writers {
        let asked = case.registry.requests(writer.id);
        assert!(asked <= 1 + seconds, "the registry is asked {asked} times in {seconds} s for an id");
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_the_contract_is_said_and_set_aside() {
    let (mut case, running) = start().await;
    let (id, name, stock) = (field("id", json!("long")), field("name", json!("string")), field("stock", json!("long")));
    let good = Writer::new(&case.registry, "good", &envelope(&json!([id, name, stock])));
    let send = |case: &mut Items, id: i64, writer: &Writer, row: Value| {
        case.connector.send(id, Some(writer.message(event("c", Value::Null, row))));
    };
    // (the writer's fields, a row of them, what the reason has to name)
    let breaking = [
        (json!([id, stock]), json!({"id": 1, "stock": 1}), "lacks the column name"),
        (
            json!([id, field("title", json!("string")), stock]),
            json!({"id": 1, "title": "t", "stock": 1}),
            "lacks the column name",
        ),
        (
            json!([id, name, field("stock", json!("string"))]),
            json!({"id": 1, "name": "n", "stock": "1"}),
            "column stock as Utf8",
        ),
        (
            json!([id, name, field("stock", json!("double"))]),
            json!({"id": 1, "name": "n", "stock": 1.5}),
            "column stock as Float64",
        ),
        (
            json!([id, optional("name", "string"), stock]),
            json!({"id": 1, "name": "n", "stock": 1}),
            "null in column name",
        ),
    ];
    let mut expected = Vec::new();
    for (n, (fields, row, reason)) in breaking.iter().enumerate() {
        let id = n as i64;
        send(&mut case, id, &good, json!({"id": id, "name": "before", "stock": 0}));
        let writer = Writer::new(&case.registry, &format!("breaking-{n}"), &envelope(fields));
        send(&mut case, id, &writer, row.clone());
        expected.push((writer.id, *reason));
        send(&mut case, id + 100, &good, json!({"id": id + 100, "name": "after", "stock": 0}));
    }
    running.reflects(&case.connector).await;
    let names: Vec<(i64, String)> = running.items().await.into_iter().map(|(id, (name, ..))| (id, name)).collect();
    let all: Vec<(i64, String)> =
        (0..5).map(|id| (id, "before".into())).chain((100..105).map(|id| (id, "after".into()))).collect();
    assert_eq!(names, all, "the events around them arrived, and none of theirs did");

    let told = running.status().await;
    assert_eq!(told["decode"]["rejects"]["contract"], 5);
    assert_eq!(told["quarantine"], json!({"open": 5, "total": 5}));
    let held = case.folder.quarantine().await;
    for (schema, reason) in expected {
        let entry =
            held.iter().find(|e| e.schema_id == Some(schema)).unwrap_or_else(|| panic!("nothing of schema {schema}"));
        assert_eq!((&*entry.rule, &*entry.at.partition.topic), ("contract", TOPIC));
        let said = &entry.reason;
        assert!(said.contains(reason) && said.contains(&format!("schema {schema}")), "{said}");
    }
    running.stop().await;
}
