//! A schedule: what happens to the shop and to the processes that follow it, one life after the other, all drawn from one seed.
//!
//! The invariant: the same seed is the same schedule, on any machine. At its end everything is left alone until it has caught up, and is checked;
//! then one more process may start, and finds nothing to do.

use std::cell::Cell;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::{FutureExt, TryStreamExt};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use tokio::runtime::Handle;

use super::check;
use super::dataflow::{Dataflow, Shown};
use super::embedder::Drawn;
use super::index::Database;
use super::schemas::Schemas;
use super::source::Topics;
use super::turns::Turns;
use super::world::{Counts, Shared, World, lock};
use crate::decode::SchemaStore;
use crate::engine::{Engine, Peers};
use crate::index::IndexSearcher;
use crate::serve::{Metrics, State, Status};
use crate::source::Source;
use crate::storage::Named;
use crate::storage::faulty::Faulty;
use crate::thread;
use crate::time::Position;

/// Most seams before the one that a process dies at, and how often the world turns in a life, at most.
const FUSE_MAX: usize = 70;
const TURNS_MAX: usize = 40;
/// From one turn of the world to the next, at most.
const TURN: Duration = Duration::from_millis(100);
/// In which any process catches up that is left alone, and the waits of the simulation until then.
const PATIENCE: Duration = Duration::from_secs(600);
/// Nothing happens for so long, now and then: what is done once an hour is due.
const AN_HOUR: Duration = Duration::from_secs(3600);
/// How often a schedule is a long one, by its lives and by commits in each: the log of a table is checkpointed every 50.
const LONG: f64 = 0.02;
/// How often something gets lost before a process starts.
const LOSS: f64 = 0.05;

pub struct Schedule {
    seed: u64,
    dataflow: Dataflow,
    folder: PathBuf,
    world: Shared,
    turns: Arc<Turns>,
    objects: Faulty,
    database: Database,
    runtime: Handle,
    is_long: bool,
    /// The embedding store has lost what the index has, and no process has begun since, which would give it back.
    lacks: Cell<bool>,
    _named: Named,
}

/// What a schedule that went well came to.
#[derive(Debug, Default)]
pub struct Passed {
    pub counts: Counts,
    pub lives: u64,
    pub checks: u64,
    pub answers: u64,
    pub events: u64,
    pub rows_compared: u64,
}

/// The first thing that was wrong, and what had happened until then.
#[derive(Debug)]
pub struct Failed {
    pub seed: u64,
    pub what: String,
    pub trace: Vec<String>,
}

impl Failed {
    /// What was wrong, how to see it again, and the last lines of what had happened.
    pub fn told(&self, lines: usize) -> String {
        let Failed { seed, what, trace } = self;
        let last = &trace[trace.len().saturating_sub(lines)..];
        format!("seed {seed}: {what}\nfreshet bench sim --seeds 1 --first-seed {seed}\n{}", last.join("\n"))
    }
}

/// How a process is to live.
struct Life {
    /// Seams before the one that it dies at.
    fuse: Option<usize>,
    /// How often something fails in passing.
    troubles: f64,
    turns: usize,
    end: End,
}

/// What becomes of a process that has not died until then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Killed,
    /// It is told to stop, and ends in order.
    Stopped,
    /// It is left alone until it has caught up, is told to stop, and what it leaves is checked.
    Settled,
}

impl Schedule {
    /// `folder` is the schedule's own.
    pub fn new(seed: u64, dataflow: &Dataflow, folder: PathBuf, runtime: Handle) -> Schedule {
        let turns = Turns::new(seed);
        let world: Shared = Arc::new(Mutex::new(World::new(seed)));
        let judging = world.clone();
        let objects = Faulty::new(move |call| lock(&judging).judge(call));
        let place =
            folder.to_string_lossy().replace(|c: char| !c.is_ascii_alphanumeric(), "-").trim_matches('-').to_string();
        let named = Named::new(place.clone(), Arc::new(objects.clone()));
        let mut dataflow = dataflow.clone();
        let rng = &mut lock(&world).rng;
        let config = &mut dataflow.config;
        let raw = config.raw.as_mut().expect("the shop has [raw]");
        raw.uri = format!("memory://{place}/raw");
        let is_long = rng.random_bool(LONG);
        raw.commit_max_age_ms = if is_long { 1 } else { rng.random_range(10..=1000) };
        raw.queue_max_bytes = rng.random_range(200..=20_000);
        raw.compact_min_files = rng.random_range(2..=6);
        raw.snapshot_min_events = rng.random_range(5..=30);
        raw.versions_max_age_s = if rng.random() { 0 } else { 3600 };
        config.kafka.queue_max_bytes = rng.random_range(200..=20_000);
        config.engine.workers = 1;
        config.engine.decoded_max_batches = rng.random_range(1..=4);
        config.engine.epoch_max_events = rng.random_range(1..=40);
        config.engine.pending_max_keys = rng.random_range(1..=20);
        config.index.uri = format!("memory://{place}/index");
        config.index.commit_max_keys = rng.random_range(1..=6);
        config.embed.store = folder.join("embeddings");
        let database = Database::new(world.clone());
        Schedule {
            seed,
            dataflow,
            folder,
            world: world.clone(),
            turns,
            objects,
            database,
            runtime,
            is_long,
            lacks: Cell::new(false),
            _named: named,
        }
    }

    pub fn run(&self) -> Result<Passed, Failed> {
        let mut passed = Passed::default();
        let turns: Arc<dyn thread::Turns> = self.turns.clone();
        let lived = thread::simulate(&turns, "world", || self.live(&mut passed));
        lived.map_err(|what| self.failed(what))?;
        let world = lock(&self.world);
        passed.counts = world.counts.clone();
        passed.answers = world.watch.answers;
        passed.events = world.shop.events as u64;
        Ok(passed)
    }

    /// The world may have been left by a panic.
    pub fn failed(&self, what: String) -> Failed {
        let world = self.world.lock().unwrap_or_else(PoisonError::into_inner);
        Failed { seed: self.seed, what, trace: world.trace.clone() }
    }

    fn live(&self, passed: &mut Passed) -> Result<(), String> {
        for _ in 0..3 {
            self.turn(None);
        }
        let mut may_lose = true;
        let lives = match self.is_long {
            true => self.draw(|rng| rng.random_range(4..=8)),
            false => self.draw(|rng| rng.random_range(1..=3)),
        };
        for _ in 0..lives {
            let life = self.draw(|rng| Life {
                fuse: rng.random_bool(0.8).then(|| rng.random_range(0..FUSE_MAX)),
                troubles: if rng.random() { 0.0 } else { rng.random_range(0.01..0.15) },
                turns: rng.random_range(0..if self.is_long { 4 * TURNS_MAX } else { TURNS_MAX }),
                end: *[End::Killed, End::Killed, End::Stopped, End::Stopped, End::Settled]
                    .choose(rng)
                    .expect("not empty"),
            });
            self.life(passed, &life)?;
            // Of two things that are lost, one may be what the other would be made of.
            if may_lose && self.draw(|rng| rng.random_bool(LOSS)) {
                self.lose()?;
                may_lose = false;
            }
        }
        let quiet = |turns| Life { fuse: None, troubles: 0.0, turns, end: End::Settled };
        while !self.life(passed, &quiet(TURNS_MAX / 2))? {}
        self.runtime.block_on(self.leavings().offsets())?;
        self.runtime.block_on(self.leavings().quarantine())?;
        if self.draw(|rng| rng.random_bool(0.7)) {
            return Ok(());
        }
        // Once more, and nothing is left to do.
        let written = || {
            let counts = &lock(&self.world).counts;
            (counts.texts_embedded, counts.index_commits)
        };
        let before = written();
        self.life(passed, &quiet(0))?;
        match written() == before {
            true => Ok(()),
            false => Err("a start that had nothing to do has embedded, or written to the index".into()),
        }
    }

    /// A process from its start to its end. Says whether it has caught up, and was checked.
    fn life(&self, passed: &mut Passed, life: &Life) -> Result<bool, String> {
        passed.lives += 1;
        let straggles = self.straggler();
        lock(&self.world).born(life.fuse, life.troubles);
        let ended = self.process(life);
        self.tear()?;
        match &ended {
            // Its predecessor's commit came when it was there already: what it knew of the table was not so any more.
            Err(reason) if straggles && reason.contains("another writer has committed") => {
                lock(&self.world).note(format!("  ends: {reason}"));
            }
            Err(reason) => return Err(format!("the process has ended by itself: {reason}")),
            Ok(_) => {}
        }
        if let Some(what) = lock(&self.world).watch.violation() {
            return Err(what.into());
        }
        let leavings = self.leavings();
        if !self.lacks.get() {
            self.runtime.block_on(leavings.embeddings())?;
        }
        let settled = ended == Ok(true);
        if settled {
            passed.checks += 1;
            passed.rows_compared += self.runtime.block_on(leavings.view())? as u64;
        }
        Ok(settled)
    }

    /// Says whether it has caught up; fails when the process ends by itself.
    fn process(&self, life: &Life) -> Result<bool, String> {
        let status = Arc::new(Status::new(Arc::new(Metrics::new())));
        let searcher: Arc<Mutex<Option<IndexSearcher>>> = Arc::default();
        let found = searcher.clone();
        let opening = Box::new(move |searcher| *found.lock().expect("no holder of this lock panics") = Some(searcher));
        let Dataflow { config, plan, row_types } = self.dataflow.clone();
        let begun = lock(&self.world).shop.end();
        let start =
            Engine::start(config, (plan, row_types), self.peers(), false, status.clone(), opening, Arc::new(|_| ()));
        let engine = match self.runtime.block_on(start) {
            Ok(engine) => engine,
            Err(_) if lock(&self.world).is_dead() => return Ok(false),
            // It waits for storage once it has begun.
            Err(e) if life.troubles > 0.0 && e.to_string().contains("faulty") => return Ok(false),
            Err(e) => return Err(e.to_string()),
        };
        self.lacks.set(false);
        let is_new = searcher.lock().expect("no holder of this lock panics").is_none();
        let ended = self.watch(life, &status, &searcher, (is_new, &begun));
        engine.tell_to_stop();
        engine.join();
        // A snapshot may be taken still.
        while self.turns.living() > 1 {
            thread::pause(TURN);
        }
        self.look(&searcher);
        let world = lock(&self.world);
        match status.state_and_why() {
            _ if world.is_dead() => Ok(false),
            // Once it is to stop it does not wait for storage or registry for good; what it could not land the topics still have.
            (State::Failed, why)
                if life.troubles > 0.0
                    && ended == Ok(false)
                    && (why.contains("faulty") || why.contains("the schema registry")) =>
            {
                Ok(false)
            }
            (State::Failed, why) => Err(why),
            _ => ended,
        }
    }

    /// Lets the world turn around a process, and looks at what it answers, until it is to end or has ended. One that is live, or whose index `is_new`
    /// and ready, has all that the topics had when it had `begun`.
    fn watch(
        &self,
        life: &Life,
        status: &Status,
        searcher: &Mutex<Option<IndexSearcher>>,
        (is_new, begun): (bool, &Position),
    ) -> Result<bool, String> {
        let over = || match status.state_and_why() {
            _ if lock(&self.world).is_dead() => Some(Ok(false)),
            (State::Failed, why) => Some(Err(why)),
            (State::Live, _) if !status.position().covers(begun) => {
                Some(Err(format!("it is live at {:?}, before {begun:?}", status.position())))
            }
            _ if is_new && status.is_ready() && !status.position().covers(begun) => {
                Some(Err(format!("a new index is ready at {:?}, before {begun:?}", status.position())))
            }
            _ => None,
        };
        for _ in 0..life.turns {
            self.look(searcher);
            thread::pause(TURN);
            if let Some(over) = over() {
                return over;
            }
            if self.draw(|rng| rng.random_bool(0.4)) {
                self.turn(Some(status));
            }
        }
        match life.end {
            End::Killed => {
                lock(&self.world).kill();
                Ok(false)
            }
            End::Stopped => Ok(false),
            End::Settled => {
                lock(&self.world).settle();
                let end = lock(&self.world).shop.end();
                let until = self.turns.time() + PATIENCE;
                while !(status.state() == State::Live && status.position().covers(&end)) {
                    if let Some(over) = over() {
                        return over;
                    }
                    if self.turns.time() > until {
                        return Err(format!("it does not catch up: {:?}", status.state_and_why()));
                    }
                    self.look(searcher);
                    thread::pause(TURN);
                }
                Ok(true)
            }
        }
    }

    fn peers(&self) -> Peers {
        let world = self.world.clone();
        let schemas: Arc<dyn SchemaStore> = Arc::new(Schemas::new(world.clone()));
        let embedder = Arc::new(Drawn::new(world.clone(), self.embeddings_file()));
        let source = move || Ok(Box::new(Topics::new(world.clone())) as Box<dyn Source>);
        Peers { source: Box::new(source), schemas, embedder, database: Some(Arc::new(self.database.clone())) }
    }

    fn embeddings_file(&self) -> PathBuf {
        self.folder.join("embeddings/drawn.embeddings")
    }

    /// Shows the watch what a search would see now.
    fn look(&self, searcher: &Mutex<Option<IndexSearcher>>) {
        let searcher = searcher.lock().expect("no holder of this lock panics");
        let Some((table, epoch, position)) = searcher.as_ref().map(IndexSearcher::state) else { return };
        let columns: Vec<&str> = self.dataflow.columns();
        let scan = async {
            let rows: Vec<_> = table.scan(&columns, None, None).await?.try_collect().await?;
            Ok::<_, lancedb::Error>(rows)
        };
        // Memory is never waited for.
        let rows = scan.now_or_never().expect("the table is in memory").expect("the table can be read");
        let rows: Vec<Shown> = rows.iter().flat_map(Shown::all).collect();
        let world = &mut *lock(&self.world);
        if epoch > world.watch.epoch() {
            world.note(format!("  answers are of epoch {}", epoch.0));
        }
        world.watch.answer(&world.shop, epoch, &position, &rows);
    }

    /// The world turns: something happens in the shop, comes to the topics, or expires there.
    fn turn(&self, status: Option<&Status>) {
        let world = &mut *lock(&self.world);
        match world.rng.random_range(0..40) {
            0..18 => {
                for _ in 0..world.rng.random_range(1..=12) {
                    world.shop.change(&mut world.rng);
                }
            }
            18..36 => world.shop.arrive(&mut world.rng),
            36..38 => world.shop.resend(&mut world.rng),
            // Nobody waits for so long for storage that fails.
            38 if !world.is_troubled() => self.turns.skip(AN_HOUR),
            38 => {}
            _ => {
                // Kafka forgets, but nothing that has not landed.
                let landed = status.map(Status::landed).unwrap_or_default();
                for (partition, topic) in &mut world.shop.topics {
                    let landed = landed.get(partition).unwrap_or_default().0.max(topic.low);
                    topic.low = world.rng.random_range(topic.low..=landed);
                }
            }
        }
    }

    /// Something that can be made anew gets lost while no process runs.
    fn lose(&self) -> Result<(), String> {
        match self.draw(|rng| rng.random_range(0..4)) {
            0 => {
                lock(&self.world).note("  the index is lost");
                self.database.lose_all();
            }
            1 => {
                let mut world = lock(&self.world);
                world.note("  the index loses its last commit");
                self.database.lose_commit();
                world.watch.lost_rows();
            }
            2 => {
                let at = format!("index/{}.announced.json", self.dataflow.config.name);
                futures::executor::block_on(self.objects.lose(&at.into()));
                let mut world = lock(&self.world);
                world.note("  the index's announcement is lost");
                world.watch.lost_position();
            }
            _ => {
                // Before the world is locked, which every read asks.
                let rows = self.runtime.block_on(self.leavings().index())?;
                let mut world = lock(&self.world);
                world.note("  the embedding store is lost");
                self.lacks.set(true);
                std::fs::remove_dir_all(&self.dataflow.config.embed.store).map_err(|e| e.to_string())?;
                world.watch.lost_vectors(&rows.map(|(rows, _)| Shown::all(&rows)).unwrap_or_default());
            }
        }
        Ok(())
    }

    fn leavings(&self) -> check::Leavings<'_> {
        check::Leavings::of(&self.dataflow, &self.folder, &self.database, &self.objects, &self.world)
    }

    /// What becomes of a write of the last process that is still under way: it comes now, or never, or when its successor is there already, which is
    /// what is answered.
    fn straggler(&self) -> bool {
        if !self.objects.lags() {
            return false;
        }
        let arrives = match self.draw(|rng| rng.random_range(0..3)) {
            0 => true,
            1 => false,
            _ => return true,
        };
        futures::executor::block_on(self.objects.settle(arrives));
        false
    }

    /// Tears what was being written to the embedding store.
    fn tear(&self) -> Result<(), String> {
        let path = self.embeddings_file();
        let bytes = std::fs::metadata(&path).map_or(0, |file| file.len());
        let Some(left) = lock(&self.world).tear(bytes) else { return Ok(()) };
        let file = std::fs::OpenOptions::new().write(true).open(path);
        file.and_then(|file| file.set_len(left)).map_err(|e| format!("the embedding store cannot be torn: {e}"))
    }

    fn draw<T>(&self, draw: impl FnOnce(&mut StdRng) -> T) -> T {
        draw(&mut lock(&self.world).rng)
    }
}
