//! The recording through the embedded broker and registry, over their sockets: the tables come out of it, value by value and type by type,
//! whatever the split into batches and epochs, and however often it is read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::cast::AsArray;
use arrow::array::{Array, ArrayRef};
use arrow::datatypes::{DataType, Field, Float32Type, TimeUnit};
use arrow_row::{RowConverter, SortField};
use freshet::config::Config;
use freshet::dataflow::{Engine, Plan, Row};
use freshet::decode::{Decoded, Decoder, Op, RegistryClient, RowType};
use freshet::engine;
use freshet::source::embedded::{Broker, Producer, Registry};
use freshet::source::kafka::KafkaSource;
use freshet::source::{MessageBatch, Source};
use freshet::time::{Epoch, Position};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::folder::Folder;
use super::printed::{ours, six_digits, theirs};
use super::recording::{Event, Recording, Topic, batch, recording};

/// The mock broker keeps 5 MiB; no more than this is sent before it is read.
const AHEAD_MAX_BYTES: usize = 1 << 20;

type View = BTreeMap<Box<[u8]>, Row>;

#[tokio::test(flavor = "multi_thread")]
async fn the_tables_come_out_value_by_value_whatever_the_split() {
    let started = std::time::Instant::now();
    let recording = recording();
    let topics = recording.topics();
    let names: Vec<(&str, i32)> = topics.iter().map(|t| (&*t.source.topic, 1)).collect();
    let broker = Broker::start(&names).unwrap();
    let producer = Producer::new(&broker.bootstrap_servers()).unwrap();
    let registry = Registry::start().await.unwrap();
    for (id, schema) in recording.schemas() {
        registry.register_as(id, "recorded", &schema.to_string());
    }
    let mut store: Option<Arc<RegistryClient>> = None;
    let mut compared = BTreeSet::new();
    for topic in &topics {
        // A key of several columns becomes one number, for the view has one.
        let key = match &topic.source.key[..] {
            [one] => (*one).to_string(),
            several => several.join(" * 100000 + "),
        };
        let sql = format!("select {key} as the_key, '' as text, p.* from {{{{ source('shop', 'item') }}}} p");
        let folder = Folder::new(&topic.source, &sql, "the_key", "text");
        let config = folder.config(&broker.bootstrap_servers(), &registry.url());
        let store = store.get_or_insert_with(|| Arc::new(RegistryClient::new(&config.registry).unwrap())).clone();
        let events = over_the_socket(&config, &producer, &topic.source.topic, recording.events(&topic.source.topic));
        let (plan, row_types) = engine::plan(&config).unwrap();
        assert_types(topic, &row_types[0]);

        let mut whole: Option<(View, Vec<Decoded>)> = None;
        for (seed, sizes, epochs) in [(0, 100_000..100_001, 1..2), (1, 1..2, 1..2), (2, 1..90, 1..4), (3, 1..9, 1..30)]
        {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut rest = &events[..];
            let mut decoder = Decoder::new(0, &config.sources[0], row_types[0].clone(), store.clone()).unwrap();
            let mut decoded = Vec::new();
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rng.random_range(sizes.clone()).min(rest.len()));
                decoded.push(decoder.decode(&batch(&topic.source.topic, now)).await.unwrap());
                rest = later;
            }
            let rejects: Vec<_> = decoded.iter().flat_map(|d| &d.rejects).map(|r| &r.reason).collect();
            assert!(rejects.is_empty(), "{}: {rejects:?}", topic.source.topic);
            let view = maintained(&plan, &row_types, &decoded, &mut rng, epochs, 1 + seed as usize % 2);
            match &whole {
                None => whole = Some((view, decoded)),
                Some((first, _)) => assert_eq!(&view, first, "{}, split by seed {seed}", topic.source.topic),
            }
        }
        let (view, decoded) = whole.unwrap();
        let last = last_writers(recording, topic, &events, &decoded, &row_types[0]);
        compare(recording, topic, &plan, &view, &last, &mut compared);
    }
    // Every column of every table was compared with a value that is one, and the registry was asked for each schema, at most once a second.
    for topic in &topics {
        for (column, _) in types(topic.table) {
            assert!(compared.contains(&(topic.table, column.to_string())), "{} {column}", topic.table);
        }
    }
    let asked: Vec<u64> = recording.schemas().map(|(id, _)| registry.requests(id)).collect();
    let most = 1 + started.elapsed().as_secs();
    assert!(asked.iter().all(|n| *n <= most) && asked.iter().filter(|n| **n > 0).count() >= 25, "{asked:?}");
}

/// Sends a topic's events through the broker and reads them back, as the real source hands them on.
fn over_the_socket(config: &Config, producer: &Producer, topic: &str, events: &[Event]) -> Vec<Event> {
    let mut source = KafkaSource::new(&config.kafka, &[topic.into()]).unwrap();
    source.seek(&Position::default()).unwrap();
    let mut arrived: Vec<Event> = Vec::new();
    let (mut sent, mut bytes) = (0, 0);
    for event in events {
        producer.send(topic, 0, event.key.as_deref(), event.value.as_deref()).unwrap();
        sent += 1;
        bytes += event.key.as_ref().map_or(0, Vec::len) + event.value.as_ref().map_or(0, Vec::len);
        if bytes > AHEAD_MAX_BYTES || sent == events.len() {
            producer.flush().unwrap();
            bytes = 0;
            while arrived.len() < sent {
                if let Some(batch) = source.poll(Duration::from_millis(100)).unwrap() {
                    arrived.extend(batch.messages.iter().map(|m| taken(&batch, m)));
                }
            }
        }
    }
    arrived
}

fn taken(batch: &MessageBatch, message: &freshet::source::Message) -> Event {
    Event {
        offset: message.offset.0,
        timestamp_ms: message.timestamp_ms,
        key: batch.key(message).map(<[u8]>::to_vec),
        value: batch.value(message).map(<[u8]>::to_vec),
    }
}

/// The view after all batches, in epochs of several batches each; everything is fed twice, and the second time emits nothing.
fn maintained(
    plan: &Plan,
    row_types: &[Arc<RowType>],
    decoded: &[Decoded],
    rng: &mut StdRng,
    batches: std::ops::Range<usize>,
    workers: usize,
) -> View {
    let handle = Engine::start(plan.clone(), row_types.to_vec(), workers).unwrap();
    let mut view = View::new();
    let mut epoch = 0;
    for round in 0..2 {
        let mut rest = decoded;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rng.random_range(batches.clone()).min(rest.len()));
            rest = later;
            epoch += 1;
            handle.send(Epoch(epoch), now.to_vec()).unwrap();
            let output = handle.recv(Duration::from_secs(60)).unwrap().expect("an epoch ends");
            assert!(output.failed_rows.is_empty(), "{:?}", output.failed_rows);
            assert!(round == 0 || output.changes.is_empty(), "what was read before is emitted again");
            for change in output.changes {
                match change.row {
                    Some(row) => {
                        assert_ne!(view.insert(change.key, row.clone()), Some(row), "a change that changes nothing")
                    }
                    None => assert!(view.remove(&change.key).is_some(), "a delete of what was not there"),
                }
            }
            assert_eq!(output.view_rows, view.len());
        }
    }
    view
}

/// For each key (as text), the columns that the writer of its last event had.
fn last_writers(
    recording: &Recording,
    topic: &Topic,
    events: &[Event],
    decoded: &[Decoded],
    row_type: &RowType,
) -> BTreeMap<Vec<String>, Vec<String>> {
    let mut last = BTreeMap::new();
    for change in decoded.iter().flat_map(|d| &d.changes) {
        if let Op::Upsert { row, .. } = &change.op {
            let columns = row_type.rows_to_columns([&**row]).unwrap();
            let key = row_type.key_columns().iter().map(|k| ours(&columns[*k], 0).unwrap()).collect();
            let event = &events[change.offset.0 as usize];
            assert_eq!(event.offset, change.offset.0);
            last.insert(key, recording.written_columns(topic, event).unwrap());
        }
    }
    last
}

fn compare(
    recording: &Recording,
    topic: &Topic,
    plan: &Plan,
    view: &View,
    last: &BTreeMap<Vec<String>, Vec<String>>,
    compared: &mut BTreeSet<(&'static str, String)>,
) {
    let name = &topic.source.topic;
    let schema = plan.view_schema();
    let rows = RowConverter::new(schema.fields().iter().map(|f| SortField::new(f.data_type().clone())).collect());
    let rows = rows.unwrap();
    let parser = rows.parser();
    let columns = rows.convert_rows(view.values().map(|r| parser.parse(r))).unwrap();
    let column = |name: &str| &columns[schema.index_of(name).unwrap()];
    let mine: BTreeMap<Vec<String>, usize> =
        (0..view.len()).map(|n| (topic.source.key.iter().map(|k| ours(column(k), n).unwrap()).collect(), n)).collect();
    let table = recording.table(topic.table);
    assert_eq!(mine.len(), table.len(), "{name}");
    for row in table {
        let key: Vec<String> = topic.source.key.iter().map(|k| row[*k].as_str().unwrap().to_string()).collect();
        let n = *mine.get(&key).unwrap_or_else(|| panic!("{name} lacks {key:?}"));
        let written = &last[&key];
        for field in topic.source.contract["fields"].as_array().unwrap() {
            let label = field["name"].as_str().unwrap();
            let found = match (topic.table, label) {
                ("mshop.mshop.product", "f") => short_float(column(label), n),
                _ => ours(column(label), n),
            };
            let printed = row[label].as_str();
            let expected = match written.iter().any(|c| c == label) {
                true => printed.and_then(|text| theirs(topic.table, label, text)),
                // The row was not touched since the column came: no event has it, and the contract's default stands for it.
                false => match &field["default"] {
                    serde_json::Value::Null => None,
                    serde_json::Value::String(text) => Some(text.clone()),
                    other => Some(other.to_string()),
                },
            };
            assert_eq!(found, expected, "{name} {key:?} {label}, which the database prints as {printed:?}");
            if found.is_some() && written.iter().any(|c| c == label) {
                compared.insert((topic.table, label.to_string()));
            }
        }
    }
}

fn short_float(column: &ArrayRef, n: usize) -> Option<String> {
    (!column.is_null(n)).then(|| six_digits(column.as_primitive::<Float32Type>().value(n)))
}

fn assert_types(topic: &Topic, row_type: &RowType) {
    let found: Vec<(&str, DataType)> =
        row_type.schema().fields().iter().map(|f| (&**f.name(), f.data_type().clone())).collect();
    assert_eq!(found, types(topic.table), "{}", topic.source.topic);
}

/// What each column of the databases' tables is in Arrow.
fn types(table: &str) -> Vec<(&'static str, DataType)> {
    use DataType::{Binary, Boolean, Date32, Decimal128, Decimal256, Float32, Float64, Int32, Int64, Utf8};
    let us = DataType::Timestamp(TimeUnit::Microsecond, None);
    let ms = DataType::Timestamp(TimeUnit::Millisecond, None);
    let utc = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let (time, elapsed) = (DataType::Time64(TimeUnit::Microsecond), DataType::Duration(TimeUnit::Microsecond));
    let list = |item| DataType::List(Arc::new(Field::new("item", item, true)));
    match table {
        "shop.production.category" => vec![("category_id", Int32), ("name", Utf8), ("parent_id", Int32)],
        "shop.production.product_category" => {
            vec![("product_id", Int32), ("category_id", Int32), ("position", Int32)]
        }
        "shop.production.review" => {
            vec![("review_id", Int64), ("product_id", Int32), ("rating", Int32), ("body", Utf8), ("at", utc)]
        }
        "shop.production.scratch" => vec![("id", Int32), ("note", Utf8)],
        "shop.production.product" => vec![
            ("product_id", Int32),
            ("name", Utf8),
            ("sku", Utf8),
            ("description", Utf8),
            ("list_price", Decimal128(19, 4)),
            ("standard_cost", Decimal128(38, 10)),
            ("any_number", Utf8),
            ("weight", Float32),
            ("height", Float64),
            ("is_active", Boolean),
            ("size", Utf8),
            ("stock", Int32),
            ("sold", Int64),
            ("sell_start", utc.clone()),
            ("sell_end", utc),
            ("made_on", Date32),
            ("expires", Date32),
            ("updated_at", us),
            ("updated_ms", ms),
            ("opens", time.clone()),
            ("opens_tz", time),
            ("warranty", elapsed),
            ("rowguid", Utf8),
            ("attrs", Utf8),
            ("tags", list(Utf8)),
            ("ratings", list(Int32)),
            ("thumb", Binary),
            ("colour", Utf8),
            ("flags", Binary),
            ("one_bit", Boolean),
            ("origin", Utf8),
            ("spec", Utf8),
            ("cash", Decimal256(76, 2)),
            ("brand", Utf8),
            ("min_qty", Int32),
        ],
        "mshop.mshop.product" => vec![
            ("id", Int64),
            ("big", Int64),
            ("name", Utf8),
            ("brand", Utf8),
            ("body", Utf8),
            ("price", Decimal128(20, 6)),
            ("wide", Decimal256(65, 30)),
            ("f", Float32),
            ("d", Float64),
            ("at", us),
            ("at0", ms),
            ("ts", utc),
            ("d1", Date32),
            ("t1", elapsed),
            ("y1", Int32),
            ("e1", Utf8),
            ("s1", Utf8),
            ("b1", Boolean),
            ("b10", Binary),
            ("ok", Int32),
            ("j", Utf8),
            ("bin", Binary),
            ("bl", Binary),
            ("ti", Int32),
            ("me", Int32),
        ],
        other => panic!("no table {other}"),
    }
}
