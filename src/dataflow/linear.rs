//! Linear operators on rows: projections and filters, fused, evaluated by DataFusion's expressions on whole batches.
//!
//! The invariant: each row's result depends on that row alone. When an expression fails for a batch, the batch is taken apart, so that only
//! the rows that fail are left out. A column that is only moved is moved as bytes, and a row that no step has changed is handed on as it is.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch, UInt32Array};
use arrow::compute::{filter, filter_record_batch};
use arrow::datatypes::{Field, Schema, SchemaRef};
use arrow_row::{RowConverter, Rows};
use datafusion::common::cast::as_boolean_array;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::error::{DataFusionError, Result};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;

use super::Row;
use super::codec::{self, Codec};
use super::graph::{KeyedValue, NullKeys, Stage};
use super::key::Key;
use super::layout::{Layout, is_null, part};

/// Rows of one evaluation.
const BATCH_ROWS: usize = 8192;

/// Where a column of some step comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// It is the input's column.
    Input(usize),
    /// It is this one of the columns that the last projection computed.
    Computed(usize),
}

/// A step over the columns that are worked on: the input's decoded ones, then those that were computed last.
enum Step {
    Compute(Vec<Arc<dyn PhysicalExpr>>, SchemaRef),
    Filter(Arc<dyn PhysicalExpr>),
}

pub(super) struct Linear {
    /// Where the input's columns begin and end; `None` if that cannot be told, and rows are decoded whole.
    layout: Option<Layout>,
    whole: Codec,
    /// The input's columns that expressions read.
    decoded: Vec<usize>,
    decoder: RowConverter,
    decoded_schema: SchemaRef,
    steps: Vec<Step>,
    key: Option<(Writer, NullKeys)>,
    /// `None` hands the input's row on.
    value: Option<Writer>,
    /// Input columns whose place has to be known, counted from the first.
    located: usize,
}

/// Writes rows of chosen columns.
struct Writer {
    pieces: Vec<Piece>,
    /// The columns that are written anew, in the order of their pieces.
    computed: Vec<Origin>,
    converters: Vec<RowConverter>,
    nothing: Row,
}

/// A stretch of a row that is written.
enum Piece {
    /// These columns of the input, as bytes.
    Moved(Range<usize>),
    /// Columns that are encoded, from and to their place in `computed`.
    Encoded(Range<usize>),
}

/// A row that came out, and the index of the input row that it comes from.
pub(super) struct Evaluated {
    pub input: usize,
    pub key: Key,
    pub row: Row,
}

impl Linear {
    /// Rows in, rows out.
    pub fn rows(input: &Schema, stages: &[Stage], output: &Schema) -> Linear {
        let width = output.fields().len();
        Linear::new(input, stages, None, &KeyedValue::Columns(0..width))
    }

    /// Rows in, pairs of key and value out.
    pub fn keyed(input: &Schema, stages: &[Stage], key: &[usize], value: &KeyedValue, nulls: NullKeys) -> Linear {
        Linear::new(input, stages, Some((key, nulls)), value)
    }

    fn new(input: &Schema, stages: &[Stage], key: Option<(&[usize], NullKeys)>, value: &KeyedValue) -> Linear {
        let width = input.fields().len();
        let layout = Layout::of(input);
        // First pass: what each column of the output is, and what has to be decoded for it.
        let mut origins: Vec<Origin> = (0..width).map(Origin::Input).collect();
        let mut read = vec![layout.is_none(); width];
        for stage in stages {
            let exprs = match stage {
                Stage::Filter(predicate) => std::slice::from_ref(predicate),
                Stage::Project(exprs, _) => exprs,
            };
            for expr in exprs.iter().filter(|e| matches!(stage, Stage::Filter(_)) || !e.is::<Column>()) {
                for column in columns_of(expr) {
                    if let Origin::Input(column) = origins[column] {
                        read[column] = true;
                    }
                }
            }
            if let Stage::Project(exprs, _) = stage {
                origins = projected(&origins, exprs);
            }
        }
        let decoded: Vec<usize> = (0..width).filter(|c| read[*c]).collect();
        let decoded_schema = codec::nullable(&input.project(&decoded).expect("the columns are the input's"));
        // Second pass: the expressions over the columns that are worked on.
        let mut steps = Vec::new();
        let mut at: Vec<Origin> = (0..width).map(Origin::Input).collect();
        let mut schema: SchemaRef = Arc::new(input.clone());
        let mut work = decoded_schema.clone();
        for stage in stages {
            match stage {
                Stage::Filter(predicate) => steps.push(Step::Filter(rebased(predicate, &at, &decoded, &work))),
                Stage::Project(exprs, output) => {
                    let mut fields: Vec<Arc<Field>> = decoded_schema.fields().iter().cloned().collect();
                    let mut computed = Vec::new();
                    for (n, expr) in exprs.iter().enumerate() {
                        let moved = expr.downcast_ref::<Column>().map(|c| at[c.index()]);
                        if !matches!(moved, Some(Origin::Input(_))) {
                            computed.push(rebased(expr, &at, &decoded, &work));
                            fields.push(Arc::new(output.field(n).clone().with_nullable(true)));
                        }
                    }
                    at = projected(&at, exprs);
                    work = Arc::new(Schema::new(fields));
                    steps.push(Step::Compute(computed, work.clone()));
                    schema = output.clone();
                }
            }
        }
        let output = schema.fields().len();
        let changed = stages.iter().any(|s| matches!(s, Stage::Project(..)));
        let range = match value {
            KeyedValue::Row => 0..output,
            KeyedValue::Columns(range) => range.clone(),
        };
        let writer = |columns: &[usize]| Writer::new(columns, &origins, &schema, layout.is_some());
        let value = (changed || range != (0..output)).then(|| writer(&range.clone().collect::<Vec<_>>()));
        let key = key.map(|(columns, nulls)| (writer(columns), nulls));
        let moved = |writer: &Writer| {
            let ends = writer.pieces.iter().map(|p| if let Piece::Moved(range) = p { range.end } else { 0 });
            ends.max().unwrap_or(0)
        };
        let located = [
            value.as_ref().map_or(0, moved),
            key.as_ref().map_or(0, |(w, _)| moved(w)),
            decoded.last().map_or(0, |last| last + 1),
        ];
        Linear {
            whole: Codec::new(input),
            decoder: part(input, &decoded),
            decoded,
            decoded_schema,
            steps,
            key,
            value,
            located: if layout.is_some() { located.into_iter().max().unwrap_or(0) } else { 0 },
            layout,
        }
    }

    /// Evaluates rows; the second list has those that failed, and why.
    pub fn evaluate(&self, rows: &[&Row]) -> (Vec<Evaluated>, Vec<(usize, String)>) {
        let (mut done, mut failed) = (Vec::with_capacity(rows.len()), Vec::new());
        for (n, chunk) in rows.chunks(BATCH_ROWS).enumerate() {
            self.chunk(chunk, n * BATCH_ROWS, &mut done, &mut failed);
        }
        (done, failed)
    }

    fn chunk(&self, rows: &[&Row], base: usize, done: &mut Vec<Evaluated>, failed: &mut Vec<(usize, String)>) {
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

    fn batch(&self, rows: &[&Row], base: usize) -> Result<Vec<Evaluated>> {
        // For each row: 0, then the ends of its first columns.
        let stride = self.located + 1;
        let mut ends = Vec::with_capacity(if self.located > 0 { rows.len() * stride } else { 0 });
        if let Some(layout) = self.layout.as_ref().filter(|_| self.located > 0) {
            for row in rows {
                ends.push(0);
                layout.ends(row, self.located, &mut ends);
            }
        }
        let places = Places { rows, ends, stride };
        let mut batch = self.decode(&places)?;
        let mut kept: Option<UInt32Array> = None;
        for step in &self.steps {
            match step {
                Step::Filter(predicate) => {
                    let mask = predicate.evaluate(&batch)?.into_array(batch.num_rows())?;
                    keep(&mut batch, &mut kept, as_boolean_array(&mask)?, rows.len())?;
                }
                Step::Compute(exprs, schema) => {
                    let count = batch.num_rows();
                    let mut columns = batch.columns()[..self.decoded.len()].to_vec();
                    for expr in exprs {
                        columns.push(expr.evaluate(&batch)?.into_array(count)?);
                    }
                    batch = codec::batch(schema.clone(), columns, count)?;
                }
            }
        }
        let input = |n: usize| kept.as_ref().map_or(n, |k| k.value(n) as usize);
        let mut out: Vec<Evaluated> = match &self.value {
            None => (0..batch.num_rows())
                .map(|n| Evaluated { input: input(n), key: Key::default(), row: rows[input(n)].clone() })
                .collect(),
            Some(writer) => {
                let mut out = Vec::with_capacity(batch.num_rows());
                writer.write(&batch, &self.decoded, &places, input, |n, bytes| {
                    let row = if bytes.is_empty() { writer.nothing.clone() } else { bytes.into() };
                    out.push(Evaluated { input: n, key: Key::default(), row });
                })?;
                out
            }
        };
        if let Some((writer, nulls)) = &self.key {
            let mut at = 0;
            writer.write(&batch, &self.decoded, &places, input, |_, bytes| {
                out[at].key = bytes.into();
                at += 1;
            })?;
            if *nulls == NullKeys::Drop {
                let null = writer.nulls(&batch, &self.decoded, &places, input);
                let mut at = 0..;
                out.retain(|_| !null[at.next().expect("as many as rows")]);
            }
        }
        out.iter_mut().for_each(|e| e.input += base);
        Ok(out)
    }

    /// The input's columns that expressions read.
    fn decode(&self, places: &Places<'_>) -> Result<RecordBatch> {
        if self.layout.is_none() {
            return Ok(self.whole.decode(places.rows.iter().map(|row| &***row))?);
        }
        let count = places.rows.len();
        let columns = match self.decoded.as_slice() {
            [] => vec![],
            [one] => {
                let parser = self.decoder.parser();
                self.decoder.convert_rows((0..count).map(|n| parser.parse(places.columns(n, *one..one + 1))))?
            }
            many => {
                let (mut bytes, mut bounds) = (Vec::new(), Vec::with_capacity(count + 1));
                bounds.push(0);
                for n in 0..count {
                    for column in many {
                        bytes.extend_from_slice(places.columns(n, *column..column + 1));
                    }
                    bounds.push(bytes.len());
                }
                let parser = self.decoder.parser();
                self.decoder.convert_rows(bounds.windows(2).map(|b| parser.parse(&bytes[b[0]..b[1]])))?
            }
        };
        Ok(codec::batch(self.decoded_schema.clone(), columns, count)?)
    }
}

/// Rows, and where their columns are.
struct Places<'a> {
    rows: &'a [&'a Row],
    ends: Vec<u32>,
    stride: usize,
}

impl Places<'_> {
    /// The bytes of these columns of row `n`.
    fn columns(&self, n: usize, columns: Range<usize>) -> &[u8] {
        let ends = &self.ends[n * self.stride..];
        &self.rows[n][ends[columns.start] as usize..ends[columns.end] as usize]
    }
}

impl Writer {
    fn new(columns: &[usize], origins: &[Origin], schema: &Schema, moving: bool) -> Writer {
        let (mut pieces, mut computed): (Vec<Piece>, Vec<Origin>) = (Vec::new(), Vec::new());
        let mut of_runs: Vec<Vec<usize>> = Vec::new();
        for column in columns {
            match (origins[*column], pieces.last_mut()) {
                (Origin::Input(c), Some(Piece::Moved(range))) if moving && range.end == c => range.end += 1,
                (Origin::Input(c), _) if moving => pieces.push(Piece::Moved(c..c + 1)),
                (origin, last) => {
                    computed.push(origin);
                    match last {
                        Some(Piece::Encoded(range)) => {
                            range.end += 1;
                            of_runs.last_mut().expect("a run was begun").push(*column);
                        }
                        _ => {
                            pieces.push(Piece::Encoded(computed.len() - 1..computed.len()));
                            of_runs.push(vec![*column]);
                        }
                    }
                }
            }
        }
        let converters = of_runs.iter().map(|run| part(schema, run)).collect();
        Writer { pieces, computed, converters, nothing: Row::from([]) }
    }

    fn column<'a>(&self, batch: &'a RecordBatch, decoded: &[usize], at: usize) -> &'a ArrayRef {
        match self.computed[at] {
            Origin::Computed(n) => batch.column(decoded.len() + n),
            Origin::Input(c) => batch.column(decoded.binary_search(&c).expect("it was decoded to be written")),
        }
    }

    /// Writes the rows of a batch; `input` tells which input row each comes from.
    fn write(
        &self,
        batch: &RecordBatch,
        decoded: &[usize],
        places: &Places<'_>,
        input: impl Fn(usize) -> usize,
        mut each: impl FnMut(usize, &[u8]),
    ) -> Result<()> {
        let count = batch.num_rows();
        let mut runs: Vec<Rows> = Vec::new();
        let mut converters = self.converters.iter();
        for piece in &self.pieces {
            if let Piece::Encoded(range) = piece {
                let columns: Vec<ArrayRef> = range.clone().map(|at| self.column(batch, decoded, at).clone()).collect();
                runs.push(converters.next().expect("one for each run").convert_columns(&columns)?);
            }
        }
        // One piece needs no putting together.
        match (self.pieces.as_slice(), runs.as_slice()) {
            ([], _) => (0..count).for_each(|n| each(input(n), &[])),
            ([Piece::Moved(range)], _) => {
                (0..count).for_each(|n| each(input(n), places.columns(input(n), range.clone())));
            }
            ([Piece::Encoded(_)], [run]) => (0..count).for_each(|n| each(input(n), run.row(n).data())),
            (pieces, _) => {
                let mut bytes = Vec::new();
                for n in 0..count {
                    bytes.clear();
                    let mut run = runs.iter();
                    for piece in pieces {
                        bytes.extend_from_slice(match piece {
                            Piece::Moved(range) => places.columns(input(n), range.clone()),
                            Piece::Encoded(_) => run.next().expect("one for each run").row(n).data(),
                        });
                    }
                    each(input(n), &bytes);
                }
            }
        }
        Ok(())
    }

    /// Which rows have a null among the written columns.
    fn nulls(
        &self,
        batch: &RecordBatch,
        decoded: &[usize],
        places: &Places<'_>,
        input: impl Fn(usize) -> usize,
    ) -> Vec<bool> {
        let mut null = vec![false; batch.num_rows()];
        for piece in &self.pieces {
            match piece {
                Piece::Moved(range) => {
                    for (n, null) in null.iter_mut().enumerate() {
                        *null |= range.clone().any(|c| is_null(places.columns(input(n), c..c + 1)));
                    }
                }
                Piece::Encoded(range) => {
                    for column in range.clone().map(|at| self.column(batch, decoded, at)) {
                        if let Some(nulls) = column.logical_nulls() {
                            null.iter_mut().enumerate().for_each(|(n, null)| *null |= nulls.is_null(n));
                        }
                    }
                }
            }
        }
        null
    }
}

fn columns_of(expr: &Arc<dyn PhysicalExpr>) -> Vec<usize> {
    datafusion::physical_expr::utils::collect_columns(expr).iter().map(Column::index).collect()
}

/// What the columns after a projection are. Columns of the input stay what they are; all others are computed.
fn projected(origins: &[Origin], exprs: &[Arc<dyn PhysicalExpr>]) -> Vec<Origin> {
    let mut computed = 0;
    exprs
        .iter()
        .map(|expr| match expr.downcast_ref::<Column>().map(|c| origins[c.index()]) {
            Some(Origin::Input(column)) => Origin::Input(column),
            _ => {
                computed += 1;
                Origin::Computed(computed - 1)
            }
        })
        .collect()
}

/// The expression with its columns found among those that are worked on.
fn rebased(
    expr: &Arc<dyn PhysicalExpr>,
    origins: &[Origin],
    decoded: &[usize],
    work: &Schema,
) -> Arc<dyn PhysicalExpr> {
    let rebase = |expr: Arc<dyn PhysicalExpr>| {
        let Some(column) = expr.downcast_ref::<Column>() else { return Ok(Transformed::no(expr)) };
        let index = match origins[column.index()] {
            Origin::Input(c) => decoded.binary_search(&c).expect("what an expression reads is decoded"),
            Origin::Computed(n) => decoded.len() + n,
        };
        Ok(Transformed::yes(Arc::new(Column::new(work.field(index).name(), index)) as Arc<dyn PhysicalExpr>))
    };
    expr.clone().transform_up(rebase).expect("replacing a column cannot fail").data
}

/// Keeps the rows whose mask is true, and the indexes of the input rows that they come from.
fn keep(batch: &mut RecordBatch, kept: &mut Option<UInt32Array>, mask: &BooleanArray, rows: usize) -> Result<()> {
    let before = kept.take().unwrap_or_else(|| UInt32Array::from_iter_values(0..rows as u32));
    let left = filter(&before, mask)?;
    let left = left.as_any().downcast_ref::<UInt32Array>();
    *kept = Some(left.ok_or_else(|| DataFusionError::Internal("a filter changed its type".into()))?.clone());
    *batch = filter_record_batch(batch, mask)?;
    Ok(())
}
