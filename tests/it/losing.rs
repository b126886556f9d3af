//! A service whose index was lost, in whole or in part, between two runs: it says so, builds the index anew out of raw without embedding anything
//! again, and no search sees less than one before it did. What is another's is refused.

use std::path::Path;

use serde_json::{Value, json};

use super::connector::{TOPIC, Writer, envelope, event};
use super::running::{Items, Running, item_fields, row, until};

const ROWS: i64 = 40;

struct Case {
    items: Items,
    writer: Writer,
    sent: i64,
}

impl Case {
    async fn new() -> Case {
        let items = Items::new("debezium").await;
        let writer = Writer::new(&items.registry, "v", &envelope(&item_fields()));
        Case { items, writer, sent: 0 }
    }

    fn send(&mut self) {
        self.sent += 1;
        let row = row(self.sent, &format!("thing {}", self.sent), None, self.sent);
        self.items.connector.send(self.sent, Some(self.writer.message(event("c", Value::Null, row))));
        self.items.connector.flush();
    }

    /// A service that has indexed everything, and has ended.
    async fn ran(&mut self) {
        let running = self.items.start().await;
        (0..ROWS).for_each(|_| self.send());
        running.reflects(&self.items.connector).await;
        until("live", async || running.state().await.0 == "live").await;
        running.stop().await;
    }

    fn index(&self) -> std::path::PathBuf {
        self.items.folder.path().join("data/index")
    }

    fn file(&self) -> std::path::PathBuf {
        self.index().join("items.announced.json")
    }

    fn announced(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.file()).unwrap()).unwrap()
    }
}

fn remove_some(folder: &Path, part: &str) {
    let mut names: Vec<_> = std::fs::read_dir(folder.join(part)).unwrap().map(|e| e.unwrap().path()).collect();
    names.sort();
    assert!(!names.is_empty(), "{part}");
    names.iter().step_by(2).for_each(|file| std::fs::remove_file(file).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_lost_is_built_anew_and_searched_when_it_is_whole() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 6] = [
        ("a half of the data", |index| remove_some(&index.join("items.lance"), "data")),
        ("the table", |index| {
            let table = std::fs::read_dir(index).unwrap().map(|e| e.unwrap().path());
            let mut tables = table.filter(|path| path.extension().is_some_and(|e| e == "lance"));
            std::fs::remove_dir_all(tables.next().unwrap()).unwrap();
            assert_eq!(tables.next(), None, "the table before was removed");
        }),
        ("a half of the announcement", |index| {
            let file = index.join("items.announced.json");
            let text = std::fs::read(&file).unwrap();
            std::fs::write(file, &text[..text.len() / 2]).unwrap();
        }),
        ("the announcement", |index| std::fs::remove_file(index.join("items.announced.json")).unwrap()),
        ("the embedding store", |index| std::fs::remove_dir_all(index.join("../embeddings")).unwrap()),
        ("the index and nothing else", |index| std::fs::remove_dir_all(index).unwrap()),
    ];
    let mut case = Case::new().await;
    case.ran().await;
    for (what, damage) in damages {
        let before = case.announced();
        damage(&case.index());
        // The position is known as long as the announcement is whole.
        let known = std::fs::read(case.file()).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
        case.send();
        let running = case.items.start().await;
        let mut searched = None;
        until(&format!("live without {what}"), async || {
            let ready = running.get("/readyz").await.0 == 200;
            let (code, found) = running.post("/v1/search", json!({"vector": vec![0.05; 384], "k": 1000})).await;
            match code {
                503 => assert!(searched.is_none() && !ready, "{what}: {found}"),
                200 if known.is_some() => {
                    let (epoch, rows) = (found["epoch"].as_u64(), found["hits"].as_array().unwrap().len() as i64);
                    assert!(epoch >= before["epoch"].as_u64(), "{what}: {found}");
                    assert!(rows >= case.sent - 1, "{what}: {rows} rows of {}", case.sent);
                    for number in ["0", "1"] {
                        let [now, then] = [&found, &before].map(|at| at["position"][TOPIC][number].as_i64());
                        assert!(now >= then, "{what}: {now:?} after {then:?}");
                    }
                    searched = Some(rows);
                }
                200 => searched = Some(0),
                _ => panic!("{what}: {code} {found}"),
            }
            running.state().await.0 == "live" && searched.is_some()
        })
        .await;
        running.reflects(&case.items.connector).await;
        assert_eq!(running.items().await.len() as i64, case.sent, "{what}");
        assert_eq!(running.status().await["embed"]["computed"], 1, "{what}: the new text alone");
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_of_nothing_becomes_whole_without_an_event() {
    let case = Case::new().await;
    let running = case.items.start().await;
    until("live", async || running.state().await.0 == "live").await;
    running.stop().await;
    std::fs::remove_file(case.file()).unwrap();
    let running = case.items.start().await;
    until("live", async || running.state().await.0 == "live").await;
    assert_eq!(running.items().await.len(), 0);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_anothers_is_refused() {
    let mut case = Case::new().await;
    case.ran().await;
    let running = case.items.start().await;
    let said = Running::refused(case.items.config()).await;
    assert!(said.contains("the index items at") && said.contains("in use by another process"), "{said}");
    running.stop().await;

    let text = std::fs::read_to_string(case.file()).unwrap();
    std::fs::write(case.file(), text.replace(TOPIC, "of.another.shop")).unwrap();
    let said = Running::refused(case.items.config()).await;
    assert!(said.contains("another dataflow's: it reflects of.another.shop, and this one reads"), "{said}");
    std::fs::write(case.file(), text).unwrap();
    let running = case.items.start().await;
    until("live", async || running.state().await.0 == "live").await;
    assert_eq!(running.items().await.len() as i64, ROWS, "refusing has changed nothing");
    running.stop().await;
}
