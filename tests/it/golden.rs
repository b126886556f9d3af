//! The shipped dataflow, step by step: events in, changes of the view out, both as a person reads them in `tests/golden`.
//!
//! `view` has what a step changes: a new row whole, of a known one only the columns that differ, null for one that is gone. The last step
//! is followed by a replay of everything, which changes nothing.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use apache_avro::types::Value as Avro;
use apache_avro::writer::datum::GenericDatumWriter;
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::json::writer::{LineDelimited, WriterBuilder};
use arrow_row::{RowConverter, SortField};
use freshet::config::{self, Config};
use freshet::dataflow::{Engine, Row};
use freshet::decode::{Decoded, Decoder, FixedSchemas};
use freshet::engine;
use freshet::time::Epoch;
use futures::executor::block_on;
use serde_json::{Map, Value, json};

use super::connector::envelope;
use super::recording::{Event, batch};

type Rows = BTreeMap<String, Map<String, Value>>;

fn shipped() -> Config {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("dataflows/product");
    config::load_with(&folder, |name| (name == "HOME").then(|| "/".into())).unwrap()
}

/// The topics as a connector writes them: of each source, its schemas' ids and the next offset.
struct Topics {
    config: Config,
    contracts: Vec<Value>,
    decoders: Vec<Decoder>,
    next: Vec<i64>,
}

impl Topics {
    fn new(config: Config, row_types: &[Arc<freshet::decode::RowType>]) -> Topics {
        let contracts: Vec<Value> = config.sources.iter().map(|s| serde_json::from_str(&s.contract).unwrap()).collect();
        let mut schemas: HashMap<u32, Arc<str>> = HashMap::new();
        for (n, contract) in contracts.iter().enumerate() {
            schemas.insert(key_id(n), key_schema(contract).to_string().into());
            schemas.insert(value_id(n), envelope(&contract["fields"]).to_string().into());
        }
        let schemas = Arc::new(FixedSchemas(schemas));
        let decoder = |n: usize| Decoder::new(n, &config.sources[n], row_types[n].clone(), schemas.clone()).unwrap();
        let decoders = (0..config.sources.len()).map(decoder).collect();
        Topics { next: vec![0; config.sources.len()], config, contracts, decoders }
    }

    /// An event as the dataflow gets it.
    fn decode(&mut self, event: &Value) -> Decoded {
        let table = event["table"].as_str().unwrap();
        let n = self.config.sources.iter().position(|s| *s.table == *table).unwrap();
        let row = if event["after"].is_null() { &event["before"] } else { &event["after"] };
        let key = row["id"].as_i64().map(|id| framed(key_id(n), &key_schema(&self.contracts[n]), json!({"id": id})));
        let value = (event["op"] != "tombstone").then(|| {
            let message = json!({
                "before": event["before"], "after": event["after"], "op": event["op"], "ts_ms": 1,
                "source": {"ts_ms": 1, "snapshot": "false", "table": table, "lsn": 1},
            });
            framed(value_id(n), &envelope(&self.contracts[n]["fields"]), message)
        });
        let event = Event { offset: self.next[n], timestamp_ms: 1, key, value };
        self.next[n] += 1;
        let decoded = block_on(self.decoders[n].decode(&batch(&self.config.sources[n].topic, &[event]))).unwrap();
        assert_eq!(decoded.rejects.first().map(|r| &r.reason), None);
        decoded
    }
}

fn key_id(source: usize) -> u32 {
    2 * source as u32 + 1
}

fn value_id(source: usize) -> u32 {
    2 * source as u32 + 2
}

fn key_schema(contract: &Value) -> Value {
    json!({"type": "record", "name": "Key", "fields": [contract["fields"][0]]})
}

/// A message in Confluent's wire format.
fn framed(id: u32, schema: &Value, value: Value) -> Vec<u8> {
    let parsed = apache_avro::Schema::parse_str(&schema.to_string()).unwrap();
    let writer = GenericDatumWriter::builder(&parsed).build().unwrap();
    let body = writer.write_value_to_vec(avro(schema, schema, &value)).unwrap();
    [&[0], &id.to_be_bytes()[..], &body].concat()
}

/// A value as its schema has it: times and decimals are written as text, as people do.
fn avro(root: &Value, schema: &Value, value: &Value) -> Avro {
    if let Some(branches) = schema.as_array() {
        let index = usize::from(!value.is_null());
        return Avro::Union(index as u32, Box::new(avro(root, &branches[index], value)));
    }
    match (schema["connect.name"].as_str(), schema.as_str().or(schema["type"].as_str()).unwrap()) {
        (Some("io.debezium.time.MicroTimestamp"), _) => {
            let time = chrono::DateTime::parse_from_rfc3339(value.as_str().unwrap()).unwrap();
            Avro::Long(time.timestamp_micros())
        }
        (Some("org.apache.kafka.connect.data.Decimal"), _) => {
            let unscaled: i64 = value.as_str().unwrap().replace('.', "").parse().unwrap();
            Avro::Decimal(apache_avro::Decimal::from(unscaled.to_be_bytes()))
        }
        (_, "null") => Avro::Null,
        (_, "long") => Avro::Long(value.as_i64().unwrap()),
        (_, "int") => Avro::Int(value.as_i64().unwrap() as i32),
        (_, "boolean") => Avro::Boolean(value.as_bool().unwrap()),
        (_, "string") => Avro::String(value.as_str().unwrap().into()),
        (_, "record") => {
            let field = |f: &Value| {
                let name = f["name"].as_str().unwrap();
                (name.to_string(), avro(root, &f["type"], &value[name]))
            };
            Avro::Record(schema["fields"].as_array().unwrap().iter().map(field).collect())
        }
        // The row, by the name that `before` gave it.
        (_, "Value") => avro(root, &root["fields"][0]["type"][1], value),
        (_, other) => panic!("no table has a column of type {other}"),
    }
}

/// Rows of the view as JSON, by the text of their key.
fn printed(schema: &SchemaRef, rows: &[Row]) -> Rows {
    let fields = schema.fields().iter().map(|f| SortField::new(f.data_type().clone())).collect();
    let converter = RowConverter::new(fields).unwrap();
    let parser = converter.parser();
    let columns = converter.convert_rows(rows.iter().map(|row| parser.parse(row))).unwrap();
    let mut text = Vec::new();
    let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(&mut text);
    writer.write(&RecordBatch::try_new(schema.clone(), columns).unwrap()).unwrap();
    writer.finish().unwrap();
    let rows = serde_json::Deserializer::from_slice(&text).into_iter::<Map<String, Value>>();
    rows.map(|row| row.map(|row| (row["id"].to_string(), row)).unwrap()).collect()
}

#[test]
fn the_product_dataflow_turns_these_events_into_these_changes() {
    let steps =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/product.json")).unwrap();
    let steps: Vec<Value> = serde_json::from_str(&steps).unwrap();
    for workers in [1, 2] {
        let config = shipped();
        let (plan, row_types) = engine::plan(&config).unwrap();
        let schema = plan.view_schema().clone();
        let handle = Engine::start(plan, row_types.clone(), workers).unwrap();
        let mut topics = Topics::new(config, &row_types);
        let (mut keys, mut view, mut all) = (HashMap::new(), Rows::new(), Vec::new());
        for (n, step) in steps.iter().enumerate() {
            let decoded: Vec<Decoded> = step["events"].as_array().unwrap().iter().map(|e| topics.decode(e)).collect();
            all.extend(decoded.clone());
            handle.send(Epoch(n as u64 + 1), decoded).unwrap();
            let output = handle.recv(Duration::from_secs(60)).unwrap().expect("an epoch ends");
            assert!(output.failed_rows.is_empty(), "{}: {:?}", step["step"], output.failed_rows);
            let mut changed: BTreeMap<String, Option<Map<String, Value>>> = BTreeMap::new();
            for change in output.changes {
                match change.row {
                    Some(row) => {
                        let (key, row) = printed(&schema, &[row]).pop_first().unwrap();
                        keys.insert(change.key, key.clone());
                        changed.insert(key, Some(row));
                    }
                    None => drop(changed.insert(keys[&change.key].clone(), None)),
                }
            }
            let mut expected = BTreeMap::new();
            for (key, of_row) in step["view"].as_object().unwrap() {
                let row = of_row.as_object().map(|columns| {
                    let mut row = view.get(key).cloned().unwrap_or_default();
                    row.extend(columns.clone());
                    row
                });
                match &row {
                    Some(row) => drop(view.insert(key.clone(), row.clone())),
                    None => drop(view.remove(key)),
                }
                expected.insert(key.clone(), row);
            }
            assert_eq!(changed, expected, "{} ({workers} workers)", step["step"]);
            assert_eq!(output.view_rows, view.len(), "{}", step["step"]);
        }
        handle.send(Epoch(steps.len() as u64 + 1), all).unwrap();
        let replayed = handle.recv(Duration::from_secs(60)).unwrap().expect("an epoch ends");
        assert_eq!((replayed.changes.len(), replayed.view_rows), (0, view.len()));
    }
}
