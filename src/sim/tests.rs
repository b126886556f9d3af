//! Schedules in each run of the tests, and what they have to come by.

use super::*;

/// Schedules of every run of the tests.
const SEEDS: u64 = 1_000;

#[test]
fn a_crash_at_any_seam_costs_nothing() {
    let report = run(&Options { seeds: SEEDS, first_seed: 0, failures_max: 1 }).unwrap();
    if let Some(failed) = report.failed.first() {
        panic!("{}", failed.told(80));
    }
    assert_eq!(report.schedules, SEEDS);
    eprintln!("{report:#?}");
}
