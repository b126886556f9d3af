//! A table of a case: typed columns and a key, and its rows as scalars.
//!
//! The invariant: the same definition gives the engine its row type and DataFusion its schema, so that both read the same table. Nothing
//! here knows of changes or of queries.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{DataType, SchemaRef, TimeUnit};
use datafusion::common::ScalarValue;
use datafusion::error::Result;
use serde_json::{Value, json};

use crate::config;
use crate::dataflow;
use crate::decode::RowType;

/// The types that tables of cases have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    BigInt,
    Int,
    Double,
    Decimal(u8, i8),
    Text,
    Bool,
    Date,
    /// In microseconds, without a zone.
    Timestamp,
}

#[derive(Clone, Debug)]
pub struct Column {
    pub name: String,
    pub ty: Type,
    pub nullable: bool,
}

#[derive(Clone, Debug)]
pub struct TableDef {
    /// As SQL names it: `schema__table`.
    pub name: String,
    pub columns: Vec<Column>,
    /// Indexes of the key's columns.
    pub key: Vec<usize>,
}

/// One row: a scalar of the column's type for each column.
pub type Cells = Vec<ScalarValue>;

impl Type {
    pub fn sql(self) -> String {
        match self {
            Type::BigInt => "bigint".into(),
            Type::Int => "int".into(),
            Type::Double => "double".into(),
            Type::Decimal(precision, scale) => format!("decimal({precision},{scale})"),
            Type::Text => "varchar".into(),
            Type::Bool => "boolean".into(),
            Type::Date => "date".into(),
            Type::Timestamp => "timestamp(6)".into(),
        }
    }

    pub fn arrow(self) -> DataType {
        match self {
            Type::BigInt => DataType::Int64,
            Type::Int => DataType::Int32,
            Type::Double => DataType::Float64,
            Type::Decimal(precision, scale) => DataType::Decimal128(precision, scale),
            Type::Text => DataType::Utf8,
            Type::Bool => DataType::Boolean,
            Type::Date => DataType::Date32,
            Type::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
        }
    }

    /// The type as Debezium declares it in a contract.
    fn avro(self) -> Value {
        match self {
            Type::BigInt => json!("long"),
            Type::Int => json!("int"),
            Type::Double => json!("double"),
            Type::Decimal(precision, scale) => json!({
                "type": "bytes",
                "connect.name": "org.apache.kafka.connect.data.Decimal",
                "connect.parameters": {"scale": scale.to_string(), "connect.decimal.precision": precision.to_string()},
            }),
            Type::Text => json!("string"),
            Type::Bool => json!("boolean"),
            Type::Date => json!({"type": "int", "connect.name": "io.debezium.time.Date"}),
            Type::Timestamp => json!({"type": "long", "connect.name": "io.debezium.time.MicroTimestamp"}),
        }
    }
}

impl TableDef {
    /// The Avro schema of the table's rows.
    fn contract(&self) -> String {
        let fields: Vec<Value> = self
            .columns
            .iter()
            .map(|c| match c.nullable {
                true => json!({"name": c.name, "type": ["null", c.ty.avro()], "default": null}),
                false => json!({"name": c.name, "type": c.ty.avro()}),
            })
            .collect();
        json!({"type": "record", "name": self.name, "fields": fields}).to_string()
    }

    /// The row type that the engine draws from the table's contract.
    pub fn row_type(&self) -> RowType {
        let (schema, table) = self.name.split_once("__").expect("a table's name is schema__table");
        let source = config::Source {
            schema: schema.into(),
            table: table.into(),
            topic: self.name.as_str().into(),
            format: config::Format::Avro,
            envelope: config::Envelope::Debezium,
            key: self.key.iter().map(|k| self.columns[*k].name.clone()).collect(),
            unavailable: "__unavailable".into(),
            contract: self.contract(),
            contract_path: self.name.as_str().into(),
        };
        RowType::from_contract(&source).expect("a case's table has a contract")
    }

    /// The table as plans know it.
    pub fn table(&self, columns: SchemaRef) -> dataflow::Table {
        let (schema, table) = self.name.split_once("__").expect("a table's name is schema__table");
        dataflow::Table { schema: schema.into(), table: table.into(), columns }
    }

    /// Rows as columns, in the order of the table's columns.
    pub fn columns<'a>(&self, rows: impl Iterator<Item = &'a Cells> + Clone) -> Result<Vec<ArrayRef>> {
        (0..self.columns.len())
            .map(|c| {
                let mut cells = rows.clone().map(|row| row[c].clone()).peekable();
                match cells.peek() {
                    Some(_) => ScalarValue::iter_to_array(cells),
                    None => Ok(arrow::array::new_empty_array(&self.columns[c].ty.arrow())),
                }
            })
            .collect()
    }

    pub fn batch<'a>(&self, schema: &SchemaRef, rows: impl Iterator<Item = &'a Cells> + Clone) -> Result<RecordBatch> {
        Ok(RecordBatch::try_new(Arc::clone(schema), self.columns(rows)?)?)
    }

    /// `create table ...`, as the files under tests/sql write it.
    pub fn create(&self) -> String {
        let columns: Vec<String> = self
            .columns
            .iter()
            .map(|c| format!("{} {}{}", c.name, c.ty.sql(), if c.nullable { "" } else { " not null" }))
            .collect();
        let key: Vec<&str> = self.key.iter().map(|k| self.columns[*k].name.as_str()).collect();
        format!("create table {} ({}, primary key ({}))", self.name, columns.join(", "), key.join(", "))
    }
}

/// A scalar as SQL of its own type.
pub fn literal(value: &ScalarValue, ty: Type) -> String {
    let text = |array: ArrayRef| {
        arrow::util::display::array_value_to_string(&array, 0).expect("every type of a case can be displayed")
    };
    if value.is_null() {
        return format!("cast(null as {})", ty.sql());
    }
    match value {
        ScalarValue::Utf8(Some(value)) => format!("'{}'", value.replace('\'', "''")),
        ScalarValue::Boolean(Some(value)) => value.to_string(),
        ScalarValue::Int64(Some(value)) => value.to_string(),
        ScalarValue::Float64(Some(value)) if value.is_finite() => format!("cast({value:?} as double)"),
        value => {
            let shown = text(value.to_array().expect("a scalar is an array of one"));
            format!("cast('{shown}' as {})", ty.sql())
        }
    }
}
