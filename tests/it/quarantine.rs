//! The quarantine as its users have it: `freshet quarantine`, and messages that heal when the reason why they were rejected is gone.

use std::process::Command;

use serde_json::{Value, json};

use super::connector::{TOPIC, Writer, envelope, event};
use super::folder::{Folder, ITEMS, Of, item_contract};
use super::running::{Items, Running, item_fields, items, row, until};

/// What `freshet quarantine` says: its exit code, stdout, stderr.
fn ask(case: &Items, command: &str, arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_freshet"))
        .args(["quarantine", command])
        .arg(case.folder.path())
        .args(arguments)
        .env("BROKERS", case.broker.bootstrap_servers())
        .env("REGISTRY", case.registry.url())
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn last_line(text: &str) -> &str {
    text.lines().last().unwrap_or_default()
}

/// The fields, with names that may be null.
fn nameless() -> Value {
    let mut fields = item_fields();
    fields[1] = json!({"name": "name", "type": ["null", "string"], "default": null});
    fields
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_listed_shown_tried_and_healed_by_a_start() {
    let mut case = Items::new("debezium").await;
    let writer = Writer::new(&case.registry, &format!("{TOPIC}-value"), &envelope(&item_fields()));
    assert_eq!(ask(&case, "list", &[]), (0, "0 of 0 waiting\n".into(), String::new()), "before anything has run");
    assert!(!case.folder.path().join("data").exists(), "looking makes nothing");

    // Of a schema that another registry has given an id, and this one does not know yet.
    let forgotten = |value: Vec<u8>| [&[0], &700_u32.to_be_bytes()[..], &value[5..]].concat();
    let put = |id: i64, name: &str| writer.message(event("c", Value::Null, row(id, name, None, 0)));
    let running = case.start().await;
    case.connector.send(2, Some(forgotten(put(2, "old"))));
    case.connector.send(2, Some(put(2, "new")));
    case.connector.send(4, Some(forgotten(put(4, "only"))));
    let garbage = case.connector.raw(1, None, Some(b"not \x1b[31m Avro".to_vec()));
    running.reflects(&case.connector).await;
    assert_eq!(running.items().await, items([(2, "new", None, 0)]));

    // The service runs, and may be asked beside it.
    let (code, listed, _) = ask(&case, "list", &[]);
    assert_eq!((code, listed.lines().count(), last_line(&listed)), (0, 5, "3 of 3 waiting"), "{listed}");
    let line = listed.lines().find(|line| line.contains(&format!(" {TOPIC}:1:{garbage} "))).unwrap();
    assert!(line.contains(" wire ") && line.contains("the first byte is 0x6e"), "{line}");
    let (_, listed, _) = ask(&case, "list", &["--rule", "unknown_schema", "--limit", "1", "--json"]);
    let listed: Vec<Value> = listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told = json!([listed.len(), listed[0]["offset"], listed[0]["schema_id"], listed[0]["healed_at"]]);
    assert_eq!(told, json!([1, 2, 700, null]), "the newest");
    assert_eq!(ask(&case, "list", &["--topic", "another"]).1, "0 of 0 waiting\n");
    let (code, shown, _) = ask(&case, "show", &[&format!("{TOPIC}:1:{garbage}")]);
    let parts =
        ["key             null", "14 bytes", "00000000  6e 6f 74 20 1b", "in UTF-8: not \\u{1b}[31m Avro", "not yet"];
    for part in parts {
        assert!(shown.contains(part), "{part} is not in {shown}");
    }
    assert_eq!(code, 0);

    let (code, tried, _) = ask(&case, "retry", &[]);
    assert_eq!((code, tried.lines().count(), last_line(&tried)), (1, 4, "0 of 3 would be taken"), "{tried}");
    case.registry.register_as(700, "restored", &envelope(&item_fields()).to_string());
    let (of_two, of_four) = (format!("{TOPIC}:0:0"), format!("{TOPIC}:0:2"));
    let (code, tried, _) = ask(&case, "retry", &[&of_two, &of_four]);
    assert_eq!((code, tried.matches("would be taken").count()), (0, 3), "{tried}");
    let (code, tried, _) = ask(&case, "retry", &[]);
    assert!(code == 1 && tried.contains("2 of 3 would be taken"), "{tried}");
    assert_eq!(running.status().await["quarantine"], json!({"open": 3, "total": 3}), "asking has changed nothing");
    running.stop().await;

    let running = case.start().await;
    until("live", async || running.state().await.0 == "live").await;
    assert_eq!(running.items().await, items([(2, "new", None, 0), (4, "only", None, 0)]), "the newer one stays");
    until("healed", async || running.status().await["quarantine"] == json!({"open": 1, "total": 3})).await;
    running.stop().await;
    assert_eq!(last_line(&ask(&case, "list", &[]).1), "1 of 1 waiting");
    let (_, listed, _) = ask(&case, "list", &["--healed", "--json"]);
    let healed: Vec<Value> = listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(healed.iter().map(|e| e["offset"].as_i64().unwrap()).collect::<Vec<_>>(), [0, 2]);
    assert!(healed.iter().all(|e| e["healed_at"].is_string()), "{listed}");

    // What is not there, what is not understood, and what does not answer.
    let absent = format!("{TOPIC}:1:99");
    for command in ["show", "retry"] {
        let (code, said, error) = ask(&case, command, &[&absent]);
        assert!(code == 1 && said.is_empty() && error.contains(&absent), "{command}: {code} {error}");
        assert_eq!(ask(&case, command, &["nowhere:x"]).0, 2, "{command}");
    }
    assert_eq!(ask(&case, "list", &["--rule", "mood"]).0, 2);
    case.connector.raw(0, None, Some([&[0], &701_u32.to_be_bytes()[..], &[1]].concat()));
    let running = case.start().await;
    running.reflects(&case.connector).await;
    running.stop().await;
    case.registry.set_down(true);
    let (code, _, error) = ask(&case, "retry", &[]);
    assert!(code == 3 && error.contains("does not answer"), "{code} {error}");
    let log = case.folder.path().join("data/raw/items.quarantine/_delta_log");
    for file in std::fs::read_dir(&log).unwrap() {
        std::fs::write(file.unwrap().path(), "no log").unwrap();
    }
    for (command, arguments) in [("list", &[][..]), ("show", &[absent.as_str()][..]), ("retry", &[][..])] {
        let (code, _, error) = ask(&case, command, arguments);
        assert!(code == 3 && error.contains("items.quarantine"), "{command}: {code} {error}");
    }
}

/// A contract that no longer allows what has landed, and one that does again.
#[tokio::test(flavor = "multi_thread")]
async fn what_had_landed_is_rejected_and_heals_with_the_contract() {
    let mut case = Items::new("debezium").await;
    let wide = nameless();
    let writer = Writer::new(&case.registry, &format!("{TOPIC}-value"), &envelope(&wide));
    let contract = |fields: &Value| {
        let text = json!({"type": "record", "name": "Value", "fields": fields}).to_string();
        std::fs::write(case.folder.path().join("item.avsc"), text).unwrap();
    };
    contract(&wide);
    let running = case.start().await;
    let mut send = |value: Value| {
        let message = writer.message(event("u", Value::Null, value.clone()));
        case.connector.send(value["id"].as_i64().unwrap(), Some(message));
    };
    send(row(1, "one", None, 1));
    send(json!({"id": 2, "name": null, "note": null, "stock": 1}));
    running.reflects(&case.connector).await;
    assert_eq!(running.rows().await.len(), 2);
    assert_eq!(running.status().await["quarantine"], json!({"open": 0, "total": 0}));
    running.stop().await;

    contract(&item_fields());
    let running = case.start().await;
    until("live", async || running.state().await.0 == "live").await;
    // The writer may write null, and the contract no longer lets it: none of its rows keep the contract.
    assert_eq!(running.items().await, items([]));
    assert_eq!(running.status().await["quarantine"], json!({"open": 2, "total": 2}));
    running.stop().await;
    let held = case.folder.quarantine().await;
    assert_eq!((held.len(), held[0].value_in_raw, &held[0].value), (2, true, &None), "raw had taken it apart");
    let at = held[0].at.to_string();
    let (code, tried, _) = ask(&case, "retry", &[]);
    assert!(code == 1 && tried.contains("cannot be tried"), "{tried}");
    assert!(ask(&case, "show", &[&at]).1.contains("not kept: the raw table has it"));

    contract(&wide);
    let running = case.start().await;
    until("live", async || running.state().await.0 == "live").await;
    assert_eq!(running.rows().await.len(), 2, "it is taken again");
    until("healed", async || running.status().await["quarantine"] == json!({"open": 0, "total": 2})).await;
    running.stop().await;
}

/// Without raw the quarantine lies beside the index, and messages are read again from Kafka.
#[tokio::test(flavor = "multi_thread")]
async fn without_raw_it_lies_beside_the_index() {
    let mut case = Items::new("debezium").await;
    let file = case.folder.path().join("dataflow.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let without: String =
        text.lines().filter(|l| !l.contains("[raw]") && !l.contains("data/raw")).map(|l| format!("{l}\n")).collect();
    std::fs::write(&file, without).unwrap();
    let writer = Writer::new(&case.registry, &format!("{TOPIC}-value"), &envelope(&item_fields()));
    let good = writer.message(event("c", Value::Null, row(2, "two", None, 2)));
    let running = case.start().await;
    case.connector.send(2, Some([&[0], &700_u32.to_be_bytes()[..], &good[5..]].concat()));
    case.connector.send(1, Some(vec![9]));
    running.reflects(&case.connector).await;
    assert_eq!(running.status().await["quarantine"], json!({"open": 2, "total": 2}));
    running.stop().await;
    assert!(case.folder.path().join("data/index/items.quarantine/_delta_log").is_dir());
    assert!(!case.folder.path().join("data/raw").exists());

    case.registry.register_as(700, "restored", &envelope(&item_fields()).to_string());
    assert_eq!(ask(&case, "retry", &[&format!("{TOPIC}:0:0")]).0, 0);
    let running = case.start().await;
    until("live", async || running.state().await.0 == "live").await;
    assert_eq!(running.items().await, items([(2, "two", None, 2)]));
    until("healed", async || running.status().await["quarantine"] == json!({"open": 1, "total": 2})).await;
    running.stop().await;
}

/// Two services over the same tables: the one that commits second ends, and says by whom it was overtaken.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_service_is_noticed() {
    let mut case = Items::new("debezium").await;
    let first = case.start().await;
    until("live", async || first.state().await.0 == "live").await;
    let other = Folder::new(
        &Of { topic: TOPIC.into(), format: "avro", envelope: "debezium", key: vec!["id"], contract: item_contract() },
        ITEMS,
        "id",
        "text",
    );
    let mut config = other.config(&case.broker.bootstrap_servers(), &case.registry.url());
    // An index of its own, the same raw tables.
    config.raw = case.config().raw;
    let second = Running::start_with_stand_in(config).await;
    until("live", async || second.state().await.0 == "live").await;
    case.connector.raw(0, None, Some(vec![7]));
    case.connector.flush();
    until("one has failed", async || first.state().await.0 == "failed" || second.state().await.0 == "failed").await;
    let failed = if first.state().await.0 == "failed" { &first } else { &second };
    let why = failed.state().await.1;
    assert!(why.contains("another writer has committed version 1") && why.contains("items.quarantine"), "{why}");
    first.stop().await;
    second.stop().await;
    assert_eq!(case.folder.quarantine().await.len(), 1);
}
