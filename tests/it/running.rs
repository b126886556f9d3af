//! The service in this process, spoken to over its sockets, as its users do.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use freshet::config::Config;
use freshet::decode::{FixedSchemas, RowType};
use freshet::embed::{self, BatchStats, ModelId, TextEmbedder};
use freshet::engine::{self, Service};
use freshet::raw::{Hydration, RawTable};
use freshet::source::embedded::{Broker, Registry};
use futures::FutureExt;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Map, Value, json};

use super::connector::{Connector, PARTITIONS, TOPIC};
use super::folder::{Folder, ITEMS, Of, item_contract};

/// A hang becomes a failure after this; nothing is measured by it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Looks until it holds.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < PATIENCE, "{what} did not come about within {} s", PATIENCE.as_secs());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A broker, a registry, a connector and a folder for the table of items, in Avro with Debezium's envelope.
pub struct Items {
    pub broker: Broker,
    pub registry: Registry,
    pub connector: Connector,
    pub folder: Folder,
}

impl Items {
    pub async fn new(envelope: &'static str) -> Items {
        Items::at(Broker::start(&[(TOPIC, PARTITIONS)]).unwrap(), envelope).await
    }

    pub async fn at(broker: Broker, envelope: &'static str) -> Items {
        let registry = Registry::start().await.unwrap();
        let connector = Connector::new(&broker, &registry);
        let source = Of { topic: TOPIC.into(), format: "avro", envelope, key: vec!["id"], contract: item_contract() };
        Items { broker, registry, connector, folder: Folder::new(&source, ITEMS, "id", "text") }
    }

    pub fn config(&self) -> Config {
        self.folder.config(&self.broker.bootstrap_servers(), &self.registry.url())
    }

    /// The offsets of each partition that raw holds, as they lie there.
    pub async fn landed(&self) -> BTreeMap<i32, Vec<i64>> {
        let config = self.config();
        let (source, raw) = (&config.sources[0], config.raw.as_ref().unwrap());
        let row_type = Arc::new(RowType::from_contract(source).unwrap());
        let table = RawTable::open(&raw.table(source), &raw.options, &config.name, &source.topic).await.unwrap();
        let schemas = Arc::new(FixedSchemas(Default::default()));
        let mut hydration = Hydration::open(&table, None, 0, source, row_type, schemas).await.unwrap();
        let mut offsets: BTreeMap<i32, Vec<i64>> = BTreeMap::new();
        while let Some(decoded) = hydration.next().await.unwrap() {
            let of = offsets.entry(decoded.partition.number).or_default();
            of.extend(decoded.changes.iter().map(|change| change.offset.0));
            of.extend(decoded.rejects.iter().map(|reject| reject.offset.0));
        }
        offsets.values_mut().for_each(|of| of.sort_unstable());
        offsets
    }

    /// The service with a stand-in for the model: these tests are about what happens to rows.
    pub async fn start(&self) -> Running {
        Running::start_with_stand_in(self.config()).await
    }
}

/// Vectors that are drawn from their texts alone, as the model's are, and mean nothing.
struct StandIn(ModelId);

impl StandIn {
    const DIMENSION: usize = 384;

    fn vector(text: &str) -> Vec<f32> {
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let mut rng = StdRng::seed_from_u64(hasher.finish());
        let raw: Vec<f32> = (0..Self::DIMENSION).map(|_| rng.random_range(-1.0..1.0)).collect();
        let length = raw.iter().map(|x| x * x).sum::<f32>().sqrt();
        raw.into_iter().map(|x| x / length).collect()
    }
}

impl TextEmbedder for StandIn {
    fn model_id(&self) -> &ModelId {
        &self.0
    }

    fn dimension(&self) -> usize {
        Self::DIMENSION
    }

    fn embed(&self, texts: &[&str], _: &mut dyn FnMut(BatchStats)) -> Result<Vec<Vec<f32>>, embed::Error> {
        Ok(texts.iter().map(|text| Self::vector(text)).collect())
    }

    fn embed_query(&self, text: &str) -> Result<Vec<f32>, embed::Error> {
        Ok(Self::vector(text))
    }
}

pub struct Running {
    service: Service,
    client: reqwest::Client,
}

impl Running {
    pub async fn start(config: Config) -> Running {
        let service = Service::start(config, Arc::new(|_| ())).await.unwrap();
        Running { service, client: reqwest::Client::new() }
    }

    pub async fn start_with_stand_in(config: Config) -> Running {
        let service = Self::with_stand_in(config).await.unwrap_or_else(|e| panic!("{e}"));
        Running { service, client: reqwest::Client::new() }
    }

    /// Why a service does not start.
    pub async fn refused(config: Config) -> String {
        match Self::with_stand_in(config).await {
            Ok(_) => panic!("it has started"),
            Err(e) => e.to_string(),
        }
    }

    async fn with_stand_in(config: Config) -> Result<Service, engine::Error> {
        let stand_in: Arc<dyn TextEmbedder> = Arc::new(StandIn(ModelId("stand-in".into())));
        Service::start_with(config, async { Ok(stand_in) }.boxed(), Arc::new(|_| ())).await
    }

    pub fn service(&self) -> &Service {
        &self.service
    }

    pub async fn stop(self) {
        self.service.stop().await;
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.service.address())
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        let answer = self.client.get(self.url(path)).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    pub async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        let answer = self.client.post(self.url(path)).body(body.to_string()).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    pub async fn status(&self) -> Value {
        self.get("/v1/status").await.1
    }

    /// The state, and why.
    pub async fn state(&self) -> (String, String) {
        let status = self.status().await;
        (status["state"].as_str().unwrap().into(), status["why"].as_str().unwrap().into())
    }

    /// Waits until searches reflect everything that the connector has sent.
    pub async fn reflects(&self, connector: &Connector) {
        connector.flush();
        until(&format!("{:?} of {TOPIC}", connector.end()), async || {
            let status = self.status().await;
            assert_ne!(status["state"], "failed", "{}", status["why"]);
            let at = &status["position"][TOPIC];
            connector.end().iter().all(|(partition, next)| at[partition.to_string()].as_i64() >= Some(*next))
        })
        .await;
    }

    /// Every row that a search can find, by key; the index read back.
    pub async fn rows(&self) -> BTreeMap<i64, Map<String, Value>> {
        let mut direction = vec![0.0; StandIn::DIMENSION];
        direction[0] = 1.0;
        let (code, found) = self.post("/v1/search", json!({"vector": direction, "k": 1000})).await;
        assert_eq!(code, 200, "{found}");
        let hits = found["hits"].as_array().unwrap();
        let rows: BTreeMap<i64, Map<String, Value>> =
            hits.iter().map(|h| (h["key"].as_i64().unwrap(), h["row"].as_object().unwrap().clone())).collect();
        assert_eq!(rows.len(), hits.len(), "a key is found twice");
        assert_eq!(self.service.status().metrics().index_rows.get(), rows.len() as i64);
        rows
    }

    /// The items that a search can find.
    pub async fn items(&self) -> BTreeMap<i64, Item> {
        let item = |row: &Map<String, Value>| {
            let note = row["note"].as_str().map(Into::into);
            (row["name"].as_str().unwrap().into(), note, row["stock"].as_i64().unwrap())
        };
        self.rows().await.iter().map(|(key, row)| (*key, item(row))).collect()
    }
}

/// Name, note, stock.
pub type Item = (String, Option<String>, i64);

pub fn items<const N: usize>(rows: [(i64, &str, Option<&str>, i64); N]) -> BTreeMap<i64, Item> {
    rows.into_iter().map(|(id, name, note, stock)| (id, (name.into(), note.map(Into::into), stock))).collect()
}

/// A row as a writer gives it.
pub fn row(id: i64, name: &str, note: Option<&str>, stock: i64) -> Value {
    json!({"id": id, "name": name, "note": note, "stock": stock})
}

/// The fields that writers of items begin with: the contract's.
pub fn item_fields() -> Value {
    item_contract()["fields"].clone()
}
