//! The source thread: reads, decodes, and waits for peers that are away.
//!
//! The invariant: a batch that was read is handed on, whatever fails meanwhile; what is away is waited for and said, never skipped. What of it was
//! rejected is given to the quarantine before raw and the driver get it: whoever must not pass a reject can then ask whether all is in there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use super::looking::{Looked, Looks};
use super::raw::{Hydrated, rest};
use super::{Peers, Shared};
use crate::config::Config;
use crate::decode::{Counts, Decoded, Decoder, RowType, SchemaStore};
use crate::raw::{Gate, Landing, LastMessage, Quarantine, RawTable};
use crate::serve::{State, Status, Wait};
use crate::source::{self, Source, Watermarks};
use crate::thread;
use crate::time::{Offset, Partition, Position};

const POLL: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// What the thread needs.
pub(super) struct Reading {
    pub config: Config,
    pub row_types: Vec<Arc<RowType>>,
    pub status: Arc<Status>,
    pub stop: Arc<AtomicBool>,
    pub shared: Arc<Shared>,
    pub announced: Position,
    pub peers: Peers,
}

impl Reading {
    pub fn run(
        self,
        runtime: &tokio::runtime::Handle,
        send: &SyncSender<Decoded>,
        begins: &SyncSender<Begun>,
    ) -> Result<(), String> {
        let schemas = self.peers.schemas.clone();
        let mut decoders = Vec::new();
        for (n, (source, row_type)) in self.config.sources.iter().zip(&self.row_types).enumerate() {
            decoders.push(Decoder::new(n, source, row_type.clone(), schemas.clone()).map_err(|e| e.to_string())?);
        }
        let Some(mut quarantine) = self.open_quarantine(runtime)? else { return Ok(()) };
        let mut landing = None;
        let read = self.read(runtime, &schemas, &mut decoders, &mut quarantine, &mut landing, (send, begins));
        // The quarantine first: raw's commits wait for it. What was read is in both before the service ends; what could not be, Kafka still has.
        let kept = quarantine.stop().map_err(|e| e.to_string());
        let landed = landing.map_or(Ok(()), Landing::stop).map_err(|e| e.to_string());
        read.and(kept).and(landed)
    }

    /// Reads what has landed, and Kafka from there on into a landing; without raw, Kafka from its beginning.
    fn read(
        &self,
        runtime: &tokio::runtime::Handle,
        schemas: &Arc<dyn SchemaStore>,
        decoders: &mut [Decoder],
        quarantine: &mut Quarantine,
        landing: &mut Option<Landing>,
        (send, begins): (&SyncSender<Decoded>, &SyncSender<Begun>),
    ) -> Result<(), String> {
        let Config { name, sources, raw, .. } = &self.config;
        let mut source = (self.peers.source)()?;
        let mut hydrated = None;
        if let Some(raw) = raw {
            let Some(tables) = self.open_raw(runtime, raw)? else { return Ok(()) };
            for (id, text) in tables.iter().flat_map(RawTable::registered) {
                runtime.block_on(schemas.remember(id, text));
            }
            hydrated = self.hydrate(runtime, raw, &tables, schemas, quarantine, send)?;
            if hydrated.is_none() {
                return Ok(());
            }
            let sources = sources.iter().cloned().zip(tables).collect();
            let (gate, observer) = (quarantine.gate(), self.status.clone());
            let started = Landing::start(raw, name, sources, schemas.clone(), gate, observer, runtime.clone());
            *landing = Some(started.map_err(|e| format!("the landing cannot be started: {e}"))?);
        }
        let raw = hydrated.as_ref().zip(landing.as_ref());
        self.follow(runtime, &mut *source, decoders, raw, quarantine, (send, begins))
    }

    /// Reads Kafka: from where raw ends, into the landing, or from its beginning.
    fn follow(
        &self,
        runtime: &tokio::runtime::Handle,
        source: &mut dyn Source,
        decoders: &mut [Decoder],
        raw: Option<(&Hydrated, &Landing)>,
        quarantine: &mut Quarantine,
        (send, begins): (&SyncSender<Decoded>, &SyncSender<Begun>),
    ) -> Result<(), String> {
        let hydrated = raw.map(|(hydrated, _)| hydrated);
        let Some(Begin { mut start, target, old, ends }) = self.retry(|| self.begin(source, hydrated))? else {
            return Ok(());
        };
        let begun = Begun { target, ends, quarantine: quarantine.gate() };
        if begins.send(begun).is_err() || !self.reached(&start, send) {
            return Ok(());
        }
        let mut last = hydrated.map(|h| h.last.clone()).unwrap_or_default();
        let mut looks = Looks::new(&self.config.kafka, self.status.clone());
        let has_ended =
            |quarantine: &Quarantine| quarantine.has_ended() || raw.is_some_and(|(_, landing)| landing.has_ended());
        while !self.stop.load(Ordering::SeqCst) && !has_ended(quarantine) {
            let goes_on = match looks.look(source).map_err(|e| e.to_string())? {
                Looked::NotYet => Some(()),
                // A topic that comes again may be another one.
                Looked::Gone => self.go_on(source, &last)?,
                Looked::At { marks, was_gone, .. } if was_gone || self.has_shrunk(&marks) => {
                    self.go_on(source, &last)?
                }
                // Reading them too begins with all of the partitions.
                Looked::At { marks, all: true, .. } => self.join_added(source, &marks, &mut start)?,
                Looked::At { .. } => Some(()),
            };
            if goes_on.is_none() {
                break;
            }
            let polled = match source.poll(POLL) {
                Ok(polled) => polled,
                Err(e) if e.is_passing() => {
                    looks.doubt(&e);
                    continue;
                }
                Err(e) => return Err(e.to_string()),
            };
            let metrics = self.status.metrics();
            metrics.source_queue.set(source.queued_bytes(), self.config.kafka.queue_max_bytes);
            let Some(batch) = polled else { continue };
            metrics.source_messages.inc_by(batch.messages.len() as u64);
            metrics.source_bytes.inc_by(batch.bytes.len() as u64);
            if let Some(message) = batch.messages.last() {
                last.insert(batch.partition.clone(), LastMessage::of(&batch, message));
            }
            let batch = Arc::new(batch);
            let Some(n) = self.config.sources.iter().position(|s| s.topic == batch.partition.topic) else { continue };
            let decoder = &mut decoders[n];
            let decode = || {
                let decoded = runtime.block_on(decoder.decode(&batch));
                decoded.map_err(|e| Trouble { passing: e.is_passing(), reason: e.to_string() })
            };
            let mut pause = || {
                looks.glance(source);
                rest();
            };
            let decoded = self.retry_beside(decode, &mut pause)?;
            let Some(mut decoded) = decoded else { break };
            let old = old.get(&decoded.partition).unwrap_or_default();
            decoded.changes.iter_mut().filter(|c| c.offset < old).for_each(|c| c.commit_ms = 0);
            metrics.count_events(&decoded.counts);
            decoded.rejects.iter().for_each(|r| metrics.count_reject(r.rule));
            // In this order.
            let took = self.quarantine(quarantine, &mut decoded, &mut pause)
                && raw.is_none_or(|(_, landing)| self.land(landing, &batch, &mut pause))
                && self.hand_on(decoded, send, &mut pause);
            if !took {
                break;
            }
        }
        Ok(())
    }

    /// Puts the source where raw ends, or at the first offsets that the topics still have.
    fn begin(&self, source: &mut dyn Source, hydrated: Option<&Hydrated>) -> Result<Begin, Trouble> {
        let marks: BTreeMap<Partition, Watermarks> = source.watermarks()?.into_iter().collect();
        let landed = hydrated.map(|h| &h.landed);
        let begin = Begin::of(&marks, landed, &self.announced);
        if let Some(Hydrated { landed, last }) = hydrated {
            self.follows_on(landed, &marks)?;
            self.is_same(source, last, (&begin.start, &marks))?;
        } else {
            self.status.set_state(State::Hydrating, "reading the topics from their first offset");
        }
        self.say_what_is_new(&marks, landed);
        source.seek(&begin.start).map_err(|e| match &e {
            // Its beginning was removed since it was looked at, and nobody has read any of it.
            source::Error::OutOfRange { partition, .. } if landed.is_none_or(|l| l.get(partition).is_none()) => {
                Trouble { passing: true, reason: e.to_string() }
            }
            _ => e.into(),
        })?;
        Ok(begin)
    }

    /// Whether a partition ends before where it was read to.
    fn has_shrunk(&self, marks: &[(Partition, Watermarks)]) -> bool {
        let read = self.shared.read.lock().expect("no holder of this lock panics");
        marks.iter().any(|(partition, marks)| read.get(partition).is_some_and(|next| next > marks.high))
    }

    /// Goes on where reading was, once all topics are there, if they are those that were read; `last` are their last messages. `None` when the
    /// service is to stop.
    fn go_on(&self, source: &mut dyn Source, last: &BTreeMap<Partition, LastMessage>) -> Result<Option<()>, String> {
        self.retry(|| {
            let marks = source.watermarks()?.into_iter().collect();
            let read = self.shared.read.lock().expect("no holder of this lock panics").clone();
            self.follows_on(&read, &marks)?;
            self.is_same(source, last, (&read, &marks))?;
            Ok(source.seek(&read)?)
        })
    }

    /// Of partitions that raw has nothing of: what of them is lost; and on any but a first start, where all are new, that they are.
    fn say_what_is_new(&self, marks: &BTreeMap<Partition, Watermarks>, landed: Option<&Position>) {
        let has_landed = |p: &Partition| landed.is_some_and(|landed| landed.get(p).is_some());
        let is_first = !marks.keys().any(has_landed);
        for (partition, Watermarks { low, high }) in marks.iter().filter(|(p, _)| !has_landed(p)) {
            if !is_first {
                tracing::info!(%partition, "nothing of this partition has landed yet; it is read from its first offset");
            }
            let announced = self.announced.get(partition).unwrap_or_default();
            if announced > *high {
                tracing::warn!(%partition, announced = announced.0, high = high.0, "the topic ends before what the index has seen: it was made anew, and is read as new");
            }
            if *low > Offset(0) {
                tracing::warn!(%partition, low = low.0, "the topic no longer begins at its first offset; rows that only its lost part had are not known");
            }
        }
    }

    /// Tells the driver where reading starts: of a partition whose records have all expired nothing else would ever come. Says whether the
    /// driver still listens.
    fn reached(&self, start: &Position, send: &SyncSender<Decoded>) -> bool {
        let mut begun = start.iter().filter(|(_, next)| *next > Offset(0));
        begun.all(|(partition, end)| {
            let Some(source) = self.config.sources.iter().position(|s| s.topic == partition.topic) else { return true };
            let (changes, rejects, counts) = (Vec::new(), Vec::new(), Counts::default());
            let decoded = Decoded { source, partition: partition.clone(), end, changes, rejects, counts };
            self.hand_on(decoded, send, &mut rest)
        })
    }

    /// Reads partitions too that a topic has gained, each from its first offset. `None` when the service is to stop.
    fn join_added(
        &self,
        source: &mut dyn Source,
        marks: &[(Partition, Watermarks)],
        known: &mut Position,
    ) -> Result<Option<()>, String> {
        let added: Vec<_> = marks.iter().filter(|(partition, _)| known.get(partition).is_none()).collect();
        if added.is_empty() {
            return Ok(Some(()));
        }
        for (partition, marks) in added {
            tracing::info!(%partition, "the topic has gained this partition; it is read from its first offset");
            known.advance(partition, marks.low);
        }
        let mut next = known.clone();
        next.join(&self.shared.read.lock().expect("no holder of this lock panics"));
        self.retry(|| source.seek(&next).map_err(Trouble::from))
    }

    /// Tries until it works; `None` when the service is to stop. Waiting is said once and over when it works again.
    pub(super) fn retry<T>(&self, work: impl FnMut() -> Result<T, Trouble>) -> Result<Option<T>, String> {
        self.retry_beside(work, &mut || ())
    }

    /// The same, with something to do meanwhile.
    fn retry_beside<T>(
        &self,
        mut work: impl FnMut() -> Result<T, Trouble>,
        meanwhile: &mut dyn FnMut(),
    ) -> Result<Option<T>, String> {
        let mut backoff = Duration::from_millis(50);
        let mut waiting = false;
        loop {
            match work() {
                Ok(done) => {
                    if waiting {
                        tracing::info!("the peer answers again");
                        self.status.set_waiting(Wait::Peer, None);
                    }
                    return Ok(Some(done));
                }
                Err(trouble) if !trouble.passing => return Err(trouble.reason),
                Err(trouble) => {
                    if !waiting {
                        tracing::warn!(reason = trouble.reason, "waiting for a peer");
                        waiting = true;
                    }
                    self.status.set_waiting(Wait::Peer, Some(trouble.reason));
                }
            }
            let until = thread::now() + backoff;
            while thread::now() < until {
                if self.stop.load(Ordering::SeqCst) {
                    return Ok(None);
                }
                meanwhile();
                thread::sleep(Duration::from_millis(10));
            }
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }
}

/// Where reading starts.
#[derive(Default)]
struct Begin {
    /// Of every partition, also of those that are read from offset 0.
    start: Position,
    /// How far the view has to come before the index may follow it: to where the index may be, and through all of raw. Half of a snapshot is the
    /// view as it never was, without the rows of keys that come later.
    target: Position,
    /// What lies before this is not fresh: the index knew it already, or is new and catches up with it.
    old: Position,
    /// Where the partitions ended then.
    ends: Position,
}

/// What the indexer has to know of where reading has begun.
pub(super) struct Begun {
    /// [`Begin::target`]
    pub target: Position,
    /// [`Begin::ends`]
    pub ends: Position,
    pub quarantine: Gate,
}

impl Begin {
    fn of(marks: &BTreeMap<Partition, Watermarks>, landed: Option<&Position>, announced: &Position) -> Begin {
        let mut begin = Begin::default();
        for (partition, Watermarks { low, high }) in marks {
            let announced = announced.get(partition).map(|a| a.min(*high));
            let landed = landed.and_then(|l| l.get(partition));
            begin.start.advance(partition, landed.unwrap_or(*low));
            begin.target.advance(partition, announced.max(landed).unwrap_or_default());
            begin.old.advance(partition, announced.unwrap_or(*high));
            begin.ends.advance(partition, *high);
        }
        begin
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

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(number: i32) -> Partition {
        Partition::new("t", number)
    }

    fn position(nexts: &[(i32, i64)]) -> Position {
        nexts.iter().map(|(number, next)| (partition(*number), Offset(*next))).collect()
    }

    #[test]
    fn a_start_can_always_come_to_where_the_index_was() {
        let marks = [
            // Everything has expired, some has, nothing has, the topic was made anew, and one that nobody has read yet.
            (0, (100, 100), Some(100)),
            (1, (50, 100), Some(70)),
            (2, (0, 100), Some(30)),
            (3, (0, 10), Some(60)),
            (4, (0, 20), None),
        ];
        let at: BTreeMap<Partition, Watermarks> = marks
            .iter()
            .map(|(n, (low, high), _)| (partition(*n), Watermarks { low: Offset(*low), high: Offset(*high) }))
            .collect();
        let announced: Position =
            marks.iter().filter_map(|(n, _, seen)| Some((partition(*n), Offset((*seen)?)))).collect();
        let begin = Begin::of(&at, None, &announced);
        assert_eq!(begin.start, position(&[(0, 100), (1, 50), (2, 0), (3, 0), (4, 0)]));
        assert_eq!(begin.old, position(&[(0, 100), (1, 70), (2, 30), (3, 10), (4, 20)]), "a new index catches up");
        assert_eq!(begin.ends, position(&[(0, 100), (1, 100), (2, 100), (3, 10), (4, 20)]));
        let mut all_read = begin.start.clone();
        // A partition between whose watermarks nothing lies yields nothing.
        all_read.join(&at.iter().filter(|(_, w)| w.low < w.high).map(|(p, w)| (p.clone(), w.high)).collect());
        assert!(all_read.covers(&begin.target), "{all_read:?} does not cover {:?}", begin.target);
        let landed = position(&[(0, 100), (1, 80)]);
        let begin = Begin::of(&at, Some(&landed), &announced);
        assert_eq!(begin.start.get(&partition(1)), Some(Offset(80)));
        assert_eq!(
            (begin.target.get(&partition(1)), begin.target.get(&partition(2))),
            (Some(Offset(80)), Some(Offset(30)))
        );
    }
}
