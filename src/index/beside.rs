//! Work for a table that goes on beside its commits, one thing at a time.
//!
//! The invariant: it ends with its table, and whoever asks whether the table is still in use is told so until it has ended.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::{AbortHandle, abortable};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

#[derive(Default)]
pub(super) struct Beside {
    running: Option<(JoinHandle<Result<(), String>>, AbortHandle)>,
}

impl Beside {
    /// Begins what is nobody else's meanwhile; `in_use` is the table's.
    pub fn begin(&mut self, work: impl Future<Output = lancedb::Result<()>> + Send + 'static, in_use: Arc<()>) {
        let (work, abort) = abortable(work);
        let runtime = Handle::current();
        // Lance computes centroids where it is polled, which would take one of the threads that answer searches.
        let thread = tokio::task::spawn_blocking(move || {
            let done = runtime.block_on(work);
            drop(in_use);
            done.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
        });
        self.running = Some((thread, abort));
    }

    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// What has come of it, once it is over.
    pub fn done(&mut self) -> Option<Result<(), String>> {
        let (thread, _) = self.running.as_mut()?;
        let done = thread.now_or_never()?;
        self.running = None;
        Some(done.unwrap_or_else(|e| Err(e.to_string())))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if let Some((_, abort)) = &self.running {
            abort.abort();
        }
    }
}
