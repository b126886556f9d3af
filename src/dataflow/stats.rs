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
    not_sent: AtomicU64,
}

/// One worker's part in an operator's counters.
#[derive(Clone, Debug)]
pub(super) struct Share {
    stats: std::sync::Arc<Stats>,
    told: Size,
    told_not_sent: u64,
}

impl Share {
    pub fn new(stats: std::sync::Arc<Stats>) -> Share {
        Share { stats, told: Size::default(), told_not_sent: 0 }
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

    /// Tells how many values this worker has made null because the database did not send them.
    pub fn lacks(&mut self, not_sent: u64) {
        self.stats.not_sent.fetch_add(not_sent - self.told_not_sent, Ordering::Relaxed);
        self.told_not_sent = not_sent;
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
    /// Of a source: values since the start that the database did not send and that no former row had.
    pub not_sent: u64,
}

impl Stats {
    /// As the status of the operator that these are.
    pub fn status(&self, id: usize, operator: String, model: String, inputs: Vec<usize>) -> OperatorStatus {
        OperatorStatus {
            id,
            operator,
            model,
            inputs,
            state_rows: self.rows.load(Ordering::Relaxed),
            state_bytes: self.bytes.load(Ordering::Relaxed),
            updates: self.updates.load(Ordering::Relaxed),
            not_sent: self.not_sent.load(Ordering::Relaxed),
        }
    }
}
