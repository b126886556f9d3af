//! A store in memory whose writes fail as they are told to, with and without having done their work, and whose reads fail.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error as StoreError, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult,
};

use crate::thread;

/// How long a put takes in a simulation, before and after its work is done, at most.
const LATENCY_MAX: Duration = Duration::from_millis(10);

/// What happens to a write; a read works or fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Works,
    /// Fails, and has done nothing.
    Fails,
    /// Fails, and has done its work.
    Lies,
    /// Fails, and does its work when somebody writes next. Removing fails half done.
    Lags,
}

/// What asks for its fate.
#[derive(Clone, Copy, Debug)]
pub enum Call<'a> {
    Get(&'a Path),
    Put(&'a Path),
    /// Of any number of objects.
    Remove,
}

type Judge = Box<dyn FnMut(Call<'_>) -> Fate + Send>;

/// The store; clones share it.
#[derive(Clone)]
pub struct Faulty(Arc<Inner>);

struct Inner {
    store: InMemory,
    judge: Mutex<Judge>,
    late: Mutex<Vec<(Path, PutPayload, PutOptions)>>,
}

impl Default for Faulty {
    fn default() -> Faulty {
        Faulty::new(|_| Fate::Works)
    }
}

impl Faulty {
    /// `judge` says what happens to each call.
    pub fn new(judge: impl FnMut(Call<'_>) -> Fate + Send + 'static) -> Faulty {
        let (store, late) = Default::default();
        Faulty(Arc::new(Inner { store, judge: Mutex::new(Box::new(judge)), late }))
    }

    /// The next writes meet these fates one after the other; then they work.
    #[cfg(test)]
    pub fn will(&self, fates: &[Fate]) {
        let mut fates: std::collections::VecDeque<Fate> = fates.iter().copied().collect();
        self.judged(move |call| match call {
            Call::Get(_) => Fate::Works,
            Call::Put(_) | Call::Remove => fates.pop_front().unwrap_or(Fate::Works),
        });
    }

    /// From now on `judge` says what happens to each call.
    #[cfg(test)]
    pub fn judged(&self, judge: impl FnMut(Call<'_>) -> Fate + Send + 'static) {
        *lock(&self.0.judge) = Box::new(judge);
    }

    /// Whether something lags.
    pub fn lags(&self) -> bool {
        !lock(&self.0.late).is_empty()
    }

    /// What lags does its work now, or never.
    pub async fn settle(&self, arrives: bool) {
        let late = std::mem::take(&mut *lock(&self.0.late));
        for (at, payload, options) in late.into_iter().filter(|_| arrives) {
            // Whoever asked for it has been told that it failed.
            drop(self.0.store.put_opts(&at, payload, options).await);
        }
    }

    /// Removes an object behind everybody's back.
    pub async fn lose(&self, at: &Path) {
        // There may be none.
        drop(self.0.store.delete(at).await);
    }

    fn fate(&self, call: Call<'_>) -> Fate {
        lock(&self.0.judge)(call)
    }

    async fn put(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Answer<PutResult> {
        // In a simulation others have their turns meanwhile.
        thread::pause(LATENCY_MAX);
        self.settle(true).await;
        let fate = self.fate(Call::Put(at));
        match fate {
            Fate::Works => {
                let put = self.0.store.put_opts(at, payload, options).await;
                thread::pause(LATENCY_MAX);
                return put;
            }
            Fate::Fails => {}
            Fate::Lies => drop(self.0.store.put_opts(at, payload, options).await),
            Fate::Lags => lock(&self.0.late).push((at.clone(), payload, options)),
        }
        Err(failure(fate))
    }
}

fn lock<T: ?Sized>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().expect("no holder of this lock panics")
}

fn failure(fate: Fate) -> StoreError {
    StoreError::Generic { store: "faulty", source: format!("{fate:?}").into() }
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
        match self.fate(Call::Get(at)) {
            Fate::Works => self.0.store.get_opts(at, options),
            fate => Box::pin(std::future::ready(Err(failure(fate)))),
        }
    }

    fn delete_stream(&self, at: BoxStream<'static, Answer<Path>>) -> BoxStream<'static, Answer<Path>> {
        let fate = self.fate(Call::Remove);
        let failed = futures::stream::iter([Err(failure(fate))]);
        match fate {
            Fate::Works => self.0.store.delete_stream(at),
            Fate::Fails => failed.boxed(),
            Fate::Lies => self.0.store.delete_stream(at).chain(failed).boxed(),
            Fate::Lags => {
                let half = at.enumerate().filter_map(|(n, path)| std::future::ready((n % 2 == 0).then_some(path)));
                self.0.store.delete_stream(half.boxed()).chain(failed).boxed()
            }
        }
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
