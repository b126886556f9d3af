//! The index is the LanceDB table that is searched: the view's columns, a vector, and the hashes that tell what changed.
//!
//! The invariant: one writer; a position is announced before the rows of it are committed, and published only when all of them are in. What
//! is searched is a snapshot, and every answer names its position and epoch.

mod announced;
mod beside;
mod database;
mod design;
mod indexer;
mod json;
mod maintenance;
mod place;
mod reader;
mod search;
mod table;
#[cfg(test)]
mod tests;
mod writer;

pub use announced::{Announced, Reached};
pub use database::{Database, Table};
pub use design::{Design, MadeOf, missing_columns, problems, refused_columns};
pub use indexer::Indexer;
pub use place::{Found, Kept, Place};
pub use reader::{IndexReader, IndexRow};
pub use search::IndexSearcher;
pub use table::{Fingerprint, IndexTable};
pub use writer::{Applied, row_hash};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the index at {uri}: {reason}")]
    Storage { uri: String, reason: String },
    #[error("{key}: {reason}")]
    Configuration { key: String, reason: String },
    #[error(
        "the index {name} at {uri} is in use by another process; an index has one writer: stop the other one, or give this dataflow another name or index.uri"
    )]
    InUse { uri: String, name: String },
    #[error(
        "another service has taken the index {name} at {uri}; an index has one writer: this one ends, stop the other one if it is not meant"
    )]
    Taken { uri: String, name: String },
    #[error(
        "the index {name} at {uri} is another dataflow's: {reason}; give this dataflow another name or index.uri, or put it into the other one's place with freshet rebuild"
    )]
    Foreign { uri: String, name: String, reason: String },
    #[error(
        "somebody else has written version {version} of the table {table} at {uri}; an index has one writer: keep the other one out and start again"
    )]
    OtherWriter { uri: String, table: String, version: u64 },
    #[error(transparent)]
    Store(#[from] crate::embed::StoreError),
    #[error(transparent)]
    Embed(#[from] crate::embed::Error),
}

impl Error {
    /// Whether it may help to look at the index again and to try again: storage that is away, or full.
    pub fn is_passing(&self) -> bool {
        matches!(self, Error::Storage { .. } | Error::Store(crate::embed::StoreError::Io { .. }))
    }
}
