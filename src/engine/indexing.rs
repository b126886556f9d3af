//! The indexer thread: takes all that is pending, embeds, commits, publishes.
//!
//! The invariant: nothing is taken before the view has come to where the index may have been; a position is announced when every message below it
//! that was rejected is in quarantine, and published when every change up to it is in the index. Commits are kept short, for between two of them the thread can be told to end.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::{Pending, Progress, Shared};
use crate::dataflow::ViewChange;
use crate::embed::BatchStats;
use crate::index::Indexer;
use crate::raw::Gate;
use crate::serve::{State, Status};
use crate::time::Position;

/// How long a commit should take, embedding included: the more a machine embeds in this time, the more keys a commit has.
const COMMIT_TARGET: Duration = Duration::from_secs(1);
const COMMIT_FIRST_KEYS: usize = 64;
/// How long what is pending may go on into the index after the service was told to stop. What is left is found again at the next start: the
/// position it leads to was announced, and the index is compared with the view up to there.
const DRAIN_MAX: Duration = Duration::from_secs(3);

/// What the thread needs.
pub(super) struct Indexing {
    pub indexer: Indexer,
    pub status: Arc<Status>,
    pub stop: Arc<AtomicBool>,
    pub shared: Arc<Shared>,
    pub commit_max_keys: usize,
    pub pending_max_keys: usize,
    pub progress: Progress,
}

impl Indexing {
    pub fn run(self, runtime: &tokio::runtime::Handle, begun: &Receiver<(Position, Gate)>) -> Result<(), String> {
        let shared = self.shared.clone();
        let done = self.follow(runtime, begun);
        // Nobody takes what is pending any more, so nobody may wait for it to be taken.
        shared.pending().closed = true;
        done
    }

    fn follow(mut self, runtime: &tokio::runtime::Handle, begun: &Receiver<(Position, Gate)>) -> Result<(), String> {
        // A service that is stopped before it could begin has no target.
        let Ok((target, quarantine)) = begun.recv() else { return Ok(()) };
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
        let mut keys_at_once = COMMIT_FIRST_KEYS.min(self.commit_max_keys);
        let mut stopping = None;
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
                (!nothing).then(|| {
                    // Shown before the lock is given back: the driver, which adds to it, shows it under the same lock.
                    self.status.metrics().pending.set(0, self.pending_max_keys);
                    Pending {
                        changes: std::mem::take(&mut pending.changes),
                        commits_ms: std::mem::take(&mut pending.commits_ms),
                        position: pending.position.clone(),
                        epoch: pending.epoch,
                        ..Pending::default()
                    }
                })
            };
            let Some(taken) = taken else {
                if idle_since.elapsed() > Duration::from_secs(5) && self.maintain(runtime, true)? {
                    idle_since = Instant::now();
                }
                self.live_if_caught_up();
                continue;
            };
            self.shared.changed.notify_all();
            if !quarantine.wait() {
                tracing::info!(
                    keys = taken.changes.len(),
                    "changes are left for the next start: the quarantine has ended before them"
                );
                return Ok(());
            }
            self.indexer.announce(taken.epoch, &taken.position).map_err(|e| e.to_string())?;
            let mut changes: Vec<ViewChange> =
                taken.changes.into_iter().map(|(key, row)| ViewChange { key, row }).collect();
            changes.sort_by(|a, b| a.key.cmp(&b.key));
            while !changes.is_empty() {
                if self.stop.load(Ordering::SeqCst) && stopping.get_or_insert_with(Instant::now).elapsed() > DRAIN_MAX {
                    tracing::info!(keys = changes.len(), "changes are left for the next start");
                    return Ok(());
                }
                let rest = changes.split_off(changes.len().min(keys_at_once));
                let started = Instant::now();
                self.commit(runtime, changes)?;
                match started.elapsed() {
                    took if took > COMMIT_TARGET => keys_at_once = (keys_at_once / 2).max(1),
                    took if took < COMMIT_TARGET / 2 && !rest.is_empty() => {
                        keys_at_once = (keys_at_once * 2).min(self.commit_max_keys);
                    }
                    _ => {}
                }
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

    fn maintain(&mut self, runtime: &tokio::runtime::Handle, idle: bool) -> Result<bool, String> {
        let did = runtime.block_on(self.indexer.maintain(idle)).map_err(|e| e.to_string())?;
        if did {
            runtime.block_on(self.indexer.publish(None)).map_err(|e| e.to_string())?;
        }
        Ok(did)
    }

    /// Live once the index holds all that was read, or there is nothing to read.
    fn live_if_caught_up(&self) {
        if self.status.state_beneath() != State::CatchingUp {
            return;
        }
        let read = self.shared.read.lock().expect("no holder of this lock panics").clone();
        let holds_all = if read.is_empty() { self.status.is_level() } else { self.status.position().covers(&read) };
        if holds_all {
            self.status.set_state(State::Live, "the index holds what was read");
        }
    }
}
