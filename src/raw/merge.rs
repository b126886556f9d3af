//! Reading files of a table in the order of their rows, (commit, partition, offset), a batch at a time.
//!
//! The invariant: a file is open only while it may have the next row. Files of different commits follow each other, so that mostly one is open;
//! those that overlap (days of one commit, compacted files) are merged.

use std::collections::VecDeque;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use deltalake::logstore::ObjectStoreRef;
use deltalake::parquet::arrow::async_reader::{ParquetObjectReader, ParquetRecordBatchStream};
use futures::TryStreamExt;

use super::Error;
use super::columns::COMMIT;
use super::files::{DataFile, fitted, longs, partitions};

pub(super) struct Merge {
    table: String,
    store: ObjectStoreRef,
    schema: SchemaRef,
    /// Rows of this commit and of earlier ones are left out.
    after: i64,
    /// In the order of their first commit.
    waiting: VecDeque<DataFile>,
    open: Vec<Front>,
}

/// The place of a row in the order of a table.
type Place = (i64, i32, i64);

/// How far a file is read.
struct Front {
    rows: ParquetRecordBatchStream<ParquetObjectReader>,
    batch: RecordBatch,
    at: usize,
}

impl Merge {
    /// Rows come with the columns of `schema`, and no others are read; `table` is for messages.
    pub fn new(table: &str, store: ObjectStoreRef, schema: SchemaRef, mut files: Vec<DataFile>) -> Merge {
        files.sort_by_key(|f| f.commits);
        Merge { table: table.into(), store, schema, after: -1, waiting: files.into(), open: Vec::new() }
    }

    /// Only the rows of commits after `commit`.
    pub fn after(mut self, commit: i64) -> Merge {
        self.waiting.retain(|f| f.commits.1 > commit);
        self.after = commit;
        self
    }

    /// The next rows; `None` after the last.
    pub async fn next(&mut self) -> Result<Option<RecordBatch>, Error> {
        while let Some(file) = self.waiting.front()
            && self.least().is_none_or(|least| file.commits.0 <= least.0)
        {
            let file = self.waiting.pop_front().expect("it is there");
            let rows = file.read(&self.store, &self.schema).await.map_err(|e| self.unreadable(e))?;
            let mut front = Front { rows, batch: RecordBatch::new_empty(self.schema.clone()), at: 0 };
            if self.fill(&mut front).await? {
                self.open.push(front);
            }
        }
        let Some(least) = self.least() else { return Ok(None) };
        let first = self.open.iter().position(|f| f.place(f.at) == least).expect("it is the least of them");
        let mut front = self.open.swap_remove(first);
        let waiting = self.waiting.front().map(|f| (f.commits.0, i32::MIN, i64::MIN));
        let bound = self.least().into_iter().chain(waiting).min();
        let rows = front.batch.num_rows() - front.at;
        let count = bound.map_or(rows, |bound| (0..rows).take_while(|n| front.place(front.at + n) < bound).count());
        // A row that two files have stands in both; the reader of offsets notices it.
        let run = front.batch.slice(front.at, count.max(1));
        front.at += run.num_rows();
        if front.at < front.batch.num_rows() || self.fill(&mut front).await? {
            self.open.push(front);
        }
        Ok(Some(run))
    }

    fn least(&self) -> Option<Place> {
        self.open.iter().map(|f| f.place(f.at)).min()
    }

    /// Reads the next batch of a file; says whether there is one.
    async fn fill(&mut self, front: &mut Front) -> Result<bool, Error> {
        while let Some(batch) = front.rows.try_next().await.map_err(|e| self.unreadable(e))? {
            let left_out = longs(&batch, COMMIT).partition_point(|commit| *commit <= self.after);
            if left_out < batch.num_rows() {
                front.batch = fitted(&batch, &self.schema).map_err(|e| Error::lasting(&self.table, e))?;
                front.at = left_out;
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn unreadable(&self, error: impl ToString) -> Error {
        Error::of(&self.table, false, error.to_string())
    }
}

impl Front {
    fn place(&self, at: usize) -> Place {
        let row = |column| longs(&self.batch, column)[at];
        (row(COMMIT), partitions(&self.batch)[at], row("offset"))
    }
}
