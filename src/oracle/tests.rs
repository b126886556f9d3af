//! Two thousand cases in each run of the tests, and what they have to cover.

use super::case::Case;
use super::*;

/// Seeds of every run of the tests.
const SEEDS: u64 = 2_000;

#[test]
fn the_maintained_view_is_what_datafusion_computes() {
    let report = run(&Options { seeds: SEEDS, first_seed: 0, workers: None, failures_max: 1 });
    if let Some(failed) = report.failures.first() {
        panic!("seed {}: {}\n\n{}", failed.seed, failed.failure, failed.script);
    }
    let skipped: u64 = report.skipped.values().sum();
    let refused: u64 = report.refused.values().sum();
    assert_eq!(report.cases + skipped + refused, SEEDS);
    assert!(skipped * 20 < SEEDS, "the generator writes queries that DataFusion does not run: {:#?}", report.skipped);
    assert!(report.always_empty * 5 < SEEDS && report.never_changed * 4 < SEEDS, "{report:#?}");
    // Every node that models may use was there many times.
    for (node, least) in COVERED {
        let found = report.nodes.get(*node).copied().unwrap_or_default();
        assert!(found >= *least, "{node} only {found} times: {:#?}", report.nodes);
    }
}

const COVERED: &[(&str, u64)] = &[
    ("Inner join", 200),
    ("Left join", 150),
    ("Right join", 80),
    ("Full join", 80),
    ("LeftSemi join", 60),
    ("LeftAnti join", 60),
    ("LeftMark join", 10),
    ("Aggregate", 400),
    ("WindowAggr", 300),
    ("Union", 150),
    ("Values", 80),
    ("Sort", 150),
    ("Limit", 20),
    ("case", 400),
    ("count()", 100),
    ("sum()", 100),
    ("avg()", 30),
    ("min()", 80),
    ("max()", 80),
    ("bool_and()", 15),
    ("bool_or()", 15),
    ("string_agg()", 30),
    ("array_agg()", 15),
    ("row_number() over", 100),
    ("rank() over", 15),
    ("dense_rank() over", 10),
    ("lag() over", 30),
    ("lead() over", 30),
    ("first_value() over", 30),
    ("last_value() over", 30),
    ("sum() over", 30),
    ("count() over", 30),
    ("min() over", 10),
    ("max() over", 10),
    ("nth_value() over", 10),
    ("ignore nulls", 30),
    ("sliding frame", 60),
    ("ties", 20),
    ("rows that fail", 40),
];

#[test]
fn a_seed_is_always_the_same_case() {
    let text = |seed| format!("{:?}", Case::new(seed, None));
    assert_eq!(text(7), text(7));
    assert_ne!(text(7), text(8));
}
