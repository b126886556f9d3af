//! The server binds the API to a socket and takes it down again.
//!
//! The invariant: at most `serve.connections_max` connections are open at one time, and none that sends no request stays; further ones wait to be
//! accepted. Once [`Server::stop`] has answered, nothing is accepted any more, and what was accepted before has been answered or its time was up.
//! It never decides what is answered.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;

use super::{ServeState, routes};

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;
/// How long the head of a request may take to arrive, from when it could have begun.
const REQUEST_MAX: Duration = Duration::from_secs(30);
/// How long a part of an answer may lie unread by the client.
const UNREAD_MAX: Duration = Duration::from_secs(30);
/// Pause after a connection that could not be accepted.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

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
        let task = tokio::spawn(serve(state, listener, stopped));
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

/// Accepts until it is told to stop, or nobody is left who could, and then waits for the answers under way. warp's own server has no bounds.
async fn serve(state: Arc<ServeState>, listener: TcpListener, mut stopped: oneshot::Receiver<()>) {
    let places = Arc::new(Semaphore::new(state.config().connections_max));
    let service = TowerToHyperService::new(warp::service(routes(state)));
    let graceful = GracefulShutdown::new();
    let mut http = auto::Builder::new(TokioExecutor::new()).http1_only();
    http.http1().timer(TokioTimer::new()).header_read_timeout(REQUEST_MAX);
    loop {
        let accepting = async {
            let place = places.clone().acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            _ = &mut stopped => break,
            accepted = accepting => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(e) => {
                // Of the connection that was to be, or the process is at its limit of open files: that passes.
                tracing::warn!(reason = %e, "a connection cannot be accepted");
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        if let Err(e) = SockRef::from(&stream).set_tcp_user_timeout(Some(UNREAD_MAX)) {
            tracing::debug!(reason = %e, "a connection has no bound on how long its answer may lie unread");
        }
        let service = service.clone();
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(peer);
            service.call(request)
        });
        let connection = http.serve_connection(TokioIo::new(stream), service);
        let connection = graceful.watch(connection.into_owned());
        tokio::spawn(async move {
            // Whoever goes away in the middle of a request is nobody's mistake here.
            if let Err(e) = connection.await {
                tracing::debug!(reason = %e, "a connection has ended early");
            }
            drop(place);
        });
    }
    drop(listener);
    graceful.shutdown().await;
}

/// Small answers leave at once: Linux hands the listener's TCP_NODELAY on to what it accepts, and warp sets no option of its own.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.set_nodelay(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
