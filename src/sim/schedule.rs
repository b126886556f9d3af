//! A schedule: what happens to the shop and to the processes that follow it, one life after the other, all drawn from one seed.
//!
//! The invariant: the same seed is the same schedule, on any machine. At its end everything is left alone until it has caught up, and is checked;
//! then one more process starts, and finds nothing to do.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use super::check;
use super::dataflow::Dataflow;
use super::index::Kept;
use super::process::{End, Place, Process, Step};
use super::world::{Counts, Shared, World, lock};
use crate::raw::Faulty;

/// One seed in so many has its index in LanceDB, which is a hundred times slower than the one in memory.
const LANCE_EVERY: u64 = 50;
/// Most seams before the one that a process dies at, and most steps of a life.
const FUSE_MAX: usize = 150;
const STEPS_MAX: usize = 120;
/// How often something happens in the world beside the steps of the process.
const WORLD_WEIGHT: u32 = 25;
/// Rounds of steps that are enough for any process to catch up.
const PATIENCE: usize = 2_000;

pub struct Schedule {
    seed: u64,
    dataflow: Dataflow,
    folder: PathBuf,
    world: Shared,
    objects: Faulty,
    index: Kept,
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

impl Schedule {
    /// `folder` is the schedule's own.
    pub fn new(seed: u64, dataflow: &Dataflow, folder: PathBuf) -> Schedule {
        let world: Shared = Arc::new(Mutex::new(World::new(seed)));
        let judging = world.clone();
        let objects = Faulty::new(move |write| lock(&judging).judge(write));
        let mut dataflow = dataflow.clone();
        let rng = &mut lock(&world).rng;
        let raw = dataflow.config.raw.as_mut().expect("the shop has [raw]");
        raw.uri = "memory:///raw".into();
        raw.compact_min_files = rng.random_range(2..=4);
        raw.snapshot_min_events = rng.random_range(5..=40);
        raw.versions_max_age_s = if rng.random() { 0 } else { 3600 };
        dataflow.config.index.uri = folder.join("index").to_string_lossy().into_owned();
        dataflow.config.index.compact_min_fragments = rng.random_range(2..=4);
        let index = match seed % LANCE_EVERY {
            0 => Kept::Lance,
            _ => Kept::Memory(Default::default()),
        };
        Schedule { seed, dataflow, folder, world: world.clone(), objects, index }
    }

    pub fn run(&self) -> Result<Passed, Failed> {
        let mut passed = Passed::default();
        self.live(&mut passed).map_err(|what| self.failed(what))?;
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
        let place =
            Place { dataflow: &self.dataflow, folder: &self.folder, objects: &self.objects, index: &self.index };
        let lives = self.draw(|rng| rng.random_range(1..=5));
        for _ in 0..lives {
            let fuse = self.draw(|rng| rng.random_bool(0.8).then(|| rng.random_range(0..FUSE_MAX)));
            let troubles = self.draw(|rng| if rng.random() { 0.0 } else { rng.random_range(0.01..0.15) });
            let (steps, settles) = self.draw(|rng| (rng.random_range(0..STEPS_MAX), rng.random_bool(0.3)));
            self.life(&place, passed, Life { fuse, troubles, steps, settles })?;
        }
        let quiet = |steps| Life { fuse: None, troubles: 0.0, steps, settles: true };
        while !self.life(&place, passed, quiet(STEPS_MAX))? {}
        // Once more, and nothing is left to do.
        let written = || {
            let counts = &lock(&self.world).counts;
            (counts.texts_embedded, counts.index_commits)
        };
        let before = written();
        self.life(&place, passed, quiet(0))?;
        match written() == before {
            true => Ok(()),
            false => Err("a start that had nothing to do has embedded, or written to the index".into()),
        }
    }

    /// A process from its start to its end. Says whether it has caught up, and was checked.
    fn life(&self, place: &Place<'_>, passed: &mut Passed, life: Life) -> Result<bool, String> {
        passed.lives += 1;
        let straggles = self.straggler();
        lock(&self.world).born(life.fuse, life.troubles);
        let ended = self.steps(place, &life);
        self.tear(place)?;
        match &ended {
            Ok(()) | Err(End::Died) => {}
            // Its predecessor's commit came when it was there already: what it knew of the table was not so any more.
            Err(End::Ended(reason)) if straggles && reason.contains("another writer has committed") => {
                lock(&self.world).note(format!("  ends: {reason}"));
            }
            Err(End::Ended(reason)) => return Err(format!("the process has ended by itself: {reason}")),
        }
        if let Some(what) = lock(&self.world).watch.violation() {
            return Err(what.into());
        }
        check::embeddings(place, &self.world)?;
        let settled = ended.is_ok() && life.settles;
        if settled {
            let t0 = std::time::Instant::now();
            struct T(std::time::Instant);
            impl Drop for T { fn drop(&mut self) {
                super::process::TIMES.lock().unwrap().entry(Step::Maintain).or_insert((0, 0.0)).1 += self.0.elapsed().as_secs_f64() * 1000.0;
            }}
            let _t = T(t0);
            passed.checks += 1;
            passed.rows_compared += check::caught_up(place, &self.world)? as u64;
        }
        Ok(settled)
    }

    fn steps(&self, place: &Place<'_>, life: &Life) -> Result<(), End> {
        let mut process = Process::start(place, &self.world)?;
        for _ in 0..life.steps {
            let steps = Step::WEIGHTS.iter().filter(|(step, _)| process.can(*step)).map(|(step, weight)| (Some(*step), *weight));
            let steps: Vec<(Option<Step>, u32)> = [(None, WORLD_WEIGHT)].into_iter().chain(steps).collect();
            let step = self.draw(|rng| steps.choose_weighted(rng, |(_, weight)| *weight).expect("weights are positive").0);
            match step {
                None => self.turn(&process),
                Some(step) => drop(process.step(step)?),
            }
        }
        if !life.settles {
            return Ok(());
        }
        lock(&self.world).calm();
        lock(&self.world).shop.arrive_all();
        for _ in 0..PATIENCE {
            if process.is_caught_up() {
                return Ok(());
            }
            for step in Step::NEEDED {
                process.step(step)?;
            }
        }
        Err(End::Ended("it does not catch up".into()))
    }

    /// The world turns: something happens in the shop, comes to the topics, or expires there.
    fn turn(&self, process: &Process<'_>) {
        let world = &mut *lock(&self.world);
        match world.rng.random_range(0..20) {
            0..9 => {
                for _ in 0..world.rng.random_range(1..=12) {
                    world.shop.change(&mut world.rng);
                }
            }
            9..18 => world.shop.arrive(&mut world.rng),
            18 => world.shop.resend(&mut world.rng),
            _ => {
                // Kafka forgets, but nothing that has not landed.
                for (partition, topic) in &mut world.shop.topics {
                    let landed = process.landed(partition).max(topic.low);
                    topic.low = world.rng.random_range(topic.low..=landed);
                }
            }
        }
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
    fn tear(&self, place: &Place<'_>) -> Result<(), String> {
        let path = place.embeddings_file();
        let bytes = std::fs::metadata(&path).map_or(0, |file| file.len());
        let Some(left) = lock(&self.world).tear(bytes) else { return Ok(()) };
        let file = std::fs::OpenOptions::new().write(true).open(path);
        file.and_then(|file| file.set_len(left)).map_err(|e| format!("the embedding store cannot be torn: {e}"))
    }

    fn draw<T>(&self, draw: impl FnOnce(&mut StdRng) -> T) -> T {
        draw(&mut lock(&self.world).rng)
    }
}

/// How a process is to live.
struct Life {
    /// Seams before the one that it dies at.
    fuse: Option<usize>,
    /// How often something fails in passing.
    troubles: f64,
    steps: usize,
    /// Whether it is left alone afterwards until it has caught up.
    settles: bool,
}
