//! The decoder of one source: a batch of messages in, changes and rejects out.
//!
//! The invariant: the same batch may be given again after an error, and gives the same answer; nothing of a batch is kept between calls
//! but plans, which depend on schemas alone.

use std::sync::{Arc, OnceLock};

use ahash::AHashMap;
use arrow_row::RowConverter;

use super::avro::Cursor;
use super::cell::{Cell, Column, convert};
use super::envelope::{Event, Kind, ValuePlan, is_json_service};
use super::plan::{Bad, RowPlan, bad, writer_type};
use super::registry::{Error, SchemaStore};
use super::row::{ContractError, RowType};
use super::schema::{NodeId, Schema};
use super::{Change, Counts, Decoded, Op, Origin, Reject, Rule, json, wire};
use crate::config::{self, Format};
use crate::source::MessageBatch;
use crate::time::Offset;

/// Schema parts of JSON messages that are remembered; a table has a few over its life.
const JSON_PLANS_MAX: usize = 64;

pub struct Decoder {
    pub(super) index: usize,
    pub(super) source: config::Source,
    pub(super) row_type: Arc<RowType>,
    key_converter: RowConverter,
    schemas: Arc<dyn SchemaStore>,
    plans: AHashMap<u32, Plans>,
    /// The plans that were asked for last; nearly every message asks for them again.
    last_value: Option<(u32, Made<ValuePlan>)>,
    last_key: Option<(u32, Made<KeyPlan>)>,
    json_values: Vec<(serde_json::Value, Made<ValuePlan>)>,
    json_keys: Vec<(serde_json::Value, Made<KeyPlan>)>,
    bare: Made<ValuePlan>,
    bare_key: Made<KeyPlan>,
}

/// The plans of one schema id: of a value and of a key, whichever it is asked for.
#[derive(Default)]
struct Plans {
    schema: Option<Arc<str>>,
    value: Option<Made<ValuePlan>>,
    key: Option<Made<KeyPlan>>,
}

pub(super) type Made<P> = Arc<Result<(Schema, P), Bad>>;

/// How a key becomes the key's columns.
enum KeyPlan {
    Record(RowPlan),
    /// A key of one column may come bare.
    Single(NodeId),
    /// The message's key is another one than the configured; the row has it.
    Foreign,
}

impl KeyPlan {
    fn new(schema: &Schema, of: &RowType) -> Result<KeyPlan, Bad> {
        match schema.record(schema.root) {
            Some(record) => Ok(RowPlan::key(schema, record, of)?.map_or(KeyPlan::Foreign, KeyPlan::Record)),
            None if of.key_columns().len() == 1 => Ok(KeyPlan::Single(schema.root)),
            None => Ok(KeyPlan::Foreign),
        }
    }
}

fn made<P>(schema: Result<Schema, Bad>, plan: impl FnOnce(&Schema) -> Result<P, Bad>) -> Made<P> {
    Arc::new(schema.and_then(|schema| {
        let plan = plan(&schema)?;
        Ok((schema, plan))
    }))
}

/// What the batch has come to so far.
pub(super) struct Assembly {
    rows: Vec<Column>,
    row_count: usize,
    keys: Vec<Column>,
    changes: Vec<Pending>,
    counts: Counts,
}

struct Pending {
    offset: Offset,
    has_key: bool,
    op: PendingOp,
    origin: Origin,
    commit_ms: i64,
}

enum PendingOp {
    Upsert { row: usize, unavailable: Option<Box<[u16]>> },
    Delete,
    Truncate,
}

impl Decoder {
    pub fn new(
        index: usize,
        source: &config::Source,
        row_type: Arc<RowType>,
        schemas: Arc<dyn SchemaStore>,
    ) -> Result<Decoder, ContractError> {
        let key_converter = row_type.key_converter().map_err(|e| ContractError(format!("the key: {e}")))?;
        let contract = || Schema::from_avro(&source.contract).map_err(|e| bad(Rule::Contract, e.to_string()));
        let bare = made(contract(), |schema| {
            let record =
                schema.record(schema.root).ok_or_else(|| bad(Rule::Contract, "the contract is not a record"))?;
            let row = RowPlan::row(schema, record, &row_type)?;
            Ok(match source.envelope {
                config::Envelope::Flattened => ValuePlan::Flat { row, record: schema.root },
                config::Envelope::Debezium => {
                    let before = RowPlan::key(schema, record, &row_type)?;
                    ValuePlan::Wrapped { fields: Vec::new(), source: Vec::new(), row, before, table: OnceLock::new() }
                }
            })
        });
        let bare_key = made(contract(), |schema| KeyPlan::new(schema, &row_type));
        Ok(Decoder {
            index,
            source: source.clone(),
            row_type,
            key_converter,
            schemas,
            plans: AHashMap::new(),
            last_value: None,
            last_key: None,
            json_values: Vec::new(),
            json_keys: Vec::new(),
            bare,
            bare_key,
        })
    }

    /// Decodes a batch. An error is infrastructure's; the same batch may be given again.
    pub async fn decode(&mut self, batch: &MessageBatch) -> Result<Decoded, Error> {
        if self.source.format == Format::Avro {
            self.fetch_schemas(batch).await?;
        }
        let mut assembly = Assembly::new(&self.row_type, batch.messages.len());
        let mut rejects = Vec::new();
        for message in &batch.messages {
            let (key, value) = (batch.key(message), batch.value(message));
            if let Err(bad) = self.message(message.offset, key, value, &mut assembly) {
                let schema_id = value.and_then(|v| wire::split(v).ok()).map(|(id, _)| id);
                rejects.push(Reject {
                    partition: batch.partition.clone(),
                    offset: message.offset,
                    timestamp_ms: message.timestamp_ms,
                    rule: bad.rule,
                    reason: bad.reason,
                    schema_id: schema_id.filter(|_| self.source.format == Format::Avro),
                    key: key.map(Into::into),
                    value: value.map(Into::into),
                });
            }
        }
        let end = batch.end().unwrap_or_default();
        let (changes, counts) = self.assemble(assembly);
        Ok(Decoded { source: self.index, partition: batch.partition.clone(), end, changes, rejects, counts })
    }

    async fn fetch_schemas(&mut self, batch: &MessageBatch) -> Result<(), Error> {
        let parts = batch.messages.iter().flat_map(|m| [batch.key(m), batch.value(m)]);
        let mut ids: Vec<u32> = Vec::new();
        for (id, _) in parts.flatten().filter_map(|part| wire::split(part).ok()) {
            // A batch has few ids.
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        self.fetch(&ids).await
    }

    /// Asks for schemas that are not known. One that nobody knows is not remembered: it may be registered later.
    pub(super) async fn fetch(&mut self, ids: &[u32]) -> Result<(), Error> {
        for id in ids {
            if self.plans.get(id).is_none_or(|p| p.schema.is_none())
                && let Some(text) = self.schemas.get(*id).await?
            {
                self.plans.entry(*id).or_default().schema = Some(text);
            }
        }
        Ok(())
    }

    /// Adds what one message says, of either format.
    pub(super) fn message(
        &mut self,
        offset: Offset,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        to: &mut Assembly,
    ) -> Result<(), Bad> {
        match self.source.format {
            Format::Avro => self.avro(offset, key, value, to),
            Format::Json => self.json(offset, key, value, to),
        }
    }

    pub(super) fn value_plan(&mut self, id: u32) -> Result<Made<ValuePlan>, Bad> {
        if let Some((_, plan)) = self.last_value.as_ref().filter(|(last, _)| *last == id) {
            return Ok(plan.clone());
        }
        let plans = self.plans.get_mut(&id).ok_or_else(|| unknown_schema(id))?;
        let Some(text) = &plans.schema else { return Err(unknown_schema(id)) };
        let (envelope, row_type) = (self.source.envelope, &self.row_type);
        let plan = plans.value.get_or_insert_with(|| {
            made(parse(id, text), |schema| {
                ValuePlan::new(schema, envelope, row_type)
                    .map_err(|b| bad(b.rule, format!("schema {id}: {}", b.reason)))
            })
        });
        let plan = plan.clone();
        self.last_value = Some((id, plan.clone()));
        Ok(plan)
    }

    fn key_plan(&mut self, id: u32) -> Result<Made<KeyPlan>, Bad> {
        if let Some((_, plan)) = self.last_key.as_ref().filter(|(last, _)| *last == id) {
            return Ok(plan.clone());
        }
        let plans = self.plans.get_mut(&id).ok_or_else(|| unknown_schema(id))?;
        let Some(text) = &plans.schema else { return Err(unknown_schema(id)) };
        let row_type = &self.row_type;
        let plan = plans.key.get_or_insert_with(|| {
            made(parse(id, text), |schema| {
                KeyPlan::new(schema, row_type).map_err(|b| bad(b.rule, format!("the key's schema {id}: {}", b.reason)))
            })
        });
        let plan = plan.clone();
        self.last_key = Some((id, plan.clone()));
        Ok(plan)
    }

    fn avro(&mut self, offset: Offset, key: Option<&[u8]>, value: Option<&[u8]>, to: &mut Assembly) -> Result<(), Bad> {
        let event = match value {
            None => None,
            Some(value) => {
                let (id, body) = wire::split(value).map_err(|e| bad(Rule::Wire, e))?;
                let plan = self.value_plan(id)?;
                let (schema, plan) = plan.as_ref().as_ref().map_err(Clone::clone)?;
                match plan.read_avro(schema, body, &self.row_type, &self.source.unavailable)? {
                    Some(event) => Some(event),
                    None => {
                        to.counts.skipped += 1;
                        return Ok(());
                    }
                }
            }
        };
        let key = self.avro_key(key)?;
        to.add(offset, key, event, &self.row_type)
    }

    /// The key's columns, if the message's key has them.
    pub(super) fn avro_key<'a>(&mut self, key: Option<&'a [u8]>) -> Result<Option<Vec<Cell<'a>>>, Bad> {
        let Some(key) = key else { return Ok(None) };
        let (id, body) = wire::split(key).map_err(|e| bad(Rule::Wire, format!("the key: {e}")))?;
        let plan = self.key_plan(id)?;
        let (schema, plan) = plan.as_ref().as_ref().map_err(Clone::clone)?;
        read_key_avro(plan, schema, body, &self.row_type).map_err(in_key)
    }

    fn json(&mut self, offset: Offset, key: Option<&[u8]>, value: Option<&[u8]>, to: &mut Assembly) -> Result<(), Bad> {
        let value = value.map(parse_json).transpose()?;
        let key = key.map(parse_json).transpose().map_err(in_key)?;
        let row_type = self.row_type.clone();
        let value_plan;
        let event = match &value {
            None | Some(serde_json::Value::Null) => None,
            Some(value) => {
                let (part, payload) = schema_and_payload(value);
                if part.is_none() && is_json_service(self.source.envelope, payload) {
                    to.counts.skipped += 1;
                    return Ok(());
                }
                if payload.is_null() {
                    None
                } else {
                    value_plan = match part {
                        None => self.bare.clone(),
                        Some(part) => self.connect_plan(part),
                    };
                    let (schema, plan) = value_plan.as_ref().as_ref().map_err(Clone::clone)?;
                    match plan.read_json(schema, payload, &row_type, &self.source.unavailable)? {
                        Some(event) => Some(event),
                        None => {
                            to.counts.skipped += 1;
                            return Ok(());
                        }
                    }
                }
            }
        };
        let key = self.json_key(key.as_ref())?;
        to.add(offset, key, event, &row_type)
    }

    pub(super) fn json_key<'a>(&mut self, key: Option<&'a serde_json::Value>) -> Result<Option<Vec<Cell<'a>>>, Bad> {
        let Some(key) = key else { return Ok(None) };
        let (part, payload) = schema_and_payload(key);
        let row_type = self.row_type.clone();
        let plan = match part {
            None => self.bare_key.clone(),
            Some(part) => remembered(&mut self.json_keys, part, |schema| KeyPlan::new(schema, &row_type)),
        };
        let (schema, plan) = plan.as_ref().as_ref().map_err(Clone::clone)?;
        read_key_json(plan, schema, payload, &row_type).map_err(in_key)
    }

    /// The plan of values with this schema part.
    pub(super) fn connect_plan(&mut self, part: &serde_json::Value) -> Made<ValuePlan> {
        let (envelope, row_type) = (self.source.envelope, &self.row_type);
        remembered(&mut self.json_values, part, |schema| ValuePlan::new(schema, envelope, row_type))
    }

    pub(super) fn assemble(&self, assembly: Assembly) -> (Vec<Change>, Counts) {
        let Assembly { mut rows, mut keys, changes, counts, .. } = assembly;
        let columns: Vec<_> = rows.iter_mut().map(Column::finish).collect();
        let rows =
            self.row_type.converter().convert_columns(&columns).expect("the columns are of the converter's types");
        let columns: Vec<_> = keys.iter_mut().map(Column::finish).collect();
        let keys = self.key_converter.convert_columns(&columns).expect("the columns are of the converter's types");
        let mut next_key = 0;
        let change = |pending: Pending| {
            let key: Box<[u8]> = match pending.has_key {
                true => {
                    next_key += 1;
                    keys.row(next_key - 1).data().into()
                }
                false => Box::default(),
            };
            let op = match pending.op {
                PendingOp::Upsert { row, unavailable } => Op::Upsert { row: rows.row(row).data().into(), unavailable },
                PendingOp::Delete => Op::Delete,
                PendingOp::Truncate => Op::Truncate,
            };
            Change { offset: pending.offset, key, op, commit_ms: pending.commit_ms, origin: pending.origin }
        };
        (changes.into_iter().map(change).collect(), counts)
    }
}

impl Assembly {
    /// Room for `capacity` messages.
    pub(super) fn new(of: &RowType, capacity: usize) -> Assembly {
        let column = |index: usize| Column::with_capacity(&of.columns[index].ty.arrow, capacity);
        Assembly {
            rows: (0..of.columns.len()).map(column).collect(),
            row_count: 0,
            keys: of.key_columns().iter().copied().map(column).collect(),
            changes: Vec::with_capacity(capacity),
            counts: Counts::default(),
        }
    }

    /// Adds what a message says. Everything that can fail has to have happened before the first column grows.
    pub(super) fn add(
        &mut self,
        offset: Offset,
        key: Option<Vec<Cell<'_>>>,
        event: Option<Event<'_>>,
        of: &RowType,
    ) -> Result<(), Bad> {
        let Some(Event { kind, row, before_key, origin }) = event else {
            let Some(key) = key else {
                return Err(bad(Rule::Envelope, "a tombstone without a key says nothing about any row"));
            };
            self.counts.tombstone += 1;
            self.push(offset, Some(&key), PendingOp::Delete, Origin::default());
            return Ok(());
        };
        match kind {
            Kind::Truncate => {
                self.counts.truncate += 1;
                self.push(offset, None, PendingOp::Truncate, origin);
            }
            Kind::Delete => {
                let Some(key) = key.or(before_key) else {
                    return Err(bad(Rule::Envelope, "a delete without a key says nothing about any row"));
                };
                self.counts.delete += 1;
                self.push(offset, Some(&key), PendingOp::Delete, origin);
            }
            Kind::Create | Kind::Update | Kind::Snapshot => {
                let Some(row) = row else {
                    return Err(bad(Rule::Envelope, "after is null, though the operation writes a row"));
                };
                if let Some(column) = of.key_columns().iter().find(|k| row.unavailable.contains(&(**k as u16))) {
                    return Err(bad(Rule::Value, format!("the key column {} was not sent", of.columns[*column].name)));
                }
                let key = key.unwrap_or_else(|| of.key_columns().iter().map(|k| row.cells[*k].clone()).collect());
                match kind {
                    Kind::Create => self.counts.create += 1,
                    Kind::Update => self.counts.update += 1,
                    _ => self.counts.snapshot += 1,
                }
                if let Some(old) = before_key.filter(|old| kind == Kind::Update && *old != key) {
                    self.push(offset, Some(&old), PendingOp::Delete, origin.clone());
                }
                for (column, cell) in self.rows.iter_mut().zip(&row.cells) {
                    column.append(cell);
                }
                let unavailable = (!row.unavailable.is_empty()).then(|| row.unavailable.into_boxed_slice());
                self.row_count += 1;
                self.push(offset, Some(&key), PendingOp::Upsert { row: self.row_count - 1, unavailable }, origin);
            }
        }
        Ok(())
    }

    fn push(&mut self, offset: Offset, key: Option<&[Cell<'_>]>, op: PendingOp, origin: Origin) {
        for (column, cell) in self.keys.iter_mut().zip(key.unwrap_or_default()) {
            column.append(cell);
        }
        let commit_ms = if origin.snapshot { 0 } else { origin.ts_ms };
        self.changes.push(Pending { offset, has_key: key.is_some(), op, origin, commit_ms });
    }
}

fn in_key(bad: Bad) -> Bad {
    Bad { reason: format!("the key: {}", bad.reason), ..bad }
}

pub(super) fn parse_json(part: &[u8]) -> Result<serde_json::Value, Bad> {
    serde_json::from_slice(part).map_err(|e| bad(Rule::Wire, format!("this is not JSON: {e}")))
}

fn unknown_schema(id: u32) -> Bad {
    bad(Rule::UnknownSchema, format!("the registry has no Avro schema {id}"))
}

fn parse(id: u32, text: &str) -> Result<Schema, Bad> {
    Schema::from_avro(text).map_err(|e| bad(Rule::Type, format!("schema {id}: {e}")))
}

fn read_key_avro<'a>(
    plan: &KeyPlan,
    schema: &Schema,
    body: &'a [u8],
    of: &RowType,
) -> Result<Option<Vec<Cell<'a>>>, Bad> {
    let wire = |e: String| bad(Rule::Body, e);
    let mut cursor = Cursor::new(body);
    let cells = match plan {
        KeyPlan::Foreign => {
            cursor.skip(schema, schema.root).map_err(wire)?;
            None
        }
        KeyPlan::Single(node) => {
            let column = &of.columns[of.key_columns()[0]];
            let writer = writer_type(schema, *node, column)?;
            let raw = cursor.read(schema, *node).map_err(wire)?;
            Some(vec![convert(raw, &writer, &column.ty).map_err(|e| bad(Rule::Value, e))?])
        }
        KeyPlan::Record(plan) => {
            cursor.branch(schema, schema.root).map_err(wire)?;
            let row = plan.read_avro(schema, &mut cursor, of, "")?;
            match row.misfit {
                Some(misfit) => return Err(misfit),
                None => Some(row.cells),
            }
        }
    };
    cursor.finish().map_err(wire)?;
    Ok(cells)
}

fn read_key_json<'a>(
    plan: &KeyPlan,
    schema: &Schema,
    payload: &'a serde_json::Value,
    of: &RowType,
) -> Result<Option<Vec<Cell<'a>>>, Bad> {
    match (plan, payload) {
        (KeyPlan::Record(plan), serde_json::Value::Object(object)) => {
            // Without a schema part the plan is the contract's, and the object may be another key than the configured one.
            if of.key_columns().iter().any(|k| !object.contains_key(&*of.columns[*k].name)) {
                return Ok(None);
            }
            let row = plan.read_json(schema, object, of, "");
            row.misfit.map_or(Ok(Some(row.cells)), Err)
        }
        (KeyPlan::Single(node), payload) => bare_key_json(*node, schema, payload, of).map(Some),
        // Without a schema part the contract says what a bare value is.
        (KeyPlan::Record(plan), payload) if !payload.is_array() && !payload.is_null() => match plan.single() {
            Some(node) => bare_key_json(node, schema, payload, of).map(Some),
            None => Ok(None),
        },
        _ => Ok(None),
    }
}

/// A key of one column that comes without a record around it.
fn bare_key_json<'a>(
    node: NodeId,
    schema: &Schema,
    payload: &'a serde_json::Value,
    of: &RowType,
) -> Result<Vec<Cell<'a>>, Bad> {
    let column = &of.columns[of.key_columns()[0]];
    let writer = writer_type(schema, node, column)?;
    let raw = json::read(schema, node, payload).map_err(|e| bad(Rule::Value, e))?;
    Ok(vec![convert(raw, &writer, &column.ty).map_err(|e| bad(Rule::Value, e))?])
}

/// Splits Connect's `{"schema", "payload"}`; what is not that is its own payload.
pub(crate) fn schema_and_payload(value: &serde_json::Value) -> (Option<&serde_json::Value>, &serde_json::Value) {
    match value {
        serde_json::Value::Object(object) if object.len() == 2 => match (object.get("schema"), object.get("payload")) {
            (Some(serde_json::Value::Null), Some(payload)) => (None, payload),
            (Some(schema), Some(payload)) => (Some(schema), payload),
            _ => (None, value),
        },
        _ => (None, value),
    }
}

fn remembered<P>(
    known: &mut Vec<(serde_json::Value, Made<P>)>,
    part: &serde_json::Value,
    plan: impl FnOnce(&Schema) -> Result<P, Bad>,
) -> Made<P> {
    if let Some((_, made)) = known.iter().rev().find(|(k, _)| k == part) {
        return made.clone();
    }
    let schema = Schema::from_connect(part).map_err(|e| bad(Rule::Type, e.to_string()));
    let new = made(schema, plan);
    if known.len() == JSON_PLANS_MAX {
        known.remove(0);
    }
    known.push((part.clone(), new.clone()));
    new
}
