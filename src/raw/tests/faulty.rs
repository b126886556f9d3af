//! A store in memory whose writes fail as they are told to: with and without having done their work.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex};

use deltalake::ensure_table_uri;
use deltalake::logstore::{LogStoreRef, StorageConfig, default_logstore};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error as StoreError, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};

/// What happens to a write.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::raw) enum Fate {
    Works,
    /// Fails, and has done nothing.
    Fails,
    /// Fails, and has done its work.
    Lies,
    /// Fails, and does its work when somebody writes next.
    Lags,
}

/// A store in memory whose writes meet their fates one after the other; then they work.
#[derive(Clone, Default)]
pub(in crate::raw) struct Faulty(Arc<FaultyInner>);

#[derive(Default)]
struct FaultyInner {
    store: InMemory,
    fates: Mutex<VecDeque<Fate>>,
    late: Mutex<Vec<(Path, PutPayload, PutOptions)>>,
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faulty")
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faulty")
    }
}

type Answer<T> = object_store::Result<T>;

/// The trait's methods as `async_trait` writes them, which is no dependency of ours.
impl ObjectStore for Faulty {
    fn put_opts<'a, 'b, 'f>(
        &'a self,
        at: &'b Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> BoxFuture<'f, Answer<PutResult>>
    where
        'a: 'f,
        'b: 'f,
    {
        Box::pin(self.put(at, payload, options))
    }

    fn put_multipart_opts<'a, 'b, 'f>(
        &'a self,
        at: &'b Path,
        options: PutMultipartOptions,
    ) -> BoxFuture<'f, Answer<Box<dyn MultipartUpload>>>
    where
        'a: 'f,
        'b: 'f,
    {
        self.0.store.put_multipart_opts(at, options)
    }

    fn get_opts<'a, 'b, 'f>(&'a self, at: &'b Path, options: GetOptions) -> BoxFuture<'f, Answer<GetResult>>
    where
        'a: 'f,
        'b: 'f,
    {
        self.0.store.get_opts(at, options)
    }

    fn delete_stream(&self, at: BoxStream<'static, Answer<Path>>) -> BoxStream<'static, Answer<Path>> {
        self.0.store.delete_stream(at)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Answer<ObjectMeta>> {
        self.0.store.list(prefix)
    }

    fn list_with_delimiter<'a, 'b, 'f>(&'a self, prefix: Option<&'b Path>) -> BoxFuture<'f, Answer<ListResult>>
    where
        'a: 'f,
        'b: 'f,
    {
        self.0.store.list_with_delimiter(prefix)
    }

    fn copy_opts<'a, 'b, 'c, 'f>(
        &'a self,
        from: &'b Path,
        to: &'c Path,
        options: CopyOptions,
    ) -> BoxFuture<'f, Answer<()>>
    where
        'a: 'f,
        'b: 'f,
        'c: 'f,
    {
        self.0.store.copy_opts(from, to, options)
    }
}

impl Faulty {
    async fn put(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Answer<PutResult> {
        let late = std::mem::take(&mut *self.0.late.lock().unwrap());
        for (at, payload, options) in late {
            drop(self.0.store.put_opts(&at, payload, options).await);
        }
        let fate = self.0.fates.lock().unwrap().pop_front().unwrap_or(Fate::Works);
        match fate {
            Fate::Works => return self.0.store.put_opts(at, payload, options).await,
            Fate::Fails => {}
            Fate::Lies => drop(self.0.store.put_opts(at, payload, options).await),
            Fate::Lags => self.0.late.lock().unwrap().push((at.clone(), payload, options)),
        }
        Err(StoreError::Generic { store: "faulty", source: format!("{fate:?}").into() })
    }

    pub(in crate::raw) fn log_store(&self) -> LogStoreRef {
        let url = ensure_table_uri("memory:///").unwrap();
        let store: Arc<dyn ObjectStore> = Arc::new(self.clone());
        default_logstore(store.clone(), store, &url, &StorageConfig::default())
    }

    pub(in crate::raw) fn will(&self, fates: &[Fate]) {
        *self.0.fates.lock().unwrap() = fates.iter().copied().collect();
    }
}
