//! What an operator holds and does, as numbers that others may read while it runs.
//!
//! The invariant: each worker adds its changes to the one counter of its operator, so the sums are right for any number of workers.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// Records in state, and their bytes without what holds them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Size {
    pub rows: i64,
    pub bytes: i64,
}

impl Size {
    pub fn add(&mut self, bytes: usize) {
        self.rows += 1;
        self.bytes += bytes as i64;
    }

    pub fn remove(&mut self, bytes: usize) {
        self.rows -= 1;
        self.bytes -= bytes as i64;
    }

    /// Counts `diff` records of so many bytes.
    pub fn count(&mut self, diff: isize, bytes: usize) {
        self.rows += diff as i64;
        self.bytes += diff as i64 * bytes as i64;
    }
}

/// The counters of one operator, over all workers.
#[derive(Debug, Default)]
pub(super) struct Stats {
    rows: AtomicI64,
    bytes: AtomicI64,
    updates: AtomicU64,
}

/// One worker's part in an operator's counters.
#[derive(Clone, Debug)]
pub(super) struct Share {
    stats: std::sync::Arc<Stats>,
    told: Size,
}

impl Share {
    pub fn new(stats: std::sync::Arc<Stats>) -> Share {
        Share { stats, told: Size::default() }
    }

    /// Counts updates that came out.
    pub fn updates(&self, count: usize) {
        self.stats.updates.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// Tells what this worker's part of the state holds now.
    pub fn holds(&mut self, size: Size) {
        self.stats.rows.fetch_add(size.rows - self.told.rows, Ordering::Relaxed);
        self.stats.bytes.fetch_add(size.bytes - self.told.bytes, Ordering::Relaxed);
        self.told = size;
    }
}

/// An operator of a running dataflow.
#[derive(Clone, Debug, serde::Serialize)]
pub struct OperatorStatus {
    pub id: usize,
    /// What it does; the name first.
    pub operator: String,
    pub model: String,
    pub inputs: Vec<usize>,
    /// Records in its state.
    pub state_rows: i64,
    /// Bytes of these records.
    pub state_bytes: i64,
    /// Updates that it has put out since the start.
    pub updates: u64,
}

impl Stats {
    pub fn read(&self) -> (i64, i64, u64) {
        (self.rows.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed), self.updates.load(Ordering::Relaxed))
    }
}
