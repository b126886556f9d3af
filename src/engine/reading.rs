//! The source thread: reads, decodes, and waits for peers that are away.
//!
//! The invariant: a batch that was read is handed on, whatever fails meanwhile; what is away is waited for and said, never skipped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::{Duration, Instant};

use super::Shared;
use super::raw::Opening;
use super::reader::{Reader, Trouble};
use crate::config::Config;
use crate::decode::{Decoded, RegistryClient, RowType, SchemaStore};
use crate::raw::{Landing, RawTable, Storage};
use crate::serve::{State, Status};
use crate::source::MessageBatch;
use crate::source::kafka::KafkaSource;
use crate::time::Position;

const POLL: Duration = Duration::from_millis(20);
const LAG_EVERY: Duration = Duration::from_millis(1000);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// What the thread needs.
pub(super) struct Reading {
    pub config: Config,
    pub row_types: Vec<Arc<RowType>>,
    pub status: Arc<Status>,
    pub stop: Arc<AtomicBool>,
    pub shared: Arc<Shared>,
    pub announced: Position,
}

impl Reading {
    pub fn run(
        self,
        runtime: &tokio::runtime::Handle,
        send: &SyncSender<Decoded>,
        targets: &SyncSender<Position>,
    ) -> Result<(), String> {
        let topics: Vec<Arc<str>> = self.config.sources.iter().map(|s| s.topic.clone()).collect();
        let schemas: Arc<dyn SchemaStore> =
            Arc::new(RegistryClient::new(&self.config.registry).map_err(|e| e.to_string())?);
        let source = KafkaSource::new(&self.config.kafka, &topics).map_err(|e| e.to_string())?;
        let mut reader = Reader::new(&self.config, &self.row_types, &schemas, source)?;
        let Some(raw) = &self.config.raw else {
            self.status.set_state(State::Hydrating, "reading the topics from their first offset");
            return self.follow(runtime, &mut reader, None, (send, targets));
        };
        let storage = Storage::new(&raw.options);
        let opening =
            Opening { config: &self.config, raw, storage: &storage, row_types: &self.row_types, schemas: &schemas };
        let mut tables = Vec::new();
        for n in 0..self.config.sources.len() {
            let Some(table) = self.retry(|| Ok(runtime.block_on(opening.table(n))?))? else { return Ok(()) };
            tables.push(table);
        }
        let mut landed = Position::default();
        for (n, table) in tables.iter().enumerate() {
            if !self.hydrate(runtime, &opening, n, table, send)? {
                return Ok(());
            }
            landed.join(table.landed());
        }
        let landing = Landing::start(raw, opening.lander(tables), self.status.clone(), runtime.clone());
        let landing = landing.map_err(|e| format!("the landing cannot be started: {e}"))?;
        let read = self.follow(runtime, &mut reader, Some((&landed, &landing)), (send, targets));
        // What was read is landed before the service ends; what could not be, Kafka still has.
        read.and(landing.stop().map_err(|e| e.to_string()))
    }

    /// Hands on all that has landed of a source. Says whether it is all: not when the service is to stop.
    fn hydrate(
        &self,
        runtime: &tokio::runtime::Handle,
        opening: &Opening<'_>,
        n: usize,
        table: &RawTable,
        send: &SyncSender<Decoded>,
    ) -> Result<bool, String> {
        self.status.set_state(State::Hydrating, format!("reading the raw table {}", table.location()));
        let begun = Instant::now();
        let open = || Ok(runtime.block_on(opening.hydration(n, table))?);
        let Some(mut hydration) = self.retry(open)? else { return Ok(false) };
        let mut changes = 0;
        while let Some(next) = self.retry(|| Ok(runtime.block_on(hydration.next())?))? {
            let Some(mut decoded) = next else {
                self.status.set_landed(table.landed());
                let took_ms = begun.elapsed().as_millis() as u64;
                tracing::info!(table = table.location(), changes, took_ms, "hydrated from raw");
                return Ok(true);
            };
            changes += decoded.changes.len();
            // What has landed is history.
            decoded.changes.iter_mut().for_each(|change| change.commit_ms = 0);
            if !self.hand_on(decoded, send) {
                return Ok(false);
            }
        }
        Ok(false)
    }

    /// Reads Kafka: from where raw ends, into the landing, or from its beginning.
    fn follow(
        &self,
        runtime: &tokio::runtime::Handle,
        reader: &mut Reader<KafkaSource>,
        raw: Option<(&Position, &Landing)>,
        (send, targets): (&SyncSender<Decoded>, &SyncSender<Position>),
    ) -> Result<(), String> {
        let landed = raw.map(|(landed, _)| landed);
        let Some(target) = self.retry(|| reader.begin(&self.announced, landed))? else { return Ok(()) };
        if targets.send(target).is_err() || !reader.begun().into_iter().all(|begun| self.hand_on(begun, send)) {
            return Ok(());
        }
        let mut next_lag = Instant::now();
        while !self.stop.load(Ordering::SeqCst) {
            if Instant::now() >= next_lag {
                // Lag is worth a look, not a halt: a broker that does not answer is noticed by polling.
                if let Ok(marks) = reader.watermarks() {
                    if self.retry(|| reader.join_added(&marks))?.is_none() {
                        break;
                    }
                    self.status.set_watermarks(marks);
                }
                next_lag = Instant::now() + LAG_EVERY;
            }
            let Some(polled) = self.retry(|| reader.poll(POLL))? else { break };
            let metrics = self.status.metrics();
            metrics.source_queue.set(reader.source().queued_bytes(), self.config.kafka.queue_max_bytes);
            let Some(batch) = polled else { continue };
            metrics.source_messages.inc_by(batch.messages.len() as u64);
            metrics.source_bytes.inc_by(batch.bytes.len() as u64);
            let batch = Arc::new(batch);
            if raw.is_some_and(|(_, landing)| !self.land(landing, &batch)) {
                break;
            }
            let Some(decoded) = self.retry(|| runtime.block_on(reader.decode(&batch)))? else { break };
            metrics.count_events(&decoded.counts);
            decoded.rejects.iter().for_each(|r| metrics.count_reject(r.rule));
            if !self.hand_on(decoded, send) {
                break;
            }
        }
        Ok(())
    }

    /// Gives a batch to the landing, which may have to make room first. Says whether it was taken: not when the service is to stop, or the
    /// landing has ended.
    fn land(&self, landing: &Landing, batch: &Arc<MessageBatch>) -> bool {
        let mut offered = landing.offer(batch.clone());
        while let Err(back) = offered {
            if self.stop.load(Ordering::SeqCst) || landing.has_ended() {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
            offered = landing.offer(back);
        }
        true
    }

    /// Sends a batch to the driver, and waits while the queue is full. Says whether it went: not when the service is to stop.
    fn hand_on(&self, mut decoded: Decoded, send: &SyncSender<Decoded>) -> bool {
        self.shared.read.lock().expect("no holder of this lock panics").advance(&decoded.partition, decoded.end);
        self.shared.count_decoded(1, self.status.metrics());
        // A full queue is the bound at work: the source waits.
        loop {
            match send.try_send(decoded) {
                Ok(()) => return true,
                Err(TrySendError::Full(back)) if !self.stop.load(Ordering::SeqCst) => {
                    decoded = back;
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(_) => return false,
            }
        }
    }

    /// Tries until it works; `None` when the service is to stop. Waiting is said once and over when it works again.
    fn retry<T>(&self, mut work: impl FnMut() -> Result<T, Trouble>) -> Result<Option<T>, String> {
        let mut backoff = Duration::from_millis(50);
        let mut waiting = false;
        loop {
            match work() {
                Ok(done) => {
                    if waiting {
                        tracing::info!("the peer answers again");
                        self.status.set_waiting(None);
                    }
                    return Ok(Some(done));
                }
                Err(trouble) if !trouble.passing => return Err(trouble.reason),
                Err(trouble) => {
                    if !waiting {
                        tracing::warn!(reason = trouble.reason, "waiting for a peer");
                        waiting = true;
                    }
                    self.status.set_waiting(Some(trouble.reason));
                }
            }
            let until = Instant::now() + backoff;
            while Instant::now() < until {
                if self.stop.load(Ordering::SeqCst) {
                    return Ok(None);
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }
}
