//! The seeded shop: a table of products, and the Debezium events that its changes would have made.
//!
//! The invariant: an event is in the broker before the table's new state can be asked for, and within a partition events keep the order in
//! which the table changed.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{SystemTime, UNIX_EPOCH};

use apache_avro::types::Value;
use apache_avro::writer::datum::GenericDatumWriter;
use apache_avro::{Decimal, Schema};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

use super::catalog::{self, Product};
use crate::source::embedded::{Producer, Registry};
use crate::time::{Offset, Partition, Position};

pub const TOPIC: &str = "shop.public.product";
pub const PARTITIONS: i32 = 4;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the shop's broker: {0}")]
    Broker(#[from] rdkafka::error::KafkaError),
    #[error("the shop's event: {0}")]
    Avro(Box<apache_avro::Error>),
}

impl From<apache_avro::Error> for Error {
    fn from(e: apache_avro::Error) -> Error {
        Error::Avro(Box::new(e))
    }
}

struct Writer {
    id: u32,
    schema: Schema,
}

pub struct Shop {
    rng: StdRng,
    products: BTreeMap<i64, Product>,
    next_id: i64,
    lsn: i64,
    producer: Producer,
    key: Writer,
    /// The value's schema before and after the column eco_label was added.
    values: [Writer; 2],
    evolved: bool,
    /// Bytes of the messages of each partition that may not have been read yet, and the offset of the first of them.
    ahead: Vec<(i64, VecDeque<usize>)>,
}

impl Shop {
    pub fn new(
        seed: u64,
        products: usize,
        producer: Producer,
        registry: &Registry,
        contract: &str,
    ) -> Result<Shop, Error> {
        let key = json!({"type": "record", "name": "Key", "namespace": TOPIC, "fields": [{"name": "id", "type": "long"}], "connect.name": format!("{TOPIC}.Key")});
        let writer = |subject: &str, schema: serde_json::Value| -> Result<Writer, Error> {
            let text = schema.to_string();
            Ok(Writer {
                id: registry.register(&format!("{TOPIC}-{subject}"), &text),
                schema: Schema::parse_str(&text)?,
            })
        };
        let contract: serde_json::Value = serde_json::from_str(contract).unwrap_or_default();
        let values = [writer("value", envelope(&contract, false))?, writer("value", envelope(&contract, true))?];
        let mut rng = StdRng::seed_from_u64(seed);
        let created = now_us();
        let table = (1..=products as i64).map(|id| (id, catalog::product(&mut rng, id, created))).collect();
        let ahead = (0..PARTITIONS).map(|_| (0, VecDeque::new())).collect();
        Ok(Shop {
            rng,
            products: table,
            next_id: products as i64 + 1,
            lsn: 1000,
            producer,
            key: writer("key", key)?,
            values,
            evolved: false,
            ahead,
        })
    }

    pub fn len(&self) -> usize {
        self.products.len()
    }

    pub fn is_empty(&self) -> bool {
        self.products.is_empty()
    }

    pub fn get(&self, id: i64) -> Option<&Product> {
        self.products.get(&id)
    }

    pub fn ids(&self) -> Vec<i64> {
        self.products.keys().copied().collect()
    }

    /// How far the shop has written: the next offset of every partition.
    pub fn written(&self) -> Position {
        let ends = self.ahead.iter().enumerate();
        ends.map(|(n, (first, sizes))| (Partition::new(TOPIC, n as i32), Offset(first + sizes.len() as i64))).collect()
    }

    /// Bytes that the fullest partition holds beyond what was read.
    pub fn bytes_ahead(&mut self, read: &Position) -> usize {
        let mut most = 0;
        for (n, (first, sizes)) in self.ahead.iter_mut().enumerate() {
            let done = read.get(&Partition::new(TOPIC, n as i32)).unwrap_or(Offset(0));
            while *first < done.0 && sizes.pop_front().is_some() {
                *first += 1;
            }
            most = most.max(sizes.iter().sum());
        }
        most
    }

    /// The snapshot's event of one product.
    pub fn snapshot(&mut self, id: i64, last: bool) -> Result<(), Error> {
        match self.products.get(&id).cloned() {
            Some(product) => self.write("r", None, Some(&product), if last { "last" } else { "true" }),
            None => Ok(()),
        }
    }

    /// From now on the table has the column eco_label, and events another schema.
    pub fn add_column(&mut self) {
        self.evolved = true;
    }

    /// One change of live traffic: mostly prices, sometimes texts, now and then a product comes or goes.
    pub fn step(&mut self) -> Result<(), Error> {
        let ids = self.products.len();
        let chosen = self.products.keys().nth(self.rng.random_range(0..ids.max(1))).copied();
        match (self.rng.random_range(0..100), chosen) {
            (0..80, Some(id)) => {
                let cents = self.rng.random_range(299..49_999);
                self.change(id, |p, _| p.price_cents = cents)
            }
            (80..90, Some(id)) => self.change(id, |p, rng| catalog::rewrite(rng, p)),
            (95..100, Some(id)) => self.delete(id).map(drop),
            _ => {
                let mut product = catalog::product(&mut self.rng, self.next_id, now_us());
                if self.evolved {
                    product.eco_label = Some(["A", "B", "C"][self.rng.random_range(0..3)]);
                }
                self.insert(product)
            }
        }
    }

    fn insert(&mut self, product: Product) -> Result<(), Error> {
        self.next_id = self.next_id.max(product.id) + 1;
        self.write("c", None, Some(&product), "false")?;
        self.products.insert(product.id, product);
        Ok(())
    }

    fn change(&mut self, id: i64, change: impl FnOnce(&mut Product, &mut StdRng)) -> Result<(), Error> {
        let Some(mut product) = self.products.get(&id).cloned() else { return Ok(()) };
        change(&mut product, &mut self.rng);
        self.write("u", None, Some(&product), "false")?;
        self.products.insert(id, product);
        Ok(())
    }

    /// Changes what is given of a product; `None` if there is no such product.
    pub fn edit(
        &mut self,
        id: i64,
        name: Option<String>,
        description: Option<String>,
        price_cents: Option<i64>,
    ) -> Result<Option<Product>, Error> {
        self.change(id, |p, _| {
            p.name = name.unwrap_or_else(|| p.name.clone());
            p.description = description.unwrap_or_else(|| p.description.clone());
            p.price_cents = price_cents.unwrap_or(p.price_cents);
        })?;
        self.producer.flush()?;
        Ok(self.products.get(&id).cloned())
    }

    /// Deletes a product: Debezium's delete and its tombstone. Says whether there was one.
    pub fn delete(&mut self, id: i64) -> Result<bool, Error> {
        let Some(product) = self.products.remove(&id) else { return Ok(false) };
        self.write("d", Some(&product), None, "false")?;
        self.send(id, None)?;
        self.producer.flush()?;
        Ok(true)
    }

    pub fn flush(&self) -> Result<(), Error> {
        Ok(self.producer.flush()?)
    }

    fn write(
        &mut self,
        op: &str,
        before: Option<&Product>,
        after: Option<&Product>,
        snapshot: &str,
    ) -> Result<(), Error> {
        let Some(id) = before.or(after).map(|p| p.id) else { return Ok(()) };
        self.lsn += 56;
        let (ms, evolved) = (now_us() / 1000, self.evolved);
        let optional = |p: Option<&Product>| match p {
            Some(p) => Value::Union(1, Box::new(row(p, evolved))),
            None => Value::Union(0, Box::new(Value::Null)),
        };
        let text = |t: &str| Value::String(t.into());
        let source = vec![
            ("version", text("3.5.0.Final")),
            ("connector", text("postgresql")),
            ("name", text("shop")),
            ("ts_ms", Value::Long(ms)),
            ("snapshot", text(snapshot)),
            ("db", text("shop")),
            ("schema", text("public")),
            ("table", text("product")),
            ("lsn", Value::Long(self.lsn)),
        ];
        let value = record(vec![
            ("before", optional(before)),
            ("after", optional(after)),
            ("source", record(source)),
            ("op", text(op)),
            ("ts_ms", Value::Long(ms)),
        ]);
        let writer = &self.values[usize::from(evolved)];
        let bytes = message(writer, value)?;
        self.send(id, Some(&bytes))
    }

    fn send(&mut self, id: i64, value: Option<&[u8]>) -> Result<(), Error> {
        let key = message(&self.key, record(vec![("id", Value::Long(id))]))?;
        let mut hasher = DefaultHasher::new();
        id.hash(&mut hasher);
        let partition = (hasher.finish() % PARTITIONS as u64) as i32;
        self.producer.send(TOPIC, partition, Some(&key), value)?;
        self.ahead[partition as usize].1.push_back(key.len() + value.map_or(0, <[u8]>::len));
        Ok(())
    }
}

fn message(writer: &Writer, value: Value) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0];
    bytes.extend(writer.id.to_be_bytes());
    bytes.extend(GenericDatumWriter::builder(&writer.schema).build()?.write_value_to_vec(value)?);
    Ok(bytes)
}

fn record(fields: Vec<(&str, Value)>) -> Value {
    Value::Record(fields.into_iter().map(|(name, value)| (name.to_string(), value)).collect())
}

fn row(p: &Product, evolved: bool) -> Value {
    let text = |t: &str| Value::String(t.into());
    let some = |v: Value| Value::Union(1, Box::new(v));
    let mut fields = vec![
        ("id", Value::Long(p.id)),
        ("sku", text(&p.sku)),
        ("name", text(&p.name)),
        ("description", some(text(&p.description))),
        ("brand", some(text(&p.brand))),
        ("category", text(&p.category)),
        ("list_price", Value::Decimal(Decimal::from(p.price_cents.to_be_bytes().to_vec()))),
        ("currency", text("EUR")),
        ("stock", Value::Int(p.stock)),
        ("status", text(p.status)),
        ("is_active", Value::Boolean(true)),
        ("created_at", Value::Long(p.created_us)),
        ("updated_at", Value::Union(0, Box::new(Value::Null))),
    ];
    if evolved {
        fields.push(("eco_label", p.eco_label.map_or(Value::Union(0, Box::new(Value::Null)), |l| some(text(l)))));
    }
    record(fields)
}

/// Debezium's envelope around the contract's row.
fn envelope(contract: &serde_json::Value, evolved: bool) -> serde_json::Value {
    let mut row = contract.clone();
    if evolved && let Some(fields) = row["fields"].as_array_mut() {
        fields.push(json!({"name": "eco_label", "type": ["null", "string"], "default": null}));
    }
    json!({
        "type": "record", "name": "Envelope", "namespace": TOPIC, "connect.name": format!("{TOPIC}.Envelope"), "connect.version": 2,
        "fields": [
            {"name": "before", "type": ["null", row], "default": null},
            {"name": "after", "type": ["null", "Value"], "default": null},
            {"name": "source", "type": {
                "type": "record", "name": "Source", "namespace": "io.debezium.connector.postgresql",
                "connect.name": "io.debezium.connector.postgresql.Source",
                "fields": [
                    {"name": "version", "type": "string"}, {"name": "connector", "type": "string"}, {"name": "name", "type": "string"},
                    {"name": "ts_ms", "type": "long"}, {"name": "snapshot", "type": "string"}, {"name": "db", "type": "string"},
                    {"name": "schema", "type": "string"}, {"name": "table", "type": "string"}, {"name": "lsn", "type": "long"}
                ]}},
            {"name": "op", "type": "string"},
            {"name": "ts_ms", "type": "long"}
        ]
    })
}

pub(super) fn now_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as i64)
}
