//! The driver has the dataflow work off what was decoded, one epoch after the other.
//!
//! The invariant: epochs come to their ends in their order, each with the position that it leads to; a message that was rejected is in quarantine
//! before the position passes it.

use std::sync::Arc;
use std::time::Duration;

use super::pending::Folded;
use crate::dataflow::{self, OperatorStatus, TestOutput, Violation};
use crate::decode::Decoded;
use crate::serve::Status;
use crate::time::{Epoch, Position};
use crate::validate::Quarantine;

pub(crate) struct Driver {
    handle: dataflow::Handle,
    quarantine: Quarantine,
    status: Arc<Status>,
    /// Data tests, and how many rows fail each.
    tests: Vec<(TestOutput, i64)>,
    /// The last one.
    epoch: Epoch,
    position: Position,
}

impl Driver {
    /// Epochs begin after `last`.
    pub fn new(
        handle: dataflow::Handle,
        quarantine: Quarantine,
        status: Arc<Status>,
        tests: Vec<(TestOutput, i64)>,
        last: Epoch,
    ) -> Driver {
        Driver { handle, quarantine, status, tests, epoch: last, position: Position::default() }
    }

    pub fn operators(&self) -> Vec<OperatorStatus> {
        self.handle.operators()
    }

    /// Makes an epoch of these batches, and waits for its end.
    pub fn epoch(&mut self, mut decoded: Vec<Decoded>) -> Result<Folded, String> {
        let metrics = self.status.metrics().clone();
        let rejects: Vec<_> = decoded.iter_mut().flat_map(|d| std::mem::take(&mut d.rejects)).collect();
        let added = self.quarantine.add(&rejects).map_err(|e| e.to_string())?;
        metrics.quarantine_total.inc_by(added as u64);
        metrics.quarantine_open.set(self.quarantine.len() as i64);
        if let Some(last) = rejects.last() {
            tracing::warn!(count = rejects.len(), partition = %last.partition, offset = last.offset.0, rule = last.rule.name(), reason = last.reason, "messages were quarantined");
        }
        for batch in &decoded {
            self.position.advance(&batch.partition, batch.end);
        }
        let commits_ms: Vec<i64> =
            decoded.iter().flat_map(|d| &d.changes).map(|c| c.commit_ms).filter(|ms| *ms > 0).collect();
        let epoch = Epoch(self.epoch.0 + 1);
        self.handle.send(epoch, decoded).map_err(|e| e.to_string())?;
        let output = loop {
            if let Some(output) = self.handle.recv(Duration::from_secs(1)).map_err(|e| e.to_string())? {
                break output;
            }
        };
        self.epoch = epoch;
        metrics.epochs.inc();
        metrics.view_rows.set(output.view_rows as i64);
        metrics.view_changes.inc_by(output.changes.len() as u64);
        if output.duplicate_keys > 0 {
            tracing::warn!(
                keys = output.duplicate_keys,
                "several rows of the view share a key; the smallest stands for them"
            );
        }
        if let Some(failed) = output.failed_rows.iter().find(|f| f.diff > 0) {
            tracing::warn!(
                reason = failed.reason,
                rows = output.failed_rows.len(),
                "the model cannot be computed for some rows; they are not in the view"
            );
        }
        self.violated(&output.violations);
        Ok(Folded { epoch, position: self.position.clone(), changes: output.changes, commits_ms })
    }

    /// Counts the rows that fail tests; a test that begins to fail is said, and one that no longer does.
    fn violated(&mut self, violations: &[Violation]) {
        if violations.is_empty() {
            return;
        }
        let before: Vec<i64> = self.tests.iter().map(|(_, failing)| *failing).collect();
        for violation in violations {
            self.tests[violation.test].1 += violation.diff as i64;
        }
        for ((test, failing), before) in self.tests.iter().zip(before) {
            let (name, severity) = (&test.name, test.severity.name());
            match (before, *failing) {
                (0, 1..) => tracing::warn!(test = name, severity, rows = failing, "rows fail a data test"),
                (1.., 0) => tracing::info!(test = name, severity, "no row fails this data test any more"),
                _ => {}
            }
        }
        self.status.set_tests(self.tests.clone());
    }
}
