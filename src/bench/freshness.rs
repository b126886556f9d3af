//! Freshness: how long after its commit a change is seen by a search, measured from outside.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::sync::watch;

use super::report::rounded;
use super::rig::{Change, Client, Peers, Planned, Rig, SETTLE, TEXT_EVERY, What, cents_of};
use super::{Error, Report, Sample, Scratch};
use crate::demo;
use crate::embed::{Embedder, TextEmbedder};
use crate::time::{Offset, Position};

const MARK_P50_MS: f64 = 250.0;
const MARK_P99_MS: f64 = 1000.0;
/// Between two questions about one change.
const PAUSE: Duration = Duration::from_millis(5);
/// A followed change that no answer shows or covers by then was lost.
const PATIENCE: Duration = Duration::from_secs(60);
/// Products whose rows are compared with the shop's when all is over.
const COMPARED: usize = 500;

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Changes of the shop's products; one in ten changes a text, the others a price.
    #[arg(long, default_value_t = 200.0, value_parser = rate)]
    pub changes_per_second: f64,
    /// How long the shop changes its products, such as 60s or 5m.
    #[arg(long = "for", default_value = "30s", value_parser = demo::duration)]
    pub for_: Duration,
    /// Products of the shop. All are embedded before the measurement begins.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    pub products: u32,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

pub(super) fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate <= 100_000.0 => Ok(rate),
        _ => Err("a rate is a number above 0, and at most 100000".into()),
    }
}

pub(super) async fn run(options: &Options) -> Result<Report, Error> {
    let model = |config: &crate::config::Config| {
        let embedder = tokio::task::block_in_place(|| Embedder::load(&config.embed))?;
        Ok(Arc::new(embedder) as Arc<dyn TextEmbedder>)
    };
    run_with(options, model).await
}

async fn run_with(
    options: &Options,
    embedder: impl FnOnce(&crate::config::Config) -> Result<Arc<dyn TextEmbedder>, Error>,
) -> Result<Report, Error> {
    let scratch = Scratch::new("freshness")?;
    let mut shared = None;
    let rig = Rig::start(&scratch, options.seed, options.products as usize, Peers::own().await?, |config| {
        let embedder = embedder(config)?;
        shared = Some(embedder.clone());
        Ok(embedder)
    })
    .await?;
    let embedder = shared.ok_or("the rig asked for no embedder")?;
    let mut report = at_rate(&rig, embedder, options.changes_per_second, options.for_, options.seed).await?;
    report.figure("products", options.products);
    rig.stop().await;
    Ok(report)
}

/// Changes the shop's products at a steady rate, and measures how fresh searches are meanwhile.
pub(super) async fn at_rate(
    rig: &Rig,
    embedder: Arc<dyn TextEmbedder>,
    changes_per_second: f64,
    for_: Duration,
    seed: u64,
) -> Result<Report, Error> {
    let count = (changes_per_second * for_.as_secs_f64()).ceil() as usize;
    let plan = rig.plan(seed, count.max(TEXT_EVERY));
    tell!("{} changes are prepared: what searches will look for is embedded beforehand", plan.len());
    let bodies = bodies(rig, &plan, embedder).await?;
    let mut report = Report::new("freshness", seed);
    report.figure("changes", plan.len());
    measure(rig, plan, changes_per_second, seed, bodies, &mut report).await?;
    rig.settle(SETTLE).await?;
    compare(rig, &mut report).await?;
    Ok(report)
}

/// For every text that will be, the search that will look for it: near its vector, without the service's help.
async fn bodies(
    rig: &Rig,
    plan: &[Planned],
    embedder: Arc<dyn TextEmbedder>,
) -> Result<HashMap<String, String>, Error> {
    let column = &rig.config.index.text;
    let (mut descriptions, mut texts) = (Vec::new(), Vec::new());
    for planned in plan {
        let What::Text(new) = &planned.what else { continue };
        let row = rig.client.item(planned.id).await?.0;
        let (old, text) = (row["description"].as_str(), row[column].as_str());
        let (old, text) = old.zip(text).ok_or_else(|| format!("product {} has no text in the view", planned.id))?;
        descriptions.push(new.clone());
        // The view's text has the description in it.
        texts.push(text.replacen(old, new, 1));
    }
    let vectors = tokio::task::spawn_blocking(move || {
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        embedder.embed(&texts, &mut |_| ())
    });
    let bodies = vectors.await??.into_iter().map(|vector| Client::body(&vector, 1, Some(&["id", "description"])));
    Ok(descriptions.into_iter().zip(bodies).collect())
}

async fn measure(
    rig: &Rig,
    plan: Vec<Planned>,
    changes_per_second: f64,
    seed: u64,
    bodies: HashMap<String, String>,
    report: &mut Report,
) -> Result<(), Error> {
    let computed = rig.service.status().metrics().embeds_computed.get();
    let (count, texts) = (plan.len(), bodies.len());
    let seen = Arc::new(Seen::default());
    let (text, price) = (watch::channel(None), watch::channel(None));
    let made = seen.clone();
    let trade = rig.trade(plan, changes_per_second, move |change| {
        made.made(&change);
        match change.planned.what {
            What::Text(_) => text.0.send_replace(Some(change)),
            What::Price(_) => price.0.send_replace(Some(change)),
        };
    });
    // Of the changes that come while one is followed none is taken, and then a few more are left out by chance: the next one begins
    // anywhere in the service's own rhythm.
    let follow = |changes: watch::Receiver<Option<Change>>, skip: usize, bodies: HashMap<String, String>| {
        let rng = StdRng::seed_from_u64(seed);
        tokio::spawn(Follower { client: rig.client.clone(), seen: seen.clone(), bodies, skip, rng }.run(changes))
    };
    let searching = bodies.values().next().cloned().ok_or("no text is changed")?;
    let followers = [follow(text.1, 4, bodies), follow(price.1, 40, HashMap::new())];
    let watching = Watching(tokio::spawn(watch_all(rig.client.clone(), seen.clone(), searching)));
    let took = trade.done().await?;
    let mut followed = Vec::new();
    for follower in followers {
        followed.push(follower.await??);
    }
    let started = Instant::now();
    while !seen.lock().waiting.is_empty() && started.elapsed() < PATIENCE && !watching.0.is_finished() {
        tokio::time::sleep(PAUSE).await;
    }
    drop(watching);
    let mut all = std::mem::take(&mut *seen.lock());
    report.check(all.waiting.is_empty(), format!("{} of {count} changes were never searchable", all.waiting.len()));
    report.figure("changes_per_second", rounded(count as f64 / took.as_secs_f64()));
    report.figure("texts_changed", texts);
    report.percentiles("", &mut all.ages_ms);
    let names = ["text_found", "price_found"];
    for (name, mut followed) in names.into_iter().zip(followed) {
        report.figure(format!("{name}_changes"), followed.ages_ms.len());
        report.percentiles(name, &mut followed.ages_ms);
        report.check(followed.ages_ms.len() > 0, format!("{name}: no change was found"));
        for wrong in followed.wrong {
            report.check(false, wrong);
        }
    }
    report.figure("answers", all.answers);
    if let Some((p50, p99)) = rig.service.status().freshness_ms() {
        report.figure("service_p50_ms", rounded(p50));
        report.figure("service_p99_ms", rounded(p99));
    }
    let metrics = rig.service.status().metrics();
    report.figure("texts_embedded", metrics.embeds_computed.get() - computed);
    let (p50, p99) = (all.ages_ms.percentile(50.0), all.ages_ms.percentile(99.0));
    report.figure("mark_p50_ms", MARK_P50_MS);
    report.figure("mark_p99_ms", MARK_P99_MS);
    report.figure("mark_met", p50.is_some_and(|ms| ms <= MARK_P50_MS) && p99.is_some_and(|ms| ms <= MARK_P99_MS));
    Ok(())
}

/// Searches again and again, whatever for: each answer says how far it is.
async fn watch_all(client: Client, seen: Arc<Seen>, body: String) -> Result<(), Error> {
    loop {
        let answer: Answer = serde_json::from_slice(&client.search(body.clone()).await?)?;
        seen.answer(&answer.position);
        tokio::time::sleep(PAUSE).await;
    }
}

/// The searches of [`watch_all`]; they end with it.
struct Watching(tokio::task::JoinHandle<Result<(), Error>>);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Which changes no answer has covered yet, and how old the others were when one did.
#[derive(Default)]
struct Seen(Mutex<Ages>);

#[derive(Default)]
struct Ages {
    waiting: Vec<Change>,
    /// Of each product's text and price, where the last change of it ends.
    last: HashMap<(i64, bool), Offset>,
    ages_ms: Sample,
    answers: u64,
}

impl Seen {
    fn lock(&self) -> std::sync::MutexGuard<'_, Ages> {
        self.0.lock().expect("no holder of this lock panics")
    }

    fn made(&self, change: &Change) {
        let mut ages = self.lock();
        ages.last.insert(what_of(change), change.end);
        ages.waiting.push(change.clone());
    }

    /// Whether the same was changed again.
    fn is_superseded(&self, change: &Change) -> bool {
        self.lock().last.get(&what_of(change)).is_some_and(|end| *end != change.end)
    }

    /// Takes note of an answer that has just come.
    fn answer(&self, position: &Position) {
        let now = Instant::now();
        let mut ages = self.lock();
        ages.answers += 1;
        let (covered, waiting) = std::mem::take(&mut ages.waiting).into_iter().partition(|c| c.is_covered_by(position));
        ages.waiting = waiting;
        for change in Vec::from_iter::<Vec<Change>>(covered) {
            ages.ages_ms.add((now - change.committed).as_secs_f64() * 1e3);
        }
    }
}

fn what_of(change: &Change) -> (i64, bool) {
    (change.planned.id, matches!(change.planned.what, What::Text(_)))
}

/// Follows one change after the other until an answer shows it.
struct Follower {
    client: Client,
    seen: Arc<Seen>,
    /// Searches by the description that they look for.
    bodies: HashMap<String, String>,
    /// Most changes that are left out between two.
    skip: usize,
    rng: StdRng,
}

#[derive(Default)]
struct Followed {
    ages_ms: Sample,
    wrong: Vec<String>,
}

/// What a search answers, as far as it matters here.
#[derive(Deserialize)]
struct Answer {
    hits: Vec<AnsweredHit>,
    position: Position,
}

#[derive(Deserialize)]
struct AnsweredHit {
    row: Map<String, Value>,
}

impl Follower {
    async fn run(mut self, mut changes: watch::Receiver<Option<Change>>) -> Result<Followed, Error> {
        let mut followed = Followed::default();
        loop {
            for _ in 0..=self.rng.random_range(0..=self.skip) {
                if changes.changed().await.is_err() {
                    return Ok(followed);
                }
            }
            let Some(change) = changes.borrow_and_update().clone() else { continue };
            loop {
                let (row, position) = self.ask(&change).await?;
                let now = Instant::now();
                if let Some(position) = &position {
                    self.seen.answer(position);
                }
                if row["id"] == change.planned.id && change.planned.what.is_in(&row) {
                    followed.ages_ms.add((now - change.committed).as_secs_f64() * 1e3);
                    break;
                }
                let covered = position.is_some_and(|p| change.is_covered_by(&p));
                // Where changes come faster than they become searchable, the next one of the same product may be what is shown.
                if covered && self.seen.is_superseded(&change) {
                    break;
                }
                if covered || change.committed.elapsed() > PATIENCE {
                    let why = if covered { "an answer covers it and shows another row" } else { "it was never found" };
                    followed.wrong.push(format!("{:?}: {why}: {row}", change.planned));
                    break;
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// The row that an answer shows for a change now: a text is searched for, a price looked up.
    async fn ask(&self, change: &Change) -> Result<(Value, Option<Position>), Error> {
        let What::Text(text) = &change.planned.what else { return self.client.item(change.planned.id).await };
        let body = self.bodies.get(text).ok_or("a text that was not prepared")?.clone();
        let answer: Answer = serde_json::from_slice(&self.client.search(body).await?)?;
        let row = answer.hits.into_iter().next().map_or(Value::Null, |hit| hit.row.into());
        Ok((row, Some(answer.position)))
    }
}

/// Compares rows of the index with the shop's table.
async fn compare(rig: &Rig, report: &mut Report) -> Result<(), Error> {
    let ids = rig.shop().ids();
    let step = ids.len().div_ceil(COMPARED);
    let mut compared = 0;
    for id in ids.iter().step_by(step) {
        let row = rig.client.item(*id).await?.0;
        let Some(product) = rig.shop().get(*id).cloned() else { continue };
        let same = row["description"] == *product.description && cents_of(&row) == Some(product.price_cents);
        report.check(same, format!("product {id} is {product:?}, and the index has {row}"));
        compared += 1;
    }
    report.figure("rows_compared", compared);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::words::WordEmbedder;
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn every_change_is_found() {
        let options = Options { changes_per_second: 100.0, for_: Duration::from_secs(2), products: 200, seed: 5 };
        let report = run_with(&options, |_| Ok(Arc::new(WordEmbedder::new(64)))).await.unwrap();
        assert!(report.is_ok(), "{:?}", report.wrong());
        let json = report.json();
        assert_eq!(json["texts_embedded"], json["texts_changed"], "{json}");
        for figure in ["p50_ms", "p99_ms", "text_found_p50_ms", "price_found_p99_ms"] {
            assert!(json[figure].as_f64().unwrap() > 0.0, "{json}");
        }
    }
}
