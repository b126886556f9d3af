//! A report is what a benchmark found: figures by name, and what was wrong.
//!
//! The invariant: every figure has its unit in its name, unless it is a count or a ratio.

use std::fmt::Display;

use serde_json::{Map, Value, json};

pub struct Report {
    bench: &'static str,
    figures: Map<String, Value>,
    wrong: Vec<String>,
}

impl Report {
    pub(super) fn new(bench: &'static str, seed: u64) -> Report {
        Report { bench, figures: Map::from_iter([("seed".into(), json!(seed))]), wrong: Vec::new() }
    }

    pub(super) fn figure(&mut self, name: impl Into<String>, value: impl Into<Value>) {
        self.figures.insert(name.into(), value.into());
    }

    /// What another report found, under a name of its own; what it found wrong is wrong here too.
    pub(super) fn part(&mut self, name: impl Into<String>, part: Report) {
        self.wrong.extend(part.wrong);
        self.figure(name, part.figures);
    }

    /// Percentiles of durations in milliseconds, as `<name>_p50_ms` and `<name>_p99_ms`; `name` may be empty.
    pub(super) fn percentiles(&mut self, name: &str, sample: &mut Sample) {
        let name = if name.is_empty() { String::new() } else { format!("{name}_") };
        self.figure(format!("{name}p50_ms"), sample.percentile(50.0).map(rounded));
        self.figure(format!("{name}p99_ms"), sample.percentile(99.0).map(rounded));
    }

    /// Notes what a check found when it does not hold; the benchmark is then not ok.
    pub(super) fn check(&mut self, holds: bool, what: impl Display) {
        if !holds {
            self.wrong.push(what.to_string());
        }
    }

    /// Whether every answer was right.
    pub fn is_ok(&self) -> bool {
        self.wrong.is_empty()
    }

    /// What was wrong, a sentence each.
    pub fn wrong(&self) -> &[String] {
        &self.wrong
    }

    /// `{"bench", "ok", ...figures}`.
    pub fn json(&self) -> Value {
        let mut all = Map::from_iter([("bench".into(), json!(self.bench)), ("ok".into(), json!(self.is_ok()))]);
        all.extend(self.figures.clone());
        if !self.wrong.is_empty() {
            all.insert("wrong".into(), json!(self.wrong));
        }
        all.into()
    }
}

/// A figure as people read it: three digits are more than a measurement is good for.
pub(super) fn rounded(figure: f64) -> f64 {
    if figure.abs() >= 100.0 { figure.round() } else { (figure * 1000.0).round() / 1000.0 }
}

/// Observations of one kind.
#[derive(Clone, Debug, Default)]
pub(super) struct Sample(Vec<f64>);

impl Sample {
    pub fn add(&mut self, observation: f64) {
        self.0.push(observation);
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The smallest observation that at least this share of all do not exceed; `None` when there are none.
    pub fn percentile(&mut self, percent: f64) -> Option<f64> {
        self.0.sort_by(f64::total_cmp);
        let rank = (self.0.len() as f64 * percent / 100.0).ceil() as usize;
        self.0.get(rank.max(1) - 1).copied()
    }
}

/// The most memory that this process has had since [`reset_peak`], in MiB; `None` where the system does not tell.
pub(super) fn peak_mib() -> Option<u64> {
    status_kib("VmHWM:").map(|kib| kib / 1024)
}

/// The memory that this process has now, in MiB.
pub(super) fn resident_mib() -> Option<u64> {
    status_kib("VmRSS:").map(|kib| kib / 1024)
}

/// Makes the peak start anew from what is in memory now. Where the system refuses, the peak is that of the whole process.
pub(super) fn reset_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

fn status_kib(name: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_observations() {
        let mut sample = Sample::default();
        assert_eq!(sample.percentile(50.0), None);
        (1..=100).rev().for_each(|n| sample.add(f64::from(n)));
        let of = |p, sample: &mut Sample| sample.percentile(p).unwrap();
        assert_eq!((of(50.0, &mut sample), of(99.0, &mut sample), of(100.0, &mut sample)), (50.0, 99.0, 100.0));
        assert_eq!(of(0.0, &mut sample), 1.0);
    }

    #[test]
    fn a_check_that_fails_is_said() {
        let mut report = Report::new("x", 7);
        report.figure("events", 3);
        report.check(true, "nothing");
        assert_eq!(report.json(), json!({"bench": "x", "ok": true, "seed": 7, "events": 3}));
        report.check(false, "two and two are five");
        assert_eq!(report.json()["ok"], false);
        assert_eq!(report.json()["wrong"], json!(["two and two are five"]));
    }
}
