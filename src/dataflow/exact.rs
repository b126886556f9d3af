//! A sum of floating-point numbers that is exact, so that what was added can be taken away again and the order of both is of no account.
//!
//! The idea is Kulisch's: each number is an integer times a power of two, and integers are summed in slots of 32 bits of exponent. A sum that
//! leaves the range, not a number, and the infinities are counted beside it.

/// The smallest exponent of a double is -1074; slot 0 begins there.
const LOWEST: i32 = -1074;

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ExactSum {
    /// Slot and its integer, times two to the power of 32 times the slot; sorted, none is zero.
    slots: Vec<(u8, i128)>,
    not_a_number: i64,
    positive_infinities: i64,
    negative_infinities: i64,
}

impl ExactSum {
    /// Adds `value` `times` times; a negative count takes it away.
    pub fn add(&mut self, value: f64, times: i64) {
        if value.is_nan() {
            self.not_a_number += times;
        } else if value == f64::INFINITY {
            self.positive_infinities += times;
        } else if value == f64::NEG_INFINITY {
            self.negative_infinities += times;
        } else if value != 0.0 {
            let bits = value.to_bits();
            let exponent = ((bits >> 52) & 0x7ff) as i32;
            let fraction = (bits & ((1 << 52) - 1)) as i128;
            // Subnormal numbers have the smallest exponent and no leading one.
            let (mantissa, exponent) =
                if exponent == 0 { (fraction, LOWEST) } else { (fraction | (1 << 52), exponent - 1075) };
            let (slot, shift) = ((exponent - LOWEST) / 32, (exponent - LOWEST) % 32);
            let signed = if value < 0.0 { -mantissa } else { mantissa };
            self.add_to(slot as u8, (signed << shift) * i128::from(times));
        }
    }

    fn add_to(&mut self, slot: u8, amount: i128) {
        match self.slots.binary_search_by_key(&slot, |(s, _)| *s) {
            Ok(at) => {
                self.slots[at].1 += amount;
                if self.slots[at].1 == 0 {
                    self.slots.remove(at);
                }
            }
            Err(at) => self.slots.insert(at, (slot, amount)),
        }
    }

    /// The sum, rounded once, to the nearest double.
    pub fn value(&self) -> f64 {
        if self.not_a_number > 0 || (self.positive_infinities > 0 && self.negative_infinities > 0) {
            return f64::NAN;
        } else if self.positive_infinities > 0 {
            return f64::INFINITY;
        } else if self.negative_infinities > 0 {
            return f64::NEG_INFINITY;
        }
        let digits = self.digits(1);
        match digits.last() {
            None => 0.0,
            Some((_, top)) if *top < 0 => -rounded(&self.digits(-1)),
            Some(_) => rounded(&digits),
        }
    }

    /// The sum times `sign` in digits to the base of two to the 32: all from 0 to 2^32 - 1, but the last, which carries the sign.
    fn digits(&self, sign: i128) -> Vec<(u32, i128)> {
        let mut digits: Vec<(u32, i128)> = Vec::with_capacity(self.slots.len() + 4);
        let mut carry = 0_i128;
        let mut rest = self.slots.iter().peekable();
        let mut slot = match self.slots.first() {
            Some((first, _)) => u32::from(*first),
            None => return digits,
        };
        while carry != 0 || rest.peek().is_some() {
            let here = rest.next_if(|(s, _)| u32::from(*s) == slot).map_or(0, |(_, amount)| *amount * sign);
            let total = here + carry;
            // A carry of -1 with nothing above it would run for ever: it is the sign.
            if rest.peek().is_none() && total >> 32 == -1 {
                digits.push((slot, total));
                break;
            }
            digits.push((slot, total & 0xffff_ffff));
            carry = total >> 32;
            slot += 1;
        }
        while digits.last().is_some_and(|(_, d)| *d == 0) {
            digits.pop();
        }
        digits
    }
}

/// The nearest double of a positive number in digits.
fn rounded(digits: &[(u32, i128)]) -> f64 {
    // The top three digits hold at least 65 bits; what lies below only matters for being there.
    let top = digits.last().map_or(0, |(slot, _)| *slot);
    let lowest = top.saturating_sub(2);
    let mut value = 0_u128;
    let mut below = false;
    for (slot, digit) in digits {
        match slot.checked_sub(lowest) {
            Some(place) => value |= (*digit as u128) << (32 * place),
            None => below |= *digit != 0,
        }
    }
    let value = value | u128::from(below);
    let exponent = LOWEST + 32 * lowest as i32;
    // A number below the normal range has all its bits in these digits, and its exponent needs no rounding: two steps keep it exact.
    let half = exponent / 2;
    value as f64 * 2_f64.powi(half) * 2_f64.powi(exponent - half)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sum(values: &[f64]) -> ExactSum {
        let mut sum = ExactSum::default();
        values.iter().for_each(|v| sum.add(*v, 1));
        sum
    }

    #[test]
    fn sums_are_exact() {
        let check = |values: &[f64], expect: f64| assert_eq!(sum(values).value(), expect, "{values:?}");
        check(&[], 0.0);
        check(&[1e16, 1.0, -1e16], 1.0);
        check(&[1e300, 1e-300, -1e300], 1e-300);
        check(&[-1.0], -1.0);
        check(&[-1.0, 0.5], -0.5);
        check(&[-1e16, 1.0], -9_999_999_999_999_999.0);
        check(&[0.1; 10], 1.0);
        check(&[5e-324, 5e-324], 1e-323);
        check(&[5e-324, -1e308], -1e308);
        check(&[f64::MAX, f64::MAX], f64::INFINITY);
        check(&[f64::INFINITY, 1.0], f64::INFINITY);
        assert!(sum(&[f64::INFINITY, f64::NEG_INFINITY]).value().is_nan());
    }

    proptest! {
        #[test]
        fn what_is_taken_away_leaves_nothing(values in proptest::collection::vec(any::<f64>(), 0..40), other in proptest::collection::vec(-1e9..1e9_f64, 0..10)) {
            let mut all = sum(&other);
            values.iter().for_each(|v| all.add(*v, 1));
            values.iter().rev().for_each(|v| all.add(*v, -1));
            prop_assert_eq!(&all, &sum(&other));
            let expect: f64 = other.iter().sum();
            prop_assert!((all.value() - expect).abs() <= 1e-6);
        }

        #[test]
        fn one_number_is_itself(value in any::<f64>().prop_filter("a number", |v| !v.is_nan())) {
            prop_assert_eq!(sum(&[value]).value(), value + 0.0);
        }
    }
}
