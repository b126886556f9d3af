//! The program, killed at moments of chance while changes come and searches go on, again and again. Then what lies on disk is looked at: raw has
//! every offset once, the quarantine each that is no event, an audit of the index finds nothing, and no text was embedded twice.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::connector::{TOPIC, Writer, envelope, event};
use super::program::Program;
use super::running::{Items, item_fields, row, until};

const KILLS: usize = 20;
const KEYS: i64 = 40;
const TEXTS: u32 = 120;

/// Asks for something, and holds the answer's position against the furthest that any answer had.
#[derive(Default)]
pub struct Reader {
    client: reqwest::Client,
    furthest: BTreeMap<String, i64>,
    epoch: u64,
    answers: usize,
    /// Texts that were embedded: by the processes that have ended, and by the one that runs.
    embedded: u64,
    embedded_in_life: u64,
}

impl Reader {
    pub async fn search(&mut self, program: &Program) {
        let body = json!({"vector": vec![0.05; 384], "k": 5}).to_string();
        // Before the index is open there is no answer; a killed program gives none.
        let Ok(answer) = self.client.post(format!("{}/v1/search", program.url)).body(body).send().await else { return };
        if answer.status() != 200 {
            return;
        }
        let Ok(answer) = answer.json::<Value>().await else { return };
        let epoch = answer["epoch"].as_u64().unwrap();
        assert!(epoch >= self.epoch, "epoch {epoch} after {}", self.epoch);
        self.epoch = epoch;
        let at = answer["position"][TOPIC].as_object().cloned().unwrap_or_default();
        for (partition, before) in &self.furthest {
            let now = at.get(partition).and_then(Value::as_i64);
            assert!(now >= Some(*before), "partition {partition} went from {before} back to {now:?}");
        }
        self.furthest = at.into_iter().map(|(partition, next)| (partition, next.as_i64().unwrap())).collect();
        self.answers += 1;
        let Ok(status) = self.client.get(format!("{}/v1/status", program.url)).send().await else { return };
        let Ok(status) = status.json::<Value>().await else { return };
        self.embedded_in_life = status["embed"]["computed"].as_u64().unwrap();
    }

    fn life_ends(&mut self) {
        self.embedded += std::mem::take(&mut self.embedded_in_life);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_moment_costs_nothing() {
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut items = Items::new("debezium").await;
    let writer = Writer::new(&items.registry, &format!("{TOPIC}-value"), &envelope(&item_fields()));
    let mut reader = Reader::default();
    let mut program = Program::start(&items);
    let mut noise = Vec::new();
    for _ in 0..KILLS {
        let until = Instant::now() + Duration::from_millis(rng.random_range(0..2500));
        while Instant::now() < until {
            for _ in 0..rng.random_range(1..6) {
                let id = rng.random_range(1..=KEYS);
                let text = format!("thing number {}", rng.random_range(0..TEXTS));
                let value = event("u", Value::Null, row(id, &text, None, rng.random_range(0..9)));
                items.connector.send(id, rng.random_bool(0.9).then(|| writer.message(value)));
                if rng.random_bool(0.05) {
                    let partition = rng.random_range(0..2);
                    let offset = items.connector.raw(partition, None, Some(vec![7; rng.random_range(0..99)]));
                    noise.push((partition, offset));
                }
            }
            items.connector.flush();
            reader.search(&program).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        program.signal("KILL");
        assert_eq!(program.ended().await.0, None, "it ended by itself before it was killed");
        reader.life_ends();
        program = Program::start(&items);
    }
    let end = items.connector.end();
    until("everything searchable", async || {
        reader.search(&program).await;
        end.iter().all(|(partition, next)| reader.furthest.get(&partition.to_string()) == Some(next))
    })
    .await;
    // What was searchable before the last kill is so at once; that it has landed too is another matter.
    until("live", async || program.get("/v1/status").await.1["state"] == "live").await;
    assert!(reader.answers > KILLS, "{} answers", reader.answers);
    program.signal("TERM");
    assert_eq!(program.ended().await.0, Some(0));
    reader.life_ends();

    let audit = Command::new(env!("CARGO_BIN_EXE_freshet"))
        .arg("audit")
        .arg(items.folder.path())
        .env("BROKERS", items.broker.bootstrap_servers())
        .env("REGISTRY", items.registry.url())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&audit.stdout).into_owned() + &String::from_utf8_lossy(&audit.stderr);
    assert_eq!(audit.status.code(), Some(0), "{said}");
    assert!(said.contains("0 missing, 0 orphans, 0 stale, 0 duplicate keys"), "{said}");

    let held = items.folder.quarantine().await;
    let mut held: Vec<(i32, i64)> = held.iter().map(|e| (e.at.partition.number, e.at.offset.0)).collect();
    held.sort_unstable();
    noise.sort_unstable();
    assert_eq!(held, noise, "each message that is none is in quarantine once");
    assert!(!noise.is_empty());

    assert_eq!(items.landed().await, end.iter().map(|(p, next)| (*p, (0..*next).collect())).collect());

    // A record is 16 bytes of hash, 384 numbers and a checksum; texts that came twice would have two.
    let store = std::fs::read_dir(items.folder.path().join("data/embeddings")).unwrap().next().unwrap().unwrap().path();
    let bytes = std::fs::read(store).unwrap();
    let mut hashes: Vec<&[u8]> = bytes[16..].chunks(16 + 4 * 384 + 4).map(|record| &record[..16]).collect();
    let records = hashes.len();
    hashes.sort_unstable();
    hashes.dedup();
    assert_eq!(hashes.len(), records, "a vector is stored twice");
    // A text is counted once its vector is stored. What a killed process has embedded after it was asked last is not counted.
    let embedded = reader.embedded as usize;
    assert!((1..=records).contains(&embedded), "{embedded} texts were embedded, and there are {records}");
    assert!((1..=TEXTS as usize).contains(&records), "{records} texts");
}

#[test]
fn the_benchmark_of_kills_finds_nothing() {
    let mut bench = Command::new(env!("CARGO_BIN_EXE_freshet"));
    bench.args(["bench", "kill", "--times", "3", "--products", "20", "--up-to-ms", "2000"]);
    let output = bench.output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{told}{}", String::from_utf8_lossy(&output.stderr));
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((&told["ok"], &told["kills"]), (&json!(true), &json!(3)));
    assert_eq!(told["raw_rows"], told["events"]);
    assert!(told["index_rows"].as_u64() > Some(0), "{told}");
}
