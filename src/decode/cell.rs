//! A cell is one value on its way from the wire into an Arrow column: read as a [`Raw`], converted to the contract's type as a
//! [`Cell`], appended to a [`Column`].
//!
//! The invariant: converting may fail, appending may not. A row is converted whole before any of it is appended, so a bad value never
//! leaves columns of unequal length behind.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryBuilder, BooleanBuilder, Decimal128Builder, Decimal256Builder, Float32Builder,
    Float64Builder, Int32Builder, Int64Builder, IntervalMonthDayNanoBuilder, ListArray, NullBufferBuilder,
    StringBuilder, make_array,
};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, FieldRef, IntervalMonthDayNano, i256};

use super::instant::{days, factor, infinite, instants, of_text, outside, per_day, unit_name, unit_of};
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
        (Meaning::ZonedTimestamp, Raw::Str(s)) => Cell::Int(of_text(text::timestamp(&s, true), &s, wanted)?),
        (Meaning::IsoTimestamp, Raw::Str(s)) => Cell::Int(of_text(text::timestamp(&s, false), &s, wanted)?),
        (Meaning::ZonedTime, Raw::Str(s)) => Cell::Int(of_text(text::zoned_time(&s).map(i128::from), &s, wanted)?),
        (Meaning::IsoTime, Raw::Str(s)) => Cell::Int(of_text(text::iso_time(&s).map(i128::from), &s, wanted)?),
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
}
