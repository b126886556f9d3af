//! JSON as Kafka Connect's `JsonConverter` writes it, read by the same schemas as Avro: bytes are base64, special floats are text.
//!
//! The invariant: a value is taken only if its JSON type is the one that its schema asks for; nothing is coerced.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::cell::Raw;
use super::schema::{NodeId, Schema, Shape};

/// The value at `id`.
pub(crate) fn read<'a>(schema: &Schema, id: NodeId, value: &'a Value) -> Result<Raw<'a>, String> {
    let (nullable, node) = schema.optional(id);
    let misfit = || Err(format!("{} stands where {} should", shown(value), name(&schema.node(node).shape)));
    Ok(match (&schema.node(node).shape, value) {
        (_, Value::Null) if nullable => Raw::Null,
        (Shape::Boolean, Value::Bool(v)) => Raw::Bool(*v),
        (Shape::Int, Value::Number(n)) => match n.as_i64().filter(|v| i32::try_from(*v).is_ok()) {
            Some(v) => Raw::Int(v),
            None => return misfit(),
        },
        (Shape::Long, Value::Number(n)) => match n.as_i64() {
            Some(v) => Raw::Int(v),
            None => return misfit(),
        },
        (Shape::Float, v) => match double(v) {
            Some(v) => Raw::Float(v as f32),
            None => return misfit(),
        },
        (Shape::Double, v) => match double(v) {
            Some(v) => Raw::Double(v),
            None => return misfit(),
        },
        (Shape::String, Value::String(text)) => Raw::Str(Cow::Borrowed(text)),
        (Shape::Enum(symbols), Value::String(text)) if symbols.iter().any(|s| **s == **text) => {
            Raw::Str(Cow::Borrowed(text))
        }
        (Shape::Bytes, Value::String(text)) => Raw::Bytes(base64(text)?),
        (Shape::Fixed(size), Value::String(text)) => match base64(text)? {
            bytes if bytes.len() == *size => Raw::Bytes(bytes),
            _ => return misfit(),
        },
        (Shape::Array(items), Value::Array(values)) => {
            Raw::List(values.iter().map(|v| read(schema, *items, v)).collect::<Result<_, _>>()?)
        }
        (Shape::Record(record), Value::Object(object)) => {
            let field = |name: &str| match (record.field(name), object.get(name)) {
                (Some((_, field)), Some(value)) => read(schema, field.node, value),
                _ => Err(format!("an object lacks {name}")),
            };
            match (field("scale")?, field("value")?) {
                (Raw::Int(scale), Raw::Bytes(value)) => Raw::Scaled(scale, value),
                _ => return misfit(),
            }
        }
        _ => return misfit(),
    })
}

fn double(value: &Value) -> Option<f64> {
    match value {
        Value::Number(n) => n.as_f64(),
        Value::String(text) => match text.as_str() {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        _ => None,
    }
}

fn base64(text: &str) -> Result<Cow<'static, [u8]>, String> {
    STANDARD.decode(text).map(Cow::Owned).map_err(|e| format!("bytes are not base64: {e}"))
}

fn name(shape: &Shape) -> &'static str {
    match shape {
        Shape::Null => "null",
        Shape::Boolean => "a boolean",
        Shape::Int => "a 32 bit integer",
        Shape::Long => "a 64 bit integer",
        Shape::Float | Shape::Double => "a number",
        Shape::Bytes | Shape::Fixed(_) => "bytes in base64",
        Shape::String => "text",
        Shape::Enum(_) => "a symbol of an enum",
        Shape::Array(_) => "a list",
        Shape::Map(_) | Shape::Record(_) => "an object",
        Shape::Union(_) => "one of several types",
    }
}

pub(crate) fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => format!("the text {:?}", text.chars().take(40).collect::<String>()),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nothing_is_coerced() {
        let check = |avro: &str, value: Value, expect: Option<Raw<'static>>| {
            let schema = Schema::from_avro(avro).unwrap();
            assert_eq!(read(&schema, schema.root, &value).ok(), expect, "{value}");
        };
        check(r#""int""#, json!(5), Some(Raw::Int(5)));
        check(r#""int""#, json!(5.0), None);
        check(r#""int""#, json!("5"), None);
        check(r#""int""#, json!(1_i64 << 40), None);
        check(r#""long""#, json!(u64::MAX), None);
        check(r#""string""#, json!(5), None);
        check(r#""string""#, Value::Null, None);
        check(r#"["null","string"]"#, Value::Null, Some(Raw::Null));
        check(r#""double""#, json!("Infinity"), Some(Raw::Double(f64::INFINITY)));
        check(r#""bytes""#, json!("AP8B"), Some(Raw::Bytes(Cow::Borrowed(&[0, 255, 1]))));
        check(r#""bytes""#, json!("?"), None);
        check(r#""boolean""#, json!(1), None);
    }
}
