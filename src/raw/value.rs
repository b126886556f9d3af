//! How a value of a writer's type lies in a Delta table, and the way back to what stood on the wire.
//!
//! The invariant: there and back gives the same wire value, or the value is refused and its message keeps its bytes. Each kind lies in its
//! widest type, so that a column that a database widens (`int` to `bigint`, more digits) stays the column that it is.
//!
//! | on the wire | in Delta |
//! |---|---|
//! | boolean | `boolean` |
//! | int, long, a year | `long` |
//! | float, double | `double` |
//! | text, uuid, json, xml, an enum's symbol; timestamps, dates, times and intervals that are text | `string`, as it came |
//! | bytes, bits | `binary` |
//! | days since 1970 | `date` |
//! | milli- and microseconds since 1970 | `timestamp` |
//! | nanoseconds since 1970 | `long` with a comment: `timestamp` ends at microseconds |
//! | times of day and durations | `long` with its unit as comment: Delta has no such type |
//! | decimals of at most 38 digits | `decimal(38, scale)` |
//! | wider decimals, decimals that bring their scale along | `string` in plain notation |
//! | lists of these | `array` |
//! | anything else (records, maps, unions, lists of them) | `string`: JSON, with bytes in base64 |

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{
    DECIMAL128_MAX_PRECISION, DataType, Date32Type, Decimal128Type, Field, Float64Type, Int64Type, TimeUnit,
    TimestampMicrosecondType, i256,
};

use crate::decode::cell::{Cell, Raw};
use crate::decode::logical::{Meaning, Type, UTC, Wire};
use crate::decode::schema::{NodeId, Schema, Shape};
use crate::decode::text;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Form {
    Boolean,
    Long,
    Float,
    Double,
    Text,
    Binary,
    Date,
    /// Microseconds since 1970, and how many of them are one of the wire's.
    Timestamp(i64),
    /// Microseconds of a time or a duration, and how many of them are one of the wire's.
    Micros(i64),
    Nanos,
    NanosSince1970,
    Decimal(i8),
    /// A decimal that has no room in Delta's, by its scale.
    DecimalText(i8),
    /// A decimal that brings its scale along.
    ScaledText,
    List(Box<Form>),
    /// Whatever no contract can read either.
    Json,
}

impl Form {
    /// The form of what a writer has at `id`, null looked through.
    pub fn of(schema: &Schema, id: NodeId) -> Form {
        let node = schema.optional(id).1;
        if let Some(form) = Type::of(schema, node, None).ok().and_then(|ty| Form::of_type(&ty)) {
            return form;
        }
        // A name that is not known, on a wire type that is.
        match &schema.node(node).shape {
            Shape::Boolean => Form::Boolean,
            Shape::Int | Shape::Long => Form::Long,
            Shape::Float => Form::Float,
            Shape::Double => Form::Double,
            Shape::String | Shape::Enum(_) => Form::Text,
            Shape::Bytes | Shape::Fixed(_) => Form::Binary,
            Shape::Null | Shape::Array(_) | Shape::Map(_) | Shape::Union(_) | Shape::Record(_) => Form::Json,
        }
    }

    fn of_type(ty: &Type) -> Option<Form> {
        let micros = |unit| match unit {
            TimeUnit::Second => Some(1_000_000),
            TimeUnit::Millisecond => Some(1_000),
            TimeUnit::Microsecond => Some(1),
            TimeUnit::Nanosecond => None,
        };
        Some(match ty.meaning {
            Meaning::Plain | Meaning::DecimalText => match &ty.wire {
                Wire::Boolean => Form::Boolean,
                Wire::Int | Wire::Long => Form::Long,
                Wire::Float => Form::Float,
                Wire::Double => Form::Double,
                Wire::String | Wire::Enum(_) => Form::Text,
                Wire::Bytes | Wire::Fixed(_) => Form::Binary,
                Wire::Scaled => Form::ScaledText,
                Wire::List(item) => Form::List(Box::new(Form::of_type(item)?)),
            },
            Meaning::Days => Form::Date,
            Meaning::TimeOfDay(unit) | Meaning::Elapsed(unit) => micros(unit).map_or(Form::Nanos, Form::Micros),
            Meaning::Instant(unit) => micros(unit).map_or(Form::NanosSince1970, Form::Timestamp),
            Meaning::Unscaled { scale, precision } => {
                let most = i64::from(DECIMAL128_MAX_PRECISION);
                let scale8 = i8::try_from(scale).ok()?;
                match precision.is_some_and(|p| p.max(scale) <= most) && scale >= 0 {
                    true => Form::Decimal(scale8),
                    false => Form::DecimalText(scale8),
                }
            }
            Meaning::Scaled => Form::ScaledText,
            Meaning::ZonedTimestamp
            | Meaning::ZonedTime
            | Meaning::IsoDate
            | Meaning::IsoTime
            | Meaning::IsoTimestamp
            | Meaning::Interval => Form::Text,
        })
    }

    pub fn data_type(&self) -> DataType {
        match self {
            Form::Boolean => DataType::Boolean,
            Form::Long | Form::Micros(_) | Form::Nanos | Form::NanosSince1970 => DataType::Int64,
            Form::Float | Form::Double => DataType::Float64,
            Form::Text | Form::DecimalText(_) | Form::ScaledText | Form::Json => DataType::Utf8,
            Form::Binary => DataType::Binary,
            Form::Date => DataType::Date32,
            Form::Timestamp(_) => DataType::Timestamp(TimeUnit::Microsecond, Some(UTC.into())),
            Form::Decimal(scale) => DataType::Decimal128(DECIMAL128_MAX_PRECISION, *scale),
            Form::List(item) => DataType::List(Arc::new(Field::new("element", item.data_type(), true))),
        }
    }

    /// What the type alone does not say; a part of the column's type.
    pub fn comment(&self) -> Option<&'static str> {
        match self {
            Form::Micros(_) => Some("microseconds"),
            Form::Nanos => Some("nanoseconds"),
            Form::NanosSince1970 => Some("nanoseconds since 1970"),
            Form::List(item) => item.comment(),
            _ => None,
        }
    }

    /// The value as a cell of [`Form::data_type`]. The error says what has no room there.
    pub fn cell<'a>(&self, raw: Raw<'a>) -> Result<Cell<'a>, String> {
        let scaled = |value: i64, by: &i64| {
            value.checked_mul(*by).map(Cell::Int).ok_or_else(|| format!("{value} is beyond 64 bits of microseconds"))
        };
        Ok(match (self, raw) {
            (_, Raw::Null) => Cell::Null,
            (Form::Boolean, Raw::Bool(v)) => Cell::Bool(v),
            (Form::Long | Form::Nanos | Form::NanosSince1970 | Form::Date, Raw::Int(v)) => Cell::Int(v),
            (Form::Timestamp(by) | Form::Micros(by), Raw::Int(v)) => scaled(v, by)?,
            (Form::Float, Raw::Float(v)) => Cell::Double(v.into()),
            (Form::Double, Raw::Double(v)) => Cell::Double(v),
            (Form::Text | Form::Json, Raw::Str(v)) => Cell::Str(v),
            (Form::Binary, Raw::Bytes(v)) => Cell::Bytes(v),
            (Form::Decimal(_), Raw::Bytes(v)) => {
                let limit = i256::from_i128(10_i128.pow(u32::from(DECIMAL128_MAX_PRECISION)));
                let value = text::unscaled(&v).filter(|v| *v < limit && *v > limit.wrapping_neg());
                Cell::Decimal(value.ok_or("a decimal of more than 38 digits")?)
            }
            (Form::DecimalText(scale), Raw::Bytes(v)) => decimal_text(&v, i64::from(*scale))?,
            (Form::ScaledText, Raw::Scaled(scale, v)) => decimal_text(&v, scale)?,
            (Form::List(item), Raw::List(items)) => {
                Cell::List(items.into_iter().map(|raw| item.cell(raw)).collect::<Result<_, _>>()?)
            }
            (form, _) => return Err(format!("a value that is no {}", form.data_type())),
        })
    }

    /// What stood on the wire, from row `row` of a column of [`Form::data_type`].
    pub fn raw<'a>(&self, column: &'a dyn Array, row: usize) -> Raw<'a> {
        if column.is_null(row) {
            return Raw::Null;
        }
        match self {
            Form::Boolean => Raw::Bool(column.as_boolean().value(row)),
            Form::Long | Form::Nanos | Form::NanosSince1970 => Raw::Int(column.as_primitive::<Int64Type>().value(row)),
            Form::Micros(by) => Raw::Int(column.as_primitive::<Int64Type>().value(row) / by),
            Form::Timestamp(by) => Raw::Int(column.as_primitive::<TimestampMicrosecondType>().value(row) / by),
            Form::Float => Raw::Float(column.as_primitive::<Float64Type>().value(row) as f32),
            Form::Double => Raw::Double(column.as_primitive::<Float64Type>().value(row)),
            Form::Text => Raw::Str(Cow::Borrowed(column.as_string::<i32>().value(row))),
            Form::Binary => Raw::Bytes(Cow::Borrowed(column.as_binary::<i32>().value(row))),
            Form::Date => Raw::Int(column.as_primitive::<Date32Type>().value(row).into()),
            Form::Decimal(_) => {
                Raw::Bytes(column.as_primitive::<Decimal128Type>().value(row).to_be_bytes().to_vec().into())
            }
            Form::DecimalText(scale) => {
                let value = plain_number(column.as_string::<i32>().value(row))
                    .and_then(|(value, own)| text::rescale(value, own, *scale));
                value.map_or(Raw::Null, |v| Raw::Bytes(v.to_be_bytes().to_vec().into()))
            }
            Form::ScaledText => plain_number(column.as_string::<i32>().value(row))
                .map_or(Raw::Null, |(v, scale)| Raw::Scaled(scale, v.to_be_bytes().to_vec().into())),
            Form::List(item) => {
                let list = column.as_list::<i32>();
                let (from, to) = (list.value_offsets()[row] as usize, list.value_offsets()[row + 1] as usize);
                Raw::List((from..to).map(|at| item.raw(list.values().as_ref(), at)).collect())
            }
            // No contract can have such a column, so no plan asks for it.
            Form::Json => Raw::Null,
        }
    }
}

/// A decimal that can be read back.
fn decimal_text(bytes: &[u8], scale: i64) -> Result<Cell<'static>, String> {
    let plain = text::plain_decimal(bytes, scale).filter(|t| plain_number(t).is_some());
    plain.map(|t| Cell::Str(t.into())).ok_or_else(|| "a decimal of more than 76 digits".into())
}

/// The digits of a number in plain notation and how many stand after the point.
fn plain_number(text: &str) -> Option<(i256, i64)> {
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    let mut value = i256::ZERO;
    for digit in whole.bytes().chain(part.bytes()) {
        let digit = char::from(digit).to_digit(10)?;
        value = value.checked_mul(i256::from_i128(10))?.checked_add(i256::from_i128(digit.into()))?;
    }
    Some((if negative { value.wrapping_neg() } else { value }, part.len() as i64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::cell::{Column, convert};

    fn form(avro: &str) -> (Form, Option<Type>) {
        let schema = Schema::from_avro(avro).unwrap();
        let ty = Type::of(&schema, schema.optional(schema.root).1, None).ok();
        (Form::of(&schema, schema.root), ty)
    }

    /// Lands a value and reads it back; what a contract of the writer's own type makes of both has to be equal.
    fn check(avro: &str, raw: Raw<'static>, in_delta: &DataType) {
        let (form, ty) = form(avro);
        assert_eq!(form.data_type(), *in_delta, "{avro}");
        let mut column = Column::with_capacity(&form.data_type(), 1);
        column.append(&form.cell(raw.clone()).unwrap());
        column.append(&Cell::Null);
        let array = column.finish();
        let back = form.raw(array.as_ref(), 0);
        assert_eq!(form.raw(array.as_ref(), 1), Raw::Null);
        match ty {
            Some(ty) => {
                assert_eq!(convert(back.clone(), &ty, &ty), convert(raw.clone(), &ty, &ty), "{avro}: {raw:?} {back:?}")
            }
            None => assert_eq!(back, raw, "{avro}"),
        }
    }

    fn named(wire: &str, name: &str) -> String {
        format!(r#"["null",{{"type":"{wire}","connect.name":"{name}"}}]"#)
    }

    #[test]
    fn a_value_comes_back_as_it_stood_on_the_wire() {
        let micros = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        let decimal = |precision, scale| {
            format!(
                r#"{{"type":"bytes","connect.name":"org.apache.kafka.connect.data.Decimal","connect.parameters":{{"scale":"{scale}","connect.decimal.precision":"{precision}"}}}}"#
            )
        };
        let bytes = |b: &'static [u8]| Raw::Bytes(b.into());
        check(r#""int""#, Raw::Int(-5), &DataType::Int64);
        check(r#""float""#, Raw::Float(0.1), &DataType::Float64);
        check(r#""float""#, Raw::Float(f32::NEG_INFINITY), &DataType::Float64);
        check(r#""double""#, Raw::Double(-0.0), &DataType::Float64);
        check(r#"{"type":"enum","name":"E","symbols":["a"]}"#, Raw::Str("a".into()), &DataType::Utf8);
        check(r#"{"type":"fixed","name":"F","size":2}"#, bytes(&[1, 2]), &DataType::Binary);
        check(&named("int", "io.debezium.time.Date"), Raw::Int(-719_162), &DataType::Date32);
        check(&named("long", "io.debezium.time.Timestamp"), Raw::Int(-1), &micros);
        check(&named("long", "io.debezium.time.MicroTimestamp"), Raw::Int(i64::MAX), &micros);
        check(&named("long", "io.debezium.time.NanoTimestamp"), Raw::Int(i64::MIN), &DataType::Int64);
        check(&named("int", "io.debezium.time.Time"), Raw::Int(86_399_999), &DataType::Int64);
        check(&named("long", "io.debezium.time.MicroTime"), Raw::Int(-3_020_399_000_000), &DataType::Int64);
        check(
            &named("string", "io.debezium.time.ZonedTimestamp"),
            Raw::Str("2024-02-29T07:04:56.123456789+02:00".into()),
            &DataType::Utf8,
        );
        check(&decimal(10, 2), bytes(&[0xff, 0x85]), &DataType::Decimal128(38, 2));
        check(&decimal(65, 30), bytes(&[1; 20]), &DataType::Utf8);
        check(&decimal(3, -2), bytes(&[5]), &DataType::Utf8);
        let list = r#"{"type":"array","items":["null","int"]}"#;
        let element = Arc::new(Field::new("element", DataType::Int64, true));
        check(list, Raw::List(vec![Raw::Int(1), Raw::Null]), &DataType::List(element));
        // A name that nobody knows lies as its wire type.
        check(&named("long", "com.example.Mystery"), Raw::Int(7), &DataType::Int64);
        check(&named("bytes", "com.example.Mystery"), bytes(b"\xff"), &DataType::Binary);
    }

    #[test]
    fn a_decimal_with_its_own_scale_is_text_and_equal() {
        let (form, ty) = form(
            r#"{"type":"record","name":"V","connect.name":"io.debezium.data.VariableScaleDecimal","fields":[{"name":"scale","type":"int"},{"name":"value","type":"bytes"}]}"#,
        );
        let ty = ty.unwrap();
        for (scale, bytes) in [(2, vec![0x30, 0x39]), (-3, vec![7]), (0, vec![0]), (5, vec![0xff])] {
            let raw = Raw::Scaled(scale, bytes.into());
            let mut column = Column::with_capacity(&form.data_type(), 1);
            column.append(&form.cell(raw.clone()).unwrap());
            let array = column.finish();
            assert_eq!(convert(form.raw(array.as_ref(), 0), &ty, &ty), convert(raw, &ty, &ty));
        }
        assert!(form.cell(Raw::Scaled(0, vec![0x7f; 40].into())).is_err());
    }

    #[test]
    fn what_has_no_room_is_said() {
        let (ms, _) = form(&named("long", "io.debezium.time.Timestamp"));
        assert!(ms.cell(Raw::Int(i64::MAX)).unwrap_err().contains("microseconds"));
        let (nested, _) = form(r#"{"type":"map","values":"string"}"#);
        assert_eq!((&nested, nested.data_type()), (&Form::Json, DataType::Utf8));
    }
}
