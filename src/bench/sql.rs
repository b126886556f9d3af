//! SQL: what it costs to maintain joins, groups and top-k, from Avro bytes in memory to the diffs of the view.
//!
//! What the view has to be is computed by DataFusion in batch, and compared by two hashes over the rows with their counts.

mod shop;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use arrow_row::{RowConverter, SortField};

use self::shop::{CATEGORY, KEY, KEY_ID, PRODUCT, Shop, envelope, source};
use super::report::{peak_mib, reset_peak, rounded};
use super::{Error, Report, Sample, product_view};
use crate::config::{Line, Materialized, Model, Source};
use crate::dataflow::{self, EpochOutput, Plan, Table};
use crate::decode::{Decoder, FixedSchemas, RowType, SchemaStore};
use crate::source::MessageBatch;
use crate::time::Epoch;

const MARK_EVENTS_PER_SECOND: f64 = 450_000.0;
const MARK_MIB: u64 = 1_500;
/// The cost of one change may grow this much from the smallest to the largest table.
pub(super) const MARK_FLAT: f64 = 1.5;
const PRODUCT_VIEW: &str = "product_view";

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Live rows of the product table.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1_000..=10_000_000))]
    pub rows: u32,
    /// Updates after the load.
    #[arg(long, default_value_t = 500_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub changes: u32,
    /// Single changes whose time is taken, for each table size.
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(10..=1_000_000))]
    pub singles: u32,
    /// Only this query, by its name in the report.
    #[arg(long)]
    pub only: Option<String>,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// The queries by name; the second flag says that the time of one change is taken of it.
const QUERIES: &[(&str, bool, &str)] = &[
    ("filter_project", false, "select id, upper(name) as name, price * 2 as double_price from shop__product where stock > 0"),
    (
        "join",
        true,
        "select p.id, p.name, p.price, c.name as category from shop__product p join shop__category c on c.id = p.category_id",
    ),
    ("group", true, "select group_id, count(*) as products, sum(price) as total from shop__product group by group_id"),
    (
        "join_group",
        false,
        "select c.name, count(*) as products, sum(p.price) as total
         from shop__product p join shop__category c on c.id = p.category_id group by c.name",
    ),
    (
        "dedupe",
        true,
        "select id, name from (select id, name, row_number() over (partition by name order by updated desc, id) as place
         from shop__product) where place = 1",
    ),
];

pub(super) async fn run(options: &Options) -> Result<Report, Error> {
    let mut report = Report::new("sql", options.seed);
    report.figure("rows", options.rows);
    report.figure("changes", options.changes);
    let chosen: Vec<_> =
        QUERIES.iter().filter(|(name, ..)| options.only.as_deref().is_none_or(|o| o == *name)).collect();
    let with_view = options.only.as_deref().is_none_or(|only| only == PRODUCT_VIEW);
    if chosen.is_empty() && !with_view {
        let names: Vec<&str> = QUERIES.iter().map(|(name, ..)| *name).chain([PRODUCT_VIEW]).collect();
        return Err(format!("there is no query of that name; there are {}", names.join(", ")).into());
    }
    for (name, singles, sql) in chosen {
        let mut best = 0.0_f64;
        for workers in [1, 2] {
            let turn = turn(options, sql, options.rows, options.changes, workers).await?;
            tell!(
                "{name}, {workers} workers: load {:.0} events/s, changes {:.0} events/s, {} MiB",
                turn.load,
                turn.changes,
                turn.peak_mib
            );
            report.check(turn.right, format!("{name} with {workers} workers is not what the batch computes"));
            report.figure(format!("{name}_workers_{workers}_load_events_per_second"), rounded(turn.load));
            report.figure(format!("{name}_workers_{workers}_change_events_per_second"), rounded(turn.changes));
            report.figure(format!("{name}_workers_{workers}_peak_rss_mib"), turn.peak_mib);
            best = best.max(turn.load.max(turn.changes));
            if *name == "join" && workers == 1 {
                report.figure("mark_peak_rss_mib", MARK_MIB);
                report.figure("mark_peak_rss_mib_met", turn.peak_mib <= MARK_MIB);
            }
        }
        if *name == "join_group" {
            report.figure("mark_events_per_second", MARK_EVENTS_PER_SECOND);
            report.figure("mark_events_per_second_met", best >= MARK_EVENTS_PER_SECOND);
        }
        if *singles {
            one_change(options, name, sql, &mut report).await?;
        }
    }
    if with_view {
        product_view::run(options, &mut report).await?;
    }
    Ok(report)
}

/// The time of one change by the size of the table, the sizes in turn so that a slow moment meets all of them.
async fn one_change(options: &Options, name: &str, sql: &str, report: &mut Report) -> Result<(), Error> {
    let sizes = [options.rows / 100, options.rows / 10, options.rows];
    let mut runs = Vec::new();
    for rows in sizes {
        let mut run = Run::start(options, sql, rows, 1)?;
        run.load()?;
        runs.push((run, Sample::default()));
    }
    for _ in 0..options.singles {
        for (run, sample) in &mut runs {
            let events = run.shop.changes(1);
            let decoded = run.decode(&events)?;
            let started = Instant::now();
            run.epoch(decoded)?;
            sample.add(started.elapsed().as_secs_f64() * 1e6);
        }
    }
    let mut medians = Vec::new();
    for (rows, (_, sample)) in sizes.iter().zip(&mut runs) {
        let (p50, p99) = (sample.percentile(50.0).unwrap_or(0.0), sample.percentile(99.0).unwrap_or(0.0));
        report.figure(format!("{name}_one_change_of_{rows}_p50_us"), rounded(p50));
        report.figure(format!("{name}_one_change_of_{rows}_p99_us"), rounded(p99));
        medians.push(p50);
    }
    let ratio = medians[2] / medians[0];
    tell!("{name}: one change costs {medians:.0?} us at {sizes:?} rows");
    report.figure(format!("{name}_one_change_ratio"), rounded(ratio));
    report.figure(format!("{name}_one_change_mark_met"), ratio <= MARK_FLAT);
    Ok(())
}

struct Turn {
    load: f64,
    changes: f64,
    /// Of the whole process: what the benchmark itself holds, and what an earlier query left behind, is in it.
    peak_mib: u64,
    right: bool,
}

async fn turn(options: &Options, sql: &str, rows: u32, changes: u32, workers: usize) -> Result<Turn, Error> {
    reset_peak();
    let mut run = Run::start(options, sql, rows, workers)?;
    let load = run.load()?;
    let changed = run.change(changes as usize)?;
    let peak_mib = peak_mib().unwrap_or(0);
    let right = run.check().await?;
    Ok(Turn { load, changes: changed, peak_mib, right })
}

/// A dataflow and the shop that feeds it.
struct Run {
    plan: Plan,
    handle: dataflow::Handle,
    decoders: Vec<Decoder>,
    shop: Shop,
    epoch: Epoch,
    seen: Checksum,
}

impl Run {
    fn start(options: &Options, sql: &str, rows: u32, workers: usize) -> Result<Run, Error> {
        let sources = [source("product", PRODUCT), source("category", CATEGORY)];
        let whole: Vec<Arc<RowType>> =
            sources.iter().map(|s| Ok(Arc::new(RowType::from_contract(s)?))).collect::<Result<_, Error>>()?;
        let model = Model {
            name: "bench".into(),
            path: "bench.sql".into(),
            sql: sql.into(),
            lines: vec![Line { path: std::path::Path::new("bench.sql").into(), number: 1 }],
            materialized: Materialized::View,
        };
        let table = |(s, r): (&Source, &Arc<RowType>)| Table {
            schema: s.schema.clone(),
            table: s.table.clone(),
            columns: r.schema().clone(),
        };
        let tables: Vec<Table> = sources.iter().zip(&whole).map(table).collect();
        let plan = Plan::query(&[model], "bench", &tables)?;
        // As the engine does: what no model reads is not decoded.
        let read = plan.columns_read();
        let row_types: Vec<_> = whole.iter().zip(&read).map(|(r, read)| Arc::new(r.pruned(read))).collect();
        let kept: Vec<_> = row_types.iter().map(|r| r.schema().clone()).collect();
        let plan = plan.keeping(&kept)?;
        let schemas: HashMap<u32, Arc<str>> =
            [(1, envelope(PRODUCT)), (2, envelope(CATEGORY)), (KEY_ID, KEY.into())].into();
        let schemas: Arc<dyn SchemaStore> = Arc::new(FixedSchemas(schemas));
        let decoders = sources
            .iter()
            .zip(&row_types)
            .enumerate()
            .map(|(n, (s, r))| Ok(Decoder::new(n, s, r.clone(), schemas.clone())?))
            .collect::<Result<_, Error>>()?;
        let handle = dataflow::Engine::start(plan.clone(), row_types, workers)?;
        let shop = Shop::new(options.seed, rows);
        Ok(Run { plan, handle, decoders, shop, epoch: Epoch(0), seen: Checksum::default() })
    }

    /// The snapshot of both tables; events per second.
    fn load(&mut self) -> Result<f64, Error> {
        let categories = self.shop.categories();
        let decoded = self.decode(&categories)?;
        self.epoch(decoded)?;
        let total = self.shop.versions.len();
        let mut spent = Duration::ZERO;
        for start in (0..total).step_by(100_000) {
            let events = self.shop.snapshot(start..(start + 100_000).min(total));
            spent += self.feed(events)?;
        }
        Ok(total as f64 / spent.as_secs_f64())
    }

    fn change(&mut self, count: usize) -> Result<f64, Error> {
        let mut spent = Duration::ZERO;
        let mut left = count;
        while left > 0 {
            let events = self.shop.changes(left.min(100_000));
            left -= left.min(100_000);
            spent += self.feed(events)?;
        }
        Ok(count as f64 / spent.as_secs_f64())
    }

    /// Decodes on one thread and maintains on others, as the engine does; the time that it took.
    fn feed(&mut self, batches: Vec<MessageBatch>) -> Result<Duration, Error> {
        let (send, receive) = sync_channel(16);
        let Run { handle, decoders, epoch, seen, .. } = self;
        let started = Instant::now();
        let mut outputs = Vec::new();
        std::thread::scope(|scope| -> Result<(), Error> {
            let decoder = &mut decoders[0];
            let decoding = scope.spawn(move || -> Result<(), Error> {
                for batch in &batches {
                    let decoded = futures::executor::block_on(decoder.decode(batch))?;
                    if let Some(reject) = decoded.rejects.first() {
                        return Err(reject.reason.clone().into());
                    }
                    if send.send(decoded).is_err() {
                        break;
                    }
                }
                Ok(())
            });
            while let Ok(first) = receive.recv() {
                let mut events = first.changes.len();
                let mut decoded = vec![first];
                while events < 10_000 {
                    let Ok(next) = receive.try_recv() else { break };
                    events += next.changes.len();
                    decoded.push(next);
                }
                *epoch = Epoch(epoch.0 + 1);
                handle.send(*epoch, decoded)?;
                outputs.push(done(handle)?);
            }
            decoding.join().map_err(|_| "the decoding thread panicked")?
        })?;
        let spent = started.elapsed();
        outputs.iter().for_each(|output| seen.add(output));
        Ok(spent)
    }

    fn decode(&mut self, batches: &[MessageBatch]) -> Result<Vec<crate::decode::Decoded>, Error> {
        let decode = |batch: &MessageBatch| {
            let decoder = &mut self.decoders[usize::from(&*batch.partition.topic == "category")];
            Ok(futures::executor::block_on(decoder.decode(batch))?)
        };
        batches.iter().map(decode).collect()
    }

    fn epoch(&mut self, decoded: Vec<crate::decode::Decoded>) -> Result<(), Error> {
        self.epoch = Epoch(self.epoch.0 + 1);
        self.handle.send(self.epoch, decoded)?;
        self.seen.add(&done(&self.handle)?);
        Ok(())
    }

    /// Whether the view is what DataFusion computes from the tables as they stand.
    async fn check(&self) -> Result<bool, Error> {
        let tables = self.shop.tables(&self.plan)?;
        let view = self.plan.batch_view(tables).await?;
        let fields = view.schema().fields().iter().map(|f| SortField::new(f.data_type().clone())).collect();
        let mut expected = Checksum::default();
        for row in RowConverter::new(fields)?.convert_columns(view.columns())?.iter() {
            expected.row(row.data(), 1);
        }
        Ok(expected == self.seen)
    }
}

fn done(handle: &dataflow::Handle) -> Result<EpochOutput, Error> {
    loop {
        if let Some(output) = handle.recv(Duration::from_secs(1))? {
            match output.failed_rows.first() {
                Some(failed) => return Err(format!("the model failed for a row: {}", failed.reason).into()),
                None => return Ok(output),
            }
        }
    }
}

/// Two sums over the hashes of a multiset's rows: the same for the same multiset, in whatever order and with whatever detours.
#[derive(Clone, Debug, Default, PartialEq)]
struct Checksum {
    rows: i64,
    sums: [u64; 2],
}

impl Checksum {
    fn add(&mut self, output: &EpochOutput) {
        output.diffs.iter().for_each(|(row, diff)| self.row(row, *diff as i64));
    }

    fn row(&mut self, row: &[u8], diff: i64) {
        self.rows += diff;
        for (n, sum) in self.sums.iter_mut().enumerate() {
            let hash = ahash::RandomState::with_seeds(n as u64, 5, 6, 7).hash_one(row);
            *sum = sum.wrapping_add(hash.wrapping_mul(diff as u64));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn every_query_is_what_the_batch_computes() {
        let options = Options { rows: 2_000, changes: 3_000, singles: 10, only: None, seed: 3 };
        let report = run(&options).await.unwrap();
        assert!(report.is_ok(), "{:?}", report.wrong());
        let json = report.json();
        assert!(json["join_one_change_of_2000_p50_us"].as_f64().unwrap() > 0.0, "{json}");
        assert!(json["dedupe_workers_2_change_events_per_second"].as_f64().unwrap() > 0.0, "{json}");
    }
}
