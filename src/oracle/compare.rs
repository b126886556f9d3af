//! Two answers compared as multisets of rows.
//!
//! The invariant: only doubles may differ, and by no more than 1e-9 of their size: DataFusion adds them up in the order in which it meets
//! them, so their last digits are nobody's promise. All else is equal to the byte, types included.

use std::collections::BTreeMap;

use arrow::array::RecordBatch;
use arrow::compute::cast;
use arrow::datatypes::DataType;
use arrow_row::{RowConverter, SortField};
use datafusion::common::ScalarValue;
use datafusion::error::Result;

const TOLERANCE: f64 = 1e-9;

/// Rows that one answer has and the other lacks, as text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// The maintained view lacks them.
    pub missing: Vec<String>,
    /// Only the maintained view has them.
    pub extra: Vec<String>,
}

/// What the maintained answer has wrong; `None` when it is right.
pub fn difference(maintained: &RecordBatch, batch: &RecordBatch) -> Result<Option<Difference>> {
    let types = |b: &RecordBatch| b.columns().iter().map(|c| plain(c.data_type())).collect::<Vec<_>>();
    let (own, other) = (types(maintained), types(batch));
    if own != other {
        let (extra, missing) = (vec![format!("columns {own:?}")], vec![format!("columns {other:?}")]);
        return Ok(Some(Difference { missing, extra }));
    }
    let converter = RowConverter::new(own.iter().cloned().map(SortField::new).collect())?;
    let mut counts: BTreeMap<Box<[u8]>, isize> = BTreeMap::new();
    for (answer, diff) in [(maintained, 1), (batch, -1)] {
        let columns = answer.columns().iter().zip(&own).map(|(c, t)| Ok(cast(c, t)?)).collect::<Result<Vec<_>>>()?;
        if columns.is_empty() {
            *counts.entry(Box::default()).or_default() += diff * answer.num_rows() as isize;
            continue;
        }
        for row in &converter.convert_columns(&columns)? {
            *counts.entry(row.data().into()).or_default() += diff;
        }
    }
    let parser = converter.parser();
    let rows = |positive: bool| -> Result<Vec<Vec<ScalarValue>>> {
        let of = counts.iter().filter(|(_, count)| (**count > 0) == positive);
        let of = of.flat_map(|(row, count)| std::iter::repeat_n(row, count.unsigned_abs()));
        let columns = converter.convert_rows(of.map(|row| parser.parse(row)))?;
        let count = columns.first().map_or(0, |c| c.len());
        (0..count).map(|n| columns.iter().map(|c| ScalarValue::try_from_array(c, n)).collect()).collect()
    };
    let (mut extra, mut missing) = (rows(true)?, rows(false)?);
    extra.retain(|row| match missing.iter().position(|other| close_rows(row, other)) {
        Some(at) => {
            missing.swap_remove(at);
            false
        }
        None => true,
    });
    if extra.is_empty() && missing.is_empty() {
        return Ok(None);
    }
    let shown = |rows: Vec<Vec<ScalarValue>>| -> Vec<String> {
        let mut rows: Vec<String> =
            rows.iter().map(|row| row.iter().map(ScalarValue::to_string).collect::<Vec<_>>().join(" | ")).collect();
        rows.sort();
        rows
    };
    Ok(Some(Difference { missing: shown(missing), extra: shown(extra) }))
}

/// How text is laid out in memory is not part of an answer.
fn plain(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
        other => other.clone(),
    }
}

fn close_rows(left: &[ScalarValue], right: &[ScalarValue]) -> bool {
    left.iter().zip(right).all(|(l, r)| match (l, r) {
        (ScalarValue::Float64(Some(l)), ScalarValue::Float64(Some(r))) => close(*l, *r),
        (l, r) => l == r,
    })
}

fn close(left: f64, right: f64) -> bool {
    left == right
        || (left.is_nan() && right.is_nan())
        || (left - right).abs() <= TOLERANCE * left.abs().max(right.abs())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Float64Array, Int64Array};

    use super::*;

    fn answer(ids: Vec<Option<i64>>, values: Vec<f64>) -> RecordBatch {
        let columns: [(&str, ArrayRef); 2] =
            [("id", Arc::new(Int64Array::from(ids))), ("value", Arc::new(Float64Array::from(values)))];
        RecordBatch::try_from_iter(columns).unwrap()
    }

    #[test]
    fn order_does_not_count_but_number_does() {
        let left = answer(vec![Some(1), None, None], vec![1.0, 2.0, 2.0]);
        let right = answer(vec![None, Some(1), None], vec![2.0, 1.0, 2.0]);
        assert_eq!(difference(&left, &right).unwrap(), None);
        let fewer = answer(vec![None, Some(1)], vec![2.0, 1.0]);
        let found = difference(&left, &fewer).unwrap().unwrap();
        assert_eq!((found.extra, found.missing), (vec!["NULL | 2".to_string()], vec![]));
    }

    #[test]
    fn doubles_may_differ_in_their_last_digits_only() {
        let of = |v: f64| answer(vec![Some(1)], vec![v]);
        assert_eq!(difference(&of(0.1 + 0.2), &of(0.3)).unwrap(), None);
        assert_eq!(difference(&of(f64::NAN), &of(-f64::NAN)).unwrap(), None);
        assert!(difference(&of(0.3), &of(0.300_001)).unwrap().is_some());
        assert!(difference(&of(0.0), &of(f64::NAN)).unwrap().is_some());
    }
}
