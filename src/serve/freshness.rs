//! A sliding window of durations whose quantiles can be asked for at any moment.
//!
//! The invariant: its memory does not depend on how much is observed, a quantile is off by at most [`GROWTH`] - 1 of its value, and what
//! is older than the window never counts. It never looks at a clock: every call says what time it is.

use std::time::{Duration, Instant};

/// Each bucket ends this much higher than the one before.
const GROWTH: f64 = 1.04;
/// The last bucket holds everything above about 36 hours.
const BUCKETS: usize = 480;
const SLOTS: usize = 12;
const SLOT: Duration = Duration::from_secs(5);

/// The length of the window.
pub const WINDOW: Duration = Duration::from_secs(SLOT.as_secs() * SLOTS as u64);

/// Histograms of five seconds each in a ring, with buckets that grow geometrically.
#[derive(Debug)]
pub struct Window {
    start: Instant,
    slots: Vec<Slot>,
}

#[derive(Clone, Debug)]
struct Slot {
    /// Which stretch of five seconds since `start` the counts belong to.
    stretch: u64,
    counts: Vec<u32>,
}

impl Window {
    pub fn new(now: Instant) -> Window {
        Window { start: now, slots: vec![Slot { stretch: 0, counts: vec![0; BUCKETS] }; SLOTS] }
    }

    pub fn observe(&mut self, now: Instant, ms: u64) {
        let stretch = self.stretch(now);
        let slot = &mut self.slots[stretch as usize % SLOTS];
        if slot.stretch != stretch {
            slot.stretch = stretch;
            slot.counts.fill(0);
        }
        let count = &mut slot.counts[bucket(ms)];
        *count = count.saturating_add(1);
    }

    /// How many observations the window holds.
    pub fn count(&self, now: Instant) -> u64 {
        self.live(now).flat_map(|slot| &slot.counts).map(|n| u64::from(*n)).sum()
    }

    /// The smallest duration in milliseconds that at least a share of `q` of the observations do not exceed; `None` when there are none.
    pub fn quantile(&self, now: Instant, q: f64) -> Option<f64> {
        let total = self.count(now);
        let wanted = ((total as f64 * q).ceil() as u64).clamp(1, total.max(1));
        let mut seen = 0;
        (0..BUCKETS).find_map(|b| {
            seen += self.live(now).map(|slot| u64::from(slot.counts[b])).sum::<u64>();
            (total > 0 && seen >= wanted).then(|| middle(b))
        })
    }

    fn stretch(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.start).as_secs() / SLOT.as_secs()
    }

    fn live(&self, now: Instant) -> impl Iterator<Item = &Slot> {
        let stretch = self.stretch(now);
        self.slots.iter().filter(move |slot| slot.stretch + SLOTS as u64 > stretch)
    }
}

/// 0 ms has a bucket of its own; bucket `b` holds what lies in `GROWTH^(b-1) .. GROWTH^b`.
fn bucket(ms: u64) -> usize {
    if ms == 0 { 0 } else { (((ms as f64).ln() / GROWTH.ln()).floor() as usize + 1).min(BUCKETS - 1) }
}

/// What a bucket's observations are taken for: the middle of the whole milliseconds that fall into it.
fn middle(bucket: usize) -> f64 {
    if bucket == 0 {
        return 0.0;
    }
    let (low, high) = (GROWTH.powi(bucket as i32 - 1), GROWTH.powi(bucket as i32));
    let (first, last) = (low.ceil(), (high.ceil() - 1.0).max(low.ceil()));
    ((first + last) / 2.0).round()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_close_to_the_true_ones() {
        let now = Instant::now();
        let mut window = Window::new(now);
        let mut values: Vec<u64> = (0..5_000u64).map(|i| (i * 7_919) % 5_000 + i % 3).collect();
        values.iter().for_each(|ms| window.observe(now, *ms));
        values.sort_unstable();
        for q in [0.01, 0.5, 0.9, 0.99, 1.0] {
            let truth = values[((values.len() as f64 * q).ceil() as usize).max(1) - 1] as f64;
            let answer = window.quantile(now, q).unwrap();
            assert!((answer - truth).abs() <= truth * (GROWTH - 1.0) + 1.0, "q {q}: {answer}, but it is {truth}");
        }
    }

    #[test]
    fn small_values_are_exact() {
        let now = Instant::now();
        for ms in 0..25 {
            let mut window = Window::new(now);
            window.observe(now, ms);
            assert_eq!(window.quantile(now, 0.5), Some(ms as f64));
        }
    }

    #[test]
    fn what_is_older_than_the_window_does_not_count() {
        let start = Instant::now();
        let mut window = Window::new(start);
        window.observe(start, 9_000);
        let later = start + WINDOW - SLOT;
        window.observe(later, 10);
        assert_eq!((window.count(later), window.quantile(later, 1.0).map(|ms| ms > 8_000.0)), (2, Some(true)));
        let after = start + WINDOW;
        assert_eq!((window.count(after), window.quantile(after, 1.0)), (1, Some(10.0)));
        assert_eq!(window.quantile(after + WINDOW, 0.5), None);
        // The ring comes round: a slot is emptied before it is used again.
        let round = start + WINDOW + WINDOW;
        window.observe(round, 5);
        assert_eq!(window.count(round), 1);
    }

    #[test]
    fn the_extremes_have_a_bucket() {
        let now = Instant::now();
        let mut window = Window::new(now);
        window.observe(now, u64::MAX);
        window.observe(now, 0);
        assert_eq!(window.count(now), 2);
        assert!(window.quantile(now, 1.0).unwrap() > 1e8);
    }
}
