//! One query as a maintained view: planned over the eight tables, fed with the script, compared at its points.
//!
//! The invariant: the clock runs only while an epoch is under way; the next one is sent when the last one is done.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow_row::RowConverter;
use serde_json::{Value, json};

use super::compare::View;
use super::queries::Query;
use super::script::{Script, TableEvents};
use super::tables::{SCHEMA, Table};
use crate::bench::Error;
use crate::bench::report::{Sample, rounded};
use crate::dataflow::{self, Engine, Plan, PlanError};
use crate::decode::{Change, Counts, Decoded, Op, Origin, RowType};
use crate::time::{Epoch, Offset, Partition};

/// What came of a query.
#[derive(Default)]
pub(super) struct Outcome {
    /// What was wrong, a sentence each.
    pub wrong: Vec<String>,
    /// Rows of the batch answer at the end.
    rows: usize,
    compared: usize,
    load: Pace,
    changes: Pace,
    batch: Sample,
    state_rows: i64,
    state_bytes: i64,
}

/// How fast epochs were.
#[derive(Default)]
struct Pace {
    events: usize,
    took: Duration,
    epochs: Sample,
}

impl Pace {
    fn per_second(&self) -> f64 {
        rounded(self.events as f64 / self.took.as_secs_f64().max(1e-9))
    }
}

impl Outcome {
    pub fn json(mut self) -> Value {
        json!({
            "ok": self.wrong.is_empty(),
            "rows": self.rows,
            "compared": self.compared,
            "load_events": self.load.events,
            "load_events_per_second": self.load.per_second(),
            "change_events": self.changes.events,
            "change_events_per_second": self.changes.per_second(),
            "epoch_p50_ms": self.changes.epochs.percentile(50.0).map(rounded),
            "epoch_p99_ms": self.changes.epochs.percentile(99.0).map(rounded),
            "batch_p50_ms": self.batch.percentile(50.0).map(rounded),
            "state_rows": self.state_rows,
            "state_bytes": self.state_bytes,
        })
    }
}

/// A query's plan over those columns of the tables that it reads.
pub(super) struct Planned {
    plan: Plan,
    row_types: Vec<Arc<RowType>>,
    /// Whether it reads anything of a table.
    read: Vec<bool>,
}

impl Planned {
    /// The inner error is that of a query that cannot be maintained.
    pub fn new(query: &Query, scale: f64) -> Result<Result<Planned, PlanError>, Error> {
        let whole: Vec<RowType> =
            Table::ALL.into_iter().map(|t| RowType::from_contract(&t.source())).collect::<Result<_, _>>()?;
        let models = [query.model(scale)];
        let plan = |row_types: &mut dyn Iterator<Item = &RowType>| {
            let tables: Vec<dataflow::Table> = Table::ALL
                .into_iter()
                .zip(row_types)
                .map(|(table, row_type)| dataflow::Table {
                    schema: SCHEMA.into(),
                    table: table.name().into(),
                    columns: row_type.schema().clone(),
                })
                .collect();
            Plan::query(&models, query.name, &tables)
        };
        let read = match plan(&mut whole.iter()) {
            Ok(plan) => plan.columns_read(),
            Err(refused) => return Ok(Err(refused)),
        };
        let row_types: Vec<_> = whole.iter().zip(&read).map(|(r, read)| Arc::new(r.pruned(read))).collect();
        let read = read.iter().map(|columns| columns.contains(&true)).collect();
        Ok(plan(&mut row_types.iter().map(|r| &**r)).map(|plan| Planned { plan, row_types, read }))
    }

    /// Feeds the script to a dataflow of its own and compares at each point. An error is the end of this query, and of no other.
    pub async fn run(&self, script: &Script, workers: usize) -> Result<Outcome, Error> {
        let handle = Engine::start(self.plan.clone(), self.row_types.clone(), workers)?;
        let mut feeds = Vec::new();
        for (n, row_type) in self.row_types.iter().enumerate() {
            feeds.push(Feed::new(n, row_type.clone())?);
        }
        let (mut outcome, mut view) = (Outcome::default(), View::default());
        let mut points = script.points.iter().peekable();
        for (n, events) in script.epochs.iter().enumerate() {
            let mut decoded = Vec::new();
            for events in events.iter().filter(|e| self.read[e.table as usize]) {
                decoded.push(feeds[events.table as usize].decoded(events)?);
            }
            if !decoded.is_empty() {
                let pace = if n < script.load_epochs { &mut outcome.load } else { &mut outcome.changes };
                pace.events += decoded.iter().map(|d| d.changes.len()).sum::<usize>();
                let epoch = Epoch(n as u64 + 1);
                let started = Instant::now();
                handle.send(epoch, decoded)?;
                let output = loop {
                    if let Some(output) = handle.recv(Duration::from_secs(1))? {
                        break output;
                    }
                };
                let took = started.elapsed();
                pace.took += took;
                pace.epochs.add(took.as_secs_f64() * 1000.0);
                if let Some(failed) = output.failed_rows.first() {
                    return Err(format!("epoch {}: a row failed: {}", epoch.0, failed.reason).into());
                }
                view.apply(output.diffs);
            }
            while let Some(point) = points.next_if(|point| point.epochs == n + 1) {
                let started = Instant::now();
                let expected = self.plan.batch_view(self.pruned(&point.tables)?).await?;
                outcome.batch.add(started.elapsed().as_secs_f64() * 1000.0);
                outcome.rows = expected.num_rows();
                outcome.compared += 1;
                if let Some(difference) = view.difference(&expected)? {
                    outcome.wrong.push(format!("after {} changes: {difference}", point.changes));
                }
            }
        }
        for operator in handle.operators() {
            outcome.state_rows += operator.state_rows;
            outcome.state_bytes += operator.state_bytes;
        }
        Ok(outcome)
    }

    /// The tables with the columns that the query reads.
    fn pruned(&self, tables: &[RecordBatch]) -> Result<Vec<RecordBatch>, Error> {
        tables.iter().zip(&self.row_types).map(|(table, row_type)| Ok(projected(table, row_type.schema())?)).collect()
    }
}

fn projected(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, arrow::error::ArrowError> {
    let places: Vec<usize> =
        schema.fields().iter().map(|f| batch.schema().index_of(f.name())).collect::<Result<_, _>>()?;
    batch.project(&places)
}

/// Turns events of a table into what a decoder would have made of them.
struct Feed {
    source: usize,
    row_type: Arc<RowType>,
    keys: RowConverter,
    partition: Partition,
    offset: i64,
}

impl Feed {
    fn new(source: usize, row_type: Arc<RowType>) -> Result<Feed, Error> {
        let partition = Partition::new(Table::ALL[source].source().topic, 0);
        Ok(Feed { source, keys: row_type.key_converter()?, row_type, partition, offset: 0 })
    }

    fn decoded(&mut self, events: &TableEvents) -> Result<Decoded, Error> {
        let batch = projected(&events.rows, self.row_type.schema())?;
        let rows = self.row_type.converter().convert_columns(batch.columns())?;
        let key_columns: Vec<_> = self.row_type.key_columns().iter().map(|n| batch.column(*n).clone()).collect();
        let keys = self.keys.convert_columns(&key_columns)?;
        let change = |(n, deleted): (usize, &bool)| Change {
            offset: Offset(self.offset + n as i64),
            key: keys.row(n).data().into(),
            op: match deleted {
                true => Op::Delete,
                false => Op::Upsert { row: rows.row(n).data().into(), unavailable: None },
            },
            commit_ms: 0,
            origin: Origin::default(),
        };
        let changes: Vec<Change> = events.deleted.iter().enumerate().map(change).collect();
        self.offset += changes.len() as i64;
        Ok(Decoded {
            source: self.source,
            partition: self.partition.clone(),
            end: Offset(self.offset),
            changes,
            rejects: vec![],
            counts: Counts::default(),
        })
    }
}
