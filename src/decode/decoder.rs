//! The decoder of one source: a batch of messages in, changes and rejects out.
//!
//! The invariant: the same batch may be given again after an error, and gives the same answer; nothing of a batch is kept between calls
//! but plans, which depend on schemas alone.

use std::sync::{Arc, OnceLock};

use ahash::AHashMap;
use arrow_row::RowConverter;

use super::assembly::Assembly;
use super::avro::Cursor;
use super::cell::{Cell, convert};
use super::envelope::{ValuePlan, is_json_service};
use super::plan::{Bad, RowPlan, bad, writer_type};
use super::registry::{Error, SchemaStore};
use super::row::{ContractError, RowType};
use super::schema::{NodeId, Schema};
use super::{Change, Counts, Decoded, Reject, Rule, json, wire};
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
}

impl KeyPlan {
    fn new(schema: &Schema, of: &RowType) -> Result<KeyPlan, Bad> {
        match schema.record(schema.root) {
            Some(record) => RowPlan::key(schema, record, of)?.map(KeyPlan::Record).ok_or_else(|| foreign(of)),
            None if of.key_columns().len() == 1 => Ok(KeyPlan::Single(schema.root)),
            None => Err(foreign(of)),
        }
    }
}

fn made<P>(schema: Result<Schema, Bad>, plan: impl FnOnce(&Schema) -> Result<P, Bad>) -> Made<P> {
    Arc::new(schema.and_then(|schema| {
        let plan = plan(&schema)?;
        Ok((schema, plan))
    }))
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
                    value_in_raw: false,
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
        self.fetch(&ids).await?;
        self.schemas.confirm(&ids).await
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
                KeyPlan::new(schema, row_type).map_err(|b| bad(b.rule, format!("the key (schema {id}): {}", b.reason)))
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
        read_key_avro(plan, schema, body, &self.row_type).map(Some).map_err(in_key)
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
        if payload.is_null() {
            return Ok(None);
        }
        let row_type = self.row_type.clone();
        let plan = match part {
            None => self.bare_key.clone(),
            Some(part) => remembered(&mut self.json_keys, part, |schema| KeyPlan::new(schema, &row_type)),
        };
        let (schema, plan) = plan.as_ref().as_ref().map_err(|bad| in_key(bad.clone()))?;
        read_key_json(plan, schema, payload, &row_type).map(Some).map_err(in_key)
    }

    /// The plan of values with this schema part.
    pub(super) fn connect_plan(&mut self, part: &serde_json::Value) -> Made<ValuePlan> {
        let (envelope, row_type) = (self.source.envelope, &self.row_type);
        remembered(&mut self.json_values, part, |schema| ValuePlan::new(schema, envelope, row_type))
    }

    pub(super) fn assemble(&self, assembly: Assembly) -> (Vec<Change>, Counts) {
        assembly.finish(&self.row_type, &self.key_converter)
    }
}

/// By another key than its own a deleted row could not be told: before it, a database may have sent no more than that key, with made-up values
/// beside it. And Kafka keeps the order of the events of one key, not of one row.
fn foreign(of: &RowType) -> Bad {
    let names: Vec<&str> = of.key_columns().iter().map(|k| &*of.columns[*k].name).collect();
    let names = names.join(", ");
    let reason = format!(
        "it has not the columns of source.key ({names}); name the table's own key there, or let the connector write these (message.key.columns)"
    );
    bad(Rule::Contract, reason)
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

fn read_key_avro<'a>(plan: &KeyPlan, schema: &Schema, body: &'a [u8], of: &RowType) -> Result<Vec<Cell<'a>>, Bad> {
    let wire = |e: String| bad(Rule::Body, e);
    let mut cursor = Cursor::new(body);
    let cells = match plan {
        KeyPlan::Single(node) => {
            let column = &of.columns[of.key_columns()[0]];
            let writer = writer_type(schema, *node, column)?;
            let raw = cursor.read(schema, *node).map_err(wire)?;
            vec![convert(raw, &writer, &column.ty).map_err(|e| bad(Rule::Value, e))?]
        }
        KeyPlan::Record(plan) => {
            cursor.branch(schema, schema.root).map_err(wire)?;
            let row = plan.read_avro(schema, &mut cursor, of, "")?;
            match row.misfit {
                Some(misfit) => return Err(misfit),
                None => row.cells,
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
) -> Result<Vec<Cell<'a>>, Bad> {
    match (plan, payload) {
        (KeyPlan::Record(plan), serde_json::Value::Object(object)) => {
            // Without a schema part the plan is the contract's, and the object may be another key than the configured one.
            if of.key_columns().iter().any(|k| !object.contains_key(&*of.columns[*k].name)) {
                return Err(foreign(of));
            }
            let row = plan.read_json(schema, object, of, "");
            row.misfit.map_or(Ok(row.cells), Err)
        }
        (KeyPlan::Single(node), payload) => bare_key_json(*node, schema, payload, of),
        // Without a schema part the contract says what a bare value is.
        (KeyPlan::Record(plan), payload) => match plan.single().filter(|_| !payload.is_array()) {
            Some(node) => bare_key_json(node, schema, payload, of),
            None => Err(foreign(of)),
        },
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
