//! A raw table: the events of one source, appended.
//!
//! The invariant: an append adds the rows that lie at or above the landed position and moves it past them in the same commit; the same rows
//! given again add nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::{Field, Schema, SchemaRef, TimestampMicrosecondType};
use chrono::{DateTime, Datelike};
use deltalake::protocol::{DeltaOperation, SaveMode};

use super::columns::{COMMIT, Columns, DAY};
use super::events::Rows;
use super::files::{longs, partitions};
use super::log::{Change, Log, NewSchema};
use super::upkeep::Writing;
use super::{Error, store};
use crate::time::{Offset, Partition, Position};

/// What other writers and readers have to know of the table.
const PROPERTIES: [(&str, &str); 2] =
    [("delta.appendOnly", "true"), ("delta.dataSkippingStatsColumns", "partition,offset,commit")];

pub struct RawTable {
    pub(super) log: Log,
    topic: Arc<str>,
    columns: Columns,
}

impl RawTable {
    /// Opens the table of `topic` at `location` (a path or `s3://bucket/path`), or makes it. `options` are the object store's.
    pub async fn open(
        location: &str,
        options: &BTreeMap<String, String>,
        dataflow: &str,
        topic: &Arc<str>,
    ) -> Result<RawTable, Error> {
        Self::with_log_store(location, store::log_store(location, options)?, dataflow, topic).await
    }

    pub(super) async fn with_log_store(
        location: &str,
        store: deltalake::logstore::LogStoreRef,
        dataflow: &str,
        topic: &Arc<str>,
    ) -> Result<RawTable, Error> {
        let own = Columns::default().schema();
        let log = Log::open(location, store, Some((dataflow, topic)), &own, &[DAY], &PROPERTIES).await?;
        super::columns::merged(log.schema(), &own)
            .map_err(|e| Error::lasting(location, format!("this is no raw table of Freshet's: {e}")))?;
        let columns = Columns::of(log.schema());
        Ok(RawTable { log, topic: topic.clone(), columns })
    }

    /// Where the table lies.
    pub fn location(&self) -> &str {
        &self.log.name
    }

    /// The next offset of every partition that has landed.
    pub fn landed(&self) -> &Position {
        self.log.landed()
    }

    pub fn version(&self) -> u64 {
        self.log.version()
    }

    pub(super) fn topic(&self) -> &Arc<str> {
        &self.topic
    }

    pub(super) fn columns(&self) -> &Columns {
        &self.columns
    }

    /// Merges the small files of every day that has at least `min_files` (2 or more) of them; says how many files it took.
    pub async fn compact(&mut self, min_files: usize) -> Result<usize, Error> {
        self.log.compact(min_files).await
    }

    /// Adds the rows that have not landed, in one commit, and says how many they were. After a passing error give the same rows again: if
    /// the commit had been made after all, nothing is added. [`Error::OtherWriter`] is the end of this writer.
    pub async fn append(&mut self, rows: &Rows) -> Result<usize, Error> {
        self.log.settle().await?;
        let order = self.missing(&rows.batch);
        let behind = rows.up_to.iter().any(|(p, next)| self.landed().get(p).is_none_or(|now| now < next));
        if order.is_empty() && !behind {
            return Ok(0);
        }
        let version = self.log.version() + 1;
        let days = by_day(&rows.batch, &order);
        let mut actions = Vec::with_capacity(days.len());
        for (day, places) in days {
            let batch = take_record_batch(&rows.batch, &places).and_then(|batch| with_commit(&batch, version));
            let batch = batch.map_err(|e| Error::lasting(&self.log.name, e))?;
            let mut file = Writing::new(&self.log, Some(&day), true);
            file.write(&batch).await?;
            actions.extend(file.finish().await?);
        }
        let partition_by = Some(vec![DAY.to_string()]);
        let operation = DeltaOperation::Write { mode: SaveMode::Append, partition_by, predicate: None };
        let landed = rows.up_to.clone();
        let (schema, writers) = (NewSchema::With(rows.columns.schema()), rows.writers.clone());
        self.log.commit(Change { landed, schema, writers, ..Change::new(actions, operation) }).await?;
        self.columns = Columns::of(self.log.schema());
        Ok(order.len())
    }

    /// The places of the rows that have not landed, by partition and offset; of rows that are given twice, the first.
    fn missing(&self, rows: &RecordBatch) -> Vec<u32> {
        let (numbers, offsets) = (partitions(rows), longs(rows, "offset"));
        let mut order: Vec<u32> = (0..rows.num_rows() as u32).collect();
        order.sort_by_key(|at| (numbers[*at as usize], offsets[*at as usize]));
        let mut last: Option<(Partition, Option<Offset>)> = None;
        order.retain(|at| {
            let (number, offset) = (numbers[*at as usize], Offset(offsets[*at as usize]));
            if last.as_ref().is_none_or(|(p, _)| p.number != number) {
                let partition = Partition::new(self.topic.clone(), number);
                let next = self.landed().get(&partition);
                last = Some((partition, next));
            }
            let next = last.as_mut().map(|(_, next)| next).expect("it was set above");
            let is_new = next.is_none_or(|next| offset >= next);
            if is_new {
                *next = Some(Offset(offset.0 + 1));
            }
            is_new
        });
        order
    }
}

/// The rows of each day.
fn by_day(rows: &RecordBatch, order: &[u32]) -> BTreeMap<String, UInt32Array> {
    let column = rows.column_by_name("timestamp").expect("every row has a time stamp");
    let micros = column.as_primitive::<TimestampMicrosecondType>();
    let mut days: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for at in order {
        let time = micros.is_valid(*at as usize).then(|| micros.value(*at as usize));
        days.entry(day(time.unwrap_or(0))).or_default().push(*at);
    }
    days.into_iter().map(|(day, places)| (day, places.into())).collect()
}

/// The day in UTC; of a time stamp that no calendar of four digits has, the first of 1970.
fn day(micros: i64) -> String {
    let time = DateTime::from_timestamp_micros(micros).filter(|t| (1..=9999).contains(&t.year()));
    time.unwrap_or_default().format("%Y-%m-%d").to_string()
}

fn with_commit(rows: &RecordBatch, version: u64) -> Result<RecordBatch, arrow::error::ArrowError> {
    let commits: ArrayRef = Arc::new(Int64Array::from_value(version as i64, rows.num_rows()));
    let mut fields = rows.schema().fields().to_vec();
    fields.push(Arc::new(Field::new(COMMIT, commits.data_type().clone(), true)));
    let schema: SchemaRef = Arc::new(Schema::new(fields));
    RecordBatch::try_new(schema, rows.columns().iter().cloned().chain([commits]).collect())
}
