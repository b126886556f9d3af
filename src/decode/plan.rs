//! A plan says how a writer's record becomes a contract's row: made once for each writer schema, followed for each message.
//!
//! The invariant: a plan exists only if the writer keeps the contract; what breaks it is said by column.

use arrow::datatypes::{DataType, TimeUnit};

use super::avro::Cursor;
use super::cell::{Cell, Raw, convert};
use super::envelope::Values;
use super::instant::instants;
use super::logical::{Meaning, Type};
use super::row::{ContractColumn, RowType};
use super::schema::{NodeId, Record, Schema, Shape};
use super::unavailable::is_placeholder;
use super::{Rule, json};

/// Why a message is rejected.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Bad {
    pub rule: Rule,
    pub reason: String,
}

pub(super) fn bad(rule: Rule, reason: impl Into<String>) -> Bad {
    Bad { rule, reason: reason.into() }
}

/// The writer's fields in their order, and the columns that it lacks.
#[derive(Debug)]
pub(super) struct RowPlan {
    fields: Vec<PlanField>,
    /// Columns (places in `wanted`) that take their default.
    missing: Vec<usize>,
    /// Indexes of the contract's columns that this plan reads, in the order of its cells.
    wanted: Vec<usize>,
}

#[derive(Debug)]
struct PlanField {
    name: Box<str>,
    node: NodeId,
    take: Option<Take>,
}

/// How a field becomes a cell.
#[derive(Debug)]
struct Take {
    place: usize,
    /// The writer's type of it.
    writer: Type,
    /// Where the value is, looking through a union with null, and what it is, when it can stay as it is.
    direct: Option<(NodeId, Direct)>,
}

/// A value that the column holds as the writer wrote it: most values are. It needs no conversion that could fail.
#[derive(Clone, Copy, Debug)]
enum Direct {
    Text,
    Long,
    Instant(TimeUnit),
    Int,
    Boolean,
}

impl Direct {
    fn of(schema: &Schema, node: NodeId, writer: &Type, column: &DataType) -> Option<(NodeId, Direct)> {
        let node = schema.optional(node).1;
        let direct = match (&schema.node(node).shape, writer.meaning, column) {
            (Shape::String, Meaning::Plain, DataType::Utf8) => Direct::Text,
            (Shape::Long, Meaning::Plain, DataType::Int64) => Direct::Long,
            (Shape::Long, Meaning::Instant(unit), DataType::Timestamp(wanted, _)) if unit == *wanted => {
                Direct::Instant(unit)
            }
            (Shape::Int, Meaning::Plain, DataType::Int32 | DataType::Int64) => Direct::Int,
            (Shape::Boolean, Meaning::Plain, DataType::Boolean) => Direct::Boolean,
            _ => return None,
        };
        Some((node, direct))
    }
}

/// A row as cells. A value that does not fit is kept as `misfit`, so that a delete with made-up values is still a delete.
#[derive(Debug, Default)]
pub(super) struct RowCells<'a> {
    pub cells: Vec<Cell<'a>>,
    pub unavailable: Vec<u16>,
    pub misfit: Option<Bad>,
}

impl RowPlan {
    /// All columns of the contract.
    pub fn row(schema: &Schema, record: &Record, row_type: &RowType) -> Result<RowPlan, Bad> {
        for column in &row_type.unread {
            match record.field(&column.name) {
                Some((_, field)) => drop(writer_type(schema, field.node, column)?),
                None if column.default.is_none() => return Err(lacking(column)),
                None => {}
            }
        }
        Self::of(schema, record, row_type, (0..row_type.columns.len()).collect())
    }

    /// The key's columns alone; `None` when the record lacks one of them.
    pub fn key(schema: &Schema, record: &Record, row_type: &RowType) -> Result<Option<RowPlan>, Bad> {
        let key = row_type.key_columns();
        if key.iter().any(|k| record.field(&row_type.columns[*k].name).is_none()) {
            return Ok(None);
        }
        Self::of(schema, record, row_type, key.to_vec()).map(Some)
    }

    fn of(schema: &Schema, record: &Record, row_type: &RowType, wanted: Vec<usize>) -> Result<RowPlan, Bad> {
        let column = |place: &usize| &row_type.columns[wanted[*place]];
        let mut missing: Vec<usize> = (0..wanted.len()).collect();
        let mut fields = Vec::with_capacity(record.fields.len());
        for field in &record.fields {
            let place = (0..wanted.len()).find(|p| column(p).name == field.name);
            let take = match place {
                Some(place) => {
                    missing.retain(|m| *m != place);
                    let writer = writer_type(schema, field.node, column(&place))?;
                    let direct = Direct::of(schema, field.node, &writer, &column(&place).ty.arrow);
                    Some(Take { place, writer, direct })
                }
                None => None,
            };
            fields.push(PlanField { name: field.name.clone(), node: field.node, take });
        }
        if let Some(column) = missing.iter().map(column).find(|c| c.default.is_none()) {
            return Err(lacking(column));
        }
        Ok(RowPlan { fields, missing, wanted })
    }

    /// The field that this plan takes, if it is the only one.
    pub fn single(&self) -> Option<NodeId> {
        let mut taken = self.fields.iter().filter(|f| f.take.is_some());
        taken.next().filter(|_| self.wanted.len() == 1).map(|field| field.node)
    }

    pub fn read_avro<'a>(
        &self,
        schema: &Schema,
        cursor: &mut Cursor<'a>,
        of: &RowType,
        unavailable: &str,
    ) -> Result<RowCells<'a>, Bad> {
        let mut row = self.start(of);
        for field in &self.fields {
            match &field.take {
                None => cursor.skip(schema, field.node),
                Some(take) => self.take_avro(&mut row, take, schema, field.node, cursor, of, unavailable),
            }
            .map_err(|e| bad(Rule::Body, format!("field {}: {e}", field.name)))?;
        }
        Ok(row)
    }

    #[allow(clippy::too_many_arguments)]
    fn take_avro<'a>(
        &self,
        row: &mut RowCells<'a>,
        take: &Take,
        schema: &Schema,
        node: NodeId,
        cursor: &mut Cursor<'a>,
        of: &RowType,
        unavailable: &str,
    ) -> Result<(), String> {
        let Some((value, direct)) = take.direct else {
            let raw = cursor.read(schema, node)?;
            self.put(row, take.place, raw, &take.writer, of, unavailable);
            return Ok(());
        };
        if cursor.branch(schema, node)? != value {
            self.put(row, take.place, Raw::Null, &take.writer, of, unavailable);
            return Ok(());
        }
        row.cells[take.place] = match direct {
            Direct::Text => {
                let text = cursor.string()?;
                if is_placeholder(text, unavailable) {
                    row.unavailable.push(self.wanted[take.place] as u16);
                    return Ok(());
                }
                Cell::Str(text.into())
            }
            Direct::Long => Cell::Int(cursor.long()?),
            Direct::Instant(unit) => match cursor.long()? {
                value if instants(unit).contains(&value) => Cell::Int(value),
                value => {
                    self.put(row, take.place, Raw::Int(value), &take.writer, of, unavailable);
                    return Ok(());
                }
            },
            Direct::Int => Cell::Int(cursor.int()?),
            Direct::Boolean => Cell::Bool(cursor.boolean()?),
        };
        Ok(())
    }

    pub fn read_json<'a>(
        &self,
        schema: &Schema,
        object: &'a serde_json::Map<String, serde_json::Value>,
        of: &RowType,
        unavailable: &str,
    ) -> RowCells<'a> {
        let mut row = self.start(of);
        for field in &self.fields {
            let Some(Take { place, writer, .. }) = &field.take else { continue };
            let column = &of.columns[self.wanted[*place]];
            match (object.get(&*field.name), &column.default) {
                (Some(value), _) => match json::read(schema, field.node, value) {
                    Ok(raw) => self.put(&mut row, *place, raw, writer, of, unavailable),
                    // The placeholder is text, whatever the column's own type.
                    Err(_) if value.as_str().is_some_and(|text| is_placeholder(text, unavailable)) => {
                        row.unavailable.push(self.wanted[*place] as u16)
                    }
                    Err(e) => row.misfit = Some(bad(Rule::Value, format!("column {}: {e}", column.name))),
                },
                (None, Some(default)) => row.cells[*place] = default.clone(),
                (None, None) => {
                    row.misfit = Some(bad(Rule::Contract, format!("the object lacks the column {}", column.name)))
                }
            }
        }
        row
    }

    /// Takes values that were read before: `value` gives that of a field by its place in the record; `None` is one that the database did not
    /// send.
    pub fn read_values<'a>(&self, value: &Values<'_, 'a>, of: &RowType, unavailable: &str) -> RowCells<'a> {
        let mut row = self.start(of);
        for (field, PlanField { take, .. }) in self.fields.iter().enumerate() {
            let Some(Take { place, writer, .. }) = take else { continue };
            match value(field) {
                Some(raw) => self.put(&mut row, *place, raw, writer, of, unavailable),
                None => row.unavailable.push(self.wanted[*place] as u16),
            }
        }
        row
    }

    fn start<'a>(&self, of: &RowType) -> RowCells<'a> {
        let mut cells = vec![Cell::Null; self.wanted.len()];
        for place in &self.missing {
            cells[*place] = of.columns[self.wanted[*place]].default.clone().unwrap_or(Cell::Null);
        }
        RowCells { cells, ..RowCells::default() }
    }

    fn put<'a>(
        &self,
        row: &mut RowCells<'a>,
        place: usize,
        raw: Raw<'a>,
        writer: &Type,
        of: &RowType,
        unavailable: &str,
    ) {
        let column = &of.columns[self.wanted[place]];
        if raw.is_unavailable(unavailable) {
            row.unavailable.push(self.wanted[place] as u16);
            return;
        }
        if raw == Raw::Null && !column.nullable {
            row.misfit =
                Some(bad(Rule::Value, format!("column {} is null, which the contract rules out", column.name)));
            return;
        }
        match convert(raw, writer, &column.ty) {
            Ok(cell) => row.cells[place] = cell,
            Err(e) => row.misfit = Some(bad(Rule::Value, format!("column {}: {e}", column.name))),
        }
    }
}

fn lacking(column: &ContractColumn) -> Bad {
    let reason = format!(
        "the writer's schema lacks the column {}, which the contract wants and gives no default for",
        column.name
    );
    bad(Rule::Contract, reason)
}

/// The writer's type of a column, which has to promote to the contract's.
pub(super) fn writer_type(schema: &Schema, node: NodeId, column: &ContractColumn) -> Result<Type, Bad> {
    let (nullable, node) = schema.optional(node);
    let writer = Type::of(schema, node, Some(&column.ty))
        .map_err(|e| bad(Rule::Type, format!("column {}: {e}", column.name)))?;
    if !writer.promotes_to(&column.ty) {
        let reason = format!(
            "the writer's schema has column {} as {}, which does not become the contract's {}",
            column.name,
            writer.describe(),
            column.ty.describe()
        );
        return Err(bad(Rule::Contract, reason));
    }
    if nullable && !column.nullable {
        let reason = format!("the writer's schema allows null in column {}, which the contract rules out", column.name);
        return Err(bad(Rule::Contract, reason));
    }
    Ok(writer)
}
