//! Landing carries messages into the raw tables, off the critical path: a queue with a bound in bytes, and one thread that has the lander commit by
//! size or age.
//!
//! The invariant: what was taken and is not committed is bounded, rows in the making included; what is away (storage, the registry) is waited for
//! and said, never skipped, while the queue fills and who offers waits. A second writer ends the landing, and says so.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Error, Lander};
use crate::config;
use crate::source::{Message, MessageBatch};
use crate::time::Position;

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// How often is looked for what can go.
const VACUUM_EVERY: Duration = Duration::from_secs(3600);
/// Tries of one piece of work once the landing is to stop. What is left then, Kafka still has.
const LAST_TRIES: usize = 3;

/// What hears of a landing. Called by its thread, which waits for the answer.
pub trait Observer: Send + Sync {
    /// A commit added `rows`; `landed` is the next offset of every partition of that table.
    fn landed(&self, _landed: &Position, _rows: usize) {}

    /// Bytes of messages that are taken and not committed, and the bound of them.
    fn held(&self, _bytes: usize, _bound: usize) {}

    /// Storage or the registry is away, and why; `None` when it answers again.
    fn waiting(&self, _reason: Option<&str>) {}
}

pub struct Landing {
    shared: Arc<Shared>,
    thread: JoinHandle<Result<(), Error>>,
}

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    queue_max_bytes: usize,
}

#[derive(Default)]
struct Queue {
    batches: VecDeque<Arc<MessageBatch>>,
    /// Of what is taken and not committed.
    bytes: usize,
    /// Somebody was turned away since the last commit.
    is_full: bool,
    /// Nothing more is offered.
    is_closed: bool,
    /// The thread has ended.
    is_over: bool,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no holder of this lock panics")
    }
}

impl Landing {
    /// Starts the thread. `runtime` has to be a multi-threaded one.
    pub fn start(
        raw: &config::Raw,
        lander: Lander,
        observer: Arc<dyn Observer>,
        runtime: tokio::runtime::Handle,
    ) -> std::io::Result<Landing> {
        let (queue, changed) = Default::default();
        let shared = Arc::new(Shared { queue, changed, queue_max_bytes: raw.queue_max_bytes });
        let table = |_| Table { since: None, bytes: 0, snapshot: None, vacuumed: Instant::now() };
        let tables = (0..lander.tables().len()).map(table).collect();
        let worker = Worker { lander, tables, raw: raw.clone(), observer, runtime, shared: shared.clone() };
        let over = Over(shared.clone());
        let work = move || {
            let _over = over;
            worker.run()
        };
        Ok(Landing { shared, thread: std::thread::Builder::new().name("landing".into()).spawn(work)? })
    }

    /// Takes a batch, or gives it back: the queue is full, or the landing [has ended](Landing::has_ended).
    pub fn offer(&self, batch: Arc<MessageBatch>) -> Result<(), Arc<MessageBatch>> {
        let mut queue = self.shared.queue();
        // A batch that is larger than the queue goes alone.
        queue.is_full |= queue.bytes > 0 && queue.bytes + weight(&batch) > self.shared.queue_max_bytes;
        self.shared.changed.notify_all();
        if queue.is_full || queue.is_over {
            return Err(batch);
        }
        queue.bytes += weight(&batch);
        queue.batches.push_back(batch);
        Ok(())
    }

    /// Whether the thread has given up; [`Landing::stop`] says why.
    pub fn has_ended(&self) -> bool {
        self.shared.queue().is_over
    }

    /// Commits what was taken, and ends. What is away is tried a few more times; what is lost then, Kafka still has.
    pub fn stop(self) -> Result<(), Error> {
        self.shared.queue().is_closed = true;
        self.shared.changed.notify_all();
        self.thread.join().unwrap_or_else(|_| Err(Error::lasting("raw", "its thread has panicked; the log says where")))
    }
}

/// What a batch counts for.
fn weight(batch: &MessageBatch) -> usize {
    batch.bytes.len() + batch.messages.len() * std::mem::size_of::<Message>()
}

/// Says that the thread has ended, also when a panic ends it: who offers must not wait for good.
struct Over(Arc<Shared>);

impl Drop for Over {
    fn drop(&mut self) {
        if let Ok(mut queue) = self.0.queue.lock() {
            queue.is_over = true;
        }
    }
}

struct Worker {
    raw: config::Raw,
    lander: Lander,
    /// In the lander's order.
    tables: Vec<Table>,
    observer: Arc<dyn Observer>,
    runtime: tokio::runtime::Handle,
    shared: Arc<Shared>,
}

/// When something is to be done for a table.
struct Table {
    /// Since when rows wait for their commit.
    since: Option<Instant>,
    /// What the messages of these rows count for.
    bytes: usize,
    snapshot: Option<tokio::task::JoinHandle<()>>,
    vacuumed: Instant,
}

impl Worker {
    fn run(mut self) -> Result<(), Error> {
        while let Some(batch) = self.take() {
            if let Some(batch) = batch {
                self.push(&batch)?;
            }
            for n in self.due() {
                self.commit(n)?;
                self.upkeep(n)?;
            }
        }
        (0..self.tables.len()).try_for_each(|n| self.commit(n))
    }

    /// The next batch; `Some(None)` when a commit may be due first, `None` at the end.
    fn take(&self) -> Option<Option<Arc<MessageBatch>>> {
        let age = Duration::from_millis(self.raw.commit_max_age_ms);
        let due = self.tables.iter().filter_map(|t| t.since).min().map(|since| since + age);
        let mut queue = self.shared.queue();
        loop {
            if let Some(batch) = queue.batches.pop_front() {
                return Some(Some(batch));
            }
            if queue.is_closed {
                return None;
            }
            let left = due.map_or(age, |due| due.saturating_duration_since(Instant::now()));
            if left.is_zero() || queue.is_full {
                return Some(None);
            }
            queue = self.shared.changed.wait_timeout(queue, left).expect("no holder of this lock panics").0;
        }
    }

    /// Tables whose rows are to be committed: by size, by age, or because there is no room and they hold the most of it.
    fn due(&self) -> Vec<usize> {
        let is_due = |t: &Table| {
            let age = t.since.map_or(Duration::ZERO, |since| since.elapsed());
            t.bytes >= self.raw.commit_max_bytes || age >= Duration::from_millis(self.raw.commit_max_age_ms)
        };
        let due: Vec<usize> = (0..self.tables.len()).filter(|n| is_due(&self.tables[*n])).collect();
        let queue = self.shared.queue();
        match due.is_empty() && queue.is_full && queue.batches.is_empty() {
            true => (0..self.tables.len()).max_by_key(|n| self.tables[*n].bytes).into_iter().collect(),
            false => due,
        }
    }

    fn push(&mut self, batch: &MessageBatch) -> Result<(), Error> {
        let Some(n) = self.lander.table_of(batch) else {
            self.release(weight(batch));
            return Ok(());
        };
        self.retry(n, |lander, runtime| runtime.block_on(lander.push(n, batch)))?;
        let table = &mut self.tables[n];
        table.since.get_or_insert_with(Instant::now);
        table.bytes += weight(batch);
        Ok(())
    }

    fn commit(&mut self, n: usize) -> Result<(), Error> {
        if self.tables[n].since.take().is_none() {
            return Ok(());
        }
        let added = self.retry(n, |lander, runtime| runtime.block_on(lander.commit(n)))?;
        self.observer.landed(self.lander.table(n).landed(), added);
        let bytes = std::mem::take(&mut self.tables[n].bytes);
        self.release(bytes);
        Ok(())
    }

    fn release(&self, bytes: usize) {
        let mut queue = self.shared.queue();
        queue.bytes -= bytes;
        queue.is_full = false;
        self.observer.held(queue.bytes, self.shared.queue_max_bytes);
    }

    /// Merging, checkpoints, removing, snapshots, as far as they are due. What is away is tried again after the next commit.
    fn upkeep(&mut self, n: usize) -> Result<(), Error> {
        let Worker { lander, tables, runtime, .. } = self;
        let table = &mut tables[n];
        let done = runtime.block_on(async {
            lander.upkeep(n).await?;
            if table.vacuumed.elapsed() >= VACUUM_EVERY {
                table.vacuumed = Instant::now();
                lander.vacuum(n).await?;
            }
            Ok::<(), Error>(())
        });
        match done {
            Err(e) if e.is_passing() => {
                tracing::warn!(table = lander.table(n).location(), error = %e, "upkeep has to wait")
            }
            other => other?,
        }
        self.snapshot(n);
        Ok(())
    }

    /// Takes a snapshot beside the landing, when enough has landed since the last.
    fn snapshot(&mut self, n: usize) {
        let Worker { lander, tables, runtime, .. } = self;
        let table = &mut tables[n];
        if table.snapshot.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        let place = match runtime.block_on(lander.snapshot(n)) {
            Ok(Some(place)) => place,
            Ok(None) => return,
            Err(e) => {
                tracing::warn!(table = lander.table(n).location(), error = %e, "the snapshot cannot be read");
                return;
            }
        };
        table.snapshot = Some(runtime.spawn(async move {
            let begun = Instant::now();
            match place.take().await {
                Ok(stats) => {
                    tracing::info!(
                        table = place.location(),
                        read = stats.read,
                        kept = stats.kept,
                        took_ms = begun.elapsed().as_millis() as u64,
                        "took a snapshot"
                    );
                }
                Err(e) => {
                    tracing::warn!(table = place.location(), error = %e, "no snapshot was taken; a start reads more")
                }
            }
        }));
    }

    /// Tries until it works. Waiting is said once, and over when it works again.
    fn retry<T>(
        &mut self,
        n: usize,
        mut work: impl FnMut(&mut Lander, &tokio::runtime::Handle) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let (mut backoff, mut waited, mut last_tries) = (BACKOFF_MIN, false, 0);
        loop {
            let error = match work(&mut self.lander, &self.runtime) {
                Ok(done) => {
                    if waited {
                        tracing::info!(table = self.lander.table(n).location(), "lands again");
                        self.observer.waiting(None);
                    }
                    return Ok(done);
                }
                Err(e) => e,
            };
            last_tries += usize::from(self.shared.queue().is_closed);
            if !error.is_passing() || last_tries >= LAST_TRIES {
                return Err(error);
            }
            if !waited {
                tracing::warn!(table = self.lander.table(n).location(), error = %error, "landing waits");
                waited = true;
            }
            self.observer.waiting(Some(&error.to_string()));
            let begun = Instant::now();
            while begun.elapsed() < backoff && (last_tries > 0 || !self.shared.queue().is_closed) {
                std::thread::sleep(BACKOFF_MIN);
            }
            backoff = if last_tries > 0 { BACKOFF_MIN } else { (backoff * 2).min(BACKOFF_MAX) };
        }
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        // What it has not committed is nothing.
        if let Some(task) = self.snapshot.take() {
            task.abort();
        }
    }
}
