//! Serving answers searches over HTTP from what the index holds, and says how the service is.
//!
//! The invariant: every answer names the epoch and the position that it reflects, every failure is `{"error": {"code", "message"}}`, and
//! nothing a client does takes more than its bound of bytes, neighbours, time and places among the running searches. Serving never writes,
//! and never waits for the stages before it: they may be hydrating, waiting or gone.
//!
//! The seams: [`Searcher`] is the index, [`EmbedQuery`] the model. The engine opens them with [`ServeState::open`] once they exist; until then
//! searches are answered 503.

mod answer;
mod api;
mod failure;
mod freshness;
pub mod metrics;
mod queries;
mod request;
pub mod server;
pub mod status;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Arc, OnceLock};

use futures::future::BoxFuture;
use tokio::sync::Semaphore;

pub use answer::{Hit, Hits, Item, Json};
pub use api::routes;
pub use metrics::Metrics;
pub use server::Server;
pub use status::{State, Status, Wait};

use crate::config;
use queries::QueryVectors;

/// Query vectors that are kept; with 384 dimensions about 1.5 KiB each.
const QUERY_VECTORS: usize = 1024;

/// What can be searched; the index behind an adapter. A future that is dropped gives its work up.
pub trait Searcher: Send + Sync {
    /// What requests are checked against before they get here.
    fn shape(&self) -> &Shape;

    /// The `k` rows nearest to a vector by cosine, best first.
    fn search(&self, search: Search) -> BoxFuture<'_, Result<Hits, SearchError>>;

    /// The row with this key; the text is what stands in the URL, decoded.
    fn item<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Item, SearchError>>;

    /// The `k` rows nearest to the row with this key, without itself.
    fn similar<'a>(&'a self, key: &'a str, k: usize) -> BoxFuture<'a, Result<Hits, SearchError>>;
}

/// The model that embeds what people search for. The same text gives the same vector for as long as the process lives.
pub trait EmbedQuery: Send + Sync {
    /// Computes, on a thread that may block.
    fn embed_query(&self, text: &str) -> Result<Vec<f32>, SearchError>;
}

/// What the index holds.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Numbers of a vector.
    pub dimension: usize,
    /// The view's columns.
    pub columns: Vec<String>,
}

/// A search whose parts were checked: the vector has the index's dimension, `k` is in bounds, the columns exist.
#[derive(Clone, Debug)]
pub struct Search {
    pub vector: Arc<[f32]>,
    pub k: usize,
    /// A SQL expression over the view's columns; not checked yet.
    pub filter: Option<String>,
    /// The columns of a hit's row; `None` is all.
    pub columns: Option<Vec<String>>,
}

/// Why there is no answer. The first four are the client's and their text reaches it; the others are ours and are logged.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SearchError {
    #[error("{0}")]
    BadFilter(String),
    #[error("the view has no column {0:?}")]
    UnknownColumn(String),
    /// The key's text cannot be a value of the key's type.
    #[error("{0}")]
    BadKey(String),
    #[error("the index has no row with the key {0:?}")]
    NoSuchKey(String),
    /// Passing: the storage is away, the model is busy.
    #[error("{0}")]
    Unavailable(String),
    #[error("{0}")]
    Internal(String),
}

/// What every request shares.
pub struct ServeState {
    config: config::Serve,
    status: Arc<Status>,
    opened: OnceLock<Opened>,
    /// One permit for each request that may read the index at one time.
    places: Arc<Semaphore>,
    queries: QueryVectors,
}

#[derive(Clone)]
struct Opened {
    searcher: Arc<dyn Searcher>,
    embedder: Arc<dyn EmbedQuery>,
}

impl ServeState {
    pub fn new(config: config::Serve, status: Arc<Status>) -> ServeState {
        let places = Arc::new(Semaphore::new(config.concurrency_max.min(Semaphore::MAX_PERMITS)));
        ServeState { config, status, opened: OnceLock::new(), places, queries: QueryVectors::new(QUERY_VECTORS) }
    }

    /// From now on searches are answered. Called once; the index of a process is never another one.
    pub fn open(&self, searcher: Arc<dyn Searcher>, embedder: Arc<dyn EmbedQuery>) {
        let first = self.opened.set(Opened { searcher, embedder }).is_ok();
        assert!(first, "the index is opened for serving once");
    }

    pub fn config(&self) -> &config::Serve {
        &self.config
    }

    pub fn status(&self) -> &Arc<Status> {
        &self.status
    }

    fn metrics(&self) -> &Metrics {
        self.status.metrics()
    }
}

impl fmt::Debug for ServeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServeState").field("config", &self.config).field("open", &self.opened.get().is_some()).finish()
    }
}
