//! A folder as an object store whose writes outlive a power failure: object_store's own does not ask the disk for that.
//!
//! The invariant: a file that was put is on the disk, whole, before anybody can see it by its name; a put that says it was created is in its folder
//! for good.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

#[derive(Debug)]
pub(super) struct Durable(LocalFileSystem);

impl Durable {
    /// The whole file system.
    pub fn new() -> Durable {
        Durable(LocalFileSystem::new())
    }

    async fn put(&self, at: &Path, payload: PutPayload, mode: PutMode) -> Result<PutResult> {
        let file = self.0.path_to_filesystem(at)?;
        let (name, shown) = (at.clone(), at.to_string());
        let failed = move |e: io::Error| match e.kind() {
            io::ErrorKind::AlreadyExists => Error::AlreadyExists { path: shown.clone(), source: e.into() },
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Error::PermissionDenied { path: shown.clone(), source: e.into() }
            }
            _ => Error::Generic { store: "folder", source: format!("{shown}: {e}").into() },
        };
        match mode {
            PutMode::Update(_) => Err(Error::NotSupported { source: format!("{name} cannot be updated").into() }),
            mode => tokio::task::spawn_blocking(move || write(file, &payload, mode == PutMode::Create))
                .await
                .map_err(|e| Error::Generic { store: "folder", source: e.into() })?
                .map(|()| PutResult { e_tag: None, version: None })
                .map_err(failed),
        }
    }
}

fn write(file: PathBuf, payload: &PutPayload, is_new: bool) -> io::Result<()> {
    let folder = file.parent().map_or_else(PathBuf::new, Into::into);
    fs::create_dir_all(&folder)?;
    // Names that end like this are no objects to `LocalFileSystem`.
    let mut staged = file.clone().into_os_string();
    staged.push(format!("#{}", rand::random::<u32>()));
    let mut out = OpenOptions::new().write(true).create_new(true).open(&staged)?;
    let put = payload.iter().try_for_each(|bytes| out.write_all(bytes)).and_then(|()| out.sync_all());
    let put = put.and_then(|()| if is_new { fs::hard_link(&staged, &file) } else { fs::rename(&staged, &file) });
    if put.is_err() || is_new {
        drop(fs::remove_file(&staged));
    }
    put?;
    // The folder may be as new as the file.
    File::open(&folder)?.sync_all()?;
    folder.parent().map_or(Ok(()), |above| File::open(above)?.sync_all())
}

impl fmt::Display for Durable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The trait's methods as `async_trait` writes them, which is no dependency of ours.
impl ObjectStore for Durable {
    fn put_opts<'a, 'b, 'f>(
        &'a self,
        at: &'b Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> BoxFuture<'f, Result<PutResult>>
    where
        'a: 'f,
        'b: 'f,
    {
        Box::pin(self.put(at, payload, options.mode))
    }

    fn put_multipart_opts<'a, 'b, 'f>(
        &'a self,
        at: &'b Path,
        options: PutMultipartOptions,
    ) -> BoxFuture<'f, Result<Box<dyn MultipartUpload>>>
    where
        'a: 'f,
        'b: 'f,
    {
        self.0.put_multipart_opts(at, options)
    }

    fn get_opts<'a, 'b, 'f>(&'a self, at: &'b Path, options: GetOptions) -> BoxFuture<'f, Result<GetResult>>
    where
        'a: 'f,
        'b: 'f,
    {
        self.0.get_opts(at, options)
    }

    fn delete_stream(&self, at: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.0.delete_stream(at)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.0.list(prefix)
    }

    fn list_with_delimiter<'a, 'b, 'f>(&'a self, prefix: Option<&'b Path>) -> BoxFuture<'f, Result<ListResult>>
    where
        'a: 'f,
        'b: 'f,
    {
        self.0.list_with_delimiter(prefix)
    }

    fn copy_opts<'a, 'b, 'c, 'f>(
        &'a self,
        from: &'b Path,
        to: &'c Path,
        options: CopyOptions,
    ) -> BoxFuture<'f, Result<()>>
    where
        'a: 'f,
        'b: 'f,
        'c: 'f,
    {
        self.0.copy_opts(from, to, options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::TryStreamExt;
    use object_store::ObjectStoreExt;

    #[tokio::test]
    async fn a_name_is_given_once_and_nothing_is_left_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let at = Path::from_filesystem_path(folder.path()).unwrap().join("new").join("0.json");
        let store = Durable::new();
        store.put_opts(&at, "first".into(), PutMode::Create.into()).await.unwrap();
        let again = store.put_opts(&at, "second".into(), PutMode::Create.into()).await;
        assert!(matches!(again, Err(Error::AlreadyExists { .. })), "{again:?}");
        assert_eq!(store.get(&at).await.unwrap().bytes().await.unwrap(), "first");
        store.put(&at, "third".into(), PutMode::Overwrite).await.unwrap();
        assert_eq!(store.get(&at).await.unwrap().bytes().await.unwrap(), "third");
        let all: Vec<_> =
            store.list(Some(&Path::from_filesystem_path(folder.path()).unwrap())).try_collect().await.unwrap();
        assert_eq!(all.len(), 1);
        assert_eq!(std::fs::read_dir(folder.path().join("new")).unwrap().count(), 1);
    }
}
