//! The announcement: which table is the index, what it was made of, and how far it may be. A file beside the tables, `<name>.announced.json`.
//!
//! The invariant: it is whole, durable, and there before the commits that it speaks of; a table that no announcement names is nobody's.

use std::sync::Arc;

use object_store::{ObjectStore, ObjectStoreExt, PutMode};

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
    at: object_store::path::Path,
    /// For messages.
    shown: String,
}

impl Announcement {
    pub fn of(storage: &Storage, uri: &str, name: &str) -> Announcement {
        let file = format!("{name}.announced.json");
        let shown = format!("{}/{file}", uri.trim_end_matches('/'));
        Announcement { store: storage.store.clone(), at: storage.path.clone().join(file), shown }
    }

    /// What is announced, if anything is. What cannot be understood comes as the reason why.
    pub async fn read(&self) -> Result<Option<Result<Announced, String>>, Error> {
        let bytes = match self.store.get(&self.at).await {
            Ok(found) => found.bytes().await,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(e) => Err(e),
        };
        let bytes = bytes.map_err(|e| self.failed(&e))?;
        Ok(Some(serde_json::from_slice(&bytes).map_err(|e| format!("{} cannot be understood: {e}", self.shown))))
    }

    pub async fn write(&self, announced: &Announced) -> Result<(), Error> {
        let text = serde_json::to_vec(announced).expect("an announcement is plain data");
        let put = self.store.put_opts(&self.at, text.into(), PutMode::Overwrite.into()).await;
        put.map(drop).map_err(|e| self.failed(&e))
    }

    fn failed(&self, e: &object_store::Error) -> Error {
        Error::Storage { uri: self.shown.clone(), reason: e.to_string() }
    }
}
