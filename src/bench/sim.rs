//! The simulation for as many seeds as one likes: a schedule of crashes that costs something is what this benchmark finds.

use serde_json::{Map, Value};

use super::Error;
use super::report::{Report, rounded};
use crate::sim::{self, Options};

/// What is told of the end of a schedule that failed.
const TOLD: usize = 60;

pub(super) async fn run(options: &Options) -> Result<Report, Error> {
    let of_schedules = options.clone();
    let found = tokio::task::spawn_blocking(move || sim::run(&of_schedules)).await??;
    let mut report = Report::new("sim", options.first_seed);
    report.figure("schedules", found.schedules);
    report.figure("lives", found.lives);
    report.figure("checks", found.checks);
    report.figure("answers", found.answers);
    report.figure("events", found.events);
    report.figure("rows_compared", found.rows_compared);
    report.figure("texts_embedded", found.counts.texts_embedded);
    report.figure("index_commits", found.counts.index_commits);
    report.figure("failures_lived_through", found.counts.failures);
    let crashes = found.counts.crashes.iter();
    let crashes = crashes.map(|((seam, moment), count)| (format!("{moment:?} {seam:?}"), Value::from(*count)));
    report.figure("crashes", crashes.collect::<Map<_, _>>());
    report.figure("seconds", rounded(found.seconds));
    for failed in &found.failed {
        report.check(false, failed.told(TOLD));
    }
    Ok(report)
}
