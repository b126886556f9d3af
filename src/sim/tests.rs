//! Schedules in each run of the tests.

use super::*;

/// Schedules of every run of the tests.
const SEEDS: u64 = 1_000;

#[test]
fn a_crash_at_any_seam_costs_nothing() {
    let first_seed = std::env::var("FRESHET_SIM_SEED").map_or(0, |seed| seed.parse().unwrap());
    let seeds = std::env::var("FRESHET_SIM_SEEDS").map_or(SEEDS, |seed| seed.parse().unwrap());
    let report = run(&Options { seeds, first_seed, failures_max: 1 }).unwrap();
    if let Some(failed) = report.failed.first() {
        panic!("{}", failed.told(80));
    }
    assert_eq!(report.schedules, SEEDS);
    eprintln!("{report:#?}");
}
