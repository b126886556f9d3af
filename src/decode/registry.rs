//! The schema registry, asked once for each id: a schema, once registered under an id, never changes.
//!
//! The invariant: "there is no such schema" is said only when the registry itself says so (error code 40403). Whatever else goes wrong,
//! also a 404 of some proxy on the way, is infrastructure: [`Error`], to be tried again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use schema_registry_converter::async_impl::schema_registry::{SrSettings, get_schema_by_id};
use schema_registry_converter::schema_registry_common::SchemaType;

use crate::config;

/// Infrastructure that failed. The same batch may be decoded again.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the schema registry at {url} does not answer: {reason}")]
pub struct Error {
    pub url: String,
    pub reason: String,
}

/// Where writer schemas come from.
pub trait SchemaStore: Send + Sync {
    /// The schema's text; `None` when there is none under this id.
    fn get(&self, id: u32) -> BoxFuture<'_, Result<Option<Arc<str>>, Error>>;
}

/// A Confluent-compatible registry over HTTP.
pub struct RegistryClient {
    url: String,
    settings: SrSettings,
    /// Held while the registry is asked: the decoder and the landing want the same schemas at the same time.
    known: tokio::sync::Mutex<HashMap<u32, Arc<str>>>,
}

impl RegistryClient {
    pub fn new(config: &config::Registry) -> Result<RegistryClient, Error> {
        let url = config.url.clone().unwrap_or_default().trim_end_matches('/').to_string();
        let failed = |reason: String| Error { url: url.clone(), reason };
        let mut builder = SrSettings::new_builder(url.clone());
        builder.set_timeout(Duration::from_millis(config.timeout_ms)).no_proxy();
        if let Some(username) = &config.username {
            builder.set_basic_authorization(username, config.password.as_deref());
        }
        let settings = builder.build().map_err(|e| failed(e.to_string()))?;
        Ok(RegistryClient { settings, known: tokio::sync::Mutex::default(), url })
    }

    async fn fetch(&self, id: u32) -> Result<Option<Arc<str>>, Error> {
        let mut known = self.known.lock().await;
        if let Some(text) = known.get(&id) {
            return Ok(Some(text.clone()));
        }
        let text: Arc<str> = match get_schema_by_id(id, &self.settings).await {
            Ok(found) if matches!(found.schema_type, SchemaType::Avro) => found.schema.into(),
            // Of another kind than Avro: no schema that an Avro body could have.
            Ok(_) => return Ok(None),
            Err(e) if e.error.contains("404") && e.cause.as_deref().is_some_and(|c| c.contains("40403")) => {
                return Ok(None);
            }
            Err(e) => {
                let reason = match &e.cause {
                    Some(cause) => format!("{}: {cause}", e.error),
                    None => e.error.clone(),
                };
                return Err(Error { url: self.url.clone(), reason });
            }
        };
        known.insert(id, text.clone());
        Ok(Some(text))
    }
}

impl SchemaStore for RegistryClient {
    fn get(&self, id: u32) -> BoxFuture<'_, Result<Option<Arc<str>>, Error>> {
        Box::pin(self.fetch(id))
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
