//! Comparing a maintained view with a batch answer, as multisets of rows.
//!
//! The invariant: every type is compared exactly but floating point, whose sums depend on the order of their terms.

use std::collections::HashMap;

use arrow::array::cast::AsArray;
use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, SchemaRef};
use arrow::error::ArrowError;
use arrow::util::display::array_value_to_string;
use arrow_row::{RowConverter, SortField};

use crate::dataflow::Row;

/// How far two floats may be apart, as a part of the larger one.
const TOLERANCE: f64 = 1e-9;
/// Rows of a difference that are shown.
const SHOWN: usize = 3;

/// A view without a key: its rows, and how often each is there.
#[derive(Default)]
pub(super) struct View(HashMap<Row, isize>);

impl View {
    pub fn apply(&mut self, diffs: Vec<(Row, isize)>) {
        for (row, diff) in diffs {
            let count = self.0.entry(row.clone()).or_insert(0);
            *count += diff;
            if *count == 0 {
                self.0.remove(&row);
            }
        }
    }

    /// What the view and the batch answer do not agree about; `None` when they agree.
    pub fn difference(&self, expected: &RecordBatch) -> Result<Option<String>, ArrowError> {
        let schema = expected.schema();
        let converter = converter(schema.fields().iter().map(|f| f.data_type()))?;
        let rows = converter.convert_columns(expected.columns())?;
        let mut counts: HashMap<&[u8], isize> = self.0.iter().map(|(row, count)| (&**row, *count)).collect();
        for row in &rows {
            *counts.entry(row.data()).or_insert(0) -= 1;
        }
        let of = |sign: isize| -> Vec<&[u8]> {
            let wanted = counts.iter().filter(|(_, count)| *count * sign > 0);
            wanted.flat_map(|(row, count)| std::iter::repeat_n(*row, count.unsigned_abs())).collect()
        };
        let (extra, missing) = (of(1), of(-1));
        if extra.is_empty() && missing.is_empty() {
            return Ok(None);
        }
        let parser = converter.parser();
        let columns = |rows: &[&[u8]]| converter.convert_rows(rows.iter().map(|row| parser.parse(row)));
        let (extra_columns, missing_columns) = (columns(&extra)?, columns(&missing)?);
        if extra.len() == missing.len() && are_close(&schema, &extra_columns, &missing_columns)? {
            return Ok(None);
        }
        Ok(Some(format!(
            "of {} rows {} are missing{}, and {} should not be there{}",
            rows.num_rows(),
            missing.len(),
            shown(&missing_columns)?,
            extra.len(),
            shown(&extra_columns)?
        )))
    }
}

fn converter<'a>(types: impl Iterator<Item = &'a DataType>) -> Result<RowConverter, ArrowError> {
    RowConverter::new(types.map(|t| SortField::new(t.clone())).collect())
}

/// Whether these rows, put in order, are the same but for the last digits of floats.
fn are_close(schema: &SchemaRef, left: &[ArrayRef], right: &[ArrayRef]) -> Result<bool, ArrowError> {
    let is_float = |n: &usize| schema.field(*n).data_type().is_floating();
    let (floats, exact): (Vec<usize>, Vec<usize>) = (0..schema.fields().len()).partition(is_float);
    if floats.is_empty() {
        return Ok(false);
    }
    let (left, right) = (parts(schema, left, &exact, &floats)?, parts(schema, right, &exact, &floats)?);
    let close = |a: &Option<f64>, b: &Option<f64>| match (a, b) {
        (Some(a), Some(b)) => a == b || (a - b).abs() <= TOLERANCE * a.abs().max(b.abs()),
        (a, b) => a.is_none() && b.is_none(),
    };
    Ok(left.iter().zip(&right).all(|((row, a), (other, b))| row == other && a.iter().zip(b).all(|(a, b)| close(a, b))))
}

/// The exact columns of each row as row bytes, and its floats, in order.
type Parts = Vec<(Vec<u8>, Vec<Option<f64>>)>;

fn parts(schema: &SchemaRef, columns: &[ArrayRef], exact: &[usize], floats: &[usize]) -> Result<Parts, ArrowError> {
    let count = columns.first().map_or(0, |c| c.len());
    let mut parts: Parts = vec![Default::default(); count];
    if !exact.is_empty() {
        let converter = converter(exact.iter().map(|n| schema.field(*n).data_type()))?;
        let rows = converter.convert_columns(&exact.iter().map(|n| columns[*n].clone()).collect::<Vec<_>>())?;
        parts.iter_mut().zip(&rows).for_each(|(part, row)| part.0 = row.data().to_vec());
    }
    for n in floats {
        let column = cast(&columns[*n], &DataType::Float64)?;
        parts.iter_mut().zip(column.as_primitive::<Float64Type>()).for_each(|(part, value)| part.1.push(value));
    }
    parts.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    Ok(parts)
}

fn shown(columns: &[ArrayRef]) -> Result<String, ArrowError> {
    let count = columns.first().map_or(0, |c| c.len());
    let value = |column: &ArrayRef, n: usize| match column.is_null(n) {
        true => Ok("null".to_string()),
        false => array_value_to_string(column, n),
    };
    let row = |n: usize| {
        let values: Vec<String> = columns.iter().map(|c| value(c, n)).collect::<Result<_, ArrowError>>()?;
        Ok(format!("({})", values.join(", ")))
    };
    let rows = (0..count.min(SHOWN)).map(row).collect::<Result<Vec<_>, ArrowError>>()?;
    Ok(match count {
        0 => String::new(),
        count if count > SHOWN => format!(", such as {}", rows.join(" ")),
        _ => format!(", {}", rows.join(" ")),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Float64Array, Int64Array};

    use super::*;

    fn batch(rows: &[(i64, f64)]) -> RecordBatch {
        let keys: ArrayRef = Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.0)));
        let floats: ArrayRef = Arc::new(Float64Array::from_iter_values(rows.iter().map(|r| r.1)));
        RecordBatch::try_from_iter([("k", keys), ("f", floats)]).unwrap()
    }

    fn view(rows: &[(i64, f64)]) -> View {
        let batch = batch(rows);
        let converter = converter(batch.schema().fields().iter().map(|f| f.data_type())).unwrap();
        let rows = converter.convert_columns(batch.columns()).unwrap();
        let mut view = View::default();
        view.apply(rows.iter().map(|row| (row.data().into(), 1)).collect());
        view
    }

    #[test]
    fn rows_are_compared_as_a_multiset() {
        let check = |left: &[(i64, f64)], right: &[(i64, f64)], expect: Option<&str>| {
            assert_eq!(view(left).difference(&batch(right)).unwrap().as_deref(), expect);
        };
        check(&[], &[], None);
        check(&[(2, 1.0), (1, 0.1)], &[(1, 0.1), (2, 1.0)], None);
        check(&[(1, 0.1 + 0.2), (1, 5.0)], &[(1, 5.0), (1, 0.3)], None);
        let missing = "of 2 rows 1 are missing, (1, 0.5), and 0 should not be there";
        check(&[(1, 0.5)], &[(1, 0.5), (1, 0.5)], Some(missing));
        let other = "of 1 rows 1 are missing, (1, 0.30001), and 1 should not be there, (1, 0.3)";
        check(&[(1, 0.3)], &[(1, 0.30001)], Some(other));
        let key = "of 1 rows 1 are missing, (2, 0.3), and 1 should not be there, (1, 0.3)";
        check(&[(1, 0.3)], &[(2, 0.3)], Some(key));
    }

    #[test]
    fn a_row_that_was_taken_once_too_often_differs() {
        let mut view = view(&[(1, 0.5)]);
        let row = view.0.keys().next().unwrap().clone();
        view.apply(vec![(row, -2)]);
        let found = view.difference(&batch(&[])).unwrap();
        assert_eq!(found.as_deref(), Some("of 0 rows 1 are missing, (1, 0.5), and 0 should not be there"));
    }
}
