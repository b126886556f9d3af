//! Values as text that can be compared: what stands in Arrow columns, and what a database printed, in one notation.
//!
//! The notation is PostgreSQL's own where it has one way to say a thing. A database's text is only rewritten where it depends on its session
//! (the zone, the money sign), is another notation of the same bits (bit strings, hexadecimal), or where the value that Debezium sends is
//! another one; each of those says why.

use arrow::array::cast::AsArray;
use arrow::array::{Array, ArrayRef};
use arrow::datatypes::{
    DataType, DurationMicrosecondType, Float32Type, Float64Type, Time64MicrosecondType, TimeUnit,
    TimestampMicrosecondType, TimestampMillisecondType,
};

const DAY_US: i64 = 86_400_000_000;

/// What stands at `n`.
pub fn ours(column: &ArrayRef, n: usize) -> Option<String> {
    if column.is_null(n) {
        return None;
    }
    Some(match column.data_type() {
        DataType::Timestamp(unit, zone) => {
            let us = match unit {
                TimeUnit::Millisecond => column.as_primitive::<TimestampMillisecondType>().value(n) * 1000,
                TimeUnit::Microsecond => column.as_primitive::<TimestampMicrosecondType>().value(n),
                other => panic!("no column of the recording has the unit {other:?}"),
            };
            format!("{}{}", instant(us), if zone.is_some() { "+00" } else { "" })
        }
        DataType::Time64(TimeUnit::Microsecond) => {
            instant(column.as_primitive::<Time64MicrosecondType>().value(n))["1970-01-01 ".len()..].to_string()
        }
        DataType::Duration(TimeUnit::Microsecond) => {
            format!("{} us", column.as_primitive::<DurationMicrosecondType>().value(n))
        }
        DataType::Binary => hex(column.as_binary::<i32>().value(n)),
        DataType::List(_) => {
            let items = column.as_list::<i32>().value(n);
            let items: Vec<String> =
                (0..items.len()).map(|i| ours(&items, i).map_or("NULL".into(), |item| quoted(&item))).collect();
            format!("{{{}}}", items.join(","))
        }
        DataType::Float32 => format!("{:?}", column.as_primitive::<Float32Type>().value(n)),
        DataType::Float64 => format!("{:?}", column.as_primitive::<Float64Type>().value(n)),
        DataType::Boolean => column.as_boolean().value(n).to_string(),
        DataType::Int32
        | DataType::Int64
        | DataType::Utf8
        | DataType::Date32
        | DataType::Decimal128(..)
        | DataType::Decimal256(..) => arrow::util::display::array_value_to_string(column, n).unwrap(),
        other => panic!("no column of the recording becomes {other}"),
    })
}

/// What has to come out for the text that the database printed in a column.
pub fn theirs(table: &str, column: &str, text: &str) -> Option<String> {
    Some(match (table, column) {
        // Connect's decimals have no NaN: Debezium writes null for it. And it drops the zeros at the end of a numeric that has no
        // scale of its own; the number is the same.
        ("shop.production.product", "any_number") if text == "NaN" => return None,
        ("shop.production.product", "any_number") if text.contains('.') => {
            text.trim_end_matches('0').trim_end_matches('.').into()
        }
        ("shop.production.product", "weight") => format!("{:?}", text.parse::<f32>().unwrap()),
        ("shop.production.product", "height") | ("mshop.mshop.product", "d") => {
            format!("{:?}", text.parse::<f64>().unwrap())
        }
        // MariaDB prints six digits of a float, and Debezium sends all that it has: see `six_digits`.
        ("mshop.mshop.product", "f") => six_digits(text.parse().unwrap()),
        // Debezium turns a time with a zone to UTC.
        ("shop.production.product", "opens_tz") => in_utc(text),
        // An interval has months and days of no fixed length; `MicroDuration` takes a month for a twelfth of 365.25 days.
        ("shop.production.product", "warranty") => format!("{} us", averaged(text)),
        // A cast to text drops the blanks that pad a char(10); the value has them.
        ("shop.production.product", "colour") => format!("{text:<10}"),
        ("shop.production.product", "flags") => little_endian(u64::from_str_radix(text, 2).unwrap(), text.len()),
        ("mshop.mshop.product", "b10") => little_endian(u64::from_str_radix(text, 16).unwrap(), 10),
        ("shop.production.product", "one_bit") | ("mshop.mshop.product", "b1") => (text == "1").to_string(),
        ("shop.production.product", "cash") => text.trim_start_matches('$').into(),
        // `bigint.unsigned.handling.mode=long` sends the same 64 bits as a signed number.
        ("mshop.mshop.product", "big") => (text.parse::<u64>().unwrap() as i64).to_string(),
        ("mshop.mshop.product", "ts") => format!("{text}+00"),
        ("mshop.mshop.product", "t1") => format!("{} us", elapsed(text)),
        ("mshop.mshop.product", "bin" | "bl") => text.to_ascii_lowercase(),
        _ => text.into(),
    })
}

/// A float as MariaDB prints it, in a form that does not depend on where it puts the point.
pub fn six_digits(value: f32) -> String {
    format!("{value:.5e}")
}

fn instant(us: i64) -> String {
    let time = chrono::DateTime::from_timestamp_micros(us).unwrap();
    let fraction = format!("{:06}", time.timestamp_subsec_micros());
    let fraction = fraction.trim_end_matches('0');
    let dot = if fraction.is_empty() { "" } else { "." };
    format!("{}{dot}{fraction}", time.format("%Y-%m-%d %H:%M:%S"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// An item of an array, quoted where PostgreSQL quotes it.
fn quoted(item: &str) -> String {
    let plain = !item.is_empty()
        && !item.eq_ignore_ascii_case("null")
        && !item.contains(|c: char| c.is_whitespace() || "{},\"\\".contains(c));
    if plain { item.into() } else { format!("\"{}\"", item.replace('\\', "\\\\").replace('"', "\\\"")) }
}

/// Debezium's `Bits`: as many bytes as the bits need, the lowest first.
fn little_endian(value: u64, bits: usize) -> String {
    hex(&value.to_le_bytes()[..bits.div_ceil(8)])
}

/// `[-]HHH:MM:SS[.ffffff]` in microseconds.
fn elapsed(text: &str) -> i64 {
    let (sign, text) = text.strip_prefix('-').map_or((1, text), |rest| (-1, rest));
    let (clock, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds = clock.split(':').fold(0, |sum, part| sum * 60 + part.parse::<i64>().unwrap());
    sign * (seconds * 1_000_000 + format!("{fraction:0<6}").parse::<i64>().unwrap())
}

/// `08:00:00+02`, as the time of day that it is in UTC.
fn in_utc(text: &str) -> String {
    let (clock, zone) = text.split_at(text.find(['+', '-']).unwrap());
    let us = elapsed(clock) - zone.parse::<i64>().unwrap() * 3_600_000_000;
    instant(us.rem_euclid(DAY_US))["1970-01-01 ".len()..].to_string()
}

/// `1 year 2 mons 3 days 04:05:06.789` in microseconds.
fn averaged(text: &str) -> i64 {
    let (mut months, mut us) = (0, 0);
    let mut words = text.split(' ');
    while let Some(word) = words.next() {
        match (word.parse::<i64>(), words.next()) {
            (Ok(n), Some("year" | "years")) => months += 12 * n,
            (Ok(n), Some("mon" | "mons")) => months += n,
            (Ok(n), Some("day" | "days")) => us += n * DAY_US,
            (Err(_), None) => us += elapsed(word),
            other => panic!("{other:?} is no part of an interval"),
        }
    }
    // 365.25 days a year: a quarter of a day is exact in microseconds, and so is its twelfth.
    months * (DAY_US * 1461 / 48) + us
}

#[test]
fn texts_are_rewritten_as_they_should() {
    assert_eq!(elapsed("-838:59:59.000000"), -3_020_399_000_000);
    assert_eq!(in_utc("01:00:00+02"), "23:00:00");
    assert_eq!(averaged("1 year 2 mons 3 days 04:05:06.789"), 37_091_106_789_000);
    assert_eq!(little_endian(0x2ff, 10), "ff02");
    assert_eq!(quoted("b \"q\""), r#""b \"q\"""#);
    assert_eq!(theirs("shop.production.product", "any_number", "1.50").as_deref(), Some("1.5"));
    assert_eq!(theirs("shop.production.product", "height", "-0").as_deref(), Some("-0.0"));
}
