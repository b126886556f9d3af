//! The maintained view against the same SQL in batch.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{Array, Int64Array, RecordBatch, StringArray};
use proptest::prelude::*;

use super::codec::converter;
use super::*;
use crate::config::{DataTest, Envelope, Format, Line, Materialized, Model, Severity, Source, TestKind};
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

#[test]
fn a_panic_of_any_worker_ends_the_dataflow() {
    let row_type = RowType::from_contract(&source()).unwrap();
    for id in 0..16 {
        let handle =
            Engine::start(plan(VIEW).unwrap(), vec![Arc::new(RowType::from_contract(&source()).unwrap())], 2).unwrap();
        let mut torn = change(&row_type, 0, &Step::Put(id, None, 1));
        // Bytes that no decoder makes: the one of both workers that the key belongs to cannot take them apart.
        torn.op = Op::Upsert { row: Row::from([7]), unavailable: None };
        handle.send(Epoch(1), vec![batch(vec![torn])]).unwrap();
        assert_eq!(handle.recv(Duration::from_secs(30)).err(), Some(Stopped), "the row {id}");
    }
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
fn every_operator_tells_what_it_holds_and_did() {
    let sql =
        "select id, name from shop__product where price > 1 union all select id + 10 as id, name from shop__product";
    let row_type = RowType::from_contract(&source()).unwrap();
    let put = |id: i64| change(&row_type, id, &Step::Put(id, Some("a".into()), id));
    let changes = vec![vec![put(1), put(2)], vec![change(&row_type, 3, &Step::Delete(2))]];
    let handle = Engine::start(plan(sql).unwrap(), vec![Arc::new(row_type)], 2).unwrap();
    // Rows that the view holds then, and updates that the union has put out.
    let expected = [(3, 3), (1, 5)];
    for (epoch, (changes, (held, put_out))) in (1..).zip(changes.into_iter().zip(expected)) {
        handle.send(Epoch(epoch), vec![batch(changes)]).unwrap();
        let output = handle.recv(Duration::from_secs(30)).unwrap().unwrap();
        assert_eq!(output.view_rows, held as usize);
        let operators = handle.operators();
        let view = operators.last().unwrap();
        assert_eq!((view.state_rows, view.updates), (held, put_out), "{view:?}");
        assert!(view.state_bytes >= 9 * held, "each row has at least the bytes of its key: {view:?}");
        let union = operators.iter().find(|o| o.operator.starts_with("union")).unwrap();
        assert_eq!((union.state_rows, union.updates), (0, put_out));
    }
}

#[test]
fn a_value_that_was_never_sent_is_null_and_is_told() {
    let row_type = RowType::from_contract(&source()).unwrap();
    let unsent = |offset: i64, id: i64, price: i64| Change {
        op: Op::Upsert { row: encode(&row_type, id, None, price).1, unavailable: Some([1].into()) },
        ..change(&row_type, offset, &Step::Delete(id))
    };
    let put = |offset, id, name: &str| change(&row_type, offset, &Step::Put(id, Some(name.into()), 2));
    // The first row has the value from before; the second is the first under another key, of which Debezium tells no more.
    let changes = [put(0, 1, "a"), unsent(1, 1, 3), change(&row_type, 2, &Step::Delete(1)), unsent(3, 2, 3)];
    let handle =
        Engine::start(plan("select id, name from shop__product").unwrap(), vec![Arc::new(row_type)], 2).unwrap();
    let not_sent = || handle.operators().iter().map(|o| o.not_sent).sum::<u64>();
    let row_type = RowType::from_contract(&source()).unwrap();
    for (epoch, changes, expect) in [(1, changes[..2].to_vec(), 0), (2, changes[2..].to_vec(), 1)] {
        handle.send(Epoch(epoch), vec![batch(changes)]).unwrap();
        handle.recv(Duration::from_secs(30)).unwrap().unwrap();
        assert_eq!(not_sent(), expect);
    }
    handle.send(Epoch(3), vec![batch(vec![change(&row_type, 4, &Step::Put(2, Some("a".into()), 3))])]).unwrap();
    let healed = handle.recv(Duration::from_secs(30)).unwrap().unwrap();
    assert_eq!((healed.changes.len(), healed.view_rows, not_sent()), (1, 1, 1));
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
    check("select id,\n,\n from shop__product", "v.sql:2: ");
}

#[test]
fn the_shipped_model_is_planned() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("dataflows/product");
    let config = crate::config::load_with(&folder, |name| (name == "HOME").then(|| "/home/x".into())).unwrap();
    let table = |s: &Source| Table {
        schema: s.schema.clone(),
        table: s.table.clone(),
        columns: RowType::from_contract(s).unwrap().schema().clone(),
    };
    let tables: Vec<Table> = config.sources.iter().map(table).collect();
    let plan = Plan::new(&config.models, &config.view, &tables, &config.index.key).unwrap();
    let text = plan.view_schema().field_with_name("search_text").unwrap();
    assert_eq!(text.data_type(), &arrow::datatypes::DataType::Utf8);
    assert!(plan.to_string().contains("TableScan"), "{plan}");
}

/// An abort would end every test.
#[test]
fn what_nests_deep_is_maintained_or_refused_by_a_sentence() {
    let chain = |n: usize, with: &str, one: &dyn Fn(usize) -> String| (0..n).map(one).collect::<Vec<_>>().join(with);
    let row_type = RowType::from_contract(&source()).unwrap();
    let steps = [Step::Put(1, Some("v1".into()), 7), Step::Put(2, None, 1), Step::Put(3, Some("x".into()), 3)];
    let changes: Vec<Change> = steps.iter().enumerate().map(|(n, s)| change(&row_type, n as i64, s)).collect();
    let columns: Vec<arrow::array::ArrayRef> = vec![
        Arc::new(Int64Array::from(vec![1, 2, 3])),
        Arc::new(StringArray::from(vec![Some("v1"), None, Some("x")])),
        Arc::new(Int64Array::from(vec![7, 1, 3])),
    ];
    let table = RecordBatch::try_new(row_type.schema().clone(), columns).unwrap();
    let maintained = |sql: String| {
        let plan = plan(&sql).unwrap_or_else(|e| panic!("{} ...: {e}", &sql[..80]));
        assert!(plan.explain(None).unwrap().contains("source"));
        let expect = futures::executor::block_on(plan.batch_view(vec![table.clone()])).unwrap();
        let handle = Engine::start(plan, vec![Arc::new(RowType::from_contract(&source()).unwrap())], 1).unwrap();
        handle.send(Epoch(1), vec![batch(changes.clone())]).unwrap();
        let output = handle.recv(Duration::from_secs(60)).unwrap().expect("an epoch");
        let types = converter(expect.schema().fields().iter().map(|f| f.data_type()));
        let expect = types.convert_columns(expect.columns()).unwrap();
        let mut rows: Vec<&[u8]> = output.changes.iter().map(|c| &**c.row.as_ref().unwrap()).collect();
        let mut expect: Vec<&[u8]> = expect.iter().map(|row| row.data()).collect();
        rows.sort_unstable();
        expect.sort_unstable();
        assert_eq!(rows, expect);
    };
    let refused = |sql: String, sentence: &str| {
        let told = plan(&sql).unwrap_err().to_string();
        assert!(told.starts_with("v.sql:1: ") && told.contains(sentence) && told.len() < 300, "{told}");
    };
    let or = |n| chain(n, " or ", &|i| format!("name = 'v{i}' and price > {i}"));
    let or = |n| format!("select id, name from shop__product where {}", or(n));
    let concat = |n| format!("select id, {} as c from shop__product", chain(n, " || ", &|_| "name".into()));
    let unions = |n| chain(n, " union all ", &|i| format!("select id + {} as id, name from shop__product", i * 10));
    let calls = |n: usize| format!("select id, {}name{} as c from shop__product", "upper(".repeat(n), ")".repeat(n));
    let whens = |n| chain(n, " ", &|i| format!("when price = {i} then 'x{i}'"));
    maintained(or(800));
    maintained(concat(800));
    maintained(unions(400));
    maintained(calls(100));
    maintained(format!("select id, case {} end as c from shop__product", whens(1_500)));
    for n in [1_500, 10_000] {
        refused(or(n), "nests operators more than 1000 deep");
        refused(concat(n), "nests operators more than 1000 deep");
        refused(unions(n), "in one chain of set operations");
        refused(calls(n), "brackets or calls stand inside of each other");
    }
    refused(or(100_000), "operators and keywords");
    refused(concat(150_000), "operators and keywords");
}

/// Models that are a part of each other, each with its own operators: together they are one deep expression.
#[test]
fn a_long_chain_of_models_is_maintained() {
    let mut models = vec![Model { name: "m0".into(), ..model("select id, name, price from shop__product") }];
    for n in 1..80 {
        let sql = format!("select id, name, price + 1 as price from m{} where price > {n}", n - 1);
        models.push(Model { name: format!("m{n}"), ..model(&sql) });
    }
    let row_type = RowType::from_contract(&source()).unwrap();
    let table = Table { schema: "shop".into(), table: "product".into(), columns: row_type.schema().clone() };
    let plan = Plan::new(&models, "m79", &[table], "id").unwrap();
    let handle = Engine::start(plan, vec![Arc::new(RowType::from_contract(&source()).unwrap())], 1).unwrap();
    let changes = [Step::Put(1, None, 2), Step::Put(2, None, 1)];
    let changes = changes.iter().enumerate().map(|(n, s)| change(&row_type, n as i64, s)).collect();
    handle.send(Epoch(1), vec![batch(changes)]).unwrap();
    assert_eq!(handle.recv(Duration::from_secs(30)).unwrap().unwrap().view_rows, 1);
}

/// Columns of a source that are only renamed stay where they are, and are read by their new names.
#[test]
fn a_view_that_is_a_source_as_it_is_reads_all_of_it() {
    let row_type = RowType::from_contract(&source()).unwrap();
    let table = Table { schema: "shop".into(), table: "product".into(), columns: row_type.schema().clone() };
    for sql in ["select * from shop__product", "select p.* from shop__product as p"] {
        let tables = [table.clone()];
        let (view, models) = ("v", [model(sql)]);
        let project = Project { models: &models, others: &[], tests: &[], view };
        // As a start does it: what is read is asked before there is a key.
        let plan = Plan::project(&project, &tables, &BTreeSet::new()).unwrap();
        assert!(plan.columns_read()[0].iter().all(|read| *read), "{sql}");
        let lean = row_type.pruned(&plan.columns_read()[0]);
        let plan = plan.keyed("id").unwrap().keeping(&[lean.schema().clone()]).unwrap();
        assert!(!plan.to_string().contains("NULL"), "{plan}");
    }
}

#[test]
fn a_table_of_renamed_columns_has_its_values() {
    let stage = Model {
        name: "stage".into(),
        materialized: Materialized::Table,
        ..model("select id, name as label from shop__product")
    };
    let row_type = RowType::from_contract(&source()).unwrap();
    let table = Table { schema: "shop".into(), table: "product".into(), columns: row_type.schema().clone() };
    let plan = Plan::new(&[stage, model("select id, label from stage")], "v", &[table], "id").unwrap();
    let lean = row_type.pruned(&plan.columns_read()[0]);
    let plan = plan.keeping(&[lean.schema().clone()]).unwrap();
    assert!(!plan.to_string().contains("NULL"), "{plan}");
}

#[test]
fn a_data_test_keeps_no_column_that_it_does_not_look_at() {
    let row_type = RowType::from_contract(&source()).unwrap();
    let table = Table { schema: "shop".into(), table: "product".into(), columns: row_type.schema().clone() };
    let test = |kind, severity| DataTest {
        name: format!("{kind:?}"),
        relation: "shop__product".into(),
        kind,
        severity,
        condition: None,
        declared: String::new(),
        lines: Vec::new(),
    };
    let name = || "name".to_string();
    let models = [model("select id, upper(name) as label from shop__product")];
    for severity in [Severity::Error, Severity::Warn] {
        let kinds = [TestKind::NotNull { column: name() }, TestKind::Unique { column: name() }];
        let tests = kinds.map(|kind| test(kind, severity));
        let project = Project { models: &models, others: &[], tests: &tests, view: "v" };
        let plan = Plan::project(&project, std::slice::from_ref(&table), &BTreeSet::new()).unwrap();
        let read: Vec<&str> = row_type.schema().fields().iter().map(|f| f.name().as_str()).collect();
        let read: Vec<&str> = read.into_iter().zip(&plan.columns_read()[0]).filter(|r| *r.1).map(|r| r.0).collect();
        assert_eq!(read, ["id", "name"], "{severity:?}");
    }
}
