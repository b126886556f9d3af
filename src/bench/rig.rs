//! The rig: a broker, a registry, a shop, and the service between them and a client, all over real sockets.
//!
//! The invariant: the service is the one that runs in production; only its embedder may be another.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use futures::FutureExt;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::{Error, Scratch, words};
use crate::config::Config;
use crate::demo::{self, Shop, TOPICS};
use crate::embed::TextEmbedder;
use crate::engine::Service;
use crate::serve::State;
use crate::source::embedded::{Broker, Producer, Registry, Subjects};
use crate::time::{Offset, Partition, Position};

/// How far the shop may write ahead of the service: a broker of this process keeps 5 MiB a partition.
const AHEAD_MAX_BYTES: usize = 1 << 20;
/// The same where the broker keeps everything: memory's bound alone.
const GIVEN_AHEAD_MAX_BYTES: usize = 64 << 20;
/// How long the service may take to show what was written last.
pub(super) const SETTLE: Duration = Duration::from_secs(60);
/// One change in so many is of a product's text, the others of its price.
pub(super) const TEXT_EVERY: usize = 10;

pub(super) struct Rig {
    pub config: Config,
    pub service: Service,
    pub client: Client,
    shop: Arc<Mutex<Shop>>,
    read: Arc<dyn Fn() -> Position + Send + Sync>,
    ahead_max_bytes: usize,
    _peers: Peers,
}

/// The broker and the registry between shop and service.
pub(super) enum Peers {
    /// Of this process.
    Own(Broker, Registry),
    /// Of somebody else; the broker has the shop's topics, and nothing in them.
    Given { brokers: String, registry: String },
}

impl Peers {
    pub async fn own() -> Result<Peers, Error> {
        Ok(Peers::Own(Broker::start(&TOPICS)?, Registry::start().await?))
    }

    fn addresses(&self) -> (String, String) {
        match self {
            Peers::Own(broker, registry) => (broker.bootstrap_servers(), registry.url()),
            Peers::Given { brokers, registry } => (brokers.clone(), registry.clone()),
        }
    }
}

impl Subjects for Peers {
    fn id(&self, subject: &str, schema: &str) -> Result<u32, String> {
        let url = match self {
            Peers::Own(_, registry) => return registry.id(subject, schema),
            Peers::Given { registry, .. } => format!("{}/subjects/{subject}/versions", registry.trim_end_matches('/')),
        };
        let ask = async {
            let request = reqwest::Client::builder().no_proxy().build()?.post(&url).json(&json!({"schema": schema}));
            request.send().await?.error_for_status()?.json::<Value>().await
        };
        let answer = tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(ask));
        let answer = answer.map_err(|e| e.to_string())?;
        let id = answer["id"].as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| format!("{url} gave no id: {answer}"))
    }
}

impl Rig {
    /// Starts everything, and waits until the snapshot of `products` is searchable.
    pub async fn start(
        scratch: &Scratch,
        seed: u64,
        products: usize,
        peers: Peers,
        embedder: impl FnOnce(&Config) -> Result<Arc<dyn TextEmbedder>, Error>,
    ) -> Result<Rig, Error> {
        let (brokers, registry) = peers.addresses();
        let listen = (std::net::Ipv4Addr::LOCALHOST, 0).into();
        let config = demo::product_dataflow(scratch.path(), &brokers, &registry, listen)?;
        let shop = Shop::new(seed, products, Producer::new(&brokers)?, &peers)?;
        let embedder = embedder(&config)?;
        let service = Service::start_with(config.clone(), async { Ok(embedder) }.boxed(), Arc::new(|_| ())).await?;
        let read: Arc<dyn Fn() -> Position + Send + Sync> = Arc::new(service.read_position());
        let client = Client::new(service.address())?;
        let shop = Arc::new(Mutex::new(shop));
        let ahead_max_bytes = match peers {
            Peers::Own(..) => AHEAD_MAX_BYTES,
            Peers::Given { .. } => GIVEN_AHEAD_MAX_BYTES,
        };
        let rig = Rig { config, service, client, shop, read, ahead_max_bytes, _peers: peers };
        let (shop, read) = (rig.shop.clone(), rig.read.clone());
        let given_up = Arc::new(AtomicBool::new(false));
        let _give_up = Raised(given_up.clone());
        let writing = tokio::task::spawn_blocking(move || -> Result<(), demo::ShopError> {
            let ids = locked(&shop).ids();
            for (n, id) in ids.iter().enumerate() {
                while locked(&shop).bytes_ahead(&read()) > ahead_max_bytes {
                    if given_up.load(Ordering::SeqCst) {
                        return Ok(());
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
                locked(&shop).snapshot(*id, n + 1 == ids.len())?;
            }
            locked(&shop).flush()
        });
        let mut said = Instant::now();
        while !writing.is_finished() || !rig.is_settled() {
            rig.check_service()?;
            if said.elapsed() > Duration::from_secs(5) {
                tell!("{} of {products} products are searchable", rig.service.status().metrics().index_rows.get());
                said = Instant::now();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        writing.await??;
        Ok(rig)
    }

    /// Ends the service in order and starts it again; says how long the new one took.
    pub async fn restarted(self, embedder: Arc<dyn TextEmbedder>) -> Result<(Rig, Restart), Error> {
        let Rig { mut config, service, shop, ahead_max_bytes, _peers, .. } = self;
        config.serve.listen = service.address();
        service.stop().await;
        let started = Instant::now();
        let client = Client::new(config.serve.listen)?;
        let (asking, body) = (client.clone(), Client::body(&embedder.embed_query("anything")?, 1, None));
        let searching = tokio::spawn(async move {
            while asking.search(body.clone()).await.is_err() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            started.elapsed()
        });
        let service = Service::start_with(config.clone(), async { Ok(embedder) }.boxed(), Arc::new(|_| ())).await?;
        let read: Arc<dyn Fn() -> Position + Send + Sync> = Arc::new(service.read_position());
        let rig = Rig { config, service, client, shop, read, ahead_max_bytes, _peers };
        let mut restart = Restart::default();
        while !rig.is_settled() {
            rig.check_service()?;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        restart.caught_up = started.elapsed();
        restart.searchable = searching.await?;
        let m = rig.service.status().metrics();
        (restart.asked, restart.computed) = (m.embeds_asked.get(), m.embeds_computed.get());
        Ok((rig, restart))
    }

    /// Changes so many products, one after the other, in what neither a text nor the number of rows follows from.
    pub async fn restock(&self, changes: usize) -> Result<(), Error> {
        let (shop, read, ahead_max_bytes) = (self.shop.clone(), self.read.clone(), self.ahead_max_bytes);
        let given_up = Arc::new(AtomicBool::new(false));
        let _give_up = Raised(given_up.clone());
        let working = tokio::task::spawn_blocking(move || -> Result<(), demo::ShopError> {
            let ids = locked(&shop).ids();
            for id in ids.iter().cycle().take(changes) {
                while locked(&shop).bytes_ahead(&read()) > ahead_max_bytes && !given_up.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(2));
                }
                locked(&shop).restock(*id)?;
            }
            locked(&shop).flush()
        });
        while !working.is_finished() {
            self.check_service()?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        working.await??;
        self.settle(SETTLE).await
    }

    pub fn shop(&self) -> MutexGuard<'_, Shop> {
        locked(&self.shop)
    }

    /// Whether searches see all that the shop has written.
    fn is_settled(&self) -> bool {
        let status = self.service.status();
        status.state() == State::Live && status.position().covers(&self.shop().written())
    }

    /// Waits until searches see all that the shop has written.
    pub async fn settle(&self, patience: Duration) -> Result<(), Error> {
        let started = Instant::now();
        while !self.is_settled() {
            self.check_service()?;
            if started.elapsed() > patience {
                return Err(format!("what was written last is not searchable after {} s", patience.as_secs()).into());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    fn check_service(&self) -> Result<(), Error> {
        match self.service.status().state_and_why() {
            (State::Failed, why) => Err(why.into()),
            _ => Ok(()),
        }
    }

    /// Lets the shop make these changes at a steady rate until all are made or the answer is dropped; `heard` is told of each.
    pub fn trade(&self, changes: Vec<Planned>, per_second: f64, heard: impl Fn(Change) + Send + 'static) -> Trade {
        let (shop, read, ahead_max_bytes) = (self.shop.clone(), self.read.clone(), self.ahead_max_bytes);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = tokio::task::spawn_blocking(move || {
            let started = Instant::now();
            for (n, planned) in changes.into_iter().enumerate() {
                let due = started + Duration::from_secs_f64(n as f64 / per_second);
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                while !stopped.load(Ordering::SeqCst) && locked(&shop).bytes_ahead(&read()) > ahead_max_bytes {
                    std::thread::sleep(Duration::from_millis(1));
                }
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                let committed = Instant::now();
                let mut shop = locked(&shop);
                let before = shop.written();
                planned.make(&mut shop)?;
                let after = shop.written();
                drop(shop);
                let moved = after.iter().find(|(p, end)| before.get(p) != Some(*end));
                let (partition, end) = moved.ok_or("a product that is not there was changed")?;
                heard(Change { planned, partition: partition.clone(), end, committed });
            }
            locked(&shop).flush()?;
            Ok(started.elapsed())
        });
        Trade { thread, stop: Raised(stop) }
    }

    /// Makes these changes as fast as it goes, and waits until searches see them. Says how long the shop wrote, and how long all of it took.
    pub async fn burst(&self, changes: Vec<Planned>, patience: Duration) -> Result<(Duration, Duration), Error> {
        let (shop, read, ahead_max_bytes) = (self.shop.clone(), self.read.clone(), self.ahead_max_bytes);
        let started = Instant::now();
        let writing = tokio::task::spawn_blocking(move || -> Result<Duration, demo::ShopError> {
            for (n, planned) in changes.into_iter().enumerate() {
                // Looked at now and then: counting what is ahead costs more than a change.
                while n % 1000 == 0 && locked(&shop).bytes_ahead(&read()) > ahead_max_bytes {
                    std::thread::sleep(Duration::from_millis(1));
                }
                planned.make(&mut locked(&shop))?;
            }
            locked(&shop).flush()?;
            Ok(started.elapsed())
        });
        let wrote = writing.await??;
        self.settle(patience).await?;
        Ok((wrote, started.elapsed()))
    }

    /// A seeded run of changes. Products take turns, so that one that was changed is left alone for as long as possible.
    pub fn plan(&self, seed: u64, count: usize) -> Vec<Planned> {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut ids = self.shop().ids();
        ids.shuffle(&mut rng);
        let turn = ids.into_iter().cycle().take(count);
        turn.enumerate()
            .map(|(n, id)| {
                let what = match n % TEXT_EVERY {
                    0 => What::Text(words::sentence(&mut rng, n)),
                    _ => What::Price(rng.random_range(299..49_999)),
                };
                Planned { id, what }
            })
            .collect()
    }

    /// Ends the service in order.
    pub async fn stop(self) {
        self.service.stop().await;
    }
}

fn locked(shop: &Mutex<Shop>) -> MutexGuard<'_, Shop> {
    shop.lock().expect("no holder of this lock panics")
}

/// A flag that goes up when this goes.
struct Raised(Arc<AtomicBool>);

impl Drop for Raised {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// What a start came to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Restart {
    /// Until the first search was answered.
    pub searchable: Duration,
    /// Until searches saw everything.
    pub caught_up: Duration,
    /// Texts whose vectors were asked for, and those that were computed.
    pub asked: u64,
    pub computed: u64,
}

/// What is to happen to a product.
#[derive(Clone, Debug)]
pub(super) struct Planned {
    pub id: i64,
    pub what: What,
}

impl Planned {
    fn make(&self, shop: &mut Shop) -> Result<(), demo::ShopError> {
        match &self.what {
            What::Text(text) => shop.alter(self.id, None, Some(text.clone()), None),
            What::Price(cents) => shop.alter(self.id, None, None, Some(*cents)),
        }
    }
}

#[derive(Clone, Debug)]
pub(super) enum What {
    /// A new description.
    Text(String),
    /// A new price in hundredths.
    Price(i64),
}

impl What {
    /// Whether a row of the view shows it.
    pub fn is_in(&self, row: &Value) -> bool {
        match self {
            What::Text(text) => row["description"] == **text,
            What::Price(cents) => cents_of(row) == Some(*cents),
        }
    }
}

/// The price of a row of the view, in hundredths.
pub(super) fn cents_of(row: &Value) -> Option<i64> {
    row["list_price"].as_f64().map(|price| (price * 100.0).round() as i64)
}

/// A change that was made.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub planned: Planned,
    pub partition: Partition,
    /// What a position has to have reached to cover it.
    pub end: Offset,
    /// Just before the shop wrote it.
    pub committed: Instant,
}

impl Change {
    pub fn is_covered_by(&self, position: &Position) -> bool {
        position.get(&self.partition).is_some_and(|reached| reached >= self.end)
    }
}

/// A shop that is trading. Dropping it stops it.
pub(super) struct Trade {
    thread: tokio::task::JoinHandle<Result<Duration, Error>>,
    stop: Raised,
}

impl Trade {
    /// Waits until every change is made, and says how long that took.
    pub async fn done(self) -> Result<Duration, Error> {
        self.thread.await?
    }

    /// Makes no more changes.
    pub async fn stop(self) -> Result<(), Error> {
        let Trade { thread, stop } = self;
        drop(stop);
        thread.await?.map(drop)
    }
}

/// What a client of the API sees.
#[derive(Clone)]
pub(super) struct Client {
    http: reqwest::Client,
    base: String,
}

impl Client {
    fn new(service: SocketAddr) -> Result<Client, Error> {
        let http = reqwest::Client::builder().no_proxy().tcp_nodelay(true).build()?;
        Ok(Client { http, base: format!("http://{service}") })
    }

    /// The body of a search near a vector, made beforehand so that it is not part of what is measured.
    pub fn body(vector: &[f32], k: usize, columns: Option<&[&str]>) -> String {
        match columns {
            Some(columns) => json!({"vector": vector, "k": k, "columns": columns}).to_string(),
            None => json!({"vector": vector, "k": k}).to_string(),
        }
    }

    /// The answer to a search, as it came.
    pub async fn search(&self, body: String) -> Result<bytes::Bytes, Error> {
        let answer = self.http.post(format!("{}/v1/search", self.base)).body(body).send().await?;
        let (status, bytes) = (answer.status(), answer.bytes().await?);
        match status.is_success() {
            true => Ok(bytes),
            false => Err(format!("a search was answered {status}: {}", String::from_utf8_lossy(&bytes)).into()),
        }
    }

    /// A row of the view with the position that it is of; the row is null when there is none.
    pub async fn item(&self, id: i64) -> Result<(Value, Option<Position>), Error> {
        let answer = self.http.get(format!("{}/v1/items/{id}", self.base)).send().await?;
        if answer.status().as_u16() == 404 {
            return Ok((Value::Null, None));
        }
        let mut item: Value = answer.error_for_status()?.json().await?;
        Ok((item["row"].take(), Some(serde_json::from_value(item["position"].take())?)))
    }
}
