//! The simulation: the service's engine as it is, with all of its threads, over a world that fails and kills it as a seed says.
//!
//! ```text
//! seed --> Schedule --> lives of an Engine, whose threads have their Turns one at a time
//!             |            | touches, at every Seam, and dies there
//!             |          World: topics, registry, object store, the index's database, the embedding store's file
//!             |            | every answer that a search could have
//!             +--> check  Watch
//! ```
//!
//! The invariant: the engine knows nothing of it; a seed is a schedule, on any machine and at any time. Whatever a schedule does, its searches never
//! go back, no text is embedded again whose vector was stored, and once it is left alone raw holds every offset once, the quarantine every message
//! that nobody can read, and the index is what DataFusion makes of the latest rows.

mod check;
mod dataflow;
mod embedder;
mod index;
mod schedule;
mod schemas;
mod shop;
mod source;
#[cfg(test)]
mod tests;
mod turns;
mod watch;
mod wire;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use dataflow::Dataflow;
pub use schedule::Failed;
use schedule::{Passed, Schedule};
use tokio::runtime::Handle;
pub use world::{Counts, Moment, Seam};

/// Why the simulation cannot be made.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// Planning, and the plans' own recursion.
const STACK_BYTES: usize = 64 << 20;

/// A schedule hands its turn from thread to thread, and its core idles meanwhile: one for each core leaves a third of them unused.
const SCHEDULES_PER_CORE: usize = 2;

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Schedules to try.
    #[arg(long, default_value_t = 1_000)]
    pub seeds: u64,
    /// The seed of the first.
    #[arg(long, default_value_t = 0)]
    pub first_seed: u64,
    /// Failing schedules after which to stop.
    #[arg(long, default_value_t = 1)]
    pub failures_max: usize,
}

#[derive(Debug, Default)]
pub struct Report {
    /// Schedules that went well.
    pub schedules: u64,
    pub lives: u64,
    /// Times that a process had caught up and everything was checked.
    pub checks: u64,
    /// Answers of searches that were held against what had happened.
    pub answers: u64,
    pub events: u64,
    pub rows_compared: u64,
    pub counts: Counts,
    pub failed: Vec<Failed>,
    pub seconds: f64,
}

/// Tries every seed, several at a time.
pub fn run(options: &Options) -> Result<Report, Error> {
    let started = Instant::now();
    let scratch = Scratch::new()?;
    let dataflow = Dataflow::new(&scratch.0.join("shop"))?;
    // What the engine awaits is there already; delta-rs wants threads beside those that await.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (next, enough) = (AtomicU64::new(options.first_seed), AtomicBool::new(false));
    let end = options.first_seed.saturating_add(options.seeds);
    let report = Mutex::new(Report::default());
    let work = || {
        while !enough.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                return;
            }
            let outcome = one(seed, &dataflow, &scratch.0, runtime.handle());
            let mut report = report.lock().expect("no thread panics with it");
            report.count(outcome);
            enough.fetch_or(report.failed.len() >= options.failures_max, Ordering::Relaxed);
        }
    };
    let threads = SCHEDULES_PER_CORE * std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let thread = std::thread::Builder::new().name("sim".into()).stack_size(STACK_BYTES);
            thread.spawn_scoped(scope, work).expect("a thread can be started");
        }
    });
    let mut report = report.into_inner().expect("no thread panics with it");
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// A panic in the service is a failure of its seed.
fn one(seed: u64, dataflow: &Dataflow, scratch: &Path, runtime: &Handle) -> Result<Passed, Failed> {
    let folder = scratch.join(seed.to_string());
    let schedule = Schedule::new(seed, dataflow, folder.clone(), runtime.clone());
    let outcome = catch_unwind(AssertUnwindSafe(|| schedule.run()));
    let outcome = outcome.unwrap_or_else(|_| Err(schedule.failed("a part of the service has panicked".into())));
    // A folder that cannot be removed is only untidy.
    let _ = std::fs::remove_dir_all(folder);
    outcome
}

impl Report {
    fn count(&mut self, outcome: Result<Passed, Failed>) {
        match outcome {
            Err(failed) => self.failed.push(failed),
            Ok(passed) => {
                self.schedules += 1;
                self.lives += passed.lives;
                self.checks += passed.checks;
                self.answers += passed.answers;
                self.events += passed.events;
                self.rows_compared += passed.rows_compared;
                self.counts.add(&passed.counts);
            }
        }
    }
}

/// A folder of this run, in memory where the system has such a place: nothing that a simulation writes has to outlive the machine.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Scratch, Error> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { memory.into() } else { std::env::temp_dir() };
        let (process, n) = (std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let path = place.join(format!("freshet-sim-{process}-{n}"));
        std::fs::create_dir_all(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A folder that cannot be removed is only untidy.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
