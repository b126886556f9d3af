//! The indexer thread: takes all that is pending, embeds, commits, publishes; and fills a table that is made beside the index.
//!
//! The invariant: nothing is taken before the view has come to where the index may have been; a position is announced when every message below it
//! that was rejected is in quarantine, and published when every change up to it is in the index. Commits are kept short, for between two of them the thread can be told to end.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::reading::Begun;
use super::{Opening, Pending, Progress, Shared};
use crate::dataflow::{Row, ViewChange};
use crate::embed::BatchStats;
use crate::index::{self, Indexer};
use crate::raw::Gate;
use crate::serve::{State, Status, Wait};
use crate::thread;
use crate::time::{Epoch, Position};

/// How long a commit should embed: the more a machine embeds in this time, the more keys a commit has. What else it takes, which is long on an
/// object store, fewer keys would not make shorter.
const COMMIT_TARGET: Duration = Duration::from_secs(1);
const COMMIT_FIRST_KEYS: usize = 64;
/// How long what is pending may go on into the index after the service was told to stop. What is left is found again at the next start: the
/// position it leads to was announced, and the index is compared with the view up to there.
const DRAIN_MAX: Duration = Duration::from_secs(3);
const IDLE: Duration = Duration::from_secs(5);
/// How long what has failed is tried again, before the service ends with the reason: a start may find the index damaged, and mend it.
const PATIENCE: Duration = Duration::from_secs(60);
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// What the thread needs.
pub(super) struct Indexing {
    pub indexer: Indexer,
    /// How the index is opened for searches, if it is not yet.
    pub opening: Option<Opening>,
    pub status: Arc<Status>,
    pub stop: Arc<AtomicBool>,
    pub shared: Arc<Shared>,
    pub commit_max_keys: usize,
    pub pending_max_keys: usize,
    pub progress: Progress,
}

/// Opens the index for searches, if there is one and it was not.
pub(super) fn open(opening: &mut Option<Opening>, indexer: &Indexer) -> Result<(), index::Error> {
    if let Some(searcher) = indexer.searcher()?
        && let Some(open) = opening.take()
    {
        open(searcher);
    }
    Ok(())
}

impl Indexing {
    pub fn run(self, runtime: &tokio::runtime::Handle, begun: &Receiver<Begun>) -> Result<(), String> {
        let shared = self.shared.clone();
        let done = self.reconcile_and_follow(runtime, begun);
        // Nobody takes what is pending any more, so nobody may wait for it to be taken.
        shared.pending().closed = true;
        done
    }

    fn reconcile_and_follow(self, runtime: &tokio::runtime::Handle, begun: &Receiver<Begun>) -> Result<(), String> {
        // A service that is stopped before it could begin has no target.
        let Ok(Begun { target, ends, quarantine }) = thread::recv(begun) else { return Ok(()) };
        if !self.hydrate(&target) {
            return Ok(());
        }
        let (epoch, position) = self.indexer.announced();
        let keys_at_once = COMMIT_FIRST_KEYS.min(self.commit_max_keys);
        let (lacking, unseen_ms, stopping) = (None, Vec::new(), None);
        let mut following = Following {
            of: self,
            runtime,
            quarantine,
            ends,
            keys_at_once,
            epoch,
            position,
            lacking,
            unseen_ms,
            stopping,
        };
        following.remove_orphans()?;
        following.of.shared.pending().follows = true;
        let why = match following.of.opening {
            None => "the index follows the view",
            Some(_) => "the index is built anew; searches are answered once it is whole",
        };
        following.of.status.set_state(State::CatchingUp, why);
        following.follow()
    }

    /// Waits until the view has come to where the index may have been. Says whether it has; not when the service stops before.
    fn hydrate(&self, target: &Position) -> bool {
        let mut pending = self.shared.pending();
        while !pending.position.covers(target) {
            if self.stop.load(Ordering::SeqCst) {
                return false;
            }
            pending = self.shared.wait(pending, Duration::from_millis(200)).0;
        }
        true
    }
}

/// What there is to do.
enum Taken {
    Changes(Pending),
    Nothing,
    /// Nothing will come any more.
    End,
}

/// The thread at work.
struct Following<'a> {
    of: Indexing,
    runtime: &'a tokio::runtime::Handle,
    quarantine: Gate,
    /// Where the topics ended when they were begun with.
    ends: Position,
    keys_at_once: usize,
    /// How far what was taken leads.
    epoch: Epoch,
    position: Position,
    /// What a table in the making lacks of the view as it is at `position`; `None` until the view was asked for and has come.
    lacking: Option<BTreeMap<Box<[u8]>, Option<Row>>>,
    /// Commit times of live events that no search sees yet.
    unseen_ms: Vec<i64>,
    stopping: Option<Instant>,
}

impl Following<'_> {
    fn remove_orphans(&mut self) -> Result<(), String> {
        let (view, epoch, position): (HashSet<Box<[u8]>>, _, _) = {
            let pending = self.of.shared.pending();
            let there = pending.changes.iter().filter(|(_, row)| row.is_some());
            (there.map(|(key, _)| key.clone()).collect(), pending.epoch, pending.position.clone())
        };
        let orphans = self.of.indexer.orphans(&view);
        if orphans.is_empty() {
            return Ok(());
        }
        // Without them the index is as far as the view, which may be beyond what was announced.
        if !self.quarantine.wait() {
            return Ok(());
        }
        if epoch > self.epoch {
            let runtime = self.runtime;
            self.patiently(|of| runtime.block_on(of.indexer.announce(epoch, &position)))?;
        }
        tracing::info!(rows = orphans.len(), "rows that the view no longer has are removed from the index");
        self.commit(&orphans, false).map(drop)
    }

    fn follow(&mut self) -> Result<(), String> {
        let mut idle_since = thread::now();
        loop {
            match self.take() {
                Taken::Changes(taken) => {
                    if !self.bring(taken)? {
                        return Ok(());
                    }
                    idle_since = thread::now();
                }
                Taken::Nothing => {
                    if self.lacking.is_none() && thread::elapsed(idle_since) > IDLE {
                        self.maintain(true)?;
                        idle_since = thread::now();
                    }
                    self.live_if_caught_up();
                }
                Taken::End => return Ok(()),
            }
            if self.of.indexer.ann_done() {
                self.publish(false)?;
            }
            if self.of.status.is_asked_to_rebuild() {
                self.of.status.set_building(None);
                self.of.shared.pending().wants_whole = true;
            }
            if self.of.indexer.is_building() {
                self.build()?;
            }
        }
    }

    /// Takes all that is pending; waits a little for it if there is nothing else to do.
    fn take(&self) -> Taken {
        let Indexing { shared, status, pending_max_keys, .. } = &self.of;
        let has_nothing_to_fill = self.lacking.as_ref().is_none_or(BTreeMap::is_empty);
        let mut pending = shared.pending();
        while pending.epoch <= self.epoch && !pending.ended && has_nothing_to_fill {
            let (back, is_up) = shared.wait(pending, Duration::from_millis(200));
            pending = back;
            if is_up {
                break;
            }
        }
        if pending.epoch <= self.epoch {
            let ends = pending.ended || status.state() == State::Failed;
            return if ends { Taken::End } else { Taken::Nothing };
        }
        // Shown before the lock is given back: the driver, which adds to it, shows it under the same lock.
        status.metrics().pending.set(0, *pending_max_keys);
        let taken = Pending {
            changes: std::mem::take(&mut pending.changes),
            whole: pending.whole.take(),
            commits_ms: std::mem::take(&mut pending.commits_ms),
            position: pending.position.clone(),
            epoch: pending.epoch,
            ..Pending::default()
        };
        drop(pending);
        shared.changed.notify_all();
        Taken::Changes(taken)
    }

    /// Brings what was taken into the index. Says whether all of it went there: not when the service is to stop and it would take too long.
    fn bring(&mut self, taken: Pending) -> Result<bool, String> {
        if !self.quarantine.wait() {
            let keys = taken.changes.len();
            tracing::info!(keys, "changes are left for the next start: the quarantine has ended before them");
            return Ok(false);
        }
        self.note_lacking(&taken);
        (self.epoch, self.position) = (taken.epoch, taken.position);
        self.unseen_ms.extend(taken.commits_ms);
        if !self.of.indexer.is_searchable() {
            return Ok(true);
        }
        let (epoch, position, runtime) = (self.epoch, self.position.clone(), self.runtime);
        self.patiently(|of| runtime.block_on(of.indexer.announce(epoch, &position)))?;
        let mut changes: Vec<ViewChange> =
            taken.changes.into_iter().map(|(key, row)| ViewChange { key, row }).collect();
        changes.sort_by(|a, b| a.key.cmp(&b.key));
        while !changes.is_empty() {
            let stops = self.of.stop.load(Ordering::SeqCst);
            if stops && thread::elapsed(*self.stopping.get_or_insert_with(thread::now)) > DRAIN_MAX {
                tracing::info!(keys = changes.len(), "changes are left for the next start");
                return Ok(false);
            }
            let rest = changes.split_off(changes.len().min(self.keys_at_once));
            self.paced(&changes, false, !rest.is_empty())?;
            changes = rest;
            if !changes.is_empty() {
                self.publish(false)?;
            }
        }
        self.publish(true)?;
        self.seen();
        self.maintain(false)?;
        Ok(true)
    }

    /// What a table in the making lacks: all of the view when it has come, and from then on what changes. What is taken first after a start is
    /// all of the view.
    fn note_lacking(&mut self, taken: &Pending) {
        let entry = |change: &ViewChange| (change.key.clone(), change.row.clone());
        if let Some(whole) = &taken.whole {
            if let Err(e) = self.runtime.block_on(self.of.indexer.begin()) {
                return self.give_up(e.to_string());
            }
            self.lacking = Some(whole.iter().map(entry).collect());
        }
        if self.of.indexer.is_building() {
            let changes = taken.changes.iter().map(|(key, row)| (key.clone(), row.clone()));
            self.lacking.get_or_insert_default().extend(changes);
        }
    }

    /// Goes on with the table in the making. One that cannot be made costs no more than itself, as long as there is an index.
    fn build(&mut self) -> Result<(), String> {
        match self.fill() {
            Ok(false) => Ok(()),
            Ok(true) => self.swap(),
            Err(reason) if !self.of.indexer.is_searchable() => Err(reason),
            Err(reason) => {
                self.give_up(reason);
                Ok(())
            }
        }
    }

    fn give_up(&mut self, reason: String) {
        tracing::error!(reason, "the index could not be built anew; it stays what it is");
        self.lacking = None;
        self.runtime.block_on(self.of.indexer.give_up());
        self.of.status.set_building_failed(reason);
    }

    /// Brings a part of what it lacks into the table in the making. Says whether it lacks nothing then, and its ANN index is made.
    fn fill(&mut self) -> Result<bool, String> {
        // A first one is not shown before it has all that there was: half of it is no answer.
        let may_swap = self.of.opening.is_none() || self.position.covers(&self.ends);
        let Some(lacking) = &mut self.lacking else {
            // Of topics that have never had anything, nothing will come.
            return Ok(Position::default().covers(&self.ends));
        };
        if lacking.is_empty() && !may_swap {
            return Ok(false);
        }
        let mut part = Vec::new();
        while part.len() < self.keys_at_once
            && let Some((key, row)) = lacking.pop_first()
        {
            part.push(ViewChange { key, row });
        }
        let left = lacking.len();
        if !part.is_empty() {
            self.paced(&part, true, left > 0)?;
        }
        self.of.status.set_building(Some(left));
        if left > 0 || !may_swap {
            return Ok(false);
        }
        let runtime = self.runtime;
        self.patiently(|of| runtime.block_on(of.indexer.maintain_beside()))
    }

    fn swap(&mut self) -> Result<(), String> {
        self.lacking = None;
        let (epoch, position, runtime) = (self.epoch, self.position.clone(), self.runtime);
        self.patiently(|of| runtime.block_on(of.indexer.swap(epoch, &position)))?;
        if self.of.opening.is_some() {
            open(&mut self.of.opening, &self.of.indexer).map_err(|e| e.to_string())?;
            self.of.status.set_ready();
        }
        self.of.status.set_table(self.of.indexer.table_name().unwrap_or_default());
        self.of.status.metrics().index_rows.set(self.of.indexer.len() as i64);
        self.seen();
        Ok(())
    }

    /// Commits, and learns from the time that it embeds how many keys the next commit should have.
    fn paced(&mut self, changes: &[ViewChange], beside: bool, more: bool) -> Result<(), String> {
        match self.commit(changes, beside)? {
            took if took > COMMIT_TARGET => self.keys_at_once = (self.keys_at_once / 2).max(1),
            took if took < COMMIT_TARGET / 2 && more => {
                self.keys_at_once = (self.keys_at_once * 2).min(self.of.commit_max_keys);
            }
            _ => {}
        }
        Ok(())
    }

    /// Commits to the index, or to the table in the making beside it. Says how long it has embedded.
    fn commit(&mut self, changes: &[ViewChange], beside: bool) -> Result<Duration, String> {
        let started = thread::now();
        let metrics = self.of.status.metrics().clone();
        let progress = self.of.progress.clone();
        let counting = metrics.clone();
        let mut embedding = Duration::ZERO;
        let mut heard = |batch: BatchStats| {
            embedding += batch.took;
            counting.count_embed_batch(batch.tokens, batch.padded_tokens - batch.tokens, batch.max_tokens, batch.took);
            progress(batch);
        };
        let runtime = self.runtime;
        let applied = self.patiently(|of| match beside {
            false => runtime.block_on(of.indexer.apply(changes, &mut heard)),
            true => runtime.block_on(of.indexer.apply_beside(changes, &mut heard)),
        })?;
        metrics.embeds_asked.inc_by(applied.asked);
        metrics.embeds_cached.inc_by(applied.cached);
        metrics.embeds_computed.inc_by(applied.computed);
        metrics.index_upserted_rows.inc_by(applied.upserted);
        metrics.index_deleted_rows.inc_by(applied.deleted);
        metrics.index_rows.set(self.of.indexer.len() as i64);
        if applied.upserted + applied.deleted > 0 {
            metrics.index_commits.inc();
            metrics.index_commit_seconds.observe(thread::elapsed(started).as_secs_f64());
        }
        Ok(embedding)
    }

    /// Shows what is in the index; `whole` says that it is all that was taken.
    fn publish(&mut self, whole: bool) -> Result<(), String> {
        let (epoch, position, runtime) = (self.epoch, self.position.clone(), self.runtime);
        self.patiently(|of| runtime.block_on(of.indexer.publish(whole.then_some((epoch, &position)))))
    }

    /// Tries until it works, for a while. What was done of it is not known when it fails, so what lies there is looked at before the next try.
    fn patiently<T>(&mut self, mut work: impl FnMut(&mut Indexing) -> Result<T, index::Error>) -> Result<T, String> {
        let (mut failed, mut backoff) = (None, BACKOFF_MIN);
        loop {
            let looked = match failed {
                None => Ok(()),
                Some(_) => self.runtime.block_on(self.of.indexer.look_again()),
            };
            let error = match looked.and_then(|()| work(&mut self.of)) {
                Ok(done) => {
                    if failed.is_some() {
                        tracing::info!("the index goes on");
                        self.of.status.set_waiting(Wait::Index, None);
                    }
                    return Ok(done);
                }
                Err(error) => error,
            };
            let begun = *failed.get_or_insert_with(|| {
                tracing::warn!(%error, "the index waits");
                thread::now()
            });
            if !error.is_passing() || thread::elapsed(begun) > PATIENCE || self.of.stop.load(Ordering::SeqCst) {
                self.of.status.set_waiting(Wait::Index, None);
                return Err(error.to_string());
            }
            self.of.status.set_waiting(Wait::Index, Some(error.to_string()));
            let until = thread::now() + backoff;
            while thread::now() < until && !self.of.stop.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(10));
            }
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// All that was taken can be searched.
    fn seen(&mut self) {
        self.of.status.set_committed(self.epoch, &self.position);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64);
        self.of.status.observe_freshness(self.unseen_ms.drain(..).map(|ms| now - ms));
        self.live_if_caught_up();
    }

    fn maintain(&mut self, idle: bool) -> Result<(), String> {
        match self.runtime.block_on(self.of.indexer.maintain(idle)) {
            Ok(false) => Ok(()),
            Ok(true) => self.publish(false),
            // Searches and commits do without; the next time may be better.
            Err(error) if error.is_passing() => {
                tracing::warn!(%error, "the index's maintenance has to wait");
                let runtime = self.runtime;
                self.patiently(|of| runtime.block_on(of.indexer.look_again()))
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// Live once searches reflect all that there was when reading began.
    fn live_if_caught_up(&self) {
        let status = &self.of.status;
        let is_catching_up = status.state_beneath() == State::CatchingUp && self.of.indexer.is_searchable();
        if is_catching_up && status.position().covers(&self.ends) {
            status.set_state(State::Live, "the index follows the topics");
        }
    }
}
