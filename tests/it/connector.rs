//! A connector as far as tests need one: it writes real Avro bytes in Confluent's wire format to a real socket, and can lie as it likes.

use apache_avro::Schema;
use apache_avro::types::Value as Avro;
use apache_avro::writer::datum::GenericDatumWriter;
use freshet::source::embedded::{Broker, Producer, Registry};
use serde_json::{Value, json};

pub const TOPIC: &str = "shop.public.item";
pub const PARTITIONS: i32 = 2;

/// A schema that the registry knows.
pub struct Writer {
    pub id: u32,
    schema: Schema,
}

impl Writer {
    /// Registers a schema. Connectors of one table register them as they need them.
    pub fn new(registry: &Registry, subject: &str, schema: &Value) -> Writer {
        let text = schema.to_string();
        Writer { id: registry.register(subject, &text), schema: Schema::parse_str(&text).unwrap() }
    }

    /// Magic byte, schema id, body.
    pub fn message(&self, value: Value) -> Vec<u8> {
        let value = Avro::try_from(value).unwrap().resolve(&self.schema).unwrap();
        let body = GenericDatumWriter::builder(&self.schema).build().unwrap().write_value_to_vec(value).unwrap();
        [&[0], &self.id.to_be_bytes()[..], &body].concat()
    }
}

/// The schema of Debezium's envelope around rows of these fields.
pub fn envelope(fields: &Value) -> Value {
    json!({
        "type": "record", "name": "Envelope", "namespace": TOPIC, "connect.name": format!("{TOPIC}.Envelope"),
        "fields": [
            {"name": "before", "type": ["null", {"type": "record", "name": "Value", "fields": fields}], "default": null},
            {"name": "after", "type": ["null", "Value"], "default": null},
            {"name": "source", "type": {
                "type": "record", "name": "Source", "namespace": "io.debezium.connector.postgresql",
                "fields": [
                    {"name": "ts_ms", "type": "long"},
                    {"name": "snapshot", "type": ["string", "null"], "default": "false"},
                    {"name": "table", "type": "string"},
                    {"name": "lsn", "type": ["null", "long"], "default": null}
                ]}},
            {"name": "op", "type": "string"},
            {"name": "ts_ms", "type": ["null", "long"], "default": null}
        ]
    })
}

/// The schema of a key.
pub fn key_schema() -> Value {
    json!({"type": "record", "name": "Key", "namespace": TOPIC, "fields": [{"name": "id", "type": "long"}]})
}

pub struct Connector {
    producer: Producer,
    key: Writer,
    /// The next offset of each partition.
    next: Vec<i64>,
    log: Vec<Sent>,
}

#[derive(Clone)]
struct Sent {
    partition: i32,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
}

impl Connector {
    pub fn new(broker: &Broker, registry: &Registry) -> Connector {
        Connector {
            producer: Producer::new(&broker.bootstrap_servers()).unwrap(),
            key: Writer::new(registry, &format!("{TOPIC}-key"), &key_schema()),
            next: vec![0; PARTITIONS as usize],
            log: Vec::new(),
        }
    }

    pub fn key(&self, id: i64) -> Vec<u8> {
        self.key.message(json!({"id": id}))
    }

    /// Sends a value under a row's key, to the partition of that key.
    pub fn send(&mut self, id: i64, value: Option<Vec<u8>>) {
        let key = self.key(id);
        self.raw(id as i32 % PARTITIONS, Some(key), value);
    }

    /// Sends whatever it is given; says its offset.
    pub fn raw(&mut self, partition: i32, key: Option<Vec<u8>>, value: Option<Vec<u8>>) -> i64 {
        self.producer.send(TOPIC, partition, key.as_deref(), value.as_deref()).unwrap();
        self.log.push(Sent { partition, key, value });
        let next = &mut self.next[partition as usize];
        *next += 1;
        *next - 1
    }

    /// Sends the last `count` messages once more, as a connector does that was killed before it had stored its offsets.
    pub fn resend(&mut self, count: usize) {
        let last = self.log[self.log.len() - count..].to_vec();
        for sent in last {
            self.raw(sent.partition, sent.key, sent.value);
        }
    }

    pub fn sent(&self) -> usize {
        self.log.len()
    }

    /// Waits until the broker has it all.
    pub fn flush(&self) {
        self.producer.flush().unwrap();
    }

    /// `{partition: next offset}` after everything that was sent.
    pub fn end(&self) -> Vec<(i32, i64)> {
        (0..PARTITIONS).zip(self.next.iter().copied()).filter(|(_, next)| *next > 0).collect()
    }
}

/// What an event's `source` says.
pub fn origin(snapshot: &str) -> Value {
    json!({"ts_ms": 1_700_000_000_000_i64, "snapshot": snapshot, "table": "item", "lsn": 7})
}

/// An event's envelope.
pub fn event(op: &str, before: Value, after: Value) -> Value {
    let snapshot = if op == "r" { "true" } else { "false" };
    json!({"before": before, "after": after, "source": origin(snapshot), "op": op, "ts_ms": 1_700_000_000_001_i64})
}
