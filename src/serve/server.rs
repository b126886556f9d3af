//! The server binds the API to a socket and takes it down again.
//!
//! The invariant: once [`Server::stop`] has answered, nothing is accepted any more, and what was accepted before has been answered or its
//! time was up. It never decides what is answered.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::{ServeState, routes};

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen on {address} (serve.listen): {source}")]
    Listen { address: SocketAddr, source: io::Error },
}

/// A running server. Dropping it stops it without waiting.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<()>>,
}

impl Server {
    /// Binds `serve.listen` (port 0 takes a free one) and answers from then on.
    pub async fn start(state: Arc<ServeState>) -> Result<Server, Error> {
        let address = state.config().listen;
        let failed = |source| Error::Listen { address, source };
        let listener = listen(address).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = warp::serve(routes(state)).incoming(listener).graceful(async move {
            // A sender that was dropped stops the server just as well.
            let _ = stopped.await;
        });
        let task = tokio::spawn(serving.run());
        tracing::info!(%address, "the API listens");
        Ok(Server { address, stop: Some(stop), task: Some(task) })
    }

    /// Where it listens; tells the port that was taken.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts nothing more, and waits up to `grace` for the answers under way. Says whether all were given.
    pub async fn stop(mut self, grace: Duration) -> bool {
        drop(self.stop.take());
        let Some(mut task) = self.task.take() else { return true };
        match tokio::time::timeout(grace, &mut task).await {
            Ok(_) => true,
            Err(_) => {
                task.abort();
                tracing::warn!(grace_ms = grace.as_millis() as u64, "requests were still running when the API stopped");
                false
            }
        }
    }
}

/// Small answers leave at once: Linux hands the listener's TCP_NODELAY on to what it accepts, and warp sets no option of its own.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.set_nodelay(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
