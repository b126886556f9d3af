//! Hydration is the way back: a raw table read into the changes that decoding its messages would have given.
//!
//! The invariant: within a partition changes come in the order of their offsets, each offset once, and are those that the ordinary decoder makes
//! of the message. Values that landed in columns are handed to its plans as they stood on the wire; messages that kept their bytes are decoded.
//! A reject has its message's value only where the table kept it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch, StructArray};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::Value;

use super::Error;
use super::columns::Columns;
use super::files::{DataFile, longs, partitions};
use super::merge::Merge;
use super::snapshot::Snapshot;
use super::table::RawTable;
use super::value::Form;
use super::writer::{Writer, WriterColumn};
use crate::config;
use crate::decode::envelope::{Kind, Values};
use crate::decode::schema::Schema;
use crate::decode::{Decoded, Decoder, Origin, RowType, SchemaStore, Taken, TakenEvent, TakenValue, WriterSchema};
use crate::source::{Message, MessageBatch};
use crate::time::{Offset, Partition, Position};

pub struct Hydration {
    table: String,
    topic: Arc<str>,
    /// The snapshot, if there is one, and what has landed since.
    parts: VecDeque<Merge>,
    decoder: Decoder,
    schemas: Arc<dyn SchemaStore>,
    writers: HashMap<String, Bound>,
    /// Rows that are read and not decoded.
    rows: Option<RecordBatch>,
    /// The next offset of each partition.
    next: Position,
    landed: Position,
    last: BTreeMap<Partition, LastMessage>,
}

/// The last message of a partition, by what tells it from another one at its offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastMessage {
    pub offset: Offset,
    pub timestamp_ms: i64,
    pub key: Option<Box<[u8]>>,
}

impl LastMessage {
    /// As raw keeps it: time stamps are microseconds there, as far as these go.
    pub fn of(batch: &MessageBatch, message: &Message) -> LastMessage {
        let timestamp_ms = message.timestamp_ms.clamp(i64::MIN / 1000, i64::MAX / 1000);
        LastMessage { offset: message.offset, timestamp_ms, key: batch.key(message).map(Into::into) }
    }
}

/// A writer, and where its columns are in the table.
struct Bound {
    /// Its schema part, where the messages are JSON.
    connect: Option<Value>,
    before: Vec<BoundColumn>,
    after: Vec<BoundColumn>,
}

struct BoundColumn {
    name: Box<str>,
    form: Form,
    place: usize,
}

impl Hydration {
    /// Reads the table as of now, from its snapshot if one is given. `index` is the source's in the configuration; `schemas` is asked for what
    /// the table does not remember.
    pub async fn open(
        table: &RawTable,
        snapshot: Option<&Snapshot>,
        index: usize,
        source: &config::Source,
        row_type: Arc<RowType>,
        schemas: Arc<dyn SchemaStore>,
    ) -> Result<Hydration, Error> {
        let wrong = |e: String| Error::lasting(table.location(), e);
        let files = DataFile::all(&table.log.load().await?).map_err(wrong)?;
        let mut tail =
            Merge::new(table.location(), table.log.store.object_store(None), table.log.schema().clone(), files);
        let mut parts = VecDeque::new();
        if let Some((rows, commit)) = match snapshot {
            Some(snapshot) => snapshot.rows(table, source).await?,
            None => None,
        } {
            parts.push_back(rows);
            tail = tail.after(commit);
        }
        parts.push_back(tail);
        let columns = table.columns();
        let mut writers = HashMap::new();
        for (id, text) in table.log.writers() {
            // Others are those of keys, or of rows that have kept their bytes.
            if let Ok(bound) = Bound::new(source, text, columns) {
                writers.insert(id.to_string(), bound);
            }
        }
        let schemas = table.schemas(schemas);
        let decoder = Decoder::new(index, source, row_type, schemas.clone()).map_err(|e| wrong(e.to_string()))?;
        Ok(Hydration {
            table: table.location().into(),
            topic: source.topic.clone(),
            parts,
            decoder,
            schemas,
            writers,
            rows: None,
            next: Position::default(),
            landed: table.landed().clone(),
            last: BTreeMap::new(),
        })
    }

    /// The last message of each partition that was read so far.
    pub fn last(&self) -> &BTreeMap<Partition, LastMessage> {
        &self.last
    }

    /// What the table has landed: where Kafka is to be read from after the last of [`Hydration::next`].
    pub fn landed(&self) -> &Position {
        &self.landed
    }

    /// The next messages of one partition; `None` after the last. After a passing error call again.
    pub async fn next(&mut self) -> Result<Option<Decoded>, Error> {
        Ok(self.next_run().await?.map(|(_, decoded)| decoded))
    }

    /// The same, with the rows.
    pub(super) async fn next_run(&mut self) -> Result<Option<(RecordBatch, Decoded)>, Error> {
        let Some(rows) = self.next_rows().await? else { return Ok(None) };
        // Kept until it is decoded: the registry may be away.
        self.rows = Some(rows.clone());
        let numbers = partitions(&rows);
        let count = numbers.iter().take_while(|n| **n == numbers[0]).count();
        let run = rows.slice(0, count);
        let partition = Partition::new(self.topic.clone(), numbers[0]);
        self.check(&partition, longs(&run, "offset"))?;
        let messages = taken(&run, &self.writers).map_err(|e| Error::lasting(&self.table, e))?;
        let decoded = self.decoder.decode_taken(&partition, &messages).await?;
        self.next.advance(&partition, decoded.end);
        if let Some(Taken { offset, timestamp_ms, key, .. }) = messages.last() {
            let last = LastMessage { offset: *offset, timestamp_ms: *timestamp_ms, key: key.map(Into::into) };
            self.last.insert(partition, last);
        }
        self.rows = (count < rows.num_rows()).then(|| rows.slice(count, rows.num_rows() - count));
        drop(messages);
        Ok(Some((run, decoded)))
    }

    /// Rows that are not decoded.
    pub(super) async fn next_rows(&mut self) -> Result<Option<RecordBatch>, Error> {
        if let Some(rows) = self.rows.take() {
            return Ok(Some(rows));
        }
        while let Some(part) = self.parts.front_mut() {
            if let Some(rows) = part.next().await? {
                return Ok(Some(rows));
            }
            self.parts.pop_front();
        }
        Ok(None)
    }

    /// The table's schemas, and whoever is asked for others.
    pub(super) fn schemas(&self) -> &Arc<dyn SchemaStore> {
        &self.schemas
    }

    /// What `decoder` makes of rows of one partition.
    pub(super) async fn decode(&mut self, decoder: &mut Decoder, rows: &RecordBatch) -> Result<Decoded, Error> {
        let partition = Partition::new(self.topic.clone(), partitions(rows)[0]);
        let messages = taken(rows, &self.writers).map_err(|e| Error::lasting(&self.table, e))?;
        Ok(decoder.decode_taken(&partition, &messages).await?)
    }

    /// Each offset once, in order; anything else is damage, or another program's doing.
    fn check(&self, partition: &Partition, offsets: &[i64]) -> Result<(), Error> {
        let mut next = self.next.get(partition).unwrap_or(Offset(i64::MIN));
        for offset in offsets.iter().copied().map(Offset) {
            if offset < next {
                let reason = format!("it has offset {} of {partition} after {}", offset.0, next.0 - 1);
                return Err(Error::lasting(&self.table, reason));
            }
            next = Offset(offset.0 + 1);
        }
        Ok(())
    }
}

fn taken<'a>(rows: &'a RecordBatch, writers: &'a HashMap<String, Bound>) -> Result<Vec<Taken<'a>>, String> {
    let columns = RowColumns::of(rows);
    (0..rows.num_rows()).map(|row| columns.taken(row, writers)).collect()
}

impl Bound {
    fn new(source: &config::Source, text: &str, columns: &Columns) -> Result<Bound, String> {
        let (connect, schema) = match source.format {
            config::Format::Avro => (None, Schema::from_avro(text).map_err(|e| e.to_string())?),
            config::Format::Json => {
                let part: Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
                let schema = Schema::from_connect(&part).map_err(|e| e.to_string())?;
                (Some(part), schema)
            }
        };
        let writer = Writer::new(schema, source.envelope)?;
        let column = |c: &WriterColumn| {
            let place = columns.clone().place(&c.name, &c.form)?;
            match place < columns.len() {
                true => Ok(BoundColumn { name: c.name.clone(), form: c.form.clone(), place }),
                false => Err(format!("the table has no column {}", c.name)),
            }
        };
        Ok(Bound {
            connect,
            before: writer.before().iter().map(column).collect::<Result<_, String>>()?,
            after: writer.after().iter().map(column).collect::<Result<_, String>>()?,
        })
    }
}

/// The columns of a batch that rows are read back from.
struct RowColumns<'a> {
    offsets: &'a [i64],
    timestamps: &'a dyn Array,
    key: &'a dyn Array,
    op: &'a dyn Array,
    ts_ms: &'a dyn Array,
    snapshot: &'a dyn Array,
    lsn: &'a dyn Array,
    change_lsn: &'a dyn Array,
    commit_lsn: &'a dyn Array,
    event_serial_no: &'a dyn Array,
    table: &'a dyn Array,
    schema_id: &'a dyn Array,
    before: Option<&'a StructArray>,
    after: Option<&'a StructArray>,
    unavailable: &'a dyn Array,
    value: &'a dyn Array,
}

impl<'a> RowColumns<'a> {
    fn of(rows: &'a RecordBatch) -> RowColumns<'a> {
        let column = |name| rows.column_by_name(name).expect("the table's schema was checked").as_ref();
        let row = |name| rows.column_by_name(name).map(|c| c.as_struct());
        RowColumns {
            offsets: longs(rows, "offset"),
            timestamps: column("timestamp"),
            key: column("key"),
            op: column("op"),
            ts_ms: column("ts_ms"),
            snapshot: column("snapshot"),
            lsn: column("lsn"),
            change_lsn: column("change_lsn"),
            commit_lsn: column("commit_lsn"),
            event_serial_no: column("event_serial_no"),
            table: column("table"),
            schema_id: column("schema_id"),
            before: row("before"),
            after: row("after"),
            unavailable: column("unavailable"),
            value: column("value"),
        }
    }

    fn taken(&self, row: usize, writers: &'a HashMap<String, Bound>) -> Result<Taken<'a>, String> {
        let timestamp_ms = self.timestamps.as_primitive::<TimestampMicrosecondType>().value(row) / 1000;
        let value = match (bytes(self.value, row), text(self.op, row)) {
            (Some(value), _) => TakenValue::Bytes(Some(value)),
            (None, None) => TakenValue::Bytes(None),
            (None, Some(op)) => TakenValue::Event(Box::new(self.event(row, op, writers)?)),
        };
        Ok(Taken { offset: Offset(self.offsets[row]), timestamp_ms, key: bytes(self.key, row), value })
    }

    fn event(&self, row: usize, op: &str, writers: &'a HashMap<String, Bound>) -> Result<TakenEvent<'a>, String> {
        let at = || format!("offset {}", self.offsets[row]);
        let id = text(self.schema_id, row).unwrap_or_default();
        let by = writers.get(id).ok_or_else(|| {
            format!("{}: its properties have no schema {id:?} that fits the source's format and envelope", at())
        })?;
        let schema = match &by.connect {
            Some(part) => WriterSchema::Connect(part),
            None => WriterSchema::Registered(id.parse().map_err(|_| format!("{}: {id:?} is no schema id", at()))?),
        };
        let arc = |column| text(column, row).map(Arc::from);
        let origin = Origin {
            ts_ms: long(self.ts_ms, row).unwrap_or(0),
            snapshot: self.snapshot.is_valid(row) && self.snapshot.as_boolean().value(row),
            lsn: long(self.lsn, row),
            change_lsn: arc(self.change_lsn),
            commit_lsn: arc(self.commit_lsn),
            event_serial_no: long(self.event_serial_no, row),
            table: arc(self.table),
        };
        let kind = Kind::of(op).map_err(|b| format!("{}: {}", at(), b.reason))?;
        let before = values(self.before, &by.before, row, vec![]);
        let after = values(self.after, &by.after, row, texts(self.unavailable, row));
        Ok(TakenEvent { schema, kind, before, after, origin })
    }
}

fn values<'a>(
    rows: Option<&'a StructArray>,
    columns: &'a [BoundColumn],
    row: usize,
    unavailable: Vec<&'a str>,
) -> Option<Box<Values<'a, 'a>>> {
    let rows = rows.filter(|r| r.is_valid(row))?;
    Some(Box::new(move |field: usize| {
        let BoundColumn { name, form, place } = &columns[field];
        if unavailable.contains(&&**name) {
            return None;
        }
        Some(form.raw(rows.column(*place).as_ref(), row))
    }))
}

fn text(column: &dyn Array, row: usize) -> Option<&str> {
    column.is_valid(row).then(|| column.as_string::<i32>().value(row))
}

fn bytes(column: &dyn Array, row: usize) -> Option<&[u8]> {
    column.is_valid(row).then(|| column.as_binary::<i32>().value(row))
}

fn long(column: &dyn Array, row: usize) -> Option<i64> {
    column.is_valid(row).then(|| column.as_primitive::<Int64Type>().value(row))
}

fn texts(column: &dyn Array, row: usize) -> Vec<&str> {
    if column.is_null(row) {
        return Vec::new();
    }
    let list = column.as_list::<i32>();
    let range = list.value_offsets()[row] as usize..list.value_offsets()[row + 1] as usize;
    range.map(|at| list.values().as_string::<i32>().value(at)).collect()
}

impl RawTable {
    /// The schemas that the table remembers, and `others` for those that it does not.
    pub fn schemas(&self, others: Arc<dyn SchemaStore>) -> Arc<dyn SchemaStore> {
        let registered = self.registered().map(|(id, text)| (id, text.into())).collect();
        Arc::new(Remembered { registered, others })
    }

    /// The schemas of a registry that the table remembers, by their ids.
    pub fn registered(&self) -> impl Iterator<Item = (u32, &str)> {
        self.log.writers().filter_map(|(id, text)| Some((id.parse().ok()?, text)))
    }
}

/// The table's own schemas, before anybody else is asked.
struct Remembered {
    registered: HashMap<u32, Arc<str>>,
    others: Arc<dyn SchemaStore>,
}

impl SchemaStore for Remembered {
    fn get(&self, id: u32) -> BoxFuture<'_, Result<Option<Arc<str>>, crate::decode::Error>> {
        match self.registered.get(&id) {
            Some(text) => futures::future::ready(Ok(Some(text.clone()))).boxed(),
            None => self.others.get(id),
        }
    }
}
