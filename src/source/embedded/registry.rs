//! A schema registry with Confluent's API, as far as clients that read and write use it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Value, json};
use tokio::sync::oneshot;
use warp::Filter;
use warp::http::StatusCode;
use warp::http::header::CONTENT_TYPE;

const CONTENT: &str = "application/vnd.schemaregistry.v1+json";

pub struct Registry {
    address: SocketAddr,
    state: Arc<State>,
    /// Dropping it stops the server.
    _stop: oneshot::Sender<()>,
}

#[derive(Default)]
struct State {
    schemas: Mutex<Schemas>,
    down: AtomicBool,
}

#[derive(Default)]
struct Schemas {
    by_id: BTreeMap<u32, Arc<str>>,
    /// Ids of a subject's versions, in order.
    subjects: BTreeMap<String, Vec<u32>>,
    requests: BTreeMap<u32, u64>,
}

impl Registry {
    /// Starts it on a free port of this machine.
    pub async fn start() -> std::io::Result<Registry> {
        let state = Arc::new(State::default());
        let (stop, stopped) = oneshot::channel::<()>();
        let listener = tokio::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let serving = state.clone();
        let routes = warp::method().and(warp::path::full()).and(warp::body::bytes()).map(
            move |method: warp::http::Method, path: warp::path::FullPath, body: bytes::Bytes| {
                let (status, value) = serving.answer(method.as_str(), path.as_str(), &body);
                let reply = warp::reply::with_status(value.to_string(), status);
                warp::reply::with_header(reply, CONTENT_TYPE, CONTENT)
            },
        );
        tokio::spawn(
            warp::serve(routes)
                .incoming(listener)
                .graceful(async {
                    let _ = stopped.await;
                })
                .run(),
        );
        Ok(Registry { address, state, _stop: stop })
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Registers a schema under a subject; the same text has the same id.
    pub fn register(&self, subject: &str, schema: &str) -> u32 {
        self.state.lock().register(subject, schema)
    }

    /// Registers a schema under an id that was recorded elsewhere.
    pub fn register_as(&self, id: u32, subject: &str, schema: &str) {
        let mut schemas = self.state.lock();
        schemas.by_id.insert(id, schema.into());
        schemas.subjects.entry(subject.into()).or_default().push(id);
    }

    /// Forgets all that it was told, as one does whose storage was its memory.
    pub fn forget(&self) {
        *self.state.lock() = Schemas::default();
    }

    /// While it is down it answers 503.
    pub fn set_down(&self, down: bool) {
        self.state.down.store(down, Ordering::SeqCst);
    }

    /// How often an id was asked for.
    pub fn requests(&self, id: u32) -> u64 {
        self.state.lock().requests.get(&id).copied().unwrap_or(0)
    }
}

impl super::Subjects for Registry {
    fn id(&self, subject: &str, schema: &str) -> Result<u32, String> {
        Ok(self.register(subject, schema))
    }
}

impl Schemas {
    fn register(&mut self, subject: &str, schema: &str) -> u32 {
        let known = self.by_id.iter().find(|(_, text)| &***text == schema).map(|(id, _)| *id);
        let id = known.unwrap_or_else(|| self.by_id.keys().next_back().map_or(1, |last| last + 1));
        self.by_id.entry(id).or_insert_with(|| schema.into());
        let versions = self.subjects.entry(subject.into()).or_default();
        if !versions.contains(&id) {
            versions.push(id);
        }
        id
    }
}

type Answer = (StatusCode, Value);

fn error(status: StatusCode, code: u32, message: &str) -> Answer {
    (status, json!({"error_code": code, "message": message}))
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Schemas> {
        self.schemas.lock().expect("no holder of this lock panics")
    }

    fn answer(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        if self.down.load(Ordering::SeqCst) {
            return error(StatusCode::SERVICE_UNAVAILABLE, 50301, "the registry is down");
        }
        let mut schemas = self.lock();
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let no_subject = || error(StatusCode::NOT_FOUND, 40401, "Subject not found");
        match (method, parts.as_slice()) {
            ("GET", ["schemas", "ids", id]) => match id.parse::<u32>() {
                Ok(id) => {
                    *schemas.requests.entry(id).or_default() += 1;
                    match schemas.by_id.get(&id) {
                        Some(text) => (StatusCode::OK, json!({"schema": &**text})),
                        None => error(StatusCode::NOT_FOUND, 40403, "Schema not found"),
                    }
                }
                Err(_) => error(StatusCode::NOT_FOUND, 404, "HTTP 404 Not Found"),
            },
            ("GET", ["subjects"]) => (StatusCode::OK, json!(schemas.subjects.keys().collect::<Vec<_>>())),
            ("GET", ["subjects", subject, "versions"]) => match schemas.subjects.get(*subject) {
                Some(ids) => (StatusCode::OK, json!((1..=ids.len()).collect::<Vec<_>>())),
                None => no_subject(),
            },
            ("GET", ["subjects", subject, "versions", version]) => {
                let Some(ids) = schemas.subjects.get(*subject) else { return no_subject() };
                let number = if *version == "latest" { ids.len() } else { version.parse().unwrap_or(0) };
                match number.checked_sub(1).and_then(|n| ids.get(n)) {
                    Some(id) => {
                        let text = &*schemas.by_id[id];
                        (StatusCode::OK, json!({"subject": subject, "version": number, "id": id, "schema": text}))
                    }
                    None => error(StatusCode::NOT_FOUND, 40402, "Version not found"),
                }
            }
            ("POST", ["subjects", subject, "versions"]) => match serde_json::from_slice::<Value>(body) {
                Ok(value) => match value["schema"].as_str().filter(|t| apache_avro::Schema::parse_str(t).is_ok()) {
                    Some(text) => (StatusCode::OK, json!({"id": schemas.register(subject, text)})),
                    None => error(StatusCode::UNPROCESSABLE_ENTITY, 42201, "Invalid schema"),
                },
                Err(_) => error(StatusCode::UNPROCESSABLE_ENTITY, 42201, "Invalid schema"),
            },
            _ => error(StatusCode::NOT_FOUND, 404, "HTTP 404 Not Found"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::decode::{RegistryClient, SchemaStore};

    #[tokio::test]
    async fn a_client_asks_once_and_tells_absence_from_outage() {
        let registry = Registry::start().await.unwrap();
        let id = registry.register("s-value", r#""string""#);
        assert_eq!(registry.register("other-value", r#""string""#), id, "the same text has the same id");
        let config = config::Registry { url: Some(registry.url()), username: None, password: None, timeout_ms: 2000 };
        let client = RegistryClient::new(&config).unwrap();
        for _ in 0..3 {
            assert_eq!(client.get(id).await.unwrap().as_deref(), Some(r#""string""#));
        }
        assert_eq!(registry.requests(id), 1);
        assert_eq!(client.get(99).await.unwrap(), None);
        registry.set_down(true);
        assert!(client.get(98).await.is_err(), "an outage is no answer");
        assert!(client.get(id).await.is_ok(), "what is known needs no registry");
    }
}
