//! The indexer thread: takes all that is pending, embeds, commits, publishes.
//!
//! The invariant: nothing is taken before the view has come to where the index may have been. Commits are kept short, for between two of them the
//! thread can be told to end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use super::Shared;
use super::follower::Follower;
use super::pending::Folded;
use crate::index::IndexTable;
use crate::serve::{State, Status};
use crate::time::Position;

/// How long a commit should take, embedding included: the more a machine embeds in this time, the more keys a commit has.
const COMMIT_TARGET: Duration = Duration::from_secs(1);
const COMMIT_FIRST_KEYS: usize = 64;
/// How long what is pending may go on into the index after the service was told to stop. What is left is found again at the next start: the
/// position it leads to was announced, and the index is compared with the view up to there.
const DRAIN_MAX: Duration = Duration::from_secs(3);
/// How long nothing has to come before there is time for maintenance.
const IDLE: Duration = Duration::from_secs(5);

/// What the thread needs.
pub(super) struct Indexing {
    pub follower: Follower<IndexTable>,
    pub status: Arc<Status>,
    pub stop: Arc<AtomicBool>,
    pub shared: Arc<Shared>,
    pub commit_max_keys: usize,
    pub pending_max_keys: usize,
}

/// What the thread has to do next.
enum Next {
    Apply(Folded),
    Idle,
    End,
}

impl Indexing {
    pub fn run(self, runtime: &tokio::runtime::Handle, target: &Receiver<Position>) -> Result<(), String> {
        let shared = self.shared.clone();
        let done = self.follow(runtime, target);
        // Nobody takes what is pending any more, so nobody may wait for it to be taken.
        shared.queue().closed = true;
        done
    }

    fn follow(mut self, runtime: &tokio::runtime::Handle, target: &Receiver<Position>) -> Result<(), String> {
        // A service that is stopped before it could begin has no target.
        let Ok(target) = target.recv() else { return Ok(()) };
        if !self.hydrate(&target) {
            return Ok(());
        }
        let view = self.shared.queue().pending.keys();
        runtime.block_on(self.follower.reconcile(&view)).map_err(|e| e.to_string())?;
        self.shared.queue().follows = true;
        self.status.set_state(State::CatchingUp, "the index follows the view");
        let mut idle_since = Instant::now();
        let mut keys_at_once = COMMIT_FIRST_KEYS.min(self.commit_max_keys);
        let mut stopping = None;
        loop {
            match self.next() {
                Next::End => return Ok(()),
                Next::Idle => {
                    if idle_since.elapsed() > IDLE && self.maintain(runtime, true)? {
                        idle_since = Instant::now();
                    }
                    self.live_if_caught_up();
                    continue;
                }
                Next::Apply(folded) => {
                    self.shared.changed.notify_all();
                    runtime.block_on(self.follower.begin(folded)).map_err(|e| e.to_string())?;
                }
            }
            while self.follower.keys_left() > 0 {
                if self.stop.load(Ordering::SeqCst) && stopping.get_or_insert_with(Instant::now).elapsed() > DRAIN_MAX {
                    tracing::info!(keys = self.follower.keys_left(), "changes are left for the next start");
                    return Ok(());
                }
                let started = Instant::now();
                runtime.block_on(self.follower.commit(keys_at_once)).map_err(|e| e.to_string())?;
                match started.elapsed() {
                    took if took > COMMIT_TARGET => keys_at_once = (keys_at_once / 2).max(1),
                    took if took < COMMIT_TARGET / 2 && self.follower.keys_left() > 0 => {
                        keys_at_once = (keys_at_once * 2).min(self.commit_max_keys);
                    }
                    _ => {}
                }
            }
            runtime.block_on(self.follower.publish()).map_err(|e| e.to_string())?;
            self.live_if_caught_up();
            self.maintain(runtime, false)?;
            idle_since = Instant::now();
        }
    }

    /// Takes what is pending, once there is something.
    fn next(&self) -> Next {
        let mut queue = self.shared.queue();
        let nothing = |queue: &super::Queue| queue.pending.epoch() <= self.status.epoch();
        if nothing(&queue) && !queue.ended {
            let woken = self.shared.changed.wait_timeout_while(queue, Duration::from_millis(200), |queue| {
                nothing(queue) && !queue.ended
            });
            queue = woken.expect("no holder of this lock panics").0;
        }
        if !nothing(&queue) {
            // Shown before the lock is given back: the driver, which adds to it, shows it under the same lock.
            self.status.metrics().pending.set(0, self.pending_max_keys);
            Next::Apply(queue.pending.take())
        } else if queue.ended || self.status.state() == State::Failed {
            Next::End
        } else {
            Next::Idle
        }
    }

    /// Waits until the view has come to where the index may have been. Says whether it has; not when the service stops before.
    fn hydrate(&self, target: &Position) -> bool {
        let mut queue = self.shared.queue();
        while !queue.pending.position().covers(target) {
            if self.stop.load(Ordering::SeqCst) {
                return false;
            }
            queue = self
                .shared
                .changed
                .wait_timeout(queue, Duration::from_millis(200))
                .expect("no holder of this lock panics")
                .0;
        }
        true
    }

    fn maintain(&mut self, runtime: &tokio::runtime::Handle, idle: bool) -> Result<bool, String> {
        runtime.block_on(self.follower.maintain(idle)).map_err(|e| e.to_string())
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
