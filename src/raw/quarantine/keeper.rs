//! The thread that writes the quarantine: off the path of what is good, with those waiting at the gate who must not go before a reject.
//!
//! The invariant: what was offered and is not committed is bounded; a gate opens when all is committed that was offered before it was asked, and
//! never by time. Storage that is away is waited for, and said. However few the messages, there is at most one commit in [`EVERY`]:
//! the first after a quiet time goes at once.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::table::{QuarantineTable, weight};
use crate::decode::{Decoded, Reject};
use crate::raw::patience::retry;
use crate::raw::{Error, Observer};
use crate::thread::{self, Condvar, JoinHandle};
use crate::time::Coordinates;

const EVERY: Duration = Duration::from_secs(1);
/// Small files from which they are merged.
const COMPACT_MIN_FILES: usize = 32;
/// When a version may go. Nobody reads old ones, and a table that is rejected for days makes many.
const VERSIONS_MAX_AGE: Duration = Duration::from_secs(3600);

/// Used by one thread. When it goes, the other thread ends in order.
pub struct Quarantine {
    shared: Arc<Shared>,
    /// Messages that were open at the start and have not been read since.
    waiting: BTreeSet<Coordinates>,
    thread: Option<JoinHandle<Result<(), Error>>>,
}

/// Where others wait for what the quarantine was offered.
#[derive(Clone, Default)]
pub struct Gate(Arc<Shared>);

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    queue_max_bytes: usize,
}

#[derive(Default)]
struct Queue {
    taken: Taken,
    /// Of what is offered and not settled.
    bytes: usize,
    /// Somebody was turned away since the last commit.
    is_full: bool,
    settled: u64,
    /// Nothing more is offered.
    is_closed: bool,
    /// The thread has ended.
    is_over: bool,
}

/// What was offered.
#[derive(Default)]
struct Taken {
    rejects: Vec<Reject>,
    healed: Vec<Coordinates>,
    bytes: usize,
    /// How many offers there have been.
    offers: u64,
}

impl Taken {
    fn is_empty(&self) -> bool {
        self.rejects.is_empty() && self.healed.is_empty()
    }

    /// What is in it, which leaves it empty.
    fn drain(&mut self) -> Taken {
        let offers = self.offers;
        Taken { offers, ..std::mem::replace(self, Taken { offers, ..Taken::default() }) }
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no holder of this lock panics")
    }
}

impl Quarantine {
    /// Starts the thread. `queue_max_bytes` bounds the rejects that are taken and not committed; `runtime` has to be a multi-threaded one.
    pub fn start(
        table: QuarantineTable,
        queue_max_bytes: usize,
        observer: Arc<dyn Observer>,
        runtime: tokio::runtime::Handle,
    ) -> std::io::Result<Quarantine> {
        let (queue, changed) = Default::default();
        let shared = Arc::new(Shared { queue, changed, queue_max_bytes });
        let waiting = table.open_messages().cloned().collect();
        let worker = Worker { table, observer, runtime, shared: shared.clone() };
        worker.tell();
        let over = Over(shared.clone());
        let work = move || {
            let _over = over;
            worker.run()
        };
        let thread = thread::spawn("quarantine", work)?;
        Ok(Quarantine { shared, waiting, thread: Some(thread) })
    }

    /// Takes the rejects out of what a batch came to, and sees which open messages have become changes. Says whether it did: not while the
    /// queue is full, nor when the thread [has ended](Quarantine::has_ended).
    pub fn offer(&mut self, decoded: &mut Decoded) -> bool {
        if decoded.rejects.is_empty() && self.waiting.is_empty() {
            return true;
        }
        let bytes: usize = decoded.rejects.iter().map(weight).sum();
        let mut queue = self.shared.queue();
        // A batch whose rejects are larger than the queue goes alone.
        queue.is_full |= bytes > 0 && queue.bytes > 0 && queue.bytes + bytes > self.shared.queue_max_bytes;
        self.shared.changed.notify_all();
        if queue.is_full || queue.is_over {
            return false;
        }
        let healed = healed(&mut self.waiting, decoded);
        if decoded.rejects.is_empty() && healed.is_empty() {
            return true;
        }
        queue.bytes += bytes;
        queue.taken.bytes += bytes;
        queue.taken.offers += 1;
        queue.taken.rejects.append(&mut decoded.rejects);
        queue.taken.healed.extend(healed);
        true
    }

    pub fn gate(&self) -> Gate {
        Gate(self.shared.clone())
    }

    /// Whether the thread has given up; [`Quarantine::stop`] says why.
    pub fn has_ended(&self) -> bool {
        self.shared.queue().is_over
    }

    /// Commits what was taken, and ends. Storage that is away is tried a few more times; what is lost then is read again by the next start.
    pub fn stop(mut self) -> Result<(), Error> {
        self.end()
    }

    fn end(&mut self) -> Result<(), Error> {
        self.shared.queue().is_closed = true;
        self.shared.changed.notify_all();
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread
            .join()
            .unwrap_or_else(|_| Err(Error::lasting("quarantine", "its thread has panicked; the log says where")))
    }
}

impl Drop for Quarantine {
    fn drop(&mut self) {
        if let Err(e) = self.end() {
            tracing::warn!(error = %e, "the quarantine did not end in order");
        }
    }
}

impl Gate {
    /// Waits until all is in quarantine that was offered to it so far. Says whether it is: not when the thread has ended without.
    pub fn wait(&self) -> bool {
        let mut queue = self.0.queue();
        let offers = queue.taken.offers;
        while queue.settled < offers && !queue.is_over {
            queue = self.0.changed.wait(&self.0.queue, queue);
        }
        queue.settled >= offers
    }
}

/// Takes those out of `waiting` that have become changes.
fn healed(waiting: &mut BTreeSet<Coordinates>, decoded: &Decoded) -> Vec<Coordinates> {
    let changes = &decoded.changes;
    let (Some(first), Some(last)) = (changes.first(), changes.last()) else { return Vec::new() };
    let at = |offset| Coordinates { partition: decoded.partition.clone(), offset };
    let changed = |at: &&Coordinates| changes.binary_search_by_key(&at.offset, |change| change.offset).is_ok();
    let healed: Vec<Coordinates> = waiting.range(at(first.offset)..=at(last.offset)).filter(changed).cloned().collect();
    for at in &healed {
        waiting.remove(at);
    }
    healed
}

/// Says that the thread has ended, also when a panic ends it: who waits at a gate must not wait for good.
struct Over(Arc<Shared>);

impl Drop for Over {
    fn drop(&mut self) {
        if let Ok(mut queue) = self.0.queue.lock() {
            queue.is_over = true;
        }
        self.0.changed.notify_all();
    }
}

struct Worker {
    table: QuarantineTable,
    observer: Arc<dyn Observer>,
    runtime: tokio::runtime::Handle,
    shared: Arc<Shared>,
}

impl Worker {
    fn run(mut self) -> Result<(), Error> {
        let mut last: Option<Instant> = None;
        while let Some(mut taken) = self.take() {
            // A start reads again what was rejected before: of most of that there is nothing to be written.
            taken.rejects.retain(|reject| self.table.is_new(reject));
            if taken.is_empty() {
                self.settle(&taken);
                continue;
            }
            if let Some(last) = last {
                self.gather(&mut taken, last + EVERY);
            }
            self.keep(&mut taken)?;
            last = Some(thread::now());
            self.settle(&taken);
            self.runtime.block_on(self.table.log.upkeep(COMPACT_MIN_FILES, VERSIONS_MAX_AGE))?;
        }
        Ok(())
    }

    /// What was offered; waits for something. `None` at the end.
    fn take(&self) -> Option<Taken> {
        let mut queue = self.shared.queue();
        while queue.taken.is_empty() {
            if queue.is_closed {
                return None;
            }
            queue = self.shared.changed.wait(&self.shared.queue, queue);
        }
        Some(queue.taken.drain())
    }

    /// Adds what is offered until then, or until there is no room, or nothing more will be offered.
    fn gather(&self, taken: &mut Taken, until: Instant) {
        let mut queue = self.shared.queue();
        loop {
            let left = until.saturating_duration_since(thread::now());
            if left.is_zero() || queue.is_full || queue.is_closed {
                break;
            }
            queue = self.shared.changed.wait_timeout(&self.shared.queue, queue, left).0;
        }
        let more = queue.taken.drain();
        taken.rejects.extend(more.rejects);
        taken.healed.extend(more.healed);
        taken.bytes += more.bytes;
        taken.offers = more.offers;
    }

    /// Commits.
    fn keep(&mut self, taken: &mut Taken) -> Result<(), Error> {
        taken.rejects.retain(|reject| self.table.is_new(reject));
        let Worker { table, observer, runtime, shared } = self;
        let location = table.location().to_string();
        let is_closed = || shared.queue().is_closed;
        let waiting = |reason: Option<&str>| observer.quarantine_waiting(reason);
        let work = || runtime.block_on(table.take(&taken.rejects, &taken.healed));
        retry((&location, "the quarantine"), is_closed, waiting, work)?;
        if let Some(r) = taken.rejects.last() {
            let (count, at, rule) = (taken.rejects.len(), r.coordinates(), r.rule.name());
            tracing::warn!(count, last = %at, rule, reason = r.reason, "messages were quarantined");
        }
        if let Some(at) = taken.healed.last() {
            tracing::info!(count = taken.healed.len(), last = %at, "messages have healed: they are read now, and no longer in quarantine");
        }
        self.tell();
        Ok(())
    }

    fn tell(&self) {
        self.observer.quarantined(self.table.open_messages().count(), self.table.total());
    }

    fn settle(&self, taken: &Taken) {
        let mut queue = self.shared.queue();
        queue.bytes -= taken.bytes;
        queue.is_full = false;
        queue.settled = taken.offers;
        self.shared.changed.notify_all();
    }
}
