//! The API turns one HTTP request into one answer.
//!
//! The invariant: each request ends within `serve.timeout_ms`, is counted under its route and status, and gets an answer even when the code
//! behind it panics. At most `serve.concurrency_max` requests read the index at one time, those included whose time was up while their query is
//! still embedded; one more is sent away at once, never queued.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut};
use futures::{FutureExt, Stream, StreamExt};
use serde::Serialize;
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};
use warp::http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, EXPECT, HeaderValue};
use warp::http::{HeaderMap, Method, StatusCode};
use warp::path::FullPath;
use warp::reply::Response as Reply;
use warp::{Filter, Rejection};

use super::failure::Failure;
use super::request::{self, Near, Route, SearchRequest};
use super::status::State;
use super::{Hits, Metrics, Opened, Search, SearchError, ServeState, Status};

const PAGE: &str = include_str!("page.html");
/// The page brings its own script and style, and talks to nobody else.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'";
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// A client that is still sending when its connection is closed sees a reset in place of the answer. So of a body that is too large this
/// much more is read and thrown away.
const DISCARD_MAX_BYTES: u64 = 8 << 20;

/// Every route. All requests pass one function, so that a wrong method, an unknown path and a failure deep inside are answered in one
/// shape, and each is counted once.
pub fn routes(
    state: Arc<ServeState>,
) -> impl Filter<Extract = (Reply,), Error = Rejection> + Clone + Send + Sync + 'static {
    let query = warp::query::raw().or_else(|_| async { Ok::<_, Rejection>((String::new(),)) });
    warp::method()
        .and(warp::path::full())
        .and(query)
        .and(warp::header::headers_cloned())
        .and(warp::ext::optional())
        .and(warp::body::stream())
        .then(move |method, path: FullPath, query: String, headers, from: Option<SocketAddr>, body| {
            let state = state.clone();
            async move { answer(&state, method, path.as_str(), &query, headers, from, body).await }
        })
}

async fn answer(
    state: &ServeState,
    method: Method,
    path: &str,
    query: &str,
    headers: HeaderMap,
    from: Option<SocketAddr>,
    body: impl Stream<Item = Result<impl Buf, warp::Error>>,
) -> Reply {
    let started = Instant::now();
    let (route, key) = Route::of(path);
    let call = Call { state, started, key, query };
    let answering = async {
        check_method(route, &method)?;
        match route {
            Route::Page => Ok(page()),
            Route::Search => call.search(&headers, body).await,
            Route::Item => call.item().await,
            Route::Similar => call.similar().await,
            Route::Status => Ok(reply(&state.status.to_json())),
            Route::Rebuild => rebuild(state, &headers, from),
            Route::Healthz => healthz(state),
            Route::Readyz => readyz(state),
            Route::Metrics => metrics(state.metrics()),
            Route::Unknown => Err(Failure::new(StatusCode::NOT_FOUND, "unknown_path", "there is nothing at this path")),
        }
    };
    // What a panic leaves behind is this request's alone: the shared state is atomics, and locks that no caller's code runs under.
    let answered = AssertUnwindSafe(answering).catch_unwind().await.unwrap_or_else(|_| {
        tracing::error!(route = route.name(), "answering a request panicked");
        Err(Failure::internal())
    });
    let reply = answered.unwrap_or_else(|failure| {
        tracing::debug!(
            route = route.name(),
            status = failure.status.as_u16(),
            code = failure.code,
            "{}",
            failure.message
        );
        failure.into_reply()
    });
    state.metrics().observe_request(route, reply.status().as_u16(), started.elapsed());
    reply
}

/// One request that reads the index.
struct Call<'a> {
    state: &'a ServeState,
    started: Instant,
    key: &'a str,
    query: &'a str,
}

impl Call<'_> {
    async fn search(
        &self,
        headers: &HeaderMap,
        body: impl Stream<Item = Result<impl Buf, warp::Error>>,
    ) -> Result<Reply, Failure> {
        let opened = self.opened()?;
        request::no_parameters(self.query)?;
        let body = self.read(headers, body).await?;
        let asked = request::search(&body, opened.searcher.shape(), self.state.config.k_max)?;
        let place = self.place()?;
        let hits = self.in_time(self.find(opened, asked, &place)).await?;
        Ok(self.hits(&hits))
    }

    async fn item(&self) -> Result<Reply, Failure> {
        let opened = self.opened()?;
        request::no_parameters(self.query)?;
        let key = request::key(self.key)?;
        let _place = self.place()?;
        let item = self.in_time(async { Ok(opened.searcher.item(&key).await?) }).await?;
        Ok(in_json(item.json()))
    }

    async fn similar(&self) -> Result<Reply, Failure> {
        let opened = self.opened()?;
        let k = request::k_parameter(self.query, self.state.config.k_max)?;
        let key = request::key(self.key)?;
        let _place = self.place()?;
        let hits = self.in_time(async { Ok(opened.searcher.similar(&key, k).await?) }).await?;
        Ok(self.hits(&hits))
    }

    fn opened(&self) -> Result<&Opened, Failure> {
        let not_ready =
            || Failure::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", "the index is not open yet; try again");
        self.state.opened.get().ok_or_else(not_ready)
    }

    async fn find(&self, opened: &Opened, asked: SearchRequest, place: &Arc<Place>) -> Result<Hits, Failure> {
        let vector = match asked.near {
            Near::Vector(vector) => vector.into(),
            Near::Text(text) => self.vector_of(opened, text, place).await?,
        };
        let search = Search { vector, k: asked.k, filter: asked.filter, columns: asked.columns };
        Ok(opened.searcher.search(search).await?)
    }

    async fn vector_of(&self, opened: &Opened, text: String, place: &Arc<Place>) -> Result<Arc<[f32]>, SearchError> {
        if let Some(vector) = self.state.queries.get(&text) {
            self.state.metrics().queries_cached.inc();
            return Ok(vector);
        }
        let (embedder, place) = (opened.embedder.clone(), place.clone());
        let embedding = tokio::task::spawn_blocking(move || {
            let vector = embedder.embed_query(&text);
            // The request may be over by now: until here it was at work.
            drop(place);
            (text, vector)
        });
        let (text, vector) = embedding.await.map_err(|e| SearchError::Internal(e.to_string()))?;
        let vector: Arc<[f32]> = vector?.into();
        let wanted = opened.searcher.shape().dimension;
        if vector.len() != wanted {
            let reason = format!("the model made a vector of {} numbers for an index of {wanted}", vector.len());
            return Err(SearchError::Internal(reason));
        }
        self.state.metrics().queries_computed.inc();
        self.state.queries.put(&text, vector.clone());
        Ok(vector)
    }

    fn place(&self) -> Result<Arc<Place>, Failure> {
        Ok(Arc::new(Place::take(self.state)?))
    }

    /// Does the work until the request's time is up.
    async fn in_time<T>(&self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let late = || {
            let message = format!("the answer took longer than {} ms", self.state.config.timeout_ms);
            Failure::new(StatusCode::GATEWAY_TIMEOUT, "timeout", message)
        };
        timeout_at(self.deadline(), work).await.unwrap_or_else(|_| Err(late()))
    }

    async fn read(
        &self,
        headers: &HeaderMap,
        body: impl Stream<Item = Result<impl Buf, warp::Error>>,
    ) -> Result<Vec<u8>, Failure> {
        let late = |_| Failure::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", "the body did not arrive in time");
        timeout_at(self.deadline(), read(headers, body, self.state.config.body_max_bytes)).await.map_err(late)?
    }

    fn deadline(&self) -> Instant {
        self.started + Duration::from_millis(self.state.config.timeout_ms)
    }

    fn hits(&self, hits: &Hits) -> Reply {
        in_json(hits.json(self.started.elapsed().as_secs_f64() * 1000.0))
    }
}

/// A place among the running searches, held by the request and by what it has others compute; given back by the last of them.
struct Place {
    status: Arc<Status>,
    _permit: OwnedSemaphorePermit,
}

impl Place {
    fn take(state: &ServeState) -> Result<Place, Failure> {
        let status = state.status.clone();
        let permit = state.places.clone().try_acquire_owned().map_err(|_| {
            status.metrics().searches_refused.inc();
            let message =
                format!("{} searches are running, which is the limit; try again", state.config.concurrency_max);
            Failure::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", message)
        })?;
        status.metrics().searches_running.inc();
        Ok(Place { status, _permit: permit })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.status.metrics().searches_running.dec();
    }
}

async fn read(
    headers: &HeaderMap,
    body: impl Stream<Item = Result<impl Buf, warp::Error>>,
    max_bytes: u64,
) -> Result<Vec<u8>, Failure> {
    let too_large = || {
        Failure::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_too_large",
            format!("the body is larger than {max_bytes} bytes"),
        )
    };
    let announced =
        headers.get(CONTENT_LENGTH).and_then(|n| n.to_str().ok()).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    // Whoever asks before sending need not send; of what would not be read to its end, nothing is read.
    if announced > max_bytes && (headers.contains_key(EXPECT) || announced - max_bytes > DISCARD_MAX_BYTES) {
        return Err(too_large());
    }
    let mut body = pin!(body);
    let (mut kept, mut seen) = (Vec::new(), 0u64);
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|_| Failure::bad("bad_body", "the body ended before its end"))?;
        seen += chunk.remaining() as u64;
        if seen <= max_bytes {
            kept.put(chunk);
        } else if seen - max_bytes > DISCARD_MAX_BYTES {
            break;
        }
    }
    if seen > max_bytes { Err(too_large()) } else { Ok(kept) }
}

fn check_method(route: Route, method: &Method) -> Result<(), Failure> {
    let fits = match route {
        Route::Unknown => true,
        Route::Search | Route::Rebuild => method == Method::POST,
        _ => method == Method::GET || method == Method::HEAD,
    };
    if fits { Ok(()) } else { Err(Failure::method(route.methods())) }
}

fn healthz(state: &ServeState) -> Result<Reply, Failure> {
    match state.status.state_and_why() {
        (State::Failed, why) => Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, "failed", why)),
        (now, _) => Ok(reply(&json!({"ok": true, "state": now.name()}))),
    }
}

fn readyz(state: &ServeState) -> Result<Reply, Failure> {
    let (now, why) = state.status.state_and_why();
    if state.opened.get().is_some() && state.status.is_ready() {
        return Ok(reply(&json!({"ready": true, "state": now.name()})));
    }
    Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", format!("{}: {why}", now.name())))
}

/// Asks the engine for a new index.
fn rebuild(state: &ServeState, headers: &HeaderMap, from: Option<SocketAddr>) -> Result<Reply, Failure> {
    if !request::is_of_operator(headers, from) {
        let message = "a rebuild can be asked for from the service's own machine alone: run freshet rebuild there";
        return Err(Failure::new(StatusCode::FORBIDDEN, "forbidden", message));
    }
    state.status.ask_to_rebuild();
    let mut reply = reply(&json!({"table": state.status.table()}));
    *reply.status_mut() = StatusCode::ACCEPTED;
    Ok(reply)
}

fn metrics(metrics: &Metrics) -> Result<Reply, Failure> {
    let text = metrics.render().map_err(|error| {
        tracing::error!(%error, "the metrics could not be written");
        Failure::internal()
    })?;
    Ok(typed(text, METRICS_TYPE))
}

fn page() -> Reply {
    let mut page = typed(PAGE, "text/html; charset=utf-8");
    page.headers_mut().insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE_POLICY));
    page.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    page
}

/// JSON that is true only now.
fn reply(value: &impl Serialize) -> Reply {
    in_json(serde_json::to_vec(value))
}

fn in_json(written: serde_json::Result<impl Into<bytes::Bytes>>) -> Reply {
    match written {
        Ok(json) => {
            let mut reply = typed(json, "application/json");
            reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            reply
        }
        Err(error) => {
            tracing::error!(%error, "an answer could not be written as JSON");
            Failure::internal().into_reply()
        }
    }
}

fn typed(body: impl Into<bytes::Bytes>, content_type: &'static str) -> Reply {
    let mut reply = Reply::new(body.into().into());
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply
}
