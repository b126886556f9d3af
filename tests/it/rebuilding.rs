//! `freshet rebuild`: by a service that runs, with searches and changes going on; by itself; killed in the midst; in another's place.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rand::Rng;
use serde_json::{Value, json};

use super::connector::{TOPIC, Writer, envelope, event};
use super::kill::Reader;
use super::program::Program;
use super::running::{Items, Running, item_fields, items, row, until};

fn writer(case: &Items) -> Writer {
    Writer::new(&case.registry, &format!("{TOPIC}-value"), &envelope(&item_fields()))
}

fn put(case: &mut Items, writer: &Writer, id: i64, name: &str) {
    case.connector.send(id, Some(writer.message(event("u", Value::Null, row(id, name, None, id)))));
}

fn index(case: &Items) -> PathBuf {
    case.folder.path().join("data/index")
}

fn tables(case: &Items) -> BTreeSet<String> {
    let names = std::fs::read_dir(index(case)).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter_map(|name| name.strip_suffix(".lance").map(Into::into)).collect()
}

/// Changes what the table says of an item, and not the hash by which a start would notice.
async fn tamper(index: &Path, id: i64) {
    let table = lancedb::connect(index.to_str().unwrap()).execute().await.unwrap();
    let table = table.open_table("items").execute().await.unwrap();
    let changed = table.update().only_if(format!("id = {id}")).column("name", "'tampered'").execute().await.unwrap();
    assert_eq!(changed.rows_updated, 1);
}

/// The program's `rebuild`, running.
fn rebuild(case: &Items, url: Option<&str>) -> std::process::Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_freshet"));
    command.arg("rebuild").arg(case.folder.path()).args(url.iter().flat_map(|url| ["--url", url]));
    command.env("BROKERS", case.broker.bootstrap_servers()).env("REGISTRY", case.registry.url());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

async fn ended(child: std::process::Child) -> (Option<i32>, String) {
    let wait = move || -> Output { child.wait_with_output().unwrap() };
    let output = tokio::task::spawn_blocking(wait).await.unwrap();
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_builds_its_index_anew_while_changes_and_searches_go_on() {
    const ROWS: i64 = 900;
    let mut case = Items::new("debezium").await;
    let writer = writer(&case);
    let running = case.start().await;
    (1..=ROWS).for_each(|id| put(&mut case, &writer, id, &format!("thing {id}")));
    running.reflects(&case.connector).await;
    until("live", async || running.state().await.0 == "live").await;
    running.stop().await;
    tamper(&index(&case), 7).await;

    let running = case.start().await;
    until("live", async || running.state().await.0 == "live").await;
    assert_eq!(running.get("/v1/items/7").await.1["row"]["name"], "tampered", "a start does not see it");
    let (code, told) = running.post("/v1/rebuild", json!({})).await;
    assert_eq!((code, &told["table"]), (202, &json!("items")));
    let (mut position, mut epoch, mut changed) = (json!({}), 0, 0);
    until("the new table", async || {
        changed += 1;
        put(&mut case, &writer, changed % ROWS + 1, &format!("changed {changed}"));
        put(&mut case, &writer, ROWS + changed, "new");
        case.connector.send((changed * 17) % ROWS + 1, None);
        case.connector.flush();
        let (code, found) = running.post("/v1/search", json!({"vector": vec![0.05; 384], "k": 1000})).await;
        assert_eq!(code, 200, "{found}");
        assert!(found["hits"].as_array().unwrap().len() as i64 > ROWS / 2, "{found}");
        for number in ["0", "1"] {
            let at = |position: &Value| position[TOPIC][number].as_i64();
            assert!(at(&found["position"]) >= at(&position), "{position} and then {}", found["position"]);
        }
        assert!(found["epoch"].as_u64().unwrap() >= epoch);
        (position, epoch) = (found["position"].clone(), found["epoch"].as_u64().unwrap());
        running.status().await["index"]["table"] == "items.1"
    })
    .await;
    running.reflects(&case.connector).await;
    let before = running.items().await;
    assert!(before.values().all(|(name, ..)| name != "tampered"), "{before:?}");
    assert_eq!(running.status().await["state"], "live");
    until("the old table's end", async || tables(&case) == BTreeSet::from(["items.1".into()])).await;
    // Changes go into the new one.
    put(&mut case, &writer, 1, "last");
    running.reflects(&case.connector).await;
    assert_eq!(running.get("/v1/items/1").await.1["row"]["name"], "last");
    running.stop().await;

    let running = case.start().await;
    until("live", async || running.state().await.0 == "live").await;
    let status = running.status().await;
    assert_eq!((&status["embed"]["computed"], &status["index"]["upserted"]), (&json!(0), &json!(0)), "{status}");
    let mut expected = before;
    expected.insert(1, ("last".into(), None, 1));
    assert_eq!(running.items().await, expected);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_rebuild_embeds_was_never_embedded_before() {
    let mut case = Items::new("debezium").await;
    let writer = writer(&case);
    let running = case.start().await;
    (1..=50).for_each(|id| put(&mut case, &writer, id, &format!("thing {}", id / 2)));
    running.reflects(&case.connector).await;
    for n in 1..=3 {
        until("live", async || running.state().await.0 == "live").await;
        assert_eq!(running.post("/v1/rebuild", json!({})).await.0, 202);
        until("the new table", async || running.status().await["index"]["table"] == format!("items.{n}")).await;
    }
    assert_eq!(running.status().await["embed"]["computed"], 26);
    let all = (1..=50).map(|id| (id, (format!("thing {}", id / 2), None, id))).collect();
    assert_eq!(running.items().await, all);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_asks_the_service_or_does_it_itself() {
    let mut case = Items::new("debezium").await;
    let writer = writer(&case);
    (1..=5).for_each(|id| put(&mut case, &writer, id, "a thing"));
    case.connector.flush();
    let program = Program::start(&case);
    until("live", async || program.get("/v1/status").await.1["state"] == "live").await;

    // Without the address, on which this service does not listen, the lock tells that it runs.
    let (code, said) = ended(rebuild(&case, None)).await;
    assert!(code == Some(3) && said.contains("in use by another process"), "{code:?} {said}");
    let (code, said) = ended(rebuild(&case, Some(&program.url))).await;
    assert!(code == Some(0) && said.contains("items.1 is the index now, with 5 rows"), "{code:?} {said}");
    assert_eq!(program.get("/v1/status").await.1["state"], "live");
    program.signal("TERM");
    assert_eq!(program.ended().await.0, Some(0));

    let (code, said) = ended(rebuild(&case, None)).await;
    assert!(code == Some(0) && said.contains("items.2 is the index now, with 5 rows"), "{code:?} {said}");
    assert_eq!(tables(&case), BTreeSet::from(["items.2".into()]));

    // What a start refuses it replaces.
    let file = index(&case).join("items.announced.json");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace(TOPIC, "of.another.shop")).unwrap();
    let (code, said) = ended(rebuild(&case, None)).await;
    assert!(code == Some(0) && said.contains("items.3 is the index now, with 5 rows"), "{code:?} {said}");
    let running = Running::start(case.config()).await;
    until("live", async || running.state().await.0 == "live").await;
    assert_eq!(running.items().await, items([1, 2, 3, 4, 5].map(|id| (id, "a thing", None, id))));
    assert_eq!(running.status().await["embed"]["computed"], 0);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_in_the_midst_leaves_the_old_index_or_the_new_one() {
    const ROWS: i64 = 400;
    let mut case = Items::new("debezium").await;
    let writer = writer(&case);
    (1..=ROWS).for_each(|id| put(&mut case, &writer, id, &format!("thing {}", id % 10)));
    case.connector.flush();
    let mut program = Program::start(&case);
    until("live", async || program.get("/v1/status").await.1["state"] == "live").await;
    let mut reader = Reader::default();
    for n in 0..8 {
        put(&mut case, &writer, 1, &format!("thing {}", n % 10));
        case.connector.flush();
        reader.search(&program).await;
        let child = rebuild(&case, Some(&program.url));
        until("the rebuild", async || {
            let index = program.get("/v1/status").await.1["index"].clone();
            !index["building"].is_null() || index["table"] != "items"
        })
        .await;
        tokio::time::sleep(Duration::from_millis(rand::rng().random_range(0..60))).await;
        program.signal("KILL");
        drop(program.ended().await);
        let (code, said) = ended(child).await;
        let is_told = match code {
            Some(0) => said.contains("is the index now"),
            _ => code == Some(3) && said.contains("ended before the new index was whole"),
        };
        assert!(is_told, "{code:?} {said}");
        program = Program::start(&case);
        until("live", async || {
            reader.search(&program).await;
            program.get("/v1/status").await.1["state"] == "live"
        })
        .await;
        let index = program.get("/v1/status").await.1["index"].clone();
        assert_eq!((&index["rows"], &index["building"]), (&json!(ROWS), &Value::Null), "{index}");
        assert_eq!(tables(&case), BTreeSet::from([index["table"].as_str().unwrap().into()]));
    }
    assert_eq!(program.get("/v1/status").await.1["embed"]["computed"], 0);
    program.signal("TERM");
    assert_eq!(program.ended().await.0, Some(0));
}
