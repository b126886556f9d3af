//! The demo: a broker, a registry and a shop inside this process, and beside them the same service that runs in production, reached over
//! real sockets.

mod catalog;
mod shop;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use serde_json::json;
use warp::Filter;
use warp::http::StatusCode;

pub use catalog::Product;
pub use shop::{Error as ShopError, PARTITIONS, Shop, TOPIC};

use crate::config::{self, Config};
use crate::engine::{Service, stop_signal};
use crate::serve::State;
use crate::source::embedded::{Broker, Producer, Registry};
use crate::time::Position;

/// How far the shop may write ahead of the service: the broker keeps 5 MiB a partition and drops the rest.
const AHEAD_MAX_BYTES: usize = 2 << 20;
pub const CONTRACT: &str = include_str!("../../schemas/avro/product.avsc");
const FILES: &[(&str, &str)] = &[
    ("schemas/avro/product.avsc", CONTRACT),
    ("dataflows/product/dataflow.toml", include_str!("../../dataflows/product/dataflow.toml")),
    ("dataflows/product/models/schema.yml", include_str!("../../dataflows/product/models/schema.yml")),
    ("dataflows/product/models/sources.yml", include_str!("../../dataflows/product/models/sources.yml")),
    (
        "dataflows/product/models/staging/stg_product.sql",
        include_str!("../../dataflows/product/models/staging/stg_product.sql"),
    ),
];

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Where the API listens; the shop's own listens on the next port.
    #[arg(long, default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// Products at the start.
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub products: u32,
    /// Changes of live traffic.
    #[arg(long, default_value_t = 20.0)]
    pub changes_per_second: f64,
    /// Ends by itself after this time, such as 60s or 5m.
    #[arg(long = "for", value_parser = duration)]
    pub for_: Option<Duration>,
    /// Keeps the index and the embeddings here; a folder of its own under the system's temporary folder otherwise.
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// The same seed makes the same shop.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// A time such as 60s or 5m.
pub fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..split].parse().map_err(|_| format!("{text:?} is no time such as 60s or 5m"))?;
    match &text[split..] {
        "s" | "" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(60 * number)),
        "h" => Ok(Duration::from_secs(3600 * number)),
        unit => Err(format!("{unit:?} is none of s, m, h")),
    }
}

/// Runs the demo until it is told to stop.
pub async fn run(options: Options) -> Outcome {
    let own = std::env::temp_dir().join(format!("freshet-demo-{}", std::process::id()));
    let data = options.data.clone().unwrap_or_else(|| own.clone());
    let done = demo(&options, &data).await;
    if options.data.is_none() {
        // What the demo made for itself goes with it; a folder that cannot be removed is only untidy.
        let _ = std::fs::remove_dir_all(&own);
    }
    done
}

/// Errors of parts that have nothing in common but that the demo cannot go on.
type Outcome = Result<(), Box<dyn std::error::Error + Send + Sync>>;

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
        other => std::env::var(other).ok(),
    };
    Ok(config::load_with(&data.join("dataflows/product"), variables)?)
}

async fn demo(options: &Options, data: &Path) -> Outcome {
    let broker = Broker::start(&[(TOPIC, PARTITIONS)])?;
    let registry = Registry::start().await?;
    let (brokers, url) = (broker.bootstrap_servers(), registry.url());
    println!("broker    {brokers} (inside this process, topic {TOPIC}, {PARTITIONS} partitions)");
    println!("registry  {url}");
    let config = product_dataflow(data, &brokers, &url, options.listen)?;
    let shop = Shop::new(options.seed, options.products as usize, Producer::new(&brokers)?, &registry, CONTRACT)?;
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
    let service = Service::start(config, Arc::new(progress)).await?;
    let address = service.address();
    let shop_address = SocketAddr::new(address.ip(), address.port().wrapping_add(1));
    let shop_server = tokio::net::TcpListener::bind(shop_address)
        .await
        .map_err(|e| format!("the shop cannot listen on {shop_address}: {e}"))?;
    println!("service   http://{address}");
    println!("shop      http://{shop_address}/shop/products/1");
    tokio::spawn(warp::serve(shop_routes(shop.clone())).incoming(shop_server).run());
    let stop = Arc::new(AtomicBool::new(false));
    let trading = Trading {
        shop: shop.clone(),
        read: Box::new(service.read_position()),
        stop: stop.clone(),
        per_second: options.changes_per_second,
    };
    let (live, wrote) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (trading_live, trading_wrote) = (live.clone(), wrote.clone());
    let trader =
        std::thread::Builder::new().name("shop".into()).spawn(move || trading.run(&trading_live, &trading_wrote))?;

    let ended = stop_signal();
    tokio::pin!(ended);
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
            if status.state() == State::Live && rows >= u64::from(options.products) {
                bar.finish_and_clear();
                searchable = true;
                live.store(true, Ordering::SeqCst);
                println!("searchable: {rows} products after {:.0} s. Try", started.elapsed().as_secs_f64());
                println!(
                    "  curl -s http://{address}/v1/search -d '{{\"query\": \"shelter for a rainy night outdoors\", \"k\": 3}}'"
                );
                println!(
                    "  curl -s -X PUT http://{shop_address}/shop/products/1 -d '{{\"description\": \"A singing teapot for astronauts.\"}}'"
                );
                println!(
                    "  curl -s http://{address}/v1/search -d '{{\"query\": \"teapot for astronauts\", \"k\": 1}}'"
                );
            } else if bar.is_hidden() {
                println!(
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
        println!(
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
    println!("stopping");
    stop.store(true, Ordering::SeqCst);
    let failure = service.has_failed().then(|| service.status().state_and_why().1);
    let traded = tokio::task::spawn_blocking(move || trader.join()).await?;
    service.stop().await;
    traded.map_err(|_| "the shop panicked")??;
    failure.map_or(Ok(()), |reason| Err(reason.into()))
}

/// The shop's thread: the snapshot first, then live traffic at its rate, never too far ahead of the service.
struct Trading {
    shop: Arc<Mutex<Shop>>,
    read: Box<dyn Fn() -> Position + Send + Sync>,
    stop: Arc<AtomicBool>,
    per_second: f64,
}

impl Trading {
    fn run(self, live: &AtomicBool, wrote: &AtomicU64) -> Result<(), shop::Error> {
        let ids = self.lock().ids();
        for (n, id) in ids.iter().enumerate() {
            self.wait_for_room();
            if self.stop.load(Ordering::SeqCst) {
                return Ok(());
            }
            self.lock().snapshot(*id, n + 1 == ids.len())?;
        }
        self.lock().flush()?;
        let mut started = Instant::now();
        let (mut due, mut steps) = (0_f64, 0_u64);
        while !self.stop.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
            if !live.load(Ordering::SeqCst) {
                started = Instant::now();
                continue;
            }
            while due < started.elapsed().as_secs_f64() * self.per_second {
                self.wait_for_room();
                let mut shop = self.lock();
                // Ten seconds in, the table gains a column.
                if steps == (self.per_second * 10.0) as u64 {
                    shop.add_column();
                }
                shop.step()?;
                steps += 1;
                due += 1.0;
                wrote.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.lock().flush()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shop> {
        self.shop.lock().expect("no holder of this lock panics")
    }

    fn wait_for_room(&self) {
        while !self.stop.load(Ordering::SeqCst) && self.lock().bytes_ahead(&(self.read)()) > AHEAD_MAX_BYTES {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Edit {
    name: Option<String>,
    description: Option<String>,
    list_price: Option<f64>,
}

/// `GET`, `PUT` and `DELETE /shop/products/{id}`: what a shop's own back office would do to its table.
fn shop_routes(shop: Arc<Mutex<Shop>>) -> impl Filter<Extract = (impl warp::Reply,), Error = warp::Rejection> + Clone {
    warp::method().and(warp::path!("shop" / "products" / i64)).and(warp::body::bytes()).then(
        move |method: warp::http::Method, id, body: bytes::Bytes| {
            let shop = shop.clone();
            async move {
                let answered = tokio::task::spawn_blocking(move || edit(&shop, &method, id, &body)).await;
                let (status, value) =
                    answered.unwrap_or_else(|e| (StatusCode::INTERNAL_SERVER_ERROR, json!({"error": e.to_string()})));
                warp::reply::with_status(warp::reply::json(&value), status)
            }
        },
    )
}

fn edit(shop: &Mutex<Shop>, method: &warp::http::Method, id: i64, body: &[u8]) -> (StatusCode, serde_json::Value) {
    let mut shop = shop.lock().expect("no holder of this lock panics");
    let none = || (StatusCode::NOT_FOUND, json!({"error": format!("there is no product {id}")}));
    let failed = |e: shop::Error| (StatusCode::INTERNAL_SERVER_ERROR, json!({"error": e.to_string()}));
    match method.as_str() {
        "GET" => shop.get(id).map_or_else(none, |p| (StatusCode::OK, json!(p))),
        "DELETE" => match shop.delete(id) {
            Ok(true) => (StatusCode::OK, json!({"deleted": id})),
            Ok(false) => none(),
            Err(e) => failed(e),
        },
        "PUT" => match serde_json::from_slice::<Edit>(body) {
            Ok(edit) => {
                match shop.edit(id, edit.name, edit.description, edit.list_price.map(|p| (p * 100.0).round() as i64)) {
                    Ok(Some(product)) => (StatusCode::OK, json!(product)),
                    Ok(None) => none(),
                    Err(e) => failed(e),
                }
            }
            Err(e) => (StatusCode::BAD_REQUEST, json!({"error": e.to_string()})),
        },
        other => (StatusCode::METHOD_NOT_ALLOWED, json!({"error": format!("{other} is none of GET, PUT, DELETE")})),
    }
}
