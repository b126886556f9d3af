//! Kill: the program itself, killed again and again while its source changes, and what lies on disk after that.
//!
//! The invariant: every kill is SIGKILL to a process that nothing but the disk and the broker outlives; what is checked is read from the disk,
//! by the audit and by this file. The program is asked for two things alone: what searches see, and how many texts it has embedded.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::{Error, Report, Scratch};
use crate::audit;
use crate::config::Config;
use crate::decode::{FixedSchemas, RowType, SchemaStore};
use crate::demo::{self, Shop, TOPICS};
use crate::embed::{Embedder, EmbeddingStore};
use crate::raw::{Hydration, RawTable};
use crate::source::embedded::{Broker, Producer, Registry};
use crate::time::{Partition, Position};

/// How far the shop may write ahead of what has landed: the broker keeps 5 MiB a partition.
const AHEAD_MAX_BYTES: usize = 1 << 20;
/// Commits of raw are made to fall between kills.
const COMMIT_MAX_AGE_MS: u64 = 300;
/// How long the program may take to have everything searchable and landed, once it is left alone.
const PATIENCE: Duration = Duration::from_secs(300);
/// Texts that the audit embeds anew.
const SAMPLE: usize = 200;

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Kills.
    #[arg(long, default_value_t = 100)]
    pub times: u32,
    /// The longest that the program runs before it is killed; each time a part of it, by chance.
    #[arg(long, default_value_t = 3000)]
    pub up_to_ms: u64,
    /// Products of the shop.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub products: u32,
    /// Where raw and index lie, such as s3://bucket/path; AWS_ENDPOINT, AWS_ALLOW_HTTP, AWS_REGION and the keys come from the environment. A temporary
    /// folder otherwise.
    #[arg(long)]
    pub uri: Option<String>,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// One look at the program in so many asks it for a new index.
const REBUILD_EVERY: f64 = 60.0;

pub(super) async fn run(options: &Options) -> Result<Report, Error> {
    let scratch = Scratch::new("kill")?;
    let started = Instant::now();
    let broker = Broker::start(&TOPICS)?;
    let registry = Registry::start().await?;
    let mut shop =
        Shop::new(options.seed, options.products as usize, Producer::new(&broker.bootstrap_servers())?, &registry)?;
    let place = Place::new(scratch.path(), options.uri.as_deref(), &broker, &registry)?;
    let mut rng = StdRng::seed_from_u64(options.seed);
    let mut report = Report::new("kill", options.seed);
    let mut watch = Watch::default();

    let mut snapshot = shop.ids();
    snapshot.reverse();
    for n in 0..options.times {
        let mut program = place.start()?;
        let until = Instant::now() + Duration::from_millis(rng.random_range(0..=options.up_to_ms));
        while Instant::now() < until {
            for _ in 0..rng.random_range(1..20) {
                if shop.bytes_ahead(&watch.landed) > AHEAD_MAX_BYTES {
                    break;
                }
                match snapshot.pop() {
                    Some(id) => shop.snapshot(id, snapshot.is_empty())?,
                    None => drop(shop.step()?),
                }
            }
            shop.flush()?;
            watch.ask(&place.url, &mut report).await;
            if rng.random_bool(1.0 / REBUILD_EVERY) {
                watch.ask_to_rebuild(&place.url).await;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if let Some(status) = program.0.try_wait()? {
            return Err(format!("the program ended by itself ({status}): {}", place.last_words()).into());
        }
        program.0.kill()?;
        program.0.wait()?;
        watch.life_ends();
        if (n + 1) % 20 == 0 {
            tell!("{} kills, {} answers, landed {:?}", n + 1, watch.answers, sum(&watch.landed));
        }
    }

    let mut program = place.start()?;
    let written = shop.written();
    let settling = Instant::now();
    while !(watch.is_live && watch.position.covers(&written)) {
        if settling.elapsed() > PATIENCE {
            return Err(format!("what was written is not searchable after {} s", PATIENCE.as_secs()).into());
        }
        if let Some(status) = program.0.try_wait()? {
            return Err(format!("the program ended by itself ({status}): {}", place.last_words()).into());
        }
        watch.ask(&place.url, &mut report).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let ended = program.terminate()?;
    watch.life_ends();
    report.check(ended.code() == Some(0), format_args!("told to end, the program ended with {ended}"));

    let (config, written) = (&place.config, &written);
    let mut rows = 0;
    for (partition, offsets) in landed(config).await? {
        let end = written.get(&partition).map_or(0, |next| next.0);
        rows += offsets.len();
        let once = offsets.iter().copied().eq(0..end);
        report.check(once, format_args!("{partition} has {} rows in raw for offsets up to {end}", offsets.len()));
    }
    let found = audit::run(config.clone(), SAMPLE).await?;
    found.differences.iter().for_each(|difference| report.check(false, difference));
    report.check(found.position.covers(written), "the index does not reflect all that was written");
    let (records, texts) = embeddings(config)?;
    report.check(records == texts, format_args!("{records} vectors are kept of {texts} texts"));
    // A text is counted once its vector is stored and in the index. What a killed process has embedded after it was asked last is not counted.
    report.check(
        watch.embedded <= texts,
        format_args!("{} texts were embedded, and there are {texts}: some were embedded again", watch.embedded),
    );
    report.figure("embeds_counted", watch.embedded);
    report.figure("kills", options.times);
    report.figure("answers", watch.answers);
    report.figure("rebuilds_asked", watch.rebuilds);
    report.figure("events", sum(written));
    report.figure("raw_rows", rows);
    report.figure("index_rows", found.index_rows);
    report.figure("texts", texts);
    report.figure("vectors_compared", found.sampled);
    report.figure("seconds", super::report::rounded(started.elapsed().as_secs_f64()));
    Ok(report)
}

fn sum(position: &Position) -> i64 {
    position.iter().map(|(_, next)| next.0).sum()
}

/// Where the program runs, and what it is told.
struct Place {
    folder: PathBuf,
    log: PathBuf,
    environment: Vec<(&'static str, String)>,
    config: Config,
    url: String,
}

impl Place {
    fn new(data: &Path, uri: Option<&str>, broker: &Broker, registry: &Registry) -> Result<Place, Error> {
        // The same address after each start, free until now.
        let listen = std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let (brokers, registry) = (broker.bootstrap_servers(), registry.url());
        demo::product_dataflow(data, &brokers, &registry, listen)?;
        let folder = data.canonicalize()?.join("dataflows/product");
        let file = folder.join("dataflow.toml");
        let text = std::fs::read_to_string(&file)?;
        let quick = format!("[raw]\ncommit_max_age_ms = {COMMIT_MAX_AGE_MS}\n");
        let mut text = text.replacen("[raw]\n", &quick, 1);
        for part in ["raw", "index"] {
            let given = format!("uri = \"${{FRESHET_DATA_DIR:-../../data}}/{part}\"");
            if let Some(uri) = uri {
                text = text.replacen(&given, &format!("uri = \"{}/{part}\"", uri.trim_end_matches('/')), 1);
            }
        }
        std::fs::write(&file, text)?;
        let environment = vec![
            ("KAFKA_BOOTSTRAP_SERVERS", brokers),
            ("SCHEMA_REGISTRY_URL", registry),
            ("FRESHET_DATA_DIR", data.join("data").to_string_lossy().into_owned()),
            ("FRESHET_LISTEN", listen.to_string()),
        ];
        let told = environment.clone();
        let config = crate::config::load_with(&folder, |name| {
            told.iter().find(|(of, _)| *of == name).map(|(_, value)| value.clone()).or_else(|| std::env::var(name).ok())
        })?;
        Ok(Place { folder, log: data.join("log"), environment, config, url: format!("http://{listen}") })
    }

    fn start(&self) -> Result<Program, Error> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("run").arg(&self.folder).envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdout(Stdio::null()).stderr(File::create(&self.log)?);
        Ok(Program(command.spawn()?))
    }

    /// The end of its log.
    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        log.lines().last().unwrap_or("it said nothing").into()
    }
}

/// A running program. It is killed when this goes.
struct Program(Child);

impl Program {
    fn terminate(&mut self) -> Result<ExitStatus, Error> {
        Command::new("kill").arg("-TERM").arg(self.0.id().to_string()).status()?;
        Ok(self.0.wait()?)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // One that has ended already cannot be killed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Holds each answer against the furthest that any answer went.
#[derive(Default)]
struct Watch {
    client: reqwest::Client,
    epoch: u64,
    position: Position,
    landed: Position,
    is_live: bool,
    answers: usize,
    rebuilds: usize,
    /// Texts that were embedded: by the processes that have ended, and by the one that runs.
    embedded: usize,
    embedded_in_life: usize,
}

impl Watch {
    fn life_ends(&mut self) {
        self.embedded += std::mem::take(&mut self.embedded_in_life);
    }

    async fn ask_to_rebuild(&mut self, url: &str) {
        let asked = self.client.post(format!("{url}/v1/rebuild")).send().await;
        self.rebuilds += usize::from(asked.is_ok_and(|answer| answer.status().is_success()));
    }

    /// One search and one look at the status. A program that is not there (any more) gives no answer.
    async fn ask(&mut self, url: &str, report: &mut Report) {
        let query = self.client.post(format!("{url}/v1/search")).body(json!({"query": "a tent", "k": 3}).to_string());
        if let Some(answer) = answer(query).await {
            let epoch = answer["epoch"].as_u64().unwrap_or_default();
            let position: Position = serde_json::from_value(answer["position"].clone()).unwrap_or_default();
            report.check(
                epoch >= self.epoch,
                format_args!("an answer was of epoch {epoch}, after one of {}", self.epoch),
            );
            report.check(position.covers(&self.position), "an answer's position lies before that of one before it");
            (self.epoch, self.position) = (epoch, position);
            self.answers += 1;
        }
        if let Some(status) = answer(self.client.get(format!("{url}/v1/status"))).await {
            self.is_live = status["state"] == "live";
            self.embedded_in_life = status["embed"]["computed"].as_u64().unwrap_or_default() as usize;
            if let Ok(landed) = serde_json::from_value::<Position>(status["raw"]["landed"].clone()) {
                self.landed.join(&landed);
            }
        }
    }
}

async fn answer(request: reqwest::RequestBuilder) -> Option<Value> {
    let answer = request.send().await.ok()?.error_for_status().ok()?;
    answer.json().await.ok()
}

/// The offsets that raw holds, as they lie there.
async fn landed(config: &Config) -> Result<BTreeMap<Partition, Vec<i64>>, Error> {
    let raw = config.raw.as_ref().ok_or("the dataflow has no [raw]")?;
    let schemas: Arc<dyn SchemaStore> = Arc::new(FixedSchemas::default());
    let mut offsets: BTreeMap<Partition, Vec<i64>> = BTreeMap::new();
    for (n, source) in config.sources.iter().enumerate() {
        let table = RawTable::open(&raw.table(source), &raw.options, &config.name, &source.topic).await?;
        let row_type = Arc::new(RowType::from_contract(source)?);
        let mut hydration = Hydration::open(&table, None, n, source, row_type, schemas.clone()).await?;
        while let Some(decoded) = hydration.next().await? {
            let of = offsets.entry(decoded.partition.clone()).or_default();
            of.extend(decoded.changes.iter().map(|change| change.offset.0));
            of.extend(decoded.rejects.iter().map(|reject| reject.offset.0));
        }
    }
    Ok(offsets)
}

/// Vectors that the embedding store holds, and texts that they are of.
fn embeddings(config: &Config) -> Result<(usize, usize), Error> {
    let embedder = Embedder::load(&config.embed)?;
    let store = EmbeddingStore::open(&config.embed.store, embedder.model_id(), embedder.dimension())?;
    Ok((store.records(), store.len()))
}
