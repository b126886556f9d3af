//! Landing carries messages into the raw tables, off the critical path: a queue with a bound in bytes, and one thread that commits by size or age.
//!
//! The invariant: what was taken and is not committed is bounded, rows in the making included; what is away (storage, the registry) is waited for
//! and said, never skipped, while the queue fills and who offers waits. A second writer ends the landing, and says so.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use futures::future::AbortHandle;

use super::Error;
use super::events::Events;
use super::patience::retry;
use super::quarantine::Gate;
use super::snapshot;
use super::table::RawTable;
use crate::config;
use crate::decode::SchemaStore;
use crate::source::{Message, MessageBatch};
use crate::thread::{self, Condvar, JoinHandle};
use crate::time::Position;

/// What hears of a landing, and of a quarantine. Called by their threads, which wait for the answer.
pub trait Observer: Send + Sync {
    /// A commit added `rows`; `landed` is the next offset of every partition of that table.
    fn landed(&self, _landed: &Position, _rows: usize) {}

    /// Bytes of messages that are taken and not committed, and the bound of them.
    fn held(&self, _bytes: usize, _bound: usize) {}

    /// Storage or the registry is away, and why; `None` when it answers again.
    fn waiting(&self, _reason: Option<&str>) {}

    /// Of all messages that ever went into quarantine, how many are open.
    fn quarantined(&self, _open: usize, _total: usize) {}

    /// The quarantine's storage is away, and why; `None` when it answers again.
    fn quarantine_waiting(&self, _reason: Option<&str>) {}
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
    /// Starts the thread. A message whose reject the quarantine behind `gate` has taken lands after it; `runtime` has to be a multi-threaded one.
    pub fn start(
        raw: &config::Raw,
        dataflow: &str,
        sources: Vec<(config::Source, RawTable)>,
        schemas: Arc<dyn SchemaStore>,
        gate: Gate,
        observer: Arc<dyn Observer>,
        runtime: tokio::runtime::Handle,
    ) -> std::io::Result<Landing> {
        let (queue, changed) = Default::default();
        let shared = Arc::new(Shared { queue, changed, queue_max_bytes: raw.queue_max_bytes });
        let of = |(config, table): (config::Source, RawTable)| Source {
            events: Events::new(&config, schemas.clone(), &table),
            config,
            table,
            since: None,
            bytes: 0,
            tail_rows: None,
            snapshot: None,
        };
        let worker = Worker {
            sources: sources.into_iter().map(of).collect(),
            raw: raw.clone(),
            dataflow: dataflow.into(),
            schemas,
            gate,
            observer,
            runtime,
            shared: shared.clone(),
        };
        let over = Over(shared.clone());
        let work = move || {
            let _over = over;
            worker.run()
        };
        Ok(Landing { shared, thread: thread::spawn("landing", work)? })
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
    dataflow: String,
    sources: Vec<Source>,
    schemas: Arc<dyn SchemaStore>,
    gate: Gate,
    observer: Arc<dyn Observer>,
    runtime: tokio::runtime::Handle,
    shared: Arc<Shared>,
}

/// A source and its table.
struct Source {
    config: config::Source,
    table: RawTable,
    events: Events,
    /// Since when rows wait for their commit.
    since: Option<Instant>,
    /// What the messages of these rows count for.
    bytes: usize,
    /// Rows since the last snapshot, once they were counted.
    tail_rows: Option<usize>,
    snapshot: Option<(JoinHandle<()>, AbortHandle)>,
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
        (0..self.sources.len()).try_for_each(|n| self.commit(n))
    }

    /// The next batch; `Some(None)` when a commit may be due first, `None` at the end.
    fn take(&self) -> Option<Option<Arc<MessageBatch>>> {
        let age = Duration::from_millis(self.raw.commit_max_age_ms);
        let due = self.sources.iter().filter_map(|s| s.since).min().map(|since| since + age);
        let mut queue = self.shared.queue();
        loop {
            if let Some(batch) = queue.batches.pop_front() {
                return Some(Some(batch));
            }
            if queue.is_closed {
                return None;
            }
            let left = due.map_or(age, |due| due.saturating_duration_since(thread::now()));
            if left.is_zero() || queue.is_full {
                return Some(None);
            }
            queue = self.shared.changed.wait_timeout(&self.shared.queue, queue, left).0;
        }
    }

    /// Sources whose rows are to be committed: by size, by age, or because there is no room and they hold the most of it.
    fn due(&self) -> Vec<usize> {
        let is_due = |s: &Source| {
            let age = s.since.map_or(Duration::ZERO, thread::elapsed);
            s.bytes >= self.raw.commit_max_bytes || age >= Duration::from_millis(self.raw.commit_max_age_ms)
        };
        let due: Vec<usize> = (0..self.sources.len()).filter(|n| is_due(&self.sources[*n])).collect();
        let queue = self.shared.queue();
        match due.is_empty() && queue.is_full && queue.batches.is_empty() {
            true => (0..self.sources.len()).max_by_key(|n| self.sources[*n].bytes).into_iter().collect(),
            false => due,
        }
    }

    fn push(&mut self, batch: &MessageBatch) -> Result<(), Error> {
        let source = self.sources.iter().position(|s| s.config.topic == batch.partition.topic);
        let is_new = |n: &usize| {
            // What is read again after a restart has mostly landed.
            let landed = self.sources[*n].table.landed().get(&batch.partition);
            batch.end().is_some_and(|end| landed.is_none_or(|landed| end > landed))
        };
        let Some(n) = source.filter(is_new) else {
            self.release(weight(batch));
            return Ok(());
        };
        self.retry(n, |source, runtime| runtime.block_on(source.events.push(batch)))?;
        let source = &mut self.sources[n];
        source.since.get_or_insert_with(thread::now);
        source.bytes += weight(batch);
        Ok(())
    }

    fn commit(&mut self, n: usize) -> Result<(), Error> {
        let source = &mut self.sources[n];
        if source.since.take().is_none() {
            return Ok(());
        }
        // Where columns can say what a message was, its bytes are in quarantine alone.
        if !self.gate.wait() {
            return Err(Error::lasting(
                source.table.location(),
                "what it would land is not in quarantine, which has ended",
            ));
        }
        let rows = source.events.take();
        let added = self.retry(n, |source, runtime| runtime.block_on(source.table.append(&rows)))?;
        let source = &mut self.sources[n];
        self.observer.landed(source.table.landed(), added);
        source.tail_rows = source.tail_rows.map(|rows| rows + added);
        let bytes = std::mem::take(&mut source.bytes);
        self.release(bytes);
        Ok(())
    }

    fn release(&self, bytes: usize) {
        let mut queue = self.shared.queue();
        queue.bytes -= bytes;
        queue.is_full = false;
        self.observer.held(queue.bytes, self.shared.queue_max_bytes);
    }

    /// The table's upkeep and its snapshot, as far as they are due.
    fn upkeep(&mut self, n: usize) -> Result<(), Error> {
        let age = Duration::from_secs(self.raw.versions_max_age_s);
        let log = &mut self.sources[n].table.log;
        self.runtime.block_on(log.upkeep(self.raw.compact_min_files, age))?;
        self.snapshot(n);
        Ok(())
    }

    /// Takes a snapshot beside the landing, when enough has landed since the last.
    fn snapshot(&mut self, n: usize) {
        let source = &mut self.sources[n];
        if source.snapshot.as_ref().is_some_and(|(thread, _)| !thread.is_finished()) {
            return;
        }
        let place = snapshot::Place {
            location: source.table.location().into(),
            options: self.raw.options.clone(),
            dataflow: self.dataflow.clone(),
            source: source.config.clone(),
        };
        if source.tail_rows.is_none() {
            match self.runtime.block_on(place.tail_rows(&source.table)) {
                Ok(rows) => source.tail_rows = Some(rows),
                Err(e) => tracing::warn!(table = source.table.location(), error = %e, "the snapshot cannot be read"),
            }
        }
        if source.tail_rows.is_none_or(|rows| rows < self.raw.snapshot_min_events) {
            return;
        }
        source.tail_rows = Some(0);
        let (schemas, age) = (self.schemas.clone(), Duration::from_secs(self.raw.versions_max_age_s));
        let (work, abort) = futures::future::abortable(async move {
            let begun = thread::now();
            match place.take(schemas, age).await {
                Ok(stats) => {
                    tracing::info!(
                        table = place.location,
                        read = stats.read,
                        kept = stats.kept,
                        took_ms = thread::elapsed(begun).as_millis() as u64,
                        "took a snapshot"
                    );
                }
                Err(e) => {
                    tracing::warn!(table = place.location, error = %e, "no snapshot was taken; a start reads more")
                }
            }
        });
        let runtime = self.runtime.clone();
        let work = move || {
            // What was aborted has not been made.
            let _ = runtime.block_on(work);
        };
        match thread::spawn("snapshot", work) {
            Ok(thread) => source.snapshot = Some((thread, abort)),
            Err(e) => tracing::warn!(error = %e, "a thread for a snapshot cannot be started"),
        }
    }

    /// Tries until it works. What is left when the landing is to stop, Kafka still has.
    fn retry<T>(
        &mut self,
        n: usize,
        mut work: impl FnMut(&mut Source, &tokio::runtime::Handle) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let Worker { sources, shared, observer, runtime, .. } = self;
        let source = &mut sources[n];
        let table = source.table.location().to_string();
        let (is_closed, waiting) = (|| shared.queue().is_closed, |reason: Option<&str>| observer.waiting(reason));
        retry((&table, "landing"), is_closed, waiting, || work(source, runtime))
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        // What it has not committed is nothing.
        if let Some((_, snapshot)) = self.snapshot.take() {
            snapshot.abort();
        }
    }
}
