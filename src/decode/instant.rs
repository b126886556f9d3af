//! Instants, days and times are numbers of a unit: how they go from one unit to another, and which of them can be shown.
//!
//! The invariant: what passes here can be printed by whoever prints a column; the infinities of a database are the first and the last that can.

use std::ops::RangeInclusive;

use arrow::datatypes::{DataType, TimeUnit};

use super::text;

/// The days that can be shown: chrono's, by which Arrow prints.
pub(super) fn days() -> RangeInclusive<i64> {
    text::days_from_civil(-262_143, 1, 1)..=text::days_from_civil(262_142, 12, 31)
}

/// The instants that can be shown, in a unit; those that it has, where these are fewer.
pub(super) fn instants(unit: TimeUnit) -> RangeInclusive<i64> {
    let (first, last) = days().into_inner();
    first.saturating_mul(per_day(unit))..=(last + 1).saturating_mul(per_day(unit)) - 1
}

pub(super) fn outside(what: &str) -> String {
    format!("{what} lies outside of the years -262143 to 262142")
}

/// Where an infinity of PostgreSQL goes: before or after all that is finite. Its driver has them as two numbers of milliseconds, which Debezium
/// writes as text, and takes for microseconds where it writes a number.
pub(super) fn infinite(value: i128, unit: TimeUnit) -> Option<i64> {
    match value {
        -9_223_372_036_832_400_000 => Some(*instants(unit).start()),
        9_223_372_036_825_200_000 => Some(*instants(unit).end()),
        _ => None,
    }
}

/// What a text says in the unit of a column, given its nanoseconds, if it has any.
pub(super) fn of_text(nanos: Option<i128>, text: &str, wanted: &DataType) -> Result<i64, String> {
    let nanos = nanos.ok_or_else(|| format!("{text:?} is no {wanted}"))?;
    if let DataType::Timestamp(unit, _) = wanted {
        if let Some(bound) = infinite(nanos / 1_000_000, *unit) {
            return Ok(bound);
        }
        let day = nanos.div_euclid(i128::from(per_day(TimeUnit::Nanosecond)));
        if !i64::try_from(day).is_ok_and(|day| days().contains(&day)) {
            return Err(outside(&format!("{text:?}")));
        }
    }
    let value = text::in_unit(nanos, unit_of(wanted));
    value.ok_or_else(|| format!("{text:?} does not fit {wanted} without losing digits"))
}

pub(super) fn unit_of(data_type: &DataType) -> TimeUnit {
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

pub(super) fn per_day(unit: TimeUnit) -> i64 {
    86_400 * per_second(unit)
}

pub(super) fn unit_name(unit: TimeUnit) -> &'static str {
    match unit {
        TimeUnit::Second => "s",
        TimeUnit::Millisecond => "ms",
        TimeUnit::Microsecond => "us",
        TimeUnit::Nanosecond => "ns",
    }
}

/// A writer's unit is never finer than its target's: that would not be a promotion.
pub(super) fn factor(own: TimeUnit, wanted: &DataType) -> i64 {
    (per_second(unit_of(wanted)) / per_second(own)).max(1)
}
