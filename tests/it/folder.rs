//! A dataflow's folder that a test writes: one source, one model, and its data beside them. It goes when it is dropped.

use std::path::Path;

use freshet::config::{self, Config};
use freshet::raw::{Entries, Entry};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The source of a folder.
#[derive(Clone, Debug)]
pub struct Of {
    pub topic: String,
    pub format: &'static str,
    pub envelope: &'static str,
    pub key: Vec<&'static str>,
    /// The Avro schema of a row.
    pub contract: Value,
}

impl Of {
    /// The source as the configuration has it, for who needs no more of a dataflow.
    pub fn checked(&self) -> config::Source {
        let key = self.key[0];
        let folder = Folder::new(self, "select * from {{ source('shop', 'item') }}", key, key);
        folder.config("localhost:1", "http://localhost:1").sources.remove(0)
    }
}

pub struct Folder(TempDir);

impl Folder {
    /// The model `sql` reads `{{ source('shop', 'item') }}`; `key` and `text` are columns of it.
    pub fn new(source: &Of, sql: &str, key: &str, text: &str) -> Folder {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let Of { topic, format, envelope, key: columns, contract } = source;
        write("item.avsc", &contract.to_string());
        std::fs::create_dir(folder.path().join("models")).unwrap();
        write("models/view.sql", sql);
        write(
            "dataflow.toml",
            &format!(
                r#"
                name = "items"
                view = "view"
                [kafka]
                bootstrap_servers = "${{BROKERS}}"
                [registry]
                url = "${{REGISTRY}}"
                timeout_ms = 2000
                [[source]]
                schema = "shop"
                table = "item"
                topic = "{topic}"
                format = "{format}"
                envelope = "{envelope}"
                key = {columns:?}
                contract = "item.avsc"
                [embed]
                store = "data/embeddings"
                device = "cpu"
                [raw]
                uri = "data/raw"
                [index]
                uri = "data/index"
                key = "{key}"
                text = "{text}"
                [serve]
                listen = "127.0.0.1:0"
                "#
            ),
        );
        Folder(folder)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The folder as a checked configuration.
    pub fn config(&self, brokers: &str, registry: &str) -> Config {
        let variable = |name: &str| match name {
            "BROKERS" => Some(brokers.into()),
            "REGISTRY" => Some(registry.into()),
            other => std::env::var(other).ok(),
        };
        config::load_with(self.path(), variable).unwrap()
    }

    /// What the quarantine holds, in the order in which it came.
    pub async fn quarantine(&self) -> Vec<Entry> {
        let (location, options) = self.config("localhost:1", "http://localhost:1").quarantine();
        let mut entries = Entries::open(&location, &options, true).await.unwrap().expect("there is a quarantine");
        let mut all = Vec::new();
        while let Some(some) = entries.next().await.unwrap() {
            all.extend(some);
        }
        all
    }
}

/// The items of the tests that need no other table: the contract of a row.
pub fn item_contract() -> Value {
    json!({
        "type": "record", "name": "Value", "namespace": "shop.public.item",
        "fields": [
            {"name": "id", "type": "long"},
            {"name": "name", "type": "string"},
            {"name": "note", "type": ["null", "string"], "default": null},
            {"name": "stock", "type": "long"}
        ]
    })
}

/// The items' view: everything, with a text of name and note.
pub const ITEMS: &str =
    "select id, name, note, stock, concat_ws('. ', name, note) as text from {{ source('shop', 'item') }}";
