//! The announcement: which table is the index, what it was made of, and how far it may be. A file beside the tables, `<name>.announced.json`.
//!
//! The invariant: it is whole, durable, and there before the commits that it speaks of; a table that no announcement names is nobody's. On an object
//! store, where nothing can be locked, each put depends on the one before: who announces last has the index, and whoever had it before finds out with
//! its next put.

use std::sync::Arc;

use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, UpdateVersion};

use super::{Error, MadeOf};
use crate::storage::Storage;
use crate::time::{Epoch, Position};

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Announced {
    /// The table that is the index.
    pub table: String,
    #[serde(flatten)]
    pub made_of: MadeOf,
    /// The table's version when this was written: a table that is of an older one has lost commits.
    pub version: u64,
    /// How far the table may be: a restart catches up to there before it changes anything.
    pub epoch: Epoch,
    pub position: Position,
    /// The process that has announced this.
    pub writer: u64,
    /// How far all of it is, written before that is shown to anybody: a restart shows no less.
    pub reached: Reached,
}

/// All changes up to here are in the index.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Reached {
    pub epoch: Epoch,
    pub position: Position,
}

/// Where the announcement of an index lies.
pub(super) struct Announcement {
    store: Arc<dyn ObjectStore>,
    at: Path,
    uri: String,
    name: String,
    /// Whether other processes can only be kept out by what they find here.
    is_shared: bool,
    /// What was read or put last.
    seen: Option<UpdateVersion>,
}

impl Announcement {
    pub fn of(storage: &Storage, uri: &str, name: &str) -> Announcement {
        let at = storage.path.clone().join(format!("{name}.announced.json"));
        let (store, is_shared) = (storage.store.clone(), !storage.is_folder());
        Announcement { store, at, uri: uri.into(), name: name.into(), is_shared, seen: None }
    }

    /// What is announced, if anything is. What cannot be understood comes as the reason why.
    pub async fn read(&mut self) -> Result<Option<Result<Announced, String>>, Error> {
        let Some(bytes) = self.bytes().await? else { return Ok(None) };
        let read = serde_json::from_slice(&bytes);
        Ok(Some(read.map_err(|e| format!("{}.announced.json cannot be understood: {e}", self.name))))
    }

    async fn bytes(&mut self) -> Result<Option<bytes::Bytes>, Error> {
        let found = match self.store.get(&self.at).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(e) => return Err(self.failed(&e)),
        };
        let seen = UpdateVersion { e_tag: found.meta.e_tag.clone(), version: found.meta.version.clone() };
        let bytes = found.bytes().await.map_err(|e| self.failed(&e))?;
        self.seen = Some(seen);
        Ok(Some(bytes))
    }

    pub async fn write(&mut self, announced: &Announced) -> Result<(), Error> {
        let text = serde_json::to_vec(announced).expect("an announcement is plain data");
        loop {
            let mode = match &self.seen {
                _ if !self.is_shared => PutMode::Overwrite,
                None => PutMode::Create,
                Some(seen) => PutMode::Update(seen.clone()),
            };
            match self.store.put_opts(&self.at, text.clone().into(), mode.into()).await {
                Ok(put) => {
                    self.seen = Some(put.into());
                    return Ok(());
                }
                // A put that has failed, or whose answer was lost, may have been done all the same.
                Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                    if self.ours(announced.writer).await? == *announced {
                        return Ok(());
                    }
                }
                Err(e) => return Err(self.failed(&e)),
            }
        }
    }

    /// Looks whether this writer is still the one that has announced last.
    pub async fn check(&mut self, writer: u64) -> Result<(), Error> {
        if !self.is_shared {
            return Ok(());
        }
        let found = match self.store.head(&self.at).await {
            // Nothing is announced before the first index is whole.
            Err(object_store::Error::NotFound { .. }) if self.seen.is_none() => return Ok(()),
            found => found.map_err(|e| self.failed(&e))?,
        };
        if self.seen.as_ref().is_none_or(|seen| seen.e_tag != found.e_tag) {
            self.ours(writer).await?;
        }
        Ok(())
    }

    /// What is announced, which another writer than this one must not have done.
    async fn ours(&mut self, writer: u64) -> Result<Announced, Error> {
        match self.read().await? {
            Some(Ok(found)) if found.writer == writer => Ok(found),
            _ => Err(Error::Taken { uri: self.uri.clone(), name: self.name.clone() }),
        }
    }

    fn failed(&self, e: &object_store::Error) -> Error {
        Error::Storage { uri: self.uri.clone(), reason: e.to_string() }
    }
}
