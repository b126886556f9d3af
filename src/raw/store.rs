//! A table's log store: delta-rs on the storage that the table lies in.

use std::collections::BTreeMap;
use std::sync::Arc;

use deltalake::logstore::{LogStoreRef, StorageConfig, default_logstore};
use object_store::prefix::PrefixStore;

use super::Error;
use crate::storage::{self, Storage};

/// The log store of the table at `location`; see [`storage::open`].
pub(super) fn log_store(location: &str, options: &BTreeMap<String, String>) -> Result<LogStoreRef, Error> {
    let Storage { store, path, url } = storage::open(location, options).map_err(|e| Error::lasting(location, e))?;
    let table = Arc::new(PrefixStore::new(store.clone(), path));
    Ok(default_logstore(table, store, &url, &StorageConfig::default()))
}
