//! Where files lie: a folder, or an S3-compatible object store.
//!
//! The invariant: a file is put under a name that is taken only if that is asked for, atomically and durably; Delta's log and the index's
//! announcement rest on that.

mod durable;

use std::collections::BTreeMap;
use std::sync::Arc;

use deltalake::ensure_table_uri;
use object_store::ObjectStore;
use object_store::aws::{AmazonS3Builder, S3ConditionalPut};
use object_store::path::Path;

// The same type as delta-rs's, of the crate `url`.
use reqwest::Url;

use durable::Durable;

/// A place in a store.
#[derive(Clone, Debug)]
pub struct Storage {
    /// The whole file system, or the bucket.
    pub store: Arc<dyn ObjectStore>,
    pub path: Path,
    pub url: Url,
}

/// The storage at `location`: a path, which is made if it is not there, or `s3://bucket/path`. For S3, `options` are those of object_store
/// (`endpoint`, `region`, `allow_http`, ...) and go before the environment's `AWS_*`.
pub fn open(location: &str, options: &BTreeMap<String, String>) -> Result<Storage, String> {
    let url = match location.starts_with("s3://") {
        true => Url::parse(&format!("{}/", location.trim_end_matches('/'))).map_err(|e| e.to_string())?,
        false => ensure_table_uri(location).map_err(|e| e.to_string())?,
    };
    let store: Arc<dyn ObjectStore> = match url.scheme() {
        "file" => Arc::new(Durable::new()),
        "s3" => {
            let mut builder = AmazonS3Builder::from_env().with_url(url.as_str());
            for (key, value) in options {
                let name = key.parse().map_err(|_| format!("{key} is no option of S3"))?;
                builder = builder.with_config(name, value);
            }
            let s3 = builder.with_conditional_put(S3ConditionalPut::ETagMatch).build();
            Arc::new(s3.map_err(|e| e.to_string())?)
        }
        other => return Err(format!("{other}:// is not known; a folder and s3:// are possible")),
    };
    let path = Path::from_url_path(url.path()).map_err(|e| e.to_string())?;
    Ok(Storage { store, path, url })
}
