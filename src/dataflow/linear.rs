//! Linear operators on rows: projections and filters, fused, evaluated by DataFusion's expressions on whole batches.
//!
//! The invariant: each row's result depends on that row alone. When an expression fails for a batch, the batch is taken row by row, so that
//! only the rows that fail are left out.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute::filter;
use arrow::datatypes::SchemaRef;
use arrow_row::{RowConverter, SortField};
use datafusion::common::cast::as_boolean_array;
use datafusion::error::{DataFusionError, Result};

use super::Row;
use super::plan::Stage;
use crate::decode::RowType;

/// Rows of one evaluation.
const BATCH_ROWS: usize = 8192;

pub(super) struct Linear {
    table: Arc<RowType>,
    stages: Vec<Stage>,
    rows: RowConverter,
    keys: RowConverter,
    key_column: usize,
}

/// A row of the view, and the index of the input row that it comes from.
pub(super) struct Evaluated {
    pub input: usize,
    pub key: Box<[u8]>,
    pub row: Row,
}

pub(super) fn converter(fields: impl IntoIterator<Item = arrow::datatypes::DataType>) -> RowConverter {
    let fields = fields.into_iter().map(SortField::new).collect();
    RowConverter::new(fields).expect("the plan's types have a row format")
}

impl Linear {
    pub fn new(table: Arc<RowType>, stages: Vec<Stage>, view: &SchemaRef, key_column: usize) -> Linear {
        let rows = converter(view.fields().iter().map(|f| f.data_type().clone()));
        let keys = converter([view.field(key_column).data_type().clone()]);
        Linear { table, stages, rows, keys, key_column }
    }

    /// Evaluates rows of the table; the second list has those that failed, and why.
    pub fn evaluate(&self, rows: &[&[u8]]) -> (Vec<Evaluated>, Vec<(usize, String)>) {
        let (mut done, mut failed) = (Vec::with_capacity(rows.len()), Vec::new());
        for (n, chunk) in rows.chunks(BATCH_ROWS).enumerate() {
            self.chunk(chunk, n * BATCH_ROWS, &mut done, &mut failed);
        }
        (done, failed)
    }

    fn chunk(&self, rows: &[&[u8]], base: usize, done: &mut Vec<Evaluated>, failed: &mut Vec<(usize, String)>) {
        match self.batch(rows, base) {
            Ok(evaluated) => done.extend(evaluated),
            Err(e) if rows.len() == 1 => failed.push((base, e.strip_backtrace())),
            // By halves: one bad row among many costs a logarithm, not all of them.
            Err(_) => {
                let (left, right) = rows.split_at(rows.len() / 2);
                self.chunk(left, base, done, failed);
                self.chunk(right, base + left.len(), done, failed);
            }
        }
    }

    fn batch(&self, rows: &[&[u8]], base: usize) -> Result<Vec<Evaluated>> {
        let columns = self.table.rows_to_columns(rows.iter().copied())?;
        // A database may not have sent a value that its contract wants: nothing here may rest on a column being not null.
        let schema = nullable(self.table.schema());
        let mut batch = RecordBatch::try_new(schema, columns)?;
        let mut inputs: Option<UInt32Array> = None;
        for stage in &self.stages {
            match stage {
                Stage::Project(exprs, schema) => {
                    let columns: Vec<ArrayRef> = exprs
                        .iter()
                        .map(|e| e.evaluate(&batch)?.into_array(batch.num_rows()))
                        .collect::<Result<_>>()?;
                    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
                    batch = RecordBatch::try_new_with_options(nullable(schema), columns, &options)?;
                }
                Stage::Filter(predicate) => {
                    let mask = predicate.evaluate(&batch)?.into_array(batch.num_rows())?;
                    let mask: &BooleanArray = as_boolean_array(&mask)?;
                    let kept = match inputs {
                        Some(inputs) => filter(&inputs, mask)?,
                        None => filter(&UInt32Array::from_iter_values(0..rows.len() as u32), mask)?,
                    };
                    let kept = kept.as_any().downcast_ref::<UInt32Array>();
                    inputs = Some(
                        kept.ok_or_else(|| DataFusionError::Internal("a filter changed its type".into()))?.clone(),
                    );
                    batch = arrow::compute::filter_record_batch(&batch, mask)?;
                }
            }
        }
        let out = self.rows.convert_columns(batch.columns())?;
        let keys = self.keys.convert_columns(&[batch.column(self.key_column).clone()])?;
        let input = |n: usize| base + inputs.as_ref().map_or(n, |i| i.value(n) as usize);
        Ok((0..batch.num_rows())
            .map(|n| Evaluated { input: input(n), key: keys.row(n).data().into(), row: out.row(n).data().into() })
            .collect())
    }
}

fn nullable(schema: &SchemaRef) -> SchemaRef {
    let fields: Vec<_> = schema.fields().iter().map(|f| f.as_ref().clone().with_nullable(true)).collect();
    Arc::new(arrow::datatypes::Schema::new(fields))
}
