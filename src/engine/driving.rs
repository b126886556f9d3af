//! The driver thread: one epoch at a time, of whatever has come meanwhile.
//!
//! The invariant: epochs are folded in their order, each with the position that it leads to.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use super::Shared;
use crate::config;
use crate::dataflow::{self, EpochOutput, TestOutput, Violation};
use crate::decode::Decoded;
use crate::serve::{State, Status};
use crate::thread;
use crate::time::{Epoch, Position};

/// How often the dataflow's operators and its tests are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What the thread needs.
pub(super) struct Driving {
    pub handle: dataflow::Handle,
    pub status: Arc<Status>,
    pub shared: Arc<Shared>,
    pub engine: config::Engine,
    pub first: Epoch,
    /// Data tests, and how many rows fail each.
    pub tests: Vec<(TestOutput, i64)>,
}

impl Driving {
    pub fn run(mut self, receive: &Receiver<Decoded>) -> Result<(), String> {
        let mut epoch = self.first;
        let mut duplicate_keys = 0;
        let mut position = Position::default();
        let mut looked = thread::now();
        let mut told = vec![false; self.tests.len()];
        loop {
            if thread::elapsed(looked) >= LOOK_EVERY {
                self.status.set_operators(self.handle.operators());
                self.tell_tests(&mut told);
                looked = thread::now();
            }
            let whole = std::mem::take(&mut self.shared.pending().wants_whole);
            let mut decoded = match thread::recv_timeout(receive, Duration::from_millis(100)) {
                Ok(first) => vec![first],
                // An epoch without events, for the view's sake.
                Err(RecvTimeoutError::Timeout) if whole => Vec::new(),
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let mut events: usize = decoded.iter().map(|first| first.changes.len()).sum();
            while events < self.engine.epoch_max_events {
                let Ok(next) = receive.try_recv() else { break };
                events += next.changes.len();
                decoded.push(next);
            }
            let metrics = self.status.metrics().clone();
            self.shared.count_decoded(-(decoded.len() as isize), &metrics);
            for batch in &decoded {
                position.advance(&batch.partition, batch.end);
            }
            let commits_ms: Vec<i64> =
                decoded.iter().flat_map(|d| &d.changes).map(|c| c.commit_ms).filter(|ms| *ms > 0).collect();
            let sent = match whole {
                true => self.handle.send_for_whole(epoch, decoded),
                false => self.handle.send(epoch, decoded),
            };
            sent.map_err(|e| e.to_string())?;
            let output = loop {
                if let Some(output) = self.handle.recv(Duration::from_secs(1)).map_err(|e| e.to_string())? {
                    break output;
                }
            };
            metrics.epochs.inc();
            metrics.view_rows.set(output.view_rows as i64);
            metrics.view_changes.inc_by(output.changes.len() as u64);
            let before = std::mem::replace(&mut duplicate_keys, output.duplicate_keys);
            if output.duplicate_keys > 0 && output.duplicate_keys != before {
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
            self.fold(epoch, &position, output, commits_ms);
            epoch = Epoch(epoch.0 + 1);
        }
        self.shared.pending().ended = true;
        Ok(())
    }

    /// Counts the rows that fail tests.
    fn violated(&mut self, violations: &[Violation]) {
        for violation in violations {
            self.tests[violation.test].1 += violation.diff as i64;
        }
        if !violations.is_empty() {
            self.status.set_tests(self.tests.clone());
        }
    }

    /// Says which tests fail that did not when it was `told` last, and which no longer do: not before all that there was has been read, since rows
    /// miss what comes after them.
    fn tell_tests(&self, told: &mut [bool]) {
        if !self.status.is_ready() {
            return;
        }
        for ((test, failing), told) in self.tests.iter().zip(told) {
            let (name, severity) = (&test.name, test.severity.name());
            match (std::mem::replace(told, *failing > 0), *failing) {
                (false, 1..) => tracing::warn!(test = name, severity, rows = failing, "rows fail a data test"),
                (true, ..=0) => tracing::info!(test = name, severity, "no row fails this data test any more"),
                _ => {}
            }
        }
    }

    fn fold(&self, epoch: Epoch, position: &Position, output: EpochOutput, commits_ms: Vec<i64>) {
        let bound = self.engine.pending_max_keys;
        let mut pending = self.shared.pending();
        let lives = || self.status.state() != State::Failed;
        while pending.follows && pending.changes.len() >= bound && !pending.closed && lives() {
            pending = self.shared.wait(pending, Duration::from_millis(100)).0;
        }
        pending.changes.extend(output.changes.into_iter().map(|c| (c.key, c.row)));
        pending.whole = output.whole.or(pending.whole.take());
        pending.epoch = epoch;
        pending.position = position.clone();
        pending.commits_ms.extend(commits_ms);
        self.status.metrics().pending.set(pending.changes.len(), bound);
        drop(pending);
        self.shared.changed.notify_all();
    }
}
