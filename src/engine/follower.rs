//! The follower brings what was folded into the index: announced first, then in commits of some keys, then published.
//!
//! The invariant: how far changes lead is announced before the first of them is committed, and published when the last of them is; the index
//! follows the view only from where the view has what the index may have, and has lost what the view no longer has.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::Progress;
use super::pending::Folded;
use crate::dataflow::ViewChange;
use crate::embed::BatchStats;
use crate::index::{Error, IndexStore, Indexer};
use crate::serve::Status;

pub(crate) struct Follower<S> {
    indexer: Indexer<S>,
    status: Arc<Status>,
    progress: Progress,
    /// What was announced, as far as it is not in yet.
    announced: Option<Folded>,
}

impl<S: IndexStore> Follower<S> {
    pub fn new(indexer: Indexer<S>, status: Arc<Status>, progress: Progress) -> Follower<S> {
        Follower { indexer, status, progress, announced: None }
    }

    /// Removes what the index holds of keys that are not in the view, which has come to where the index may have been.
    pub async fn reconcile(&mut self, view: &HashSet<Box<[u8]>>) -> Result<(), Error> {
        let orphans = self.indexer.orphans(view);
        if !orphans.is_empty() {
            tracing::info!(rows = orphans.len(), "rows that the view no longer has are removed from the index");
            self.apply(&orphans).await?;
        }
        Ok(())
    }

    /// Announces how far these changes lead; they are to be committed and published next.
    pub async fn begin(&mut self, folded: Folded) -> Result<(), Error> {
        self.indexer.announce(folded.epoch, &folded.position).await?;
        self.announced = Some(folded);
        Ok(())
    }

    /// Announced changes that are not committed yet.
    pub fn keys_left(&self) -> usize {
        self.announced.as_ref().map_or(0, |folded| folded.changes.len())
    }

    /// Commits the next `keys_max` of them, and shows them to searches unless they are the last: those are for [`Follower::publish`].
    pub async fn commit(&mut self, keys_max: usize) -> Result<(), Error> {
        let Some(folded) = &mut self.announced else { return Ok(()) };
        let rest = folded.changes.split_off(folded.changes.len().min(keys_max));
        let changes = std::mem::replace(&mut folded.changes, rest);
        self.apply(&changes).await?;
        match self.keys_left() {
            0 => Ok(()),
            _ => self.indexer.publish(None).await,
        }
    }

    /// Shows to searches that everything announced is in.
    pub async fn publish(&mut self) -> Result<(), Error> {
        let Some(folded) = self.announced.take() else { return Ok(()) };
        assert!(folded.changes.is_empty(), "a position is published when all changes up to it are in");
        self.indexer.publish(Some((folded.epoch, &folded.position))).await?;
        self.status.set_committed(folded.epoch, &folded.position);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64);
        self.status.observe_freshness(folded.commits_ms.iter().map(|ms| now - ms));
        Ok(())
    }

    /// Maintenance of the index, as far as it is due. Says whether there was something to do.
    pub async fn maintain(&mut self, idle: bool) -> Result<bool, Error> {
        let did = self.indexer.maintain(idle).await?;
        if did {
            self.indexer.publish(None).await?;
        }
        Ok(did)
    }

    async fn apply(&mut self, changes: &[ViewChange]) -> Result<(), Error> {
        let started = Instant::now();
        let metrics = self.status.metrics().clone();
        let (counting, progress) = (metrics.clone(), self.progress.clone());
        let mut heard = move |batch: BatchStats| {
            counting.count_embed_batch(batch.tokens, batch.padded_tokens - batch.tokens, batch.max_tokens, batch.took);
            progress(batch);
        };
        let applied = self.indexer.apply(changes, &mut heard).await?;
        metrics.embeds_asked.inc_by(applied.asked);
        metrics.embeds_cached.inc_by(applied.cached);
        metrics.embeds_computed.inc_by(applied.computed);
        metrics.index_upserted_rows.inc_by(applied.upserted);
        metrics.index_deleted_rows.inc_by(applied.deleted);
        metrics.index_rows.set(self.indexer.len() as i64);
        if applied.upserted + applied.deleted > 0 {
            metrics.index_commits.inc();
            metrics.index_commit_seconds.observe(started.elapsed().as_secs_f64());
        }
        Ok(())
    }
}
