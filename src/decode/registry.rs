//! The schema registry: what a schema's id means. Each id is fetched once, and confirmed while it is used, at most once a second.
//!
//! The invariant: "there is no such schema" is said only when the registry itself says so (error code 40403). Whatever else goes wrong,
//! also a 404 of some proxy on the way, is infrastructure: [`Error`], to be tried again. A registry that was made anew gives its ids out
//! again: no message is read by what its id meant before, unless the registry lost everything and came back within that second, or is away, so
//! that what it has told before has to do.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use schema_registry_converter::async_impl::schema_registry::{SrSettings, get_schema_by_id};
use schema_registry_converter::schema_registry_common::SchemaType;

use crate::config;

/// How long an id is good for once the registry has said what it means.
const CONFIRMED_FOR: Duration = Duration::from_secs(1);
/// How long a registry may take to confirm an id before it counts as away.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(1);

/// Infrastructure that failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error("the schema registry at {url} does not answer: {reason}")]
    Away { url: String, reason: String },
    #[error("the schema registry at {url} no longer has the schema {id}, which it gave out before")]
    Gone { url: String, id: u32 },
    #[error(
        "the schema registry at {url} has another schema under the id {id} than before: it was made anew, and ids mean something else now; \
         restore it, or begin anew with topics and raw tables of its new ids"
    )]
    Another { url: String, id: u32 },
}

impl Error {
    /// Whether the same batch may be decoded again.
    pub fn is_passing(&self) -> bool {
        !matches!(self, Error::Another { .. })
    }
}

/// Where writer schemas come from.
pub trait SchemaStore: Send + Sync {
    /// The schema's text; `None` when there is none under this id.
    fn get(&self, id: u32) -> BoxFuture<'_, Result<Option<Arc<str>>, Error>>;

    /// Takes it that this has been answered before, by another process.
    fn remember<'a>(&'a self, _id: u32, _text: &'a str) -> BoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }

    /// Whether these ids still mean what [`get`](Self::get) has answered for them.
    fn confirm<'a>(&'a self, _ids: &'a [u32]) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }
}

/// A Confluent-compatible registry over HTTP.
pub struct RegistryClient {
    url: String,
    settings: SrSettings,
    /// Held while the registry is asked: the decoder and the landing want the same schemas at the same time.
    known: tokio::sync::Mutex<Known>,
}

#[derive(Default)]
struct Known {
    schemas: HashMap<u32, Schema>,
    /// It did not answer when it was asked last.
    away: bool,
}

struct Schema {
    text: Arc<str>,
    /// `None` when it was another process that asked.
    confirmed: Option<Instant>,
}

impl RegistryClient {
    pub fn new(config: &config::Registry) -> Result<RegistryClient, Error> {
        let url = config.url.clone().unwrap_or_default().trim_end_matches('/').to_string();
        let failed = |reason: String| Error::Away { url: url.clone(), reason };
        let mut builder = SrSettings::new_builder(url.clone());
        builder.set_timeout(Duration::from_millis(config.timeout_ms)).no_proxy();
        if let Some(username) = &config.username {
            builder.set_basic_authorization(username, config.password.as_deref());
        }
        let settings = builder.build().map_err(|e| failed(e.to_string()))?;
        Ok(RegistryClient { settings, known: tokio::sync::Mutex::default(), url })
    }

    async fn ask(&self, id: u32) -> Result<Option<Arc<str>>, Error> {
        match get_schema_by_id(id, &self.settings).await {
            Ok(found) if matches!(found.schema_type, SchemaType::Avro) => Ok(Some(found.schema.into())),
            // Of another kind than Avro: no schema that an Avro body could have.
            Ok(_) => Ok(None),
            Err(e) if e.error.contains("404") && e.cause.as_deref().is_some_and(|c| c.contains("40403")) => Ok(None),
            Err(e) => {
                let reason = match &e.cause {
                    Some(cause) => format!("{}: {cause}", e.error),
                    None => e.error.clone(),
                };
                Err(Error::Away { url: self.url.clone(), reason })
            }
        }
    }

    async fn fetch(&self, id: u32) -> Result<Option<Arc<str>>, Error> {
        let mut known = self.known.lock().await;
        if let Some(schema) = known.schemas.get(&id) {
            return Ok(Some(schema.text.clone()));
        }
        let Some(text) = self.ask(id).await? else { return Ok(None) };
        known.schemas.insert(id, Schema { text: text.clone(), confirmed: Some(Instant::now()) });
        Ok(Some(text))
    }

    /// A registry that is away gives no id out: what it has told already holds until it is back, and then it is asked before anything else.
    async fn confirm_all(&self, ids: &[u32]) -> Result<(), Error> {
        let mut known = self.known.lock().await;
        let Known { schemas, away } = &mut *known;
        for id in ids {
            let Some(schema) = schemas.get_mut(id) else { continue };
            if schema.confirmed.is_some_and(|at| at.elapsed() < CONFIRMED_FOR) {
                continue;
            }
            let asked = tokio::time::timeout(CONFIRM_TIMEOUT, self.ask(*id)).await;
            let late = || Err(Error::Away { url: self.url.clone(), reason: "it takes too long".into() });
            match asked.unwrap_or_else(|_| late()) {
                Ok(Some(text)) if is_same(&text, &schema.text) => schema.confirmed = Some(Instant::now()),
                Ok(Some(_)) => return Err(Error::Another { url: self.url.clone(), id: *id }),
                Ok(None) => return Err(Error::Gone { url: self.url.clone(), id: *id }),
                Err(e) => {
                    if !std::mem::replace(away, true) {
                        tracing::warn!(reason = %e, "what the registry has told already needs no registry; a new schema would wait for it");
                    }
                    return Ok(());
                }
            }
            if std::mem::take(away) {
                tracing::info!(url = self.url, "the schema registry answers again");
            }
        }
        Ok(())
    }
}

/// Registries may write the same schema with other blanks.
fn is_same(text: &str, other: &str) -> bool {
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok();
    text == other || json(text).is_some_and(|text| Some(text) == json(other))
}

impl SchemaStore for RegistryClient {
    fn remember<'a>(&'a self, id: u32, text: &'a str) -> BoxFuture<'a, ()> {
        let schema = Schema { text: text.into(), confirmed: None };
        Box::pin(async move {
            self.known.lock().await.schemas.entry(id).or_insert(schema);
        })
    }

    fn get(&self, id: u32) -> BoxFuture<'_, Result<Option<Arc<str>>, Error>> {
        Box::pin(self.fetch(id))
    }

    fn confirm<'a>(&'a self, ids: &'a [u32]) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.confirm_all(ids))
    }
}

/// Schemas that are known beforehand: for sources without a registry, for tests and benches.
#[derive(Debug, Default)]
pub struct FixedSchemas(pub HashMap<u32, Arc<str>>);

impl SchemaStore for FixedSchemas {
    fn get(&self, id: u32) -> BoxFuture<'_, Result<Option<Arc<str>>, Error>> {
        Box::pin(async move { Ok(self.0.get(&id).cloned()) })
    }
}
