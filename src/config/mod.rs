//! A dataflow folder as checked values: what every stage is told. Built once at start by [`load`], which reports
//! every mistake at once as `key: reason`; nothing here is optional by accident, and no stage sees another's section.

mod data_test;
mod file;
mod kafka_options;
mod project;
mod section;
#[cfg(test)]
mod tests;

pub use data_test::{DataTest, Severity, TestKind, quoted};
pub use file::{Draft, Errors, Problem, draft, load, load_with};
pub use kafka_options::FORBIDDEN;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Everything under `dataflows/<name>/`, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The dataflow's name; also the name of the index table.
    pub name: String,
    /// The dataflow's folder.
    pub folder: PathBuf,
    pub kafka: Kafka,
    pub registry: Registry,
    pub sources: Vec<Source>,
    /// The models that the view and the tests need, each after those that it refers to.
    pub models: Vec<Model>,
    /// The other models that are enabled: their SQL has to be right, and nothing is done with it.
    pub others: Vec<Model>,
    /// Of sources and models, in the order of their names.
    pub tests: Vec<DataTest>,
    /// The name of the model whose rows are indexed.
    pub view: String,
    pub engine: Engine,
    pub embed: Embed,
    pub index: Index,
    pub serve: Serve,
    /// `None`: events are not kept; a start reads Kafka from its first offset.
    pub raw: Option<Raw>,
}

impl Config {
    /// Where the quarantine lies, and the options of its object store: with the raw tables, or beside the index where there are none.
    pub fn quarantine(&self) -> (String, BTreeMap<String, String>) {
        let (uri, options) = match &self.raw {
            Some(raw) => (&raw.uri, &raw.options),
            None => (&self.index.uri, &self.index.options),
        };
        (format!("{}/{}.quarantine", uri.trim_end_matches('/'), self.name), options.clone())
    }
}

#[derive(Clone, Debug)]
pub struct Kafka {
    /// `host:port[,host:port...]`
    pub bootstrap_servers: String,
    /// Passed on to librdkafka: TLS, SASL, timeouts. Never one that correctness rests on.
    pub options: BTreeMap<String, String>,
    /// Bound of the bytes read ahead of the decoder, and of those that it has rejected and that are not in quarantine yet.
    pub queue_max_bytes: usize,
    /// Topics that connectors send their heartbeats to, one for each connector.
    pub heartbeat_topics: Vec<String>,
    /// A connector of which nothing was heard for so long is said to be away.
    pub heartbeat_max_silence_s: u64,
}

#[derive(Clone, Debug)]
pub struct Registry {
    /// Base URL of a Confluent-compatible API; `None` when every source is JSON.
    pub url: Option<String>,
    pub username: Option<String>,
    pub password: Option<String>,
    pub timeout_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Confluent wire format: magic byte 0, schema id (4 bytes, big-endian), Avro.
    Avro,
    /// JSON, with or without Kafka Connect's `{"schema", "payload"}` around it.
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Envelope {
    /// `before`, `after`, `op`, `source`.
    Debezium,
    /// The row itself, as `ExtractNewRecordState` leaves it, with `__deleted` or tombstones for deletes.
    Flattened,
}

/// One CDC topic and the table it carries.
#[derive(Clone, Debug)]
pub struct Source {
    /// dbt's source name: `{{ source('shop', 'product') }}` is `shop`, `product`.
    pub schema: String,
    pub table: String,
    pub topic: Arc<str>,
    pub format: Format,
    pub envelope: Envelope,
    /// Columns of the table that identify a row.
    pub key: Vec<String>,
    /// What stands for a value that the database did not send (unchanged TOAST).
    pub unavailable: String,
    /// The text of `schemas/avro/*.avsc`: a record schema of the row (not of the envelope).
    pub contract: String,
    /// Where the contract was read from, for messages.
    pub contract_path: PathBuf,
}

/// A SQL model, rendered: one `SELECT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    pub name: String,
    /// Relative to the dataflow's folder.
    pub path: PathBuf,
    /// A source is `"schema__table"` in it, another model is `"model"`; both are quoted.
    pub sql: String,
    /// For each line of `sql`: where it was written.
    pub lines: Vec<Line>,
    pub materialized: Materialized,
}

impl Model {
    /// Where a line of the rendered SQL (from 1) was written.
    pub fn at(&self, rendered_line: usize) -> &Line {
        let index = rendered_line.saturating_sub(1).min(self.lines.len().saturating_sub(1));
        self.lines.get(index).expect("a text has at least one line")
    }
}

/// A line of a file of the dataflow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Relative to the dataflow's folder.
    pub path: Arc<Path>,
    /// From 1.
    pub number: u32,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.path.display(), self.number)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Materialized {
    /// A part of whatever refers to it (dbt's view and ephemeral).
    View,
    /// Maintained once, for all that refer to it (dbt's table and incremental).
    Table,
}

#[derive(Clone, Debug)]
pub struct Engine {
    /// Timely worker threads.
    pub workers: usize,
    /// Most events of one epoch.
    pub epoch_max_events: usize,
    /// Decoded batches (of at most 4,096 messages, or 2 MiB and one message) that wait for the dataflow.
    pub decoded_max_batches: usize,
    /// Bound of the changed keys that wait for the indexer.
    pub pending_max_keys: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    Auto,
    Cpu,
    Cuda(usize),
}

#[derive(Clone, Debug)]
pub struct Embed {
    /// Hugging Face name; also what the vectors' identity is drawn from, with the weights' sha256.
    pub model: String,
    /// A folder with `config.json`, `tokenizer.json`, `model.safetensors`; asked first.
    pub path: Option<PathBuf>,
    /// Expected sha256 of `model.safetensors`, lower-case hex.
    pub sha256: Option<String>,
    pub device: DeviceChoice,
    /// Tokens of one text that count, special tokens included.
    pub text_max_tokens: usize,
    /// Tokens of one batch on the CPU. On a GPU the memory that is free sizes batches.
    pub batch_max_tokens: usize,
    /// Folder of the embedding store.
    pub store: PathBuf,
}

#[derive(Clone, Debug)]
pub struct Index {
    /// Folder (or `s3://` URI) of the LanceDB database.
    pub uri: String,
    /// Of the object store: `endpoint`, `region`, `allow_http`, ... Keys come from the environment.
    pub options: BTreeMap<String, String>,
    /// The view's column that identifies a row.
    pub key: String,
    /// The view's column whose text is embedded.
    pub text: String,
    /// Most keys of one index commit.
    pub commit_max_keys: usize,
    /// Rows from which an ANN index is built.
    pub ann_min_rows: usize,
    /// Rows outside the ANN index, as a share of all, from which it is brought up to date.
    pub ann_max_unindexed: f64,
    /// Fragments (small files) from which the table is compacted.
    pub compact_min_fragments: usize,
    /// Age in seconds at which old versions of the table are removed.
    pub versions_max_age_s: u64,
}

/// The Delta tables of events as they came.
#[derive(Clone, Debug)]
pub struct Raw {
    /// Folder (or `s3://` URI) that holds a table for each source.
    pub uri: String,
    /// Of the object store: `endpoint`, `region`, `allow_http`, ... Keys come from the environment.
    pub options: BTreeMap<String, String>,
    /// Bytes of messages from which a commit is due.
    pub commit_max_bytes: usize,
    /// Age in milliseconds of the oldest message at which a commit is due.
    pub commit_max_age_ms: u64,
    /// Bound of the messages, in bytes, that are taken and not committed.
    pub queue_max_bytes: usize,
    /// Small files of one day from which they are merged.
    pub compact_min_files: usize,
    /// Age in seconds at which replaced files and old versions are removed.
    pub versions_max_age_s: u64,
    /// Events since the last snapshot of a source's current rows from which a new one is taken.
    pub snapshot_min_events: usize,
}

impl Raw {
    /// Where a source's table lies; its snapshot is beside it.
    pub fn table(&self, source: &Source) -> String {
        format!("{}/{}__{}", self.uri.trim_end_matches('/'), source.schema, source.table)
    }
}

#[derive(Clone, Debug)]
pub struct Serve {
    /// `address:port`
    pub listen: std::net::SocketAddr,
    pub body_max_bytes: u64,
    pub k_max: usize,
    pub timeout_ms: u64,
    /// Connections that are open at one time; further ones wait to be accepted.
    pub connections_max: usize,
    /// Searches at one time; one more is answered 503.
    pub concurrency_max: usize,
}
