//! The world around a process: what outlives it, what fails, and when the process dies.
//!
//! The invariant: everything that happens is drawn from the seed. A process dies at a seam, before or after what it was about to do there; from
//! then on nothing that it tries has an effect, except what was under way already and comes late.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::process::Step;
use super::shop::Shop;
use super::watch::Watch;
use crate::raw::{Fate, Write};

/// Where the process touches the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Seam {
    /// A file of a raw table, and the commit that makes it part of it: its rows and how far they go.
    RawFile,
    RawCommit,
    /// The same, of rows that are merged.
    MergedFile,
    MergeCommit,
    Checkpoint,
    Removal,
    SnapshotFile,
    SnapshotCommit,
    /// The making of a table.
    TableMade,
    Announcement,
    IndexRows,
    IndexDeletes,
    IndexMaintenance,
    Publication,
    /// After texts were embedded, before their vectors are stored.
    Embedded,
    /// While their vectors are being stored.
    EmbeddingWrite,
    /// Between any two steps.
    Step,
}

/// When, at a seam, a process died.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    Before,
    After,
    /// Before, as far as anybody saw; its work was done later.
    Late,
}

/// The process is dead: what it was about to do has not happened, or has and it will never know.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the process is dead")]
pub struct Dead;

pub struct World {
    pub rng: StdRng,
    pub shop: Shop,
    pub watch: Watch,
    /// Seams that the process comes to before the one that it dies at.
    fuse: Option<usize>,
    dead: bool,
    /// How often something fails that may be tried again.
    troubles: f64,
    /// What the process is doing.
    pub doing: Step,
    /// Texts that are embedded and not stored.
    storing: Vec<String>,
    /// The length of the embedding store's file before the write that the process dies in.
    torn: Option<u64>,
    pub counts: Counts,
    /// What has happened, a line each.
    pub trace: Vec<String>,
}

/// What a schedule came to.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    pub crashes: BTreeMap<(Seam, Moment), u64>,
    /// Failures that the process lived on after.
    pub failures: u64,
    /// Times that a step was done.
    pub steps: BTreeMap<Step, u64>,
    pub texts_embedded: u64,
    pub index_commits: u64,
}

/// Shared by everything that stands for the world.
pub type Shared = Arc<Mutex<World>>;

pub fn lock(world: &Shared) -> MutexGuard<'_, World> {
    world.lock().expect("no holder of this lock panics")
}

impl World {
    pub fn new(seed: u64) -> World {
        let (watch, storing, counts, trace) = Default::default();
        World {
            rng: StdRng::seed_from_u64(seed),
            shop: Shop::new(),
            watch,
            fuse: None,
            dead: false,
            troubles: 0.0,
            doing: Step::Start,
            storing,
            torn: None,
            counts,
            trace,
        }
    }

    /// A process begins, which dies at the seam after `fuse` others.
    pub fn born(&mut self, fuse: Option<usize>, troubles: f64) {
        (self.fuse, self.troubles, self.dead) = (fuse, troubles, false);
        self.doing = Step::Start;
    }

    /// From now on nothing fails.
    pub fn calm(&mut self) {
        (self.fuse, self.troubles) = (None, 0.0);
    }

    pub fn is_dead(&self) -> bool {
        self.dead
    }

    pub fn note(&mut self, what: impl Into<String>) {
        self.trace.push(what.into());
    }

    /// Whether something that is asked of the world fails in passing.
    pub fn fails(&mut self) -> bool {
        let fails = self.dead || self.rng.random_bool(self.troubles);
        self.counts.failures += u64::from(fails && !self.dead);
        fails
    }

    /// The process goes on to another step, or dies before it.
    pub fn begin(&mut self, step: Step) -> Result<(), Dead> {
        self.doing = step;
        match self.burns() {
            true => Err(self.die(Seam::Step, Moment::Before)),
            false if self.dead => Err(Dead),
            false => Ok(()),
        }
    }

    /// What happens to a write to the object store.
    pub fn judge(&mut self, write: Write<'_>) -> Fate {
        let seam = self.seam(write);
        let fates: &[Fate] = match seam {
            Seam::Checkpoint | Seam::TableMade => &[Fate::Fails, Fate::Lies],
            _ => &[Fate::Fails, Fate::Lies, Fate::Lags],
        };
        let fate = *fates.choose(&mut self.rng).expect("not empty");
        if self.burns() {
            let moment = match fate {
                Fate::Lags => Moment::Late,
                Fate::Lies => Moment::After,
                _ => Moment::Before,
            };
            self.die(seam, moment);
            return fate;
        }
        if self.dead {
            return Fate::Fails;
        }
        if !self.rng.random_bool(self.troubles) {
            return Fate::Works;
        }
        self.counts.failures += 1;
        self.note(format!("    {seam:?}: {fate:?}"));
        fate
    }

    fn seam(&self, write: Write<'_>) -> Seam {
        let Write::Put(path) = write else { return Seam::Removal };
        let path = path.as_ref();
        if !path.contains("/_delta_log/") {
            return match self.doing {
                Step::Upkeep => Seam::MergedFile,
                Step::Snapshot => Seam::SnapshotFile,
                _ => Seam::RawFile,
            };
        }
        match self.doing {
            _ if path.ends_with("/00000000000000000000.json") => Seam::TableMade,
            _ if !path.ends_with(".json") || path.contains("checkpoint") => Seam::Checkpoint,
            Step::Upkeep => Seam::MergeCommit,
            Step::Snapshot => Seam::SnapshotCommit,
            _ => Seam::RawCommit,
        }
    }

    /// Texts go through the model. What is stored already is not embedded again.
    pub fn embed(&mut self, texts: &[&str], store_bytes: u64) -> Result<(), Dead> {
        for text in texts {
            self.watch.embedded(text);
        }
        self.counts.texts_embedded += texts.len() as u64;
        let dies = self.burns();
        if self.dead {
            return Err(Dead);
        }
        if dies && self.rng.random() {
            return Err(self.die(Seam::Embedded, Moment::After));
        }
        self.storing = texts.iter().map(ToString::to_string).collect();
        if !dies {
            return Ok(());
        }
        // It dies before the next seam, and what it stores until then is torn.
        (self.torn, self.fuse) = (Some(store_bytes), Some(0));
        Ok(())
    }

    /// What became of the write to the embedding store that the process died in: the length that its file has now, if there was one.
    pub fn tear(&mut self, bytes: u64) -> Option<u64> {
        let from = self.torn.take()?;
        Some(self.rng.random_range(from..=bytes.max(from)))
    }

    /// The process comes to a seam. Whether it dies there.
    fn burns(&mut self) -> bool {
        if self.dead {
            return false;
        }
        if self.torn.is_none() {
            // Whoever goes on to another seam was told that what it stored is there.
            std::mem::take(&mut self.storing).into_iter().for_each(|text| self.watch.stored(text));
        }
        match &mut self.fuse {
            None => false,
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
        }
    }

    fn die(&mut self, seam: Seam, moment: Moment) -> Dead {
        let (seam, moment) = match self.torn {
            Some(_) => (Seam::EmbeddingWrite, Moment::Before),
            None => (seam, moment),
        };
        (self.dead, self.fuse) = (true, None);
        self.storing.clear();
        *self.counts.crashes.entry((seam, moment)).or_default() += 1;
        self.note(format!("    dies: {moment:?} {seam:?}"));
        Dead
    }
}

/// A seam that the process is crossing, where nothing fails but by its death.
pub struct Crossing<'w> {
    world: &'w Shared,
    seam: Seam,
    dies: bool,
}

impl<'w> Crossing<'w> {
    /// The process is about to do what is done at a seam.
    pub fn begin(world: &'w Shared, seam: Seam) -> Result<Crossing<'w>, Dead> {
        let mut now = lock(world);
        let dies = now.burns();
        if dies && (now.torn.is_some() || now.rng.random()) {
            return Err(now.die(seam, Moment::Before));
        }
        if now.dead { Err(Dead) } else { Ok(Crossing { world, seam, dies }) }
    }

    /// It has done it.
    pub fn end(self) -> Result<(), Dead> {
        match self.dies {
            true => Err(lock(self.world).die(self.seam, Moment::After)),
            false => Ok(()),
        }
    }
}

impl Counts {
    pub fn add(&mut self, other: &Counts) {
        for (at, count) in &other.crashes {
            *self.crashes.entry(*at).or_default() += count;
        }
        for (step, count) in &other.steps {
            *self.steps.entry(*step).or_default() += count;
        }
        self.failures += other.failures;
        self.texts_embedded += other.texts_embedded;
        self.index_commits += other.index_commits;
    }
}
