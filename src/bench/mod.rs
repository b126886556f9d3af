//! A benchmark measures one part of the service and checks what that part computed: a figure of a wrong answer is worth nothing.
//!
//! The invariant: the same seed makes the same input; `ok` speaks of answers alone, and whether a mark was met is a figure beside it. Figures
//! that are compared with each other come from one run. Nothing here is part of the service.

mod decode;
mod e2e;
mod embed;
mod freshness;
mod ingest;
mod kill;
mod oracle;
mod plain;
mod product_view;
mod recording;
mod report;
mod restart;
mod rig;
mod search;
mod sim;
mod sql;
mod tpch;
mod words;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use clap::Subcommand;
use futures::FutureExt;
use futures::future::LocalBoxFuture;

pub use report::Report;
use report::Sample;

/// Errors of parts that have nothing in common but that the benchmark cannot go on.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

#[derive(Clone, Debug, Subcommand)]
pub enum Bench {
    /// Decoding, beside apache-avro one record at a time, over the same bytes.
    ///
    /// Both see each message's key and value; Freshet's decoder also makes rows of them. Once outside the clock, every value of every row
    /// is compared. Mark: 3 times apache-avro.
    Decode(decode::Options),
    /// Decode, upsert and model, from bytes in memory to a folded view, with 1 and with 2 dataflow workers.
    ///
    /// The view is compared, byte by byte, with the model's SQL run in batch by DataFusion over the latest rows, which apache-avro and a map
    /// find. Mark: 300,000 events/s.
    Ingest(ingest::Options),
    /// Texts and tokens per second of the product dataflow's model.
    ///
    /// Vectors of a sample are computed once more alone: the cosine has to be 0.99999. Mark: 2,000 tokens/s.
    Embed(embed::Options),
    /// Time from a change's commit to the first search that sees it: the whole service over real sockets, broker and registry included.
    ///
    /// The 50th and 99th percentile are over all changes: of each, the first answer of a search whose position covers it. Beside that, single
    /// changes are followed by searching until the row itself shows them; an answer that covers a change and does not show it is wrong.
    /// Marks: 250 ms (50th percentile) and 1 s (99th).
    Freshness(freshness::Options),
    /// Events and freshness beside a broker and a registry of yours: changes as they come, a burst of them, and steady rates.
    ///
    /// This process writes Debezium's Avro events itself, so that neither a database nor a connector is part of what is measured. It makes the shop's
    /// five topics and removes them; a broker that has one of them is left alone.
    E2e(e2e::Options),
    /// Searches over HTTP: quiet, and beside upserts that come through the whole service. Vectors are made from words, without the model.
    ///
    /// Answers are compared with the nearest rows by comparing all. Mark: 15 ms (50th percentile, quiet, 100,000 rows).
    Search(search::Options),
    /// What it costs to maintain SQL: filter and projection, a join, a group-by, both, the first row of each key, and the product view.
    ///
    /// From Avro bytes through the decoder and the dataflow, with 1 and with 2 workers; then the time of one change as the table grows. Each
    /// view is compared with DataFusion's answer over the tables as they stand. Marks: 450,000 events/s of join and group-by, 1,500 MiB for a
    /// million rows with a join, and one change at most 1.5 times as dear in the whole table as in a hundredth of it.
    Sql(sql::Options),
    /// Random tables, changes and queries: after every epoch the maintained view is what DataFusion computes from scratch.
    ///
    /// A seed is a case. One that fails is made as small as it can be and printed as a file for tests/sql.
    Oracle(crate::oracle::Options),
    /// Kills the program at random moments under load, again and again, and then looks at what lies on disk.
    ///
    /// Raw has to hold every offset once, the audit to be clean, the embedding store to have each text once, and no answer to have gone back behind
    /// one before it.
    Kill(kill::Options),
    /// The service's own threads, one at a time and in an order that a seed says, over a world that fails and kills them as the seed says.
    ///
    /// Whatever a crash leaves, no answer may go back, no text be embedded twice, and once a process has caught up, raw, the index, the embedding store
    /// and the quarantine have to be what has happened comes to, by DataFusion. One schedule that fails is printed with the command that repeats it.
    Sim(crate::sim::Options),
    /// Restarts of a service with many rows: how long until it is searchable and has caught up, and what ten times the history costs it.
    ///
    /// The view and the index are those of the whole shop, with raw; vectors are made from words, without the model. No restart may embed
    /// anything. Mark: catching up takes at most 1.3 times as long after ten times the history.
    Restart(restart::Options),
    /// The queries of TPC-H as maintained views over its eight tables, which change while they run.
    ///
    /// Each view is compared with DataFusion's answer over the tables as they stand: after the load, on the way and at the end.
    Tpch(tpch::Options),
}

/// Runs one benchmark.
pub fn run(bench: Bench) -> LocalBoxFuture<'static, Result<Report, Error>> {
    let whole = async move {
        match bench {
            Bench::Decode(options) => decode::run(&options).await,
            Bench::Ingest(options) => ingest::run(&options).await,
            Bench::Embed(options) => embed::run(&options).await,
            Bench::Freshness(options) => freshness::run(&options).await,
            Bench::E2e(options) => e2e::run(&options).await,
            Bench::Search(options) => search::run(&options).await,
            Bench::Sql(options) => sql::run(&options).await,
            Bench::Tpch(options) => tpch::run(&options).await,
            Bench::Kill(options) => kill::run(&options).await,
            Bench::Sim(options) => sim::run(&options).await,
            Bench::Restart(options) => restart::run(&options).await,
            Bench::Oracle(options) => oracle::run(&options).await,
        }
    };
    whole.boxed_local()
}

/// A folder of this run under the system's temporary folder (TMPDIR); it goes when the run is over.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Result<Scratch, Error> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let (process, n) = (std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(format!("freshet-bench-{name}-{process}-{n}"));
        std::fs::create_dir_all(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(Scratch(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A folder that cannot be removed is only untidy.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
