//! Reading files of a table in the order of their rows, (commit, partition, offset), a batch at a time.
//!
//! The invariant: a file is open only while it may have the next row. Files of different commits follow each other, so that mostly one is open;
//! those that overlap (days of one commit, compacted files) are merged. After an error the next rows are still those that follow on the last that
//! were given.

use std::collections::VecDeque;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use deltalake::logstore::ObjectStoreRef;
use deltalake::parquet::arrow::async_reader::{ParquetObjectReader, ParquetRecordBatchStream};
use deltalake::parquet::errors::ParquetError;
use futures::TryStreamExt;

use super::Error;
use super::columns::COMMIT;
use super::files::{DataFile, fitted, longs, partitions};

pub(super) struct Merge {
    table: String,
    store: ObjectStoreRef,
    schema: SchemaRef,
    /// In the order of their first commit.
    files: Vec<DataFile>,
    /// Rows up to this place are left out.
    after: Place,
    /// The place of the last row that was given.
    given: Place,
    /// Those of the files that are still to be opened.
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
        let (table, none) = (table.into(), end_of(-1));
        let (waiting, open) = Default::default();
        Merge { table, store, schema, files, after: none, given: none, waiting, open }.after(-1)
    }

    /// Only the rows of commits after `commit`.
    pub fn after(mut self, commit: i64) -> Merge {
        self.given = end_of(commit);
        self.begin();
        self
    }

    /// The next rows; `None` after the last. After an error that passes it may be called again, where no two rows have one place: a table of one topic.
    pub async fn next(&mut self) -> Result<Option<RecordBatch>, Error> {
        let next = self.run().await;
        match &next {
            Ok(Some(rows)) => self.given = place(rows, rows.num_rows() - 1),
            Ok(None) => {}
            // Nobody knows how far what was open has been read.
            Err(_) => self.begin(),
        }
        next
    }

    /// Reads again what has rows behind the last that was given.
    fn begin(&mut self) {
        self.after = self.given;
        self.open.clear();
        self.waiting = self.files.iter().filter(|f| end_of(f.commits.1) > self.after).cloned().collect();
    }

    async fn run(&mut self) -> Result<Option<RecordBatch>, Error> {
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
            let left_out = (0..batch.num_rows()).take_while(|n| place(&batch, *n) <= self.after).count();
            if left_out < batch.num_rows() {
                front.batch = fitted(&batch, &self.schema).map_err(|e| Error::lasting(&self.table, e))?;
                front.at = left_out;
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn unreadable(&self, error: ParquetError) -> Error {
        Error::parquet(&self.table, error)
    }
}

impl Front {
    fn place(&self, at: usize) -> Place {
        place(&self.batch, at)
    }
}

fn place(rows: &RecordBatch, at: usize) -> Place {
    let row = |column| longs(rows, column)[at];
    (row(COMMIT), partitions(rows)[at], row("offset"))
}

/// Behind every row of a commit.
fn end_of(commit: i64) -> Place {
    (commit, i32::MAX, i64::MAX)
}
