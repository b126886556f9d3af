//! The database of the index, in memory, which outlives the processes: tables with the versions of LanceDB's, and seams before and after each write.
//!
//! The invariant: a write is there as a whole or not at all, and every write is a version.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::{Int64Type, SchemaRef};
use datafusion::logical_expr::Expr;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};
use lancedb::{Error, Result};

use super::world::{Crossing, Fault, Seam, Shared, lock};
use crate::index;

#[derive(Clone)]
pub struct Database {
    tables: Arc<Mutex<BTreeMap<String, Table>>>,
    world: Shared,
}

#[derive(Clone)]
struct Table {
    schema: SchemaRef,
    version: u64,
    /// One row each.
    rows: Arc<BTreeMap<i64, RecordBatch>>,
    /// As it was a version ago.
    before: Option<Arc<BTreeMap<i64, RecordBatch>>>,
}

/// A table as it is, or as it was at some time.
struct Handle {
    database: Database,
    name: String,
    pinned: Option<Table>,
}

impl Database {
    pub fn new(world: Shared) -> Database {
        Database { tables: Arc::default(), world }
    }

    /// All rows of a table that there is.
    pub fn rows(&self, name: &str) -> Option<RecordBatch> {
        let table = self.tables().get(name)?.clone();
        Some(table.whole())
    }

    /// Every table loses its last commit, while no process runs.
    pub fn lose_commit(&self) {
        for table in self.tables().values_mut() {
            if let Some(before) = table.before.take() {
                (table.rows, table.version) = (before, table.version - 1);
            }
        }
    }

    /// The tables are gone.
    pub fn lose_all(&self) {
        self.tables().clear();
    }

    fn tables(&self) -> MutexGuard<'_, BTreeMap<String, Table>> {
        self.tables.lock().expect("no holder of this lock panics")
    }

    fn handle(&self, name: &str) -> Arc<dyn index::Table> {
        Arc::new(Handle { database: self.clone(), name: name.into(), pinned: None })
    }

    /// Does a write, or dies before or after it.
    fn write<T>(&self, seam: Seam, write: impl FnOnce(&mut BTreeMap<String, Table>) -> Result<T>) -> Result<T> {
        let crossing = Crossing::begin(&self.world, seam)?;
        let written = write(&mut self.tables())?;
        crossing.end()?;
        Ok(written)
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Error {
        Error::Runtime { message: fault.to_string() }
    }
}

fn absent(name: &str) -> Error {
    Error::Runtime { message: format!("there is no table {name}") }
}

impl index::Database for Database {
    fn names(&self) -> BoxFuture<'_, Result<Vec<String>>> {
        std::future::ready(Ok(self.tables().keys().cloned().collect())).boxed()
    }

    fn open<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Arc<dyn index::Table>>> {
        let opened = if self.tables().contains_key(name) { Ok(self.handle(name)) } else { Err(absent(name)) };
        std::future::ready(opened).boxed()
    }

    fn create<'a>(&'a self, name: &'a str, schema: SchemaRef) -> BoxFuture<'a, Result<Arc<dyn index::Table>>> {
        let work = async move {
            self.write(Seam::IndexMade, |tables| {
                let table = Table { schema, version: 1, rows: Arc::default(), before: None };
                match tables.insert(name.into(), table) {
                    None => Ok(self.handle(name)),
                    Some(_) => Err(Error::Runtime { message: format!("there is a table {name}") }),
                }
            })
        };
        work.boxed()
    }

    fn remove<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<()>> {
        let work = async move {
            self.write(Seam::IndexRemoved, |tables| tables.remove(name).map(drop).ok_or_else(|| absent(name)))
        };
        work.boxed()
    }
}

impl Table {
    fn whole(&self) -> RecordBatch {
        concat_batches(&self.schema, self.rows.values()).expect("all rows are of the table")
    }
}

impl Handle {
    fn table(&self) -> Result<Table> {
        match &self.pinned {
            Some(table) => Ok(table.clone()),
            None => self.database.tables().get(&self.name).cloned().ok_or_else(|| absent(&self.name)),
        }
    }

    fn change(&self, seam: Seam, change: impl FnOnce(&mut BTreeMap<i64, RecordBatch>)) -> Result<u64> {
        assert!(self.pinned.is_none(), "a table of before is not written to");
        lock(&self.database.world).counts.index_commits += 1;
        self.database.write(seam, |tables| {
            let table = tables.get_mut(&self.name).ok_or_else(|| absent(&self.name))?;
            table.before = Some(table.rows.clone());
            change(Arc::make_mut(&mut table.rows));
            table.version += 1;
            Ok(table.version)
        })
    }
}

/// The keys that a condition on them is about.
fn keys(condition: &str) -> Vec<i64> {
    let numbers = condition.split(|c: char| c != '-' && !c.is_ascii_digit());
    numbers.filter_map(|number| number.parse().ok()).collect()
}

impl index::Table for Handle {
    fn version(&self) -> BoxFuture<'_, Result<u64>> {
        std::future::ready(self.table().map(|table| table.version)).boxed()
    }

    fn schema(&self) -> BoxFuture<'_, Result<SchemaRef>> {
        std::future::ready(self.table().map(|table| table.schema)).boxed()
    }

    fn scan<'a>(
        &'a self,
        columns: &'a [&'a str],
        condition: Option<Expr>,
        limit: Option<usize>,
    ) -> BoxFuture<'a, Result<BoxStream<'static, Result<RecordBatch>>>> {
        let found = self.table().and_then(|table| {
            if let Some(condition) = condition {
                return Err(Error::NotSupported { message: format!("nobody asks here for {condition}") });
            }
            let rows = table.whole();
            let rows = rows.slice(0, limit.unwrap_or(usize::MAX).min(rows.num_rows()));
            let places: std::result::Result<Vec<_>, _> = columns.iter().map(|c| rows.schema().index_of(c)).collect();
            Ok(places.and_then(|places| rows.project(&places))?)
        });
        std::future::ready(found.map(|rows| stream::iter([Ok(rows)]).boxed())).boxed()
    }

    fn upsert<'a>(&'a self, key: &'a str, rows: RecordBatch) -> BoxFuture<'a, Result<u64>> {
        let work = async move {
            self.change(Seam::IndexRows, |held| {
                let keys = rows.column_by_name(key).expect("rows have their key").as_primitive::<Int64Type>();
                let new: BTreeMap<i64, RecordBatch> =
                    keys.values().iter().enumerate().map(|(n, key)| (*key, rows.slice(n, 1))).collect();
                assert_eq!(new.len(), rows.num_rows(), "a commit has a key twice");
                held.extend(new);
            })
        };
        work.boxed()
    }

    fn delete<'a>(&'a self, condition: &'a str) -> BoxFuture<'a, Result<u64>> {
        let work = async move {
            self.change(Seam::IndexDeletes, |held| {
                for key in keys(condition) {
                    held.remove(&key);
                }
            })
        };
        work.boxed()
    }

    fn pinned(&self) -> BoxFuture<'_, Result<Arc<dyn index::Table>>> {
        let pinned = self.table().map(|table| {
            let (database, name) = (self.database.clone(), self.name.clone());
            Arc::new(Handle { database, name, pinned: Some(table) }) as Arc<dyn index::Table>
        });
        std::future::ready(pinned).boxed()
    }

    fn look_again(&self) -> BoxFuture<'_, Result<()>> {
        std::future::ready(self.table().map(drop)).boxed()
    }

    fn has_rows_of_before(&self, _: u64) -> BoxFuture<'_, Result<bool>> {
        std::future::ready(Ok(false)).boxed()
    }

    fn lance(&self) -> Option<&lancedb::Table> {
        None
    }
}
