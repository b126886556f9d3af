//! The lander puts messages into the raw tables, a step at a time: rows in the making, their commit, upkeep.
//!
//! The invariant: after a passing error the same step may be taken again and does what is left of it; a message that was pushed is committed once, at
//! the latest when its commit is asked for until it is done. It has no thread and no clock, and waits for nothing but storage and the registry.

use std::sync::Arc;
use std::time::Duration;

use super::events::{Events, Rows};
use super::snapshot::Place;
use super::table::RawTable;
use super::{Error, Storage};
use crate::config;
use crate::decode::SchemaStore;
use crate::source::MessageBatch;

pub struct Lander {
    raw: config::Raw,
    storage: Storage,
    dataflow: String,
    sources: Vec<Source>,
    schemas: Arc<dyn SchemaStore>,
}

/// A source and its table.
struct Source {
    config: config::Source,
    table: RawTable,
    events: Events,
    /// Rows whose commit was begun.
    taken: Option<Rows>,
    /// Rows since the last snapshot, once they were counted.
    tail_rows: Option<usize>,
}

impl Lander {
    /// `tables` are those of `sources`, in their order; they are kept in `storage`.
    pub fn new(
        raw: &config::Raw,
        storage: Storage,
        dataflow: &str,
        sources: &[config::Source],
        tables: Vec<RawTable>,
        schemas: Arc<dyn SchemaStore>,
    ) -> Lander {
        let source = |(config, table): (&config::Source, RawTable)| Source {
            events: Events::new(config, schemas.clone(), &table),
            config: config.clone(),
            table,
            taken: None,
            tail_rows: None,
        };
        let sources = sources.iter().zip(tables).map(source).collect();
        Lander { raw: raw.clone(), storage, dataflow: dataflow.into(), sources, schemas }
    }

    /// The tables in the sources' order.
    pub fn tables(&self) -> impl ExactSizeIterator<Item = &RawTable> {
        self.sources.iter().map(|s| &s.table)
    }

    pub fn table(&self, n: usize) -> &RawTable {
        &self.sources[n].table
    }

    /// The table that a batch goes into; `None` if all of it has landed: what is read again after a restart mostly has.
    pub fn table_of(&self, batch: &MessageBatch) -> Option<usize> {
        let n = self.sources.iter().position(|s| s.config.topic == batch.partition.topic)?;
        let landed = self.sources[n].table.landed().get(&batch.partition);
        let is_new = batch.end().is_some_and(|end| landed.is_none_or(|landed| end > landed));
        is_new.then_some(n)
    }

    /// Makes rows of a batch, for the next commit of table `n`.
    pub async fn push(&mut self, n: usize, batch: &MessageBatch) -> Result<(), Error> {
        self.sources[n].events.push(batch).await
    }

    /// Commits the rows of table `n`, and says how many it did not have.
    pub async fn commit(&mut self, n: usize) -> Result<usize, Error> {
        let source = &mut self.sources[n];
        let rows = source.taken.get_or_insert_with(|| source.events.take());
        let added = source.table.append(rows).await?;
        source.taken = None;
        source.tail_rows = source.tail_rows.map(|rows| rows + added);
        Ok(added)
    }

    /// Merges files, and writes a checkpoint, as far as they are due.
    pub async fn upkeep(&mut self, n: usize) -> Result<(), Error> {
        let (table, min_files) = (&mut self.sources[n].table, self.raw.compact_min_files);
        // Looking at the table's files costs something, too.
        if table.version().is_multiple_of(min_files as u64) {
            table.compact(min_files).await?;
        }
        table.checkpoint().await?;
        Ok(())
    }

    /// Removes what has been replaced for long enough.
    pub async fn vacuum(&mut self, n: usize) -> Result<(), Error> {
        self.sources[n].table.vacuum(Duration::from_secs(self.raw.versions_max_age_s)).await?;
        Ok(())
    }

    /// A snapshot to be taken of table `n`, beside what is done here, when enough has landed since the last.
    pub async fn snapshot(&mut self, n: usize) -> Result<Option<Place>, Error> {
        let source = &mut self.sources[n];
        let place = Place {
            location: source.table.location().into(),
            storage: self.storage.clone(),
            dataflow: self.dataflow.clone(),
            source: source.config.clone(),
            schemas: self.schemas.clone(),
            age: Duration::from_secs(self.raw.versions_max_age_s),
        };
        let rows = match source.tail_rows {
            Some(rows) => rows,
            None => place.tail_rows(&source.table).await?,
        };
        let is_due = rows >= self.raw.snapshot_min_events;
        source.tail_rows = Some(if is_due { 0 } else { rows });
        Ok(is_due.then_some(place))
    }
}
