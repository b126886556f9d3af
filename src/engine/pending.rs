//! What the dataflow has done to the view and the index has not: for each key the last change, and how far all of them lead together.
//!
//! The invariant: epochs are folded in their order, so taking what is pending takes everything up to its position.

use std::collections::{HashMap, HashSet};

use crate::dataflow::{Row, ViewChange};
use crate::time::{Epoch, Position};

/// What an epoch came to.
pub(crate) struct Folded {
    pub epoch: Epoch,
    /// Of everything up to it.
    pub position: Position,
    pub changes: Vec<ViewChange>,
    /// Commit times of its live events.
    pub commits_ms: Vec<i64>,
}

#[derive(Default)]
pub(crate) struct Pending {
    changes: HashMap<Box<[u8]>, Option<Row>>,
    position: Position,
    epoch: Epoch,
    /// Commit times of live events that `changes` (or an unchanged index) stand for.
    commits_ms: Vec<i64>,
}

impl Pending {
    pub fn fold(&mut self, folded: Folded) {
        self.changes.extend(folded.changes.into_iter().map(|c| (c.key, c.row)));
        self.epoch = folded.epoch;
        self.position = folded.position;
        self.commits_ms.extend(folded.commits_ms);
    }

    /// Changed keys.
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub fn position(&self) -> &Position {
        &self.position
    }

    /// The keys of the view, as long as nothing was taken.
    pub fn keys(&self) -> HashSet<Box<[u8]>> {
        self.changes.iter().filter(|(_, row)| row.is_some()).map(|(key, _)| key.clone()).collect()
    }

    /// All of it, by key.
    pub fn take(&mut self) -> Folded {
        let changes = std::mem::take(&mut self.changes).into_iter();
        let mut changes: Vec<ViewChange> = changes.map(|(key, row)| ViewChange { key, row }).collect();
        changes.sort_by(|a, b| a.key.cmp(&b.key));
        let (epoch, position, commits_ms) =
            (self.epoch, self.position.clone(), std::mem::take(&mut self.commits_ms));
        Folded { epoch, position, changes, commits_ms }
    }
}
