//! Schedules in each run of the tests.

use super::*;

/// Schedules of every run of the tests.
const SEEDS: u64 = 1_000;

#[test]
fn a_crash_at_any_seam_costs_nothing() {
    let first_seed = std::env::var("FRESHET_SIM_SEED").map_or(0, |seed| seed.parse().unwrap());
    let seeds = std::env::var("FRESHET_SIM_SEEDS").map_or(SEEDS, |seed| seed.parse().unwrap());
    let failures_max = std::env::var("FRESHET_SIM_MAX").map_or(1, |seed| seed.parse().unwrap());
    let report = run(&Options { seeds, first_seed, failures_max }).unwrap();
    for failed in &report.failed {
        eprintln!("{}", failed.told(80));
    }
    eprintln!("{report:#?}");
    assert!(report.failed.is_empty());
    assert_eq!(report.schedules, SEEDS);
}
