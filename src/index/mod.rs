//! The index is the LanceDB table that is searched: the view's columns, a vector, and the hashes that tell what changed.
//!
//! The invariant: one writer; a position is announced before the rows of it are committed, and published only when all of them are in. What
//! is searched is a snapshot, and every answer names its position and epoch.

mod indexer;
mod maintenance;
mod reader;
mod search;
mod store;
mod table;
#[cfg(test)]
mod tests;

pub use indexer::{Applied, Indexer, row_hash};
pub use reader::{IndexReader, IndexRow};
pub use search::IndexSearcher;
pub use store::{Columns, IndexStore};
pub use table::{Announced, Fingerprint, IndexTable, Reached, problems, refused_columns, unreachable};

use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the index at {uri}: {reason}")]
    Storage { uri: String, reason: String },
    #[error("{key}: {reason}")]
    Configuration { key: String, reason: String },
    #[error("{path}: {reason}")]
    Announcement { path: PathBuf, reason: String },
    #[error(transparent)]
    Store(#[from] crate::embed::StoreError),
    #[error(transparent)]
    Embed(#[from] crate::embed::Error),
}
