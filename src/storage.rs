//! Where files lie: a folder, or an S3-compatible object store.
//!
//! The invariant: a file is put under a name that is taken only if that is asked for, atomically and durably; Delta's log and the index's
//! announcement rest on that.

mod durable;
pub(crate) mod faulty;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use deltalake::ensure_table_uri;
use object_store::aws::{AmazonS3Builder, S3ConditionalPut};
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutPayload, RetryConfig};

// The same type as delta-rs's, of the crate `url`.
use reqwest::Url;

use durable::Durable;

/// How long a request is made again before its failure is told; whoever made it waits and says so. The crate's three minutes are a long silence.
const RETRIED_FOR: Duration = Duration::from_secs(10);

/// A place in a store.
#[derive(Clone, Debug)]
pub struct Storage {
    /// The whole file system, or the bucket.
    pub store: Arc<dyn ObjectStore>,
    pub path: Path,
    pub url: Url,
}

impl Storage {
    pub fn is_folder(&self) -> bool {
        self.url.scheme() == "file"
    }
}

type Stores = BTreeMap<String, Arc<dyn ObjectStore>>;

/// Stores of this process's own, under `memory://name/`.
static STORES: Mutex<Stores> = Mutex::new(Stores::new());

fn stores() -> MutexGuard<'static, Stores> {
    STORES.lock().expect("no holder of this lock panics")
}

/// A store can be found under `memory://name/` while this lives.
pub(crate) struct Named(String);

impl Named {
    pub fn new(name: String, store: Arc<dyn ObjectStore>) -> Named {
        stores().insert(name.clone(), store);
        Named(name)
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        stores().remove(&self.0);
    }
}

/// Whether the storage at `location` does what is asked of it: puts, puts that depend on what is there, deletes.
pub async fn probe(location: &str, options: &BTreeMap<String, String>) -> Result<(), String> {
    let Storage { store, path, url } = open(location, options)?;
    let at = path.join(format!("freshet-probe-{:016x}", rand::random::<u64>()));
    let put = async |text: &'static str, mode: PutMode| {
        store.put_opts(&at, PutPayload::from_static(text.as_bytes()), mode.into()).await
    };
    let tried = async {
        let first = put("first", PutMode::Create).await.map_err(|e| format!("a file cannot be put: {e}"))?;
        match put("again", PutMode::Create).await {
            Err(Error::AlreadyExists { .. }) => {}
            Err(e) => return Err(format!("a put that depends on a name being free fails: {e}")),
            Ok(_) => return Err("a put that depends on a name being free goes over what is there".into()),
        }
        if url.scheme() == "s3" {
            let second = put("second", PutMode::Update(first.clone().into())).await;
            second.map_err(|e| format!("a put that depends on what is there fails: {e}"))?;
            match put("third", PutMode::Update(first.into())).await {
                Err(Error::Precondition { .. }) => {}
                Err(e) => return Err(format!("a put that depends on what is there fails: {e}")),
                Ok(_) => return Err("a put that depends on what is there goes over what is there".into()),
            }
        }
        Ok(())
    };
    let tried = tried.await;
    let removed = store.delete(&at).await;
    tried.and(removed.map_err(|e| format!("a file cannot be removed: {e}")))
}

/// The storage at `location`: a path, which is made if it is not there, or `s3://bucket/path`. For S3, `options` are those of object_store
/// (`endpoint`, `region`, `allow_http`, ...) and go before the environment's `AWS_*`.
pub fn open(location: &str, options: &BTreeMap<String, String>) -> Result<Storage, String> {
    let url = match location.starts_with("s3://") || location.starts_with("memory://") {
        true => Url::parse(&format!("{}/", location.trim_end_matches('/'))).map_err(|e| e.to_string())?,
        false => ensure_table_uri(location).map_err(|e| e.to_string())?,
    };
    let store: Arc<dyn ObjectStore> = match url.scheme() {
        "file" => Arc::new(Durable::new()),
        "memory" => {
            let named = stores().get(url.host_str().unwrap_or_default()).cloned();
            named.ok_or_else(|| format!("no store of this process is named as {url} says"))?
        }
        "s3" => {
            let mut builder = AmazonS3Builder::from_env().with_url(url.as_str());
            for (key, value) in options {
                let name = key.parse().map_err(|_| format!("{key} is no option of S3"))?;
                builder = builder.with_config(name, value);
            }
            let retry = RetryConfig { retry_timeout: RETRIED_FOR, ..RetryConfig::default() };
            let s3 = builder.with_conditional_put(S3ConditionalPut::ETagMatch).with_retry(retry).build();
            Arc::new(s3.map_err(|e| e.to_string())?)
        }
        other => return Err(format!("{other}:// is not known; a folder and s3:// are possible")),
    };
    let path = Path::from_url_path(url.path()).map_err(|e| e.to_string())?;
    Ok(Storage { store, path, url })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_folder_does_what_is_asked_of_it_and_keeps_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("new");
        probe(at.to_str().unwrap(), &BTreeMap::new()).await.unwrap();
        assert_eq!(std::fs::read_dir(&at).unwrap().count(), 0);
        std::fs::write(folder.path().join("file"), "").unwrap();
        let refused = probe(folder.path().join("file").to_str().unwrap(), &BTreeMap::new()).await;
        assert!(refused.is_err(), "a file is no folder");
    }
}
