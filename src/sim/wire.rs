//! The shop's rows as Debezium's messages: products in Avro by the registry's schemas, categories in JSON with and without a schema part.

use std::collections::BTreeMap;
use std::sync::Arc;

use apache_avro::Schema;
use apache_avro::types::Value as Avro;
use apache_avro::writer::datum::GenericDatumWriter;
use serde_json::{Value, json};

use super::dataflow::{PRODUCTS, product_row};
use super::shop::{Category, Product};

const KEY: u32 = 1;
const VALUE: u32 = 2;
/// After the table has gained a column.
const WIDER_VALUE: u32 = 3;
const UNKNOWN: u32 = 99;
const UNAVAILABLE: &str = "__debezium_unavailable_value";

/// Schemas of messages in Avro, by their ids.
pub struct Wire(BTreeMap<u32, (Arc<str>, Schema)>);

impl Wire {
    pub fn new() -> Wire {
        let key =
            json!({"type": "record", "name": "Key", "namespace": PRODUCTS, "fields": [{"name": "id", "type": "long"}]});
        let narrow = product_row();
        let mut wide = narrow.clone();
        let column = json!({"name": "colour", "type": ["null", "string"], "default": null});
        wide["fields"].as_array_mut().expect("a row is a record").push(column);
        let parse = |(id, schema): (u32, Value)| {
            let text = schema.to_string();
            let parsed = Schema::parse_str(&text).expect("the schema is Avro's");
            (id, (text.into(), parsed))
        };
        let all = [(KEY, key), (VALUE, envelope(&narrow)), (WIDER_VALUE, envelope(&wide))];
        Wire(all.into_iter().map(parse).collect())
    }

    pub fn schemas(&self) -> BTreeMap<u32, Arc<str>> {
        self.0.iter().map(|(id, (text, _))| (*id, text.clone())).collect()
    }

    pub fn product_key(&self, id: i64) -> Vec<u8> {
        self.message(KEY, record(vec![("id", Avro::Long(id))]))
    }

    /// The event that leaves a product with this row; `keeps` says that its description is not sent, `wide` that its table has one more column.
    pub fn product(&self, id: i64, row: Option<&Product>, keeps: bool, wide: bool) -> Vec<u8> {
        let after = row.map(|row| {
            let description = if keeps { Some(UNAVAILABLE) } else { row.description.as_deref() };
            let mut fields = vec![
                ("id", Avro::Long(id)),
                ("name", Avro::String(row.name.clone())),
                ("description", optional(description.map(|text| Avro::String(text.into())))),
                ("category_id", Avro::Long(row.category)),
                ("version", Avro::Long(row.version)),
            ];
            if wide {
                fields.push(("colour", optional(Some(Avro::String("red".into())))));
            }
            record(fields)
        });
        let (op, before) = match after {
            Some(_) => ("u", None),
            None => {
                let absent = [("name", Avro::String(String::new())), ("description", optional(None))];
                let numbers = [("category_id", Avro::Long(0)), ("version", Avro::Long(0))];
                ("d", Some(record([("id", Avro::Long(id))].into_iter().chain(absent).chain(numbers).collect())))
            }
        };
        let source = record(vec![("ts_ms", Avro::Long(1_700_000_000_000)), ("table", Avro::String("product".into()))]);
        let parts = vec![
            ("before", optional(before)),
            ("after", optional(after)),
            ("source", source),
            ("op", Avro::String(op.into())),
        ];
        self.message(if wide { WIDER_VALUE } else { VALUE }, record(parts))
    }

    fn message(&self, id: u32, value: Avro) -> Vec<u8> {
        let writer = GenericDatumWriter::builder(&self.0[&id].1).build().expect("the schema can be written by");
        let body = writer.write_value_to_vec(value).expect("the value is of its schema");
        [&[0], &id.to_be_bytes()[..], &body].concat()
    }
}

/// A message by a schema that the registry does not have.
pub fn unknown_schema() -> Vec<u8> {
    [&[0], &UNKNOWN.to_be_bytes()[..], b"whatever"].concat()
}

/// The event that leaves a category with this row; with Connect's schema part, or bare.
pub fn category(id: i64, row: Option<&Category>, has_schema: bool) -> Vec<u8> {
    let payload = match row {
        Some(row) => json!({"before": null, "after": row.json(id), "op": "u"}),
        None => json!({"before": {"id": id, "title": "", "version": 0}, "after": null, "op": "d"}),
    };
    match has_schema {
        true => with_schema(&payload, false),
        false => payload.to_string().into_bytes(),
    }
}

/// A category that the contract refuses. Raw can take it apart, and then has no bytes of it.
pub fn refused_category(id: i64) -> Vec<u8> {
    with_schema(&json!({"before": null, "after": {"id": id, "title": null, "version": 0}, "op": "u"}), true)
}

/// With a title that may be null, or not.
fn with_schema(payload: &Value, nullable: bool) -> Vec<u8> {
    let row = |field: &str| {
        let field_of =
            |name: &str, of: &str| json!({"field": name, "type": of, "optional": nullable && name == "title"});
        let fields = [field_of("id", "int64"), field_of("title", "string"), field_of("version", "int64")];
        json!({"field": field, "type": "struct", "optional": true, "fields": fields})
    };
    let op = json!({"field": "op", "type": "string"});
    let schema = json!({"type": "struct", "fields": [row("before"), row("after"), op]});
    json!({"schema": schema, "payload": payload}).to_string().into_bytes()
}

fn envelope(row: &Value) -> Value {
    json!({"type": "record", "name": "Envelope", "namespace": PRODUCTS, "fields": [
        {"name": "before", "type": ["null", row], "default": null},
        {"name": "after", "type": ["null", "Value"], "default": null},
        {"name": "source", "type": {"type": "record", "name": "Source", "namespace": "io.debezium.connector.postgresql", "fields": [
            {"name": "ts_ms", "type": "long"}, {"name": "table", "type": "string"},
        ]}},
        {"name": "op", "type": "string"},
    ]})
}

fn optional(value: Option<Avro>) -> Avro {
    match value {
        None => Avro::Union(0, Box::new(Avro::Null)),
        Some(value) => Avro::Union(1, Box::new(value)),
    }
}

fn record(fields: Vec<(&str, Avro)>) -> Avro {
    Avro::Record(fields.into_iter().map(|(name, value)| (name.to_string(), value)).collect())
}
