//! Where tables lie: in folders or S3-compatible object stores, or all in one object store that is given.
//!
//! The invariant: a file is put under a name that is taken only if that is asked for, atomically and durably; the log rests on that.

use std::collections::BTreeMap;
use std::sync::Arc;

use deltalake::logstore::{LogStoreRef, StorageConfig, default_logstore};
use deltalake::{Path, ensure_table_uri};
use object_store::ObjectStore;
use object_store::aws::{AmazonS3, AmazonS3Builder, S3ConditionalPut};
use object_store::prefix::PrefixStore;

// The same type as delta-rs's, of the crate `url`.
use reqwest::Url;

use super::Error;
use super::durable::Durable;

/// What tables are kept in; by default folders, and S3 as the environment has it.
#[derive(Clone)]
pub struct Storage(Kept);

#[derive(Clone)]
enum Kept {
    /// Wherever its location says; with the options of the object store.
    Outside(BTreeMap<String, String>),
    Within(Arc<dyn ObjectStore>),
}

impl Default for Storage {
    fn default() -> Storage {
        Storage::new(&BTreeMap::new())
    }
}

impl Storage {
    /// A location is a path, which is made if it is not there, or `s3://bucket/path`. For S3, `options` are those of object_store (`endpoint`,
    /// `region`, `allow_http`, ...) and go before the environment's `AWS_*`.
    pub fn new(options: &BTreeMap<String, String>) -> Storage {
        Storage(Kept::Outside(options.clone()))
    }

    /// All tables are in `store`, each under its location, which is a URL's: `memory:///path`.
    pub fn within(store: Arc<dyn ObjectStore>) -> Storage {
        Storage(Kept::Within(store))
    }

    /// The log store of the table at `location`.
    pub(super) fn log_store(&self, location: &str) -> Result<LogStoreRef, Error> {
        let wrong = |reason: String| Error::lasting(location, reason);
        let url = match location.contains("://") {
            true => Url::parse(&format!("{}/", location.trim_end_matches('/'))).map_err(|e| wrong(e.to_string()))?,
            false => ensure_table_uri(location).map_err(|e| wrong(e.to_string()))?,
        };
        let root: Arc<dyn ObjectStore> = match &self.0 {
            Kept::Within(store) => store.clone(),
            Kept::Outside(options) => match url.scheme() {
                "file" => Arc::new(Durable::new()),
                "s3" => Arc::new(s3(location, &url, options)?),
                other => return Err(wrong(format!("{other}:// is not known; a folder and s3:// are possible"))),
            },
        };
        let path = Path::from_url_path(url.path()).map_err(|e| wrong(e.to_string()))?;
        let table = Arc::new(PrefixStore::new(root.clone(), path));
        Ok(default_logstore(table, root, &url, &StorageConfig::default()))
    }
}

fn s3(location: &str, url: &Url, options: &BTreeMap<String, String>) -> Result<AmazonS3, Error> {
    let mut builder = AmazonS3Builder::from_env().with_url(url.as_str());
    for (key, value) in options {
        let name = key.parse().map_err(|_| Error::lasting(location, format!("{key} is no option of S3")))?;
        builder = builder.with_config(name, value);
    }
    let s3 = builder.with_conditional_put(S3ConditionalPut::ETagMatch).build();
    s3.map_err(|e| Error::store(location, e))
}
