//! The engine composes the stages: start, hydrate, reconcile, run, drain. It alone knows them all.
//!
//! Three threads besides the dataflow's: `source` reads and decodes, `driver` cuts epochs and folds what comes out of them, `indexer` embeds
//! and commits. Between them lie bounded queues, so that whatever is slow makes the source pause.

mod driving;
mod indexing;
mod looking;
mod preflight;
mod pulse;
mod raw;
mod reading;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;

use crate::config::Config;
use crate::dataflow::{self, Plan, Row, ViewChange};
use crate::decode::{RegistryClient, RowType, SchemaStore};
use crate::embed::{BatchStats, Embedder, EmbeddingStore, TextEmbedder};
use crate::index::{Database, Design, IndexSearcher, Indexer, Place};
use crate::serve::{EmbedQuery, Metrics, SearchError, ServeState, Server, State, Status};
use crate::source::Source;
use crate::source::kafka::KafkaSource;
use crate::thread::{self, Condvar, JoinHandle};
use crate::time::{Epoch, Position};
use driving::Driving;
use indexing::Indexing;
pub use preflight::{Checked, ask_broker, ask_registry, check, plan};
use reading::Reading;

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
    Server(#[from] crate::serve::server::Error),
    #[error("{0}")]
    Plan(String),
}

/// Hears of every batch that is embedded for the index.
pub type Progress = Arc<dyn Fn(BatchStats) + Send + Sync>;

/// A running service: an engine, and what serves the index that it keeps.
pub struct Service {
    address: SocketAddr,
    engine: Engine,
    server: Server,
}

/// What runs between the topics and the index.
pub(crate) struct Engine {
    status: Arc<Status>,
    stop: Arc<AtomicBool>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// Whom an engine asks: the world, or what stands for it in a simulation.
pub(crate) struct Peers {
    /// Called once, by the thread that reads.
    pub source: Box<dyn Fn() -> Result<Box<dyn Source>, String> + Send>,
    pub schemas: Arc<dyn SchemaStore>,
    pub embedder: Arc<dyn TextEmbedder>,
    /// Where the index's tables lie, if not where its `uri` says.
    pub database: Option<Arc<dyn Database>>,
}

/// Gets the index when it can be searched.
pub(crate) type Opening = Box<dyn FnOnce(IndexSearcher) + Send>;

/// What the driver has folded and the indexer has not taken yet.
struct Shared {
    pending: Mutex<Pending>,
    changed: Condvar,
    /// How far the source has read.
    read: Mutex<Position>,
    /// Decoded batches that the driver has not taken yet, the one that waits for room included.
    decoded: Mutex<isize>,
    decoded_max_batches: usize,
}

#[derive(Default)]
struct Pending {
    changes: HashMap<Box<[u8]>, Option<Row>>,
    position: Position,
    epoch: Epoch,
    /// Whether the index follows the view already. Until then all of the view waits here, which is what reconciling compares with, so the
    /// bound on waiting keys cannot count yet.
    follows: bool,
    /// Whether the indexer asks for all of the view, and all of it as it was after some epoch that `changes` reach back to.
    wants_whole: bool,
    whole: Option<Vec<ViewChange>>,
    /// Commit times of live events that `changes` (or an unchanged index) stand for.
    commits_ms: Vec<i64>,
    /// The driver has folded its last epoch.
    ended: bool,
    /// The indexer has taken what it ever will.
    closed: bool,
}

impl Shared {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().expect("no holder of this lock panics")
    }

    /// Waits for a change, at most so long; says also whether the time was up.
    fn wait<'s>(&'s self, pending: MutexGuard<'s, Pending>, time: Duration) -> (MutexGuard<'s, Pending>, bool) {
        self.changed.wait_timeout(&self.pending, pending, time)
    }

    fn count_decoded(&self, batches: isize, metrics: &Metrics) {
        let mut decoded = self.decoded.lock().expect("no holder of this lock panics");
        *decoded += batches;
        metrics.decoded.set((*decoded).max(0) as usize, self.decoded_max_batches);
    }
}

impl Service {
    /// Starts everything.
    pub fn start(config: Config, progress: Progress) -> BoxFuture<'static, Result<Service, Error>> {
        let embedder = Self::load(&config);
        Self::start_with(config, embedder, progress)
    }

    fn load(config: &Config) -> BoxFuture<'static, Result<Arc<dyn TextEmbedder>, Error>> {
        let embed = config.embed.clone();
        let load = async move {
            let loaded = tokio::task::spawn_blocking(move || Embedder::load(&embed)).await;
            Ok(Arc::new(loaded.map_err(|e| Error::Peer(e.to_string()))??) as Arc<dyn TextEmbedder>)
        };
        load.boxed()
    }

    /// The same with an embedder of the caller's; the API listens while it is made.
    pub fn start_with(
        config: Config,
        embedder: BoxFuture<'static, Result<Arc<dyn TextEmbedder>, Error>>,
        progress: Progress,
    ) -> BoxFuture<'static, Result<Service, Error>> {
        Self::begin(config, embedder, false, progress).boxed()
    }

    /// The same, with an index that is built anew, whatever lies there; one that can be used is searched and kept in step until then.
    pub fn start_anew(config: Config, progress: Progress) -> BoxFuture<'static, Result<Service, Error>> {
        let embedder = Self::load(&config);
        Self::begin(config, embedder, true, progress).boxed()
    }

    async fn begin(
        config: Config,
        embedder: BoxFuture<'static, Result<Arc<dyn TextEmbedder>, Error>>,
        anew: bool,
        progress: Progress,
    ) -> Result<Service, Error> {
        let status = Arc::new(Status::new(Arc::new(Metrics::new())));
        let state = Arc::new(ServeState::new(config.serve.clone(), status.clone()));
        let server = Server::start(state.clone()).await?;
        let (plan, row_types) = plan(&config).map_err(|p| {
            Error::Plan(p.iter().map(|p| format!("{}: {}", p.key, p.reason)).collect::<Vec<_>>().join("; "))
        })?;
        let embedder = embedder.await?;
        let opened = QueryEmbedder(embedder.clone());
        let opening = Box::new(move |searcher| state.open(Arc::new(searcher), Arc::new(opened)));
        let peers = Peers::of(&config, embedder)?;
        let engine = Engine::start(config, (plan, row_types), peers, anew, status, opening, progress).await?;
        Ok(Service { address: server.address(), engine, server })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn status(&self) -> &Arc<Status> {
        &self.engine.status
    }

    /// How far the source has read; what paces a writer that must not run away.
    pub fn read_position(&self) -> impl Fn() -> Position + Send + Sync + 'static {
        let shared = self.engine.shared.clone();
        move || shared.read.lock().expect("no holder of this lock panics").clone()
    }

    /// Whether the engine has given up; the status says why.
    pub fn has_failed(&self) -> bool {
        self.engine.status.state() == State::Failed
    }

    /// Reads nothing more, brings what was read into the index, answers what was asked, and ends.
    pub fn stop(self) -> BoxFuture<'static, ()> {
        let end = async move {
            let engine = self.engine;
            engine.tell_to_stop();
            if tokio::task::spawn_blocking(move || engine.join()).await.is_err() {
                tracing::warn!("a stage did not end in order");
            }
            self.server.stop(STOP_GRACE).await;
        };
        end.boxed()
    }
}

impl Peers {
    fn of(config: &Config, embedder: Arc<dyn TextEmbedder>) -> Result<Peers, Error> {
        let schemas = RegistryClient::new(&config.registry).map_err(|e| Error::Peer(e.to_string()))?;
        let kafka = config.kafka.clone();
        let topics: Vec<Arc<str>> = config.sources.iter().map(|s| s.topic.clone()).collect();
        let source = move || match KafkaSource::new(&kafka, &topics) {
            Ok(source) => Ok(Box::new(source) as Box<dyn Source>),
            Err(e) => Err(e.to_string()),
        };
        Ok(Peers { source: Box::new(source), schemas: Arc::new(schemas), embedder, database: None })
    }
}

impl Engine {
    pub async fn start(
        config: Config,
        (plan, row_types): (Plan, Vec<Arc<RowType>>),
        peers: Peers,
        anew: bool,
        status: Arc<Status>,
        opening: Opening,
        progress: Progress,
    ) -> Result<Engine, Error> {
        let embedder = peers.embedder.clone();
        let topics = config.sources.iter().map(|s| s.topic.clone()).collect();
        let view = plan.view_schema().clone();
        let design = Design::new(&config.index, &config.name, topics, view, &*embedder)?;
        // The index's lock comes first: what this process may not write it does not touch.
        let found = Place::open_in(peers.database.clone(), design, anew).await?;
        let store = EmbeddingStore::open(&config.embed.store, embedder.model_id(), embedder.dimension())?;
        let vectors = store.len();
        let indexer = Indexer::new(found, store, embedder).await?;
        if indexer.is_empty() && vectors > 0 {
            let index = &config.index.uri;
            tracing::warn!(
                index,
                vectors,
                "the index is empty, and the embedding store is not: an index that was here is gone; it is filled anew, and embeds no text that has a vector"
            );
        }
        status.metrics().index_rows.set(indexer.len() as i64);
        let (announced_epoch, announced) = indexer.announced();
        let reached = indexer.reached();
        status.set_committed(reached.epoch, &reached.position);
        let mut opening = Some(opening);
        indexing::open(&mut opening, &indexer)?;
        if let Some(table) = indexer.table_name() {
            status.set_table(table);
        }
        if indexer.is_building() {
            status.set_building(None);
        }
        if opening.is_none() && !indexer.is_empty() {
            status.set_ready();
        }
        let tests: Vec<_> = plan.tests().iter().map(|t| (t.clone(), 0)).collect();
        status.set_tests(tests.clone());
        let handle = dataflow::Engine::start(plan, row_types.clone(), config.engine.workers).map_err(Error::Peer)?;
        let stop = Arc::new(AtomicBool::new(false));
        let shared = Arc::new(Shared {
            pending: Mutex::default(),
            changed: Condvar::default(),
            read: Mutex::default(),
            decoded: Mutex::default(),
            decoded_max_batches: config.engine.decoded_max_batches,
        });
        let (send, receive) = sync_channel(config.engine.decoded_max_batches);
        let (begins, begun) = sync_channel(1);
        let runtime = tokio::runtime::Handle::current();
        let spawn = |name: &str, work: Box<dyn FnOnce() -> Result<(), String> + Send>| {
            let (status, stop, shared) = (status.clone(), stop.clone(), shared.clone());
            thread::spawn(name, move || {
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
            announced,
            peers,
        };
        let reading_runtime = runtime.clone();
        threads.push(spawn("source", Box::new(move || reading.run(&reading_runtime, &send, &begins))).map_err(failed)?);
        let driving = Driving {
            handle,
            status: status.clone(),
            shared: shared.clone(),
            engine: config.engine.clone(),
            first: Epoch(announced_epoch.0 + 1),
            tests,
        };
        threads.push(spawn("driver", Box::new(move || driving.run(&receive))).map_err(failed)?);
        let indexing = Indexing {
            indexer,
            opening,
            status: status.clone(),
            stop: stop.clone(),
            shared: shared.clone(),
            commit_max_keys: config.index.commit_max_keys,
            pending_max_keys: config.engine.pending_max_keys,
            progress,
        };
        threads.push(spawn("indexer", Box::new(move || indexing.run(&runtime, &begun))).map_err(failed)?);
        Ok(Engine { status, stop, shared, threads })
    }

    /// Reads nothing more.
    pub fn tell_to_stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        self.shared.changed.notify_all();
    }

    /// Waits until what was read is in the index, and all has ended.
    pub fn join(self) {
        // A panic in one was logged when it happened.
        self.threads.into_iter().for_each(|thread| drop(thread.join()));
    }
}

struct QueryEmbedder(Arc<dyn TextEmbedder>);

impl EmbedQuery for QueryEmbedder {
    fn embed_query(&self, text: &str) -> Result<Vec<f32>, SearchError> {
        self.0.embed_query(text).map_err(|e| SearchError::Internal(e.to_string()))
    }
}

/// Ends with SIGTERM or Ctrl-C, also one that came after this was called and before it was waited for.
///
/// Fails when the signals cannot be listened to.
pub fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
