//! Dates, times, intervals and decimals as text: read exactly as they are written, or not at all.
//!
//! Years may have a sign and more than four digits (PostgreSQL's dates reach 5,874,897). Nothing here rounds.

use arrow::datatypes::{IntervalMonthDayNano, TimeUnit, i256};

const NANOS_PER_SECOND: i64 = 1_000_000_000;
const NANOS_PER_DAY: i64 = 86_400 * NANOS_PER_SECOND;

/// Digits of the longest number that PostgreSQL's `numeric` holds (131,072 before the point, 16,383 after), and some.
const NUMERIC_MAX_DIGITS: i64 = 160_000;
/// Bytes of such a number.
const NUMERIC_MAX_BYTES: usize = 70_000;

/// How far the text is read.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn new(text: &'a str) -> Self {
        Reader { rest: text.as_bytes() }
    }

    fn take(&mut self, byte: u8) -> bool {
        match self.rest.split_first() {
            Some((first, rest)) if *first == byte => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    fn digits(&mut self, most: usize) -> &'a [u8] {
        let count = self.rest.iter().take(most).take_while(|b| b.is_ascii_digit()).count();
        let (digits, rest) = self.rest.split_at(count);
        self.rest = rest;
        digits
    }

    /// Exactly two digits.
    fn two(&mut self) -> Option<i64> {
        match self.digits(2) {
            [a, b] => Some(i64::from(a - b'0') * 10 + i64::from(b - b'0')),
            _ => None,
        }
    }

    fn number(&mut self, most: usize) -> Option<i64> {
        let digits = self.digits(most);
        (!digits.is_empty()).then(|| digits.iter().fold(0, |n, d| n * 10 + i64::from(d - b'0')))
    }

    /// `.123456789` as nanoseconds; 0 when there is no point.
    fn fraction(&mut self) -> Option<i64> {
        if !self.take(b'.') {
            return Some(0);
        }
        let digits = self.digits(9);
        let nanos = digits.iter().fold(0, |n, d| n * 10 + i64::from(d - b'0'));
        (!digits.is_empty()).then(|| nanos * 10_i64.pow(9 - digits.len() as u32))
    }

    /// Days since 1970-01-01.
    fn date(&mut self) -> Option<i64> {
        let negative = self.take(b'-');
        let signed = negative || self.take(b'+');
        let year_digits = self.digits(if signed { 9 } else { 4 });
        if year_digits.len() < 4 {
            return None;
        }
        let year = year_digits.iter().fold(0, |n, d| n * 10 + i64::from(d - b'0'));
        let year = if negative { -year } else { year };
        let month = self.take(b'-').then(|| self.two())??;
        let day = self.take(b'-').then(|| self.two())??;
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let length = match month {
            2 => 28 + i64::from(leap),
            4 | 6 | 9 | 11 => 30,
            1..=12 => 31,
            _ => return None,
        };
        (1..=length).contains(&day).then(|| days_from_civil(year, month, day))
    }

    /// Nanoseconds since midnight. Seconds may be left out.
    fn time(&mut self) -> Option<i64> {
        let hour = self.two()?;
        let minute = self.take(b':').then(|| self.two())??;
        let (second, nanos) = if self.take(b':') { (self.two()?, self.fraction()?) } else { (0, 0) };
        let inside = hour < 24 && minute < 60 && second < 60;
        inside.then(|| (hour * 3600 + minute * 60 + second) * NANOS_PER_SECOND + nanos)
    }

    /// `Z`, `+02`, `+02:00`, `-08:00:30`: seconds east of UTC.
    fn offset(&mut self) -> Option<i64> {
        if self.take(b'Z') {
            return Some(0);
        }
        let sign = if self.take(b'+') {
            1
        } else if self.take(b'-') {
            -1
        } else {
            return None;
        };
        let mut seconds = self.two()? * 3600;
        if self.take(b':') {
            seconds += self.two()? * 60;
            if self.take(b':') {
                seconds += self.two()?;
            }
        }
        (seconds <= 18 * 3600).then_some(sign * seconds)
    }

    fn ends<T>(&self, value: T) -> Option<T> {
        self.rest.is_empty().then_some(value)
    }
}

/// Days of the proleptic Gregorian calendar since 1970-01-01, by eras of 400 years that begin in March.
pub(crate) fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// `2024-02-29`, with or without `Z`: days since 1970.
pub(crate) fn iso_date(text: &str) -> Option<i32> {
    let mut reader = Reader::new(text);
    let days = reader.date()?;
    reader.take(b'Z');
    reader.ends(i32::try_from(days).ok()?)
}

/// `07:04:56.789`, with or without `Z`: nanoseconds since midnight.
pub(crate) fn iso_time(text: &str) -> Option<i64> {
    let mut reader = Reader::new(text);
    let nanos = reader.time()?;
    reader.take(b'Z');
    reader.ends(nanos)
}

/// `07:04:56+02:00`: nanoseconds since midnight in UTC, on whichever day that is.
pub(crate) fn zoned_time(text: &str) -> Option<i64> {
    let mut reader = Reader::new(text);
    let nanos = reader.time()?;
    let offset = reader.offset()?;
    reader.ends((nanos - offset * NANOS_PER_SECOND).rem_euclid(NANOS_PER_DAY))
}

/// `2024-02-29T07:04:56.789` in nanoseconds since 1970; with an offset if `zoned`, else with or without `Z`.
pub(crate) fn timestamp(text: &str, zoned: bool) -> Option<i128> {
    let mut reader = Reader::new(text);
    let days = reader.date()?;
    if !reader.take(b'T') && !reader.take(b' ') {
        return None;
    }
    let nanos = reader.time()?;
    let offset = if zoned {
        reader.offset()?
    } else {
        reader.take(b'Z');
        0
    };
    let nanos = i128::from(days) * i128::from(NANOS_PER_DAY) + i128::from(nanos - offset * NANOS_PER_SECOND);
    reader.ends(nanos)
}

/// Nanoseconds in another unit; `None` when digits would be lost or do not fit.
pub(crate) fn in_unit(nanos: i128, unit: TimeUnit) -> Option<i64> {
    let per = match unit {
        TimeUnit::Second => 1_000_000_000,
        TimeUnit::Millisecond => 1_000_000,
        TimeUnit::Microsecond => 1_000,
        TimeUnit::Nanosecond => 1,
    };
    (nanos % per == 0).then(|| i64::try_from(nanos / per).ok())?
}

/// `P1Y2M3DT4H5M6.78S`, each part with a sign of its own if it wants one.
pub(crate) fn interval(text: &str) -> Option<IntervalMonthDayNano> {
    let mut reader = Reader::new(text);
    let (mut months, mut days, mut nanos) = (0_i64, 0_i64, 0_i64);
    if !reader.take(b'P') || reader.rest.is_empty() {
        return None;
    }
    let mut in_time = false;
    while !reader.rest.is_empty() {
        if !in_time && reader.take(b'T') {
            in_time = true;
            continue;
        }
        let sign = if reader.take(b'-') {
            -1
        } else {
            reader.take(b'+');
            1
        };
        let whole = reader.number(12)?;
        let has_point = reader.rest.first() == Some(&b'.');
        let fraction = reader.fraction()?;
        let (unit, rest) = reader.rest.split_first()?;
        reader.rest = rest;
        if has_point && *unit != b'S' {
            return None;
        }
        let of_seconds = |seconds: i64| whole.checked_mul(seconds)?.checked_mul(NANOS_PER_SECOND)?.checked_mul(sign);
        match (unit, in_time) {
            (b'Y', false) => months = months.checked_add(sign * whole * 12)?,
            (b'M', false) => months = months.checked_add(sign * whole)?,
            (b'D', false) => days = days.checked_add(sign * whole)?,
            (b'H', true) => nanos = nanos.checked_add(of_seconds(3600)?)?,
            (b'M', true) => nanos = nanos.checked_add(of_seconds(60)?)?,
            (b'S', true) => nanos = nanos.checked_add(of_seconds(1)?.checked_add(sign * fraction)?)?,
            _ => return None,
        }
    }
    Some(IntervalMonthDayNano::new(i32::try_from(months).ok()?, i32::try_from(days).ok()?, nanos))
}

/// The digits of a decimal as text, at the wanted scale; `None` when it is no number or digits would be lost.
pub(crate) fn decimal(text: &str, scale: i8) -> Option<i256> {
    let (text, exponent) = match text.split_once(['e', 'E']) {
        Some((text, exponent)) => (text, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (negative, text) = match text.strip_prefix('-') {
        Some(text) => (true, text),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    if whole.is_empty() && part.is_empty() {
        return None;
    }
    let ten = i256::from_i128(10);
    let mut value = i256::ZERO;
    // Zeros at the end of the fraction carry nothing, and would only count against the width.
    let part = part.trim_end_matches('0');
    for digit in whole.bytes().chain(part.bytes()) {
        if !digit.is_ascii_digit() {
            return None;
        }
        value = value.checked_mul(ten)?.checked_add(i256::from_i128(i128::from(digit - b'0')))?;
    }
    let value = if negative { value.checked_neg()? } else { value };
    let own = i64::try_from(part.len()).ok()? - i64::from(exponent);
    rescale(value, own, scale)
}

/// The same number at another scale; `None` when digits would be lost or do not fit.
pub(crate) fn rescale(value: i256, own: i64, wanted: i8) -> Option<i256> {
    let shift = i64::from(wanted).checked_sub(own)?;
    if value == i256::ZERO || shift == 0 {
        return Some(value);
    }
    // 10^77 is the first power that 256 bits do not hold.
    let power = u32::try_from(shift.unsigned_abs()).ok().filter(|p| *p < 77)?;
    let power = i256::from_i128(10).checked_pow(power)?;
    if shift > 0 {
        return value.checked_mul(power);
    }
    (value.checked_rem(power)? == i256::ZERO).then(|| value.checked_div(power))?
}

/// Big-endian two's complement of any length as a number; `None` when it is empty or wider than 256 bits.
pub(crate) fn unscaled(bytes: &[u8]) -> Option<i256> {
    let first = *bytes.first()?;
    let fill = if first & 0x80 == 0 { 0x00 } else { 0xff };
    let mut wide = [fill; 32];
    if bytes.len() > 32 {
        let (extra, rest) = bytes.split_at(bytes.len() - 32);
        if extra.iter().any(|b| *b != fill) || (rest[0] ^ fill) & 0x80 != 0 {
            return None;
        }
        wide.copy_from_slice(rest);
    } else {
        wide[32 - bytes.len()..].copy_from_slice(bytes);
    }
    Some(i256::from_be_bytes(wide))
}

/// A decimal of any width in plain notation, with exactly `scale` digits after the point, as databases print it.
pub(crate) fn plain_decimal(bytes: &[u8], scale: i64) -> Option<String> {
    if bytes.is_empty() || bytes.len() > NUMERIC_MAX_BYTES || scale.abs() > NUMERIC_MAX_DIGITS {
        return None;
    }
    let (negative, mut digits) = match unscaled(bytes) {
        Some(value) => {
            let text = value.to_string();
            (text.starts_with('-'), text.trim_start_matches('-').to_string())
        }
        None => (bytes[0] & 0x80 != 0, magnitude(bytes)),
    };
    if scale < 0 && digits != "0" {
        digits.extend(std::iter::repeat_n('0', scale.unsigned_abs() as usize));
    }
    let scale = scale.max(0) as usize;
    if digits.len() <= scale {
        digits.insert_str(0, &"0".repeat(scale + 1 - digits.len()));
    }
    if scale > 0 {
        digits.insert(digits.len() - scale, '.');
    }
    if negative {
        digits.insert(0, '-');
    }
    Some(digits)
}

/// The digits without sign of a number that 256 bits do not hold. Quadratic; its input is bounded by [`NUMERIC_MAX_BYTES`].
fn magnitude(bytes: &[u8]) -> String {
    const LIMB: u64 = 1_000_000_000;
    let negative = bytes[0] & 0x80 != 0;
    let mut limbs: Vec<u64> = Vec::new();
    let (head, words) = bytes.split_at(bytes.len() % 4);
    let mut feed = |word: u64, base: u64| {
        let mut carry = word;
        for limb in &mut limbs {
            let value = *limb * base + carry;
            *limb = value % LIMB;
            carry = value / LIMB;
        }
        while carry > 0 {
            limbs.push(carry % LIMB);
            carry /= LIMB;
        }
    };
    // The magnitude of a negative number is its complement and one.
    for byte in head {
        feed(u64::from(if negative { !byte } else { *byte }), 1 << 8);
    }
    for word in words.as_chunks::<4>().0 {
        let word = u32::from_be_bytes(*word);
        feed(u64::from(if negative { !word } else { word }), 1 << 32);
    }
    if negative {
        feed(1, 1);
    }
    let mut text = limbs.pop().map_or_else(|| "0".to_string(), |limb| limb.to_string());
    for limb in limbs.iter().rev() {
        text.push_str(&format!("{limb:09}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_all_ages() {
        let check = |text: &str, expect: Option<i32>| assert_eq!(iso_date(text), expect, "{text}");
        check("1970-01-01", Some(0));
        check("1970-01-01Z", Some(0));
        check("2024-02-29", Some(19_782));
        check("2023-02-29", None);
        check("0001-01-01", Some(-719_162));
        check("9999-12-31Z", Some(2_932_896));
        check("-0001-12-31", Some(-719_529));
        check("+5874897-12-31", Some(2_145_042_905));
        check("2024-13-01", None);
        check("2024-01-01T", None);
        check("24-01-01", None);
        check("", None);
    }

    #[test]
    fn timestamps_keep_their_digits() {
        let micros = |text: &str| timestamp(text, true).and_then(|n| in_unit(n, TimeUnit::Microsecond));
        assert_eq!(micros("2024-02-29T07:04:56.789012Z"), Some(1_709_190_296_789_012));
        assert_eq!(micros("2024-02-29T09:04:56.789012+02:00"), Some(1_709_190_296_789_012));
        assert_eq!(micros("9999-12-31T23:59:59.999999Z"), Some(253_402_300_799_999_999));
        assert_eq!(micros("1969-12-31T23:59:59.500000Z"), Some(-500_000));
        assert_eq!(micros("2024-02-29T07:04:56.7890121Z"), None, "100 ns are lost in microseconds");
        assert_eq!(micros("2024-02-29T07:04:56"), None, "no zone");
        assert_eq!(micros("2024-02-29T24:00:00Z"), None);
        let nanos = timestamp("2024-02-29T07:04:56.7890121Z", true).and_then(|n| in_unit(n, TimeUnit::Nanosecond));
        assert_eq!(nanos, Some(1_709_190_296_789_012_100));
        assert_eq!(timestamp("1970-01-01T00:00:01", false), Some(1_000_000_000));
        assert_eq!(timestamp("1970-01-01T00:00:01Z", false), Some(1_000_000_000));
    }

    #[test]
    fn times_of_day() {
        assert_eq!(iso_time("01:02:03.5Z"), Some(3_723_500_000_000));
        assert_eq!(zoned_time("06:00:00Z"), zoned_time("08:00:00+02"));
        assert_eq!(zoned_time("01:00:00+02:00"), Some(23 * 3600 * NANOS_PER_SECOND));
        assert_eq!(zoned_time("06:00:00"), None);
        assert_eq!(iso_time("6:00"), None);
    }

    #[test]
    fn intervals_part_by_part() {
        let check = |text: &str, expect: Option<(i32, i32, i64)>| {
            let expect = expect.map(|(m, d, n)| IntervalMonthDayNano::new(m, d, n));
            assert_eq!(interval(text), expect, "{text}");
        };
        check("P1Y2M3DT4H5M6.789S", Some((14, 3, (4 * 3600 + 5 * 60 + 6) * NANOS_PER_SECOND + 789_000_000)));
        check("P-1Y-2M0DT0H0M-0.5S", Some((-14, 0, -500_000_000)));
        check("PT-838H", Some((0, 0, -838 * 3600 * NANOS_PER_SECOND)));
        check("P", None);
        check("P1H", None);
        check("P1.5D", None);
        check("P999999999999Y", None);
        check("PT999999999999H", None);
    }

    #[test]
    fn decimals_are_exact() {
        let check = |text: &str, scale: i8, expect: Option<i128>| {
            assert_eq!(decimal(text, scale), expect.map(i256::from_i128), "{text} at {scale}");
        };
        check("12.34", 2, Some(1234));
        check("12.34", 4, Some(123_400));
        check("12.3400", 2, Some(1234));
        check("-0.005", 3, Some(-5));
        check("12.345", 2, None);
        check("1.2e3", 0, Some(1200));
        check("1E-3", 3, Some(1));
        check("12000", -3, Some(12));
        check("NaN", 2, None);
        check("", 2, None);
        check(".", 2, None);
        check("1e99", 0, None);
        check("0e99999999", 0, Some(0));
    }

    #[test]
    fn any_width_is_printed_plainly() {
        let check = |bytes: &[u8], scale: i64, expect: &str| {
            assert_eq!(plain_decimal(bytes, scale).as_deref(), Some(expect));
        };
        check(&[1], 9, "0.000000001");
        check(&[0x0f], 1, "1.5");
        check(&[0xff], 0, "-1");
        check(&[0xff], 3, "-0.001");
        check(&[5], -3, "5000");
        check(&[0], -3, "0");
        let mut wide = vec![0x01];
        wide.extend([0; 40]);
        // 2^320
        let digits =
            "2135987035920910082395021706169552114602704522356652769947041607822219725780640550022962086936576";
        check(&wide, 0, digits);
        let mut negative = vec![0xff];
        negative.extend([0; 40]);
        check(&negative, 0, &format!("-{digits}"));
        assert_eq!(plain_decimal(&[1], i64::from(i32::MAX)), None);
        assert_eq!(plain_decimal(&[], 0), None);
    }

    #[test]
    fn bytes_beyond_256_bits_are_no_number_here() {
        assert_eq!(unscaled(&[0xff; 40]), Some(i256::MINUS_ONE));
        let mut wide = vec![0x00; 8];
        wide.extend([0x80]);
        wide.extend([0; 31]);
        assert_eq!(unscaled(&wide), None, "the sign would flip");
        assert_eq!(unscaled(&[]), None);
    }
}
