//! The maintained view against the same SQL in batch.

use std::collections::BTreeMap;

use arrow::array::{Array, Int64Array, RecordBatch, StringArray};
use proptest::prelude::*;

use super::codec::converter;
use super::*;
use crate::config::{Envelope, Format, Line, Materialized, Model, Source};
use crate::decode::{Change, Counts, Decoded, Op, Origin, RowType};
use crate::time::{Offset, Partition};
use std::path::Path;
use std::time::Duration;

const CONTRACT: &str = r#"{"type":"record","name":"P","fields":[
    {"name":"id","type":"long"},{"name":"name","type":["null","string"],"default":null},{"name":"price","type":"long"}]}"#;

fn source() -> Source {
    Source {
        schema: "shop".into(),
        table: "product".into(),
        topic: "t".into(),
        format: Format::Avro,
        envelope: Envelope::Debezium,
        key: vec!["id".into()],
        unavailable: "__u".into(),
        contract: CONTRACT.into(),
        contract_path: "c".into(),
    }
}

fn model(sql: &str) -> Model {
    let path: Arc<Path> = Path::new("v.sql").into();
    let lines = sql.split('\n').enumerate().map(|(n, _)| Line { path: path.clone(), number: n as u32 + 1 }).collect();
    Model { name: "v".into(), path: "v.sql".into(), sql: sql.into(), lines, materialized: Materialized::View }
}

fn plan(sql: &str) -> Result<Plan, PlanError> {
    let row_type = RowType::from_contract(&source()).unwrap();
    let table = Table { schema: "shop".into(), table: "product".into(), columns: row_type.schema().clone() };
    Plan::new(&[model(sql)], "v", &[table], "id")
}

const VIEW: &str = "select id, upper(name) as shout, price * 2 as twice, 100 / price as share
    from shop__product where price <> 3 and name is not null";

#[derive(Clone, Debug)]
enum Step {
    Put(i64, Option<String>, i64),
    Delete(i64),
    Truncate,
}

fn encode(row_type: &RowType, id: i64, name: Option<&str>, price: i64) -> (Box<[u8]>, Row) {
    let columns: Vec<arrow::array::ArrayRef> = vec![
        Arc::new(Int64Array::from(vec![id])),
        Arc::new(StringArray::from(vec![name])),
        Arc::new(Int64Array::from(vec![price])),
    ];
    let row = row_type.converter().convert_columns(&columns).unwrap().row(0).data().into();
    let key = row_type.key_converter().unwrap().convert_columns(&columns[..1]).unwrap().row(0).data().into();
    (key, row)
}

fn change(row_type: &RowType, offset: i64, step: &Step) -> Change {
    let offset = Offset(offset);
    let (key, op) = match step {
        Step::Put(id, name, price) => {
            let (key, row) = encode(row_type, *id, name.as_deref(), *price);
            (key, Op::Upsert { row, unavailable: None })
        }
        Step::Delete(id) => (encode(row_type, *id, None, 0).0, Op::Delete),
        Step::Truncate => (Box::default(), Op::Truncate),
    };
    Change { offset, key, op, commit_ms: 0, origin: Origin::default() }
}

fn batch(changes: Vec<Change>) -> Decoded {
    let end = changes.last().map_or(Offset(0), |c| Offset(c.offset.0 + 1));
    Decoded { source: 0, partition: Partition::new("t", 0), end, changes, rejects: vec![], counts: Counts::default() }
}

/// Runs epochs through a dataflow of its own and keeps what an index would hold.
fn run(sql: &str, epochs: Vec<Vec<Change>>, workers: usize) -> (BTreeMap<Box<[u8]>, Row>, usize) {
    let plan = plan(sql).unwrap();
    let handle = Engine::start(plan, vec![Arc::new(RowType::from_contract(&source()).unwrap())], workers).unwrap();
    let count = epochs.len();
    let mut index = BTreeMap::new();
    let mut emitted = 0;
    std::thread::scope(|scope| {
        let feeding = &handle;
        scope.spawn(move || {
            for (n, changes) in epochs.into_iter().enumerate() {
                feeding.send(Epoch(n as u64 + 1), vec![batch(changes)]).unwrap();
            }
        });
        for n in 0..count {
            let output = handle.recv(Duration::from_secs(30)).unwrap().expect("an epoch within 30 s");
            assert_eq!(output.epoch, Epoch(n as u64 + 1));
            emitted += output.changes.len();
            for change in output.changes {
                match change.row {
                    Some(row) => {
                        assert_ne!(index.insert(change.key, row.clone()), Some(row), "a change that changes nothing")
                    }
                    None => assert!(index.remove(&change.key).is_some(), "a delete of what was not there"),
                }
            }
            assert_eq!(output.view_rows, index.len());
        }
    });
    (index, emitted)
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0..12_i64, proptest::option::of("[a-c]{1,2}"), 1..6_i64).prop_map(|(id, name, price)| Step::Put(id, name, price)),
        3 => (0..12_i64).prop_map(Step::Delete),
        1 => Just(Step::Truncate),
    ];
    proptest::collection::vec(step, 1..60)
}

/// The view over the latest rows, by DataFusion in batch.
fn oracle(sql: &str, steps: &[Step]) -> BTreeMap<Box<[u8]>, Row> {
    let mut latest = BTreeMap::new();
    for step in steps {
        match step {
            Step::Put(id, name, price) => {
                latest.insert(*id, (name.clone(), *price));
            }
            Step::Delete(id) => {
                latest.remove(id);
            }
            Step::Truncate => latest.clear(),
        }
    }
    let plan = plan(sql).unwrap();
    let row_type = RowType::from_contract(&source()).unwrap();
    let columns: Vec<arrow::array::ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(latest.keys().copied())),
        Arc::new(StringArray::from_iter(latest.values().map(|(name, _)| name.clone()))),
        Arc::new(Int64Array::from_iter_values(latest.values().map(|(_, price)| *price))),
    ];
    let table = RecordBatch::try_new(row_type.schema().clone(), columns).unwrap();
    let view = futures::executor::block_on(plan.batch_view(vec![table])).unwrap();
    let rows = converter(view.schema().fields().iter().map(|f| f.data_type())).convert_columns(view.columns()).unwrap();
    let keys = converter([view.column(0).data_type()]).convert_columns(&[view.column(0).clone()]).unwrap();
    (0..view.num_rows()).map(|n| (keys.row(n).data().into(), rows.row(n).data().into())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn the_view_equals_the_batch_whatever_the_split(steps in steps(), size in 1..20_usize, workers in 1..3_usize) {
        let row_type = RowType::from_contract(&source()).unwrap();
        let changes: Vec<Change> = steps.iter().enumerate().map(|(n, s)| change(&row_type, n as i64, s)).collect();
        let mut epochs: Vec<Vec<Change>> = changes.chunks(size).map(<[Change]>::to_vec).collect();
        let (index, emitted) = run(VIEW, epochs.clone(), workers);
        prop_assert_eq!(&index, &oracle(VIEW, &steps));
        // The same once more after itself: every offset was seen, so nothing is emitted.
        epochs.extend(epochs.clone());
        let (again, twice) = run(VIEW, epochs, workers);
        prop_assert_eq!(again, index);
        prop_assert_eq!(twice, emitted);
    }
}

#[test]
fn a_value_that_was_not_sent_stays_what_it_was() {
    let row_type = RowType::from_contract(&source()).unwrap();
    let mut update = change(&row_type, 1, &Step::Put(1, None, 5));
    if let Op::Upsert { unavailable, .. } = &mut update.op {
        *unavailable = Some(Box::from([1_u16]));
    }
    let first = change(&row_type, 0, &Step::Put(1, Some("a".into()), 2));
    let (index, _) = run(VIEW, vec![vec![first], vec![update]], 1);
    assert_eq!(index, oracle(VIEW, &[Step::Put(1, Some("a".into()), 5)]));
}

#[test]
fn a_row_that_fails_is_left_out_alone() {
    let row_type = RowType::from_contract(&source()).unwrap();
    let steps =
        [Step::Put(1, Some("a".into()), 1), Step::Put(2, Some("b".into()), 0), Step::Put(4, Some("d".into()), 4)];
    let changes: Vec<Change> = steps.iter().enumerate().map(|(n, s)| change(&row_type, n as i64, s)).collect();
    let handle = Engine::start(plan(VIEW).unwrap(), vec![Arc::new(row_type)], 1).unwrap();
    handle.send(Epoch(1), vec![batch(changes)]).unwrap();
    let output = handle.recv(Duration::from_secs(30)).unwrap().unwrap();
    assert_eq!((output.changes.len(), output.failed_rows.len()), (2, 1));
    assert!(output.failed_rows[0].reason.contains("zero"), "{:?}", output.failed_rows);
}

#[test]
fn what_cannot_be_maintained_is_refused_by_name_and_line() {
    let check = |sql: &str, expect: &str| {
        let error = plan(sql).unwrap_err().to_string();
        assert!(error.contains(expect), "{error}");
    };
    check("select id from shop__product\nlimit 5", "v.sql:2: LIMIT");
    check("select array_agg(name) as id\nfrom shop__product", "v.sql:1: array_agg() without ORDER BY");
    check("select id,\nrow_number() over () as n from shop__product", "v.sql:2: row_number() OVER");
    check("select id,\n random() as r from shop__product", "v.sql:2: random()");
    check("select id, now() as n from shop__product", "now()");
    check("select name from shop__product", "no column id (index.key); it has name");
    check("select id from nothing", "nothing");
    check("select id, nam from shop__product", "nam");
    check("select id,\n from\n from", "v.sql:3: ");
}

#[test]
fn the_shipped_model_is_planned() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("dataflows/product");
    let config = crate::config::load_with(&folder, |name| (name == "HOME").then(|| "/home/x".into())).unwrap();
    let columns = RowType::from_contract(&config.sources[0]).unwrap().schema().clone();
    let table = Table { schema: "shop".into(), table: "product".into(), columns };
    let plan = Plan::new(&config.models, &config.view, &[table], &config.index.key).unwrap();
    let text = plan.view_schema().field_with_name("search_text").unwrap();
    assert_eq!(text.data_type(), &arrow::datatypes::DataType::Utf8);
    assert!(plan.to_string().contains("TableScan"), "{plan}");
}

/// A value as the databases print it, so that it can be compared with the recording's tables.
fn printed(column: &arrow::array::ArrayRef, n: usize) -> Option<String> {
    use arrow::array::cast::AsArray;
    use arrow::datatypes::*;
    if column.is_null(n) {
        return None;
    }
    let instant = |seconds: i64, nanos: u32| {
        let time = chrono::DateTime::from_timestamp(seconds, nanos).unwrap();
        let fraction = format!("{:06}", time.timestamp_subsec_micros());
        let fraction = fraction.trim_end_matches('0');
        let dot = if fraction.is_empty() { "" } else { "." };
        format!("{}{dot}{fraction}", time.format("%Y-%m-%d %H:%M:%S"))
    };
    Some(match column.data_type() {
        DataType::Timestamp(unit, zone) => {
            let value = column.as_any();
            let micros = match unit {
                TimeUnit::Millisecond => {
                    value.downcast_ref::<arrow::array::TimestampMillisecondArray>().unwrap().value(n) * 1000
                }
                _ => value.downcast_ref::<arrow::array::TimestampMicrosecondArray>().unwrap().value(n),
            };
            let text = instant(micros.div_euclid(1_000_000), micros.rem_euclid(1_000_000) as u32 * 1000);
            if zone.is_some() { format!("{text}+00") } else { text }
        }
        DataType::Time64(_) => {
            let micros = column.as_primitive::<Time64MicrosecondType>().value(n);
            instant(micros / 1_000_000, (micros % 1_000_000) as u32 * 1000)[11..].to_string()
        }
        DataType::Binary => column.as_binary::<i32>().value(n).iter().map(|b| format!("{b:02x}")).collect(),
        DataType::List(_) => {
            let items = column.as_list::<i32>().value(n);
            let items: Vec<String> = (0..items.len()).map(|i| printed(&items, i).unwrap_or("NULL".into())).collect();
            format!("{{{}}}", items.join(","))
        }
        DataType::Float32 => format!("{}", column.as_primitive::<Float32Type>().value(n)),
        DataType::Float64 => format!("{}", column.as_primitive::<Float64Type>().value(n)),
        DataType::Boolean => column.as_boolean().value(n).to_string(),
        _ => arrow::util::display::array_value_to_string(column, n).unwrap(),
    })
}

/// Columns whose printed form is the database's own (its locale, its session's zone, its interval style, its padding, its quoting), not the
/// value's: they are left to the typed tests of `decode`.
const PRINTED_OTHERWISE: &[&str] = &[
    "cash", "opens_tz", "warranty", "flags", "one_bit", "tags", "colour", "made_on", "weight", "height", "attrs",
    "origin", "t1", "ts", "at", "at0", "f", "d", "b1", "b10", "bin", "bl", "j", "thumb",
];

#[tokio::test]
async fn the_recordings_tables_come_out_whatever_the_split() {
    use crate::decode::tests::{decode_all, fixture, recorded, schemas};
    let store: Arc<dyn crate::decode::SchemaStore> = Arc::new(schemas().1);
    let tables: Vec<serde_json::Value> =
        fixture("tables.jsonl").lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let mut compared = BTreeMap::new();
    for source in recorded() {
        let row_type = Arc::new(RowType::from_contract(&source).unwrap());
        let key =
            if source.key.len() == 2 { "product_id * 100000 + category_id".to_string() } else { source.key[0].clone() };
        let sql = format!("select {key} as the_key, p.* from s__t p");
        let table = Table { schema: "s".into(), table: "t".into(), columns: row_type.schema().clone() };
        let plan = Plan::new(&[model(&sql)], "v", &[table], "the_key").unwrap();
        let mut views = Vec::new();
        for size in [1_000, 17] {
            let handle = Engine::start(plan.clone(), vec![row_type.clone()], 1).unwrap();
            let mut view = BTreeMap::new();
            let mut epoch = 0;
            // Twice: what was seen is not applied again.
            for round in 0..2 {
                for decoded in decode_all(&source, store.clone(), size).await {
                    epoch += 1;
                    handle.send(Epoch(epoch), vec![decoded]).unwrap();
                    let output = handle.recv(Duration::from_secs(30)).unwrap().unwrap();
                    assert!(output.failed_rows.is_empty(), "{:?}", output.failed_rows[0].reason);
                    assert!(round == 0 || output.changes.is_empty(), "a replay changed something");
                    for change in output.changes {
                        match change.row {
                            Some(row) => drop(view.insert(change.key, row)),
                            None => drop(view.remove(&change.key)),
                        }
                    }
                }
            }
            views.push(view);
        }
        assert_eq!(views[0], views[1], "{}", source.topic);
        let schema = plan.view_schema();
        let rows = converter(schema.fields().iter().map(|f| f.data_type()));
        let parser = rows.parser();
        let columns = rows.convert_rows(views[0].values().map(|r| parser.parse(r))).unwrap();
        let mine: BTreeMap<Vec<String>, usize> = (0..views[0].len())
            .map(|n| {
                (source.key.iter().map(|k| printed(&columns[schema.index_of(k).unwrap()], n).unwrap()).collect(), n)
            })
            .collect();
        let name = source.topic.split('.').next_back().unwrap();
        let of_table = if source.topic.starts_with("mshop") {
            "mshop.mshop.product".into()
        } else {
            format!("shop.production.{name}")
        };
        let theirs: Vec<&serde_json::Value> =
            tables.iter().filter(|t| t["table"] == of_table).map(|t| &t["row"]).collect();
        assert_eq!(mine.len(), theirs.len(), "{}", source.topic);
        for row in theirs {
            let key: Vec<String> = source.key.iter().map(|k| row[k].as_str().unwrap().to_string()).collect();
            let n = *mine.get(&key).unwrap_or_else(|| panic!("{} lacks {key:?}", source.topic));
            for (column, field) in columns.iter().zip(schema.fields()).skip(1) {
                // Only the first connector read the table again after its columns had changed: elsewhere, rows that were not touched
                // since were never sent with the columns of the end.
                let evolved = ["colour", "brand", "min_qty"].contains(&field.name().as_str());
                if evolved
                    && !source.topic.starts_with("shop")
                    && !source.topic.starts_with("mshop")
                    && printed(column, n).is_none()
                {
                    continue;
                }
                if PRINTED_OTHERWISE.contains(&field.name().as_str())
                    && !row[field.name()].is_null()
                    && !(field.name() == "at" && name == "review")
                {
                    assert!(!column.is_null(n), "{} {key:?} {} is null", source.topic, field.name());
                    continue;
                }
                let expected = row[field.name()].as_str().map(str::to_string);
                let mut found = printed(column, n);
                let mut expected = expected;
                if field.name() == "any_number" {
                    expected = expected.filter(|t| t != "NaN");
                    // Debezium has no NaN among decimals and writes null. It
                    // drops zeros at the end of a numeric without a scale; the number is the same.
                    for text in [&mut found, &mut expected].into_iter().flatten().filter(|t| t.contains('.')) {
                        *text = text.trim_end_matches('0').trim_end_matches('.').to_string();
                    }
                }
                if field.name() == "big" {
                    // With `bigint.unsigned.handling.mode=long` Debezium writes the same 64 bits as a signed number.
                    expected = expected.map(|t| t.parse::<u64>().map_or(t, |v| (v as i64).to_string()));
                }
                assert_eq!(found, expected, "{} {key:?} {}", source.topic, field.name());
                *compared.entry(field.name().clone()).or_insert(0) += 1;
            }
        }
    }
    assert!(compared.len() > 25, "{compared:?}");
}
