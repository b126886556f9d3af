//! SQL Server's events. None can run here: schemas, `connect.name`s and values are those that Debezium's documentation names for each type.

use std::collections::BTreeMap;
use std::sync::Arc;

use apache_avro::Schema;
use apache_avro::types::Value as Avro;
use apache_avro::writer::datum::GenericDatumWriter;
use arrow::util::display::array_value_to_string;
use freshet::decode::{Change, Counts, Decoder, FixedSchemas, Op, Origin, RowType};
use freshet::raw::{Events, Hydration, RawTable};
use freshet::time::Offset;
use serde_json::{Value, json};

use super::folder::Of;
use super::recording::{Event, batch};

const TOPIC: &str = "shop.shop.dbo.zoo";

/// A column: its name, its type on the wire, and two values, each with the text of what has to come out.
type Column = (&'static str, Value, [(Avro, &'static str); 2]);

fn named(wire: &str, name: &str) -> Value {
    json!({"type": wire, "connect.version": 1, "connect.name": name})
}

fn decimal(precision: u32, scale: u32) -> Value {
    json!({
        "type": "bytes", "scale": scale, "precision": precision, "connect.version": 1, "logicalType": "decimal",
        "connect.parameters": {"scale": scale.to_string(), "connect.decimal.precision": precision.to_string()},
        "connect.name": "org.apache.kafka.connect.data.Decimal",
    })
}

fn digits(unscaled: i128) -> Avro {
    Avro::Decimal(unscaled.to_be_bytes().to_vec().into())
}

fn text(text: &str) -> Avro {
    Avro::String(text.into())
}

#[rustfmt::skip]
fn columns() -> Vec<Column> {
    let (timestamp, micro, nano) = ("io.debezium.time.Timestamp", "io.debezium.time.MicroTimestamp", "io.debezium.time.NanoTimestamp");
    let (time, micro_time, nano_time) = ("io.debezium.time.Time", "io.debezium.time.MicroTime", "io.debezium.time.NanoTime");
    let zoned = "io.debezium.time.ZonedTimestamp";
    let mut fine = named("string", zoned);
    fine["freshet.type"] = "timestamp_ns".into();
    let (first, last) = (Avro::Long(-62_135_596_800_000), Avro::Long(253_402_300_799_999));
    let (micro_first, micro_last) = (Avro::Long(-62_135_596_800_000_000), Avro::Long(253_402_300_799_999_900));
    vec![
        ("datetime2_0", named("long", timestamp), [(Avro::Long(1_709_190_296_000), "2024-02-29T07:04:56"), (first.clone(), "0001-01-01T00:00:00")]),
        ("datetime2_1", named("long", timestamp), [(Avro::Long(1_709_190_296_700), "2024-02-29T07:04:56.700"), (first.clone(), "0001-01-01T00:00:00")]),
        ("datetime2_2", named("long", timestamp), [(Avro::Long(1_709_190_296_780), "2024-02-29T07:04:56.780"), (first, "0001-01-01T00:00:00")]),
        ("datetime2_3", named("long", timestamp), [(Avro::Long(1_709_190_296_789), "2024-02-29T07:04:56.789"), (last, "9999-12-31T23:59:59.999")]),
        ("datetime2_4", named("long", micro), [(Avro::Long(1_709_190_296_789_000), "2024-02-29T07:04:56.789"), (micro_last, "9999-12-31T23:59:59.999900")]),
        ("datetime2_5", named("long", micro), [(Avro::Long(1_709_190_296_789_010), "2024-02-29T07:04:56.789010"), (micro_first, "0001-01-01T00:00:00")]),
        ("datetime2_6", named("long", micro), [(Avro::Long(1_709_190_296_789_012), "2024-02-29T07:04:56.789012"), (Avro::Long(-1), "1969-12-31T23:59:59.999999")]),
        ("datetime2_7", named("long", nano), [(Avro::Long(1_709_190_296_789_012_300), "2024-02-29T07:04:56.789012300"), (Avro::Long(-100), "1969-12-31T23:59:59.999999900")]),
        ("datetime", named("long", timestamp), [(Avro::Long(1_709_190_296_997), "2024-02-29T07:04:56.997"), (Avro::Long(-6_847_804_800_000), "1753-01-01T00:00:00")]),
        ("smalldatetime", named("long", timestamp), [(Avro::Long(1_709_190_240_000), "2024-02-29T07:04:00"), (Avro::Long(3_453_148_740_000), "2079-06-04T23:59:00")]),
        ("datetimeoffset_6", named("string", zoned), [(text("2024-02-29T07:04:56.789012+05:30"), "2024-02-29T01:34:56.789012Z"), (text("9999-12-31T23:59:59.999999Z"), "9999-12-31T23:59:59.999999Z")]),
        ("datetimeoffset_7", fine, [(text("2024-02-29T07:04:56.7890123+02:00"), "2024-02-29T05:04:56.789012300Z"), (text("2024-02-29T07:04:56-14:00"), "2024-02-29T21:04:56Z")]),
        ("date", named("int", "io.debezium.time.Date"), [(Avro::Int(19_782), "2024-02-29"), (Avro::Int(-719_162), "0001-01-01")]),
        ("time_0", named("int", time), [(Avro::Int(25_496_000), "07:04:56"), (Avro::Int(0), "00:00:00")]),
        ("time_3", named("int", time), [(Avro::Int(25_496_789), "07:04:56.789"), (Avro::Int(86_399_999), "23:59:59.999")]),
        ("time_4", named("long", micro_time), [(Avro::Long(25_496_789_000), "07:04:56.789"), (Avro::Long(86_399_999_900), "23:59:59.999900")]),
        ("time_6", named("long", micro_time), [(Avro::Long(25_496_789_012), "07:04:56.789012"), (Avro::Long(86_399_999_999), "23:59:59.999999")]),
        ("time_7", named("long", nano_time), [(Avro::Long(25_496_789_012_300), "07:04:56.789012300"), (Avro::Long(86_399_999_999_900), "23:59:59.999999900")]),
        ("money", decimal(19, 4), [(digits(-9_223_372_036_854_775_808), "-922337203685477.5808"), (digits(i64::MAX.into()), "922337203685477.5807")]),
        ("smallmoney", decimal(10, 4), [(digits(-2_147_483_648), "-214748.3648"), (digits(50), "0.0050")]),
        ("decimal_38_10", decimal(38, 10), [(digits(99_999_999_999_999_999_999_999_999_999_999_999_999), "9999999999999999999999999999.9999999999"), (digits(-1), "-0.0000000001")]),
        ("numeric_5_0", decimal(5, 0), [(digits(99_999), "99999"), (digits(0), "0")]),
        ("uniqueidentifier", json!("string"), [(text("6F9619FF-8B86-D011-B42D-00C04FC964FF"), "6F9619FF-8B86-D011-B42D-00C04FC964FF"), (text("00000000-0000-0000-0000-000000000000"), "00000000-0000-0000-0000-000000000000")]),
        ("xml", named("string", "io.debezium.data.Xml"), [(text("<a b=\"1\">ü</a>"), "<a b=\"1\">ü</a>"), (text(""), "")]),
        ("rowversion", json!("bytes"), [(Avro::Bytes(vec![0, 0, 0, 0, 0, 0, 7, 0xd1]), "00000000000007d1"), (Avro::Bytes(vec![0xff; 8]), "ffffffffffffffff")]),
        ("hierarchyid", json!("bytes"), [(Avro::Bytes(vec![0x5a, 0xc0]), "5ac0"), (Avro::Bytes(vec![]), "")]),
        ("varbinary", json!("bytes"), [(Avro::Bytes(vec![0]), "00"), (Avro::Bytes(vec![]), "")]),
        ("bit", json!("boolean"), [(Avro::Boolean(true), "true"), (Avro::Boolean(false), "false")]),
        ("tinyint", json!({"type": "int", "connect.type": "int16"}), [(Avro::Int(255), "255"), (Avro::Int(0), "0")]),
        ("smallint", json!({"type": "int", "connect.type": "int16"}), [(Avro::Int(-32_768), "-32768"), (Avro::Int(32_767), "32767")]),
        ("int", json!("int"), [(Avro::Int(i32::MIN), "-2147483648"), (Avro::Int(i32::MAX), "2147483647")]),
        ("bigint", json!("long"), [(Avro::Long(i64::MIN), "-9223372036854775808"), (Avro::Long(i64::MAX), "9223372036854775807")]),
        ("real", json!("float"), [(Avro::Float(3.4e38), "3.4e38"), (Avro::Float(-0.0), "-0.0")]),
        ("float", json!("double"), [(Avro::Double(1e-300), "1e-300"), (Avro::Double(0.1), "0.1")]),
        ("nvarchar", json!("string"), [(text("Grüße 漢字 🚴"), "Grüße 漢字 🚴"), (text("trailing  "), "trailing  ")]),
    ]
}

/// The row's record: a key, and every column with null allowed.
fn record() -> Value {
    let mut fields = vec![json!({"name": "id", "type": "long"})];
    fields.extend(
        columns().into_iter().map(|(name, of, _)| json!({"name": name, "type": ["null", of], "default": null})),
    );
    json!({"type": "record", "name": "Value", "namespace": TOPIC, "connect.name": format!("{TOPIC}.Value"), "fields": fields})
}

/// The envelope that Debezium's connector for SQL Server writes.
fn envelope() -> Value {
    let optional = |name: &str, of: Value| json!({"name": name, "type": ["null", of], "default": null});
    let required = |name: &str, of: &str| json!({"name": name, "type": of});
    let source = json!({
        "type": "record", "name": "Source", "namespace": "io.debezium.connector.sqlserver",
        "connect.name": "io.debezium.connector.sqlserver.Source", "connect.version": 1,
        "fields": [
            required("version", "string"), required("connector", "string"), required("name", "string"), required("ts_ms", "long"),
            {"name": "snapshot", "type": [{
                "type": "string", "connect.version": 1, "connect.default": "false", "connect.name": "io.debezium.data.Enum",
                "connect.parameters": {"allowed": "true,first,first_in_data_collection,last_in_data_collection,last,false,incremental"},
            }, "null"], "default": "false"},
            required("db", "string"), optional("sequence", json!("string")), optional("ts_us", json!("long")),
            optional("ts_ns", json!("long")), required("schema", "string"), required("table", "string"),
            optional("change_lsn", json!("string")), optional("commit_lsn", json!("string")), optional("event_serial_no", json!("long")),
        ],
    });
    json!({
        "type": "record", "name": "Envelope", "namespace": TOPIC, "connect.name": format!("{TOPIC}.Envelope"), "connect.version": 2,
        "fields": [
            optional("before", record()), optional("after", json!("Value")), {"name": "source", "type": source},
            optional("transaction", json!({
                "type": "record", "name": "block", "namespace": "event", "connect.name": "event.block", "connect.version": 1,
                "fields": [required("id", "string"), required("total_order", "long"), required("data_collection_order", "long")],
            })),
            required("op", "string"), optional("ts_ms", json!("long")), optional("ts_us", json!("long")), optional("ts_ns", json!("long")),
        ],
    })
}

fn some(value: Avro) -> Avro {
    Avro::Union(1, Box::new(value))
}

fn null() -> Avro {
    Avro::Union(0, Box::new(Avro::Null))
}

fn fields<const N: usize>(fields: [(&str, Avro); N]) -> Avro {
    Avro::Record(fields.into_iter().map(|(name, value)| (name.to_string(), value)).collect())
}

/// A row of the columns' first or second values; of nulls for any other.
fn row(id: i64, which: usize) -> Avro {
    let mut row = vec![("id".to_string(), Avro::Long(id))];
    row.extend(columns().into_iter().map(|(name, _, values)| {
        (name.to_string(), values.into_iter().nth(which).map_or_else(null, |(value, _)| some(value)))
    }));
    Avro::Record(row)
}

/// commit_lsn, change_lsn, event_serial_no.
type Place = (&'static str, Option<&'static str>, Option<i64>);

fn event(op: &str, before: Option<Avro>, after: Option<Avro>, (commit, change, serial): Place) -> Avro {
    let or_null = |value: Option<Avro>| value.map_or_else(null, some);
    let snapshot = Avro::Union(0, Box::new(text(if op == "r" { "true" } else { "false" })));
    let source = fields([
        ("version", text("3.5.0.Final")),
        ("connector", text("sqlserver")),
        ("name", text("shop")),
        ("ts_ms", Avro::Long(1_709_190_296_789)),
        ("snapshot", snapshot),
        ("db", text("shop")),
        ("sequence", null()),
        ("ts_us", null()),
        ("ts_ns", null()),
        ("schema", text("dbo")),
        ("table", text("zoo")),
        ("change_lsn", or_null(change.map(text))),
        ("commit_lsn", some(text(commit))),
        ("event_serial_no", or_null(serial.map(Avro::Long))),
    ]);
    fields([
        ("before", or_null(before)),
        ("after", or_null(after)),
        ("source", source),
        ("transaction", null()),
        ("op", text(op)),
        ("ts_ms", some(Avro::Long(1_709_190_296_999))),
        ("ts_us", null()),
        ("ts_ns", null()),
    ])
}

/// Magic byte, schema id, body.
fn message(id: u32, schema: &Value, value: Avro) -> Vec<u8> {
    let schema = Schema::parse(schema).unwrap();
    let body = GenericDatumWriter::builder(&schema).build().unwrap().write_value_to_vec(value).unwrap();
    [&[0], &id.to_be_bytes()[..], &body].concat()
}

/// A snapshot, then two transactions: inserts, an update, a key that changes (a delete with its tombstone, and a create) and a delete.
fn events() -> Vec<Event> {
    let places: [Place; 8] = [
        ("00000027:00000ac0:0002", None, None),
        ("00000027:00000ac0:0002", None, None),
        ("00000027:00000b70:0005", Some("00000027:00000b70:0002"), Some(1)),
        ("00000027:00000b70:0005", Some("00000027:00000b70:0003"), Some(2)),
        ("00000027:00000b70:0005", Some("00000027:00000b70:0004"), Some(1)),
        ("00000027:00000b70:0005", Some("00000027:00000b70:0004"), Some(2)),
        // Digits are hexadecimal, and as many as ever: as texts they are in the order of the numbers.
        ("000000a0:00000010:0003", Some("000000a0:00000010:0002"), Some(1)),
        ("000000a0:00000010:0003", Some("000000a0:00000010:0002"), Some(9)),
    ];
    let key = json!({"type": "record", "name": "Key", "namespace": TOPIC, "fields": [{"name": "id", "type": "long"}]});
    let all: [(i64, Option<Avro>); 9] = [
        (1, Some(event("r", None, Some(row(1, 0)), places[0]))),
        (2, Some(event("r", None, Some(row(2, 2)), places[1]))),
        (3, Some(event("c", None, Some(row(3, 1)), places[2]))),
        (1, Some(event("u", Some(row(1, 0)), Some(row(1, 1)), places[3]))),
        (2, Some(event("d", Some(row(2, 2)), None, places[4]))),
        (2, None),
        (4, Some(event("c", None, Some(row(4, 2)), places[5]))),
        (5, Some(event("c", None, Some(row(5, 0)), places[6]))),
        (3, Some(event("d", Some(row(3, 1)), None, places[7]))),
    ];
    let envelope = envelope();
    let events = all.into_iter().enumerate().map(|(offset, (id, value))| Event {
        offset: offset as i64,
        timestamp_ms: 1_709_190_297_000,
        key: Some(message(1, &key, fields([("id", Avro::Long(id))]))),
        value: value.map(|value| message(2, &envelope, value)),
    });
    events.collect()
}

fn schemas() -> Arc<FixedSchemas> {
    let key = json!({"type": "record", "name": "Key", "namespace": TOPIC, "fields": [{"name": "id", "type": "long"}]});
    Arc::new(FixedSchemas([(1, key.to_string().into()), (2, envelope().to_string().into())].into()))
}

fn source() -> freshet::config::Source {
    Of { topic: TOPIC.into(), format: "avro", envelope: "debezium", key: vec!["id"], contract: record() }.checked()
}

async fn decoded(row_type: &Arc<RowType>) -> Vec<Change> {
    let mut decoder = Decoder::new(0, &source(), row_type.clone(), schemas()).unwrap();
    let decoded = decoder.decode(&batch(TOPIC, &events())).await.unwrap();
    assert_eq!(decoded.rejects.first().map(|r| &r.reason), None);
    let Counts { create, update, delete, snapshot, tombstone, .. } = decoded.counts;
    assert_eq!((create, update, delete, snapshot, tombstone), (3, 1, 2, 2, 1));
    decoded.changes
}

#[tokio::test]
async fn every_type_comes_out_as_it_was() {
    let row_type = Arc::new(RowType::from_contract(&source()).unwrap());
    let mut seen = 0;
    for (change, which) in decoded(&row_type).await.iter().zip([0, 2, 1, 1, 9, 9, 2, 0, 9]) {
        let Op::Upsert { row, unavailable: None } = &change.op else {
            assert_eq!(which, 9, "{change:?}");
            continue;
        };
        let arrays = row_type.rows_to_columns([&**row]).unwrap();
        for ((name, _, values), array) in columns().iter().zip(&arrays[1..]) {
            let found = array.is_valid(0).then(|| array_value_to_string(array, 0).unwrap());
            assert_eq!(found.as_deref(), values.get(which).map(|(_, text)| *text), "{name}");
            seen += 1;
        }
    }
    assert_eq!(seen, 6 * columns().len());
}

#[tokio::test]
async fn raw_keeps_positions_that_order_as_the_log_does() {
    let row_type = Arc::new(RowType::from_contract(&source()).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let location = folder.path().join("t");
    let topic: Arc<str> = TOPIC.into();
    let mut table = RawTable::open(location.to_str().unwrap(), &BTreeMap::new(), "items", &topic).await.unwrap();
    let mut landing = Events::new(&source(), schemas(), &table);
    landing.push(&batch(TOPIC, &events())).await.unwrap();
    table.append(&landing.take()).await.unwrap();

    let mut hydration = Hydration::open(&table, None, 0, &source(), row_type.clone(), schemas()).await.unwrap();
    let mut back = Vec::new();
    while let Some(some) = hydration.next().await.unwrap() {
        assert!(some.rejects.is_empty(), "{:?}", some.rejects);
        back.extend(some.changes);
    }
    let shown = |changes: &[Change]| changes.iter().map(|c| format!("{c:?}")).collect::<Vec<_>>();
    assert_eq!(shown(&back), shown(&decoded(&row_type).await), "what landed comes back as it is decoded");

    let place = |Origin { commit_lsn, change_lsn, event_serial_no, .. }: &Origin| {
        (commit_lsn.clone(), change_lsn.clone(), *event_serial_no)
    };
    // A tombstone has no source; the rows of a snapshot share one position.
    let mut placed: Vec<_> =
        back.iter().filter(|c| c.origin.commit_lsn.is_some()).map(|c| (place(&c.origin), c.offset)).collect();
    let in_order: Vec<Offset> = placed.iter().map(|(_, offset)| *offset).collect();
    assert_eq!(in_order.len(), 8);
    placed.reverse();
    placed.sort();
    assert_eq!(placed.iter().map(|(_, offset)| *offset).collect::<Vec<_>>(), in_order);
}

/// A time finer than its contract's column is not cut off silently: the contract has to say what it wants.
#[tokio::test]
async fn a_datetimeoffset_of_seven_digits_asks_for_nanoseconds() {
    let contract = json!({"type": "record", "name": "Value", "fields": [
        {"name": "id", "type": "long"}, {"name": "at", "type": named("string", "io.debezium.time.ZonedTimestamp")},
    ]});
    let source =
        Of { topic: TOPIC.into(), format: "avro", envelope: "flattened", key: vec!["id"], contract: contract.clone() }
            .checked();
    let row_type = Arc::new(RowType::from_contract(&source).unwrap());
    let schemas = Arc::new(FixedSchemas([(1, contract.to_string().into())].into()));
    let mut decoder = Decoder::new(0, &source, row_type, schemas).unwrap();
    let of = |at: &str| message(1, &contract, fields([("id", Avro::Long(1)), ("at", text(at))]));
    let event = |offset, at| Event { offset, timestamp_ms: 0, key: None, value: Some(of(at)) };
    let events = [event(0, "2024-02-29T07:04:56.7890120Z"), event(1, "2024-02-29T07:04:56.7890123Z")];
    let decoded = decoder.decode(&batch(TOPIC, &events)).await.unwrap();
    assert_eq!((decoded.changes.len(), decoded.rejects.len()), (1, 1));
    assert!(decoded.rejects[0].reason.contains("at"), "{}", decoded.rejects[0].reason);
}
