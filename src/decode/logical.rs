//! A logical type says what a column's bytes stand for: which raw type is on the wire, what Connect or Debezium mean by it
//! (`connect.name`), and the Arrow type that it becomes.
//!
//! A name that is not listed here is refused by name: reading a value by a type that it does not have is worse than not
//! reading it. The table is [`named`].

use std::sync::Arc;

use arrow::datatypes::{DECIMAL128_MAX_PRECISION, DECIMAL256_MAX_PRECISION, DataType, Field, IntervalUnit, TimeUnit};

use super::schema::{Node, NodeId, Schema, Shape};

/// Arrow's name of UTC in types.
pub(crate) const UTC: &str = "UTC";

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Type {
    pub wire: Wire,
    pub meaning: Meaning,
    pub arrow: DataType,
    /// What the contract asked for in place of the default.
    pub wanted: Option<Wanted>,
}

/// What stands on the wire.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Wire {
    Boolean,
    Int,
    Long,
    Float,
    Double,
    String,
    Bytes,
    Fixed(usize),
    /// An index into these symbols.
    Enum(Arc<[Box<str>]>),
    /// A record of `scale` (int) and `value` (bytes): Debezium's `VariableScaleDecimal`.
    Scaled,
    List(Box<Type>),
}

/// What the wire's value means.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Meaning {
    /// What it is on the wire.
    Plain,
    /// Days since 1970.
    Days,
    /// Since midnight, less than a day.
    TimeOfDay(TimeUnit),
    /// A length of time, which may be negative or longer than a day.
    Elapsed(TimeUnit),
    /// Since 1970.
    Instant(TimeUnit),
    /// A decimal: big-endian two's complement of the digits.
    Unscaled { scale: i64, precision: Option<i64> },
    /// A decimal that brings its scale along.
    Scaled,
    /// A decimal as text.
    DecimalText,
    /// `2024-02-29T07:04:56.789Z`, with any offset.
    ZonedTimestamp,
    /// `07:04:56.789Z`, with any offset; becomes the time of day in UTC.
    ZonedTime,
    /// `2024-02-29Z`
    IsoDate,
    /// `07:04:56.789Z`, where the `Z` means nothing.
    IsoTime,
    /// `2024-02-29T07:04:56.789Z`, where the `Z` means nothing.
    IsoTimestamp,
    /// `P1Y2M3DT4H5M6.78S`
    Interval,
}

/// `freshet.type` of a contract: the other type that values of this kind can become.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Wanted {
    /// For a time that leaves the day, as MySQL's do.
    Duration,
    /// For timestamps as text that are finer than microseconds (and then lie between 1677 and 2262).
    TimestampNs,
    /// For decimals of any scale, or written as text.
    Decimal { precision: u8, scale: i8 },
}

impl Wanted {
    fn parse(text: &str) -> Result<Wanted, String> {
        match text {
            "duration" => return Ok(Wanted::Duration),
            "timestamp_ns" => return Ok(Wanted::TimestampNs),
            _ => {}
        }
        let inner = text.strip_prefix("decimal(").and_then(|t| t.strip_suffix(')'));
        let parsed = inner.and_then(|t| t.split_once(',')).and_then(|(precision, scale)| {
            Some(Wanted::Decimal { precision: precision.trim().parse().ok()?, scale: scale.trim().parse().ok()? })
        });
        match parsed {
            Some(Wanted::Decimal { precision, scale })
                if (1..=DECIMAL256_MAX_PRECISION).contains(&precision) && i16::from(scale) <= i16::from(precision) =>
            {
                Ok(Wanted::Decimal { precision, scale })
            }
            _ => Err(format!(
                "freshet.type {text:?} is none of \"duration\", \"timestamp_ns\", \"decimal(precision,scale)\" with at most 76 digits"
            )),
        }
    }
}

impl Type {
    /// The type at `id`, where null has been looked through. `like` is the contract's type of the same column, whose wishes
    /// count for the writer's values too.
    pub fn of(schema: &Schema, id: NodeId, like: Option<&Type>) -> Result<Type, String> {
        let node = schema.node(id);
        let wanted = match (&like, &node.wanted) {
            (Some(like), _) => like.wanted,
            (None, Some(text)) => Some(Wanted::parse(text)?),
            (None, None) => None,
        };
        let item = match (&node.shape, like.map(|l| &l.wire)) {
            (Shape::Array(items), like) => {
                let like = if let Some(Wire::List(item)) = like { Some(&**item) } else { None };
                Some(Type::of(schema, schema.optional(*items).1, like)?)
            }
            _ => None,
        };
        let (wire, meaning) = wire_and_meaning(schema, node, item)?;
        let arrow = arrow_type(&wire, meaning, wanted, like)?;
        if wanted.is_some() && !takes(&wire, meaning, wanted) {
            return Err(format!("{} cannot become what freshet.type asks for", described(schema, node)));
        }
        // Text becomes a decimal only where the contract asks for it.
        let meaning = match (meaning, wanted) {
            (Meaning::Plain, Some(Wanted::Decimal { .. })) if wire == Wire::String => Meaning::DecimalText,
            (Meaning::TimeOfDay(unit), Some(Wanted::Duration)) => Meaning::Elapsed(unit),
            _ => meaning,
        };
        Ok(Type { wire, meaning, arrow, wanted })
    }

    /// Whether every value of this type has an equal one in `target`: the promotions that a contract accepts.
    pub fn promotes_to(&self, target: &Type) -> bool {
        use DataType::{Decimal128, Decimal256, Duration, Float32, Float64, Int32, Int64, Time32, Time64, Timestamp};
        if let (Wire::List(item), Wire::List(wanted)) = (&self.wire, &target.wire) {
            return item.promotes_to(wanted);
        }
        if let Decimal128(precision, scale) | Decimal256(precision, scale) = target.arrow {
            let (digits, scale) = (i64::from(precision) - i64::from(scale), i64::from(scale));
            return match self.meaning {
                Meaning::Unscaled { scale: own, precision } => {
                    own <= scale && precision.is_none_or(|p| p - own <= digits)
                }
                Meaning::Scaled | Meaning::DecimalText => self.arrow == target.arrow,
                Meaning::Plain => match self.wire {
                    Wire::Int => scale >= 0 && digits >= 10,
                    Wire::Long => scale >= 0 && digits >= 19,
                    _ => false,
                },
                _ => false,
            };
        }
        match (&self.arrow, &target.arrow) {
            (own, wanted) if own == wanted => true,
            (Int32, Int64 | Float64) | (Float32, Float64) => {
                self.meaning == Meaning::Plain && target.meaning == Meaning::Plain
            }
            (Timestamp(own, zone), Timestamp(unit, wanted)) => zone == wanted && own <= unit,
            (Time32(own) | Time64(own), Time32(unit) | Time64(unit)) | (Duration(own), Duration(unit)) => own <= unit,
            _ => false,
        }
    }

    /// One short name for messages.
    pub fn describe(&self) -> String {
        format!("{}", self.arrow)
    }
}

/// What the schema says, for messages.
pub(crate) fn described(schema: &Schema, node: &Node) -> String {
    let shape = match &node.shape {
        Shape::Null => "null",
        Shape::Boolean => "boolean",
        Shape::Int => "int",
        Shape::Long => "long",
        Shape::Float => "float",
        Shape::Double => "double",
        Shape::Bytes => "bytes",
        Shape::String => "string",
        Shape::Fixed(_) => "fixed",
        Shape::Enum(_) => "enum",
        Shape::Array(items) => {
            return format!("array of {}", described(schema, schema.node(schema.optional(*items).1)));
        }
        Shape::Map(_) => "map",
        Shape::Union(_) => "union",
        Shape::Record(record) => match &node.name {
            Some(name) => return format!("record {name}"),
            None => return format!("record {}", record.full_name),
        },
    };
    match node.name.as_deref().or(node.logical.as_deref()) {
        Some(name) => format!("{shape} {name}"),
        None => shape.to_string(),
    }
}

fn wire_and_meaning(schema: &Schema, node: &Node, item: Option<Type>) -> Result<(Wire, Meaning), String> {
    let wire = match &node.shape {
        Shape::Boolean => Wire::Boolean,
        Shape::Int => Wire::Int,
        Shape::Long => Wire::Long,
        Shape::Float => Wire::Float,
        Shape::Double => Wire::Double,
        Shape::Bytes => Wire::Bytes,
        Shape::String => Wire::String,
        Shape::Fixed(size) => Wire::Fixed(*size),
        Shape::Enum(symbols) => Wire::Enum(symbols.as_slice().into()),
        Shape::Array(_) => Wire::List(Box::new(item.expect("an array's item is resolved first"))),
        Shape::Record(_) if node.name.as_deref() == Some("io.debezium.data.VariableScaleDecimal") => {
            return match is_scaled(schema, node) {
                true => Ok((Wire::Scaled, Meaning::Scaled)),
                false => Err("a VariableScaleDecimal is not a record of scale (int) and value (bytes)".into()),
            };
        }
        Shape::Null | Shape::Map(_) | Shape::Union(_) | Shape::Record(_) => {
            return Err(format!("the type {} is not known", described(schema, node)));
        }
    };
    let meaning = match (&node.name, &node.logical) {
        (Some(name), _) => named(name, &wire, node),
        (None, Some(logical)) => avro_logical(logical, &wire, node),
        (None, None) => Some(Meaning::Plain),
    };
    match meaning {
        Some(meaning) => Ok((wire, meaning)),
        None => Err(format!("the type {} is not known", described(schema, node))),
    }
}

/// Debezium's and Connect's names. A name on another wire type than its own is not known either.
fn named(name: &str, wire: &Wire, node: &Node) -> Option<Meaning> {
    use TimeUnit::{Microsecond, Millisecond, Nanosecond};
    let debezium = name.strip_prefix("io.debezium.");
    let connect = name.strip_prefix("org.apache.kafka.connect.data.");
    let meaning = match (debezium, connect) {
        (Some("time.Date"), _) | (_, Some("Date")) => (Wire::Int, Meaning::Days),
        (Some("time.Time"), _) | (_, Some("Time")) => (Wire::Int, Meaning::TimeOfDay(Millisecond)),
        (Some("time.MicroTime"), _) => (Wire::Long, Meaning::TimeOfDay(Microsecond)),
        (Some("time.NanoTime"), _) => (Wire::Long, Meaning::TimeOfDay(Nanosecond)),
        (Some("time.Timestamp"), _) | (_, Some("Timestamp")) => (Wire::Long, Meaning::Instant(Millisecond)),
        (Some("time.MicroTimestamp"), _) => (Wire::Long, Meaning::Instant(Microsecond)),
        (Some("time.NanoTimestamp"), _) => (Wire::Long, Meaning::Instant(Nanosecond)),
        (Some("time.MicroDuration"), _) => (Wire::Long, Meaning::Elapsed(Microsecond)),
        (Some("time.NanoDuration"), _) => (Wire::Long, Meaning::Elapsed(Nanosecond)),
        (Some("time.Year"), _) => (Wire::Int, Meaning::Plain),
        (Some("time.ZonedTimestamp"), _) => (Wire::String, Meaning::ZonedTimestamp),
        (Some("time.ZonedTime"), _) => (Wire::String, Meaning::ZonedTime),
        (Some("time.IsoDate"), _) => (Wire::String, Meaning::IsoDate),
        (Some("time.IsoTime"), _) => (Wire::String, Meaning::IsoTime),
        (Some("time.IsoTimestamp"), _) => (Wire::String, Meaning::IsoTimestamp),
        (Some("time.Interval"), _) => (Wire::String, Meaning::Interval),
        (Some("data.Json" | "data.Xml" | "data.Uuid" | "data.Enum" | "data.EnumSet" | "data.Ltree"), _) => {
            (Wire::String, Meaning::Plain)
        }
        (Some("data.Bits"), _) => (Wire::Bytes, Meaning::Plain),
        (_, Some("Decimal")) => {
            (Wire::Bytes, Meaning::Unscaled { scale: node.scale.unwrap_or(0), precision: node.precision })
        }
        (Some("data.FloatVector"), _) => return is_list_of(wire, Wire::Float).then_some(Meaning::Plain),
        (Some("data.DoubleVector"), _) => return is_list_of(wire, Wire::Double).then_some(Meaning::Plain),
        _ => return None,
    };
    (meaning.0 == *wire).then_some(meaning.1)
}

/// Avro's own logical types, where Connect says nothing. One that does not fit its wire type is to be ignored (the Avro
/// specification says so); one that nobody knows is refused, as an unknown name is.
fn avro_logical(logical: &str, wire: &Wire, node: &Node) -> Option<Meaning> {
    use TimeUnit::{Microsecond, Millisecond, Nanosecond};
    Some(match (logical, wire) {
        ("decimal", Wire::Bytes | Wire::Fixed(_)) => {
            Meaning::Unscaled { scale: node.scale.unwrap_or(0), precision: node.precision }
        }
        ("date", Wire::Int) => Meaning::Days,
        ("time-millis", Wire::Int) => Meaning::TimeOfDay(Millisecond),
        ("time-micros", Wire::Long) => Meaning::TimeOfDay(Microsecond),
        ("timestamp-millis" | "local-timestamp-millis", Wire::Long) => Meaning::Instant(Millisecond),
        ("timestamp-micros" | "local-timestamp-micros", Wire::Long) => Meaning::Instant(Microsecond),
        ("timestamp-nanos" | "local-timestamp-nanos", Wire::Long) => Meaning::Instant(Nanosecond),
        ("uuid", Wire::String) => Meaning::Plain,
        ("decimal" | "date" | "time-millis" | "time-micros" | "uuid", _) => Meaning::Plain,
        _ => return None,
    })
}

fn is_list_of(wire: &Wire, item: Wire) -> bool {
    matches!(wire, Wire::List(own) if own.wire == item && own.meaning == Meaning::Plain)
}

/// The record is read by position, so the order of its two fields counts.
fn is_scaled(schema: &Schema, node: &Node) -> bool {
    let Shape::Record(record) = &node.shape else { return false };
    let [scale, value] = record.fields.as_slice() else { return false };
    (&*scale.name, &*value.name) == ("scale", "value")
        && matches!(schema.node(scale.node).shape, Shape::Int)
        && matches!(schema.node(value.node).shape, Shape::Bytes)
}

fn takes(wire: &Wire, meaning: Meaning, wanted: Option<Wanted>) -> bool {
    match wanted {
        None => true,
        Some(Wanted::Duration) => matches!(meaning, Meaning::TimeOfDay(_) | Meaning::Elapsed(_)),
        Some(Wanted::TimestampNs) => {
            matches!(meaning, Meaning::ZonedTimestamp | Meaning::IsoTimestamp | Meaning::Instant(_))
        }
        Some(Wanted::Decimal { .. }) => match meaning {
            Meaning::Unscaled { .. } | Meaning::Scaled | Meaning::DecimalText => true,
            Meaning::Plain => matches!(wire, Wire::String | Wire::Int | Wire::Long),
            _ => false,
        },
    }
}

fn arrow_type(wire: &Wire, meaning: Meaning, wanted: Option<Wanted>, like: Option<&Type>) -> Result<DataType, String> {
    use TimeUnit::{Microsecond, Millisecond, Nanosecond};
    if let Some(Wanted::Decimal { precision, scale }) = wanted {
        return Ok(decimal(precision, scale));
    }
    let text_unit = if wanted == Some(Wanted::TimestampNs) { Nanosecond } else { Microsecond };
    Ok(match meaning {
        Meaning::Plain | Meaning::DecimalText => match wire {
            Wire::Boolean => DataType::Boolean,
            Wire::Int => DataType::Int32,
            Wire::Long => DataType::Int64,
            Wire::Float => DataType::Float32,
            Wire::Double => DataType::Float64,
            Wire::String | Wire::Enum(_) | Wire::Scaled => DataType::Utf8,
            Wire::Bytes | Wire::Fixed(_) => DataType::Binary,
            Wire::List(item) => DataType::List(Arc::new(Field::new("item", item.arrow.clone(), true))),
        },
        Meaning::Days | Meaning::IsoDate => DataType::Date32,
        Meaning::TimeOfDay(unit) | Meaning::Elapsed(unit) if wanted == Some(Wanted::Duration) => {
            DataType::Duration(unit)
        }
        Meaning::Elapsed(unit) => DataType::Duration(unit),
        Meaning::TimeOfDay(Millisecond) => DataType::Time32(Millisecond),
        Meaning::TimeOfDay(unit) => DataType::Time64(unit),
        Meaning::ZonedTime | Meaning::IsoTime => DataType::Time64(Microsecond),
        Meaning::Instant(_) if wanted == Some(Wanted::TimestampNs) => DataType::Timestamp(Nanosecond, None),
        Meaning::Instant(unit) => DataType::Timestamp(unit, None),
        Meaning::ZonedTimestamp => DataType::Timestamp(text_unit, Some(UTC.into())),
        Meaning::IsoTimestamp => DataType::Timestamp(text_unit, None),
        Meaning::Interval => DataType::Interval(IntervalUnit::MonthDayNano),
        Meaning::Scaled => DataType::Utf8,
        Meaning::Unscaled { scale, precision } => {
            // The writer's own Arrow type is only asked for when there is no contract to convert to.
            if let Some(like) = like.filter(|l| matches!(l.arrow, DataType::Decimal128(..) | DataType::Decimal256(..)))
            {
                return Ok(like.arrow.clone());
            }
            let max = i64::from(DECIMAL256_MAX_PRECISION);
            // PostgreSQL has numeric(3,5); Arrow wants room for every digit after the point.
            let precision = precision.unwrap_or(max).max(scale).max(1);
            if precision > max || scale < i64::from(i8::MIN) {
                return Err(format!(
                    "a decimal of {precision} digits, {scale} of them after the point, is wider than {max} digits; \
                     \"freshet.type\": \"decimal(precision,scale)\" in the contract narrows it"
                ));
            }
            decimal(precision as u8, scale as i8)
        }
    })
}

fn decimal(precision: u8, scale: i8) -> DataType {
    if precision <= DECIMAL128_MAX_PRECISION {
        DataType::Decimal128(precision, scale)
    } else {
        DataType::Decimal256(precision, scale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(avro: &str) -> Result<Type, String> {
        let schema = Schema::from_avro(avro).unwrap();
        Type::of(&schema, schema.root, None)
    }

    fn named_type(wire: &str, name: &str, more: &str) -> Result<Type, String> {
        resolve(&format!(r#"{{"type":"{wire}","connect.name":"{name}"{more}}}"#))
    }

    #[test]
    fn every_name_has_its_arrow_type() {
        use TimeUnit::*;
        let check = |wire: &str, name: &str, expect: DataType| {
            assert_eq!(named_type(wire, name, "").unwrap().arrow, expect, "{name}");
        };
        let utc = Some(UTC.into());
        check("int", "io.debezium.time.Date", DataType::Date32);
        check("int", "org.apache.kafka.connect.data.Date", DataType::Date32);
        check("int", "io.debezium.time.Time", DataType::Time32(Millisecond));
        check("long", "io.debezium.time.MicroTime", DataType::Time64(Microsecond));
        check("long", "io.debezium.time.NanoTime", DataType::Time64(Nanosecond));
        check("long", "io.debezium.time.Timestamp", DataType::Timestamp(Millisecond, None));
        check("long", "org.apache.kafka.connect.data.Timestamp", DataType::Timestamp(Millisecond, None));
        check("long", "io.debezium.time.MicroTimestamp", DataType::Timestamp(Microsecond, None));
        check("long", "io.debezium.time.NanoTimestamp", DataType::Timestamp(Nanosecond, None));
        check("string", "io.debezium.time.ZonedTimestamp", DataType::Timestamp(Microsecond, utc));
        check("string", "io.debezium.time.IsoTimestamp", DataType::Timestamp(Microsecond, None));
        check("string", "io.debezium.time.ZonedTime", DataType::Time64(Microsecond));
        check("string", "io.debezium.time.IsoDate", DataType::Date32);
        check("string", "io.debezium.time.Interval", DataType::Interval(IntervalUnit::MonthDayNano));
        check("long", "io.debezium.time.MicroDuration", DataType::Duration(Microsecond));
        check("int", "io.debezium.time.Year", DataType::Int32);
        check("string", "io.debezium.data.EnumSet", DataType::Utf8);
        check("bytes", "io.debezium.data.Bits", DataType::Binary);
    }

    #[test]
    fn what_is_unknown_is_refused_by_name() {
        let message = named_type("string", "com.example.Colour", "").unwrap_err();
        assert_eq!(message, "the type string com.example.Colour is not known");
        assert!(named_type("string", "io.debezium.time.Date", "").is_err(), "a date is no string");
        let geometry = r#"{"type":"record","name":"G","connect.name":"io.debezium.data.geometry.Point","fields":[]}"#;
        assert!(resolve(geometry).unwrap_err().contains("io.debezium.data.geometry.Point"));
        assert!(resolve(r#"["int","string"]"#).is_err());
    }

    #[test]
    fn decimals_take_their_width_from_what_the_database_said() {
        let decimal = |more: &str| named_type("bytes", "org.apache.kafka.connect.data.Decimal", more);
        let with = |scale: &str, precision: &str| {
            decimal(&format!(
                r#","connect.parameters":{{"scale":"{scale}","connect.decimal.precision":"{precision}"}}"#
            ))
        };
        assert_eq!(with("4", "19").unwrap().arrow, DataType::Decimal128(19, 4));
        assert_eq!(with("30", "65").unwrap().arrow, DataType::Decimal256(65, 30));
        assert_eq!(with("5", "3").unwrap().arrow, DataType::Decimal128(5, 5));
        assert!(with("0", "100").unwrap_err().contains("freshet.type"));
        let open = decimal(r#","precision":64,"scale":2,"connect.parameters":{"scale":"2"}"#).unwrap();
        assert_eq!(open.arrow, DataType::Decimal256(76, 2));
        let asked = decimal(r#","connect.parameters":{"scale":"2"},"freshet.type":"decimal(20,2)""#).unwrap();
        assert_eq!(asked.arrow, DataType::Decimal128(20, 2));
    }

    #[test]
    fn promotion_never_loses_a_value() {
        let int = resolve(r#""int""#).unwrap();
        let long = resolve(r#""long""#).unwrap();
        let double = resolve(r#""double""#).unwrap();
        let float = resolve(r#""float""#).unwrap();
        let text = resolve(r#""string""#).unwrap();
        let date = named_type("int", "io.debezium.time.Date", "").unwrap();
        let ms = named_type("long", "io.debezium.time.Timestamp", "").unwrap();
        let us = named_type("long", "io.debezium.time.MicroTimestamp", "").unwrap();
        let zoned = named_type("string", "io.debezium.time.ZonedTimestamp", "").unwrap();
        assert!(int.promotes_to(&long) && int.promotes_to(&double) && float.promotes_to(&double));
        assert!(!long.promotes_to(&int) && !long.promotes_to(&double) && !double.promotes_to(&float));
        assert!(!text.promotes_to(&int) && !int.promotes_to(&text) && !date.promotes_to(&long));
        assert!(ms.promotes_to(&us) && !us.promotes_to(&ms) && !us.promotes_to(&zoned) && !long.promotes_to(&us));
    }
}
