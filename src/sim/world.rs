//! The world around a process: what outlives it, what fails, and when the process dies.
//!
//! The invariant: everything that happens is drawn from the seed. A process dies at a seam, before or after what it was about to do there; from
//! then on nothing that it tries has an effect, except what was under way already and comes late.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::shop::Shop;
use super::watch::Watch;
use crate::storage::faulty::{Call, Fate};
use crate::thread;

/// Where the process touches the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Seam {
    /// A file of a raw table, and the commit that makes it part of it: with its rows and how far they go, or of rows that are merged.
    RawFile,
    RawCommit,
    SnapshotFile,
    SnapshotCommit,
    QuarantineFile,
    QuarantineCommit,
    /// Of any Delta table: its first commit, a checkpoint, the removal of files.
    TableMade,
    Checkpoint,
    Removal,
    Announcement,
    IndexMade,
    IndexRows,
    IndexDeletes,
    IndexRemoved,
    /// After texts were embedded, before their vectors are stored.
    Embedded,
    /// While their vectors are being stored.
    EmbeddingWrite,
    /// At any other time.
    Between,
}

/// When, at a seam, a process died.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    Before,
    After,
    /// Before, as far as anybody saw; its work was done later.
    Late,
}

/// How long a write takes, at most.
pub const LATENCY_MAX: Duration = Duration::from_millis(20);

/// Why what a process was about to do has not happened, or has and it does not know.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub enum Fault {
    #[error("the process is dead")]
    Dead,
    #[error("the storage is faulty")]
    Passing,
}

pub struct World {
    pub rng: StdRng,
    pub shop: Shop,
    pub watch: Watch,
    /// Seams that the process comes to before the one that it dies at.
    fuse: Option<usize>,
    dead: bool,
    /// How often something fails that may be tried again.
    troubles: f64,
    is_settled: bool,
    /// Texts that are embedded and not stored.
    storing: Vec<String>,
    /// The length of the embedding store's file before the write that the process dies in.
    torn: Option<u64>,
    pub counts: Counts,
    /// What has happened, a line each; but for what a process does once it is left alone.
    pub trace: Vec<String>,
}

/// What a schedule came to.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    pub crashes: BTreeMap<(Seam, Moment), u64>,
    /// Failures that the process lived on after.
    pub failures: u64,
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
            is_settled: false,
            storing,
            torn: None,
            counts,
            trace,
        }
    }

    /// A process begins, which dies at the seam after `fuse` others.
    pub fn born(&mut self, fuse: Option<usize>, troubles: f64) {
        (self.fuse, self.troubles, self.dead, self.is_settled) = (fuse, troubles, false, false);
        self.note(format!("starts, to die after {fuse:?} seams"));
    }

    /// From now on nothing fails, and nothing new happens; all that has happened arrives.
    pub fn settle(&mut self) {
        self.note("  settles");
        // Also what it was about to die in.
        (self.fuse, self.troubles, self.torn) = (None, 0.0, None);
        self.shop.arrive_all();
        self.is_settled = true;
    }

    /// Whether something may fail in passing.
    pub fn is_troubled(&self) -> bool {
        self.troubles > 0.0
    }

    pub fn is_dead(&self) -> bool {
        self.dead
    }

    pub fn note(&mut self, what: impl Into<String>) {
        if !self.is_settled {
            self.trace.push(what.into());
        }
    }

    /// Whether something that is asked of the world fails in passing.
    pub fn fails(&mut self) -> bool {
        let fails = self.dead || self.rng.random_bool(self.troubles);
        self.counts.failures += u64::from(fails && !self.dead);
        fails
    }

    /// The process dies now.
    pub fn kill(&mut self) {
        self.die(Seam::Between, Moment::Before);
    }

    /// What happens to a call to the object store.
    pub fn judge(&mut self, call: Call<'_>) -> Fate {
        if let Call::Get(path) = call {
            // Of what a start or a merging reads, and reads on after a failure.
            if !path.as_ref().ends_with(".parquet") || self.dead || !self.fails() {
                return Fate::Works;
            }
            // Its name is drawn by who wrote it, and not from the seed.
            let folder = path.as_ref().rsplit_once('/').map_or("", |(folder, _)| folder);
            self.note(format!("    cannot read a file of {folder}"));
            return Fate::Fails;
        }
        let seam = seam(call);
        let fates: &[Fate] = match seam {
            // A process that has died has nothing under way to a file of its own.
            Seam::Announcement | Seam::Checkpoint | Seam::TableMade => &[Fate::Fails, Fate::Lies],
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
            self.note(format!("    {seam:?}"));
            return Fate::Works;
        }
        self.counts.failures += 1;
        self.note(format!("    {seam:?}: {fate:?}"));
        fate
    }

    /// Texts go through the model. What is stored already is not embedded again.
    pub fn embed(&mut self, texts: &[&str], store_bytes: u64) -> Result<(), Fault> {
        for text in texts {
            self.watch.embedded(text);
        }
        self.counts.texts_embedded += texts.len() as u64;
        let dies = self.burns();
        if self.dead {
            return Err(Fault::Dead);
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

    fn die(&mut self, seam: Seam, moment: Moment) -> Fault {
        let (seam, moment) = match self.torn {
            Some(_) => (Seam::EmbeddingWrite, Moment::Before),
            None => (seam, moment),
        };
        (self.dead, self.fuse) = (true, None);
        self.storing.clear();
        *self.counts.crashes.entry((seam, moment)).or_default() += 1;
        self.note(format!("    dies: {moment:?} {seam:?}"));
        Fault::Dead
    }
}

fn seam(call: Call<'_>) -> Seam {
    let Call::Put(path) = call else { return Seam::Removal };
    let path = path.as_ref();
    let seams = match path {
        _ if path.ends_with(".announced.json") => return Seam::Announcement,
        _ if path.ends_with("/_delta_log/00000000000000000000.json") => return Seam::TableMade,
        _ if path.contains("checkpoint") => return Seam::Checkpoint,
        _ if path.contains(".quarantine/") => (Seam::QuarantineFile, Seam::QuarantineCommit),
        _ if path.contains(".snapshot/") => (Seam::SnapshotFile, Seam::SnapshotCommit),
        _ => (Seam::RawFile, Seam::RawCommit),
    };
    if path.contains("/_delta_log/") { seams.1 } else { seams.0 }
}

/// A seam of the index's database that the process is crossing.
pub struct Crossing<'w> {
    world: &'w Shared,
    seam: Seam,
    dies: bool,
    fails: bool,
}

impl<'w> Crossing<'w> {
    /// The process is about to do what is done at a seam.
    pub fn begin(world: &'w Shared, seam: Seam) -> Result<Crossing<'w>, Fault> {
        thread::pause(LATENCY_MAX);
        let mut now = lock(world);
        let dies = now.burns();
        if dies && (now.torn.is_some() || now.rng.random()) {
            return Err(now.die(seam, Moment::Before));
        }
        if now.dead {
            return Err(Fault::Dead);
        }
        let troubles = now.troubles;
        let fails = now.rng.random_bool(troubles);
        now.counts.failures += u64::from(fails);
        if fails && now.rng.random() {
            now.note(format!("    {seam:?}: fails"));
            return Err(Fault::Passing);
        }
        now.note(format!("    {seam:?}{}", if fails { ": lies" } else { "" }));
        Ok(Crossing { world, seam, dies, fails })
    }

    /// It has done it.
    pub fn end(self) -> Result<(), Fault> {
        if self.dies {
            return Err(lock(self.world).die(self.seam, Moment::After));
        }
        if self.fails {
            return Err(Fault::Passing);
        }
        // Others see it before who has done it goes on.
        thread::pause(LATENCY_MAX);
        Ok(())
    }
}

impl Counts {
    pub fn add(&mut self, other: &Counts) {
        for (at, count) in &other.crashes {
            *self.crashes.entry(*at).or_default() += count;
        }
        self.failures += other.failures;
        self.texts_embedded += other.texts_embedded;
        self.index_commits += other.index_commits;
    }
}
