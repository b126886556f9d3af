//! The eight tables of TPC-H: their columns and keys, their contracts, and their rows as values that changes can be made to.
//!
//! The invariant: a table never has two rows of one key.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, Date32Array, Decimal128Array, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow::error::ArrowError;
use rand::Rng;
use rand::rngs::StdRng;
use serde_json::json;

use crate::config::{Envelope, Format, Source};

/// dbt's name of the source that the tables are of.
pub(super) const SCHEMA: &str = "tpch";
/// decimal(15,2)
const MONEY: (u8, i8) = (15, 2);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// bigint
    Long,
    /// integer
    Int,
    /// decimal(15,2)
    Money,
    Date,
    /// varchar
    Text,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Table {
    Region,
    Nation,
    Supplier,
    Part,
    PartSupp,
    Customer,
    Orders,
    LineItem,
}

use Kind::{Date, Int, Long, Money, Text};

impl Table {
    pub const ALL: [Table; 8] = [
        Table::Region,
        Table::Nation,
        Table::Supplier,
        Table::Part,
        Table::PartSupp,
        Table::Customer,
        Table::Orders,
        Table::LineItem,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Table::Region => "region",
            Table::Nation => "nation",
            Table::Supplier => "supplier",
            Table::Part => "part",
            Table::PartSupp => "partsupp",
            Table::Customer => "customer",
            Table::Orders => "orders",
            Table::LineItem => "lineitem",
        }
    }

    pub fn columns(self) -> &'static [(&'static str, Kind)] {
        match self {
            Table::Region => &[("r_regionkey", Long), ("r_name", Text), ("r_comment", Text)],
            Table::Nation => &[("n_nationkey", Long), ("n_name", Text), ("n_regionkey", Long), ("n_comment", Text)],
            Table::Supplier => &[
                ("s_suppkey", Long),
                ("s_name", Text),
                ("s_address", Text),
                ("s_nationkey", Long),
                ("s_phone", Text),
                ("s_acctbal", Money),
                ("s_comment", Text),
            ],
            Table::Part => &[
                ("p_partkey", Long),
                ("p_name", Text),
                ("p_mfgr", Text),
                ("p_brand", Text),
                ("p_type", Text),
                ("p_size", Int),
                ("p_container", Text),
                ("p_retailprice", Money),
                ("p_comment", Text),
            ],
            Table::PartSupp => &[
                ("ps_partkey", Long),
                ("ps_suppkey", Long),
                ("ps_availqty", Int),
                ("ps_supplycost", Money),
                ("ps_comment", Text),
            ],
            Table::Customer => &[
                ("c_custkey", Long),
                ("c_name", Text),
                ("c_address", Text),
                ("c_nationkey", Long),
                ("c_phone", Text),
                ("c_acctbal", Money),
                ("c_mktsegment", Text),
                ("c_comment", Text),
            ],
            Table::Orders => &[
                ("o_orderkey", Long),
                ("o_custkey", Long),
                ("o_orderstatus", Text),
                ("o_totalprice", Money),
                ("o_orderdate", Date),
                ("o_orderpriority", Text),
                ("o_clerk", Text),
                ("o_shippriority", Int),
                ("o_comment", Text),
            ],
            Table::LineItem => &[
                ("l_orderkey", Long),
                ("l_linenumber", Int),
                ("l_partkey", Long),
                ("l_suppkey", Long),
                ("l_quantity", Money),
                ("l_extendedprice", Money),
                ("l_discount", Money),
                ("l_tax", Money),
                ("l_returnflag", Text),
                ("l_linestatus", Text),
                ("l_shipdate", Date),
                ("l_commitdate", Date),
                ("l_receiptdate", Date),
                ("l_shipinstruct", Text),
                ("l_shipmode", Text),
                ("l_comment", Text),
            ],
        }
    }

    /// The key's columns stand first.
    pub fn key_columns(self) -> usize {
        match self {
            Table::PartSupp | Table::LineItem => 2,
            _ => 1,
        }
    }

    /// The table as a source of a dataflow.
    pub fn source(self) -> Source {
        let fields: Vec<_> = self
            .columns()
            .iter()
            .map(|(name, kind)| {
                let avro = match kind {
                    Long => json!("long"),
                    Int => json!("int"),
                    Money => {
                        json!({"type": "bytes", "logicalType": "decimal", "precision": MONEY.0, "scale": MONEY.1})
                    }
                    Date => json!({"type": "int", "logicalType": "date"}),
                    Text => json!("string"),
                };
                json!({"name": name, "type": avro})
            })
            .collect();
        let contract = json!({"type": "record", "name": self.name(), "fields": fields}).to_string();
        Source {
            schema: SCHEMA.into(),
            table: self.name().into(),
            topic: format!("{SCHEMA}.{}", self.name()).into(),
            format: Format::Avro,
            envelope: Envelope::Debezium,
            key: self.columns()[..self.key_columns()].iter().map(|(name, _)| (*name).into()).collect(),
            unavailable: String::new(),
            contract,
            contract_path: format!("{}.avsc", self.name()).into(),
        }
    }

    /// The place of a column.
    pub fn column(self, name: &str) -> usize {
        let found = self.columns().iter().position(|(column, _)| *column == name);
        found.unwrap_or_else(|| panic!("{} has no column {name}", self.name()))
    }

    pub fn key(self, row: &[Value]) -> Key {
        let second = if self.key_columns() == 2 { row[1].number() } else { 0 };
        (row[0].number(), second)
    }

    /// Rows as columns.
    pub fn batch<'a>(self, rows: impl Iterator<Item = &'a [Value]> + Clone) -> Result<RecordBatch, ArrowError> {
        let columns = self.columns().iter().enumerate().map(|(n, (name, kind))| {
            let values = rows.clone().map(move |row| &row[n]);
            let numbers = values.clone().map(Value::number);
            let column: ArrayRef = match kind {
                Long => Arc::new(Int64Array::from_iter_values(numbers)),
                Int => Arc::new(Int32Array::from_iter_values(numbers.map(|n| n as i32))),
                Date => Arc::new(Date32Array::from_iter_values(numbers.map(|n| n as i32))),
                Money => {
                    let unscaled = Decimal128Array::from_iter_values(numbers.map(i128::from));
                    Arc::new(unscaled.with_precision_and_scale(MONEY.0, MONEY.1)?)
                }
                Text => Arc::new(StringArray::from_iter_values(values.map(Value::text))),
            };
            Ok((*name, column, false))
        });
        RecordBatch::try_from_iter_with_nullable(columns.collect::<Result<Vec<_>, ArrowError>>()?)
    }
}

/// A value of a row: no column of TPC-H is null.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    /// An integer, hundredths of money, or days since 1970.
    Number(i64),
    Text(Arc<str>),
}

impl Value {
    pub fn number(&self) -> i64 {
        match self {
            Value::Number(number) => *number,
            Value::Text(text) => panic!("{text:?} is no number"),
        }
    }

    fn text(&self) -> &str {
        match self {
            Value::Text(text) => text,
            Value::Number(number) => panic!("{number} is no text"),
        }
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Value {
        Value::Number(number)
    }
}

impl From<Arc<str>> for Value {
    fn from(text: Arc<str>) -> Value {
        Value::Text(text)
    }
}

impl From<String> for Value {
    fn from(text: String) -> Value {
        Value::Text(text.into())
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Text(text.into())
    }
}

pub(super) type Record = Box<[Value]>;
/// The key's columns; the second is 0 where there is one.
pub(super) type Key = (i64, i64);

/// One row that was written or deleted.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub table: Table,
    /// The row as it is after the event, or as it was before it was deleted.
    pub row: Record,
    pub deleted: bool,
}

/// A table as it stands, from which rows can be drawn at random.
pub(super) struct Rows {
    table: Table,
    rows: Vec<Record>,
    places: HashMap<Key, usize>,
}

impl Rows {
    pub fn new(table: Table) -> Rows {
        Rows { table, rows: Vec::new(), places: HashMap::new() }
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn get(&self, key: Key) -> Option<&Record> {
        self.places.get(&key).map(|place| &self.rows[*place])
    }

    /// Any of the rows, each with the same chance; `None` if there is none.
    pub fn any(&self, rng: &mut StdRng) -> Option<&Record> {
        (!self.rows.is_empty()).then(|| &self.rows[rng.random_range(0..self.rows.len())])
    }

    pub fn put(&mut self, row: Record) {
        match self.places.entry(self.table.key(&row)) {
            std::collections::hash_map::Entry::Occupied(place) => self.rows[*place.get()] = row,
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(self.rows.len());
                self.rows.push(row);
            }
        }
    }

    pub fn remove(&mut self, key: Key) -> Option<Record> {
        let place = self.places.remove(&key)?;
        let row = self.rows.swap_remove(place);
        if let Some(moved) = self.rows.get(place) {
            self.places.insert(self.table.key(moved), place);
        }
        Some(row)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Record> + Clone {
        self.rows.iter()
    }

    /// All rows as columns.
    pub fn batch(&self) -> Result<RecordBatch, ArrowError> {
        self.table.batch(self.iter().map(|row| &**row))
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::Schema;
    use rand::SeedableRng;

    use super::*;
    use crate::decode::RowType;

    #[test]
    fn contracts_and_rows_have_the_same_columns() {
        // A row may have nulls that its contract rules out, and these tables have none.
        let columns = |schema: &Schema| {
            schema.fields().iter().map(|f| (f.name().clone(), f.data_type().clone())).collect::<Vec<_>>()
        };
        for table in Table::ALL {
            let row_type = RowType::from_contract(&table.source()).unwrap();
            let none: [&[Value]; 0] = [];
            let batch = table.batch(none.into_iter()).unwrap();
            assert_eq!(columns(row_type.schema()), columns(&batch.schema()));
            assert_eq!(row_type.key_columns().len(), table.key_columns());
        }
    }

    #[test]
    fn rows_are_found_by_key_whatever_was_removed() {
        let mut rows = Rows::new(Table::Region);
        let row = |key: i64, name: &str| Box::from([key.into(), name.into(), "".into()]);
        assert!(rows.any(&mut StdRng::seed_from_u64(1)).is_none());
        for (key, name) in [(1, "a"), (2, "b"), (3, "c"), (2, "d")] {
            rows.put(row(key, name));
        }
        assert_eq!(rows.remove((1, 0)), Some(row(1, "a")));
        assert_eq!(rows.remove((1, 0)), None);
        assert_eq!((rows.len(), rows.get((2, 0)), rows.get((3, 0))), (2, Some(&row(2, "d")), Some(&row(3, "c"))));
        assert_eq!(rows.batch().unwrap().num_rows(), 2);
    }
}
