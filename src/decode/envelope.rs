//! The envelope: what Debezium wraps around a row, read from Avro by plan or from JSON by name, to one [`Event`].
//!
//! The invariant: `before` is never taken for the old row (Debezium fills it with made-up values); only its key columns are looked at,
//! to notice a changed primary key.

use std::sync::{Arc, OnceLock};

use serde_json::{Map, Value};

use super::avro::Cursor;
use super::cell::{Cell, Raw};
use super::plan::{Bad, RowCells, RowPlan, bad};
use super::row::RowType;
use super::schema::{NodeId, Record, Schema};
use super::{Origin, Rule, json};
use crate::config::Envelope;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Create,
    Update,
    Delete,
    Snapshot,
    Truncate,
}

impl Kind {
    pub(crate) fn of(op: &str) -> Result<Kind, Bad> {
        match op {
            "c" => Ok(Kind::Create),
            "u" => Ok(Kind::Update),
            "d" => Ok(Kind::Delete),
            "r" => Ok(Kind::Snapshot),
            "t" => Ok(Kind::Truncate),
            other => Err(bad(
                Rule::Envelope,
                format!("the operation {:?} is none of c, u, d, r, t", other.chars().take(20).collect::<String>()),
            )),
        }
    }
}

impl Kind {
    /// Debezium's letter for it.
    pub(crate) fn code(self) -> &'static str {
        match self {
            Kind::Create => "c",
            Kind::Update => "u",
            Kind::Delete => "d",
            Kind::Snapshot => "r",
            Kind::Truncate => "t",
        }
    }
}

/// What one value says.
#[derive(Debug)]
pub(super) struct Event<'a> {
    pub kind: Kind,
    pub row: Option<RowCells<'a>>,
    /// The key columns of `before`.
    pub before_key: Option<Vec<Cell<'a>>>,
    pub origin: Origin,
}

/// The values of a record by the place of their fields; `None` is one that the database did not send.
pub(crate) type Values<'f, 'a> = dyn Fn(usize) -> Option<Raw<'a>> + Send + Sync + 'f;

/// How values of one writer schema are read.
#[derive(Debug)]
pub(super) enum ValuePlan {
    /// Heartbeats, transaction markers, schema changes: nothing of a table.
    Skip,
    Wrapped {
        fields: Vec<(NodeId, Part)>,
        source: Vec<(NodeId, Option<OriginField>)>,
        row: RowPlan,
        before: Option<RowPlan>,
        /// The table's name, which every event repeats.
        table: OnceLock<Arc<str>>,
    },
    Flat {
        row: RowPlan,
        record: NodeId,
    },
}

/// The parts of an envelope.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Part {
    Before,
    After,
    Source,
    Op,
    Other,
}

impl ValuePlan {
    pub fn new(schema: &Schema, envelope: Envelope, of: &RowType) -> Result<ValuePlan, Bad> {
        let Some(root) = schema.record(schema.root) else {
            return Err(bad(Rule::Envelope, "the value is not a record"));
        };
        if is_service_record(root) {
            return Ok(ValuePlan::Skip);
        }
        if envelope == Envelope::Flattened {
            let record = schema.optional(schema.root).1;
            return Ok(ValuePlan::Flat { row: RowPlan::row(schema, root, of)?, record });
        }
        let after = root.field("after").and_then(|(_, f)| schema.record(f.node));
        let (Some(after), Some(_)) = (after, root.field("op")) else {
            let reason = format!(
                "the record {} has no after and op; envelope = \"flattened\" reads rows without an envelope",
                root.full_name
            );
            return Err(bad(Rule::Envelope, reason));
        };
        let row = RowPlan::row(schema, after, of)?;
        let before = match root.field("before").and_then(|(_, f)| schema.record(f.node)) {
            Some(before) => RowPlan::key(schema, before, of)?,
            None => None,
        };
        let source = root.field("source").and_then(|(_, f)| schema.record(f.node));
        let source: Option<Vec<_>> =
            source.map(|s| s.fields.iter().map(|f| (f.node, OriginField::of(&f.name))).collect());
        let part = |name: &str| match name {
            "before" if before.is_some() => Part::Before,
            "after" => Part::After,
            "source" if source.is_some() => Part::Source,
            "op" => Part::Op,
            _ => Part::Other,
        };
        let fields = root.fields.iter().map(|f| (f.node, part(&f.name))).collect();
        Ok(ValuePlan::Wrapped { fields, source: source.unwrap_or_default(), row, before, table: OnceLock::new() })
    }

    /// Reads an Avro body; `None` is nothing of a table.
    pub fn read_avro<'a>(
        &self,
        schema: &Schema,
        body: &'a [u8],
        of: &RowType,
        unavailable: &str,
    ) -> Result<Option<Event<'a>>, Bad> {
        let mut cursor = Cursor::new(body);
        let wire = |e: String| bad(Rule::Body, e);
        let event = match self {
            ValuePlan::Skip => {
                cursor.skip(schema, schema.root).map_err(wire)?;
                None
            }
            ValuePlan::Wrapped { fields, source, row, before, table } => {
                let mut parts = Parts::default();
                if schema.record(cursor.branch(schema, schema.root).map_err(wire)?).is_none() {
                    return Err(bad(Rule::Envelope, "the value is null inside its schema"));
                }
                for (node, part) in fields {
                    match (part, before) {
                        (Part::Other, _) => cursor.skip(schema, *node).map_err(wire)?,
                        (Part::Before, Some(plan)) => {
                            if schema.record(cursor.branch(schema, *node).map_err(wire)?).is_some() {
                                parts.before = Some(plan.read_avro(schema, &mut cursor, of, unavailable)?);
                            }
                        }
                        (Part::Before, None) => cursor.skip(schema, *node).map_err(wire)?,
                        (Part::After, _) => {
                            if schema.record(cursor.branch(schema, *node).map_err(wire)?).is_some() {
                                parts.row = Some(row.read_avro(schema, &mut cursor, of, unavailable)?);
                            }
                        }
                        (Part::Op, _) => parts.op = op(cursor.read(schema, *node).map_err(wire)?),
                        (Part::Source, _) => {
                            if schema.record(cursor.branch(schema, *node).map_err(wire)?).is_none() {
                                continue;
                            }
                            for (node, field) in source {
                                match field {
                                    None => cursor.skip(schema, *node).map_err(wire)?,
                                    Some(field) => {
                                        let raw = cursor.read(schema, *node).map_err(wire)?;
                                        keep(&mut parts.origin, *field, raw, table);
                                    }
                                }
                            }
                        }
                    }
                }
                Some(parts)
            }
            ValuePlan::Flat { row, record } => {
                // The row's own fields first, then the same bytes once more for what the transformation has added.
                cursor.branch(schema, schema.root).map_err(wire)?;
                let cells = row.read_avro(schema, &mut cursor, of, unavailable)?;
                cursor.finish().map_err(wire)?;
                let mut again = Cursor::new(body);
                again.branch(schema, schema.root).map_err(wire)?;
                let (mut added, table) = (Added::default(), OnceLock::new());
                for field in schema.record(*record).map(|r| r.fields.as_slice()).unwrap_or_default() {
                    match field.name.starts_with("__") && Added::knows(&field.name) {
                        true => added.take(&field.name, again.read(schema, field.node).map_err(wire)?, &table),
                        false => again.skip(schema, field.node).map_err(wire)?,
                    }
                }
                return added.event(cells).map(Some);
            }
        };
        cursor.finish().map_err(wire)?;
        event.map(Parts::event).transpose()
    }

    /// Takes an envelope's parts that were read before. Of a flattened row, `kind` is what the transformation's columns came to.
    pub fn read_values<'a>(
        &self,
        kind: Kind,
        before: Option<&Values<'_, 'a>>,
        after: Option<&Values<'_, 'a>>,
        origin: Origin,
        of: &RowType,
        unavailable: &str,
    ) -> Result<Option<Event<'a>>, Bad> {
        let (plan, before_plan) = match self {
            ValuePlan::Skip => return Ok(None),
            ValuePlan::Wrapped { row, before, .. } => (row, before.as_ref()),
            ValuePlan::Flat { row, .. } => (row, None),
        };
        let row = after.map(|values| plan.read_values(values, of, unavailable));
        let before = before.zip(before_plan).map(|(values, plan)| plan.read_values(values, of, unavailable));
        Parts { op: Some(Ok(kind)), before, row, origin }.event().map(Some)
    }

    /// Reads a JSON object, the schema part of which made this plan (or the contract did).
    pub fn read_json<'a>(
        &self,
        schema: &Schema,
        value: &'a Value,
        of: &RowType,
        unavailable: &str,
    ) -> Result<Option<Event<'a>>, Bad> {
        let Value::Object(object) = value else {
            return Err(bad(Rule::Envelope, format!("{} stands where an object should", json::shown(value))));
        };
        match self {
            ValuePlan::Skip => Ok(None),
            ValuePlan::Flat { row, .. } => {
                let (mut added, table) = (Added::default(), OnceLock::new());
                for (name, value) in object.iter().filter(|(name, _)| Added::knows(name)) {
                    added.take(name, loose(value), &table);
                }
                added.event(row.read_json(schema, object, of, unavailable)).map(Some)
            }
            ValuePlan::Wrapped { row, before, table, .. } => {
                let mut parts =
                    Parts { op: object.get("op").and_then(Value::as_str).map(Kind::of), ..Parts::default() };
                let part = |name: &str| -> Result<Option<&'a Map<String, Value>>, Bad> {
                    match object.get(name) {
                        None | Some(Value::Null) => Ok(None),
                        Some(Value::Object(part)) => Ok(Some(part)),
                        Some(other) => {
                            Err(bad(Rule::Envelope, format!("{name} is {}, not an object", json::shown(other))))
                        }
                    }
                };
                parts.row = part("after")?.map(|o| row.read_json(schema, o, of, unavailable));
                parts.before =
                    part("before")?.zip(before.as_ref()).map(|(o, plan)| plan.read_json(schema, o, of, unavailable));
                for (name, value) in part("source")?.into_iter().flatten() {
                    if let Some(field) = OriginField::of(name) {
                        keep(&mut parts.origin, field, loose(value), table);
                    }
                }
                parts.event().map(Some)
            }
        }
    }
}

/// Whether JSON that came without a schema is no change of a row: a heartbeat has nothing but its time, and neither the end of a transaction
/// nor a schema change has an operation. A flattened row may have columns of any name.
pub(crate) fn is_json_service(envelope: Envelope, value: &Value) -> bool {
    value.as_object().is_some_and(|o| {
        let known = |names: &[&str]| names.iter().all(|name| o.contains_key(*name));
        envelope == Envelope::Debezium
            && !o.contains_key("op")
            && ((o.len() == 1 && known(&["ts_ms"])) || known(&["status", "event_count"]) || known(&["ddl"]))
    })
}

pub(crate) fn is_service_record(root: &Record) -> bool {
    let name = root.full_name.strip_prefix("io.debezium.connector.");
    name.is_some_and(|n| ["Heartbeat", "TransactionMetadataValue", "SchemaChangeValue"].iter().any(|s| n.ends_with(s)))
}

#[derive(Default)]
struct Parts<'a> {
    op: Option<Result<Kind, Bad>>,
    before: Option<RowCells<'a>>,
    row: Option<RowCells<'a>>,
    origin: Origin,
}

impl<'a> Parts<'a> {
    fn event(self) -> Result<Event<'a>, Bad> {
        let Some(op) = self.op else { return Err(bad(Rule::Envelope, "the envelope has no operation")) };
        // A `before` that does not fit says nothing about the row that counts.
        let before_key = self.before.filter(|b| b.misfit.is_none() && b.unavailable.is_empty()).map(|b| b.cells);
        finish(op?, self.row, before_key, self.origin)
    }
}

fn finish<'a>(
    kind: Kind,
    row: Option<RowCells<'a>>,
    before_key: Option<Vec<Cell<'a>>>,
    origin: Origin,
) -> Result<Event<'a>, Bad> {
    match (kind, row) {
        (Kind::Delete | Kind::Truncate, _) => Ok(Event { kind, row: None, before_key, origin }),
        (_, None) => Err(bad(Rule::Envelope, "after is null, though the operation writes a row")),
        (_, Some(RowCells { misfit: Some(misfit), .. })) => Err(misfit),
        (_, row) => Ok(Event { kind, row, before_key, origin }),
    }
}

/// What `ExtractNewRecordState` adds to a row, if it is told to.
#[derive(Default)]
pub(crate) struct Added {
    deleted: Option<Result<bool, Bad>>,
    op: Option<Result<Kind, Bad>>,
    origin: Origin,
}

impl Added {
    pub(crate) fn knows(name: &str) -> bool {
        matches!(name, "__deleted" | "__op") || origin_field(name).is_some()
    }

    pub(crate) fn take(&mut self, name: &str, raw: Raw<'_>, table: &OnceLock<Arc<str>>) {
        match (name, raw) {
            ("__deleted", Raw::Bool(v)) => self.deleted = Some(Ok(v)),
            ("__deleted", Raw::Str(v)) => {
                let neither = |_| bad(Rule::Envelope, "__deleted is neither true nor false");
                self.deleted = Some(v.parse().map_err(neither));
            }
            ("__op", raw) => self.op = op(raw),
            (name, raw) => {
                // `__ts_ms` is when Debezium wrote the event: it stands for the commit only where nothing better does.
                if let Some(field) = origin_field(name).filter(|_| name != "__ts_ms" || self.origin.ts_ms == 0) {
                    keep(&mut self.origin, field, raw, table);
                }
            }
        }
    }

    fn event<'a>(self, cells: RowCells<'a>) -> Result<Event<'a>, Bad> {
        let (kind, origin) = self.kind_and_origin()?;
        finish(kind, Some(cells), None, origin)
    }

    pub(crate) fn kind_and_origin(self) -> Result<(Kind, Origin), Bad> {
        let is_deleted = self.deleted.transpose()?.unwrap_or(false);
        let kind = match self.op {
            _ if is_deleted => Kind::Delete,
            Some(op) => op?,
            None => Kind::Update,
        };
        Ok((kind, self.origin))
    }
}

/// The fields of `source` that are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum OriginField {
    TsMs,
    Snapshot,
    Lsn,
    ChangeLsn,
    CommitLsn,
    EventSerialNo,
    Table,
}

impl OriginField {
    pub(crate) fn of(name: &str) -> Option<OriginField> {
        Some(match name {
            "ts_ms" => OriginField::TsMs,
            "snapshot" => OriginField::Snapshot,
            "lsn" => OriginField::Lsn,
            "change_lsn" => OriginField::ChangeLsn,
            "commit_lsn" => OriginField::CommitLsn,
            "event_serial_no" => OriginField::EventSerialNo,
            "table" => OriginField::Table,
            _ => return None,
        })
    }
}

/// `__source_ts_ms` and `__ts_ms`, `__lsn`, ...: the transformation writes a nested name with underscores.
fn origin_field(name: &str) -> Option<OriginField> {
    let name = name.strip_prefix("__")?;
    OriginField::of(name.strip_prefix("source_").unwrap_or(name))
}

/// `table` has the name that came first; an event of another table (a topic may carry several) pays for its own.
pub(crate) fn keep(origin: &mut Origin, field: OriginField, raw: Raw<'_>, table: &OnceLock<Arc<str>>) {
    match (field, raw) {
        (OriginField::TsMs, Raw::Int(v)) => origin.ts_ms = v,
        (OriginField::Lsn, Raw::Int(v)) => origin.lsn = Some(v),
        (OriginField::EventSerialNo, Raw::Int(v)) => origin.event_serial_no = Some(v),
        (OriginField::Snapshot, Raw::Str(v)) => origin.snapshot = v != "false",
        (OriginField::Snapshot, Raw::Bool(v)) => origin.snapshot = v,
        (OriginField::ChangeLsn, raw) => origin.change_lsn = text(raw),
        (OriginField::CommitLsn, raw) => origin.commit_lsn = text(raw),
        (OriginField::Table, Raw::Str(v)) => {
            let first = table.get_or_init(|| (*v).into());
            origin.table = Some(if **first == *v { first.clone() } else { (*v).into() });
        }
        _ => {}
    }
}

pub(crate) fn op(raw: Raw<'_>) -> Option<Result<Kind, Bad>> {
    match raw {
        Raw::Str(op) => Some(Kind::of(&op)),
        _ => None,
    }
}

fn text(raw: Raw<'_>) -> Option<Arc<str>> {
    match raw {
        Raw::Str(text) => Some((*text).into()),
        _ => None,
    }
}

/// A JSON value by its own type, for fields that no contract covers.
pub(crate) fn loose(value: &Value) -> Raw<'_> {
    match value {
        Value::Bool(v) => Raw::Bool(*v),
        Value::Number(n) => n.as_i64().map_or(Raw::Null, Raw::Int),
        Value::String(text) => Raw::Str(text.as_str().into()),
        _ => Raw::Null,
    }
}
