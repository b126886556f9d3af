//! A disk that takes no more, of which a bound on the size of each file is one that a test can have: who writes waits and says why, the program ends
//! with the reason, and when there is room everything is there.

use rand::RngCore;
use serde_json::Value;

use super::connector::{TOPIC, Writer, envelope, event};
use super::program::Program;
use super::running::{Items, item_fields, row, until};

/// More than a file may have in the cases in which one message is too much.
const BYTES: usize = 200 << 10;

struct Case {
    items: Items,
    writer: Writer,
}

impl Case {
    fn put(&mut self, id: i64, name: &str) {
        let value = event("u", Value::Null, row(id, name, None, id));
        self.items.connector.send(id, Some(self.writer.message(value)));
    }

    /// Runs the program where no file may grow beyond the bound, until it waits for this reason; and ends it, which it has to say.
    async fn waits_for(&self, reason: &str, file_max_kib: u32) {
        self.items.connector.flush();
        let program = Program::start_with_files_up_to(&self.items, file_max_kib);
        until(reason, async || {
            let status = program.get("/v1/status").await.1;
            assert_ne!(status["state"], "failed", "{}", status["why"]);
            status["state"] == "waiting" && status["why"].as_str().unwrap().contains(reason)
        })
        .await;
        program.signal("TERM");
        let (code, log) = program.ended().await;
        assert_eq!(code, Some(3), "{log:?}");
        let errors: Vec<&Value> = log.iter().filter(|line| line["level"] == "ERROR").collect();
        assert!(errors.iter().any(|line| line["reason"].as_str().is_some_and(|r| r.contains(reason))), "{errors:?}");
    }

    /// Runs it where there is room, until all is searchable and has landed; says the status.
    async fn goes_on(&self) -> Value {
        let program = Program::start(&self.items);
        let end = self.items.connector.end();
        let is_at = |at: &Value| end.iter().all(|(number, next)| at[TOPIC][number.to_string()] == *next);
        let mut status = Value::Null;
        until("all of it", async || {
            status = program.get("/v1/status").await.1;
            is_at(&status["position"]) && status["state"] == "live"
        })
        .await;
        program.signal("TERM");
        assert_eq!(program.ended().await.0, Some(0));
        assert_eq!(self.items.landed().await, end.iter().map(|(p, next)| (*p, (0..*next).collect())).collect());
        status
    }
}

fn noise() -> Vec<u8> {
    let mut bytes = vec![0; BYTES];
    rand::rng().fill_bytes(&mut bytes);
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_waited_for_and_costs_nothing() {
    let items = Items::new("debezium").await;
    let writer = Writer::new(&items.registry, &format!("{TOPIC}-value"), &envelope(&item_fields()));
    let mut case = Case { items, writer };
    (1..=60).for_each(|id| case.put(id, &format!("thing number {id}")));
    // A vector and what belongs to it take 1,556 bytes.
    case.waits_for("the embedding store", 64).await;
    let status = case.goes_on().await;
    assert_eq!(status["index"]["rows"], 60);
    assert!(status["embed"]["computed"].as_u64() < Some(60), "vectors of before are there: {status}");

    // A text that no file takes, neither the index's nor raw's.
    let text: String = noise().iter().map(|byte| char::from(b'a' + byte % 26)).collect();
    case.put(61, &text);
    case.waits_for("the index at", 128).await;
    let status = case.goes_on().await;
    assert_eq!(status["index"]["rows"], 61);

    case.items.connector.raw(0, None, Some(noise()));
    case.waits_for("items.quarantine", 128).await;
    let status = case.goes_on().await;
    assert_eq!((&status["index"]["rows"], &status["quarantine"]["open"]), (&Value::from(61), &Value::from(1)));
    assert_eq!(case.items.folder.quarantine().await.len(), 1);
}
