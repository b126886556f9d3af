//! The process: the engine's own parts, put together as the engine does, a step at a time and without its threads. A crash drops it.
//!
//! The invariant: nothing here does what the engine's parts are there to do; it only says which of them is next, and carries what comes out of one
//! to the other, as the engine's queues do.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use tokio::runtime::Runtime;

use super::Error;
use super::dataflow::Dataflow;
use super::embedder::{self, DIMENSION, Drawn};
use super::index::{Kept, Seamed};
use super::schemas::Schemas;
use super::source::Topics;
use super::world::{Dead, Shared, lock};
use crate::dataflow;
use crate::decode::{Decoded, SchemaStore};
use crate::embed::EmbeddingStore;
use crate::engine::{Driver, Follower, Opening, Pending, Reader, Trouble};
use crate::index::{Announced, Indexer, row_hash};
use crate::raw::{Faulty, Hydration, Lander, RawTable, Storage};
use crate::serve::{Metrics, Status};
use crate::source::MessageBatch;
use crate::time::{Partition, Position};
use crate::validate::Quarantine;

/// Batches that wait for the driver, or for the lander.
const QUEUE_MAX: usize = 4;
/// Most keys of an index commit.
const COMMIT_MAX_KEYS: usize = 4;

/// What a process does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    Start,
    /// Reads what has landed, and then begins to read the topics.
    Hydrate,
    Poll,
    /// Makes rows of a batch that was read, for a raw table.
    Land,
    RawCommit,
    Upkeep,
    Vacuum,
    Snapshot,
    Epoch,
    /// Brings the index on: reconciles it, announces, commits, publishes.
    Index,
    Maintain,
}

impl Step {
    /// What a process does over and over, and how often beside the others that there is something to do for.
    pub const WEIGHTS: [(Step, u32); 10] = [
        (Step::Hydrate, 25),
        (Step::Poll, 20),
        (Step::Land, 15),
        (Step::RawCommit, 8),
        (Step::Upkeep, 3),
        (Step::Vacuum, 1),
        (Step::Snapshot, 3),
        (Step::Epoch, 20),
        (Step::Index, 25),
        (Step::Maintain, 1),
    ];
    /// What has to be done to catch up.
    pub const NEEDED: [Step; 6] = [Step::Hydrate, Step::Poll, Step::Land, Step::RawCommit, Step::Epoch, Step::Index];
}

pub static TIMES: std::sync::Mutex<std::collections::BTreeMap<Step, (u64, f64)>> = std::sync::Mutex::new(std::collections::BTreeMap::new());

/// Why a process is no more.
#[derive(Debug)]
pub enum End {
    Died,
    /// It ended by itself.
    Ended(String),
}

impl From<Dead> for End {
    fn from(_: Dead) -> End {
        End::Died
    }
}

/// Where a process finds what its predecessors have left.
pub struct Place<'a> {
    pub dataflow: &'a Dataflow,
    pub folder: &'a Path,
    pub objects: &'a Faulty,
    pub index: &'a Kept,
}

impl Place<'_> {
    pub fn storage(&self) -> Storage {
        Storage::within(Arc::new(self.objects.clone()))
    }

    pub fn quarantine(&self) -> Result<Quarantine, Error> {
        Ok(Quarantine::open(&self.quarantine_file())?)
    }

    pub fn quarantine_file(&self) -> PathBuf {
        self.folder.join("quarantine.jsonl")
    }

    pub fn embeddings(&self) -> Result<EmbeddingStore, Error> {
        Ok(EmbeddingStore::open(&self.folder.join("embeddings"), &embedder::model(), DIMENSION)?)
    }

    /// The embedding store's file.
    pub fn embeddings_file(&self) -> PathBuf {
        self.folder.join("embeddings/drawn.embeddings")
    }
}

pub struct Process<'a> {
    place: &'a Place<'a>,
    world: Shared,
    storage: Storage,
    schemas: Arc<dyn SchemaStore>,
    status: Arc<Status>,
    announced: Announced,
    reader: Reader<Topics>,
    driver: Driver,
    follower: Follower<Seamed>,
    phase: Phase,
    /// Read and not decoded: the decoder could not be asked, or the queues are full.
    polled: Option<Arc<MessageBatch>>,
    /// From the reader to the driver.
    decoded: VecDeque<Decoded>,
    /// From the reader to the lander.
    offered: VecDeque<Arc<MessageBatch>>,
    pending: Pending,
    /// Whether something was announced that is not published.
    is_announced: bool,
    /// Last, so that nothing outlives it that it drives.
    runtime: Runtime,
}

enum Phase {
    /// Reading what has landed of table `at`.
    Hydrating { tables: Vec<RawTable>, at: usize, hydration: Option<Box<Hydration>> },
    Following { lander: Lander, has_rows: Vec<bool>, target: Position, follows: bool },
}

impl<'a> Process<'a> {
    pub fn start(place: &'a Place<'a>, world: &Shared) -> Result<Process<'a>, End> {
        let t0 = std::time::Instant::now();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| End::Ended(e.to_string()))?;
        let ended = |e: &dyn std::fmt::Display| end(world, e.to_string());
        let Dataflow { config, plan, row_types } = place.dataflow;
        let status = Arc::new(Status::new(Arc::new(Metrics::new())));
        let schemas: Arc<dyn SchemaStore> = Arc::new(Schemas::new(world.clone()));
        let index = runtime.block_on(place.index.open(place.dataflow, world)).map_err(|e| ended(&e))?;
        let embedder = Arc::new(Drawn::new(world.clone(), place.embeddings_file()));
        let embeddings = place.embeddings().map_err(|e| ended(&e))?;
        let indexer = runtime.block_on(Indexer::new(index, embeddings, embedder)).map_err(|e| ended(&e))?;
        let announced = crate::index::IndexStore::announced(indexer.table()).cloned().unwrap_or_default();
        status.set_committed(announced.reached.epoch, &announced.reached.position);
        let handle = dataflow::Engine::start(plan.clone(), row_types.clone(), 1).map_err(|e| ended(&e))?;
        let quarantine = place.quarantine().map_err(|e| ended(&e))?;
        let driver = Driver::new(handle, quarantine, status.clone(), Vec::new(), announced.epoch);
        let follower = Follower::new(indexer, status.clone(), Arc::new(|_| ()));
        let reader = Reader::new(config, row_types, &schemas, Topics::new(world.clone())).map_err(|e| ended(&e))?;
        TIMES.lock().unwrap().entry(Step::Start).or_insert((0, 0.0)).1 += t0.elapsed().as_secs_f64() * 1000.0;
        TIMES.lock().unwrap().entry(Step::Start).or_insert((0, 0.0)).0 += 1;
        let (polled, decoded, offered, pending) = Default::default();
        let phase = Phase::Hydrating { tables: Vec::new(), at: 0, hydration: None };
        Ok(Process {
            place,
            world: world.clone(),
            storage: place.storage(),
            schemas,
            status,
            announced,
            reader,
            driver,
            follower,
            phase,
            polled,
            decoded,
            offered,
            pending,
            is_announced: false,
            runtime,
        })
    }

    /// Does a step, if there is something to do. Says whether there was; what fails in passing is left for the next time.
    pub fn step(&mut self, step: Step) -> Result<bool, End> {
        if !self.can(step) {
            return Ok(false);
        }
        lock(&self.world).begin(step)?;
        let t0 = std::time::Instant::now();
        let done = match step {
            Step::Start => Ok(()),
            Step::Hydrate => self.hydrate(),
            Step::Poll => self.poll(),
            Step::Land => self.land(),
            Step::RawCommit => self.raw_commit(),
            Step::Upkeep | Step::Vacuum | Step::Snapshot => self.upkeep(step),
            Step::Epoch => self.epoch(),
            Step::Index => self.index(),
            Step::Maintain => {
                let maintained = self.runtime.block_on(self.follower.maintain(true));
                maintained.map(drop).map_err(|e| lasting(e.to_string()))
            }
        };
        TIMES.lock().unwrap().entry(step).or_insert((0, 0.0)).1 += t0.elapsed().as_secs_f64() * 1000.0;
        TIMES.lock().unwrap().entry(step).or_insert((0, 0.0)).0 += 1;
        let mut world = lock(&self.world);
        *world.counts.steps.entry(step).or_default() += 1;
        match done {
            _ if world.is_dead() => Err(End::Died),
            Ok(()) => {
                world.note(format!("  {step:?}"));
                Ok(true)
            }
            Err(trouble) if trouble.passing => {
                world.note(format!("  {step:?} fails: {}", trouble.reason));
                Ok(true)
            }
            Err(trouble) => Err(End::Ended(trouble.reason)),
        }
    }

    /// Whether there is something to do for a step.
    pub fn can(&self, step: Step) -> bool {
        let is_hydrating = matches!(self.phase, Phase::Hydrating { .. });
        let following = match &self.phase {
            Phase::Hydrating { .. } => None,
            Phase::Following { has_rows, target, follows, .. } => Some((has_rows, target, *follows)),
        };
        match step {
            Step::Start => false,
            Step::Hydrate => is_hydrating && self.decoded.len() < QUEUE_MAX,
            Step::Poll => !is_hydrating && self.decoded.len() < QUEUE_MAX && self.offered.len() < QUEUE_MAX,
            Step::Land => !is_hydrating && !self.offered.is_empty(),
            Step::RawCommit => following.is_some_and(|(has_rows, ..)| has_rows.contains(&true)),
            Step::Upkeep | Step::Vacuum | Step::Snapshot => !is_hydrating,
            Step::Epoch => !self.decoded.is_empty(),
            Step::Index => match following {
                Some((_, target, false)) => self.pending.position().covers(target),
                Some((_, _, true)) => self.is_announced || self.pending.epoch() > self.status.epoch(),
                None => false,
            },
            Step::Maintain => following.is_some_and(|(_, _, follows)| follows),
        }
    }

    /// How far a partition has landed, as far as this process knows.
    pub fn landed(&self, partition: &Partition) -> i64 {
        let of = |table: &RawTable| table.landed().get(partition);
        let landed = match &self.phase {
            Phase::Hydrating { tables, .. } => tables.iter().find_map(of),
            Phase::Following { lander, .. } => lander.tables().find_map(of),
        };
        landed.unwrap_or_default().0
    }

    /// Whether everything was read, landed, committed and shown, and the next steps would find nothing to do.
    pub fn is_caught_up(&self) -> bool {
        let end = lock(&self.world).shop.end();
        let idle = self.polled.is_none() && self.decoded.is_empty() && self.offered.is_empty();
        let steps = [Step::Hydrate, Step::RawCommit, Step::Index];
        idle && !steps.into_iter().any(|step| self.can(step)) && self.status.position().covers(&end)
    }

    fn hydrate(&mut self) -> Result<(), Trouble> {
        let Process { place, storage, schemas, phase, runtime, .. } = self;
        let Dataflow { config, row_types, .. } = place.dataflow;
        let opening = Opening { config, raw: place.dataflow.raw(), storage, row_types, schemas };
        let Phase::Hydrating { tables, at, hydration } = phase else { return Ok(()) };
        let sources = config.sources.len();
        if tables.len() < sources {
            tables.push(runtime.block_on(opening.table(tables.len()))?);
        } else if let Some(open) = hydration {
            match runtime.block_on(open.next())? {
                Some(decoded) => self.decoded.push_back(decoded),
                None => (*at, *hydration) = (*at + 1, None),
            }
        } else if *at < sources {
            *hydration = Some(Box::new(runtime.block_on(opening.hydration(*at, &tables[*at]))?));
        } else {
            let mut landed = Position::default();
            tables.iter().for_each(|table| landed.join(table.landed()));
            let target = self.reader.begin(&self.announced.position, Some(&landed))?;
            self.decoded.extend(self.reader.begun());
            let lander = opening.lander(std::mem::take(tables));
            *phase = Phase::Following { lander, has_rows: vec![false; sources], target, follows: false };
        }
        Ok(())
    }

    fn poll(&mut self) -> Result<(), Trouble> {
        if self.polled.is_none() {
            let Some(batch) = self.reader.poll(Duration::ZERO)?.map(Arc::new) else { return Ok(()) };
            self.offered.push_back(batch.clone());
            self.polled = Some(batch);
        }
        if let Some(batch) = &self.polled {
            self.decoded.push_back(self.runtime.block_on(self.reader.decode(batch))?);
            self.polled = None;
        }
        Ok(())
    }

    fn land(&mut self) -> Result<(), Trouble> {
        let Phase::Following { lander, has_rows, .. } = &mut self.phase else { return Ok(()) };
        let Some(batch) = self.offered.front() else { return Ok(()) };
        if let Some(n) = lander.table_of(batch) {
            self.runtime.block_on(lander.push(n, batch))?;
            has_rows[n] = true;
        }
        self.offered.pop_front();
        Ok(())
    }

    fn raw_commit(&mut self) -> Result<(), Trouble> {
        let Phase::Following { lander, has_rows, .. } = &mut self.phase else { return Ok(()) };
        let some: Vec<usize> = (0..has_rows.len()).filter(|n| has_rows[*n]).collect();
        let n = some[lock(&self.world).rng.random_range(0..some.len())];
        self.runtime.block_on(lander.commit(n))?;
        has_rows[n] = false;
        Ok(())
    }

    fn upkeep(&mut self, step: Step) -> Result<(), Trouble> {
        let Phase::Following { lander, has_rows, .. } = &mut self.phase else { return Ok(()) };
        let n = lock(&self.world).rng.random_range(0..has_rows.len());
        match step {
            Step::Upkeep => self.runtime.block_on(lander.upkeep(n))?,
            Step::Vacuum => {
                wait_for_the_clock();
                self.runtime.block_on(lander.vacuum(n))?;
            }
            _ => {
                if let Some(place) = self.runtime.block_on(lander.snapshot(n))? {
                    // Without it a start reads more; nothing else depends on it.
                    if let Err(e) = self.runtime.block_on(place.take()) {
                        lock(&self.world).note(format!("    no snapshot: {e}"));
                    }
                }
            }
        }
        Ok(())
    }

    fn epoch(&mut self) -> Result<(), Trouble> {
        let count = lock(&self.world).rng.random_range(1..=self.decoded.len());
        let folded = self.driver.epoch(self.decoded.drain(..count).collect()).map_err(lasting)?;
        let rows: Vec<&[u8]> = folded.changes.iter().filter_map(|change| change.row.as_deref()).collect();
        let mut world = lock(&self.world);
        for (row, shown) in rows.iter().zip(self.place.dataflow.shown(rows.iter().copied())) {
            world.watch.row(row_hash(row), shown);
        }
        self.pending.fold(folded);
        Ok(())
    }

    fn index(&mut self) -> Result<(), Trouble> {
        let Phase::Following { follows, .. } = &mut self.phase else { return Ok(()) };
        let done = if !*follows {
            *follows = true;
            self.runtime.block_on(self.follower.reconcile(&self.pending.keys()))
        } else if !self.is_announced {
            self.is_announced = true;
            self.runtime.block_on(self.follower.begin(self.pending.take()))
        } else if self.follower.keys_left() > 0 {
            let keys = lock(&self.world).rng.random_range(1..=COMMIT_MAX_KEYS);
            self.runtime.block_on(self.follower.commit(keys))
        } else {
            self.is_announced = false;
            self.runtime.block_on(self.follower.publish())
        };
        done.map_err(|e| lasting(e.to_string()))
    }
}

fn lasting(reason: String) -> Trouble {
    Trouble { passing: false, reason }
}

fn end(world: &Shared, reason: String) -> End {
    match lock(world).is_dead() {
        true => End::Died,
        false => End::Ended(reason),
    }
}

/// Ages are milliseconds: what was written in this one is not old yet.
fn wait_for_the_clock() {
    let now = chrono::Utc::now().timestamp_millis();
    while chrono::Utc::now().timestamp_millis() == now {
        std::thread::yield_now();
    }
}
