//! The log of a Delta table that has one writer: this one.
//!
//! The invariant: a commit is put only as the version right after the last one that this writer has seen or made, and only if that version
//! is not there. So what is remembered of the table (its landed position, its schema) is the table's, without reading it again: had anybody
//! written since, the commit would be refused. delta-rs's own commits try again on a version that somebody else has made, which would be an
//! append beside rows that were never looked at; they are not used.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use arrow::datatypes::{Schema, SchemaRef};
use bytes::Bytes;
use deltalake::kernel::engine::arrow_conversion::{TryIntoArrow, TryIntoKernel};
use deltalake::kernel::transaction::{CommitData, TransactionError};
use deltalake::kernel::{Action, Metadata, MetadataExt, StructType, Transaction};
use deltalake::logstore::{CommitOrBytes, LogStoreRef};
use deltalake::protocol::{DeltaOperation, SaveMode};
use deltalake::table::builder::DeltaTableConfig;
use deltalake::{DeltaTable, DeltaTableError};
use serde_json::{Value, json};

use super::Error;
use super::columns::merged;
use crate::thread;
use crate::time::{Offset, Partition, Position};

/// Where in a commit's information its id stands.
const COMMIT_ID: &str = "freshetCommit";
/// The property of the table that holds a writer's schema, without the schema's id.
const SCHEMA_PROPERTY: &str = "freshet.schema.";

pub(super) struct Log {
    /// The table's location, for messages.
    pub name: String,
    pub store: LogStoreRef,
    /// Before the topic in a transaction's app id.
    app: String,
    state: State,
    /// A commit that was put, with an outcome that is not known.
    pending: Option<Pending>,
    lost: Option<(u64, String)>,
    /// The version of the last checkpoint that this writer has made, or that it began with, and when it last looked for what can go.
    pub checkpointed: u64,
    pub vacuumed: Instant,
}

/// What the log says as of a version.
#[derive(Clone)]
struct State {
    version: u64,
    metadata: Metadata,
    schema: SchemaRef,
    landed: Position,
}

struct Pending {
    id: String,
    bytes: Bytes,
    after: State,
}

/// What a commit changes.
pub(super) struct Change {
    pub actions: Vec<Action>,
    pub operation: DeltaOperation,
    /// The landed position after it; a partition that has not moved needs no mention.
    pub landed: Position,
    pub schema: NewSchema,
    /// Writers' schemas to remember, by id.
    pub writers: BTreeMap<String, Arc<str>>,
    pub properties: Vec<(&'static str, String)>,
}

#[derive(Default)]
pub(super) enum NewSchema {
    #[default]
    Same,
    /// Columns that the table has to have beside its own.
    With(Schema),
    /// For a commit that removes every file.
    Whole(Schema),
}

impl Change {
    pub fn new(actions: Vec<Action>, operation: DeltaOperation) -> Change {
        let (landed, schema, writers, properties) = Default::default();
        Change { actions, operation, landed, schema, writers, properties }
    }
}

impl Log {
    /// Opens the table, or makes it with these columns. `of` is the dataflow and the topic whose offsets the table lands in their order, for one
    /// that does.
    pub async fn open(
        name: &str,
        store: LogStoreRef,
        of: Option<(&str, &Arc<str>)>,
        schema: &Schema,
        partitioned_by: &[&str],
        properties: &[(&str, &str)],
    ) -> Result<Log, Error> {
        let delta = |e| Error::delta(name, e);
        let mut table = DeltaTable::new(store.clone(), DeltaTableConfig::default());
        if !store.is_delta_table_location().await.map_err(delta)? {
            let kernel: StructType = schema.try_into_kernel().map_err(|e| Error::lasting(name, e))?;
            let created = table
                .create()
                .with_columns(kernel.fields().cloned())
                .with_partition_columns(partitioned_by.iter().copied())
                .with_configuration(properties.iter().map(|(k, v)| (*k, Some(*v))))
                .with_save_mode(SaveMode::ErrorIfExists)
                .await;
            created.map_err(delta)?;
        }
        table.load().await.map_err(delta)?;
        let snapshot = table.snapshot().map_err(delta)?;
        let app = format!("freshet/{}", of.map_or("", |(dataflow, _)| dataflow));
        let landed = match of {
            Some((_, topic)) => landed(name, &store, &table, &app, topic).await?,
            None => Position::default(),
        };
        let own: Schema = snapshot
            .metadata()
            .parse_schema()
            .map_err(|e| Error::lasting(name, e))
            .and_then(|s| (&s).try_into_arrow().map_err(|e| Error::lasting(name, e)))?;
        let state =
            State { version: snapshot.version(), metadata: snapshot.metadata().clone(), schema: Arc::new(own), landed };
        let (checkpointed, vacuumed) = (state.version, thread::now());
        Ok(Log { name: name.into(), store, app, state, pending: None, lost: None, checkpointed, vacuumed })
    }

    pub fn version(&self) -> u64 {
        self.state.version
    }

    pub fn schema(&self) -> &SchemaRef {
        &self.state.schema
    }

    /// The next offset of every partition that the table has rows of.
    pub fn landed(&self) -> &Position {
        &self.state.landed
    }

    /// Writers' schemas by id.
    pub fn writers(&self) -> impl Iterator<Item = (&str, &str)> {
        let properties = self.state.metadata.configuration().iter();
        properties.filter_map(|(key, text)| Some((key.strip_prefix(SCHEMA_PROPERTY)?, text.as_str())))
    }

    /// What makes this table another one than any that lay here before.
    pub fn id(&self) -> &str {
        self.state.metadata.id()
    }

    pub fn property(&self, name: &str) -> Option<&str> {
        self.state.metadata.configuration().get(name).map(String::as_str)
    }

    /// The table with its files, as of the version that this writer knows.
    pub async fn load(&self) -> Result<DeltaTable, Error> {
        let mut table = DeltaTable::new(self.store.clone(), DeltaTableConfig::default());
        table.load_version(self.state.version).await.map_err(|e| Error::delta(&self.name, e))?;
        Ok(table)
    }

    /// Commits. After an error that is passing the outcome is not known: [`Log::settle`] finds it out.
    pub async fn commit(&mut self, change: Change) -> Result<(), Error> {
        self.settle().await?;
        let Change { mut actions, operation, landed, schema, writers, properties } = change;
        let mut after = State { version: self.state.version + 1, ..self.state.clone() };
        let wrong = |e: &dyn std::fmt::Display| Error::lasting(&self.name, e.to_string());
        let whole = match schema {
            NewSchema::Same => None,
            NewSchema::With(more) => Some(merged(&after.schema, &more).map_err(|e| wrong(&e))?),
            NewSchema::Whole(schema) => Some(schema),
        };
        if let Some(whole) = whole.filter(|whole| *whole != *after.schema) {
            let kernel: StructType = (&whole).try_into_kernel().map_err(|e| wrong(&e))?;
            after.metadata = after.metadata.with_schema(&kernel).map_err(|e| wrong(&e))?;
            after.schema = Arc::new(whole);
        }
        for (id, text) in writers {
            let key = format!("{SCHEMA_PROPERTY}{id}");
            if !after.metadata.configuration().contains_key(&key) {
                after.metadata = after.metadata.add_config_key(key, text.to_string()).map_err(|e| wrong(&e))?;
            }
        }
        for (key, value) in properties {
            after.metadata = after.metadata.add_config_key(key.into(), value).map_err(|e| wrong(&e))?;
        }
        if after.metadata != self.state.metadata {
            actions.insert(0, Action::Metadata(after.metadata.clone()));
        }
        let moved = landed.iter().filter(|(p, next)| after.landed.get(p).is_none_or(|now| now < *next));
        let now = chrono::Utc::now().timestamp_millis();
        let transactions =
            moved.map(|(p, next)| Transaction::new_with_last_update(app_id(&self.app, p), next.0, Some(now))).collect();
        after.landed.join(&landed);
        let id = format!("{:032x}", rand::random::<u128>());
        let info = [(COMMIT_ID.to_string(), Value::from(id.as_str()))].into_iter().collect();
        let bytes = CommitData::new(actions, operation, info, transactions).get_bytes().map_err(|e| wrong(&e))?;
        self.pending = Some(Pending { id, bytes, after });
        self.settle().await
    }

    /// Finds out what became of a commit whose outcome is not known, by putting it again: it is there then, either way.
    pub async fn settle(&mut self) -> Result<(), Error> {
        if let Some((version, by)) = &self.lost {
            return Err(Error::OtherWriter { table: self.name.clone(), version: *version, by: by.clone() });
        }
        let Some(pending) = &self.pending else { return Ok(()) };
        let version = pending.after.version;
        let bytes = CommitOrBytes::LogBytes(pending.bytes.clone());
        match self.store.write_commit_entry(version, bytes, Default::default()).await {
            Ok(()) => {}
            // It may be our own: a request that was answered with a failure, or not at all, can have done its work.
            Err(TransactionError::VersionAlreadyExists(_)) => {
                let entry = self.store.read_commit_entry(version).await.map_err(|e| Error::delta(&self.name, e))?;
                let entry = entry.ok_or_else(|| Error::Storage {
                    table: self.name.clone(),
                    reason: format!("version {version} is said to be there, and is not"),
                })?;
                let info = commit_info(&entry);
                if info[COMMIT_ID] != *pending.id {
                    let by = info["engineInfo"].as_str().or(info["clientVersion"].as_str()).unwrap_or("unknown");
                    let at = info["timestamp"].as_i64().and_then(chrono::DateTime::from_timestamp_millis);
                    let by = format!("{by}, {}", at.map_or("no time given".into(), |t| t.to_rfc3339()));
                    self.pending = None;
                    self.lost = Some((version, by.clone()));
                    return Err(Error::OtherWriter { table: self.name.clone(), version, by });
                }
            }
            Err(e) => return Err(Error::delta(&self.name, DeltaTableError::from(e))),
        }
        if let Some(pending) = self.pending.take() {
            self.state = pending.after;
        }
        Ok(())
    }
}

/// The next offset of every partition of `topic` that the table has rows of.
async fn landed(
    name: &str,
    store: &LogStoreRef,
    table: &DeltaTable,
    app: &str,
    topic: &Arc<str>,
) -> Result<Position, Error> {
    let delta = |e| Error::delta(name, e);
    let mut landed = Position::default();
    let numbers = partition_numbers(table).map_err(|e| Error::lasting(name, e))?;
    for number in numbers.clone() {
        let partition = Partition::new(topic.clone(), number);
        let app_id = app_id(app, &partition);
        match table.snapshot().map_err(delta)?.transaction_version(store.as_ref(), &app_id).await.map_err(delta)? {
            Some(next) => drop(landed.advance(&partition, Offset(next))),
            // Between the first and the last there may be partitions without a row.
            None if number != *numbers.start() && number != *numbers.end() => {}
            None => {
                let reason = format!(
                    "it has rows of partition {number}, and no txn {app_id:?}: it is another dataflow's or another topic's"
                );
                return Err(Error::lasting(name, reason));
            }
        }
    }
    Ok(landed)
}

fn app_id(app: &str, partition: &Partition) -> String {
    format!("{app}/{}/{}", partition.topic, partition.number)
}

/// The numbers of Kafka's partitions that the table may have rows of, by its files' statistics.
fn partition_numbers(table: &DeltaTable) -> Result<std::ops::RangeInclusive<i32>, String> {
    let (mut least, mut greatest) = (i32::MAX, -1);
    for file in table.snapshot().map_err(|e| e.to_string())?.log_data().iter() {
        let stats: Value = file.stats().and_then(|s| serde_json::from_str(&s).ok()).unwrap_or_default();
        let of = |kind: &str| stats[kind]["partition"].as_i64().and_then(|n| i32::try_from(n).ok());
        let (Some(first), Some(last)) = (of("minValues"), of("maxValues")) else {
            return Err(format!("its file {} has no statistics of the column partition", file.path()));
        };
        (least, greatest) = (least.min(first), greatest.max(last));
    }
    Ok(least.max(0)..=greatest)
}

/// The information that a commit has about itself.
fn commit_info(entry: &[u8]) -> Value {
    let lines = entry.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice::<Value>(line).ok());
    lines.into_iter().find_map(|mut v| v.get_mut("commitInfo").map(Value::take)).unwrap_or(json!({}))
}
