//! What keeps an index, as the indexer sees it: [`super::IndexTable`], or a stand-in whose commits cost nothing.
//!
//! The invariant: what a call has answered for outlives a crash; one that a crash came into has happened or has not, except a commit, of whose parts
//! (its rows, then its deletes) some may have.

use std::collections::HashMap;
use std::fmt::Display;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::SchemaRef;
use futures::FutureExt;
use futures::future::BoxFuture;

use super::indexer::literal;
use super::table::table_schema;
use super::{Announced, Error, Fingerprint, IndexTable};
use crate::config;
use crate::time::{Epoch, Position};

pub trait IndexStore: Send + Sync {
    /// Where it is, for messages.
    fn location(&self) -> &str;

    fn columns(&self) -> Columns;

    /// How far the last run may have come, and had come.
    fn announced(&self) -> Option<&Announced>;

    /// What every key has, for reconciling; the keys are in row format.
    fn fingerprints(&self) -> BoxFuture<'_, Result<HashMap<Box<[u8]>, Fingerprint>, Error>>;

    /// Says how far the next commits may bring the index.
    fn announce<'a>(&'a mut self, epoch: Epoch, position: &'a Position) -> BoxFuture<'a, Result<(), Error>>;

    /// Writes rows (of [`Columns::stored`], one a key), and removes keys.
    fn commit(&mut self, upserts: Option<RecordBatch>, deletes: Option<ArrayRef>) -> BoxFuture<'_, Result<(), Error>>;

    /// Shows the index as it is now to searches. `reached` is how far all of it is, and outlives a crash before anybody is shown; without it the
    /// position stays what was published before.
    fn publish<'a>(&'a mut self, reached: Option<(Epoch, &'a Position)>) -> BoxFuture<'a, Result<(), Error>>;

    /// Does what makes searches quick and the index small, as far as it is due. Says whether it did something.
    fn maintain(&mut self, idle: bool) -> BoxFuture<'_, Result<bool, Error>>;
}

/// The columns of an index.
#[derive(Clone)]
pub struct Columns {
    pub view: SchemaRef,
    /// Those of the view, and after them the vector and the hashes of row and text.
    pub stored: SchemaRef,
    pub key: usize,
    pub text: usize,
}

impl Columns {
    /// Those of an index over the view `view`.
    pub fn new(config: &config::Index, view: SchemaRef, dimension: usize) -> Result<Columns, Error> {
        let column = |name: &str| view.index_of(name).map_err(|e| failed(&config.uri, e));
        let (key, text, stored) = (column(&config.key)?, column(&config.text)?, table_schema(&view, dimension));
        Ok(Columns { view, stored, key, text })
    }
}

impl IndexStore for IndexTable {
    fn location(&self) -> &str {
        &self.config.uri
    }

    fn columns(&self) -> Columns {
        let (view, stored) = (self.view_schema.clone(), self.schema.clone());
        Columns { view, stored, key: self.key_column, text: self.text_column }
    }

    fn announced(&self) -> Option<&Announced> {
        self.announced()
    }

    fn fingerprints(&self) -> BoxFuture<'_, Result<HashMap<Box<[u8]>, Fingerprint>, Error>> {
        self.fingerprints().boxed()
    }

    fn announce<'a>(&'a mut self, epoch: Epoch, position: &'a Position) -> BoxFuture<'a, Result<(), Error>> {
        std::future::ready(self.announce(epoch, position)).boxed()
    }

    fn commit(&mut self, upserts: Option<RecordBatch>, deletes: Option<ArrayRef>) -> BoxFuture<'_, Result<(), Error>> {
        let literals = |keys: &ArrayRef| (0..keys.len()).map(|n| literal(keys, n)).collect::<Vec<_>>();
        let deletes = deletes.as_ref().map(literals).unwrap_or_default();
        async move { self.commit(upserts, &deletes).await }.boxed()
    }

    fn publish<'a>(&'a mut self, reached: Option<(Epoch, &'a Position)>) -> BoxFuture<'a, Result<(), Error>> {
        self.publish(reached).boxed()
    }

    fn maintain(&mut self, idle: bool) -> BoxFuture<'_, Result<bool, Error>> {
        self.maintain(idle).boxed()
    }
}

pub(super) fn failed(location: &str, reason: impl Display) -> Error {
    Error::Storage { uri: location.into(), reason: reason.to_string() }
}
