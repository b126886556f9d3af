//! The quarantine's table, as its one writer has it.
//!
//! The invariant: what is remembered of every message (that it is there, and whether it is open) is what the table says as of the version that
//! the log knows; the same messages given again change nothing. A commit adds rows and marks older ones at once: files with a row whose mark
//! changes are written anew, the others stay.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::TimestampMicrosecondType;
use chrono::Utc;
use deltalake::kernel::Action;
use deltalake::logstore::LogStoreRef;
use deltalake::protocol::{DeltaOperation, SaveMode};

use super::entry::millis;
use super::{IDENTITY, Message, projected, schema};
use crate::decode::Reject;
use crate::decode::cell::{Cell, Column};
use crate::raw::columns::merged;
use crate::raw::files::{DataFile, longs, partitions};
use crate::raw::log::{Change, Log, NewSchema};
use crate::raw::merge::Merge;
use crate::raw::upkeep::Writing;
use crate::raw::{Error, store};
use crate::time::{Coordinates, Offset, Partition};

const PROPERTIES: [(&str, &str); 1] = [("delta.dataSkippingStatsColumns", "partition,offset,commit")];
/// Bytes of messages that become one batch of rows.
const BATCH_BYTES: usize = 64 << 20;

pub struct QuarantineTable {
    pub(in crate::raw) log: Log,
    /// Every message, and whether it is open.
    held: BTreeMap<Message, bool>,
    /// The version that a commit of unknown outcome would make, and what it would change of `held`.
    pending: Option<(u64, BTreeMap<Message, bool>)>,
}

impl QuarantineTable {
    /// Opens the quarantine at `location` (a path or `s3://bucket/path`), or makes it. `options` are the object store's. Memory: some
    /// 100 bytes for each message in it.
    pub async fn open(location: &str, options: &BTreeMap<String, String>) -> Result<QuarantineTable, Error> {
        Self::with_log_store(location, store::log_store(location, options)?).await
    }

    pub(super) async fn with_log_store(location: &str, store: LogStoreRef) -> Result<QuarantineTable, Error> {
        let log = Log::open(location, store, None, &schema(), &[], &PROPERTIES).await?;
        merged(log.schema(), &schema())
            .map_err(|e| Error::lasting(location, format!("this is no quarantine of Freshet's: {e}")))?;
        let mut table = QuarantineTable { log, held: BTreeMap::new(), pending: None };
        let files = table.files().await?;
        let mut rows = table.identities(files);
        let mut topics = BTreeSet::new();
        while let Some(batch) = rows.next().await? {
            let healed = batch.column_by_name("healed_at").expect("it was asked for");
            let messages = messages(&batch, &mut topics);
            table.held.extend(messages.into_iter().enumerate().map(|(row, message)| (message, healed.is_null(row))));
        }
        Ok(table)
    }

    /// Where it lies.
    pub fn location(&self) -> &str {
        &self.log.name
    }

    /// Messages that ever came.
    pub fn total(&self) -> usize {
        self.held.len()
    }

    /// Those of them that are open.
    pub fn open_messages(&self) -> impl Iterator<Item = &Coordinates> {
        self.held.iter().filter(|(_, open)| **open).map(|(message, _)| &message.at)
    }

    /// Whether the message is not there, or has healed.
    pub(super) fn is_new(&self, reject: &Reject) -> bool {
        self.held.get(&Message::of(reject)) != Some(&true)
    }

    /// Adds what is new of `rejects`, opens what had healed of them, and marks what is open of `healed`, in one commit; without any of that, there
    /// is none. After a passing error give the same again: if the commit had been made after all, nothing is changed.
    pub async fn take(&mut self, rejects: &[Reject], healed: &[Coordinates]) -> Result<(), Error> {
        self.settle().await?;
        let (mut new, mut marks) = (BTreeMap::new(), BTreeMap::new());
        for at in healed {
            let of = |timestamp_ms| Message { at: at.clone(), timestamp_ms };
            let open = self.held.range(of(i64::MIN)..=of(i64::MAX)).filter(|(_, open)| **open);
            marks.extend(open.map(|(message, _)| (message.clone(), false)));
        }
        for reject in rejects {
            let message = Message::of(reject);
            match self.held.get(&message) {
                Some(true) => {}
                Some(false) => drop(marks.insert(message, true)),
                None => drop(new.entry(message).or_insert(reject)),
            }
        }
        if new.is_empty() && marks.is_empty() {
            return Ok(());
        }
        let now_us = Utc::now().timestamp_micros();
        let mut actions = self.marked(&marks, now_us).await?;
        let operation = match marks.is_empty() {
            true => DeltaOperation::Write { mode: SaveMode::Append, partition_by: None, predicate: None },
            false => DeltaOperation::Update { predicate: None },
        };
        let mut writing = Writing::new(&self.log, None, true);
        for rows in self.rows(new.values().copied().collect(), now_us) {
            writing.write(&rows).await?;
        }
        actions.extend(writing.finish().await?);
        marks.extend(new.into_keys().map(|message| (message, true)));
        self.pending = Some((self.log.version() + 1, marks));
        let schema = NewSchema::With(schema().as_ref().clone());
        self.log.commit(Change { schema, ..Change::new(actions, operation) }).await?;
        self.settle().await
    }

    /// Finds out what became of a commit whose outcome is not known, and remembers what it has changed.
    async fn settle(&mut self) -> Result<(), Error> {
        self.log.settle().await?;
        if let Some((_, changed)) = self.pending.take().filter(|(version, _)| *version == self.log.version()) {
            self.held.extend(changed);
        }
        Ok(())
    }

    async fn files(&self) -> Result<Vec<DataFile>, Error> {
        DataFile::all(&self.log.load().await?).map_err(|e| Error::lasting(&self.log.name, e))
    }

    fn identities(&self, files: Vec<DataFile>) -> Merge {
        let schema = projected(|column| IDENTITY.contains(&column));
        Merge::new(&self.log.name, self.log.store.object_store(None), schema, files)
    }

    /// The actions that put other files in the place of those that have one of the messages.
    async fn marked(&self, marks: &BTreeMap<Message, bool>, now_us: i64) -> Result<Vec<Action>, Error> {
        let mut actions = Vec::new();
        if marks.is_empty() {
            return Ok(actions);
        }
        let mut topics = BTreeSet::new();
        for mut file in self.files().await? {
            let mut identities = self.identities(vec![file.clone()]);
            let mut has_some = false;
            while let Some(batch) = identities.next().await?.filter(|_| !has_some) {
                has_some = messages(&batch, &mut topics).iter().any(|message| marks.contains_key(message));
            }
            if !has_some {
                continue;
            }
            let mut rows = Merge::new(&self.log.name, self.log.store.object_store(None), schema(), vec![file.clone()]);
            let mut writing = Writing::new(&self.log, None, true);
            while let Some(batch) = rows.next().await? {
                let messages = messages(&batch, &mut topics);
                writing.write(&with_marks(&batch, &messages, marks, now_us)).await?;
            }
            file.remove.data_change = true;
            actions.push(Action::Remove(file.remove));
            actions.extend(writing.finish().await?);
        }
        Ok(actions)
    }

    /// The rows of rejects, in the order that files have.
    fn rows(&self, mut rejects: Vec<&Reject>, now_us: i64) -> Vec<RecordBatch> {
        rejects.sort_by_key(|r| (r.partition.number, r.offset));
        let (schema, version) = (schema(), self.log.version() as i64 + 1);
        let mut batches = Vec::new();
        let mut left = rejects.as_slice();
        while !left.is_empty() {
            let mut bytes = 0;
            let fits = left.iter().take_while(|r| {
                bytes += weight(r);
                bytes <= BATCH_BYTES
            });
            let (batch, rest) = left.split_at(fits.count().max(1));
            left = rest;
            let mut columns: Vec<Column> =
                schema.fields().iter().map(|f| Column::with_capacity(f.data_type(), batch.len())).collect();
            for reject in batch {
                let cells = cells(reject, version, now_us);
                columns.iter_mut().zip(&cells).for_each(|(column, cell)| column.append(cell));
            }
            let arrays = columns.iter_mut().map(Column::finish).collect();
            batches.push(RecordBatch::try_new(schema.clone(), arrays).expect("every column has a cell for every row"));
        }
        batches
    }
}

/// What a reject counts for, in bytes.
pub(super) fn weight(reject: &Reject) -> usize {
    let bytes = |part: &Option<Box<[u8]>>| part.as_ref().map_or(0, |part| part.len());
    std::mem::size_of::<Reject>() + reject.reason.len() + bytes(&reject.key) + bytes(&reject.value)
}

/// In the order of [`schema`].
fn cells(reject: &Reject, version: i64, now_us: i64) -> [Cell<'_>; 14] {
    fn bytes(part: Option<&[u8]>) -> Cell<'_> {
        part.map_or(Cell::Null, |part| Cell::Bytes(part.into()))
    }
    [
        Cell::Str((&*reject.partition.topic).into()),
        Cell::Int(reject.partition.number.into()),
        Cell::Int(reject.offset.0),
        Cell::Int(Message::of(reject).timestamp_ms * 1000),
        Cell::Int(version),
        bytes(reject.key.as_deref()),
        bytes(reject.value.as_deref()),
        Cell::Bool(reject.value_in_raw),
        reject.schema_id.map_or(Cell::Null, |id| Cell::Int(id.into())),
        Cell::Str(reject.rule.stage().into()),
        Cell::Str(reject.rule.name().into()),
        Cell::Str(reject.reason.as_str().into()),
        Cell::Int(now_us),
        Cell::Null,
    ]
}

/// The messages that rows are of; a topic's name is kept once.
fn messages(rows: &RecordBatch, topics: &mut BTreeSet<Arc<str>>) -> Vec<Message> {
    let column = |name| rows.column_by_name(name).expect("it was asked for").as_ref();
    let (names, timestamps) = (column("topic").as_string::<i32>(), column("timestamp"));
    let message = |row| {
        let name = names.value(row);
        let topic = topics.get(name).cloned().unwrap_or_else(|| name.into());
        topics.insert(topic.clone());
        let partition = Partition::new(topic, partitions(rows)[row]);
        let at = Coordinates { partition, offset: Offset(longs(rows, "offset")[row]) };
        Message::new(at, millis(timestamps, row).unwrap_or_default())
    };
    (0..rows.num_rows()).map(message).collect()
}

fn with_marks(rows: &RecordBatch, messages: &[Message], marks: &BTreeMap<Message, bool>, now_us: i64) -> RecordBatch {
    let place = rows.schema_ref().index_of("healed_at").expect("it was asked for");
    let old = rows.column(place).as_primitive::<TimestampMicrosecondType>();
    let mut column = Column::with_capacity(old.data_type(), messages.len());
    for (row, message) in messages.iter().enumerate() {
        column.append(&match marks.get(message) {
            Some(true) => Cell::Null,
            Some(false) => Cell::Int(now_us),
            None if old.is_valid(row) => Cell::Int(old.value(row)),
            None => Cell::Null,
        });
    }
    let mut columns: Vec<ArrayRef> = rows.columns().to_vec();
    columns[place] = column.finish();
    RecordBatch::try_new(rows.schema(), columns).expect("one column has got other values")
}
