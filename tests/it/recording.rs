//! The recording under `tests/fixtures/debezium`: what Debezium wrote, the registry's schemas, the tables as they stood at the end.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::{Arc, OnceLock};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use freshet::decode::FixedSchemas;
use freshet::source::MessageBatch;
use freshet::time::{Offset, Partition};
use serde_json::{Map, Value, json};

use super::folder::Of;

pub struct Recording {
    events: BTreeMap<String, Vec<Event>>,
    registry: Value,
    tables: BTreeMap<String, Vec<Map<String, Value>>>,
}

#[derive(Clone, Debug)]
pub struct Event {
    pub offset: i64,
    pub timestamp_ms: i64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
}

/// One of the topics that carry a table.
#[derive(Clone, Debug)]
pub struct Topic {
    /// Its name in `tables.jsonl.gz`.
    pub table: &'static str,
    pub source: Of,
}

/// The recording, read once.
pub fn recording() -> &'static Recording {
    static READ: OnceLock<Recording> = OnceLock::new();
    READ.get_or_init(|| {
        let bytes = |v: &Value| v.as_str().map(|t| STANDARD.decode(t).unwrap());
        let mut events: BTreeMap<String, Vec<Event>> = BTreeMap::new();
        for line in fixture("events.jsonl").lines() {
            let e: Value = serde_json::from_str(line).unwrap();
            let event = Event {
                offset: e["offset"].as_i64().unwrap(),
                timestamp_ms: e["timestamp_ms"].as_i64().unwrap(),
                key: bytes(&e["key"]),
                value: bytes(&e["value"]),
            };
            events.entry(e["topic"].as_str().unwrap().into()).or_default().push(event);
        }
        let mut tables: BTreeMap<String, Vec<Map<String, Value>>> = BTreeMap::new();
        for line in fixture("tables.jsonl").lines() {
            let t: Value = serde_json::from_str(line).unwrap();
            let row = t["row"].as_object().unwrap().clone();
            tables.entry(t["table"].as_str().unwrap().into()).or_default().push(row);
        }
        Recording { events, registry: serde_json::from_str(&fixture("registry.json")).unwrap(), tables }
    })
}

fn fixture(name: &str) -> String {
    let path = format!("{}/tests/fixtures/debezium/{name}.gz", env!("CARGO_MANIFEST_DIR"));
    let mut text = String::new();
    flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap()).read_to_string(&mut text).unwrap();
    text
}

impl Recording {
    pub fn events(&self, topic: &str) -> &[Event] {
        &self.events[topic]
    }

    /// The rows of a table at the end, each column as the database prints it.
    pub fn table(&self, name: &str) -> &[Map<String, Value>] {
        &self.tables[name]
    }

    pub fn schema(&self, id: u32) -> &Value {
        &self.registry["schemas"][id.to_string()]
    }

    pub fn schemas(&self) -> impl Iterator<Item = (u32, &Value)> {
        self.registry["schemas"].as_object().unwrap().iter().map(|(id, schema)| (id.parse().unwrap(), schema))
    }

    /// The schemas as a store that needs no registry.
    pub fn store(&self) -> Arc<FixedSchemas> {
        Arc::new(FixedSchemas(self.schemas().map(|(id, schema)| (id, schema.to_string().into())).collect()))
    }

    /// Every topic that carries a table, of all five kinds.
    pub fn topics(&self) -> Vec<Topic> {
        let pg = |table: &str| self.contract(&format!("shop.production.{table}-value"), &[]);
        let maria = self.contract("mshop.mshop.product-value", &["t1"]);
        let of = |table, topic: &str, format, envelope, key: &[&'static str], contract| Topic {
            table,
            source: Of { topic: topic.into(), format, envelope, key: key.to_vec(), contract },
        };
        let (product, review, category) =
            ("shop.production.product", "shop.production.review", "shop.production.category");
        let product_category = "shop.production.product_category";
        let scratch = "shop.production.scratch";
        vec![
            of(product, product, "avro", "debezium", &["product_id"], pg("product")),
            of(category, category, "avro", "debezium", &["category_id"], pg("category")),
            of(
                product_category,
                product_category,
                "avro",
                "debezium",
                &["product_id", "category_id"],
                pg("product_category"),
            ),
            of(review, review, "avro", "debezium", &["review_id"], pg("review")),
            of(scratch, scratch, "avro", "debezium", &["id"], pg("scratch")),
            of("mshop.mshop.product", "mshop.mshop.product", "avro", "debezium", &["id"], maria),
            of(product, "flat.production.product", "avro", "flattened", &["product_id"], pg("product")),
            of(review, "flat.production.review", "avro", "flattened", &["review_id"], pg("review")),
            of(product, "json.production.product", "json", "debezium", &["product_id"], pg("product")),
            of(review, "json.production.review", "json", "debezium", &["review_id"], pg("review")),
            of(category, "bare.production.category", "json", "debezium", &["category_id"], pg("category")),
        ]
    }

    /// A contract that all of a topic's writer schemas keep: the last one's columns, each with null allowed where an older one lacks it.
    fn contract(&self, subject: &str, durations: &[&str]) -> Value {
        let versions = self.registry["subjects"][subject].as_object().unwrap();
        let rows: Vec<&Value> = versions.values().map(|id| row_of(self.schema(id.as_u64().unwrap() as u32))).collect();
        let mut row = (*rows.last().unwrap()).clone();
        for field in row["fields"].as_array_mut().unwrap() {
            let name = field["name"].as_str().unwrap().to_string();
            if durations.contains(&&*name) {
                field["type"][1]["freshet.type"] = "duration".into();
            }
            if !rows.iter().all(|r| columns(r).any(|c| c == name)) && field.get("default").is_none() {
                field["type"] = json!(["null", field["type"]]);
                field["default"] = Value::Null;
            }
        }
        row
    }

    /// Which columns of its table an event's writer had; `None` for what carries no row.
    pub fn written_columns(&self, topic: &Topic, event: &Event) -> Option<Vec<String>> {
        let value = event.value.as_ref()?;
        if topic.source.format == "json" {
            let value: Value = serde_json::from_slice(value).unwrap();
            let payload = value.get("payload").unwrap_or(&value);
            return Some(payload["after"].as_object()?.keys().cloned().collect());
        }
        let schema = self.schema(u32::from_be_bytes(value[1..5].try_into().unwrap()));
        Some(columns(row_of(schema)).map(Into::into).collect())
    }
}

/// The record of the row inside an envelope's schema, or the schema itself where there is no envelope.
fn row_of(schema: &Value) -> &Value {
    let before = schema["fields"].as_array().unwrap().iter().find(|f| f["name"] == "before");
    before.map_or(schema, |f| &f["type"][1])
}

fn columns(row: &Value) -> impl Iterator<Item = &str> {
    row["fields"].as_array().unwrap().iter().map(|f| f["name"].as_str().unwrap())
}

/// Events as a source hands them on.
pub fn batch(topic: &str, events: &[Event]) -> MessageBatch {
    let mut batch = MessageBatch::new(Partition::new(topic, 0));
    for e in events {
        batch.push(Offset(e.offset), e.timestamp_ms, e.key.as_deref(), e.value.as_deref());
    }
    batch
}
