//! Upkeep keeps a table cheap to open and to read: small files are merged, the log is checkpointed, what no reader needs any more is removed.
//!
//! The invariant: no row and no `txn` action is touched. Merging is a commit like any other (the same rows in other files, marked as no change of
//! data), so a second writer is noticed here too; removing is never a commit, and takes only files that no version younger than the given age has.

use std::collections::BTreeMap;
use std::time::Duration;

use deltalake::Path;
use deltalake::checkpoints::{cleanup_expired_logs_for, create_checkpoint};
use deltalake::kernel::Action;
use deltalake::operations::vacuum::VacuumMode;
use deltalake::protocol::DeltaOperation;
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;

use super::Error;
use super::files::{DataFile, FileWriter};
use super::log::{Change, Log};
use super::merge::Merge;
use crate::thread;

/// A file of this size is not merged any more.
const SMALL_BYTES: u64 = 32 << 20;
/// Where a merged file ends. It is put together in memory.
pub(super) const FILE_BYTES: usize = 64 << 20;
/// Commits from one checkpoint of the log to the next.
const CHECKPOINT_COMMITS: u64 = 50;
/// How often is looked for what can go.
const VACUUM_EVERY: Duration = Duration::from_secs(3600);

impl Log {
    /// All of it, as far as it is due after a commit. What is away is tried again after the next one.
    pub async fn upkeep(&mut self, compact_min_files: usize, versions_max_age: Duration) -> Result<(), Error> {
        match self.due(compact_min_files, versions_max_age).await {
            Err(e) if e.is_passing() => {
                tracing::warn!(table = self.name, error = %e, "upkeep has to wait");
                Ok(())
            }
            other => other,
        }
    }

    async fn due(&mut self, compact_min_files: usize, versions_max_age: Duration) -> Result<(), Error> {
        // Looking at the table's files costs something, too.
        if self.version().is_multiple_of(compact_min_files as u64) {
            self.compact(compact_min_files).await?;
        }
        self.checkpoint().await?;
        if thread::elapsed(self.vacuumed) >= VACUUM_EVERY {
            self.vacuumed = thread::now();
            self.vacuum(versions_max_age).await?;
        }
        Ok(())
    }

    /// Merges the small files of every day that has at least `min_files` (2 or more) of them; says how many files it took.
    pub async fn compact(&mut self, min_files: usize) -> Result<usize, Error> {
        self.settle().await?;
        let mut days: BTreeMap<Option<String>, Vec<DataFile>> = BTreeMap::new();
        let wrong = |e: String| Error::lasting(&self.name, e);
        for file in DataFile::all(&self.load().await?).map_err(wrong)? {
            if file.size_bytes < SMALL_BYTES {
                days.entry(file.day.clone()).or_default().push(file);
            }
        }
        let mut merged = 0;
        for (day, files) in days.into_iter().filter(|(_, files)| files.len() >= min_files.max(2)) {
            merged += files.len();
            let mut actions: Vec<Action> = files.iter().map(|f| Action::Remove(f.remove.clone())).collect();
            let store = self.store.object_store(None);
            let mut rows = Merge::new(&self.name, store, self.schema().clone(), files);
            let mut writer = Writing::new(self, day.as_deref(), false);
            while let Some(batch) = rows.next().await? {
                writer.write(&batch).await?;
            }
            actions.extend(writer.finish().await?);
            let operation = DeltaOperation::Optimize { predicate: None, target_size: FILE_BYTES as i64 };
            self.commit(Change::new(actions, operation)).await?;
        }
        Ok(merged)
    }

    /// Writes a checkpoint of the log, if enough commits have been made since the last.
    pub async fn checkpoint(&mut self) -> Result<bool, Error> {
        if self.version() / CHECKPOINT_COMMITS == self.checkpointed / CHECKPOINT_COMMITS {
            return Ok(false);
        }
        self.settle().await?;
        let table = self.load().await?;
        create_checkpoint(&table, None).await.map_err(|e| Error::delta(&self.name, e))?;
        self.checkpointed = self.version();
        Ok(true)
    }

    /// Removes data files that no version younger than `age` has, those included that a crash left behind, and the log before the last
    /// checkpoint of that age; says how many files that were.
    pub async fn vacuum(&mut self, age: Duration) -> Result<usize, Error> {
        self.settle().await?;
        let delta = |e| Error::delta(&self.name, e);
        let age = chrono::Duration::from_std(age).map_err(|e| Error::lasting(&self.name, e))?;
        // delta-rs would commit twice, as anybody. It says what can go; going is no commit.
        let plan = self.load().await?.vacuum().with_mode(VacuumMode::Full).with_retention_period(age);
        let (_, plan) = plan.with_enforce_retention_duration(false).with_dry_run(true).await.map_err(delta)?;
        let mut paths = Vec::with_capacity(plan.files_deleted.len());
        for path in &plan.files_deleted {
            paths.push(Ok(Path::parse(path).map_err(|e| Error::lasting(&self.name, e))?));
        }
        let removed = self.store.object_store(None).delete_stream(futures::stream::iter(paths).boxed());
        let gone = |e: &object_store::Error| matches!(e, object_store::Error::NotFound { .. });
        let removed =
            removed.filter(|r| futures::future::ready(!r.as_ref().is_err_and(gone))).try_collect::<Vec<_>>().await;
        let removed = removed.map_err(|e| Error::store(&self.name, e))?.len();
        let before = (chrono::Utc::now() - age).timestamp_millis();
        let logs = cleanup_expired_logs_for(self.version(), self.store.as_ref(), before, None).await.map_err(delta)?;
        Ok(removed + logs)
    }
}

/// Rows on their way into files of a table.
pub(super) struct Writing<'a> {
    log: &'a Log,
    day: Option<&'a str>,
    is_new: bool,
    file: Option<FileWriter>,
    actions: Vec<Action>,
}

impl<'a> Writing<'a> {
    /// `is_new` says that the rows were not in the table before.
    pub fn new(log: &'a Log, day: Option<&'a str>, is_new: bool) -> Writing<'a> {
        Writing { log, day, is_new, file: None, actions: Vec::new() }
    }

    pub async fn write(&mut self, rows: &arrow::array::RecordBatch) -> Result<(), Error> {
        let failed = |e: deltalake::parquet::errors::ParquetError| Error::lasting(&self.log.name, e);
        let rows = &super::files::without_day(rows);
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(FileWriter::new(rows).map_err(failed)?),
        };
        file.write(rows).map_err(failed)?;
        if file.bytes() >= FILE_BYTES {
            self.put().await?;
        }
        Ok(())
    }

    /// The actions that add the files.
    pub async fn finish(mut self) -> Result<Vec<Action>, Error> {
        self.put().await?;
        Ok(self.actions)
    }

    async fn put(&mut self) -> Result<(), Error> {
        let Some(file) = self.file.take() else { return Ok(()) };
        let failed = |e: deltalake::parquet::errors::ParquetError| Error::lasting(&self.log.name, e);
        let (path, bytes, add) = file.finish(self.day, self.log.version() + 1, self.is_new).map_err(failed)?;
        let store = self.log.store.object_store(None);
        store.put(&path, bytes.into()).await.map_err(|e| Error::store(&self.log.name, e))?;
        self.actions.push(Action::Add(add));
        Ok(())
    }
}
