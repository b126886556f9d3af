//! The changelog writes what happens to the shop's tables as Debezium would: keyed envelopes in Avro, a delete followed by its tombstone.
//!
//! The invariant: an event is handed to the broker before its call returns; events of one key keep their order, since a key has one partition.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{SystemTime, UNIX_EPOCH};

use apache_avro::Schema;
use apache_avro::types::Value;
use apache_avro::writer::datum::GenericDatumWriter;
use serde_json::json;

use super::rows::{Row, Table, optional, text};
use crate::source::embedded::{Producer, Subjects};
use crate::time::{Offset, Partition, Position};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the shop's broker: {0}")]
    Broker(#[from] rdkafka::error::KafkaError),
    #[error("the shop's registry: {0}")]
    Registry(String),
    #[error("the shop's event: {0}")]
    Avro(Box<apache_avro::Error>),
}

impl From<apache_avro::Error> for Error {
    fn from(e: apache_avro::Error) -> Error {
        Error::Avro(Box::new(e))
    }
}

/// Whether a row was there when the connector began, or is a change that it has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    InSnapshot,
    LastOfSnapshot,
    Live,
}

pub(super) struct Changelog {
    producer: Producer,
    /// In the tables' order.
    channels: Vec<Channel>,
    lsn: i64,
    /// Whether the table of products has gained its column.
    evolved: bool,
}

/// A table's topic.
struct Channel {
    key: Writer,
    value: Writer,
    /// The value's schema once the table has gained a column.
    evolved: Option<Writer>,
    /// Of each partition, the offset of the first message that may not have been read yet, and the bytes of all from there on.
    ahead: Vec<(i64, VecDeque<usize>)>,
}

struct Writer {
    id: u32,
    schema: Schema,
}

impl Changelog {
    pub fn new(producer: Producer, registry: &dyn Subjects) -> Result<Changelog, Error> {
        let channels = Table::ALL.into_iter().map(|table| Channel::new(table, registry));
        let channels = channels.collect::<Result<_, _>>()?;
        Ok(Changelog { producer, channels, lsn: 1000, evolved: false })
    }

    /// From now on products have the column eco_label, and their events another schema.
    pub fn evolve(&mut self) {
        self.evolved = true;
    }

    pub fn is_evolved(&self) -> bool {
        self.evolved
    }

    pub fn inserted<R: Row>(&mut self, row: &R, seen: Seen) -> Result<(), Error> {
        self.event::<R>(if seen == Seen::Live { "c" } else { "r" }, None, Some(row), seen)
    }

    /// PostgreSQL sends no old row, as tables are by default.
    pub fn updated<R: Row>(&mut self, row: &R) -> Result<(), Error> {
        self.event::<R>("u", None, Some(row), Seen::Live)
    }

    pub fn deleted<R: Row>(&mut self, row: &R) -> Result<(), Error> {
        self.event::<R>("d", Some(row), None, Seen::Live)?;
        self.send(R::TABLE, row.id(), None)
    }

    pub fn flush(&self) -> Result<(), Error> {
        Ok(self.producer.flush()?)
    }

    /// How far has been written: the next offset of every partition.
    pub fn written(&self) -> Position {
        self.partitions().map(|(partition, (first, sizes))| (partition, Offset(first + sizes.len() as i64))).collect()
    }

    /// Bytes that the fullest partition holds beyond what was read.
    pub fn bytes_ahead(&mut self, read: &Position) -> usize {
        let mut most = 0;
        for (table, channel) in Table::ALL.into_iter().zip(&mut self.channels) {
            for (n, (first, sizes)) in channel.ahead.iter_mut().enumerate() {
                let done = read.get(&Partition::new(table.topic(), n as i32)).unwrap_or_default();
                while *first < done.0 && sizes.pop_front().is_some() {
                    *first += 1;
                }
                most = most.max(sizes.iter().sum());
            }
        }
        most
    }

    fn partitions(&self) -> impl Iterator<Item = (Partition, &(i64, VecDeque<usize>))> {
        Table::ALL.into_iter().zip(&self.channels).flat_map(|(table, channel)| {
            let of_topic = channel.ahead.iter().enumerate();
            of_topic.map(move |(n, ahead)| (Partition::new(table.topic(), n as i32), ahead))
        })
    }

    fn event<R: Row>(&mut self, op: &str, before: Option<&R>, after: Option<&R>, seen: Seen) -> Result<(), Error> {
        let Some(id) = before.or(after).map(Row::id) else { return Ok(()) };
        let channel = &self.channels[R::TABLE as usize];
        let (writer, evolved) = match &channel.evolved {
            Some(writer) if self.evolved => (writer, true),
            _ => (&channel.value, false),
        };
        let last = self.lsn;
        self.lsn += 56;
        let us = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as i64);
        let long = |value| optional(Some(Value::Long(value)));
        let snapshot = match seen {
            Seen::InSnapshot => "true",
            Seen::LastOfSnapshot => "last",
            Seen::Live => "false",
        };
        let source = vec![
            ("version", text("3.5.0.Final")),
            ("connector", text("postgresql")),
            ("name", text("shop")),
            ("ts_ms", Value::Long(us / 1000)),
            ("snapshot", Value::Union(0, Box::new(text(snapshot)))),
            ("db", text("shop")),
            ("sequence", optional(Some(text(&format!("[\"{last}\",\"{}\"]", self.lsn))))),
            ("ts_us", long(us)),
            ("ts_ns", long(us * 1000)),
            ("schema", text("public")),
            ("table", text(R::TABLE.name())),
            ("txId", long(self.lsn / 56)),
            ("lsn", long(self.lsn)),
            ("xmin", optional(None)),
            ("origin", optional(None)),
            ("origin_lsn", optional(None)),
        ];
        let row = |row: Option<&R>| optional(row.map(|row| record(row.fields(evolved))));
        let value = record(vec![
            ("before", row(before)),
            ("after", row(after)),
            ("source", record(source)),
            ("transaction", optional(None)),
            ("op", text(op)),
            ("ts_ms", long(us / 1000)),
            ("ts_us", long(us)),
            ("ts_ns", long(us * 1000)),
        ]);
        let value = writer.message(value)?;
        self.send(R::TABLE, id, Some(&value))
    }

    fn send(&mut self, table: Table, id: i64, value: Option<&[u8]>) -> Result<(), Error> {
        let channel = &mut self.channels[table as usize];
        let key = channel.key.message(record(vec![("id", Value::Long(id))]))?;
        let mut hasher = DefaultHasher::new();
        id.hash(&mut hasher);
        let partition = (hasher.finish() % table.partitions() as u64) as i32;
        self.producer.send(table.topic(), partition, Some(&key), value)?;
        channel.ahead[partition as usize].1.push_back(key.len() + value.map_or(0, <[u8]>::len));
        Ok(())
    }
}

impl Channel {
    fn new(table: Table, registry: &dyn Subjects) -> Result<Channel, Error> {
        let topic = table.topic();
        let writer = |subject: &str, schema: serde_json::Value| -> Result<Writer, Error> {
            let text = schema.to_string();
            let id = registry.id(&format!("{topic}-{subject}"), &text).map_err(Error::Registry)?;
            Ok(Writer { id, schema: Schema::parse_str(&text)? })
        };
        let row: serde_json::Value = serde_json::from_str(table.contract()).expect("the shop's contracts are JSON");
        let value = writer("value", envelope(topic, row.clone()))?;
        let evolved = match table {
            Table::Product => {
                let mut row = row;
                let column = json!({"name": "eco_label", "type": ["null", "string"], "default": null});
                row["fields"].as_array_mut().expect("a contract is a record").push(column);
                Some(writer("value", envelope(topic, row))?)
            }
            _ => None,
        };
        let key = json!({
            "type": "record", "name": "Key", "namespace": topic, "connect.name": format!("{topic}.Key"),
            "fields": [{"name": "id", "type": "long"}],
        });
        let ahead = (0..table.partitions()).map(|_| (0, VecDeque::new())).collect();
        Ok(Channel { key: writer("key", key)?, value, evolved, ahead })
    }
}

impl Writer {
    /// A value in Confluent's wire format.
    fn message(&self, value: Value) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0];
        bytes.extend(self.id.to_be_bytes());
        bytes.extend(GenericDatumWriter::builder(&self.schema).build()?.write_value_to_vec(value)?);
        Ok(bytes)
    }
}

fn record(fields: Vec<(&str, Value)>) -> Value {
    Value::Record(fields.into_iter().map(|(name, value)| (name.to_string(), value)).collect())
}

/// The envelope that Debezium 3.5's PostgreSQL connector puts around a row.
fn envelope(topic: &str, row: serde_json::Value) -> serde_json::Value {
    let required = |name: &str, of: &str| json!({"name": name, "type": of});
    let optional = |name: &str, of: serde_json::Value| json!({"name": name, "type": ["null", of], "default": null});
    let snapshot = json!({
        "type": "string", "connect.name": "io.debezium.data.Enum", "connect.version": 1, "connect.default": "false",
        "connect.parameters": {"allowed": "true,first,first_in_data_collection,last_in_data_collection,last,false,incremental"},
    });
    let source = json!({
        "type": "record", "name": "Source", "namespace": "io.debezium.connector.postgresql",
        "connect.name": "io.debezium.connector.postgresql.Source", "connect.version": 1,
        "fields": [
            required("version", "string"), required("connector", "string"), required("name", "string"),
            required("ts_ms", "long"), {"name": "snapshot", "type": [snapshot, "null"], "default": "false"},
            required("db", "string"), optional("sequence", "string".into()), optional("ts_us", "long".into()),
            optional("ts_ns", "long".into()), required("schema", "string"), required("table", "string"),
            optional("txId", "long".into()), optional("lsn", "long".into()), optional("xmin", "long".into()),
            optional("origin", "string".into()), optional("origin_lsn", "long".into()),
        ],
    });
    let transaction = json!({
        "type": "record", "name": "block", "namespace": "event", "connect.name": "event.block", "connect.version": 1,
        "fields": [required("id", "string"), required("total_order", "long"), required("data_collection_order", "long")],
    });
    json!({
        "type": "record", "name": "Envelope", "namespace": topic,
        "connect.name": format!("{topic}.Envelope"), "connect.version": 2,
        "fields": [
            optional("before", row), optional("after", "Value".into()), {"name": "source", "type": source},
            optional("transaction", transaction), required("op", "string"), optional("ts_ms", "long".into()),
            optional("ts_us", "long".into()), optional("ts_ns", "long".into()),
        ],
    })
}
