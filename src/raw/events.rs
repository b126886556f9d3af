//! Events turn a source's messages into rows of its raw table: every message one row, whatever it holds.
//!
//! The invariant: no message is left out and none is lost. What a value says stands in the row's columns; where they do not say all of it
//! (garbage, a column that has changed its type, a value without room, JSON without a schema part), the row keeps the value's bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ahash::AHashMap;
use arrow::array::{ArrayRef, NullBufferBuilder, RecordBatch, StructArray};
use arrow::datatypes::{Field, FieldRef, Fields, Schema};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::Error;
use super::columns::{COMMIT, Columns, DAY};
use super::table::RawTable;
use super::writer::{Whole, Writer, WriterColumn};
use crate::config::{self, Format};
use crate::decode::cell::{Cell, Column};
use crate::decode::envelope::is_json_service;
use crate::decode::schema::Schema as WriterSchema;
use crate::decode::{SchemaStore, schema_and_payload, wire};
use crate::source::{Message, MessageBatch};
use crate::time::Position;

/// Schemas that a table remembers; rows of any further one keep their bytes.
const SCHEMAS_MAX: usize = 256;
/// Schema parts of JSON messages that are looked for before one is parsed anew.
const CONNECT_MAX: usize = 64;

/// Rows to be appended.
pub struct Rows {
    /// The table's columns without `day` and `commit`.
    pub batch: RecordBatch,
    /// The next offset of each partition after them.
    pub up_to: Position,
    /// Those of the table and those that came with these rows.
    pub(super) columns: Columns,
    /// Schemas that the table does not have yet, by id.
    pub(super) writers: BTreeMap<String, Arc<str>>,
}

pub struct Events {
    /// For messages.
    table: String,
    source: config::Source,
    schemas: Arc<dyn SchemaStore>,
    columns: Columns,
    /// Schemas that the table has, or will have, by id.
    remembered: BTreeMap<String, Arc<str>>,
    texts: AHashMap<u32, Arc<str>>,
    registered: AHashMap<u32, Arc<Bound>>,
    connect: Vec<(Value, Arc<Bound>)>,
    /// JSON without a schema part: the contract stands for the writer's schema. Bound by the first message that needs it.
    bare: Option<Arc<Bound>>,
    building: Building,
}

/// A writer, and where its columns are in the table.
struct Bound {
    /// Its schema's id, if the table remembers it.
    id: Option<String>,
    writer: Writer,
    before: Vec<Option<usize>>,
    after: Vec<Option<usize>>,
    /// Why the table cannot have one of its columns.
    flaw: Option<String>,
}

impl Events {
    /// The events of `source`, for its table.
    pub fn new(source: &config::Source, schemas: Arc<dyn SchemaStore>, table: &RawTable) -> Events {
        let columns = table.columns().clone();
        Events {
            source: source.clone(),
            schemas,
            table: table.location().into(),
            remembered: table.log.writers().map(|(id, text)| (id.to_string(), text.into())).collect(),
            texts: AHashMap::new(),
            registered: AHashMap::new(),
            connect: Vec::new(),
            bare: None,
            building: Building::new(&columns),
            columns,
        }
    }

    /// Adds every message of a batch. After a passing error, the registry's, nothing of the batch was added, and it may be given again.
    pub async fn push(&mut self, batch: &MessageBatch) -> Result<(), Error> {
        if self.source.format == Format::Avro {
            self.fetch(batch).await?;
        }
        for message in &batch.messages {
            self.message(batch, message);
        }
        if let Some(end) = batch.end() {
            self.building.up_to.advance(&batch.partition, end);
        }
        Ok(())
    }

    /// The rows so far; there are none afterwards.
    pub fn take(&mut self) -> Rows {
        let building = std::mem::replace(&mut self.building, Building::new(&self.columns));
        building.finish(self.columns.clone())
    }

    async fn fetch(&mut self, batch: &MessageBatch) -> Result<(), Error> {
        let parts = batch.messages.iter().flat_map(|m| [batch.key(m), batch.value(m)]);
        let ids: BTreeSet<u32> = parts.flatten().filter_map(|part| Some(wire::split(part).ok()?.0)).collect();
        for id in ids {
            if self.texts.contains_key(&id) {
                continue;
            }
            let Some(text) = self.schemas.get(id).await? else { continue };
            let known = self.remembered.get(&id.to_string());
            if known.is_some_and(|known| json(known) != json(&text)) {
                let reason = format!(
                    "the registry has another schema under the id {id} than the table has rows of: the registry was made anew; give raw another uri"
                );
                return Err(Error::lasting(&self.table, reason));
            }
            self.remember(id.to_string(), &text);
            self.texts.insert(id, text);
        }
        Ok(())
    }

    /// Whether the table has, or will have, this schema.
    fn remember(&mut self, id: String, text: &Arc<str>) -> bool {
        if self.remembered.contains_key(&id) {
            return true;
        }
        if self.remembered.len() >= SCHEMAS_MAX {
            return false;
        }
        self.building.writers.insert(id.clone(), text.clone());
        self.remembered.insert(id, text.clone());
        true
    }

    fn message(&mut self, batch: &MessageBatch, message: &Message) {
        let place = Place { batch, message };
        let Some(value) = batch.value(message) else { return self.building.push(&place, None, None, None) };
        let done = match self.source.format {
            Format::Avro => self.avro(&place, value),
            Format::Json => self.json(&place, value),
        };
        if let Err(error) = done {
            self.building.push(&place, None, Some(value), Some(&error));
        }
    }

    fn avro(&mut self, place: &Place<'_>, value: &[u8]) -> Result<(), String> {
        let (id, body) = wire::split(value)?;
        let bound = match self.registered.get(&id) {
            Some(bound) => bound.clone(),
            None => {
                let text = self.texts.get(&id).ok_or_else(|| format!("the registry has no Avro schema {id}"))?.clone();
                let schema = WriterSchema::from_avro(&text).map_err(|e| format!("schema {id}: {e}"))?;
                let writer = Writer::new(schema, self.source.envelope).map_err(|e| format!("schema {id}: {e}"))?;
                let known = self.remember(id.to_string(), &text).then(|| id.to_string());
                let bound = Arc::new(Bound::new(known, writer, &mut self.columns));
                self.building.widen(&self.columns);
                self.registered.insert(id, bound.clone());
                bound
            }
        };
        let whole = bound.writer.read_avro(body, &self.source.unavailable)?;
        self.building.event(place, &bound, whole.as_ref(), value);
        Ok(())
    }

    fn json(&mut self, place: &Place<'_>, value: &[u8]) -> Result<(), String> {
        let parsed: Value = serde_json::from_slice(value).map_err(|e| format!("this is not JSON: {e}"))?;
        let (part, payload) = schema_and_payload(&parsed);
        if payload.is_null() || (part.is_none() && is_json_service(self.source.envelope, payload)) {
            self.building.push(place, None, Some(value), None);
            return Ok(());
        }
        let bound = match part {
            Some(part) => self.connect(part)?,
            None => self.bare()?,
        };
        let whole = bound.writer.read_json(payload, &self.source.unavailable)?;
        self.building.event(place, &bound, whole.as_ref(), value);
        Ok(())
    }

    fn connect(&mut self, part: &Value) -> Result<Arc<Bound>, String> {
        if let Some((_, bound)) = self.connect.iter().rev().find(|(known, _)| known == part) {
            return Ok(bound.clone());
        }
        let schema = WriterSchema::from_connect(part).map_err(|e| e.to_string())?;
        let writer = Writer::new(schema, self.source.envelope)?;
        let text: Arc<str> = part.to_string().into();
        let id = Sha256::digest(text.as_bytes()).iter().take(8).map(|b| format!("{b:02x}")).collect::<String>();
        let known = self.remember(id.clone(), &text).then_some(id);
        let bound = Arc::new(Bound::new(known, writer, &mut self.columns));
        self.building.widen(&self.columns);
        if self.connect.len() == CONNECT_MAX {
            self.connect.remove(0);
        }
        self.connect.push((part.clone(), bound.clone()));
        Ok(bound)
    }

    fn bare(&mut self) -> Result<Arc<Bound>, String> {
        if let Some(bound) = &self.bare {
            return Ok(bound.clone());
        }
        let contract = WriterSchema::from_avro(&self.source.contract).map_err(|e| e.to_string())?;
        let writer = Writer::bare(contract, self.source.envelope)?;
        let bound = Arc::new(Bound::new(None, writer, &mut self.columns));
        self.building.widen(&self.columns);
        Ok(self.bare.insert(bound).clone())
    }
}

/// A schema's text may be written anew.
fn json(text: &str) -> Option<Value> {
    serde_json::from_str(text).ok()
}

impl Bound {
    fn new(id: Option<String>, writer: Writer, columns: &mut Columns) -> Bound {
        let mut flaw = None;
        let mut place = |column: &WriterColumn| match columns.place(&column.name, &column.form) {
            Ok(place) => Some(place),
            Err(why) => {
                flaw = Some(why);
                None
            }
        };
        let before = writer.before().iter().map(&mut place).collect();
        let after = writer.after().iter().map(&mut place).collect();
        Bound { id, writer, before, after, flaw }
    }
}

/// Where a row comes from.
struct Place<'a> {
    batch: &'a MessageBatch,
    message: &'a Message,
}

/// Rows being built.
struct Building {
    rows: usize,
    up_to: Position,
    writers: BTreeMap<String, Arc<str>>,
    /// The fixed columns, without `day` and `commit`.
    fixed: Vec<(FieldRef, Column)>,
    before: RowColumn,
    after: RowColumn,
}

/// The columns of a struct.
#[derive(Default)]
struct RowColumn {
    columns: Vec<Column>,
    nulls: Option<NullBufferBuilder>,
}

impl Building {
    fn new(columns: &Columns) -> Building {
        let fixed = Columns::default().schema();
        let fixed = fixed.fields().iter().filter(|f| f.name() != DAY && f.name() != COMMIT);
        let mut building = Building {
            rows: 0,
            up_to: Position::default(),
            writers: BTreeMap::new(),
            fixed: fixed.map(|f| (f.clone(), Column::with_capacity(f.data_type(), 0))).collect(),
            before: RowColumn::default(),
            after: RowColumn::default(),
        };
        building.widen(columns);
        building
    }

    /// Gives the rows so far the columns that have come since.
    fn widen(&mut self, columns: &Columns) {
        self.before.widen(columns, self.rows);
        self.after.widen(columns, self.rows);
    }

    fn event(&mut self, place: &Place<'_>, by: &Bound, whole: Option<&Whole<'_>>, value: &[u8]) {
        let Some(whole) = whole else { return self.push(place, None, Some(value), None) };
        let flaw = whole.flaw.as_ref().or(by.flaw.as_ref());
        // Without its writer's schema a row cannot be read back from its columns.
        let value = (flaw.is_some() || by.id.is_none()).then_some(value);
        self.push(place, Some((whole, by)), value, flaw.map(String::as_str));
    }

    fn push(
        &mut self,
        place: &Place<'_>,
        event: Option<(&Whole<'_>, &Bound)>,
        value: Option<&[u8]>,
        error: Option<&str>,
    ) {
        let Place { batch, message } = place;
        let (key, whole) = (batch.key(message), event.map(|(whole, _)| whole));
        let origin = whole.map(|w| &w.origin);
        let unavailable = event.map_or(Cell::Null, |(whole, by)| {
            Cell::List(whole.unavailable.iter().map(|n| text(Some(&by.writer.after()[*n].name))).collect())
        });
        let cells = [
            text(Some(&batch.partition.topic)),
            Cell::Int(batch.partition.number.into()),
            Cell::Int(message.offset.0),
            Cell::Int(message.timestamp_ms.saturating_mul(1000)),
            bytes(key),
            text(whole.map(|w| w.kind.code())),
            long(origin.map(|o| o.ts_ms)),
            origin.map_or(Cell::Null, |o| Cell::Bool(o.snapshot)),
            long(origin.and_then(|o| o.lsn)),
            text(origin.and_then(|o| o.change_lsn.as_deref())),
            text(origin.and_then(|o| o.commit_lsn.as_deref())),
            long(origin.and_then(|o| o.event_serial_no)),
            text(origin.and_then(|o| o.table.as_deref())),
            text(event.and_then(|(_, by)| by.id.as_deref())),
            unavailable,
            bytes(value),
            text(error),
        ];
        for ((_, column), cell) in self.fixed.iter_mut().zip(&cells) {
            column.append(cell);
        }
        self.before.push(event.and_then(|(whole, by)| Some((whole.before.as_deref()?, by.before.as_slice()))));
        self.after.push(event.and_then(|(whole, by)| Some((whole.after.as_deref()?, by.after.as_slice()))));
        self.rows += 1;
    }

    fn finish(mut self, columns: Columns) -> Rows {
        let mut arrays: Vec<(FieldRef, ArrayRef)> =
            self.fixed.iter_mut().map(|(field, column)| (field.clone(), column.finish())).collect();
        if columns.len() > 0 {
            for (name, column) in [("before", self.before), ("after", self.after)] {
                let array = column.finish(&columns);
                let field = Field::new(name, array.data_type().clone(), true);
                arrays.push((Arc::new(field), array));
            }
        }
        let (fields, arrays): (Vec<FieldRef>, Vec<ArrayRef>) = arrays.into_iter().unzip();
        let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays);
        let batch = batch.expect("every column has got a cell for every row");
        Rows { batch, up_to: self.up_to, columns, writers: self.writers }
    }
}

fn text(value: Option<&str>) -> Cell<'_> {
    value.map_or(Cell::Null, |v| Cell::Str(v.into()))
}

fn bytes(value: Option<&[u8]>) -> Cell<'_> {
    value.map_or(Cell::Null, |v| Cell::Bytes(v.into()))
}

fn long(value: Option<i64>) -> Cell<'static> {
    value.map_or(Cell::Null, Cell::Int)
}

impl RowColumn {
    fn widen(&mut self, columns: &Columns, rows: usize) {
        for field in &columns.fields()[self.columns.len()..] {
            let mut column = Column::with_capacity(field.data_type(), 0);
            (0..rows).for_each(|_| column.append(&Cell::Null));
            self.columns.push(column);
        }
    }

    /// `row` has a writer's cells, and for each its place.
    fn push(&mut self, row: Option<(&[Cell<'_>], &[Option<usize>])>) {
        self.nulls.get_or_insert_with(|| NullBufferBuilder::new(0)).append(row.is_some());
        let (cells, places) = row.unwrap_or_default();
        let mut rest = vec![true; self.columns.len()];
        for (cell, place) in cells.iter().zip(places).filter_map(|(cell, place)| Some((cell, (*place)?))) {
            self.columns[place].append(cell);
            rest[place] = false;
        }
        for (column, _) in self.columns.iter_mut().zip(rest).filter(|(_, rest)| *rest) {
            column.append(&Cell::Null);
        }
    }

    fn finish(mut self, columns: &Columns) -> ArrayRef {
        let arrays = self.columns.iter_mut().map(Column::finish).collect();
        let nulls = self.nulls.as_mut().and_then(NullBufferBuilder::finish);
        Arc::new(StructArray::new(Fields::from(columns.fields().to_vec()), arrays, nulls))
    }
}
