//! An answer is what one call says of one group; the answers to a call about many groups are a column.
//!
//! The invariant: the column has the type that DataFusion gives the function.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Decimal128Array, Float64Array, Int64Array, UInt64Array};
use arrow::datatypes::DataType;
use arrow_row::{RowConverter, SortField};
use datafusion::common::ScalarValue;
use datafusion::error::Result;

use super::{AggregateCall, Kind};

/// What a call says of a group.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::dataflow) enum Answer {
    Null,
    Integer(i128),
    Float(f64),
    Flag(bool),
    Bytes(Box<[u8]>),
    Scalar(ScalarValue),
}

impl AggregateCall {
    /// The results of many groups as a column.
    pub fn column(&self, results: Vec<Answer>) -> Result<ArrayRef> {
        let integer = |v: &Answer| match v {
            Answer::Integer(v) => Some(*v),
            _ => None,
        };
        let ty = self.function.field().data_type().clone();
        Ok(match (self.kind, &ty) {
            (Kind::Count | Kind::CountDistinct, _) | (Kind::SumInteger, DataType::Int64) => {
                Arc::new(results.iter().map(|v| integer(v).map(|i| i as i64)).collect::<Int64Array>())
            }
            (Kind::SumInteger, DataType::UInt64) => {
                Arc::new(results.iter().map(|v| integer(v).map(|i| i as u64)).collect::<UInt64Array>())
            }
            (Kind::SumInteger | Kind::AverageDecimal { .. }, _) => {
                let array: Decimal128Array = results.iter().map(integer).collect();
                Arc::new(array.with_data_type(ty))
            }
            (Kind::SumFloat | Kind::AverageFloat, _) => Arc::new(
                results
                    .iter()
                    .map(|v| match v {
                        Answer::Float(v) => Some(*v),
                        _ => None,
                    })
                    .collect::<Float64Array>(),
            ),
            (Kind::And | Kind::Or, _) => Arc::new(
                results
                    .iter()
                    .map(|v| match v {
                        Answer::Flag(v) => Some(*v),
                        _ => None,
                    })
                    .collect::<BooleanArray>(),
            ),
            (Kind::Minimum | Kind::Maximum, _) => {
                let converter = RowConverter::new(vec![SortField::new(self.argument_types[0].clone())])?;
                let parser = converter.parser();
                let null = converter.convert_columns(&[arrow::array::new_null_array(&self.argument_types[0], 1)])?;
                let rows = results.iter().map(|v| match v {
                    Answer::Bytes(bytes) => parser.parse(bytes),
                    _ => null.row(0),
                });
                let column = converter.convert_rows(rows)?.swap_remove(0);
                arrow::compute::cast(&column, &ty)?
            }
            (Kind::General { .. }, _) => {
                let null = ScalarValue::try_from(&ty)?;
                ScalarValue::iter_to_array(results.into_iter().map(|v| match v {
                    Answer::Scalar(scalar) => scalar,
                    _ => null.clone(),
                }))?
            }
        })
    }
}
