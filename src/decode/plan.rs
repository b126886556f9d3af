//! A plan says how a writer's record becomes a contract's row: made once for each writer schema, followed for each message.
//!
//! The invariant: a plan exists only if the writer keeps the contract; what breaks it is said by column.

use super::avro::Cursor;
use super::cell::{Cell, Raw, convert};
use super::logical::Type;
use super::row::{ContractColumn, RowType};
use super::schema::{NodeId, Record, Schema};
use super::{Rule, json};

/// Why a message is rejected.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Bad {
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
    /// The cell that it becomes, and the writer's type of it.
    take: Option<(usize, Type)>,
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
                    Some((place, writer_type(schema, field.node, column(&place))?))
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
                Some((place, writer)) => {
                    cursor.read(schema, field.node).map(|raw| self.put(&mut row, *place, raw, writer, of, unavailable))
                }
            }
            .map_err(|e| bad(Rule::Body, format!("field {}: {e}", field.name)))?;
        }
        Ok(row)
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
            let Some((place, writer)) = &field.take else { continue };
            let column = &of.columns[self.wanted[*place]];
            match (object.get(&*field.name), &column.default) {
                (Some(value), _) => match json::read(schema, field.node, value) {
                    Ok(raw) => self.put(&mut row, *place, raw, writer, of, unavailable),
                    // The placeholder is text, whatever the column's own type.
                    Err(_) if value.as_str() == Some(unavailable) => row.unavailable.push(self.wanted[*place] as u16),
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
