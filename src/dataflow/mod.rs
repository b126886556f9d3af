//! The dataflow maintains the view: changes of rows go in by epoch, net changes of the view come out by epoch.
//!
//! The invariant: after each epoch the view equals its SQL over the latest row of every key. An event that changes nothing, and an event
//! that was seen before, produce nothing. The cost of an epoch follows its changes, not the size of the tables.

mod accumulator;
mod aggregate;
mod codec;
mod epochs;
mod exact;
mod graph;
mod key;
mod layout;
mod linear;
mod plan;
mod presence;
mod render;
mod stats;
#[cfg(test)]
mod tests;
mod upsert;
mod view;
mod window;
mod worker;

use std::sync::Arc;

pub(crate) use plan::message;
pub(crate) use plan::{LOST, NOT_A_JOIN, plain_session};
pub use plan::{Mistake, Plan, PlanError, Project, Table, TestOutput};
pub use stats::OperatorStatus;
pub use upsert::patch;
pub use worker::{Engine, Handle, Stopped};

use crate::time::Epoch;

/// A row in row format, shared by whoever holds it.
pub type Row = Arc<[u8]>;

/// What one epoch did to one key of the view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ViewChange {
    /// The view's key column in row format.
    pub key: Box<[u8]>,
    /// The view's columns in row format; `None` is a delete.
    pub row: Option<Row>,
}

/// All that an epoch did, net: at most one change for a key.
#[derive(Clone, Debug)]
pub struct EpochOutput {
    pub epoch: Epoch,
    pub changes: Vec<ViewChange>,
    /// Net diffs of the rows of a view without a key, sorted.
    pub diffs: Vec<(Row, isize)>,
    /// Keys of the view after the epoch.
    pub view_rows: usize,
    /// Keys that several rows of the view have now. The smallest row stands for them, whichever came first.
    pub duplicate_keys: usize,
    /// Rows whose expressions failed (a division by zero, a cast): not in the view.
    pub failed_rows: Vec<FailedRow>,
    /// Rows that began to fail a data test, or no longer do.
    pub violations: Vec<Violation>,
    /// Every key of the view with its row, as after the epoch, where it was asked for.
    pub whole: Option<Vec<ViewChange>>,
}

/// A row that fails a data test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Index of the test in [`Plan::tests`].
    pub test: usize,
    /// In row format, of the test's schema.
    pub row: Row,
    /// How many such rows more there are, or fewer.
    pub diff: isize,
}

/// A row that the model could not be computed for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct FailedRow {
    /// The row that the operator was given, in row format, or the key of the rows that failed together.
    pub row: Row,
    pub reason: String,
    /// +1 when it began to fail, -1 when it is gone or healed.
    pub diff: isize,
}
