//! A snapshot is a table beside a raw table, with the rows that its current rows come from; a start reads it and what has landed since.
//!
//! The invariant: from a snapshot and the tail every key comes to the same row as from the whole table, for whatever columns are read. Its rows
//! are raw's own, unchanged; a row is left out only if a later event of its key takes its place under the whole contract:
//!
//! * an event that is rejected for some columns and taken for others takes no place, and keeps its own;
//! * an event with columns that the database did not send needs the ones before it, back to one that has them all;
//! * a delete is left out with what it deletes, unless an event that may or may not count stands before it.
//!
//! A key stays in its partition, which is Kafka's own condition for any order. Another contract makes the snapshot worthless: it is not used,
//! and taken anew.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::BooleanArray;
use arrow::compute::filter_record_batch;
use deltalake::kernel::Action;
use deltalake::protocol::{DeltaOperation, SaveMode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::files::{DataFile, longs};
use super::hydrate::Hydration;
use super::log::{Change, Log, NewSchema};
use super::merge::Merge;
use super::table::RawTable;
use super::upkeep::Writing;
use super::{Error, store};
use crate::config;
use crate::decode::{Decoder, Op, RowType, Rule, SchemaStore};

/// What a snapshot is of.
const OF: &str = "freshet.snapshot";

pub struct Snapshot {
    log: Log,
}

/// What a snapshot came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotStats {
    /// Rows that were read: the snapshot before it and the tail.
    pub read: usize,
    pub kept: usize,
}

/// Where a snapshot is to be taken, by whom.
pub(super) struct Place {
    pub location: String,
    pub options: BTreeMap<String, String>,
    pub dataflow: String,
    pub source: config::Source,
}

impl Place {
    /// Rows of `table` that its snapshot does not have.
    pub async fn tail_rows(&self, table: &RawTable) -> Result<usize, Error> {
        let snapshot = Snapshot::open(&self.location, &self.options, &self.dataflow, table).await?;
        let commit = snapshot.commit(table, &self.source).unwrap_or(-1);
        let files = DataFile::all(&table.log.load().await?).map_err(|e| Error::lasting(&self.location, e))?;
        Ok(files.iter().filter(|f| f.commits.1 > commit).map(|f| f.rows).sum())
    }

    /// Takes one, beside whoever appends, and removes what has been replaced for longer than `age`.
    pub async fn take(&self, schemas: Arc<dyn SchemaStore>, age: Duration) -> Result<SnapshotStats, Error> {
        let table = RawTable::open(&self.location, &self.options, &self.dataflow, &self.source.topic).await?;
        let mut snapshot = Snapshot::open(&self.location, &self.options, &self.dataflow, &table).await?;
        let stats = snapshot.take(&table, &self.source, schemas).await?;
        snapshot.log.checkpoint().await?;
        snapshot.log.vacuum(age).await?;
        Ok(stats)
    }
}

impl Snapshot {
    /// Opens the snapshot of the table at `location`, or makes an empty one. `location` and `options` are the raw table's.
    pub async fn open(
        location: &str,
        options: &BTreeMap<String, String>,
        dataflow: &str,
        table: &RawTable,
    ) -> Result<Snapshot, Error> {
        let location = format!("{}.snapshot", location.trim_end_matches('/'));
        let store = store::log_store(&location, options)?;
        Self::with_log_store(&location, store, dataflow, table).await
    }

    pub(super) async fn with_log_store(
        location: &str,
        store: deltalake::logstore::LogStoreRef,
        dataflow: &str,
        table: &RawTable,
    ) -> Result<Snapshot, Error> {
        let properties = [("delta.dataSkippingStatsColumns", "partition,offset,commit")];
        let of = Some((dataflow, table.topic()));
        let log = Log::open(location, store, of, table.log.schema(), &[], &properties).await?;
        Ok(Snapshot { log })
    }

    /// The version of the raw table that this is a snapshot of; `None` if it is none of this table under this contract.
    pub fn commit(&self, table: &RawTable, source: &config::Source) -> Option<i64> {
        let of: Value = serde_json::from_str(self.log.property(OF)?).ok()?;
        let commit = of["commit"].as_i64()?;
        (of == identity(table, source, commit) && commit <= table.version() as i64).then_some(commit)
    }

    /// The rows and the version of the raw table that they are of.
    pub(super) async fn rows(&self, table: &RawTable, source: &config::Source) -> Result<Option<(Merge, i64)>, Error> {
        let Some(commit) = self.commit(table, source) else { return Ok(None) };
        let files = DataFile::all(&self.log.load().await?).map_err(|e| Error::lasting(&self.log.name, e))?;
        let store = self.log.store.object_store(None);
        Ok(Some((Merge::new(&self.log.name, store, table.log.schema().clone(), files), commit)))
    }

    /// Takes a snapshot of `table` as of now, in the place of this one. Memory: the current keys.
    pub async fn take(
        &mut self,
        table: &RawTable,
        source: &config::Source,
        schemas: Arc<dyn SchemaStore>,
    ) -> Result<SnapshotStats, Error> {
        self.log.settle().await?;
        let commit = table.version() as i64;
        let wrong = |e: &dyn std::fmt::Display| Error::lasting(&self.log.name, e.to_string());
        let whole = Arc::new(RowType::from_contract(source).map_err(|e| wrong(&e))?);
        let keys = Arc::new(whole.pruned(&vec![false; whole.schema().fields().len()]));
        let open = || Hydration::open(table, Some(self), 0, source, whole.clone(), schemas.clone());
        let mut choice = Choice::default();
        let mut events = open().await?;
        let mut keys = Decoder::new(0, source, keys, events.schemas().clone()).map_err(|e| wrong(&e))?;
        let mut read = 0;
        while let Some((rows, decoded)) = events.next_run().await? {
            let offsets = longs(&rows, "offset");
            let place = |offset: i64| read + offsets.partition_point(|o| *o < offset);
            let changes = decoded.changes.iter().map(|c| (place(c.offset.0), Ok(c)));
            let rejects = decoded.rejects.iter().map(|r| (place(r.offset.0), Err(r)));
            let mut said: Vec<_> = changes.chain(rejects).collect();
            said.sort_by_key(|(at, _)| *at);
            for (at, what) in said {
                match what {
                    Ok(change) => choice.add(&change.key, at, Some(&change.op)),
                    Err(reject) if reject.rule == Rule::UnknownSchema => choice.keep_unknown(at),
                    // What counts for no column at all counts for none.
                    Err(_) => {
                        for change in events.decode(&mut keys, &rows.slice(at - read, 1)).await?.changes {
                            choice.add(&change.key, at, None);
                        }
                    }
                }
            }
            read += rows.num_rows();
        }
        let kept = choice.places(read);
        let mut rows = open().await?;
        let mut writing = Writing::new(&self.log, None, true);
        let mut at = 0;
        while let Some(batch) = rows.next_rows().await? {
            let chosen: BooleanArray = kept[at..at + batch.num_rows()].iter().copied().map(Some).collect();
            at += batch.num_rows();
            let batch = filter_record_batch(&batch, &chosen).map_err(|e| wrong(&e))?;
            if batch.num_rows() > 0 {
                writing.write(&batch).await?;
            }
        }
        let mut actions = writing.finish().await?;
        for mut file in DataFile::all(&self.log.load().await?).map_err(|e| wrong(&e))? {
            file.remove.data_change = true;
            actions.push(Action::Remove(file.remove));
        }
        let operation = DeltaOperation::Write { mode: SaveMode::Overwrite, partition_by: None, predicate: None };
        self.log
            .commit(Change {
                landed: table.landed().clone(),
                schema: NewSchema::Whole(table.log.schema().as_ref().clone()),
                properties: vec![(OF, identity(table, source, commit).to_string())],
                ..Change::new(actions, operation)
            })
            .await?;
        Ok(SnapshotStats { read, kept: kept.iter().filter(|kept| **kept).count() })
    }
}

/// What a snapshot of `table` is good for: this table, this contract.
fn identity(table: &RawTable, source: &config::Source, commit: i64) -> Value {
    let config::Source { format, envelope, key, unavailable, contract, .. } = source;
    let meaning = format!("{format:?} {envelope:?} {key:?} {unavailable:?} {contract}");
    let contract: String = Sha256::digest(meaning).iter().map(|b| format!("{b:02x}")).collect();
    json!({"table": table.log.id(), "contract": contract, "commit": commit})
}

/// Which rows are kept, by their places in the order of reading. A key is followed through all partitions: it moves when a topic gains some.
#[derive(Default)]
struct Choice {
    /// Of each key the rows that its current row comes from.
    keys: HashMap<Box<[u8]>, Vec<usize>>,
    /// Those that may or may not count.
    doubtful: HashSet<usize>,
    /// There is an event which nobody can read yet.
    has_unknown: bool,
    always: Vec<usize>,
}

impl Choice {
    /// `op` is `None` for a row that counts for some columns and is rejected for others.
    fn add(&mut self, key: &[u8], at: usize, op: Option<&Op>) {
        if let Some(Op::Truncate) = op {
            self.keys.clear();
            self.always.push(at);
            return;
        }
        let rows = self.keys.entry(key.into()).or_default();
        match op {
            Some(Op::Upsert { unavailable: None, .. }) => *rows = vec![at],
            Some(Op::Upsert { .. }) => rows.push(at),
            Some(Op::Delete) if self.has_unknown || rows.iter().any(|row| self.doubtful.contains(row)) => {
                *rows = vec![at]
            }
            Some(Op::Delete | Op::Truncate) => rows.clear(),
            None => {
                rows.push(at);
                self.doubtful.insert(at);
            }
        }
        if rows.is_empty() {
            self.keys.remove(key);
        }
    }

    fn keep_unknown(&mut self, at: usize) {
        self.has_unknown = true;
        self.always.push(at);
    }

    fn places(&self, rows: usize) -> Vec<bool> {
        let mut kept = vec![false; rows];
        for at in self.keys.values().flatten().chain(&self.always) {
            kept[*at] = true;
        }
        kept
    }
}
