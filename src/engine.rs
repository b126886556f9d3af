//! The engine composes the stages: start, hydrate, reconcile, run, drain. The only file that knows them all.
//!
//! Three threads besides the dataflow's: `source` reads and decodes, `driver` cuts epochs and folds what comes out of them, `indexer` embeds
//! and commits. Between them lie bounded queues, so that whatever is slow makes the source pause.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::FutureExt;
use futures::future::BoxFuture;

use crate::config::{self, Config, Problem};
use crate::dataflow::{self, Plan, Row, Table, ViewChange};
use crate::decode::{Decoded, Decoder, RegistryClient, RowType, SchemaStore};
use crate::embed::{BatchStats, Embedder, EmbeddingStore};
use crate::index::{IndexSearcher, IndexTable, Indexer};
use crate::serve::metrics::Queue;
use crate::serve::{EmbedQuery, Metrics, SearchError, ServeState, Server, State, Status};
use crate::source::kafka::KafkaSource;
use crate::source::{self, Source};
use crate::time::{Epoch, Offset, Partition, Position};
use crate::validate::Quarantine;

/// Decoded batches that wait for the driver; with the source's batches of at most 2 MiB this is the bound in bytes, too.
const BATCHES_WAITING: usize = 16;
const POLL: Duration = Duration::from_millis(20);
const LAG_EVERY: Duration = Duration::from_millis(1000);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
const STOP_GRACE: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Peer(String),
    #[error(transparent)]
    Index(#[from] crate::index::Error),
    #[error(transparent)]
    Embed(#[from] crate::embed::Error),
    #[error(transparent)]
    Store(#[from] crate::embed::StoreError),
    #[error(transparent)]
    Quarantine(#[from] crate::validate::Error),
    #[error(transparent)]
    Server(#[from] crate::serve::server::Error),
    #[error("{0}")]
    Plan(String),
}

/// Plans a configuration's models; what is wrong with contracts and SQL comes as problems by key.
pub fn plan(config: &Config) -> Result<(Plan, Vec<Arc<RowType>>), Vec<Problem>> {
    let mut problems = Vec::new();
    let mut row_types = Vec::new();
    for (n, source) in config.sources.iter().enumerate() {
        match RowType::from_contract(source) {
            Ok(row_type) => row_types.push(Arc::new(row_type)),
            Err(e) => problems.push(Problem { key: format!("source[{n}].contract"), reason: e.to_string() }),
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let tables: Vec<Table> = config
        .sources
        .iter()
        .zip(&row_types)
        .map(|(s, r)| Table { schema: s.schema.clone(), table: s.table.clone(), columns: r.schema().clone() })
        .collect();
    match Plan::new(&config.models, &config.view, &tables, &config.index.key) {
        Ok(plan) if plan.view_schema().index_of(&config.index.text).is_err() => Err(vec![Problem {
            key: "index.text".into(),
            reason: format!("the view {} has no column {}", config.view, config.index.text),
        }]),
        Ok(plan) => Ok((plan, row_types)),
        Err(e) => Err(vec![Problem { key: "models".into(), reason: e.to_string() }]),
    }
}

/// A running service.
pub struct Service {
    address: SocketAddr,
    status: Arc<Status>,
    stop: Arc<AtomicBool>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    server: Server,
}

/// What the driver has folded and the indexer has not taken yet.
struct Shared {
    pending: Mutex<Pending>,
    changed: Condvar,
    /// How far the source has read.
    read: Mutex<Position>,
}

#[derive(Default)]
struct Pending {
    changes: HashMap<Box<[u8]>, Option<Row>>,
    position: Position,
    epoch: Epoch,
    /// Commit times of live events that `changes` (or an unchanged index) stand for.
    commits_ms: Vec<i64>,
    ended: bool,
}

impl Shared {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().expect("no holder of this lock panics")
    }
}

impl Service {
    /// Starts everything. `progress` hears of every batch that is embedded for the index.
    pub async fn start(config: Config, progress: Arc<dyn Fn(BatchStats) + Send + Sync>) -> Result<Service, Error> {
        let status = Arc::new(Status::new(Arc::new(Metrics::new())));
        let state = Arc::new(ServeState::new(config.serve.clone(), status.clone()));
        let server = Server::start(state.clone()).await?;
        let (plan, row_types) = plan(&config).map_err(|p| {
            Error::Plan(p.iter().map(|p| format!("{}: {}", p.key, p.reason)).collect::<Vec<_>>().join("; "))
        })?;
        let embed = config.embed.clone();
        let embedder = tokio::task::spawn_blocking(move || Embedder::load(&embed))
            .await
            .map_err(|e| Error::Peer(e.to_string()))??;
        let embedder = Arc::new(embedder);
        let (model, dimension) = (embedder.model_id().clone(), embedder.dimension());
        let table =
            IndexTable::open(&config.index, &config.name, plan.view_schema().clone(), &model.0, dimension).await?;
        let searcher = IndexSearcher::new(&table, dimension)?;
        let store = EmbeddingStore::open(&config.embed.store, &model, dimension)?;
        let indexer = Indexer::new(table, store, embedder.clone()).await?;
        let quarantine =
            Quarantine::open(&Path::new(&config.index.uri).join(format!("{}.quarantine.jsonl", config.name)))?;
        status.metrics().quarantine_open.set(quarantine.len() as i64);
        status.metrics().index_rows.set(indexer.len() as i64);
        let announced = indexer.table().announced().cloned().unwrap_or_default();
        status.set_committed(announced.epoch, &announced.position);
        state.open(Arc::new(searcher), Arc::new(QueryEmbedder(embedder)));
        if !indexer.is_empty() {
            status.set_ready();
        }
        let handle = dataflow::Engine::start(plan, row_types.clone(), config.engine.workers).map_err(Error::Peer)?;
        let stop = Arc::new(AtomicBool::new(false));
        let shared = Arc::new(Shared { pending: Mutex::default(), changed: Condvar::new(), read: Mutex::default() });
        let (send, receive) = sync_channel(BATCHES_WAITING);
        let (targets, target) = sync_channel(1);
        let runtime = tokio::runtime::Handle::current();
        let spawn = |name: &str, work: Box<dyn FnOnce() -> Result<(), String> + Send>| {
            let (status, stop, shared) = (status.clone(), stop.clone(), shared.clone());
            std::thread::Builder::new().name(name.into()).spawn(move || {
                let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
                    .unwrap_or_else(|_| Err("a stage panicked; the log says where".into()));
                if let Err(reason) = done {
                    tracing::error!(reason, "the engine has failed");
                    status.set_state(State::Failed, reason);
                    stop.store(true, Ordering::SeqCst);
                }
                shared.changed.notify_all();
            })
        };
        let mut threads = Vec::new();
        let failed = |e: std::io::Error| Error::Peer(format!("a thread cannot be started: {e}"));
        let reading = Reading {
            config: config.clone(),
            row_types,
            status: status.clone(),
            stop: stop.clone(),
            shared: shared.clone(),
            announced: announced.position,
        };
        let reading_runtime = runtime.clone();
        threads
            .push(spawn("source", Box::new(move || reading.run(&reading_runtime, &send, &targets))).map_err(failed)?);
        let driving = Driving {
            handle,
            quarantine,
            status: status.clone(),
            shared: shared.clone(),
            engine: config.engine.clone(),
            first: Epoch(announced.epoch.0 + 1),
        };
        threads.push(spawn("driver", Box::new(move || driving.run(&receive))).map_err(failed)?);
        let indexing = Indexing {
            indexer,
            status: status.clone(),
            stop: stop.clone(),
            shared: shared.clone(),
            commit_max_keys: config.index.commit_max_keys,
            batch_max_tokens: config.embed.batch_max_tokens,
            progress,
        };
        threads.push(spawn("indexer", Box::new(move || indexing.run(&runtime, &target))).map_err(failed)?);
        Ok(Service { address: server.address(), status, stop, shared, threads, server })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn status(&self) -> &Arc<Status> {
        &self.status
    }

    /// How far the source has read; what paces a writer that must not run away.
    pub fn read_position(&self) -> impl Fn() -> Position + Send + Sync + 'static {
        let shared = self.shared.clone();
        move || shared.read.lock().expect("no holder of this lock panics").clone()
    }

    /// Whether the engine has given up; the status says why.
    pub fn has_failed(&self) -> bool {
        self.status.state() == State::Failed
    }

    /// Reads nothing more, brings what was read into the index, answers what was asked, and ends.
    pub async fn stop(self) {
        self.stop.store(true, Ordering::SeqCst);
        self.shared.changed.notify_all();
        let threads = self.threads;
        let joined = tokio::task::spawn_blocking(move || threads.into_iter().for_each(|t| drop(t.join())));
        if joined.await.is_err() {
            tracing::warn!("a stage did not end in order");
        }
        self.server.stop(STOP_GRACE).await;
    }
}

struct QueryEmbedder(Arc<Embedder>);

impl EmbedQuery for QueryEmbedder {
    fn embed_query<'a>(&'a self, text: &'a str) -> BoxFuture<'a, Result<Vec<f32>, SearchError>> {
        let (embedder, text) = (self.0.clone(), text.to_string());
        async move {
            let done = tokio::task::spawn_blocking(move || embedder.embed(&[&text], &mut |_| ())).await;
            let vectors = done
                .map_err(|e| SearchError::Internal(e.to_string()))?
                .map_err(|e| SearchError::Internal(e.to_string()))?;
            vectors.into_iter().next().ok_or_else(|| SearchError::Internal("the model gave no vector".into()))
        }
        .boxed()
    }
}

/// The source thread: reads, decodes, waits for peers that are away.
struct Reading {
    config: Config,
    row_types: Vec<Arc<RowType>>,
    status: Arc<Status>,
    stop: Arc<AtomicBool>,
    shared: Arc<Shared>,
    announced: Position,
}

impl Reading {
    fn run(
        self,
        runtime: &tokio::runtime::Handle,
        send: &SyncSender<Decoded>,
        targets: &SyncSender<Position>,
    ) -> Result<(), String> {
        let topics: Vec<Arc<str>> = self.config.sources.iter().map(|s| s.topic.clone()).collect();
        let schemas: Arc<dyn SchemaStore> =
            Arc::new(RegistryClient::new(&self.config.registry).map_err(|e| e.to_string())?);
        let mut decoders = Vec::new();
        for (n, (source, row_type)) in self.config.sources.iter().zip(&self.row_types).enumerate() {
            decoders.push(Decoder::new(n, source, row_type.clone(), schemas.clone()).map_err(|e| e.to_string())?);
        }
        let mut source = KafkaSource::new(&self.config.kafka, &topics).map_err(|e| e.to_string())?;
        let Some(target) = self.retry(|| self.begin(&mut source))? else { return Ok(()) };
        if targets.send(target).is_err() {
            return Ok(());
        }
        let mut next_lag = Instant::now();
        while !self.stop.load(Ordering::SeqCst) {
            if Instant::now() >= next_lag {
                // Lag is worth a look, not a halt: a broker that does not answer is noticed by polling.
                if let Ok(marks) = source.watermarks() {
                    let done = self.status.position();
                    self.status.set_lag(marks.into_iter().map(|(p, w)| {
                        let from = done.get(&p).unwrap_or(w.low).max(w.low);
                        let behind = (w.high.0 - from.0).max(0) as u64;
                        (p, behind)
                    }));
                }
                next_lag = Instant::now() + LAG_EVERY;
            }
            let Some(polled) = self.retry(|| source.poll(POLL).map_err(Trouble::from))? else { break };
            let Some(batch) = polled else { continue };
            let metrics = self.status.metrics();
            metrics.source_messages.inc_by(batch.messages.len() as u64);
            metrics.source_bytes.inc_by(batch.bytes.len() as u64);
            let Some(n) = self.config.sources.iter().position(|s| s.topic == batch.partition.topic) else { continue };
            let decoder = &mut decoders[n];
            let decoded = self.retry(|| {
                runtime.block_on(decoder.decode(&batch)).map_err(|e| Trouble { passing: true, reason: e.to_string() })
            })?;
            let Some(mut decoded) = decoded else { break };
            metrics.count_events(&decoded.counts);
            decoded.rejects.iter().for_each(|r| metrics.count_reject(r.rule));
            self.shared.read.lock().expect("no holder of this lock panics").advance(&decoded.partition, decoded.end);
            // A full queue is the bound at work: the source waits.
            loop {
                match send.try_send(decoded) {
                    Ok(()) => break,
                    Err(TrySendError::Full(back)) if !self.stop.load(Ordering::SeqCst) => {
                        decoded = back;
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    Err(_) => return Ok(()),
                }
            }
        }
        Ok(())
    }

    /// Puts the source at its first offset and says how far the view has to come before the index may follow it.
    fn begin(&self, source: &mut KafkaSource) -> Result<Position, Trouble> {
        self.status.set_state(State::Hydrating, "reading the topics from their first offset");
        let marks: BTreeMap<Partition, source::Watermarks> = source.watermarks()?.into_iter().collect();
        let mut target = Position::default();
        for (partition, marks) in &marks {
            let announced = self.announced.get(partition).unwrap_or_default();
            if announced > marks.high {
                tracing::warn!(%partition, announced = announced.0, high = marks.high.0, "the topic ends before what the index has seen: it was made anew, and is read as new");
            }
            if marks.low > Offset(0) {
                tracing::warn!(%partition, low = marks.low.0, "the topic no longer begins at its first offset; rows that only its lost part had are not known");
            }
            target.advance(partition, announced.min(marks.high));
        }
        source.seek(&Position::default())?;
        Ok(target)
    }

    /// Tries until it works; `None` when the service is to stop. Waiting is said once and over when it works again.
    fn retry<T>(&self, mut work: impl FnMut() -> Result<T, Trouble>) -> Result<Option<T>, String> {
        let mut backoff = Duration::from_millis(50);
        let mut before = None;
        loop {
            match work() {
                Ok(done) => {
                    if let Some((state, why)) = before {
                        tracing::info!("the peer answers again");
                        self.status.set_state(state, why);
                    }
                    return Ok(Some(done));
                }
                Err(trouble) if !trouble.passing => return Err(trouble.reason),
                Err(trouble) => {
                    if before.is_none() {
                        tracing::warn!(reason = trouble.reason, "waiting for a peer");
                        before = Some(self.status.state_and_why());
                    }
                    self.status.set_state(State::Waiting, trouble.reason);
                }
            }
            let until = Instant::now() + backoff;
            while Instant::now() < until {
                if self.stop.load(Ordering::SeqCst) {
                    return Ok(None);
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }
}

struct Trouble {
    passing: bool,
    reason: String,
}

impl From<source::Error> for Trouble {
    fn from(e: source::Error) -> Trouble {
        Trouble { passing: e.is_passing(), reason: e.to_string() }
    }
}

/// The driver thread: one epoch at a time, of whatever has come meanwhile.
struct Driving {
    handle: dataflow::Handle,
    quarantine: Quarantine,
    status: Arc<Status>,
    shared: Arc<Shared>,
    engine: config::Engine,
    first: Epoch,
}

impl Driving {
    fn run(mut self, receive: &Receiver<Decoded>) -> Result<(), String> {
        let mut epoch = self.first;
        let mut position = Position::default();
        loop {
            let first = match receive.recv_timeout(Duration::from_millis(100)) {
                Ok(decoded) => decoded,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let mut events = first.changes.len();
            let mut decoded = vec![first];
            while events < self.engine.epoch_max_events {
                let Ok(next) = receive.try_recv() else { break };
                events += next.changes.len();
                decoded.push(next);
            }
            let metrics = self.status.metrics().clone();
            let rejects: Vec<_> = decoded.iter_mut().flat_map(|d| std::mem::take(&mut d.rejects)).collect();
            let added = self.quarantine.add(&rejects).map_err(|e| e.to_string())?;
            metrics.quarantine_total.inc_by(added as u64);
            metrics.quarantine_open.set(self.quarantine.len() as i64);
            if let Some(last) = rejects.last() {
                tracing::warn!(count = rejects.len(), partition = %last.partition, offset = last.offset.0, rule = last.rule.name(), reason = last.reason, "messages were quarantined");
            }
            for batch in &decoded {
                position.advance(&batch.partition, batch.end);
            }
            let commits_ms: Vec<i64> =
                decoded.iter().flat_map(|d| &d.changes).map(|c| c.commit_ms).filter(|ms| *ms > 0).collect();
            self.handle.send(epoch, decoded).map_err(|e| e.to_string())?;
            let output = loop {
                if let Some(output) = self.handle.recv(Duration::from_secs(1)).map_err(|e| e.to_string())? {
                    break output;
                }
            };
            metrics.epochs.inc();
            metrics.view_rows.set(output.view_rows as i64);
            metrics.view_changes.inc_by(output.changes.len() as u64);
            if output.duplicate_keys > 0 {
                tracing::warn!(
                    keys = output.duplicate_keys,
                    "several rows of the view share a key; the smallest stands for them"
                );
            }
            if let Some(failed) = output.failed_rows.iter().find(|f| f.diff > 0) {
                tracing::warn!(
                    reason = failed.reason,
                    rows = output.failed_rows.len(),
                    "the model cannot be computed for some rows; they are not in the view"
                );
            }
            self.fold(epoch, &position, output.changes, commits_ms);
            epoch = Epoch(epoch.0 + 1);
        }
        self.shared.pending().ended = true;
        Ok(())
    }

    fn fold(&self, epoch: Epoch, position: &Position, changes: Vec<ViewChange>, commits_ms: Vec<i64>) {
        let bound = self.engine.pending_max_keys;
        let mut pending = self.shared.pending();
        while pending.changes.len() >= bound && self.status.state() != State::Failed {
            pending = self
                .shared
                .changed
                .wait_timeout(pending, Duration::from_millis(100))
                .expect("no holder of this lock panics")
                .0;
        }
        pending.changes.extend(changes.into_iter().map(|c| (c.key, c.row)));
        pending.epoch = epoch;
        pending.position = position.clone();
        pending.commits_ms.extend(commits_ms);
        self.status.metrics().set_queue(Queue::Pending, pending.changes.len(), bound);
        drop(pending);
        self.shared.changed.notify_all();
    }
}

/// The indexer thread: takes all that is pending, embeds, commits, publishes.
struct Indexing {
    indexer: Indexer,
    status: Arc<Status>,
    stop: Arc<AtomicBool>,
    shared: Arc<Shared>,
    commit_max_keys: usize,
    batch_max_tokens: usize,
    progress: Arc<dyn Fn(BatchStats) + Send + Sync>,
}

impl Indexing {
    fn run(mut self, runtime: &tokio::runtime::Handle, target: &Receiver<Position>) -> Result<(), String> {
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
                    ended: false,
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
        let max_tokens = self.batch_max_tokens;
        let counting = metrics.clone();
        let mut heard = move |batch: BatchStats| {
            counting.count_embed_batch(batch.tokens, batch.padded_tokens - batch.tokens, max_tokens, batch.took);
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

/// Whether the broker answers, and what it keeps of the topics.
pub fn ask_broker(config: &Config) -> Result<String, String> {
    let topics: Vec<Arc<str>> = config.sources.iter().map(|s| s.topic.clone()).collect();
    let mut source = KafkaSource::new(&config.kafka, &topics).map_err(|e| e.to_string())?;
    let marks = source.watermarks().map_err(|e| e.to_string())?;
    let events: i64 = marks.iter().map(|(_, w)| w.high.0 - w.low.0).sum();
    Ok(format!("{} has {events} events in {} partitions", config.kafka.bootstrap_servers, marks.len()))
}

/// Whether the registry answers. An id that nobody registers is as good a question as any.
pub async fn ask_registry(config: &Config) -> Result<String, String> {
    let client = RegistryClient::new(&config.registry).map_err(|e| e.to_string())?;
    client.get(i32::MAX as u32).await.map_err(|e| e.to_string())?;
    Ok(config.registry.url.clone().unwrap_or_default())
}
