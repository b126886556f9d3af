//! Raw tables from the engine's side: where a start reads from, and what every message that is read goes into.
//!
//! The invariant: Kafka is read on from exactly where raw ends. Where it no longer holds that place, nothing is read: what is missing would be
//! missing for good, and nobody would know.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::reader::Trouble;
use crate::config::{self, Config};
use crate::decode::{RowType, SchemaStore};
use crate::raw::{Error, Hydration, Lander, Observer, RawTable, Snapshot, Storage};
use crate::serve::Status;
use crate::source::Watermarks;
use crate::time::{Partition, Position};

impl Observer for Status {
    fn landed(&self, landed: &Position, rows: usize) {
        self.metrics().raw_landed_rows.inc_by(rows as u64);
        self.metrics().raw_commits.inc();
        self.set_landed(landed);
    }

    fn held(&self, bytes: usize, bound: usize) {
        self.metrics().raw_queue.set(bytes, bound);
    }

    fn waiting(&self, reason: Option<&str>) {
        self.set_raw_waiting(reason.map(Into::into));
    }
}

impl From<Error> for Trouble {
    fn from(e: Error) -> Trouble {
        Trouble { passing: e.is_passing(), reason: e.to_string() }
    }
}

/// What raw tables are opened with.
pub(crate) struct Opening<'a> {
    pub config: &'a Config,
    pub raw: &'a config::Raw,
    pub storage: &'a Storage,
    pub row_types: &'a [Arc<RowType>],
    pub schemas: &'a Arc<dyn SchemaStore>,
}

impl Opening<'_> {
    /// Opens the raw table of a source.
    pub async fn table(&self, n: usize) -> Result<RawTable, Error> {
        let source = &self.config.sources[n];
        RawTable::open(&self.raw.table(source), self.storage, &self.config.name, &source.topic).await
    }

    /// All that has landed of a source, from its snapshot on.
    pub async fn hydration(&self, n: usize, table: &RawTable) -> Result<Hydration, Error> {
        let (source, row_type) = (&self.config.sources[n], self.row_types[n].clone());
        let snapshot = Snapshot::open(table.location(), self.storage, &self.config.name, table).await?;
        Hydration::open(table, Some(&snapshot), n, source, row_type, self.schemas.clone()).await
    }

    /// What lands in the tables from now on.
    pub fn lander(&self, tables: Vec<RawTable>) -> Lander {
        let Opening { config, raw, storage, schemas, .. } = *self;
        Lander::new(raw, storage.clone(), &config.name, &config.sources, tables, schemas.clone())
    }
}

/// Whether Kafka still holds what follows on raw.
pub(super) fn follows_on(
    raw: &config::Raw,
    sources: &[config::Source],
    landed: &Position,
    marks: &BTreeMap<Partition, Watermarks>,
) -> Result<(), Trouble> {
    for (partition, next) in landed.iter() {
        let lasting = |what: String| {
            let table = sources.iter().find(|s| s.topic == partition.topic).map(|s| raw.table(s));
            let table = table.unwrap_or_else(|| raw.uri.clone());
            let way = "let Debezium take a new snapshot of the table, move the raw table away, and start again";
            Err(Trouble { passing: false, reason: format!("{what}; {way} ({table})") })
        };
        match marks.get(partition) {
            None => return lasting(format!("{partition} is gone, of which raw has landed up to {}", next.0)),
            Some(marks) if next > marks.high => {
                return lasting(format!(
                    "{partition} ends at offset {}, and raw has landed up to {}: the topic was made anew",
                    marks.high.0, next.0
                ));
            }
            Some(marks) if next < marks.low => {
                return lasting(format!(
                    "{partition} begins at offset {}, and raw has landed up to {}: what lies between was removed before it was read",
                    marks.low.0, next.0
                ));
            }
            Some(_) => {}
        }
    }
    let (old, new): (Vec<&Partition>, _) = marks.keys().partition(|p| landed.get(p).is_some());
    // On a first start all are new, which nobody has to be told.
    if !old.is_empty() {
        for partition in new {
            tracing::info!(%partition, "nothing of this partition has landed yet; it is read from its first offset");
        }
    }
    Ok(())
}
