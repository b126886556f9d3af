//! The oracle for as many seeds as one likes: a case that the maintained view gets wrong is what this benchmark finds.

use serde_json::json;

use super::Error;
use super::report::{Report, rounded};
use crate::oracle::{self, Options};

pub(super) async fn run(options: &Options) -> Result<Report, Error> {
    let of_cases = options.clone();
    let found = tokio::task::spawn_blocking(move || oracle::run(&of_cases)).await?;
    let mut report = Report::new("oracle", options.first_seed);
    report.figure("cases", found.cases);
    report.figure("epochs", found.epochs);
    report.figure("rows_compared", found.rows_compared);
    report.figure("views_always_empty", found.always_empty);
    report.figure("views_never_changed", found.never_changed);
    report.figure("skipped", json!(found.skipped));
    report.figure("refused", json!(found.refused));
    report.figure("nodes", json!(found.nodes));
    report.figure("seconds", rounded(found.seconds));
    for failed in &found.failures {
        report.check(false, format_args!("seed {}: {}\n{}", failed.seed, failed.failure, failed.script));
    }
    Ok(report)
}
