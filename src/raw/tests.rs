//! A raw table under an object store that fails, and under other writers.

mod landing;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use futures::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::files::{DataFile, longs, partitions};
use super::merge::Merge;
use super::*;
use crate::config;
use crate::decode::{FixedSchemas, Op, RowType};
use crate::source::MessageBatch;
use crate::storage::faulty::{Call, Fate, Faulty};
use crate::time::{Offset, Partition, Position};

impl Faulty {
    pub(super) fn log_store(&self) -> deltalake::logstore::LogStoreRef {
        let url = deltalake::ensure_table_uri("memory:///").unwrap();
        let store: Arc<dyn object_store::ObjectStore> = Arc::new(self.clone());
        deltalake::logstore::default_logstore(store.clone(), store, &url, &Default::default())
    }

    async fn open(&self) -> RawTable {
        RawTable::with_log_store("memory:///", self.log_store(), "shop", &source().topic).await.unwrap()
    }
}

fn source() -> config::Source {
    config::Source {
        schema: "shop".into(),
        table: "item".into(),
        topic: "items".into(),
        format: config::Format::Json,
        envelope: config::Envelope::Debezium,
        key: vec!["id".into()],
        unavailable: "__gone".into(),
        contract: r#"{"type":"record","name":"I","fields":[{"name":"id","type":"int"}]}"#.into(),
        contract_path: "item.avsc".into(),
    }
}

fn events(table: &RawTable) -> Events {
    Events::new(&source(), Arc::new(FixedSchemas::default()), table)
}

/// An upsert of a row whose schema has `columns` beside the id.
fn event(id: i64, columns: &[(&str, &str, Value)]) -> Vec<u8> {
    let mut fields = vec![json!({"field": "id", "type": "int32"})];
    let mut row = json!({"id": id});
    for (name, ty, value) in columns {
        fields.push(json!({"field": name, "type": ty, "optional": true}));
        row[name] = value.clone();
    }
    let row_schema = |field: &str| json!({"field": field, "type": "struct", "optional": true, "fields": fields});
    let schema = json!({"type": "struct", "fields": [row_schema("before"), row_schema("after"), {"field": "op", "type": "string"}]});
    json!({"schema": schema, "payload": {"before": null, "after": row, "op": "c"}}).to_string().into_bytes()
}

fn messages(number: i32, from: i64, values: &[Vec<u8>]) -> MessageBatch {
    let mut batch = MessageBatch::new(Partition::new(source().topic, number));
    for (n, value) in values.iter().enumerate() {
        batch.push(Offset(from + n as i64), 1_700_000_000_000, Some(b"k"), Some(value));
    }
    batch
}

async fn rows(table: &RawTable, number: i32, from: i64, values: &[Vec<u8>]) -> Rows {
    let mut events = events(table);
    events.push(&messages(number, from, values)).await.unwrap();
    events.take()
}

/// A row as (partition, offset, after as JSON, whether the bytes were kept, error).
type Row = (i32, i64, Value, bool, Option<String>);

/// All rows in order.
async fn all(table: &RawTable) -> Vec<Row> {
    let (rows, failures) = read_on(table).await;
    assert_eq!(failures, 0);
    rows
}

/// The same, read on after each passing error, and how many of those there were.
async fn read_on(table: &RawTable) -> (Vec<Row>, usize) {
    let files = DataFile::all(&table.log.load().await.unwrap()).unwrap();
    let mut merge = Merge::new("t", table.log.store.object_store(None), table.log.schema().clone(), files);
    let (mut rows, mut failures) = (Vec::new(), 0);
    loop {
        let batch = match merge.next().await {
            Ok(Some(batch)) => batch,
            Ok(None) => return (rows, failures),
            Err(e) => {
                assert!(e.is_passing(), "{e}");
                failures += 1;
                continue;
            }
        };
        let mut writer = arrow::json::ArrayWriter::new(Vec::new());
        writer.write(&batch).unwrap();
        writer.finish().unwrap();
        let json: Vec<Value> = serde_json::from_slice(&writer.into_inner()).unwrap();
        let error = batch.column_by_name("error").unwrap().as_string::<i32>();
        for (n, row) in json.iter().enumerate() {
            let error = error.is_valid(n).then(|| error.value(n).to_string());
            let (number, offset) = (partitions(&batch)[n], longs(&batch, "offset")[n]);
            rows.push((number, offset, row["after"].clone(), row["value"].is_string(), error));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_fails_loses_no_row() {
    let store = Faulty::default();
    let mut table = store.open().await;
    for commit in 0..5 {
        let values: Vec<_> = (0..3).map(|n| event(commit * 3 + n, &[])).collect();
        let rows = rows(&table, (commit % 2) as i32, commit / 2 * 3, &values).await;
        table.append(&rows).await.unwrap();
    }
    let whole = all(&table).await;
    assert_eq!(whole.len(), 15);
    // Each of the reads fails once.
    let mut nth = 0;
    loop {
        let mut reads = 0;
        store.judged(move |call| match call {
            Call::Get(path) if path.as_ref().ends_with(".parquet") => {
                reads += 1;
                if reads == nth + 1 { Fate::Fails } else { Fate::Works }
            }
            _ => Fate::Works,
        });
        let (rows, failures) = read_on(&table).await;
        assert_eq!(rows, whole, "read {nth}");
        if failures == 0 {
            break;
        }
        assert_eq!(failures, 1, "read {nth}");
        nth += 1;
    }
    assert!(nth >= 10, "there were {nth} reads of five files");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_is_not_waited_for() {
    let store = Faulty::default();
    let mut table = store.open().await;
    let rows = rows(&table, 0, 0, &[event(1, &[])]).await;
    table.append(&rows).await.unwrap();
    let objects: Vec<_> = ObjectStore::list(&store, None).try_collect::<Vec<_>>().await.unwrap();
    let ends = |with: &str| objects.iter().map(|o| o.location.clone()).filter(|p| p.as_ref().ends_with(with)).max();
    let data = ends(".parquet").unwrap();
    let whole = store.get(&data).await.unwrap().bytes().await.unwrap();
    let read = async || {
        let files = DataFile::all(&table.log.load().await.unwrap()).unwrap();
        Merge::new("t", table.log.store.object_store(None), table.log.schema().clone(), files).next().await.unwrap_err()
    };
    let mut other = whole.to_vec();
    let end = other.len() - 8;
    other[end..].fill(7);
    store.put(&data, other.into()).await.unwrap();
    assert!(!read().await.is_passing(), "{}", read().await);
    store.delete(&data).await.unwrap();
    assert!(!read().await.is_passing(), "{}", read().await);

    // A commit that is torn.
    let commit = ends(".json").unwrap();
    let whole = store.get(&commit).await.unwrap().bytes().await.unwrap();
    store.put(&commit, whole.slice(..whole.len() / 2).into()).await.unwrap();
    let open = async || RawTable::with_log_store("memory:///", store.log_store(), "shop", &source().topic).await;
    let error = open().await.err().unwrap();
    assert!(!error.is_passing(), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_of_unknown_outcome_is_found_out() {
    for fate in [Fate::Fails, Fate::Lies, Fate::Lags] {
        let store = Faulty::default();
        let mut table = store.open().await;
        let rows = rows(&table, 0, 0, &[event(1, &[]), event(2, &[])]).await;
        // The file is put, the commit is not, or is it?
        store.will(&[Fate::Works, fate]);
        let error = table.append(&rows).await.unwrap_err();
        assert!(error.is_passing(), "{error}");
        assert!(table.landed().is_empty());
        let added = table.append(&rows).await.unwrap();
        assert_eq!((added, table.version()), (0, 1), "{fate:?}: the commit was settled first");
        assert_eq!(all(&store.open().await).await.len(), 2, "{fate:?}");
        store.will(&[fate]);
        let rows = super::tests::rows(&table, 0, 2, &[event(3, &[])]).await;
        assert!(table.append(&rows).await.unwrap_err().is_passing());
        assert_eq!(table.append(&rows).await.unwrap(), 1, "{fate:?}: a file that was not put is put again");
        assert_eq!(all(&table).await.len(), 3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_writer_is_refused_and_says_so() {
    let store = Faulty::default();
    let (mut first, mut second) = (store.open().await, store.open().await);
    let rows = rows(&first, 0, 0, &[event(1, &[])]).await;
    first.append(&rows).await.unwrap();
    let error = second.append(&rows).await.unwrap_err();
    assert!(!error.is_passing());
    let text = error.to_string();
    assert!(text.contains("version 1 of the table memory:///") && text.contains("delta-rs"), "{text}");
    assert!(matches!(second.append(&rows).await, Err(Error::OtherWriter { version: 1, .. })), "it stays refused");
    assert_eq!(all(&store.open().await).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_another_dataflow_is_refused() {
    let store = Faulty::default();
    let mut table = store.open().await;
    let rows = rows(&table, 3, 0, &[event(1, &[])]).await;
    table.append(&rows).await.unwrap();
    let other = RawTable::with_log_store("memory:///", store.log_store(), "another", &source().topic).await;
    let text = other.err().unwrap().to_string();
    assert!(text.contains("no txn \"freshet/another/items/3\""), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_was_made_anew_is_noticed() {
    let store = Faulty::default();
    let source = config::Source { format: config::Format::Avro, ..source() };
    let push = async |table: &RawTable, schema: &str| {
        let schemas = FixedSchemas([(7, schema.into())].into());
        let mut events = Events::new(&source, Arc::new(schemas), table);
        let done = events.push(&messages(0, 0, &[vec![0, 0, 0, 0, 7, 2]])).await;
        done.map(|()| events.take())
    };
    let mut table = store.open().await;
    let rows = push(&table, r#"{"type": "int"}"#).await.unwrap();
    table.append(&rows).await.unwrap();
    let table = store.open().await;
    assert!(push(&table, r#"{ "type":"int" }"#).await.is_ok());
    let error = push(&table, r#"{"type": "long"}"#).await.err().unwrap();
    assert!(!error.is_passing() && error.to_string().contains("under the id 7"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_come_and_change_their_types() {
    let store = Faulty::default();
    let mut table = store.open().await;
    let take = async |table: &mut RawTable, from, values: &[Vec<u8>]| {
        let rows = rows(table, 0, from, values).await;
        table.append(&rows).await.unwrap();
    };
    take(&mut table, 0, &[event(1, &[("a", "int32", json!(5))])]).await;
    take(&mut table, 1, &[event(2, &[("b", "string", json!("x")), ("a", "int64", json!(1_i64 << 40))])]).await;
    take(&mut table, 2, &[event(3, &[("a", "string", json!("now text"))]), event(4, &[]), b"garbage".to_vec()]).await;
    // Another writer of the same process, which knows the table from its log alone.
    let mut table = store.open().await;
    take(&mut table, 5, &[event(5, &[("a", "string", json!("still text")), ("b", "string", Value::Null)])]).await;
    let rows = all(&table).await;
    let text = "column a has become Utf8, the table has it as Int64";
    let expect = [
        (json!({"id": 1, "a": 5}), false, None),
        (json!({"id": 2, "a": 1_i64 << 40, "b": "x"}), false, None),
        (json!({"id": 3}), true, Some(text.to_string())),
        (json!({"id": 4}), false, None),
        (Value::Null, true, Some("this is not JSON: expected value at line 1 column 1".to_string())),
        (json!({"id": 5}), true, Some(text.to_string())),
    ];
    let got: Vec<_> = rows.into_iter().map(|(_, _, after, kept, error)| (after, kept, error)).collect();
    assert_eq!(got, expect);
}

/// Messages of three partitions are landed by writers that crash, over a store that fails; in the end each is there once.
#[tokio::test(flavor = "multi_thread")]
async fn every_offset_is_there_once_whatever_crashes() {
    let mut refused = 0;
    for seed in 0..15 {
        let mut random = StdRng::seed_from_u64(seed);
        let store = Faulty::default();
        let ends: Vec<i64> = (0..3).map(|_| random.random_range(5..30)).collect();
        loop {
            // A new process.
            store.will(&[]);
            let mut table = store.open().await;
            let mut events = events(&table);
            let start = |table: &RawTable, n: i32| {
                table.landed().get(&Partition::new(source().topic, n)).map_or(0, |next| next.0)
            };
            let mut next: Vec<i64> = (0..3).map(|n| start(&table, n)).collect();
            if next == ends {
                break;
            }
            let lived = random.random_range(1..8);
            for _ in 0..lived {
                for _ in 0..random.random_range(1..4) {
                    let n = random.random_range(0..3);
                    // Kafka may be read again from before what has landed.
                    let from = (next[n] - random.random_range(0..3)).max(0);
                    let to = (from + random.random_range(1..6)).min(ends[n]).max(from);
                    let column = format!("c{}", random.random_range(0..5));
                    let value = |id: i64| match id % 3 {
                        0 => b"garbage".to_vec(),
                        _ => event(id, &[(column.as_str(), "string", json!("v"))]),
                    };
                    events.push(&messages(n as i32, from, &(from..to).map(value).collect::<Vec<_>>())).await.unwrap();
                    next[n] = next[n].max(to);
                }
                let fates = [Fate::Works, Fate::Works, Fate::Works, Fate::Fails, Fate::Lies, Fate::Lags];
                let some = |random: &mut StdRng| -> Vec<Fate> {
                    (0..3).map(|_| fates[random.random_range(0..fates.len())]).collect()
                };
                store.will(&some(&mut random));
                let rows = events.take();
                let done = loop {
                    match table.append(&rows).await {
                        Err(e) if e.is_passing() && random.random_bool(0.8) => {}
                        other => break other,
                    }
                };
                let done = match done {
                    Ok(_) if random.random_bool(0.3) => {
                        store.will(&some(&mut random));
                        upkeep(&mut table, &mut random).await
                    }
                    other => other,
                };
                match done {
                    Ok(_) => {}
                    // The process ends here, with whatever is under way.
                    Err(e) if e.is_passing() => break,
                    Err(Error::OtherWriter { .. }) => {
                        refused += 1;
                        break;
                    }
                    Err(e) => panic!("seed {seed}: {e}"),
                }
            }
        }
        let table = store.open().await;
        let mut there: Vec<(i32, i64)> = all(&table).await.into_iter().map(|r| (r.0, r.1)).collect();
        there.sort_unstable();
        let expect: Vec<(i32, i64)> = (0..3).flat_map(|n| (0..ends[n as usize]).map(move |o| (n, o))).collect();
        assert_eq!(there, expect, "seed {seed}");
    }
    assert!(refused > 0, "a commit that comes late makes a new writer lose");
}

/// Any of it, at any moment; a passing error leaves the rest to the next time.
async fn upkeep(table: &mut RawTable, random: &mut StdRng) -> Result<usize, Error> {
    let done = match random.random_range(0..3) {
        0 => table.compact(2).await,
        1 => table.log.vacuum(std::time::Duration::ZERO).await,
        _ => {
            table.log.checkpointed = table.version() + 50;
            table.log.checkpoint().await.map(usize::from)
        }
    };
    match done {
        Err(e) if e.is_passing() => Ok(0),
        other => other,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn days_are_merged_each_by_itself_and_read_in_the_order_of_offsets() {
    let store = Faulty::default();
    let mut table = store.open().await;
    // Messages of each commit by their days; the second commit is of two.
    let mut offset = 0;
    for days in [vec![1, 1], vec![1, 2, 1], vec![1]] {
        let mut batch = MessageBatch::new(Partition::new(source().topic, 0));
        for day in days {
            batch.push(Offset(offset), day * 86_400_000, None, Some(b"garbage"));
            offset += 1;
        }
        let mut events = events(&table);
        events.push(&batch).await.unwrap();
        table.append(&events.take()).await.unwrap();
    }
    assert_eq!(table.compact(3).await.unwrap(), 3);
    let files = DataFile::all(&table.log.load().await.unwrap()).unwrap();
    let files: Vec<_> = files.iter().map(|f| (f.day.as_deref().unwrap(), f.rows, f.commits)).collect();
    assert_eq!(files, [("1970-01-02", 5, (1, 3)), ("1970-01-03", 1, (2, 2))]);
    let offsets: Vec<i64> = all(&table).await.iter().map(|row| row.1).collect();
    assert_eq!(offsets, [0, 1, 2, 3, 4, 5]);
}

/// An event that a reader of some columns takes and a reader of others rejects may not decide for both.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_keeps_what_is_in_doubt() {
    let contract = r#"{"type":"record","name":"I","fields":[{"name":"id","type":"int"},{"name":"a","type":["null","int"],"default":null},{"name":"b","type":["null","int"],"default":null}]}"#;
    let source = config::Source { contract: contract.into(), ..source() };
    let (store, beside) = (Faulty::default(), Faulty::default());
    let mut table = store.open().await;
    let good = |id: i64, a: i64| event(id, &[("a", "int32", json!(a)), ("b", "int32", json!(a))]);
    // Its b is no int.
    let doubtful = |id: i64, a: i64| event(id, &[("a", "int32", json!(a)), ("b", "int32", json!(i64::MAX))]);
    let delete = |id: i64| {
        let text = String::from_utf8(event(id, &[])).unwrap();
        text.replace("\"before\":null,\"after\":{", "\"after\":null,\"before\":{")
            .replace("\"op\":\"c\"", "\"op\":\"d\"")
            .into_bytes()
    };
    let values = [
        [good(1, 1), doubtful(1, 2)].to_vec(),
        [good(2, 1), doubtful(2, 2), delete(2)].to_vec(),
        [good(3, 1), good(3, 2), delete(3)].to_vec(),
        [doubtful(4, 1), good(4, 2)].to_vec(),
    ]
    .concat();
    let mut events = Events::new(&source, Arc::new(FixedSchemas::default()), &table);
    let mut batch = MessageBatch::new(Partition::new(source.topic.clone(), 0));
    for (n, value) in values.iter().enumerate() {
        batch.push(Offset(n as i64), 0, None, Some(value));
    }
    events.push(&batch).await.unwrap();
    table.append(&events.take()).await.unwrap();
    let mut snapshot = Snapshot::with_log_store("memory:///", beside.log_store(), "shop", &table).await.unwrap();
    let stats = snapshot.take(&table, &source, Arc::new(FixedSchemas::default())).await.unwrap();
    assert_eq!(stats, SnapshotStats { read: 10, kept: 4 }, "both of 1, the delete of 2, the last of 4");
    let whole = RowType::from_contract(&source).unwrap();
    for read in [[true, false, false], [true, true, false], [true, true, true]] {
        let row_type = Arc::new(whole.pruned(&read));
        let mut rows = Vec::new();
        for from in [None, Some(&snapshot)] {
            let schemas = Arc::new(FixedSchemas::default());
            let mut hydration = Hydration::open(&table, from, 0, &source, row_type.clone(), schemas).await.unwrap();
            let mut now: BTreeMap<Box<[u8]>, Arc<[u8]>> = BTreeMap::new();
            while let Some(decoded) = hydration.next().await.unwrap() {
                for change in decoded.changes {
                    match change.op {
                        Op::Upsert { row, .. } => drop(now.insert(change.key, row)),
                        _ => drop(now.remove(&change.key)),
                    }
                }
            }
            rows.push(now);
        }
        assert_eq!((rows[0].len(), &rows[0]), (2, &rows[1]), "{read:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn small_files_are_merged_and_old_ones_removed() {
    let store = Faulty::default();
    let mut table = store.open().await;
    for n in 0..6 {
        let rows = rows(&table, 0, n, &[event(n, &[])]).await;
        table.append(&rows).await.unwrap();
    }
    let (before, landed) = (all(&table).await, table.landed().clone());
    assert_eq!(table.compact(7).await.unwrap(), 0, "they are too few");
    assert_eq!(table.compact(6).await.unwrap(), 6);
    assert_eq!(table.compact(2).await.unwrap(), 0, "there is one now");
    table.log.checkpointed = 100;
    assert!(table.log.checkpoint().await.unwrap());
    assert!(!table.log.checkpoint().await.unwrap());
    // The young are kept, then six files of data and the log before the checkpoint go.
    assert_eq!(table.log.vacuum(std::time::Duration::from_secs(60)).await.unwrap(), 0);
    assert_eq!(table.log.vacuum(std::time::Duration::ZERO).await.unwrap(), 6 + 7);
    let mut table = store.open().await;
    assert_eq!((all(&table).await, table.landed()), (before, &landed), "also for who opens it now");
    let rows = rows(&table, 0, 4, &[event(4, &[]), event(5, &[]), event(6, &[])]).await;
    assert_eq!(table.append(&rows).await.unwrap(), 1);
}

#[test]
fn a_folder_of_another_kind_is_no_raw_table() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let location = folder.path().to_str().unwrap();
        let other = arrow::datatypes::Schema::new(vec![arrow::datatypes::Field::new(
            "offset",
            arrow::datatypes::DataType::Utf8,
            true,
        )]);
        let store = super::store::log_store(location, &BTreeMap::new()).unwrap();
        super::log::Log::open(location, store, Some(("shop", &source().topic)), &other, &[], &[]).await.unwrap();
        let error = RawTable::open(location, &BTreeMap::new(), "shop", &source().topic).await.err().unwrap();
        assert!(error.to_string().contains("offset is Utf8, not Int64") && !error.is_passing(), "{error}");
    });
}
