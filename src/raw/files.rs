//! The data files of a table: Parquet, written whole, never changed.
//!
//! The invariant: the rows of a file are in the order of (commit, partition, offset), and its statistics say which commits it is of. Over all
//! files of a table that order is the order of offsets in every partition, since a later commit has only later offsets.

use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{ArrowPrimitiveType, Int32Type, Int64Type, Schema};
use bytes::Bytes;
use deltalake::kernel::{Add, Remove};
use deltalake::logstore::ObjectStoreRef;
use deltalake::parquet::arrow::async_reader::{
    ParquetObjectReader, ParquetRecordBatchStream, ParquetRecordBatchStreamBuilder,
};
use deltalake::parquet::arrow::{ArrowWriter, ProjectionMask};
use deltalake::parquet::basic::{Compression, ZstdLevel};
use deltalake::parquet::errors::ParquetError;
use deltalake::parquet::file::properties::WriterProperties;
use deltalake::{DeltaTable, Path};
use serde_json::json;

use super::columns::{COMMIT, DAY};

/// Rows that are read of a file at a time, or fewer, where so many would come to more than these bytes: a message may be large.
const READ_ROWS: usize = 1024;
const READ_BYTES: i64 = 32 << 20;

/// A file that a version of the table is made of.
#[derive(Clone, Debug)]
pub(super) struct DataFile {
    pub path: Path,
    pub size_bytes: u64,
    pub rows: usize,
    pub day: Option<String>,
    /// First and last commit that it has rows of.
    pub commits: (i64, i64),
    /// What takes it out of the table; its rows stay, in another file.
    pub remove: Remove,
}

impl DataFile {
    /// All files of a loaded table, in the order of their first commit.
    pub fn all(table: &DeltaTable) -> Result<Vec<DataFile>, String> {
        let state = table.snapshot().map_err(|e| e.to_string())?;
        let mut files = Vec::new();
        for file in state.log_data().iter() {
            let path = Path::parse(file.path()).map_err(|e| e.to_string())?;
            if file.deletion_vector_descriptor().is_some() {
                return Err(format!(
                    "{path} has a deletion vector, which Freshet does not read; rewrite the table without"
                ));
            }
            let stats =
                file.stats().and_then(|s| serde_json::from_str::<serde_json::Value>(&s).ok()).unwrap_or_default();
            let commit = |of: &str| stats[of][COMMIT].as_i64();
            let remove = file.remove_action(false);
            let day = remove.partition_values.as_ref().and_then(|v| v.get(DAY).cloned().flatten());
            // Of a file without statistics nothing is known: it may have rows of any commit.
            let commits = (commit("minValues").unwrap_or(0), commit("maxValues").unwrap_or(i64::MAX));
            let rows = file.num_records().unwrap_or(0);
            files.push(DataFile { path, size_bytes: file.size().max(0) as u64, rows, day, commits, remove });
        }
        files.sort_by(|a, b| (a.commits, &a.path).cmp(&(b.commits, &b.path)));
        Ok(files)
    }

    /// The rows, in order, with those columns that `schema` has too.
    pub async fn read(
        &self,
        store: &ObjectStoreRef,
        schema: &Schema,
    ) -> Result<ParquetRecordBatchStream<ParquetObjectReader>, ParquetError> {
        let reader = ParquetObjectReader::new(store.clone(), self.path.clone()).with_file_size(self.size_bytes);
        let builder = ParquetRecordBatchStreamBuilder::new(reader).await?;
        let of = builder.parquet_schema();
        let read = ProjectionMask::columns(of, schema.fields().iter().map(|f| f.name().as_str()));
        let leaves = (0..of.num_columns()).filter(|leaf| read.leaf_included(*leaf));
        let (mut rows, mut bytes) = (0, 0);
        for group in builder.metadata().row_groups() {
            rows += group.num_rows();
            bytes += leaves.clone().map(|leaf| group.column(leaf).uncompressed_size()).sum::<i64>();
        }
        let at_once = READ_BYTES.saturating_mul(rows) / bytes.max(1);
        builder.with_projection(read).with_batch_size(READ_ROWS.min(at_once.max(1) as usize)).build()
    }
}

/// A file being written, in memory.
pub(super) struct FileWriter {
    parquet: ArrowWriter<Vec<u8>>,
    rows: usize,
    ranges: [Range; 3],
}

/// Least and greatest value of a column.
struct Range {
    column: &'static str,
    least: i64,
    greatest: i64,
}

impl FileWriter {
    pub fn new(of: &RecordBatch) -> Result<FileWriter, ParquetError> {
        let level = ZstdLevel::try_new(1)?;
        let properties = WriterProperties::builder().set_compression(Compression::ZSTD(level)).build();
        let range = |column| Range { column, least: i64::MAX, greatest: i64::MIN };
        Ok(FileWriter {
            parquet: ArrowWriter::try_new(Vec::new(), of.schema(), Some(properties))?,
            rows: 0,
            ranges: [range("partition"), range("offset"), range(COMMIT)],
        })
    }

    pub fn write(&mut self, rows: &RecordBatch) -> Result<(), ParquetError> {
        self.parquet.write(rows)?;
        self.rows += rows.num_rows();
        let [partition, offset, commit] = &mut self.ranges;
        partition.take::<Int32Type>(rows);
        offset.take::<Int64Type>(rows);
        commit.take::<Int64Type>(rows);
        Ok(())
    }

    /// What the file comes to so far.
    pub fn bytes(&self) -> usize {
        self.parquet.bytes_written() + self.parquet.in_progress_size()
    }

    /// The file, and the action that adds it. `is_new` says that its rows were not in the table before.
    pub fn finish(self, day: Option<&str>, version: u64, is_new: bool) -> Result<(Path, Bytes, Add), ParquetError> {
        let bytes = Bytes::from(self.parquet.into_inner()?);
        let folder = day.map(|day| format!("{DAY}={day}/")).unwrap_or_default();
        let path = format!("{folder}{version:020}-{:016x}.parquet", rand::random::<u64>());
        let of = |value: fn(&Range) -> i64| {
            self.ranges.iter().map(|r| (r.column.to_string(), json!(value(r)))).collect::<serde_json::Map<_, _>>()
        };
        let stats = json!({
            "numRecords": self.rows, "minValues": of(|r| r.least), "maxValues": of(|r| r.greatest), "nullCount": of(|_| 0),
        });
        let add = Add {
            path: path.clone(),
            partition_values: day.map(|day| (DAY.to_string(), Some(day.to_string()))).into_iter().collect(),
            size: bytes.len() as i64,
            modification_time: chrono::Utc::now().timestamp_millis(),
            data_change: is_new,
            stats: Some(stats.to_string()),
            ..Add::default()
        };
        Ok((Path::from(path), bytes, add))
    }
}

impl Range {
    fn take<T: ArrowPrimitiveType>(&mut self, rows: &RecordBatch)
    where
        i64: From<T::Native>,
    {
        let column = rows.column_by_name(self.column).expect("every row has a place in Kafka and a commit");
        for value in column.as_primitive::<T>().values() {
            let value = i64::from(*value);
            self.least = self.least.min(value);
            self.greatest = self.greatest.max(value);
        }
    }
}

/// A column of a batch; every table has it.
pub(super) fn longs<'a>(rows: &'a RecordBatch, column: &str) -> &'a [i64] {
    rows.column_by_name(column).expect("the table's schema was checked").as_primitive::<Int64Type>().values()
}

pub(super) fn partitions(rows: &RecordBatch) -> &[i32] {
    rows.column_by_name("partition").expect("the table's schema was checked").as_primitive::<Int32Type>().values()
}

/// A batch as it lies in a file: the day is in the file's path.
pub(super) fn without_day(rows: &RecordBatch) -> RecordBatch {
    let mut rows = rows.clone();
    if let Ok(day) = rows.schema_ref().index_of(DAY) {
        rows.remove_column(day);
    }
    rows
}

/// A batch with the columns of `schema`, those that it lacks null.
pub(super) fn fitted(rows: &RecordBatch, schema: &arrow::datatypes::SchemaRef) -> Result<RecordBatch, String> {
    if rows.schema_ref() == schema {
        return Ok(rows.clone());
    }
    deltalake::kernel::cast_record_batch(rows, Arc::clone(schema), false, true).map_err(|e| e.to_string())
}
