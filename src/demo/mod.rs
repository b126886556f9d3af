//! The demo: a broker, a registry and a shop inside this process, and beside them the same service that runs in production, reached over
//! real sockets.

mod brands;
mod catalogue;
mod changelog;
mod office;
mod phrases;
mod prose;
mod rows;
mod shop;
#[cfg(test)]
mod tests;
mod trading;
mod traffic;

use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use indicatif::{ProgressBar, ProgressStyle};

pub use changelog::Error as ShopError;
pub use rows::{Brand, Category, PARTITIONS, Price, Product, Review, Table};
pub use shop::{Renamed, Shop};

use crate::config::{self, Config};
use crate::engine::{self, Service, stop_signal};
use crate::serve::State;
use crate::serve::server::Error as ServerError;
use crate::source::embedded::{Broker, Producer, Registry};
use office::Office;
use trading::{Floor, Trading};

/// The topic of the products.
pub const TOPIC: &str = Table::Product.topic();
/// The shop's topics, each with its number of partitions.
pub const TOPICS: [(&str, i32); 5] = {
    let mut topics = [("", 0); 5];
    let mut n = 0;
    while n < topics.len() {
        topics[n] = (Table::ALL[n].topic(), Table::ALL[n].partitions());
        n += 1;
    }
    topics
};
/// A file of the repository, by its path there.
macro_rules! shipped {
    ($path:literal) => {
        ($path, include_str!(concat!("../../", $path)))
    };
}

/// The shipped dataflow with what it refers to, so that the program needs no folder beside it.
const FILES: &[(&str, &str)] = &[
    ("schemas/avro/product.avsc", Table::Product.contract()),
    ("schemas/avro/category.avsc", Table::Category.contract()),
    ("schemas/avro/brand.avsc", Table::Brand.contract()),
    ("schemas/avro/price.avsc", Table::Price.contract()),
    ("schemas/avro/review.avsc", Table::Review.contract()),
    shipped!("dataflows/product/dataflow.toml"),
    shipped!("dataflows/product/macros/category_path.sql"),
    shipped!("dataflows/product/macros/search_text.sql"),
    shipped!("dataflows/product/models/marts/product_search.sql"),
    shipped!("dataflows/product/models/schema.yml"),
    shipped!("dataflows/product/models/sources.yml"),
    shipped!("dataflows/product/models/staging/stg_product.sql"),
    shipped!("dataflows/product/models/staging/stg_category.sql"),
    shipped!("dataflows/product/models/staging/stg_brand.sql"),
    shipped!("dataflows/product/models/staging/stg_price.sql"),
    shipped!("dataflows/product/models/staging/stg_review.sql"),
];

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Where the API listens; the shop's own listens on the next port.
    #[arg(long, default_value = "127.0.0.1:8080", value_parser = listen)]
    pub listen: SocketAddr,
    /// Products at the start.
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub products: u32,
    /// Changes of live traffic.
    #[arg(long, default_value_t = 20.0, value_parser = rate)]
    pub changes_per_second: f64,
    /// Ends by itself after this time, such as 60s or 5m.
    #[arg(long = "for", value_parser = duration)]
    pub for_: Option<Duration>,
    /// Keeps the embeddings here for the next run, and the index until then; a folder of its own under the system's temporary folder otherwise.
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// The same seed makes the same shop.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// An address with a port that has a next one.
fn listen(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr =
        text.parse().map_err(|_| format!("{text:?} is no address:port such as 127.0.0.1:8080"))?;
    match address.port() {
        0 | u16::MAX => Err("the shop listens on the next port, so the port has to be from 1 to 65534".into()),
        _ => Ok(address),
    }
}

/// A number of changes in a second.
fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate| (0.0..=100_000.0).contains(rate));
    rate.ok_or_else(|| format!("{text:?} is no number from 0 to 100000"))
}

/// A time such as 60s or 5m.
pub fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let seconds = match &text[split..] {
        "s" | "" => 1,
        "m" => 60,
        "h" => 3600,
        unit => return Err(format!("{unit:?} is none of s, m, h")),
    };
    let whole = text[..split].parse().ok().and_then(|number: u64| number.checked_mul(seconds));
    whole.map(Duration::from_secs).ok_or_else(|| format!("{text:?} is no time such as 60s or 5m"))
}

/// Runs the demo until it is told to stop.
pub fn run(options: Options) -> LocalBoxFuture<'static, Outcome> {
    let whole = async move {
        let own = std::env::temp_dir().join(format!("freshet-demo-{}", std::process::id()));
        let data = options.data.clone().unwrap_or_else(|| own.clone());
        let done = demo(&options, &data).await;
        if options.data.is_none() {
            // What the demo made for itself goes with it; a folder that cannot be removed is only untidy.
            let _ = std::fs::remove_dir_all(&own);
        }
        done
    };
    whole.boxed_local()
}

/// Errors of parts that have nothing in common but that the demo cannot go on.
type Outcome = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// An option that the demo cannot run with.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(String);

/// Writes the shipped dataflow into `data` and configures it for these peers; index and embeddings lie beside it.
pub fn product_dataflow(
    data: &Path,
    brokers: &str,
    registry: &str,
    listen: SocketAddr,
) -> Result<Config, Box<dyn std::error::Error + Send + Sync>> {
    for (name, text) in FILES {
        let path = data.join(name);
        std::fs::create_dir_all(path.parent().unwrap_or(data))?;
        std::fs::write(path, text)?;
    }
    let folder = data.canonicalize()?;
    let variables = |name: &str| match name {
        "KAFKA_BOOTSTRAP_SERVERS" => Some(brokers.to_string()),
        "SCHEMA_REGISTRY_URL" => Some(registry.to_string()),
        "FRESHET_DATA_DIR" => Some(folder.join("data").to_string_lossy().into_owned()),
        "FRESHET_LISTEN" => Some(listen.to_string()),
        // Its shop sends none.
        "KAFKA_HEARTBEAT_TOPIC" => None,
        other => std::env::var(other).ok(),
    };
    Ok(config::load_with(&data.join("dataflows/product"), variables)?)
}

async fn demo(options: &Options, data: &Path) -> Outcome {
    let ended = stop_signal()?;
    tokio::pin!(ended);
    let shop_address = SocketAddr::new(options.listen.ip(), options.listen.port() + 1);
    let refused = |why: String| Refused(format!("{} (--data) {why}", data.display()));
    let in_data = |e: std::io::Error| -> Box<dyn std::error::Error + Send + Sync> {
        match e.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => format!("{} (--data): {e}", data.display()).into(),
            _ => refused(format!("cannot be used: {e}")).into(),
        }
    };
    let lock = data.join("demo.lock");
    // What lies there is made anew and written over: only a demo's own.
    let is_taken = |name: &&&str| data.join(name).exists();
    if let Some(name) = ["data", "dataflows", "schemas"].iter().find(is_taken).filter(|_| !lock.exists()) {
        return Err(refused(format!("has {name}, which no demo has made; give a folder of its own")).into());
    }
    std::fs::create_dir_all(data).map_err(in_data)?;
    let lock = File::create(lock).map_err(in_data)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(refused("is another demo's, which runs".into()).into()),
        Err(TryLockError::Error(e)) => return Err(in_data(e)),
    }
    let shop_server = tokio::net::TcpListener::bind(shop_address)
        .await
        .map_err(|source| engine::Error::Server(ServerError::Listen { address: shop_address, source }))?;
    let broker = Broker::start(&TOPICS)?;
    let registry = Registry::start().await?;
    let (brokers, url) = (broker.bootstrap_servers(), registry.url());
    let tables: Vec<&str> = Table::ALL.iter().map(|table| table.name()).collect();
    say!("broker    {brokers} (inside this process; topics shop.public.{{{}}})", tables.join(","));
    say!("registry  {url}");
    let config = product_dataflow(data, &brokers, &url, options.listen)?;
    // Raw and the index of an earlier run are at offsets of a broker that is gone. They are made anew, the index from the embeddings that are
    // kept.
    for folder in config.raw.iter().map(|raw| &raw.uri).chain([&config.index.uri]) {
        if Path::new(folder).exists() {
            std::fs::remove_dir_all(folder)?;
        }
    }
    let shop = Shop::new(options.seed, options.products as usize, Producer::new(&brokers)?, &registry)?;
    let some_category = shop.products().next().map_or(1, |p| p.category_id);
    let shop = Arc::new(Mutex::new(shop));
    let bar = ProgressBar::new(u64::from(options.products));
    bar.set_style(ProgressStyle::with_template("embedding {bar:40} {pos}/{len} texts, {per_sec}, {eta} left")?);
    let (texts, tokens) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let heard = (texts.clone(), tokens.clone(), bar.clone());
    let progress = move |batch: crate::embed::BatchStats| {
        heard.0.fetch_add(batch.texts as u64, Ordering::Relaxed);
        heard.1.fetch_add(batch.tokens as u64, Ordering::Relaxed);
        heard.2.inc(batch.texts as u64);
    };
    let service = tokio::select! {
        () = &mut ended => return Ok(()),
        service = Service::start(config, Arc::new(progress)) => service?,
    };
    let address = service.address();
    say!("service   http://{address}");
    say!("shop      http://{shop_address}/shop/products/1, /shop/categories/1, /shop/brands/1");
    let stop = Arc::new(AtomicBool::new(false));
    let floor = Floor::default();
    let office = Office::new(shop.clone(), floor.clone(), service.status().clone(), stop.clone());
    tokio::spawn(warp::serve(office.routes()).incoming(shop_server).run());
    let listed = {
        let shop = shop.clone();
        // Also before all are searchable somebody may take one out of the shop.
        move || shop.lock().expect("no holder of this lock panics").products().filter(|p| p.is_listed()).count()
    };
    let trading = Trading {
        shop,
        floor,
        read: Box::new(service.read_position()),
        stop: stop.clone(),
        per_second: options.changes_per_second,
    };
    let (live, wrote) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (trading_live, trading_wrote) = (live.clone(), wrote.clone());
    let trader =
        std::thread::Builder::new().name("shop".into()).spawn(move || trading.run(&trading_live, &trading_wrote))?;

    let started = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    let (mut last, mut searchable) = (0, false);
    loop {
        tokio::select! {
            () = &mut ended => break,
            _ = ticks.tick() => {}
        }
        let status = service.status();
        if service.has_failed() || options.for_.is_some_and(|limit| started.elapsed() >= limit) {
            break;
        }
        let m = status.metrics();
        if !searchable {
            let rows = m.index_rows.get() as u64;
            if status.state() == State::Live && rows >= listed() as u64 {
                bar.finish_and_clear();
                searchable = true;
                live.store(true, Ordering::SeqCst);
                say!("searchable: {rows} products after {:.0} s. Try", started.elapsed().as_secs_f64());
                print_requests(address, shop_address, some_category);
            } else if bar.is_hidden() {
                say!(
                    "embedding {} of {} texts, {} tokens",
                    texts.load(Ordering::Relaxed),
                    options.products,
                    tokens.load(Ordering::Relaxed)
                );
            }
            continue;
        }
        let sent = wrote.load(Ordering::Relaxed);
        let (state, _) = status.state_and_why();
        let freshness = status
            .freshness_ms()
            .map_or("no changes yet".to_string(), |(p50, p99)| format!("p50 {p50:.0} ms, p99 {p99:.0} ms"));
        say!(
            "{:>4} s  {}  {} changes/s  lag {}  freshness {freshness}  embeds: {} asked, {} cached, {} computed  {} rows",
            started.elapsed().as_secs(),
            state.name(),
            sent - last,
            status.lag_total(),
            m.embeds_asked.get(),
            m.embeds_cached.get(),
            m.embeds_computed.get(),
            m.index_rows.get()
        );
        last = sent;
    }
    bar.finish_and_clear();
    say!("stopping");
    stop.store(true, Ordering::SeqCst);
    let failure = service.has_failed().then(|| service.status().state_and_why().1);
    let traded = tokio::task::spawn_blocking(move || trader.join()).await?;
    service.stop().await;
    traded.map_err(|_| "the shop panicked")??;
    failure.map_or(Ok(()), |reason| Err(reason.into()))
}

/// What to try: find something, give a product another text, find that; and what else there is.
fn print_requests(service: SocketAddr, shop: SocketAddr, category: i64) {
    let search = |query: &str, k: usize| {
        say!("  curl -s http://{service}/v1/search -d '{{\"query\": \"{query}\", \"k\": {k}}}'");
    };
    search("shelter for a rainy night outdoors", 3);
    let text = r#"{"name": "Space teapot", "description": "A singing teapot for astronauts."}"#;
    say!("  curl -s -X PUT http://{shop}/shop/products/1 -d '{text}'");
    search("teapot for astronauts", 1);
    say!(
        "A PUT of {{\"name\": ...}} to http://{shop}/shop/categories/{category} embeds that category's products again, and no others."
    );
}
