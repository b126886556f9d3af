//! What Debezium really wrote, decoded; and what becomes of it when its bytes are damaged.

use std::sync::{Arc, OnceLock};

use arrow::array::AsArray;
use freshet::decode::{Decoded, Decoder, Error, FixedSchemas, RowType, Rule, SchemaStore};
use freshet::source::MessageBatch;
use freshet::time::Offset;
use futures::executor::block_on;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};

use super::allocation::largest_during;
use super::folder::Of;
use super::recording::{Event, Topic, batch, recording};

struct Reader {
    topic: Topic,
    source: freshet::config::Source,
    row_type: Arc<RowType>,
}

/// The recording's topics, each with its source, made once.
fn readers() -> &'static [Reader] {
    static READERS: OnceLock<Vec<Reader>> = OnceLock::new();
    READERS.get_or_init(|| {
        let reader = |topic: Topic| {
            let source = topic.source.checked();
            Reader { row_type: Arc::new(RowType::from_contract(&source).unwrap()), source, topic }
        };
        recording().topics().into_iter().map(reader).collect()
    })
}

fn reader(topic: &str) -> &'static Reader {
    readers().iter().find(|r| r.topic.source.topic == topic).unwrap()
}

impl Reader {
    fn events(&self) -> &'static [Event] {
        recording().events(&self.source.topic)
    }

    fn decoder(&self) -> Decoder {
        Decoder::new(0, &self.source, self.row_type.clone(), recorded_schemas()).unwrap()
    }

    fn decode(&self, decoder: &mut Decoder, events: &[Event]) -> Decoded {
        block_on(decoder.decode(&batch(&self.source.topic, events))).unwrap()
    }
}

fn recorded_schemas() -> Arc<FixedSchemas> {
    static STORE: OnceLock<Arc<FixedSchemas>> = OnceLock::new();
    STORE.get_or_init(|| recording().store()).clone()
}

fn shown(decoded: &Decoded) -> Vec<String> {
    decoded.changes.iter().map(|c| format!("{c:?}")).collect()
}

#[test]
fn every_message_of_the_recording_becomes_a_change() {
    for reader in readers() {
        let decoded = reader.decode(&mut reader.decoder(), reader.events());
        let reject = decoded.rejects.first().map(|r| (r.offset.0, r.rule, &r.reason));
        assert_eq!(reject, None, "{}", reader.source.topic);
        let mut offsets: Vec<i64> = decoded.changes.iter().map(|c| c.offset.0).collect();
        offsets.dedup();
        let all: Vec<i64> = reader.events().iter().map(|e| e.offset).collect();
        assert_eq!(offsets, all, "{}", reader.source.topic);
    }
}

#[test]
fn any_split_into_batches_decodes_the_same() {
    for reader in readers() {
        let whole = shown(&reader.decode(&mut reader.decoder(), reader.events()));
        for size in [1, 7, 64] {
            let mut decoder = reader.decoder();
            let parts = reader.events().chunks(size).flat_map(|events| shown(&reader.decode(&mut decoder, events)));
            assert!(parts.eq(whole.iter().cloned()), "{}, {size} a batch", reader.source.topic);
        }
    }
}

#[test]
fn what_carries_no_row_is_skipped() {
    let product = reader("shop.production.product");
    for topic in ["__debezium-heartbeat.shop", "shop.transaction", "mshop.transaction", "mshop"] {
        // The keys of these are their own; what counts is the value.
        let events: Vec<Event> = recording().events(topic).iter().map(|e| Event { key: None, ..e.clone() }).collect();
        let decoded = product.decode(&mut product.decoder(), &events);
        assert_eq!(decoded.rejects.first().map(|r| &r.reason), None, "{topic}");
        assert_eq!((decoded.changes.len(), decoded.counts.skipped), (0, events.len() as u64), "{topic}");
    }
}

#[test]
fn a_flattened_row_may_have_columns_that_service_records_have() {
    let field = |name: &str| json!({"name": name, "type": ["null", "string"], "default": null});
    let names = ["ddl", "status", "event_count", "ts_ms", "op"];
    let fields: Vec<Value> = std::iter::once(json!({"name": "id", "type": "long"})).chain(names.map(field)).collect();
    let contract = json!({"type": "record", "name": "r", "fields": fields});
    let of = Of { topic: "t".into(), format: "json", envelope: "flattened", key: vec!["id"], contract };
    let source = of.checked();
    let row_type = Arc::new(RowType::from_contract(&source).unwrap());
    let mut decoder = Decoder::new(0, &source, row_type, recorded_schemas()).unwrap();
    let mut batch = MessageBatch::new(freshet::time::Partition::new("t", 0));
    for (n, row) in [
        json!({"id": 1, "ddl": "create table"}),
        json!({"id": 2, "status": "END", "event_count": "3"}),
        json!({"id": 3, "ts_ms": "1"}),
        json!({"id": 4, "op": "x"}),
    ]
    .iter()
    .enumerate()
    {
        batch.push(Offset(n as i64), 0, None, Some(row.to_string().as_bytes()));
    }
    let decoded = block_on(decoder.decode(&batch)).unwrap();
    assert_eq!(decoded.rejects.first().map(|r| &r.reason), None);
    assert_eq!((decoded.changes.len(), decoded.counts.skipped), (4, 0));
}

#[test]
fn one_bad_message_harms_no_other() {
    let reader = reader("shop.production.review");
    let good = &reader.events()[..50];
    let (key, first) = (good[0].key.clone(), good[0].value.clone().unwrap());
    let huge = vec![0xff; 10 << 20];
    let bad: [(Vec<u8>, Rule); 6] = [
        (first[..first.len() - 1].to_vec(), Rule::Body),
        ([&[1], &first[1..]].concat(), Rule::Wire),
        ([&[0], &9999_u32.to_be_bytes()[..], &first[5..]].concat(), Rule::UnknownSchema),
        ([&first[..], &[0]].concat(), Rule::Body),
        (huge, Rule::Wire),
        (Vec::new(), Rule::Wire),
    ];
    let mut mixed = Vec::new();
    for (n, event) in good.iter().enumerate() {
        if let Some((value, _)) = bad.get(n) {
            mixed.push(Event { key: key.clone(), value: Some(value.clone()), ..event.clone() });
        }
        mixed.push(event.clone());
    }
    for (offset, event) in mixed.iter_mut().enumerate() {
        event.offset = offset as i64;
    }
    let mut decoder = reader.decoder();
    let alone = reader.decode(&mut decoder, good);
    let decoded = reader.decode(&mut decoder, &mixed);
    let rules: Vec<Rule> = decoded.rejects.iter().map(|r| r.rule).collect();
    assert_eq!(rules, bad.iter().map(|(_, rule)| *rule).collect::<Vec<_>>());
    assert_eq!((decoded.rejects[2].schema_id, decoded.rejects[0].offset), (Some(9999), Offset(0)));
    assert_eq!(decoded.rejects[4].value.as_ref().unwrap().len(), 10 << 20, "the bytes are kept");
    let rows = |d: &Decoded| -> Vec<String> { d.changes.iter().map(|c| format!("{:?}{:?}", c.key, c.op)).collect() };
    assert_eq!(rows(&decoded), rows(&alone));
}

#[test]
fn an_empty_text_is_a_key_like_any_other() {
    let record = |fields: Value| json!({"type": "record", "name": "row", "fields": fields});
    let code = json!({"name": "code", "type": "string"});
    let note = json!({"name": "note", "type": ["null", "string"], "default": null});
    let contract = record(json!([code, note]));
    let schemas = [(1, contract.to_string().into()), (2, record(json!([code])).to_string().into())];
    let schemas = Arc::new(FixedSchemas(schemas.into()));
    // A record with the key's column, and the key as the bare value that it is.
    let avro = [(b"\0\0\0\0\x02\0".to_vec(), b"\0\0\0\0\x01\0\x02\x02n".to_vec())];
    let json = [r#"{"code": ""}"#, r#""""#].map(|key| (key.into(), br#"{"code": "", "note": "n"}"#.to_vec()));
    for (format, events) in [("avro", &avro[..]), ("json", &json)] {
        let key = vec!["code"];
        let source = Of { topic: "t".into(), format, envelope: "flattened", key, contract: contract.clone() }.checked();
        let row_type = Arc::new(RowType::from_contract(&source).unwrap());
        let mut decoder = Decoder::new(0, &source, row_type.clone(), schemas.clone()).unwrap();
        for (key, value) in events {
            let event = |offset, value| Event { offset, timestamp_ms: 0, key: Some(key.clone()), value };
            let events = [event(0, Some(value.clone())), event(1, None)];
            let decoded = block_on(decoder.decode(&batch("t", &events))).unwrap();
            assert_eq!(decoded.rejects.first().map(|r| &r.reason), None, "{format}");
            let keys = row_type.key_converter().unwrap();
            let parser = keys.parser();
            let keys = keys.convert_rows(decoded.changes.iter().map(|c| parser.parse(&c.key))).unwrap();
            assert_eq!(keys[0].as_string::<i32>().iter().collect::<Vec<_>>(), [Some(""); 2], "{format}");
        }
    }
}

#[test]
fn a_key_that_is_not_the_configured_one_is_refused() {
    let record = |fields: Value| json!({"type": "record", "name": "row", "fields": fields});
    let (id, sku) = (json!({"name": "id", "type": "long"}), json!({"name": "sku", "type": "string"}));
    let contract = record(json!([id, sku]));
    let schemas = [(1, contract.to_string().into()), (2, record(json!([id])).to_string().into())];
    let schemas = Arc::new(FixedSchemas(schemas.into()));
    let avro = (b"\0\0\0\0\x02\x0e".to_vec(), b"\0\0\0\0\x01\x0e\x02a".to_vec());
    let json = (br#"{"id": 7}"#.to_vec(), br#"{"id": 7, "sku": "a"}"#.to_vec());
    for (format, (key, value)) in [("avro", avro), ("json", json)] {
        let of = Of { topic: "t".into(), format, envelope: "flattened", key: vec!["sku"], contract: contract.clone() };
        let source = of.checked();
        let row_type = Arc::new(RowType::from_contract(&source).unwrap());
        let mut decoder = Decoder::new(0, &source, row_type, schemas.clone()).unwrap();
        let event = |offset, key: Option<&Vec<u8>>, value| Event { offset, timestamp_ms: 0, key: key.cloned(), value };
        // A row, its tombstone, and a row of a table without a key.
        let events =
            [event(0, Some(&key), Some(value.clone())), event(1, Some(&key), None), event(2, None, Some(value))];
        let decoded = block_on(decoder.decode(&batch("t", &events))).unwrap();
        assert_eq!(decoded.changes.iter().map(|c| c.offset.0).collect::<Vec<_>>(), [2], "{format}");
        for reject in &decoded.rejects {
            assert!(reject.rule == Rule::Contract && reject.reason.contains("source.key (sku)"), "{}", reject.reason);
        }
        assert_eq!(decoded.rejects.len(), 2, "{format}");
    }
}

#[test]
fn the_sources_own_time_counts_wherever_it_stands() {
    let contract = json!({"type": "record", "name": "r", "fields": [{"name": "id", "type": "long"}]});
    let of = Of { topic: "t".into(), format: "json", envelope: "flattened", key: vec!["id"], contract };
    let source = of.checked();
    let row_type = Arc::new(RowType::from_contract(&source).unwrap());
    let mut decoder = Decoder::new(0, &source, row_type, recorded_schemas()).unwrap();
    let rows = [
        json!({"id": 1, "__source_ts_ms": 1000, "__ts_ms": 2000}),
        json!({"id": 2, "__ts_ms": 2000, "__source_ts_ms": 1000}),
        json!({"id": 3, "__ts_ms": 2000}),
    ];
    let events = rows.map(|row| row.to_string().into_bytes());
    let event = |value: &Vec<u8>| Event { offset: 0, timestamp_ms: 0, key: None, value: Some(value.clone()) };
    let decoded = block_on(decoder.decode(&batch("t", &events.iter().map(event).collect::<Vec<_>>()))).unwrap();
    assert_eq!(decoded.changes.iter().map(|c| c.commit_ms).collect::<Vec<_>>(), [1000, 1000, 2000]);
}

/// PostgreSQL's infinities, as Debezium writes them.
#[test]
fn what_never_ends_is_after_all_that_can_be_shown() {
    let instant = |name: &str, type_: &str, meaning: &str| json!({"name": name, "type": {"type": type_, "connect.name": format!("io.debezium.time.{meaning}")}});
    let fields = json!([
        {"name": "id", "type": "long"},
        instant("zoned", "string", "ZonedTimestamp"),
        instant("micros", "long", "MicroTimestamp"),
    ]);
    let contract = json!({"type": "record", "name": "r", "fields": fields});
    let of = Of { topic: "t".into(), format: "json", envelope: "flattened", key: vec!["id"], contract };
    let source = of.checked();
    let row_type = Arc::new(RowType::from_contract(&source).unwrap());
    let mut decoder = Decoder::new(0, &source, row_type.clone(), recorded_schemas()).unwrap();
    let (first, last) = (-8_334_601_228_800_000_000_i64, 8_210_266_876_799_999_999_i64);
    let rows = [
        json!({"id": 1, "zoned": "+292278994-08-16T23:00:00Z", "micros": 9_223_372_036_825_200_000_i64}),
        json!({"id": 2, "zoned": "-292275055-05-16T23:00:00Z", "micros": -9_223_372_036_832_400_000_i64}),
        json!({"id": 3, "zoned": "+262142-12-31T23:59:59.999999Z", "micros": last}),
        json!({"id": 4, "zoned": "2026-01-01T00:00:00Z", "micros": last + 1}),
        json!({"id": 5, "zoned": "+262143-01-01T00:00:00Z", "micros": 0}),
    ];
    let event = |(n, row): (usize, &Value)| Event {
        offset: n as i64,
        timestamp_ms: 0,
        key: None,
        value: Some(row.to_string().into_bytes()),
    };
    let events: Vec<Event> = rows.iter().enumerate().map(event).collect();
    let decoded = block_on(decoder.decode(&batch("t", &events))).unwrap();
    let rows = decoded.changes.iter().map(|change| match &change.op {
        freshet::decode::Op::Upsert { row, .. } => &**row,
        other => panic!("{other:?}"),
    });
    let columns = row_type.rows_to_columns(rows).unwrap();
    for column in &columns[1..] {
        let column = column.as_primitive::<arrow::datatypes::TimestampMicrosecondType>();
        assert_eq!(column.values().to_vec(), [last, first, last]);
    }
    assert_eq!(decoded.rejects.iter().map(|r| r.offset.0).collect::<Vec<_>>(), [3, 4]);
    for reject in &decoded.rejects {
        assert!(reject.reason.contains("outside of the years"), "{}", reject.reason);
    }
}

#[test]
fn a_registry_that_is_away_is_no_reject() {
    struct Away;
    impl SchemaStore for Away {
        fn get(&self, _: u32) -> futures::future::BoxFuture<'_, Result<Option<Arc<str>>, Error>> {
            Box::pin(async { Err(Error::Away { url: "u".into(), reason: "away".into() }) })
        }
    }
    let reader = reader("shop.production.review");
    let mut decoder = Decoder::new(0, &reader.source, reader.row_type.clone(), Arc::new(Away)).unwrap();
    let batch: MessageBatch = batch(&reader.source.topic, &reader.events()[..10]);
    assert!(block_on(decoder.decode(&batch)).is_err());
}

/// What is done to the bytes of a message. Places are shares of its length.
#[derive(Clone, Debug)]
enum Damage {
    Byte(Index, u8),
    Bit(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Cut(Index),
    /// A length or a count that no message of this size backs: up to 2^62, either sign.
    Length(Index, u8),
    Double,
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let at = |index: &Index| index.index(bytes.len().max(1));
        match self {
            Damage::Byte(index, _) | Damage::Bit(index, _) if bytes.get(at(index)).is_none() => {}
            Damage::Byte(index, byte) => {
                let at = at(index);
                bytes[at] = *byte;
            }
            Damage::Bit(index, bit) => {
                let at = at(index);
                bytes[at] ^= 1 << (bit % 8);
            }
            Damage::Insert(index, new) => {
                let at = at(index).min(bytes.len());
                bytes.splice(at..at, new.iter().copied());
            }
            Damage::Remove(index, count) => {
                let at = at(index).min(bytes.len());
                bytes.drain(at..(at + count).min(bytes.len()));
            }
            Damage::Cut(index) => bytes.truncate(at(index)),
            Damage::Length(index, size) => {
                let at = at(index).min(bytes.len());
                let mut long = vec![0xfe | (size & 1); usize::from(size % 9) + 1];
                long.push(0x7e);
                bytes.splice(at..(at + 1).min(bytes.len()), long);
            }
            Damage::Double => bytes.extend_from_within(..),
        }
    }
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        3 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Damage::Byte(at, byte)),
        3 => (any::<Index>(), any::<u8>()).prop_map(|(at, bit)| Damage::Bit(at, bit)),
        2 => (any::<Index>(), proptest::collection::vec(any::<u8>(), 1..12)).prop_map(|(at, new)| Damage::Insert(at, new)),
        2 => (any::<Index>(), 1..20_usize).prop_map(|(at, count)| Damage::Remove(at, count)),
        2 => any::<Index>().prop_map(Damage::Cut),
        4 => (any::<Index>(), any::<u8>()).prop_map(|(at, size)| Damage::Length(at, size)),
        1 => Just(Damage::Double),
    ]
}

/// Longest that a single allocation may be while a message of some KiB is decoded. PostgreSQL's longest `numeric` has 147,455 digits, and a
/// `VariableScaleDecimal` of five bytes may be one.
const ALLOCATION_MAX_BYTES: usize = 1 << 20;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    /// Whatever is done to a message of any kind: decoding does not panic, the message comes to exactly one of change, reject or skip, its
    /// neighbours come out as ever, and a length that it only claims is not allocated.
    #[test]
    fn a_damaged_message_is_one_thing_and_harms_no_other(
        topic in any::<Index>(),
        n in any::<Index>(),
        of_key in proptest::bool::weighted(0.2),
        damages in proptest::collection::vec(damage(), 1..4),
    ) {
        let reader = topic.get(readers());
        // Seven messages, of which the middle one is damaged.
        let window = &reader.events()[n.index(reader.events().len() - 6)..][..7];
        let mut decoder = reader.decoder();
        let alone = reader.decode(&mut decoder, window);
        let mut damaged = window.to_vec();
        let event = &mut damaged[3];
        let part = if of_key { &mut event.key } else { &mut event.value };
        if let Some(bytes) = part {
            damages.iter().for_each(|d| d.apply(bytes));
        }
        let offset = Offset(event.offset);
        // The plans are made by now; what is allocated from here on is the message's doing.
        let (decoded, largest) = largest_during(|| reader.decode(&mut decoder, &damaged));
        prop_assert!(largest <= ALLOCATION_MAX_BYTES, "{largest} bytes at once");

        let changes = decoded.changes.iter().filter(|c| c.offset == offset).count();
        let skipped = (decoded.counts.skipped - alone.counts.skipped) as usize;
        prop_assert_eq!(usize::from(changes > 0) + decoded.rejects.len() + skipped, 1);
        prop_assert!(decoded.rejects.iter().all(|r| r.offset == offset && !r.reason.is_empty()));
        if let Some(reject) = decoded.rejects.first() {
            let (key, value) = (damaged[3].key.as_deref(), damaged[3].value.as_deref());
            prop_assert_eq!((reject.key.as_deref(), reject.value.as_deref()), (key, value), "its bytes are kept");
        }
        let others = |d: &Decoded| -> Vec<String> {
            d.changes.iter().filter(|c| c.offset != offset).map(|c| format!("{c:?}")).collect()
        };
        prop_assert_eq!(others(&decoded), others(&alone));
    }
}
