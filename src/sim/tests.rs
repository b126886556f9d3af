//! Schedules in each run of the tests.

use std::collections::BTreeSet;

use super::*;

/// Schedules of every run of the tests.
const SEEDS: u64 = 2_000;

#[test]
fn a_crash_at_any_seam_costs_nothing() {
    let report = run(&Options { seeds: SEEDS, first_seed: 0, failures_max: 1 }).unwrap();
    if let Some(failed) = report.failed.first() {
        panic!("{}", failed.told(80));
    }
    assert_eq!(report.schedules, SEEDS);
    let seams: BTreeSet<Seam> = report.counts.crashes.keys().map(|(seam, _)| *seam).collect();
    // All but a checkpoint: a process that dies at one is found in longer runs.
    let of_raw =
        [Seam::RawFile, Seam::RawCommit, Seam::SnapshotFile, Seam::SnapshotCommit, Seam::TableMade, Seam::Removal];
    let of_quarantine = [Seam::QuarantineFile, Seam::QuarantineCommit];
    let of_index = [Seam::Announcement, Seam::IndexMade, Seam::IndexRows, Seam::IndexDeletes, Seam::IndexRemoved];
    let of_embeddings = [Seam::Embedded, Seam::EmbeddingWrite];
    for seam in of_raw.iter().chain(&of_quarantine).chain(&of_index).chain(&of_embeddings) {
        assert!(seams.contains(seam), "no process died at {seam:?}, but at {:?}", report.counts.crashes);
    }
}

#[test]
fn the_same_seed_is_the_same_schedule() {
    let scratch = Scratch::new().unwrap();
    let dataflow = Dataflow::new(&scratch.0.join("shop")).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    for seed in 0..3 {
        let lived = |time: &str| {
            let folder = scratch.0.join(format!("{seed}-{time}"));
            let schedule = Schedule::new(seed, &dataflow, folder, runtime.handle().clone());
            let passed = schedule.run().unwrap();
            // All that has happened, though nothing failed.
            (schedule.failed(String::new()).trace, passed.answers)
        };
        assert_eq!(lived("first"), lived("second"));
    }
}
