//! The built program against peers of this process: it says in JSON where it listens, serves, drains when it is told to end, and goes on
//! from there.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::connector::{TOPIC, Writer, envelope, event};
use super::running::{Items, item_fields, row, until};

/// A running `freshet run`. It is killed if a test ends before it does.
pub struct Program {
    child: Child,
    /// Where its API listens.
    pub url: String,
    log: Option<std::thread::JoinHandle<Vec<Value>>>,
}

impl Program {
    pub fn start(items: &Items) -> Program {
        Program::begin(Command::new(env!("CARGO_BIN_EXE_freshet")), items)
    }

    /// The same, with a bound on the size of a file.
    pub fn start_with_files_up_to(items: &Items, kib: u32) -> Program {
        let mut shell = Command::new("bash");
        // Whoever writes beyond it is told so, and not ended.
        shell.args(["-c", "trap '' XFSZ; ulimit -f $0; exec \"$@\"", &kib.to_string(), env!("CARGO_BIN_EXE_freshet")]);
        Program::begin(shell, items)
    }

    fn begin(mut command: Command, items: &Items) -> Program {
        let mut child = command
            .arg("run")
            .arg(items.folder.path())
            .env("BROKERS", items.broker.bootstrap_servers())
            .env("REGISTRY", items.registry.url())
            .env_remove("FRESHET_LOG")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (send, receive) = std::sync::mpsc::channel();
        let log = std::thread::spawn(move || {
            let mut log = Vec::new();
            for line in lines {
                let line = line.unwrap();
                let entry: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line:?} is no JSON: {e}"));
                if let Some(address) = entry["address"].as_str() {
                    send.send(format!("http://{address}")).unwrap();
                }
                log.push(entry);
            }
            log
        });
        let url = receive.recv().expect("the log says where the API listens");
        Program { child, url, log: Some(log) }
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        let answer = reqwest::get(format!("{}{path}", self.url)).await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status().unwrap();
        assert!(sent.success());
    }

    /// Waits until it has ended; says its exit code and its log.
    pub async fn ended(mut self) -> (Option<i32>, Vec<Value>) {
        let mut code = None;
        until("the end", async || {
            code = self.child.try_wait().unwrap().map(|status| status.code());
            code.is_some()
        })
        .await;
        let log = self.log.take().expect("it ends once").join().unwrap();
        (code.flatten(), log)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // After `ended` there is nothing left to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn announced(folder: &Path) -> Value {
    let text = std::fs::read_to_string(folder.join("data/index/items.announced.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_nobody_can_write_ends_nothing() {
    let items = Items::new("debezium").await;
    // A disk that is full; a reader that is gone is the same to whoever writes.
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_freshet"));
    command.env("BROKERS", items.broker.bootstrap_servers()).env("REGISTRY", items.registry.url());
    let mut child = command.arg("run").arg(items.folder.path()).stderr(full()).spawn().unwrap();
    until("an index", async || items.folder.path().join("data/index/items.announced.json").exists()).await;
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    let mut code = None;
    until("the end", async || {
        code = child.try_wait().unwrap().map(|status| status.code());
        code.is_some()
    })
    .await;
    assert_eq!(code, Some(Some(0)));
    let wrong = Command::new(env!("CARGO_BIN_EXE_freshet")).args(["run", "/nowhere"]).stderr(full()).status().unwrap();
    assert_eq!(wrong.code(), Some(2), "nor does a mistake that nobody can be told of");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_told_to_end_drains_and_goes_on_from_there() {
    let mut items = Items::new("debezium").await;
    let writer = Writer::new(&items.registry, &format!("{TOPIC}-value"), &envelope(&item_fields()));
    let put = |items: &mut Items, id: i64| {
        let text = format!("a thing with the number {id}, unlike the others");
        items.connector.send(id, Some(writer.message(event("c", Value::Null, row(id, &text, None, id)))));
    };
    let program = Program::start(&items);
    (1..=20).for_each(|id| put(&mut items, id));
    items.connector.flush();
    until("ready", async || program.get("/readyz").await.0 == 200).await;

    // What was read is in the index when it ends, also what came just before.
    (21..=60).for_each(|id| put(&mut items, id));
    items.connector.flush();
    until("60 messages read", async || program.get("/v1/status").await.1["source"]["messages"] == 60).await;
    program.signal("TERM");
    let (code, log) = program.ended().await;
    assert_eq!(code, Some(0), "{log:?}");
    assert!(log.iter().all(|line| line["level"] != "ERROR"), "{log:?}");
    assert_eq!(announced(items.folder.path())["position"], json!({TOPIC: {"0": 30, "1": 30}}));

    // The next one, with its peers away, serves all of it at once; and ends just as well by Ctrl-C while it waits for them.
    items.broker.set_down(true).unwrap();
    let program = Program::start(&items);
    until("ready", async || program.get("/readyz").await.0 == 200).await;
    for id in 1..=60 {
        assert_eq!(program.get(&format!("/v1/items/{id}")).await.0, 200, "{id}");
    }
    until("waiting", async || program.get("/v1/status").await.1["state"] == "waiting").await;
    program.signal("INT");
    assert_eq!(program.ended().await.0, Some(0));

    // With its peers back it embeds nothing that it had embedded.
    items.broker.set_down(false).unwrap();
    let program = Program::start(&items);
    until("live", async || program.get("/v1/status").await.1["state"] == "live").await;
    let told = program.get("/v1/status").await.1;
    assert_eq!((&told["index"]["rows"], &told["embed"]["computed"]), (&json!(60), &json!(0)));
    program.signal("TERM");
    assert_eq!(program.ended().await.0, Some(0));
}

/// The end does not wait for a long first embedding, nor is the work that was done lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_program_ends_in_the_midst_of_its_first_embedding() {
    const ROWS: i64 = 4_000;
    let mut items = Items::new("debezium").await;
    let writer = Writer::new(&items.registry, &format!("{TOPIC}-value"), &envelope(&item_fields()));
    let long =
        "of seven colours, carved, painted, gilded, and waiting for someone who knows what it is for; ".repeat(4);
    for id in 0..ROWS {
        let text = format!("thing {id} {long}");
        items.connector.send(id, Some(writer.message(event("c", Value::Null, row(id, &text, None, id)))));
    }
    items.connector.flush();
    let program = Program::start(&items);
    until("some texts embedded", async || program.get("/v1/status").await.1["embed"]["tokens"].as_u64() > Some(0))
        .await;
    program.signal("TERM");
    let (code, log) = program.ended().await;
    assert_eq!(code, Some(0), "{log:?}");
    let entries = std::fs::read_dir(items.folder.path().join("data/embeddings")).unwrap();
    let kept: u64 = entries.map(|e| e.unwrap().metadata().unwrap().len()).sum();
    assert!(kept > 384 * 4, "the vectors that were computed are in the store");
    assert!(kept < ROWS as u64 * 384 * 4, "there was something left to do");
}

#[test]
fn what_a_configuration_cannot_mean_is_code_2_and_an_index_in_use_code_3() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("dataflows/product");
    let run = || {
        let mut program = Command::new(env!("CARGO_BIN_EXE_freshet"));
        program.arg("run").arg(&shipped).env("FRESHET_DATA_DIR", &data).env("FRESHET_LISTEN", "127.0.0.1:0");
        let run = program.output().unwrap();
        (run.status.code(), String::from_utf8(run.stderr).unwrap())
    };
    std::fs::write(&data, "a file where a folder should be").unwrap();
    let (code, said) = run();
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains(&format!("{} is a file", data.display())), "{said}");
    std::fs::remove_file(&data).unwrap();
    std::fs::create_dir_all(data.join("index")).unwrap();
    let lock = std::fs::File::create(data.join("index/product.lock")).unwrap();
    lock.lock().unwrap();
    let (code, said) = run();
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("in use by another process"), "{said}");
}
