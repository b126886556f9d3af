//! The source thread: reads, decodes, and waits for peers that are away.
//!
//! The invariant: a batch that was read is handed on, whatever fails meanwhile; what is away is waited for and said, never skipped.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use super::Shared;
use crate::config::Config;
use crate::decode::{Decoded, Decoder, RegistryClient, RowType, SchemaStore};
use crate::raw::Landing;
use crate::serve::{State, Status};
use crate::source::kafka::KafkaSource;
use crate::source::{self, Source};
use crate::time::{Offset, Partition, Position};

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
        let mut decoders = Vec::new();
        for (n, (source, row_type)) in self.config.sources.iter().zip(&self.row_types).enumerate() {
            decoders.push(Decoder::new(n, source, row_type.clone(), schemas.clone()).map_err(|e| e.to_string())?);
        }
        let mut source = KafkaSource::new(&self.config.kafka, &topics).map_err(|e| e.to_string())?;
        let Some(target) = self.retry(|| self.target(&mut source))? else { return Ok(()) };
        if targets.send(target).is_err() {
            return Ok(());
        }
        let Some(raw) = &self.config.raw else {
            return self.follow(runtime, &mut source, &mut decoders, None, send);
        };
        let Some(tables) = self.open_raw(runtime, raw)? else { return Ok(()) };
        let Some(landed) = self.hydrate(runtime, raw, &tables, &schemas, send)? else { return Ok(()) };
        let (name, sources, observer) = (&self.config.name, &self.config.sources, self.status.clone());
        let landing = Landing::start(raw, name, sources, tables, schemas, observer, runtime.clone());
        let landing = landing.map_err(|e| format!("the landing cannot be started: {e}"))?;
        let read = self.follow(runtime, &mut source, &mut decoders, Some((&landed, &landing)), send);
        // What was read is landed before the service ends; what could not be, Kafka still has.
        read.and(landing.stop().map_err(|e| e.to_string()))
    }

    /// Reads Kafka: from where raw ends, into the landing, or from its beginning.
    fn follow(
        &self,
        runtime: &tokio::runtime::Handle,
        source: &mut KafkaSource,
        decoders: &mut [Decoder],
        raw: Option<(&Position, &Landing)>,
        send: &SyncSender<Decoded>,
    ) -> Result<(), String> {
        if self.retry(|| self.begin(source, raw.map(|(landed, _)| landed)))?.is_none() {
            return Ok(());
        }
        let mut next_lag = Instant::now();
        while !self.stop.load(Ordering::SeqCst) {
            if Instant::now() >= next_lag {
                // Lag is worth a look, not a halt: a broker that does not answer is noticed by polling.
                if let Ok(marks) = source.watermarks() {
                    let done = self.status.position();
                    self.status.set_lag(marks.into_iter().map(|(p, w)| {
                        let from = done.get(&p).unwrap_or(w.low).max(w.low);
                        let behind = (w.high.0 - from.0).max(0) as u64;
                        (p, behind)
                    }));
                }
                next_lag = Instant::now() + LAG_EVERY;
            }
            let Some(polled) = self.retry(|| source.poll(POLL).map_err(Trouble::from))? else { break };
            let metrics = self.status.metrics();
            metrics.source_queue.set(source.queued_bytes(), self.config.kafka.queue_max_bytes);
            let Some(batch) = polled else { continue };
            metrics.source_messages.inc_by(batch.messages.len() as u64);
            metrics.source_bytes.inc_by(batch.bytes.len() as u64);
            let batch = Arc::new(batch);
            if raw.is_some_and(|(_, landing)| !self.land(landing, &batch)) {
                break;
            }
            let Some(n) = self.config.sources.iter().position(|s| s.topic == batch.partition.topic) else { continue };
            let decoder = &mut decoders[n];
            let decoded = self.retry(|| {
                runtime.block_on(decoder.decode(&batch)).map_err(|e| Trouble { passing: true, reason: e.to_string() })
            })?;
            let Some(decoded) = decoded else { break };
            metrics.count_events(&decoded.counts);
            decoded.rejects.iter().for_each(|r| metrics.count_reject(r.rule));
            if !self.hand_on(decoded, send) {
                break;
            }
        }
        Ok(())
    }

    /// How far the view has to come before the index may follow it.
    fn target(&self, source: &mut KafkaSource) -> Result<Position, Trouble> {
        let mut target = Position::default();
        for (partition, marks) in source.watermarks()? {
            target.advance(&partition, self.announced.get(&partition).unwrap_or_default().min(marks.high));
        }
        Ok(target)
    }

    /// Puts the source where raw ends, or at its first offset.
    fn begin(&self, source: &mut KafkaSource, landed: Option<&Position>) -> Result<(), Trouble> {
        let marks: BTreeMap<Partition, source::Watermarks> = source.watermarks()?.into_iter().collect();
        if let (Some(landed), Some(raw)) = (landed, &self.config.raw) {
            self.follows_on(raw, landed, &marks)?;
            return Ok(source.seek(landed)?);
        }
        self.status.set_state(State::Hydrating, "reading the topics from their first offset");
        for (partition, marks) in &marks {
            let announced = self.announced.get(partition).unwrap_or_default();
            if announced > marks.high {
                tracing::warn!(%partition, announced = announced.0, high = marks.high.0, "the topic ends before what the index has seen: it was made anew, and is read as new");
            }
            if marks.low > Offset(0) {
                tracing::warn!(%partition, low = marks.low.0, "the topic no longer begins at its first offset; rows that only its lost part had are not known");
            }
        }
        Ok(source.seek(&Position::default())?)
    }

    /// Tries until it works; `None` when the service is to stop. Waiting is said once and over when it works again.
    pub(super) fn retry<T>(&self, mut work: impl FnMut() -> Result<T, Trouble>) -> Result<Option<T>, String> {
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

pub(super) struct Trouble {
    pub passing: bool,
    pub reason: String,
}

impl From<source::Error> for Trouble {
    fn from(e: source::Error) -> Trouble {
        Trouble { passing: e.is_passing(), reason: e.to_string() }
    }
}
