//! A cell is one value on its way from the wire into an Arrow column: read as a [`Raw`], converted to the contract's type as a
//! [`Cell`], appended to a [`Column`].
//!
//! The invariant: converting may fail, appending may not. A row is converted whole before any of it is appended, so a bad value never
//! leaves columns of unequal length behind.

use std::borrow::Cow;
use std::ops::RangeInclusive;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryBuilder, BooleanBuilder, Decimal128Builder, Decimal256Builder, Float32Builder,
    Float64Builder, Int32Builder, Int64Builder, IntervalMonthDayNanoBuilder, ListArray, NullBufferBuilder,
    StringBuilder, make_array,
};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, FieldRef, IntervalMonthDayNano, TimeUnit, i256};

use md5::{Digest, Md5};

use super::logical::{Meaning, Type};
use super::text;

/// What stands on the wire, of whatever format.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Raw<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Float(f32),
    Double(f64),
    Str(Cow<'a, str>),
    Bytes(Cow<'a, [u8]>),
    /// Debezium's `VariableScaleDecimal`.
    Scaled(i64, Cow<'a, [u8]>),
    List(Vec<Raw<'a>>),
}

impl Raw<'_> {
    /// Whether this is what Debezium writes for a value that the database did not send: the placeholder's text, its bytes, or a list of
    /// either, in the forms of `UnchangedToastedPlaceholder` in Debezium's PostgreSQL connector.
    pub fn is_unavailable(&self, placeholder: &str) -> bool {
        match self {
            _ if placeholder.is_empty() => false,
            Raw::Str(text) => is_placeholder(text, placeholder),
            Raw::Bytes(bytes) => **bytes == *placeholder.as_bytes(),
            Raw::List(items) => match items.as_slice() {
                [Raw::Str(text)] => text == placeholder || *text == named_uuid(placeholder),
                [Raw::Bytes(bytes)] => **bytes == *placeholder.as_bytes(),
                items => {
                    items.len() == placeholder.len()
                        && items.iter().zip(placeholder.bytes()).all(|(i, b)| *i == Raw::Int(i64::from(b)))
                }
            },
            _ => false,
        }
    }
}

/// Whether a text is the placeholder, or the map from it to itself that `hstore` has as JSON; an empty placeholder stands for none.
pub(crate) fn is_placeholder(text: &str, placeholder: &str) -> bool {
    let is_map = || {
        let inside = text.strip_prefix("{\"")?.strip_suffix("\"}")?;
        inside.strip_prefix(placeholder)?.strip_suffix(placeholder)
    };
    !placeholder.is_empty() && (text == placeholder || is_map() == Some("\":\""))
}

/// Java's `UUID.nameUUIDFromBytes`, of which a list of UUIDs that was not sent has one.
fn named_uuid(name: &str) -> String {
    let mut bytes: [u8; 16] = Md5::digest(name).into();
    bytes[6] = bytes[6] & 0x0f | 0x30;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    [20, 16, 12, 8].iter().for_each(|place| text.insert(*place, '-'));
    text
}

/// A value of the contract's type.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Cell<'a> {
    Null,
    Bool(bool),
    /// Every type that is a 32 or 64 bit integer inside: numbers, dates, times, instants, durations.
    Int(i64),
    Float(f32),
    Double(f64),
    Str(Cow<'a, str>),
    Bytes(Cow<'a, [u8]>),
    Decimal(i256),
    Interval(IntervalMonthDayNano),
    List(Vec<Cell<'a>>),
}

impl Cell<'_> {
    pub fn into_owned(self) -> Cell<'static> {
        match self {
            Cell::Null => Cell::Null,
            Cell::Bool(v) => Cell::Bool(v),
            Cell::Int(v) => Cell::Int(v),
            Cell::Float(v) => Cell::Float(v),
            Cell::Double(v) => Cell::Double(v),
            Cell::Str(v) => Cell::Str(Cow::Owned(v.into_owned())),
            Cell::Bytes(v) => Cell::Bytes(Cow::Owned(v.into_owned())),
            Cell::Decimal(v) => Cell::Decimal(v),
            Cell::Interval(v) => Cell::Interval(v),
            Cell::List(v) => Cell::List(v.into_iter().map(Cell::into_owned).collect()),
        }
    }
}

/// Converts a value of the writer's type to the target's, which the writer's type promotes to. The error says what does not fit.
pub(crate) fn convert<'a>(raw: Raw<'a>, writer: &Type, target: &Type) -> Result<Cell<'a>, String> {
    let (raw, wanted) = (raw, &target.arrow);
    let misfit = |raw: &Raw<'_>| format!("{} does not fit {wanted}", shown(raw));
    let cell = match (writer.meaning, raw) {
        (_, Raw::Null) => Cell::Null,
        (Meaning::Plain, raw) => return plain(raw, writer, target),
        (Meaning::Days, Raw::Int(days)) => Cell::Int(days),
        (Meaning::TimeOfDay(unit), Raw::Int(value)) => {
            if !(0..per_day(unit)).contains(&value) {
                return Err(format!(
                    "the time {value} {} is no time of day; \"freshet.type\": \"duration\" in the contract takes it",
                    unit_name(unit)
                ));
            }
            Cell::Int(value.checked_mul(factor(unit, wanted)).ok_or_else(|| misfit(&Raw::Int(value)))?)
        }
        (Meaning::Instant(unit), Raw::Int(value)) => match infinite(value.into(), unit_of(wanted)) {
            Some(bound) => Cell::Int(bound),
            None => Cell::Int(value.checked_mul(factor(unit, wanted)).ok_or_else(|| misfit(&Raw::Int(value)))?),
        },
        (Meaning::Elapsed(unit), Raw::Int(value)) => {
            Cell::Int(value.checked_mul(factor(unit, wanted)).ok_or_else(|| misfit(&Raw::Int(value)))?)
        }
        (Meaning::Unscaled { scale, .. }, Raw::Bytes(bytes)) => {
            let value = text::unscaled(&bytes).ok_or("a decimal of no bytes, or of more than 32")?;
            decimal(value, scale, wanted)?
        }
        (Meaning::Scaled, Raw::Scaled(scale, bytes)) => match wanted {
            DataType::Utf8 => match text::plain_decimal(&bytes, scale) {
                Some(text) => Cell::Str(text.into()),
                None => return Err(format!("a decimal of {} bytes with scale {scale} is out of bounds", bytes.len())),
            },
            _ => decimal(text::unscaled(&bytes).ok_or("a decimal of no bytes, or of more than 32")?, scale, wanted)?,
        },
        (Meaning::DecimalText, raw) => return decimal_text(raw, target),
        (Meaning::ZonedTimestamp, Raw::Str(s)) => instant(text::timestamp(&s, true), &s, wanted)?,
        (Meaning::IsoTimestamp, Raw::Str(s)) => instant(text::timestamp(&s, false), &s, wanted)?,
        (Meaning::ZonedTime, Raw::Str(s)) => instant(text::zoned_time(&s).map(i128::from), &s, wanted)?,
        (Meaning::IsoTime, Raw::Str(s)) => instant(text::iso_time(&s).map(i128::from), &s, wanted)?,
        (Meaning::IsoDate, Raw::Str(s)) => {
            Cell::Int(text::iso_date(&s).ok_or_else(|| format!("{s:?} is no date"))?.into())
        }
        (Meaning::Interval, Raw::Str(s)) => {
            Cell::Interval(text::interval(&s).ok_or_else(|| format!("{s:?} is no interval"))?)
        }
        (_, raw) => return Err(misfit(&raw)),
    };
    match (&cell, wanted) {
        (Cell::Int(v), DataType::Date32 | DataType::Time32(_)) if i32::try_from(*v).is_err() => {
            Err(misfit(&Raw::Int(*v)))
        }
        (Cell::Int(day), DataType::Date32) if !days().contains(day) => Err(outside(&format!("day {day}"))),
        (Cell::Int(v), DataType::Timestamp(unit, _)) if !instants(*unit).contains(v) => {
            Err(outside(&format!("{v} {}", unit_name(*unit))))
        }
        _ => Ok(cell),
    }
}

/// The days that can be shown: chrono's, by which Arrow prints.
fn days() -> RangeInclusive<i64> {
    text::days_from_civil(-262_143, 1, 1)..=text::days_from_civil(262_142, 12, 31)
}

/// The instants that can be shown, in a unit; those that it has, where these are fewer.
pub(super) fn instants(unit: TimeUnit) -> RangeInclusive<i64> {
    let (first, last) = days().into_inner();
    first.saturating_mul(per_day(unit))..=(last + 1).saturating_mul(per_day(unit)) - 1
}

fn outside(what: &str) -> String {
    format!("{what} lies outside of the years -262143 to 262142")
}

/// Where an infinity of PostgreSQL goes: before or after all that is finite. Its driver has them as two numbers of milliseconds, which Debezium
/// writes as text, and takes for microseconds where it writes a number.
fn infinite(value: i128, unit: TimeUnit) -> Option<i64> {
    match value {
        -9_223_372_036_832_400_000 => Some(*instants(unit).start()),
        9_223_372_036_825_200_000 => Some(*instants(unit).end()),
        _ => None,
    }
}

fn plain<'a>(raw: Raw<'a>, writer: &Type, target: &Type) -> Result<Cell<'a>, String> {
    Ok(match (raw, &target.arrow) {
        (Raw::Bool(v), DataType::Boolean) => Cell::Bool(v),
        (Raw::Int(v), DataType::Int32) if i32::try_from(v).is_ok() => Cell::Int(v),
        (Raw::Int(v), DataType::Int64) => Cell::Int(v),
        (Raw::Int(v), DataType::Float64) => Cell::Double(v as f64),
        (Raw::Int(v), DataType::Decimal128(..) | DataType::Decimal256(..)) => {
            decimal(i256::from_i128(v.into()), 0, &target.arrow)?
        }
        (Raw::Float(v), DataType::Float32) => Cell::Float(v),
        (Raw::Float(v), DataType::Float64) => Cell::Double(v.into()),
        (Raw::Double(v), DataType::Float64) => Cell::Double(v),
        (Raw::Str(v), DataType::Utf8) => Cell::Str(v),
        (Raw::Bytes(v), DataType::Binary) => Cell::Bytes(v),
        (Raw::List(items), DataType::List(_)) => {
            let (super::logical::Wire::List(own), super::logical::Wire::List(wanted)) = (&writer.wire, &target.wire)
            else {
                return Err("a list where none is expected".into());
            };
            Cell::List(items.into_iter().map(|item| convert(item, own, wanted)).collect::<Result<_, _>>()?)
        }
        (raw, wanted) => return Err(format!("{} does not fit {wanted}", shown(&raw))),
    })
}

fn decimal_text<'a>(raw: Raw<'a>, target: &Type) -> Result<Cell<'a>, String> {
    match (raw, &target.arrow) {
        (Raw::Str(s), DataType::Decimal128(precision, scale) | DataType::Decimal256(precision, scale)) => {
            match text::decimal(&s, *scale).filter(|v| fits(*v, *precision)) {
                Some(value) => Ok(Cell::Decimal(value)),
                None => Err(format!("{s:?} does not fit {}", target.arrow)),
            }
        }
        (raw, wanted) => Err(format!("{} does not fit {wanted}", shown(&raw))),
    }
}

fn decimal(value: i256, own: i64, wanted: &DataType) -> Result<Cell<'static>, String> {
    let (DataType::Decimal128(precision, scale) | DataType::Decimal256(precision, scale)) = wanted else {
        return Err(format!("a decimal does not fit {wanted}"));
    };
    match text::rescale(value, own, *scale).filter(|v| fits(*v, *precision)) {
        Some(value) => Ok(Cell::Decimal(value)),
        None => Err(format!("the decimal {value} with scale {own} does not fit {wanted}")),
    }
}

fn fits(value: i256, precision: u8) -> bool {
    // Most decimals are narrow, and 128 bits are much cheaper to compare.
    if let (Some(narrow), true) = (value.to_i128(), precision <= 38) {
        return narrow.unsigned_abs() < 10_u128.pow(u32::from(precision));
    }
    match i256::from_i128(10).checked_pow(u32::from(precision)) {
        Some(limit) => value < limit && value > limit.wrapping_neg(),
        None => true,
    }
}

fn instant(nanos: Option<i128>, text: &str, wanted: &DataType) -> Result<Cell<'static>, String> {
    let nanos = nanos.ok_or_else(|| format!("{text:?} is no {wanted}"))?;
    if let DataType::Timestamp(unit, _) = wanted {
        if let Some(bound) = infinite(nanos / 1_000_000, *unit) {
            return Ok(Cell::Int(bound));
        }
        if !i64::try_from(nanos.div_euclid(i128::from(per_day(TimeUnit::Nanosecond))))
            .is_ok_and(|day| days().contains(&day))
        {
            return Err(outside(&format!("{text:?}")));
        }
    }
    match text::in_unit(nanos, unit_of(wanted)) {
        Some(value) => Ok(Cell::Int(value)),
        None => Err(format!("{text:?} does not fit {wanted} without losing digits")),
    }
}

fn unit_of(data_type: &DataType) -> TimeUnit {
    match data_type {
        DataType::Timestamp(unit, _) | DataType::Time32(unit) | DataType::Time64(unit) | DataType::Duration(unit) => {
            *unit
        }
        _ => TimeUnit::Microsecond,
    }
}

fn per_second(unit: TimeUnit) -> i64 {
    match unit {
        TimeUnit::Second => 1,
        TimeUnit::Millisecond => 1_000,
        TimeUnit::Microsecond => 1_000_000,
        TimeUnit::Nanosecond => 1_000_000_000,
    }
}

fn per_day(unit: TimeUnit) -> i64 {
    86_400 * per_second(unit)
}

fn unit_name(unit: TimeUnit) -> &'static str {
    match unit {
        TimeUnit::Second => "s",
        TimeUnit::Millisecond => "ms",
        TimeUnit::Microsecond => "us",
        TimeUnit::Nanosecond => "ns",
    }
}

/// A writer's unit is never finer than its target's: that would not be a promotion.
fn factor(own: TimeUnit, wanted: &DataType) -> i64 {
    (per_second(unit_of(wanted)) / per_second(own)).max(1)
}

fn shown(raw: &Raw<'_>) -> String {
    const MOST: usize = 40;
    match raw {
        Raw::Null => "null".into(),
        Raw::Bool(v) => v.to_string(),
        Raw::Int(v) => v.to_string(),
        Raw::Float(v) => v.to_string(),
        Raw::Double(v) => v.to_string(),
        Raw::Str(v) => format!("{:?}", v.chars().take(MOST).collect::<String>()),
        Raw::Bytes(v) => format!("{} bytes", v.len()),
        Raw::Scaled(..) => "a decimal".into(),
        Raw::List(v) => format!("a list of {}", v.len()),
    }
}

/// An Arrow column that grows.
pub(crate) struct Column {
    values: Values,
    data_type: DataType,
}

enum Values {
    Bool(BooleanBuilder),
    Int32(Int32Builder),
    Int64(Int64Builder),
    Float(Float32Builder),
    Double(Float64Builder),
    Str(StringBuilder),
    Bytes(BinaryBuilder),
    Decimal128(Decimal128Builder),
    Decimal256(Decimal256Builder),
    Interval(IntervalMonthDayNanoBuilder),
    List { offsets: Vec<i32>, nulls: NullBufferBuilder, item: Box<Column>, field: FieldRef },
}

impl Column {
    /// An empty column with room for `rows`; texts and bytes grow as they come.
    pub fn with_capacity(data_type: &DataType, rows: usize) -> Column {
        let values = match data_type {
            DataType::Boolean => Values::Bool(BooleanBuilder::with_capacity(rows)),
            DataType::Int32 | DataType::Date32 | DataType::Time32(_) => {
                Values::Int32(Int32Builder::with_capacity(rows))
            }
            DataType::Float32 => Values::Float(Float32Builder::with_capacity(rows)),
            DataType::Float64 => Values::Double(Float64Builder::with_capacity(rows)),
            DataType::Utf8 => Values::Str(StringBuilder::with_capacity(rows, 16 * rows)),
            DataType::Binary => Values::Bytes(BinaryBuilder::with_capacity(rows, 16 * rows)),
            DataType::Decimal128(..) => Values::Decimal128(Decimal128Builder::with_capacity(rows)),
            DataType::Decimal256(..) => Values::Decimal256(Decimal256Builder::with_capacity(rows)),
            DataType::Interval(_) => Values::Interval(IntervalMonthDayNanoBuilder::with_capacity(rows)),
            DataType::List(field) => Values::List {
                offsets: vec![0],
                nulls: NullBufferBuilder::new(0),
                item: Box::new(Column::with_capacity(field.data_type(), rows)),
                field: field.clone(),
            },
            _ => Values::Int64(Int64Builder::with_capacity(rows)),
        };
        Column { values, data_type: data_type.clone() }
    }

    /// A cell that another type's conversion made is a mistake of this module, and stands as null rather than as a wrong value.
    pub fn append(&mut self, cell: &Cell<'_>) {
        match (&mut self.values, cell) {
            (Values::Bool(b), Cell::Bool(v)) => b.append_value(*v),
            (Values::Int32(b), Cell::Int(v)) => b.append_value(*v as i32),
            (Values::Int64(b), Cell::Int(v)) => b.append_value(*v),
            (Values::Float(b), Cell::Float(v)) => b.append_value(*v),
            (Values::Double(b), Cell::Double(v)) => b.append_value(*v),
            (Values::Str(b), Cell::Str(v)) => b.append_value(v),
            (Values::Bytes(b), Cell::Bytes(v)) => b.append_value(v),
            (Values::Decimal128(b), Cell::Decimal(v)) => b.append_value(v.as_i128()),
            (Values::Decimal256(b), Cell::Decimal(v)) => b.append_value(*v),
            (Values::Interval(b), Cell::Interval(v)) => b.append_value(*v),
            (Values::List { offsets, nulls, item, .. }, Cell::List(items)) => {
                items.iter().for_each(|cell| item.append(cell));
                offsets.push(offsets[offsets.len() - 1] + items.len() as i32);
                nulls.append_non_null();
            }
            (_, cell) => {
                debug_assert_eq!(*cell, Cell::Null, "a cell of another type than its column {}", self.data_type);
                self.append_null();
            }
        }
    }

    fn append_null(&mut self) {
        match &mut self.values {
            Values::Bool(b) => b.append_null(),
            Values::Int32(b) => b.append_null(),
            Values::Int64(b) => b.append_null(),
            Values::Float(b) => b.append_null(),
            Values::Double(b) => b.append_null(),
            Values::Str(b) => b.append_null(),
            Values::Bytes(b) => b.append_null(),
            Values::Decimal128(b) => b.append_null(),
            Values::Decimal256(b) => b.append_null(),
            Values::Interval(b) => b.append_null(),
            Values::List { offsets, nulls, .. } => {
                offsets.push(offsets[offsets.len() - 1]);
                nulls.append_null();
            }
        }
    }

    /// The column so far; it is empty afterwards.
    pub fn finish(&mut self) -> ArrayRef {
        let array: ArrayRef = match &mut self.values {
            Values::Bool(b) => Arc::new(b.finish()),
            Values::Int32(b) => Arc::new(b.finish()),
            Values::Int64(b) => Arc::new(b.finish()),
            Values::Float(b) => Arc::new(b.finish()),
            Values::Double(b) => Arc::new(b.finish()),
            Values::Str(b) => Arc::new(b.finish()),
            Values::Bytes(b) => Arc::new(b.finish()),
            Values::Decimal128(b) => Arc::new(b.finish()),
            Values::Decimal256(b) => Arc::new(b.finish()),
            Values::Interval(b) => Arc::new(b.finish()),
            Values::List { offsets, nulls, item, field } => {
                let offsets = OffsetBuffer::new(ScalarBuffer::from(std::mem::replace(offsets, vec![0])));
                Arc::new(ListArray::new(field.clone(), offsets, item.finish(), nulls.finish()))
            }
        };
        if *array.data_type() == self.data_type {
            return array;
        }
        // The same buffers under the column's own name: a date is a 32 bit integer inside.
        let data = array.to_data().into_builder().data_type(self.data_type.clone());
        make_array(data.build().expect("types of equal width share their layout"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::schema::Schema;
    use super::*;

    fn of(avro: &str) -> Type {
        let schema = Schema::from_avro(avro).unwrap();
        Type::of(&schema, schema.optional(schema.root).1, None).unwrap()
    }

    #[test]
    fn a_value_that_does_not_fit_is_named() {
        let decimal = of(
            r#"{"type":"bytes","connect.name":"org.apache.kafka.connect.data.Decimal","connect.parameters":{"scale":"2","connect.decimal.precision":"4"}}"#,
        );
        let ok = convert(Raw::Bytes(Cow::Borrowed(&[0x27, 0x0f])), &decimal, &decimal).unwrap();
        assert_eq!(ok, Cell::Decimal(i256::from_i128(9999)));
        let error = convert(Raw::Bytes(Cow::Borrowed(&[0x27, 0x10])), &decimal, &decimal).unwrap_err();
        assert!(error.contains("10000 with scale 2") && error.contains("Decimal128(4, 2)"), "{error}");
        let time = of(r#"{"type":"long","connect.name":"io.debezium.time.MicroTime"}"#);
        assert!(convert(Raw::Int(-1), &time, &time).unwrap_err().contains("freshet.type"));
    }

    #[test]
    fn units_are_promoted() {
        let ms = of(r#"{"type":"long","connect.name":"io.debezium.time.Timestamp"}"#);
        let us = of(r#"{"type":"long","connect.name":"io.debezium.time.MicroTimestamp"}"#);
        assert_eq!(convert(Raw::Int(5), &ms, &us), Ok(Cell::Int(5000)));
        assert!(convert(Raw::Int(i64::MAX), &ms, &us).is_err());
    }

    #[test]
    fn a_list_keeps_its_nulls() {
        let mut column = Column::with_capacity(&of(r#"{"type":"array","items":["null","int"]}"#).arrow, 0);
        column.append(&Cell::List(vec![Cell::Int(1), Cell::Null]));
        column.append(&Cell::Null);
        column.append(&Cell::List(vec![]));
        let array = column.finish();
        assert_eq!((array.len(), array.null_count()), (3, 1));
        assert_eq!(column.finish().len(), 0, "finishing starts anew");
    }

    #[test]
    fn every_form_of_the_placeholder_is_known() {
        let is = |raw: Raw<'_>| raw.is_unavailable("__u");
        assert!(
            is(Raw::Str("__u".into()))
                && is(Raw::Bytes(b"__u".as_slice().into()))
                && is(Raw::List(vec![Raw::Str("__u".into())]))
        );
        assert!(is(Raw::List(b"__u".iter().map(|b| Raw::Int(i64::from(*b))).collect())));
        let list = |item: Raw<'static>| is(Raw::List(vec![item]));
        assert!(list(Raw::Bytes(b"__u".as_slice().into())) && !list(Raw::Bytes(b"__".as_slice().into())));
        assert!(is(Raw::Str(r#"{"__u":"__u"}"#.into())), "hstore");
        for text in [r#"{"__u":"x"}"#, r#"{"__u":""}"#, r#"{"__u"}"#, r#"{"__u":"__u","a":"b"}"#] {
            assert!(!is(Raw::Str(text.into())), "{text}");
        }
        // By Java: UUID.nameUUIDFromBytes("__debezium_unavailable_value".getBytes()).
        let uuid = Raw::List(vec![Raw::Str("b68a35a7-17ad-35b3-af2a-ae46edb4545a".into())]);
        assert!(uuid.is_unavailable("__debezium_unavailable_value") && !uuid.is_unavailable("__u"));
        assert!(!Raw::Str("".into()).is_unavailable(""), "an empty key is a key");
        assert!(!is(Raw::Str("__u ".into())) && !is(Raw::Null) && !is(Raw::List(vec![])));
    }
}
