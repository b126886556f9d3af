//! The driver thread: one epoch at a time, of whatever has come meanwhile.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::Shared;
use super::driver::Driver;
use super::pending::Folded;
use crate::config;
use crate::decode::Decoded;
use crate::serve::{State, Status};

/// How often the dataflow's operators are looked at.
const OPERATORS_EVERY: Duration = Duration::from_secs(1);

/// What the thread needs.
pub(super) struct Driving {
    pub driver: Driver,
    pub status: Arc<Status>,
    pub shared: Arc<Shared>,
    pub engine: config::Engine,
}

impl Driving {
    pub fn run(mut self, receive: &Receiver<Decoded>) -> Result<(), String> {
        let mut told = Instant::now();
        loop {
            if told.elapsed() >= OPERATORS_EVERY {
                self.status.set_operators(self.driver.operators());
                told = Instant::now();
            }
            let first = match receive.recv_timeout(Duration::from_millis(100)) {
                Ok(decoded) => decoded,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let mut events = first.changes.len();
            let mut decoded = vec![first];
            while events < self.engine.epoch_max_events {
                let Ok(next) = receive.try_recv() else { break };
                events += next.changes.len();
                decoded.push(next);
            }
            self.shared.count_decoded(-(decoded.len() as isize), self.status.metrics());
            let folded = self.driver.epoch(decoded)?;
            self.fold(folded);
        }
        self.shared.queue().ended = true;
        Ok(())
    }

    /// Hands an epoch to the indexer, and waits while that has too much to do.
    fn fold(&self, folded: Folded) {
        let bound = self.engine.pending_max_keys;
        let mut queue = self.shared.queue();
        let lives = || self.status.state() != State::Failed;
        while queue.follows && queue.pending.len() >= bound && !queue.closed && lives() {
            queue = self
                .shared
                .changed
                .wait_timeout(queue, Duration::from_millis(100))
                .expect("no holder of this lock panics")
                .0;
        }
        queue.pending.fold(folded);
        self.status.metrics().pending.set(queue.pending.len(), bound);
        drop(queue);
        self.shared.changed.notify_all();
    }
}
