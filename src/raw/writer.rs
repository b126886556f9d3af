//! A writer is one schema that values were written by, and how such a value is taken apart whole: every column that it has, whatever
//! contracts and models ask for.
//!
//! The invariant: what a value says either stands in the [`Whole`] that comes of it, or its flaw says what does not; then the message has to
//! keep its bytes.

use std::sync::OnceLock;

use serde_json::{Map, Value};

use super::value::Form;
use crate::config::Envelope;
use crate::decode::Origin;
use crate::decode::avro::Cursor;
use crate::decode::cell::Cell;
use crate::decode::envelope::{self, Added, Kind, OriginField, Part, is_service_record, keep};
use crate::decode::json;
use crate::decode::schema::{NodeId, Record, Schema};
use crate::decode::unavailable::is_placeholder;

pub(super) struct Writer {
    schema: Schema,
    shape: Shape,
}

enum Shape {
    /// Heartbeats, transaction markers, schema changes: nothing of a table.
    Service,
    Wrapped {
        parts: Vec<(NodeId, Part)>,
        source: Vec<(NodeId, Option<OriginField>)>,
        before: Vec<WriterColumn>,
        after: Vec<WriterColumn>,
    },
    Flat(Vec<WriterColumn>),
}

/// A column as a writer has it.
pub(super) struct WriterColumn {
    pub name: Box<str>,
    pub form: Form,
    node: NodeId,
}

/// What one value says.
pub(super) struct Whole<'a> {
    pub kind: Kind,
    /// In the order of [`Writer::before`].
    pub before: Option<Vec<Cell<'a>>>,
    /// In the order of [`Writer::after`].
    pub after: Option<Vec<Cell<'a>>>,
    /// Columns of `after` whose value the database did not send.
    pub unavailable: Vec<usize>,
    pub origin: Origin,
    /// What the value says beyond this.
    pub flaw: Option<String>,
}

impl Writer {
    pub fn new(schema: Schema, envelope: Envelope) -> Result<Writer, String> {
        let Some(root) = schema.record(schema.root) else { return Err("the value is not a record".into()) };
        let shape = if is_service_record(root) {
            Shape::Service
        } else if envelope == Envelope::Flattened {
            Shape::Flat(columns(&schema, root))
        } else {
            let part = |name: &str| root.field(name).and_then(|(_, f)| schema.record(f.node));
            let (Some(after), Some(_)) = (part("after"), root.field("op")) else {
                return Err(format!("the record {} has no after and op", root.full_name));
            };
            let of = |name: &str| match name {
                "before" if part("before").is_some() => Part::Before,
                "after" => Part::After,
                "source" if part("source").is_some() => Part::Source,
                "op" => Part::Op,
                _ => Part::Other,
            };
            Shape::Wrapped {
                parts: root.fields.iter().map(|f| (f.node, of(&f.name))).collect(),
                source: part("source")
                    .map(|s| s.fields.iter().map(|f| (f.node, OriginField::of(&f.name))).collect())
                    .unwrap_or_default(),
                before: part("before").map(|b| columns(&schema, b)).unwrap_or_default(),
                after: columns(&schema, after),
            }
        };
        Ok(Writer { schema, shape })
    }

    /// The writer of JSON without a schema part: what a contract says of the row.
    pub fn bare(contract: Schema, envelope: Envelope) -> Result<Writer, String> {
        let Some(row) = contract.record(contract.root) else { return Err("the contract is not a record".into()) };
        let shape = match envelope {
            Envelope::Flattened => Shape::Flat(columns(&contract, row)),
            Envelope::Debezium => Shape::Wrapped {
                parts: Vec::new(),
                source: Vec::new(),
                before: columns(&contract, row),
                after: columns(&contract, row),
            },
        };
        Ok(Writer { schema: contract, shape })
    }

    pub fn before(&self) -> &[WriterColumn] {
        match &self.shape {
            Shape::Wrapped { before, .. } => before,
            Shape::Service | Shape::Flat(_) => &[],
        }
    }

    pub fn after(&self) -> &[WriterColumn] {
        match &self.shape {
            Shape::Wrapped { after, .. } | Shape::Flat(after) => after,
            Shape::Service => &[],
        }
    }

    /// Takes an Avro body apart; `None` is nothing of a table. `unavailable` is what stands for a value that the database did not send.
    pub fn read_avro<'a>(&self, body: &'a [u8], unavailable: &str) -> Result<Option<Whole<'a>>, String> {
        let schema = &self.schema;
        let mut cursor = Cursor::new(body);
        let mut row = Row { unavailable, ..Row::default() };
        let (mut origin, mut kind, mut before, mut after) = (Origin::default(), None, None, None);
        // Every event repeats the table's name; here it is copied anyway.
        let table = OnceLock::new();
        match &self.shape {
            Shape::Service => return Ok(None),
            Shape::Wrapped { parts, source, before: old, after: new } => {
                if schema.record(cursor.branch(schema, schema.root)?).is_none() {
                    return Err("the value is null inside its schema".into());
                }
                for (node, part) in parts {
                    match part {
                        Part::Other => cursor.skip(schema, *node)?,
                        Part::Op => kind = envelope::op(cursor.read(schema, *node)?),
                        Part::Before | Part::After | Part::Source => {
                            if schema.record(cursor.branch(schema, *node)?).is_none() {
                                continue;
                            }
                            match part {
                                Part::Before => before = Some(row.avro(schema, &mut cursor, old, false)?),
                                Part::After => after = Some(row.avro(schema, &mut cursor, new, true)?),
                                _ => {
                                    for (node, field) in source {
                                        match field {
                                            None => cursor.skip(schema, *node)?,
                                            Some(field) => {
                                                keep(&mut origin, *field, cursor.read(schema, *node)?, &table)
                                            }
                                        }
                                    }
                                }
                            }
                        }
                    }
                }
            }
            Shape::Flat(columns) => {
                if schema.record(cursor.branch(schema, schema.root)?).is_none() {
                    return Err("the value is null inside its schema".into());
                }
                after = Some(row.avro(schema, &mut cursor, columns, true)?);
                let mut again = Cursor::new(body);
                again.branch(schema, schema.root)?;
                let mut added = Added::default();
                for column in columns {
                    match Added::knows(&column.name) {
                        true => added.take(&column.name, again.read(schema, column.node)?, &table),
                        false => again.skip(schema, column.node)?,
                    }
                }
                let (known, from) = added.kind_and_origin().map_err(|b| b.reason)?;
                (kind, origin) = (Some(Ok(known)), from);
            }
        }
        cursor.finish()?;
        let kind = kind.ok_or("the envelope has no operation")?.map_err(|b| b.reason)?;
        Ok(Some(Whole { kind, before, after, unavailable: row.missing, origin, flaw: row.flaw }))
    }

    /// Takes the payload of a JSON message apart; `None` is nothing of a table.
    pub fn read_json<'a>(&self, payload: &'a Value, unavailable: &str) -> Result<Option<Whole<'a>>, String> {
        let Value::Object(object) = payload else {
            return Err(format!("{} stands where an object should", json::shown(payload)));
        };
        let mut row = Row { unavailable, ..Row::default() };
        let table = OnceLock::new();
        let (kind, before, after, origin) = match &self.shape {
            Shape::Service => return Ok(None),
            Shape::Wrapped { before, after, .. } => {
                let op = object.get("op").and_then(Value::as_str).ok_or("the envelope has no operation")?;
                let kind = Kind::of(op).map_err(|b| b.reason)?;
                let part = |name: &str| match object.get(name) {
                    None | Some(Value::Null) => Ok(None),
                    Some(Value::Object(part)) => Ok(Some(part)),
                    Some(other) => Err(format!("{name} is {}, not an object", json::shown(other))),
                };
                let mut origin = Origin::default();
                for (name, value) in part("source")?.into_iter().flatten() {
                    if let Some(field) = OriginField::of(name) {
                        keep(&mut origin, field, envelope::loose(value), &table);
                    }
                }
                let before = part("before")?.map(|o| row.json(&self.schema, o, before, false));
                let after = part("after")?.map(|o| row.json(&self.schema, o, after, true));
                (kind, before, after, origin)
            }
            Shape::Flat(columns) => {
                let mut added = Added::default();
                for (name, value) in object.iter().filter(|(name, _)| Added::knows(name)) {
                    added.take(name, envelope::loose(value), &table);
                }
                let (kind, origin) = added.kind_and_origin().map_err(|b| b.reason)?;
                (kind, None, Some(row.json(&self.schema, object, columns, true)), origin)
            }
        };
        Ok(Some(Whole { kind, before, after, unavailable: row.missing, origin, flaw: row.flaw }))
    }
}

fn columns(schema: &Schema, record: &Record) -> Vec<WriterColumn> {
    let column = |f: &crate::decode::schema::Field| WriterColumn {
        name: f.name.clone(),
        form: Form::of(schema, f.node),
        node: f.node,
    };
    record.fields.iter().map(column).collect()
}

/// A row being read.
#[derive(Default)]
struct Row<'u> {
    unavailable: &'u str,
    missing: Vec<usize>,
    flaw: Option<String>,
}

impl Row<'_> {
    /// `is_new` says that this is the row after the change, where a value that was not sent is noted as such; the row before keeps the
    /// placeholder as it came.
    fn avro<'a>(
        &mut self,
        schema: &Schema,
        cursor: &mut Cursor<'a>,
        columns: &[WriterColumn],
        is_new: bool,
    ) -> Result<Vec<Cell<'a>>, String> {
        let mut cells = Vec::with_capacity(columns.len());
        for (n, WriterColumn { name, form, node }) in columns.iter().enumerate() {
            let in_field = |e: String| format!("field {name}: {e}");
            if *form == Form::Json {
                cells.push(nested(&cursor.json(schema, *node).map_err(in_field)?));
                continue;
            }
            let raw = cursor.read(schema, *node).map_err(in_field)?;
            if is_new && raw.is_unavailable(self.unavailable) {
                self.missing.push(n);
                cells.push(Cell::Null);
                continue;
            }
            cells.push(self.kept(name, form.cell(raw)));
        }
        Ok(cells)
    }

    fn json<'a>(
        &mut self,
        schema: &Schema,
        object: &'a Map<String, Value>,
        columns: &[WriterColumn],
        is_new: bool,
    ) -> Vec<Cell<'a>> {
        if let Some(name) = object.keys().find(|k| !columns.iter().any(|c| *c.name == ***k)) {
            self.flaw = Some(format!("the schema has no column {name}"));
        }
        let mut cells = Vec::with_capacity(columns.len());
        for (n, WriterColumn { name, form, node }) in columns.iter().enumerate() {
            let Some(value) = object.get(&**name) else {
                self.flaw = Some(format!("the object lacks the column {name}"));
                cells.push(Cell::Null);
                continue;
            };
            if *form == Form::Json {
                if has_fraction(value) {
                    self.flaw = Some(format!("column {name}: it is nested, and a number in it may have more digits"));
                }
                cells.push(nested(value));
                continue;
            }
            let read = json::read(schema, *node, value);
            let missing = match &read {
                Ok(raw) => raw.is_unavailable(self.unavailable),
                Err(_) => value.as_str().is_some_and(|text| is_placeholder(text, self.unavailable)),
            };
            if is_new && missing {
                self.missing.push(n);
                cells.push(Cell::Null);
                continue;
            }
            cells.push(self.kept(name, read.and_then(|raw| form.cell(raw))));
        }
        cells
    }

    fn kept<'a>(&mut self, name: &str, cell: Result<Cell<'a>, String>) -> Cell<'a> {
        cell.unwrap_or_else(|e| {
            self.flaw = Some(format!("column {name}: {e}"));
            Cell::Null
        })
    }
}

/// Whether a value holds numbers that were read as floating point, whatever they are.
fn has_fraction(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.is_f64(),
        Value::Array(items) => items.iter().any(has_fraction),
        Value::Object(object) => object.values().any(has_fraction),
        Value::Null | Value::Bool(_) | Value::String(_) => false,
    }
}

fn nested(value: &Value) -> Cell<'static> {
    if value.is_null() { Cell::Null } else { Cell::Str(value.to_string().into()) }
}
