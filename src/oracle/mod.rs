//! The oracle: random tables, changes and queries; after every epoch the maintained view is what DataFusion computes from scratch.
//!
//! The invariant: a seed is a case, on any machine and at any time; a case that fails is printed as small as it could be made, as a file that
//! the runner of tests/sql runs. What DataFusion itself will not run is counted, and what the engine refuses is a failure unless its
//! reason is one of [`DOCUMENTED_REFUSALS`].

mod case;
mod compare;
mod database;
mod expr;
mod query;
mod random;
mod shrink;
mod sql;
mod table;
#[cfg(test)]
mod tests;
mod view;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use arrow::array::{Array, ArrayRef, RecordBatch};

use case::{Agreed, Case, Failure, Outcome};
pub use compare::{Difference, difference};
pub use database::{Database, Event, Step};
pub use shrink::IN_BATCH;
pub use table::{Cells, Column, TableDef, Type};
pub use view::{Batch, Broken, Maintained, Named, session};

/// What the engine may refuse among the queries that are generated: words of its reason.
pub(crate) const DOCUMENTED_REFUSALS: &[&str] = &[
    crate::dataflow::LOST,
    crate::dataflow::NOT_A_JOIN,
    // DataFusion has one name for a column and for a cast of it: it cannot group by both.
    "Projections require unique expression names",
];

/// DataFusion plans deep queries by recursion.
const STACK_BYTES: usize = 64 << 20;

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Cases to try.
    #[arg(long, default_value_t = 2_000)]
    pub seeds: u64,
    /// The seed of the first case.
    #[arg(long, default_value_t = 0)]
    pub first_seed: u64,
    /// Worker threads of each dataflow; without it, one and two by turns.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=2))]
    pub workers: Option<u8>,
    /// Failing cases after which to stop.
    #[arg(long, default_value_t = 1)]
    pub failures_max: usize,
}

#[derive(Debug, Default)]
pub struct Report {
    /// Cases that were compared after each of their epochs and agreed.
    pub cases: u64,
    pub epochs: u64,
    /// Rows of the batch's answers.
    pub rows_compared: u64,
    /// Cases whose view never had a row.
    pub always_empty: u64,
    /// Cases whose view was the same after every epoch.
    pub never_changed: u64,
    /// Cases that DataFusion would not plan or run, by reason.
    pub skipped: BTreeMap<String, u64>,
    /// Cases that the engine refuses for a documented reason.
    pub refused: BTreeMap<String, u64>,
    /// Cases that agreed, by what their query is made of.
    pub nodes: BTreeMap<String, u64>,
    pub failures: Vec<FailedCase>,
    pub seconds: f64,
}

#[derive(Debug)]
pub struct FailedCase {
    pub seed: u64,
    pub failure: String,
    /// The smallest case found that fails alike, as a file for tests/sql.
    pub script: String,
}

/// Tries every seed, two at a time where there are two cores.
pub fn run(options: &Options) -> Report {
    let started = Instant::now();
    let (next, enough) = (AtomicU64::new(options.first_seed), AtomicBool::new(false));
    let end = options.first_seed.saturating_add(options.seeds);
    let report = Mutex::new(Report::default());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let work = || {
                let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime without drivers");
                while !enough.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let case = Case::new(seed, options.workers.map(usize::from));
                    let outcome = case.check(&runtime);
                    let failed = match outcome {
                        Outcome::Failed(failure) if documented(&failure).is_none() => {
                            Some(failed_case(seed, case, failure, &runtime))
                        }
                        ref other => {
                            report.lock().expect("no thread panics with it").count(other);
                            None
                        }
                    };
                    if let Some(failed) = failed {
                        let mut report = report.lock().expect("no thread panics with it");
                        report.failures.push(failed);
                        enough.fetch_or(report.failures.len() >= options.failures_max, Ordering::Relaxed);
                    }
                }
            };
            std::thread::Builder::new()
                .name("oracle".into())
                .stack_size(STACK_BYTES)
                .spawn_scoped(scope, work)
                .expect("a thread can be started");
        }
    });
    let mut report = report.into_inner().expect("no thread panics with it");
    report.seconds = started.elapsed().as_secs_f64();
    report
}

/// The documented reason, when the failure is a refusal for one.
fn documented(failure: &Failure) -> Option<&'static str> {
    match failure {
        Failure::Refused(reason) => DOCUMENTED_REFUSALS.iter().find(|known| reason.contains(**known)).copied(),
        _ => None,
    }
}

fn failed_case(seed: u64, case: Case, failure: Failure, runtime: &tokio::runtime::Runtime) -> FailedCase {
    let (case, failure) = shrink::shrink(case, failure, runtime);
    let failure = match failure {
        Failure::Refused(reason) => format!("refused: {reason}"),
        Failure::Broken(reason) => format!("broken: {reason}"),
        Failure::Panicked(reason) => format!("panicked: {reason}"),
        Failure::Differs { epoch, difference } => format!(
            "wrong after epoch {epoch}, with {} worker(s){}\nmissing: {:#?}\nextra: {:#?}",
            case.workers,
            if case.pipelined { ", epochs sent ahead" } else { "" },
            difference.missing,
            difference.extra
        ),
    };
    FailedCase { seed, failure, script: shrink::script(&case, runtime) }
}

impl Report {
    fn count(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Agreed(Agreed { epochs, rows, changes, nodes }) => {
                self.cases += 1;
                self.epochs += *epochs as u64;
                self.rows_compared += *rows as u64;
                self.always_empty += u64::from(*rows == 0);
                self.never_changed += u64::from(*changes == 0);
                for node in nodes {
                    *self.nodes.entry(node.clone()).or_default() += 1;
                }
            }
            Outcome::Skipped(reason) => *self.skipped.entry(reason.clone()).or_default() += 1,
            Outcome::Failed(failure) => {
                let reason = documented(failure).unwrap_or_default();
                *self.refused.entry(reason.into()).or_default() += 1;
            }
        }
    }
}

/// An answer's rows as text, one word a cell: `NULL` for null, `(empty)` for a text without letters, `_` for spaces.
pub fn printed(answer: &RecordBatch) -> Vec<Vec<String>> {
    (0..answer.num_rows())
        .map(|n| {
            answer
                .columns()
                .iter()
                .map(|column| match shown(column, n) {
                    _ if column.is_null(n) => "NULL".into(),
                    text if text.is_empty() => "(empty)".into(),
                    text => text.replace(' ', "_"),
                })
                .collect()
        })
        .collect()
}

fn shown(column: &ArrayRef, n: usize) -> String {
    arrow::util::display::array_value_to_string(column, n).expect("every type of an answer can be displayed")
}
