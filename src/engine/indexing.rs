//! The indexer thread: takes all that is pending, embeds, commits, publishes.
//!
//! The invariant: nothing is taken before the view has come to where the index may have been; a position is published when every change up
//! to it is in the index.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::{Pending, Shared};
use crate::dataflow::ViewChange;
use crate::embed::BatchStats;
use crate::index::Indexer;
use crate::serve::{State, Status};
use crate::time::Position;

/// What the thread needs.
pub(super) struct Indexing {
    pub indexer: Indexer,
    pub status: Arc<Status>,
    pub stop: Arc<AtomicBool>,
    pub shared: Arc<Shared>,
    pub commit_max_keys: usize,
    pub pending_max_keys: usize,
    pub progress: Arc<dyn Fn(BatchStats) + Send + Sync>,
}

impl Indexing {
    pub fn run(mut self, runtime: &tokio::runtime::Handle, target: &Receiver<Position>) -> Result<(), String> {
        // A service that is stopped before it could begin has no target.
        let Ok(target) = target.recv() else { return Ok(()) };
        if self.hydrate(&target) {
            let view: HashSet<Box<[u8]>> =
                self.shared.pending().changes.iter().filter(|(_, row)| row.is_some()).map(|(k, _)| k.clone()).collect();
            let orphans = self.indexer.orphans(&view);
            if !orphans.is_empty() {
                tracing::info!(rows = orphans.len(), "rows that the view no longer has are removed from the index");
                self.commit(runtime, orphans)?;
            }
        } else {
            return Ok(());
        }
        self.shared.pending().follows = true;
        self.status.set_state(State::CatchingUp, "the index follows the view");
        let mut idle_since = Instant::now();
        loop {
            let taken = {
                let mut pending = self.shared.pending();
                while pending.epoch <= self.status.epoch() && !pending.ended {
                    if self.stop.load(Ordering::SeqCst) && pending.ended {
                        break;
                    }
                    let (back, timeout) = self
                        .shared
                        .changed
                        .wait_timeout(pending, Duration::from_millis(200))
                        .expect("no holder of this lock panics");
                    pending = back;
                    if timeout.timed_out() {
                        break;
                    }
                }
                let nothing = pending.epoch <= self.status.epoch();
                if nothing && (pending.ended || self.status.state() == State::Failed) {
                    return Ok(());
                }
                (!nothing).then(|| Pending {
                    changes: std::mem::take(&mut pending.changes),
                    commits_ms: std::mem::take(&mut pending.commits_ms),
                    position: pending.position.clone(),
                    epoch: pending.epoch,
                    ..Pending::default()
                })
            };
            let Some(taken) = taken else {
                if idle_since.elapsed() > Duration::from_secs(5) && self.maintain(runtime, false)? {
                    idle_since = Instant::now();
                }
                self.live_if_caught_up();
                continue;
            };
            self.shared.changed.notify_all();
            self.status.metrics().set_pending(0, self.pending_max_keys);
            self.indexer.announce(taken.epoch, &taken.position).map_err(|e| e.to_string())?;
            let mut changes: Vec<ViewChange> =
                taken.changes.into_iter().map(|(key, row)| ViewChange { key, row }).collect();
            changes.sort_by(|a, b| a.key.cmp(&b.key));
            while !changes.is_empty() {
                let rest = changes.split_off(changes.len().min(self.commit_max_keys));
                self.commit(runtime, changes)?;
                changes = rest;
                if !changes.is_empty() {
                    runtime.block_on(self.indexer.publish(None)).map_err(|e| e.to_string())?;
                }
            }
            runtime.block_on(self.indexer.publish(Some((taken.epoch, &taken.position)))).map_err(|e| e.to_string())?;
            self.status.set_committed(taken.epoch, &taken.position);
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64);
            self.status.observe_freshness(taken.commits_ms.iter().map(|ms| now - ms));
            self.live_if_caught_up();
            self.maintain(runtime, false)?;
            idle_since = Instant::now();
        }
    }

    /// Waits until the view has come to where the index may have been. Says whether it has; not when the service stops before.
    fn hydrate(&self, target: &Position) -> bool {
        let mut pending = self.shared.pending();
        while !pending.position.covers(target) {
            if self.stop.load(Ordering::SeqCst) {
                return false;
            }
            pending = self
                .shared
                .changed
                .wait_timeout(pending, Duration::from_millis(200))
                .expect("no holder of this lock panics")
                .0;
        }
        true
    }

    fn commit(&mut self, runtime: &tokio::runtime::Handle, changes: Vec<ViewChange>) -> Result<(), String> {
        let started = Instant::now();
        let metrics = self.status.metrics().clone();
        let progress = self.progress.clone();
        let counting = metrics.clone();
        let mut heard = move |batch: BatchStats| {
            counting.count_embed_batch(batch.tokens, batch.padded_tokens - batch.tokens, batch.max_tokens, batch.took);
            progress(batch);
        };
        let applied = runtime.block_on(self.indexer.apply(&changes, &mut heard)).map_err(|e| e.to_string())?;
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

    fn maintain(&mut self, runtime: &tokio::runtime::Handle, force: bool) -> Result<bool, String> {
        let did = runtime.block_on(self.indexer.maintain(force)).map_err(|e| e.to_string())?;
        if did {
            runtime.block_on(self.indexer.publish(None)).map_err(|e| e.to_string())?;
        }
        Ok(did)
    }

    /// Live once the index holds all that the source had when it was last asked.
    fn live_if_caught_up(&self) {
        let state = self.status.state();
        let read = self.shared.read.lock().expect("no holder of this lock panics").clone();
        if matches!(state, State::CatchingUp) && self.status.position().covers(&read) && !read.is_empty() {
            self.status.set_state(State::Live, "the index holds what was read");
        }
    }
}
