//! Raw tables from the engine's side: where a start reads from, and what every message that is read goes into.
//!
//! The invariant: Kafka is read on from exactly where raw ends. Where it no longer holds that place, nothing is read: what is missing would be
//! missing for good, and nobody would know.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Duration;

use super::reading::{Reading, Trouble};
use crate::config;
use crate::decode::{Decoded, SchemaStore};
use crate::raw::{Error, Hydration, Landing, LastMessage, Observer, Quarantine, QuarantineTable, RawTable, Snapshot};
use crate::serve::{State, Status, Wait};
use crate::source::{MessageBatch, Source, Watermarks};
use crate::thread;
use crate::time::{Partition, Position};

/// How long the topics are looked at for what has landed of them, and at a time.
const LOOK_MAX: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(20);

/// What whoever is held up does before it asks again.
pub(super) fn rest() {
    thread::sleep(Duration::from_millis(1));
}

/// What was read of raw.
#[derive(Default)]
pub(super) struct Hydrated {
    pub landed: Position,
    /// The last message of each partition.
    pub last: BTreeMap<Partition, LastMessage>,
}

impl Observer for Status {
    fn landed(&self, landed: &Position, rows: usize) {
        self.metrics().raw_landed_rows.inc_by(rows as u64);
        self.metrics().raw_commits.inc();
        self.set_landed(landed);
    }

    fn held(&self, bytes: usize, bound: usize) {
        self.metrics().raw_queue.set(bytes, bound);
    }

    fn waiting(&self, reason: Option<&str>) {
        self.set_waiting(Wait::Raw, reason.map(Into::into));
    }

    fn quarantined(&self, open: usize, total: usize) {
        let metrics = self.metrics();
        metrics.quarantine_open.set(open as i64);
        metrics.quarantine_total.inc_by((total as u64).saturating_sub(metrics.quarantine_total.get()));
    }

    fn quarantine_waiting(&self, reason: Option<&str>) {
        self.set_waiting(Wait::Quarantine, reason.map(Into::into));
    }
}

impl From<Error> for Trouble {
    fn from(e: Error) -> Trouble {
        Trouble { passing: e.is_passing(), reason: e.to_string() }
    }
}

impl Reading {
    /// Opens the quarantine, and starts its thread. `None` when the service is to stop.
    pub(super) fn open_quarantine(&self, runtime: &tokio::runtime::Handle) -> Result<Option<Quarantine>, String> {
        let (location, options) = self.config.quarantine();
        let open = || QuarantineTable::open(&location, &options);
        let Some(table) = self.retry(|| Ok(runtime.block_on(open())?))? else { return Ok(None) };
        let bound = self.config.kafka.queue_max_bytes;
        let started = Quarantine::start(table, bound, self.status.clone(), runtime.clone());
        started.map(Some).map_err(|e| format!("the quarantine cannot be started: {e}"))
    }

    /// Gives what a batch has rejected to the quarantine, which may have to make room first. Says whether it was taken: not when the service
    /// is to stop, or the quarantine has ended.
    pub(super) fn quarantine(
        &self,
        quarantine: &mut Quarantine,
        decoded: &mut Decoded,
        pause: &mut dyn FnMut(),
    ) -> bool {
        while !quarantine.offer(decoded) {
            if self.stop.load(Ordering::SeqCst) || quarantine.has_ended() {
                return false;
            }
            pause();
        }
        true
    }

    /// Opens the raw table of every source. `None` when the service is to stop.
    pub(super) fn open_raw(
        &self,
        runtime: &tokio::runtime::Handle,
        raw: &config::Raw,
    ) -> Result<Option<Vec<RawTable>>, String> {
        let mut tables = Vec::new();
        for source in &self.config.sources {
            let location = raw.table(source);
            let open = || RawTable::open(&location, &raw.options, &self.config.name, &source.topic);
            match self.retry(|| Ok(runtime.block_on(open())?))? {
                Some(table) => tables.push(table),
                None => return Ok(None),
            }
        }
        Ok(Some(tables))
    }

    /// Hands on all that has landed. `None` when the service is to stop, or the quarantine has ended.
    pub(super) fn hydrate(
        &self,
        runtime: &tokio::runtime::Handle,
        raw: &config::Raw,
        tables: &[RawTable],
        schemas: &Arc<dyn SchemaStore>,
        quarantine: &mut Quarantine,
        send: &SyncSender<Decoded>,
    ) -> Result<Option<Hydrated>, String> {
        let mut hydrated = Hydrated::default();
        for (n, (source, table)) in self.config.sources.iter().zip(tables).enumerate() {
            self.status.set_state(State::Hydrating, format!("reading the raw table {}", table.location()));
            let begun = thread::now();
            let open = async || {
                let snapshot = Snapshot::open(table.location(), &raw.options, &self.config.name, table).await?;
                let row_type = self.row_types[n].clone();
                Hydration::open(table, Some(&snapshot), n, source, row_type, schemas.clone()).await
            };
            let Some(mut hydration) = self.retry(|| Ok(runtime.block_on(open())?))? else { return Ok(None) };
            let mut changes = 0;
            while let Some(next) = self.retry(|| Ok(runtime.block_on(hydration.next())?))? {
                let Some(mut decoded) = next else { break };
                changes += decoded.changes.len();
                // What has landed is history.
                decoded.changes.iter_mut().for_each(|change| change.commit_ms = 0);
                if !self.quarantine(quarantine, &mut decoded, &mut rest) || !self.hand_on(decoded, send, &mut rest) {
                    return Ok(None);
                }
            }
            if self.stop.load(Ordering::SeqCst) {
                return Ok(None);
            }
            hydrated.landed.join(hydration.landed());
            hydrated.last.extend(hydration.last().clone());
            self.status.set_landed(hydration.landed());
            tracing::info!(
                table = table.location(),
                changes,
                took_ms = thread::elapsed(begun).as_millis() as u64,
                "hydrated from raw"
            );
        }
        Ok(Some(hydrated))
    }

    /// Whether Kafka still holds what follows on what was read of it.
    pub(super) fn follows_on(&self, read: &Position, marks: &BTreeMap<Partition, Watermarks>) -> Result<(), Trouble> {
        for (partition, next) in read.iter() {
            let what = match marks.get(partition) {
                None => format!("{partition} is gone, which was read up to {}", next.0),
                Some(marks) if next > marks.high => format!(
                    "{partition} ends at offset {}, and was read up to {}: the topic was made anew",
                    marks.high.0, next.0
                ),
                Some(marks) if next < marks.low => format!(
                    "{partition} begins at offset {}, and was read up to {}: what lies between was removed before it was read",
                    marks.low.0, next.0
                ),
                Some(_) => continue,
            };
            return Err(self.begin_anew(partition, &what));
        }
        Ok(())
    }

    /// Whether the topics are still those that were read, also where a new one has grown past that: the last message of each partition that was read
    /// has to be where it was. What cannot be found within a moment, because the topic was compacted, says nothing.
    pub(super) fn is_same(
        &self,
        source: &mut dyn Source,
        last: &BTreeMap<Partition, LastMessage>,
        (start, marks): (&Position, &BTreeMap<Partition, Watermarks>),
    ) -> Result<(), Trouble> {
        let is_there =
            |p: &Partition, l: &LastMessage| marks.get(p).is_some_and(|m| (m.low..m.high).contains(&l.offset));
        let mut wanted: BTreeMap<&Partition, &LastMessage> = last.iter().filter(|(p, l)| is_there(p, l)).collect();
        let mut from = Position::default();
        for (partition, next) in start.iter() {
            from.advance(partition, wanted.get(partition).map_or(next, |landed| landed.offset));
        }
        source.seek(&from)?;
        let begun = thread::now();
        while !wanted.is_empty() && thread::elapsed(begun) < LOOK_MAX && !self.stop.load(Ordering::SeqCst) {
            let Some(batch) = source.poll(LOOK)? else { continue };
            let Some(landed) = wanted.get(&batch.partition) else { continue };
            let Some(found) = batch.messages.iter().find(|m| m.offset >= landed.offset) else { continue };
            let found = LastMessage::of(&batch, found);
            if found.offset == landed.offset && found != **landed {
                let what = format!(
                    "{} has another message at offset {} than the one that was read: the topic was made anew",
                    batch.partition, found.offset.0
                );
                return Err(self.begin_anew(&batch.partition, &what));
            }
            wanted.remove(&batch.partition);
        }
        Ok(())
    }

    fn begin_anew(&self, partition: &Partition, what: &str) -> Trouble {
        let way = match &self.config.raw {
            Some(raw) => {
                let table = self.config.sources.iter().find(|s| s.topic == partition.topic).map(|s| raw.table(s));
                let table = table.unwrap_or_else(|| raw.uri.clone());
                format!(
                    "let Debezium take a new snapshot of the table, move the raw table away, and start again ({table})"
                )
            }
            None => "start again, which reads it from its first offset".into(),
        };
        Trouble { passing: false, reason: format!("{what}; {way}") }
    }

    /// Gives a batch to the landing, which may have to make room first. Says whether it was taken: not when the service is to stop, or the
    /// landing has ended.
    pub(super) fn land(&self, landing: &Landing, batch: &Arc<MessageBatch>, pause: &mut dyn FnMut()) -> bool {
        let mut offered = landing.offer(batch.clone());
        self.status.set_raw_is_full(offered.is_err());
        while let Err(back) = offered {
            if self.stop.load(Ordering::SeqCst) || landing.has_ended() {
                return false;
            }
            pause();
            offered = landing.offer(back);
        }
        self.status.set_raw_is_full(false);
        true
    }

    /// Sends a batch to the driver, and waits while the queue is full. Says whether it went: not when the service is to stop.
    pub(super) fn hand_on(&self, mut decoded: Decoded, send: &SyncSender<Decoded>, pause: &mut dyn FnMut()) -> bool {
        self.shared.read.lock().expect("no holder of this lock panics").advance(&decoded.partition, decoded.end);
        self.shared.count_decoded(1, self.status.metrics());
        // A full queue is the bound at work: the source waits.
        loop {
            match send.try_send(decoded) {
                Ok(()) => return true,
                Err(TrySendError::Full(back)) if !self.stop.load(Ordering::SeqCst) => {
                    decoded = back;
                    pause();
                }
                Err(_) => return false,
            }
        }
    }
}
