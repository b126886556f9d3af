//! Window operators keep the rows of every key in order: window functions over all of them, and the first few of them.
//!
//! The invariant: rows of equal order stand in the order of their bytes, so the same rows always have the same answer. A changed key costs
//! its rows for window functions, and the rows that are asked for when only the first ones are.

use std::collections::BTreeMap;

use ahash::AHashMap;
use arrow::array::{ArrayRef, RecordBatch, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema};
use arrow_row::{RowConverter, SortField};
use datafusion::common::ScalarValue;
use datafusion::error::Result;
use datafusion::physical_expr::PhysicalSortExpr;
use datafusion::physical_expr::window::StandardWindowExpr;
use differential_dataflow::consolidation::consolidate;

use super::Row;
use super::aggregate::Applied;
use super::codec::{Codec, concat};
use super::graph::{WindowCall, WindowCalls};
use super::key::{Key, Value};
use super::stats::Size;

/// Rows in order, and how often each is there.
type Ordered = BTreeMap<(Box<[u8]>, Row), isize>;

pub(super) struct Windows {
    rows: Codec,
    order: Vec<PhysicalSortExpr>,
    order_converter: RowConverter,
    work: Work,
    partitions: AHashMap<Key, Ordered>,
    size: Size,
}

enum Work {
    Functions {
        window: WindowCalls,
        results: Codec,
    },
    /// The rows from `skip` on, `fetch` of them; with their number, if it is asked for.
    First {
        skip: usize,
        fetch: Option<usize>,
        rank: Option<Codec>,
    },
}

impl Windows {
    pub fn functions(rows: &Schema, window: WindowCalls) -> Result<Windows> {
        let results = Codec::new(&window.results);
        Self::new(rows, window.order.clone(), Work::Functions { window, results })
    }

    pub fn first(
        rows: &Schema,
        order: Vec<PhysicalSortExpr>,
        skip: usize,
        fetch: Option<usize>,
        rank: bool,
    ) -> Result<Windows> {
        let rank = rank.then(|| Codec::new(&Schema::new(vec![Field::new("rank", DataType::UInt64, false)])));
        Self::new(rows, order, Work::First { skip, fetch, rank })
    }

    fn new(rows: &Schema, order: Vec<PhysicalSortExpr>, work: Work) -> Result<Windows> {
        let rows = Codec::new(rows);
        let fields = order
            .iter()
            .map(|o| Ok(SortField::new_with_options(o.expr.data_type(rows.schema())?, o.options)))
            .collect::<Result<Vec<_>>>()?;
        let order_converter = RowConverter::new(fields)?;
        Ok(Windows { rows, order, order_converter, work, partitions: AHashMap::new(), size: Size::default() })
    }

    pub fn size(&self) -> Size {
        self.size
    }

    /// Applies an epoch's updates, which are sorted; what comes back are the diffs of the output, and of keys whose functions failed.
    pub fn apply(&mut self, updates: &[((Key, Value), isize)]) -> Result<Applied> {
        let batch = self.rows.decode(updates.iter().map(|((_, value), _)| &*value.row))?;
        let mut orders: Vec<Box<[u8]>> = Vec::with_capacity(updates.len());
        if self.order.is_empty() {
            orders.resize(updates.len(), Box::default());
        } else {
            let columns: Vec<ArrayRef> = self
                .order
                .iter()
                .map(|o| o.expr.evaluate(&batch)?.into_array(batch.num_rows()))
                .collect::<Result<_>>()?;
            orders.extend(self.order_converter.convert_columns(&columns)?.iter().map(|row| row.data().into()));
        }
        let mut applied = Applied::default();
        let mut orders = orders.into_iter();
        let mut start = 0;
        while start < updates.len() {
            let key = &updates[start].0.0;
            let end = start + updates[start..].iter().take_while(|((k, _), _)| k == key).count();
            let mut partition = self.partitions.remove(key).unwrap_or_default();
            let mut changes = Vec::new();
            self.emit_or_fail(key, &partition, -1, &mut changes, &mut applied);
            for ((_, Value { row, .. }), diff) in &updates[start..end] {
                let order = orders.next().expect("an order for each row");
                let bytes = order.len() + row.len();
                let entry = partition.entry((order, row.clone()));
                match entry {
                    std::collections::btree_map::Entry::Vacant(vacant) => {
                        vacant.insert(*diff);
                        self.size.add(bytes);
                    }
                    std::collections::btree_map::Entry::Occupied(mut occupied) => {
                        *occupied.get_mut() += diff;
                        if *occupied.get() == 0 {
                            occupied.remove();
                            self.size.remove(bytes);
                        }
                    }
                }
            }
            self.emit_or_fail(key, &partition, 1, &mut changes, &mut applied);
            consolidate(&mut changes);
            applied.out.append(&mut changes);
            if !partition.is_empty() {
                self.partitions.insert(key.clone(), partition);
            }
            start = end;
        }
        Ok(applied)
    }

    /// A key whose functions fail has no output, and is told of.
    fn emit_or_fail(
        &self,
        key: &Key,
        partition: &Ordered,
        diff: isize,
        out: &mut Vec<(Row, isize)>,
        applied: &mut Applied,
    ) {
        let before = out.len();
        if let Err(e) = self.emit(partition, diff, out) {
            out.truncate(before);
            applied.failed.push((Row::from(&**key), e.strip_backtrace(), diff));
        }
    }

    /// The output of one partition.
    fn emit(&self, partition: &Ordered, diff: isize, out: &mut Vec<(Row, isize)>) -> Result<()> {
        let each = || {
            partition
                .iter()
                .flat_map(|((_, row), count)| std::iter::repeat_n(row, usize::try_from(*count).unwrap_or(0)))
        };
        match &self.work {
            Work::First { skip, fetch, rank } => {
                let chosen = each().skip(*skip).take(fetch.unwrap_or(usize::MAX));
                match rank {
                    None => out.extend(chosen.map(|row| (row.clone(), diff))),
                    Some(codec) => {
                        let chosen: Vec<&Row> = chosen.collect();
                        let numbers = UInt64Array::from_iter_values((0..chosen.len()).map(|n| (skip + n + 1) as u64));
                        let mut rows = chosen.iter();
                        codec.encode(&[std::sync::Arc::new(numbers)], chosen.len(), |bytes| {
                            let row = rows.next().expect("a row for each number");
                            out.push((concat(row, bytes), diff));
                        })?;
                    }
                }
            }
            Work::Functions { window, results } => {
                let rows: Vec<&Row> = each().collect();
                if rows.is_empty() {
                    return Ok(());
                }
                let batch: RecordBatch = self.rows.decode(rows.iter().map(|row| &***row))?;
                let columns: Vec<ArrayRef> =
                    window.calls.iter().map(|call| evaluate(call, &batch)).collect::<Result<_>>()?;
                let mut each = rows.iter();
                results.encode(&columns, rows.len(), |bytes| {
                    let row = each.next().expect("a row for each result");
                    out.push((concat(row, bytes), diff));
                })?;
            }
        }
        Ok(())
    }
}

/// A call's results over a partition.
fn evaluate(call: &WindowCall, rows: &RecordBatch) -> Result<ArrayRef> {
    let standard = call.function.as_any().downcast_ref::<StandardWindowExpr>();
    let Some(function) = standard.filter(|_| call.row_by_row) else {
        return call.function.evaluate(rows);
    };
    let (arguments, count) = (call.function.evaluate_args(rows)?, rows.num_rows());
    let mut evaluator = function.get_standard_func_expr().create_evaluator()?;
    let mut of_row = |n| evaluator.get_range(n, count).and_then(|range| evaluator.evaluate(&arguments, &range));
    ScalarValue::iter_to_array((0..count).map(&mut of_row).collect::<Result<Vec<_>>>()?)
}
