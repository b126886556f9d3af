//! What Debezium really wrote, decoded: every message of every topic of the recording becomes a change.

use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;

use base64::Engine;
use serde_json::Value;

use super::*;
use crate::config::{Envelope, Format, Source};
use crate::source::MessageBatch;
use crate::time::{Offset, Partition};

pub(crate) fn fixture(name: &str) -> String {
    let path = format!("{}/tests/fixtures/debezium/{name}.gz", env!("CARGO_MANIFEST_DIR"));
    let mut text = String::new();
    flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap()).read_to_string(&mut text).unwrap();
    text
}

pub(crate) fn schemas() -> (Value, FixedSchemas) {
    let registry: Value = serde_json::from_str(&fixture("registry.json")).unwrap();
    let schemas = registry["schemas"].as_object().unwrap();
    let fixed = schemas
        .iter()
        .map(|(id, schema)| (id.parse().unwrap(), schema.to_string().into()))
        .collect::<HashMap<u32, Arc<str>>>();
    (registry, FixedSchemas(fixed))
}

fn batches(topic: &str, size: usize) -> Vec<MessageBatch> {
    let decode = |v: &Value| v.as_str().map(|t| base64::engine::general_purpose::STANDARD.decode(t).unwrap());
    let events = fixture("events.jsonl");
    let events: Vec<Value> =
        events.lines().map(|l| serde_json::from_str(l).unwrap()).filter(|e: &Value| e["topic"] == topic).collect();
    events
        .chunks(size)
        .map(|chunk| {
            let mut batch = MessageBatch::new(Partition::new(topic, 0));
            for e in chunk {
                let (key, value) = (decode(&e["key"]), decode(&e["value"]));
                batch.push(
                    Offset(e["offset"].as_i64().unwrap()),
                    e["timestamp_ms"].as_i64().unwrap(),
                    key.as_deref(),
                    value.as_deref(),
                );
            }
            batch
        })
        .collect()
}

/// A contract that all of a topic's writer schemas keep: the last one's columns, each with null allowed where an older one lacks it.
fn contract(registry: &Value, subject: &str, duration: &[&str]) -> String {
    let versions = registry["subjects"][subject].as_object().unwrap();
    let rows: Vec<&Value> = versions
        .values()
        .map(|id| {
            let schema = &registry["schemas"][id.to_string()];
            let before = schema["fields"].as_array().unwrap().iter().find(|f| f["name"] == "before");
            before.map_or(schema, |b| &b["type"][1])
        })
        .collect();
    let mut row = (*rows.last().unwrap()).clone();
    let name = |f: &Value| f["name"].as_str().unwrap().to_string();
    row["fields"].as_array_mut().unwrap().retain(|f| !name(f).starts_with("__"));
    for field in row["fields"].as_array_mut().unwrap() {
        let everywhere =
            rows.iter().all(|r| r["fields"].as_array().unwrap().iter().any(|f| f["name"] == field["name"]));
        if duration.contains(&field["name"].as_str().unwrap()) {
            field["type"][1]["freshet.type"] = "duration".into();
        }
        if !everywhere && field.get("default").is_none() {
            field["type"] = serde_json::json!(["null", field["type"]]);
            field["default"] = Value::Null;
        }
    }
    row.to_string()
}

fn source(topic: &str, format: Format, envelope: Envelope, key: &[&str], contract: String) -> Source {
    Source {
        schema: "s".into(),
        table: "t".into(),
        topic: topic.into(),
        format,
        envelope,
        key: key.iter().map(|k| k.to_string()).collect(),
        unavailable: "__debezium_unavailable_value".into(),
        contract,
        contract_path: "contract.avsc".into(),
    }
}

pub(crate) async fn decode_all(source: &Source, store: Arc<dyn SchemaStore>, size: usize) -> Vec<Decoded> {
    let row_type = Arc::new(RowType::from_contract(source).unwrap());
    let mut decoder = Decoder::new(0, source, row_type, store).unwrap();
    let mut all = Vec::new();
    for batch in batches(&source.topic, size) {
        all.push(decoder.decode(&batch).await.unwrap());
    }
    all
}

pub(crate) fn recorded() -> Vec<Source> {
    let (registry, _) = schemas();
    let pg = |table: &str| contract(&registry, &format!("shop.production.{table}-value"), &[]);
    let maria = contract(&registry, "mshop.mshop.product-value", &["t1"]);
    let (avro, json, wrapped, flat) = (Format::Avro, Format::Json, Envelope::Debezium, Envelope::Flattened);
    vec![
        source("shop.production.product", avro, wrapped, &["product_id"], pg("product")),
        source("shop.production.category", avro, wrapped, &["category_id"], pg("category")),
        source(
            "shop.production.product_category",
            avro,
            wrapped,
            &["product_id", "category_id"],
            pg("product_category"),
        ),
        source("shop.production.review", avro, wrapped, &["review_id"], pg("review")),
        source("shop.production.scratch", avro, wrapped, &["id"], pg("scratch")),
        source("mshop.mshop.product", avro, wrapped, &["id"], maria),
        source("flat.production.product", avro, flat, &["product_id"], pg("product")),
        source("flat.production.review", avro, flat, &["review_id"], pg("review")),
        source("json.production.product", json, wrapped, &["product_id"], pg("product")),
        source("json.production.review", json, wrapped, &["review_id"], pg("review")),
        source("bare.production.category", json, wrapped, &["category_id"], pg("category")),
    ]
}

#[tokio::test]
async fn every_message_of_the_recording_becomes_a_change() {
    let (_, store) = schemas();
    let store: Arc<dyn SchemaStore> = Arc::new(store);
    for source in recorded() {
        let all = decode_all(&source, store.clone(), 100).await;
        let rejects: Vec<_> =
            all.iter().flat_map(|d| &d.rejects).map(|r| (r.offset.0, r.rule, r.reason.clone())).collect();
        assert!(rejects.is_empty(), "{}: {} rejects, such as {:?}", source.topic, rejects.len(), rejects.first());
        let changes: usize = all.iter().map(|d| d.changes.len()).sum();
        let messages: usize = batches(&source.topic, 1000).iter().map(|b| b.messages.len()).sum();
        assert!(changes >= messages && messages > 0, "{}: {messages} messages, {changes} changes", source.topic);
    }
}

#[tokio::test]
async fn any_split_into_batches_decodes_the_same() {
    let (_, store) = schemas();
    let store: Arc<dyn SchemaStore> = Arc::new(store);
    let source = &recorded()[0];
    let flat =
        |all: Vec<Decoded>| -> Vec<String> { all.iter().flat_map(|d| &d.changes).map(|c| format!("{c:?}")).collect() };
    let whole = flat(decode_all(source, store.clone(), 10_000).await);
    for size in [1, 7, 64] {
        assert_eq!(flat(decode_all(source, store.clone(), size).await), whole);
    }
}

#[tokio::test]
async fn one_bad_message_harms_no_other() {
    let (_, store) = schemas();
    let store: Arc<dyn SchemaStore> = Arc::new(store);
    let source = &recorded()[3];
    let good = &batches(&source.topic, 50)[0];
    let mut mixed = MessageBatch::new(good.partition.clone());
    let first = good.value(&good.messages[0]).unwrap().to_vec();
    let key = good.key(&good.messages[0]).unwrap().to_vec();
    let mut magic = first.clone();
    magic[0] = 1;
    let mut id = first.clone();
    id[1..5].copy_from_slice(&9999_u32.to_be_bytes());
    let mut extra = first.clone();
    extra.push(0);
    let huge = vec![0xff_u8; 10 << 20];
    let bad: [(&[u8], Rule); 6] = [
        (&first[..first.len() - 1], Rule::Body),
        (&magic, Rule::Wire),
        (&id, Rule::UnknownSchema),
        (&extra, Rule::Body),
        (&huge, Rule::Wire),
        (b"", Rule::Wire),
    ];
    let mut offset = 0;
    for (n, message) in good.messages.iter().enumerate() {
        if let Some((value, _)) = bad.get(n) {
            mixed.push(Offset(offset), 0, Some(&key), Some(value));
            offset += 1;
        }
        mixed.push(Offset(offset), 0, good.key(message), good.value(message));
        offset += 1;
    }
    let row_type = Arc::new(RowType::from_contract(source).unwrap());
    let mut decoder = Decoder::new(0, source, row_type, store).unwrap();
    let alone = decoder.decode(good).await.unwrap();
    let decoded = decoder.decode(&mixed).await.unwrap();
    let rules: Vec<Rule> = decoded.rejects.iter().map(|r| r.rule).collect();
    assert_eq!(rules, bad.iter().map(|(_, rule)| *rule).collect::<Vec<_>>());
    assert_eq!(decoded.rejects[2].schema_id, Some(9999));
    assert_eq!(decoded.rejects[0].offset, Offset(0));
    assert_eq!(decoded.rejects[4].value.as_ref().unwrap().len(), 10 << 20, "the bytes are kept");
    let rows = |d: &Decoded| -> Vec<String> { d.changes.iter().map(|c| format!("{:?}{:?}", c.key, c.op)).collect() };
    assert_eq!(rows(&decoded), rows(&alone));
}

#[tokio::test]
async fn a_registry_that_is_away_is_no_reject() {
    struct Away;
    impl SchemaStore for Away {
        fn get(&self, _: u32) -> futures::future::BoxFuture<'_, Result<Option<Arc<str>>, Error>> {
            Box::pin(async { Err(Error { url: "u".into(), reason: "away".into() }) })
        }
    }
    let source = &recorded()[3];
    let row_type = Arc::new(RowType::from_contract(source).unwrap());
    let mut decoder = Decoder::new(0, source, row_type, Arc::new(Away)).unwrap();
    assert!(decoder.decode(&batches(&source.topic, 10)[0]).await.is_err());
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(300))]
    /// Whatever is done to a message, decoding neither panics nor loses it, and its neighbours come out as ever.
    #[test]
    fn mutated_messages_are_changes_or_rejects(at in 0_usize..600, byte in 0_u8..=255, cut in 0_usize..700, n in 0_usize..40) {
        let source = &recorded()[3];
        let (_, store) = schemas();
        let good = &batches(&source.topic, 40)[0];
        let mut mutated = good.value(&good.messages[n]).map(<[u8]>::to_vec).unwrap_or_default();
        mutated.truncate(cut);
        if let Some(b) = mutated.get_mut(at) { *b = byte; }
        let mut batch = MessageBatch::new(good.partition.clone());
        for (i, m) in good.messages.iter().enumerate() {
            batch.push(m.offset, 0, good.key(m), if i == n { Some(&mutated) } else { good.value(m) });
        }
        let row_type = Arc::new(RowType::from_contract(source).unwrap());
        let mut decoder = Decoder::new(0, source, row_type, Arc::new(store)).unwrap();
        let decoded = futures::executor::block_on(decoder.decode(&batch)).unwrap();
        let skipped = decoded.counts.skipped as usize;
        proptest::prop_assert!(decoded.changes.len() + decoded.rejects.len() + skipped >= batch.messages.len());
        proptest::prop_assert!(decoded.rejects.len() <= 1);
    }
}
