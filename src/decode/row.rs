//! A row type is a contract as Arrow columns: what every stage after decoding takes a source's rows to be.
//!
//! The invariant: the columns and their order come from the contract alone, never from a writer's schema, so row bytes of one source can
//! be compared for as long as its contract stands.

use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::{Field, Schema as ArrowSchema, SchemaRef};
use arrow::error::ArrowError;
use arrow_row::{RowConverter, SortField};

use super::cell::{Cell, Raw, convert};
use super::json;
use super::logical::Type;
use super::schema::{NodeId, Schema, Shape};
use crate::config;

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ContractError(pub(super) String);

/// All that is wrong with a contract.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct ContractErrors(pub Vec<ContractError>);

/// The columns of a source's rows.
pub struct RowType {
    pub(super) columns: Vec<ContractColumn>,
    /// Columns of the contract that nobody reads: a writer has to keep them, their values are skipped.
    pub(super) unread: Vec<ContractColumn>,
    schema: SchemaRef,
    key_columns: Vec<usize>,
    converter: RowConverter,
}

/// One column of the contract.
#[derive(Clone)]
pub(super) struct ContractColumn {
    pub name: Box<str>,
    pub ty: Type,
    pub nullable: bool,
    /// What stands for the column when the writer does not have it.
    pub default: Option<Cell<'static>>,
}

impl RowType {
    pub fn from_contract(source: &config::Source) -> Result<RowType, ContractErrors> {
        let error = |text: String| ContractError(format!("{}: {text}", source.contract_path.display()));
        let fail = |text: String| ContractErrors(vec![error(text)]);
        let contract = Schema::from_avro(&source.contract).map_err(|e| fail(e.to_string()))?;
        let Some(record) = contract.record(contract.root) else {
            return Err(fail("the contract is not a record".into()));
        };
        if record.fields.is_empty() || record.fields.len() > usize::from(u16::MAX) {
            return Err(fail(format!("a contract has 1 to {} columns", u16::MAX)));
        }
        let (mut columns, mut errors) = (Vec::with_capacity(record.fields.len()), Vec::new());
        for field in &record.fields {
            let (nullable, node) = contract.optional(field.node);
            let column = Type::of(&contract, node, None).and_then(|ty| {
                let default = match &field.default {
                    None if nullable => Some(Cell::Null),
                    None => None,
                    Some(value) => Some(default_cell(&contract, field.node, value, &ty)?),
                };
                Ok(ContractColumn { name: field.name.clone(), ty, nullable, default })
            });
            match column {
                Ok(column) => columns.push(column),
                Err(text) => errors.push(error(format!("column {}: {text}", field.name))),
            }
        }
        let mut key_columns = Vec::with_capacity(source.key.len());
        for key in &source.key {
            match record.fields.iter().position(|field| *field.name == **key) {
                Some(column) => key_columns.push(column),
                None => errors.push(error(format!("no column {key} for the key"))),
            }
        }
        if !errors.is_empty() {
            return Err(ContractErrors(errors));
        }
        // A value that the database did not send is null where no former row has it, whatever the contract says.
        let may_be_null = |n: usize| columns[n].nullable || !key_columns.contains(&n);
        let field = |(n, c): (usize, &ContractColumn)| Field::new(&*c.name, c.ty.arrow.clone(), may_be_null(n));
        let fields: Vec<Field> = columns.iter().enumerate().map(field).collect();
        let converter = converter(fields.iter()).map_err(|e| fail(e.to_string()))?;
        Ok(RowType { columns, unread: vec![], schema: Arc::new(ArrowSchema::new(fields)), key_columns, converter })
    }

    /// The same contract with only the columns that are read, and the key's; `read` has a flag for each column.
    pub fn pruned(&self, read: &[bool]) -> RowType {
        let kept: Vec<usize> = (0..self.columns.len()).filter(|c| read[*c] || self.key_columns.contains(c)).collect();
        let unread = (0..self.columns.len()).filter(|c| !kept.contains(c)).map(|c| self.columns[c].clone());
        let schema = self.schema.project(&kept).expect("the columns are the schema's");
        let place = |column: &usize| kept.binary_search(column).expect("the key is kept");
        RowType {
            columns: kept.iter().map(|c| self.columns[*c].clone()).collect(),
            unread: self.unread.iter().cloned().chain(unread).collect(),
            key_columns: self.key_columns.iter().map(place).collect(),
            converter: converter(schema.fields().iter().map(|f| f.as_ref())).expect("it was made for all columns"),
            schema: Arc::new(schema),
        }
    }

    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Indexes of the key's columns, in the configuration's order.
    pub fn key_columns(&self) -> &[usize] {
        &self.key_columns
    }

    /// From columns to row bytes and back.
    pub fn converter(&self) -> &RowConverter {
        &self.converter
    }

    /// A converter of the key's columns alone.
    pub fn key_converter(&self) -> Result<RowConverter, ArrowError> {
        converter(self.key_columns.iter().map(|i| self.schema.field(*i)))
    }

    pub fn rows_to_columns<'a>(&self, rows: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<ArrayRef>, ArrowError> {
        let parser = self.converter.parser();
        self.converter.convert_rows(rows.into_iter().map(|row| parser.parse(row)))
    }
}

impl std::fmt::Debug for RowType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RowType").field("schema", &self.schema).field("key_columns", &self.key_columns).finish()
    }
}

fn converter<'a>(fields: impl Iterator<Item = &'a Field>) -> Result<RowConverter, ArrowError> {
    RowConverter::new(fields.map(|f| SortField::new(f.data_type().clone())).collect())
}

/// An Avro default: that of a union belongs to whichever branch takes it, and bytes are written as the characters of their values.
fn default_cell(schema: &Schema, id: NodeId, value: &serde_json::Value, ty: &Type) -> Result<Cell<'static>, String> {
    let (nullable, node) = schema.optional(id);
    if value.is_null() && nullable {
        return Ok(Cell::Null);
    }
    let raw = match (&schema.node(node).shape, value) {
        (Shape::Bytes | Shape::Fixed(_), serde_json::Value::String(text)) => {
            let bytes: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect();
            Raw::Bytes(bytes.ok_or("the default has a character above U+00FF")?.into())
        }
        _ => json::read(schema, node, value)?,
    };
    Ok(convert(raw, ty, ty).map_err(|e| format!("the default: {e}"))?.into_owned())
}
