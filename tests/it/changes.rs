//! Every operation and every hazard of a change stream, as real bytes on a real socket, and the index read back after each.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::connector::{TOPIC, Writer, envelope, event, origin};
use super::folder::{Folder, Of, item_contract};
use super::recording::recording;
use super::running::{Item, Items, Running, item_fields, items, row, until};

/// Figures that tell whether a change was one.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Work {
    changes: u64,
    upserted: u64,
    deleted: u64,
    asked: u64,
}

impl Work {
    fn of(running: &Running) -> Work {
        let m = running.service().status().metrics();
        Work {
            changes: m.view_changes.get(),
            upserted: m.index_upserted_rows.get(),
            deleted: m.index_deleted_rows.get(),
            asked: m.embeds_asked.get(),
        }
    }
}

struct Case {
    items: Items,
    running: Running,
    writer: Writer,
}

impl Case {
    async fn new() -> Case {
        let items = Items::new("debezium").await;
        let writer = Writer::new(&items.registry, &format!("{TOPIC}-value"), &envelope(&item_fields()));
        let running = items.start().await;
        Case { items, running, writer }
    }

    fn put(&mut self, op: &str, id: i64, row: Value) {
        let value = self.writer.message(event(op, Value::Null, row));
        self.items.connector.send(id, Some(value));
    }

    /// Debezium's delete: only the key in `before` is true.
    fn delete(&mut self, id: i64) {
        let before = row(id, "", None, 0);
        self.items.connector.send(id, Some(self.writer.message(event("d", before, Value::Null))));
    }

    async fn expect(&self, what: &str, expected: BTreeMap<i64, Item>) {
        self.running.reflects(&self.items.connector).await;
        assert_eq!(self.running.items().await, expected, "{what}");
    }

    /// The same rows as before, and no work done for them.
    async fn expect_nothing(&self, what: &str, before: Work, expected: BTreeMap<i64, Item>) {
        self.expect(what, expected).await;
        assert_eq!(Work::of(&self.running), before, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_and_every_hazard_ends_in_the_index() {
    let mut case = Case::new().await;
    // Nothing to read is nothing to wait for.
    until("live", async || case.running.state().await.0 == "live").await;
    assert_eq!(case.running.get("/readyz").await.0, 200);

    // A snapshot, an insert.
    for (id, name) in [(1, "red kettle"), (2, "blue kettle"), (3, "green lamp")] {
        case.put("r", id, row(id, name, Some("new"), id));
    }
    case.put("c", 4, row(4, "oak table", None, 4));
    let four = items([
        (1, "red kettle", Some("new"), 1),
        (2, "blue kettle", Some("new"), 2),
        (3, "green lamp", Some("new"), 3),
        (4, "oak table", None, 4),
    ]);
    case.expect("snapshot and insert", four.clone()).await;

    // The same bytes again, as they come after a crash of the connector; heartbeats and transaction markers; deletes of what never was.
    let before = Work::of(&case.running);
    case.items.connector.resend(4);
    case.expect_nothing("duplicates", before, four.clone()).await;
    let heartbeat = recording().events("__debezium-heartbeat.shop")[0].value.clone().unwrap();
    let id = u32::from_be_bytes(heartbeat[1..5].try_into().unwrap());
    let schema = recording().schema(id).to_string();
    case.items.registry.register_as(id + 1000, "heartbeat", &schema);
    let heartbeat = [&[0], &(id + 1000).to_be_bytes()[..], &heartbeat[5..]].concat();
    case.items.connector.raw(0, None, Some(heartbeat));
    case.expect_nothing("a heartbeat", before, four.clone()).await;
    assert_eq!(case.running.status().await["decode"]["events"]["skipped"], 1);
    case.delete(77);
    case.items.connector.send(77, None);
    case.items.connector.send(78, None);
    case.expect_nothing("deletes of unknown keys", before, four).await;

    // Updates: without a `before`, and with one that is made up. What was not sent stays as it was, and what was never known is null.
    case.put("u", 1, row(1, "red kettle with a whistle", None, 1));
    let made_up = row(2, "", None, 0);
    let value = case.writer.message(event("u", made_up, row(2, "blue kettle", Some("used"), 20)));
    case.items.connector.send(2, Some(value));
    let unsent = Some("__debezium_unavailable_value");
    case.put("u", 3, row(3, "green lamp, dimmed", unsent, 30));
    case.put("u", 50, row(50, "known in part", unsent, 50));
    case.expect(
        "updates",
        items([
            (1, "red kettle with a whistle", None, 1),
            (2, "blue kettle", Some("used"), 20),
            (3, "green lamp, dimmed", Some("new"), 30),
            (4, "oak table", None, 4),
            (50, "known in part", None, 50),
        ]),
    )
    .await;

    // Only the text asks for a vector.
    let before = Work::of(&case.running);
    case.put("u", 4, row(4, "oak table", None, 400));
    case.running.reflects(&case.items.connector).await;
    let after = Work::of(&case.running);
    assert_eq!((after.asked, after.upserted), (before.asked, before.upserted + 1));

    // A delete with its tombstone, a delete alone, a tombstone alone.
    case.delete(1);
    case.items.connector.send(1, None);
    case.delete(2);
    case.items.connector.send(4, None);
    let two = items([(3, "green lamp, dimmed", Some("new"), 30), (50, "known in part", None, 50)]);
    case.expect("deletes", two).await;

    // A primary key changes: as Debezium writes it, and as an update whose `before` has the other key.
    case.delete(3);
    case.items.connector.send(3, None);
    case.put("c", 30, row(30, "green lamp, renumbered", Some("new"), 30));
    let value = case.writer.message(event("u", row(50, "", None, 0), row(52, "known in part", None, 52)));
    case.items.connector.send(52, Some(value));
    let moved = items([(30, "green lamp, renumbered", Some("new"), 30), (52, "known in part", None, 52)]);
    case.expect("primary keys", moved).await;

    // Deleted and born again before anyone looked.
    case.delete(30);
    case.items.connector.send(30, None);
    case.put("c", 30, row(30, "born again", None, 31));
    let born = items([(30, "born again", None, 31), (52, "known in part", None, 52)]);
    case.expect("born again", born.clone()).await;

    let told = case.running.status().await;
    assert_eq!(told["quarantine"], json!({"open": 0, "total": 0}));
    let events = &told["decode"]["events"];
    for (op, count) in [("snapshot", 6), ("create", 4), ("update", 6), ("tombstone", 6), ("delete", 5), ("skipped", 1)]
    {
        assert_eq!(events[op], count, "{op} in {events}");
    }

    restart_and_replay(case, born).await;
}

/// A restart embeds nothing anew, and a connector that begins from the start brings the table to where it was.
async fn restart_and_replay(mut case: Case, last: BTreeMap<i64, Item>) {
    let epoch = case.running.status().await["epoch"].as_u64();
    case.running.stop().await;
    case.running = case.items.start().await;
    assert!(case.running.status().await["epoch"].as_u64() >= epoch, "answers never go back");
    case.running.reflects(&case.items.connector).await;
    let m = case.running.service().status().metrics().clone();
    until("live", async || case.running.state().await.0 == "live").await;
    assert_eq!(case.running.items().await, last);
    assert_eq!((m.embeds_asked.get(), m.embeds_computed.get(), m.index_upserted_rows.get()), (0, 0, 0));

    case.items.connector.resend(case.items.connector.sent());
    case.expect("everything once more", last).await;
    assert_eq!(m.embeds_computed.get(), 0, "every text was embedded before");
}

/// Keys of one partition alone: between partitions a truncate has no order, neither Debezium's nor ours.
#[tokio::test(flavor = "multi_thread")]
async fn a_truncate_takes_what_was_before_it() {
    let mut case = Case::new().await;
    for id in [2, 4] {
        case.put("r", id, row(id, "paper boat", None, 1));
    }
    case.expect("two boats", items([(2, "paper boat", None, 1), (4, "paper boat", None, 1)])).await;
    let truncate = |case: &Case| {
        let value = json!({"before": null, "after": null, "source": origin("false"), "op": "t", "ts_ms": null});
        case.writer.message(value)
    };
    let value = truncate(&case);
    case.items.connector.raw(0, None, Some(value));
    case.expect("none", BTreeMap::new()).await;
    case.put("c", 6, row(6, "drowned", None, 1));
    let value = truncate(&case);
    case.items.connector.raw(0, None, Some(value));
    case.put("c", 8, row(8, "dry land", None, 2));
    let last = items([(8, "dry land", None, 2)]);
    case.expect("after the flood", last.clone()).await;
    assert_eq!(case.running.status().await["decode"]["events"]["truncate"], 2);
    case.items.connector.resend(case.items.connector.sent());
    case.expect("everything once more", last).await;
}

/// Asks while changes come: an answer never says an older position or epoch than the one before it.
#[tokio::test(flavor = "multi_thread")]
async fn answers_never_go_back_while_changes_come() {
    let mut case = Case::new().await;
    case.put("c", 1, row(1, "a counter", None, 0));
    case.running.reflects(&case.items.connector).await;
    let (mut seen, mut epoch, mut position, mut sent) = (0, 0, 0, 0);
    while seen < 40 {
        if sent < 40 {
            sent += 1;
            case.put("u", 1, row(1, "a counter", None, sent));
        }
        let (code, item) = case.running.get("/v1/items/1").await;
        let at = &item["position"][TOPIC]["1"];
        let now = (item["row"]["stock"].as_i64().unwrap(), item["epoch"].as_u64().unwrap(), at.as_i64().unwrap());
        assert_eq!(code, 200, "{item}");
        assert!(now.0 >= seen && now.1 >= epoch && now.2 >= position, "{item} after {seen}, {epoch}, {position}");
        // The position says which change the row reflects: offset 0 made it, offset n set its stock to n.
        assert_eq!(now.2, now.0 + 1, "{item}");
        (seen, epoch, position) = now;
    }
}

#[test]
fn a_connector_sends_what_debezium_would() {
    // The connector's own schemas are held against the recorded ones: the same names of the envelope's parts.
    let names = |schema: &Value| -> Vec<String> {
        schema["fields"].as_array().unwrap().iter().map(|f| f["name"].as_str().unwrap().into()).collect()
    };
    let event = recording().events("shop.production.category")[0].value.clone().unwrap();
    let recorded = recording().schema(u32::from_be_bytes(event[1..5].try_into().unwrap()));
    let recorded = names(recorded);
    for name in names(&envelope(&item_fields())) {
        assert!(recorded.contains(&name), "{name} is not in {recorded:?}");
    }
}

/// Nothing could find such a row again, to change it or to remove it.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_without_the_key_of_the_index_is_held_back_and_told() {
    let mut case = Items::new("debezium").await;
    let source =
        Of { topic: TOPIC.into(), format: "avro", envelope: "debezium", key: vec!["id"], contract: item_contract() };
    let sql = "select case when stock <> 0 then stock end as id, name, note, stock, name as text from {{ source('shop', 'item') }}";
    case.folder = Folder::new(&source, sql, "id", "text");
    let writer = Writer::new(&case.registry, &format!("{TOPIC}-value"), &envelope(&item_fields()));
    let put = |case: &mut Items, id: i64, stock: i64| {
        let value = writer.message(event("c", Value::Null, row(id, "an anchor", None, stock)));
        case.connector.send(id, Some(value));
    };
    let running = case.start().await;
    for (id, stock, keys, failing) in
        [(1, 7, vec![7], 0), (2, 0, vec![7], 1), (2, 9, vec![7, 9], 0), (1, 0, vec![9], 1)]
    {
        put(&mut case, id, stock);
        running.reflects(&case.connector).await;
        assert_eq!(running.rows().await.into_keys().collect::<Vec<_>>(), keys);
        until("the count of them", async || {
            let told = running.status().await["tests"].clone();
            assert_eq!(told[0]["name"], "index_key_view_id");
            told[0]["failing"] == json!(failing)
        })
        .await;
    }
    running.stop().await;
    let running = case.start().await;
    running.reflects(&case.connector).await;
    assert_eq!(running.rows().await.into_keys().collect::<Vec<_>>(), [9]);
    running.stop().await;
}
