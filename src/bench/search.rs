//! Searching over HTTP: how long an answer takes, alone and beside upserts, and how near its rows are to the nearest there are.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{Array, FixedSizeListArray, Float32Array, Int64Array};
use futures::TryStreamExt;
use lancedb::query::{ExecutableQuery, QueryBase, Select};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Deserialize;

use super::report::rounded;
use super::rig::{Client, Peers, Rig, SETTLE};
use super::words::WordEmbedder;
use super::{Error, Report, Sample, Scratch};

const MARK_P50_MS: f64 = 15.0;
const MARK_ROWS: u32 = 100_000;
/// Numbers of a vector, as many as the default model gives.
const DIMENSION: usize = 384;
/// The share of the nearest rows that answers have to have.
const RECALL_MIN: f64 = 0.9;
/// Answers of each kind that are compared with the nearest rows.
const COMPARED: usize = 200;
/// Cosines that are this near to each other count as equal.
const COSINE_SLACK: f32 = 1e-4;

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Rows of the index, one run each.
    #[arg(long, value_delimiter = ',', default_values_t = [10_000, 100_000], value_parser = clap::value_parser!(u32).range(100..=10_000_000))]
    pub rows: Vec<u32>,
    /// Searches of each kind, one after the other.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub searches: u32,
    /// Searches beside upserts go on for at least this time.
    #[arg(long = "for", default_value = "20s", value_parser = crate::demo::duration)]
    pub for_: Duration,
    /// One in ten changes a text.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub upserts_per_second: u32,
    /// Neighbours of an answer.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub k: u32,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

pub(super) async fn run(options: &Options) -> Result<Report, Error> {
    let mut report = Report::new("search", options.seed);
    report.figure("k", options.k);
    report.figure("upserts_per_second", options.upserts_per_second);
    let mut mark = None;
    for rows in &options.rows {
        let p50 = run_one(options, *rows, &mut report).await?;
        if *rows == MARK_ROWS {
            mark = p50;
        }
    }
    report.figure("mark_p50_ms", MARK_P50_MS);
    // Without a run of as many rows nothing can be said.
    report.figure("mark_met", mark.map(|ms| ms <= MARK_P50_MS));
    Ok(report)
}

/// The median of quiet searches.
async fn run_one(options: &Options, rows: u32, report: &mut Report) -> Result<Option<f64>, Error> {
    let scratch = Scratch::new("search")?;
    let words = Arc::new(WordEmbedder::new(DIMENSION));
    let embedder = words.clone();
    tell!("{rows} rows are loaded through the whole service");
    let started = Instant::now();
    let rig = Rig::start(&scratch, options.seed, rows as usize, Peers::own().await?, |_| Ok(embedder)).await?;
    let name = format!("rows_{rows}");
    report.figure(format!("{name}_loaded_s"), rounded(started.elapsed().as_secs_f64()));
    let table = Exact::read(&rig).await?;
    let held = table.ids.len();
    report.check(held == rows as usize, format!("the index holds {held} rows of {rows} products"));
    let mut rng = StdRng::seed_from_u64(options.seed);
    let queries: Vec<Query> = (0..options.searches).map(|_| Query::new(&rig, &words, &mut rng, options.k)).collect();
    // The first answers wait for what is read once.
    searches(&rig, queries.iter().take(20), Duration::ZERO).await?;

    let quiet = searches(&rig, queries.iter(), Duration::ZERO).await?;
    let mut times = quiet.times_ms;
    report.percentiles(&format!("{name}_quiet"), &mut times);
    check(&table, &queries, &quiet.answers, options.k as usize, &format!("{name}_quiet"), report);
    let median = times.percentile(50.0);
    tell!("{rows} rows, quiet: p50 {:.1} ms", median.unwrap_or_default());

    // More changes than can be made while the searches run.
    let upserts = options.for_.as_secs_f64().max(f64::from(options.searches)) * f64::from(options.upserts_per_second);
    let plan = rig.plan(options.seed + 1, upserts as usize);
    let trade = rig.trade(plan, f64::from(options.upserts_per_second), |_| ());
    let beside = searches(&rig, queries.iter(), options.for_).await?;
    let mut times = beside.times_ms;
    report.percentiles(&format!("{name}_beside_upserts"), &mut times);
    tell!("{rows} rows, beside upserts: p50 {:.1} ms", times.percentile(50.0).unwrap_or_default());
    trade.stop().await?;
    rig.settle(SETTLE).await?;

    let table = Exact::read(&rig).await?;
    let held = table.ids.len();
    report.check(held == rows as usize, format!("after upserts the index holds {held} rows of {rows} products"));
    let again = searches(&rig, queries.iter().take(COMPARED), Duration::ZERO).await?;
    check(&table, &queries, &again.answers, options.k as usize, &format!("{name}_after_upserts"), report);
    rig.stop().await;
    Ok(median)
}

struct Query {
    vector: Vec<f32>,
    body: String,
}

impl Query {
    /// Some of the words of some product's description: near many rows, equal to none.
    fn new(rig: &Rig, words: &WordEmbedder, rng: &mut StdRng, k: u32) -> Query {
        let shop = rig.shop();
        let text = loop {
            // Ids are given in order; not every one is still there.
            if let Some(product) = shop.get(rng.random_range(1..=shop.len() as i64)) {
                let category = shop.category(product.category_id).map_or("", |c| &c.name);
                break format!("{} {category} {}", product.name, product.description);
            }
        };
        let kept: Vec<&str> = text.split_whitespace().filter(|_| rng.random_bool(0.6)).collect();
        let vector = words.vector(&kept.join(" "));
        let body = Client::body(&vector, k as usize, None);
        Query { vector, body }
    }
}

#[derive(Deserialize)]
struct Answer {
    hits: Vec<AnsweredHit>,
}

#[derive(Deserialize)]
struct AnsweredHit {
    key: i64,
    score: f32,
}

struct Searched {
    times_ms: Sample,
    /// In the queries' order; those of the first round.
    answers: Vec<Answer>,
}

/// Asks every query once, and again from the first on until the time is over.
async fn searches(
    rig: &Rig,
    queries: impl ExactSizeIterator<Item = &Query> + Clone,
    at_least: Duration,
) -> Result<Searched, Error> {
    let mut searched = Searched { times_ms: Sample::default(), answers: Vec::with_capacity(queries.len()) };
    let begun = Instant::now();
    loop {
        for query in queries.clone() {
            let body = query.body.clone();
            let started = Instant::now();
            let answer = rig.client.search(body).await?;
            searched.times_ms.add(started.elapsed().as_secs_f64() * 1e3);
            if searched.answers.len() < queries.len() {
                searched.answers.push(serde_json::from_slice(&answer)?);
            } else if begun.elapsed() >= at_least {
                return Ok(searched);
            }
        }
        if begun.elapsed() >= at_least {
            return Ok(searched);
        }
    }
}

/// The index's vectors, read past the service, and the rows nearest to a vector by comparing all.
struct Exact {
    ids: Vec<i64>,
    vectors: Vec<f32>,
    places: HashMap<i64, usize>,
}

impl Exact {
    async fn read(rig: &Rig) -> Result<Exact, Error> {
        let index = &rig.config.index;
        let table = lancedb::connect(&index.uri).execute().await?.open_table(&rig.config.name).execute().await?;
        let columns = [index.key.as_str(), "_vector"];
        let mut batches = table.query().select(Select::columns(&columns)).execute().await?;
        let (mut ids, mut vectors) = (Vec::new(), Vec::new());
        while let Some(batch) = batches.try_next().await? {
            let keys = batch.column(0).as_any().downcast_ref::<Int64Array>().ok_or("the key is of another type")?;
            let lists = batch.column(1).as_any().downcast_ref::<FixedSizeListArray>();
            let lists = lists.ok_or("the vector is of another type")?;
            ids.extend_from_slice(keys.values());
            for n in 0..lists.len() {
                let vector = lists.value(n);
                let vector = vector.as_any().downcast_ref::<Float32Array>().ok_or("the vector is of another type")?;
                vectors.extend_from_slice(vector.values());
            }
        }
        let places = ids.iter().enumerate().map(|(n, id)| (*id, n)).collect();
        Ok(Exact { ids, vectors, places })
    }

    fn cosine(&self, place: usize, to: &[f32]) -> f32 {
        self.vectors[place * DIMENSION..][..DIMENSION].iter().zip(to).map(|(a, b)| a * b).sum()
    }

    /// The cosine of the k-th nearest row.
    fn kth(&self, to: &[f32], k: usize) -> f32 {
        let mut all: Vec<f32> = (0..self.ids.len()).map(|place| self.cosine(place, to)).collect();
        let k = k.min(all.len());
        *all.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
    }
}

fn check(table: &Exact, queries: &[Query], answers: &[Answer], k: usize, name: &str, report: &mut Report) {
    let (mut near, mut wanted) = (0, 0);
    for (query, answer) in queries.iter().zip(answers).take(COMPARED) {
        let least = table.kth(&query.vector, k) - COSINE_SLACK;
        wanted += k.min(table.ids.len());
        report.check(answer.hits.len() == k.min(table.ids.len()), format!("{name}: {} hits", answer.hits.len()));
        let descends = answer.hits.windows(2).all(|pair| pair[0].score >= pair[1].score - COSINE_SLACK);
        report.check(descends, format!("{name}: an answer's scores do not descend"));
        for hit in &answer.hits {
            let Some(place) = table.places.get(&hit.key) else {
                report.check(false, format!("{name}: the key {} is not in the index", hit.key));
                continue;
            };
            let cosine = table.cosine(*place, &query.vector);
            let same = (cosine - hit.score).abs() <= 1e-3;
            report.check(same, format!("{name}: the key {} has the score {} and not {cosine}", hit.key, hit.score));
            near += usize::from(cosine >= least);
        }
    }
    let recall = near as f64 / wanted.max(1) as f64;
    report.figure(format!("{name}_recall"), rounded(recall));
    report.check(recall >= RECALL_MIN, format!("{name}: answers have {recall:.3} of the nearest rows"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn answers_have_the_nearest_rows() {
        let options = Options {
            rows: vec![300],
            searches: 20,
            for_: Duration::from_secs(1),
            upserts_per_second: 50,
            k: 5,
            seed: 5,
        };
        let report = run(&options).await.unwrap();
        assert!(report.is_ok(), "{:?}", report.wrong());
        let json = report.json();
        assert_eq!(json["rows_300_quiet_recall"], 1.0, "all rows are compared where there is no ANN index: {json}");
        assert_eq!(json["mark_met"], serde_json::Value::Null, "{json}");
        for figure in ["rows_300_quiet_p50_ms", "rows_300_beside_upserts_p99_ms"] {
            assert!(json[figure].as_f64().unwrap() > 0.0, "{json}");
        }
    }
}
