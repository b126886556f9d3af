//! The reader takes messages from the source and decodes them, a step at a time.
//!
//! The invariant: it begins where raw ends, or at the first offsets that the topics still have, and skips nothing from there on. After a passing
//! trouble the same step may be taken again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::raw::follows_on;
use crate::config::{self, Config};
use crate::decode::{Counts, Decoded, Decoder, RowType, SchemaStore};
use crate::source::{self, MessageBatch, Source, Watermarks};
use crate::time::{Offset, Partition, Position};

pub(crate) struct Reader<S> {
    source: S,
    sources: Vec<config::Source>,
    raw: Option<config::Raw>,
    /// In the sources' order.
    decoders: Vec<Decoder>,
    begin: Begin,
    /// How far was read.
    read: Position,
}

impl<S: Source> Reader<S> {
    /// `row_types` are those of the configuration's sources.
    pub fn new(
        config: &Config,
        row_types: &[Arc<RowType>],
        schemas: &Arc<dyn SchemaStore>,
        source: S,
    ) -> Result<Reader<S>, String> {
        let of = |(n, (source, row_type)): (usize, (&config::Source, &Arc<RowType>))| {
            Decoder::new(n, source, row_type.clone(), schemas.clone()).map_err(|e| e.to_string())
        };
        let decoders = config.sources.iter().zip(row_types).enumerate().map(of).collect::<Result<_, String>>()?;
        let (begin, read) = Default::default();
        Ok(Reader { source, sources: config.sources.clone(), raw: config.raw.clone(), decoders, begin, read })
    }

    pub fn source(&self) -> &S {
        &self.source
    }

    /// All partitions with their watermarks, as of now.
    pub fn watermarks(&mut self) -> Result<Vec<(Partition, Watermarks)>, Trouble> {
        Ok(self.source.watermarks()?)
    }

    /// Puts the source where raw ends, or at the first offsets that the topics still have. Answers how far the view has to come before the index
    /// may follow it; `announced` is how far the index may be.
    pub fn begin(&mut self, announced: &Position, landed: Option<&Position>) -> Result<Position, Trouble> {
        let marks: BTreeMap<Partition, Watermarks> = self.source.watermarks()?.into_iter().collect();
        match (landed, &self.raw) {
            (Some(landed), Some(raw)) => follows_on(raw, &self.sources, landed, &marks)?,
            _ => say_what_is_lost(announced, &marks),
        }
        let begin = Begin::of(&marks, landed, announced);
        self.source.seek(&begin.start)?;
        (self.read, self.begin) = (begin.start.clone(), begin);
        Ok(self.begin.target.clone())
    }

    /// Where reading begins, to be handed on before anything that was read: of a partition whose records have all expired nothing else would
    /// ever come.
    pub fn begun(&self) -> Vec<Decoded> {
        let begun = |(partition, end): (&Partition, Offset)| {
            let source = self.source_of(partition).filter(|_| end > Offset(0))?;
            let (changes, rejects, counts) = (Vec::new(), Vec::new(), Counts::default());
            Some(Decoded { source, partition: partition.clone(), end, changes, rejects, counts })
        };
        self.begin.start.iter().filter_map(begun).collect()
    }

    /// Reads partitions too that a topic has gained, each from its first offset.
    pub fn join_added(&mut self, marks: &[(Partition, Watermarks)]) -> Result<(), Trouble> {
        let added: Position = marks.iter().map(|(p, marks)| (p.clone(), marks.low)).collect();
        let mut next = self.read.clone();
        for (partition, low) in added.iter().filter(|(partition, _)| self.read.get(partition).is_none()) {
            tracing::info!(%partition, "the topic has gained this partition; it is read from its first offset");
            next.advance(partition, low);
        }
        if next != self.read {
            self.source.seek(&next)?;
            self.read = next;
        }
        Ok(())
    }

    /// The next messages of one partition; waits for them up to `timeout`.
    pub fn poll(&mut self, timeout: Duration) -> Result<Option<MessageBatch>, Trouble> {
        let batch = self.source.poll(timeout)?;
        if let Some((batch, end)) = batch.as_ref().and_then(|batch| Some((batch, batch.end()?))) {
            self.read.advance(&batch.partition, end);
        }
        Ok(batch)
    }

    /// What a batch comes to. What the index knew already, or catches up with, has no commit time: it is not fresh.
    pub async fn decode(&mut self, batch: &MessageBatch) -> Result<Decoded, Trouble> {
        let n = self.source_of(&batch.partition).expect("a source yields messages of the topics that it was asked for");
        let decoded = self.decoders[n].decode(batch).await;
        let mut decoded = decoded.map_err(|e| Trouble { passing: true, reason: e.to_string() })?;
        let old = self.begin.old.get(&decoded.partition).unwrap_or_default();
        decoded.changes.iter_mut().filter(|c| c.offset < old).for_each(|c| c.commit_ms = 0);
        Ok(decoded)
    }

    fn source_of(&self, partition: &Partition) -> Option<usize> {
        self.sources.iter().position(|s| s.topic == partition.topic)
    }
}

fn say_what_is_lost(announced: &Position, marks: &BTreeMap<Partition, Watermarks>) {
    for (partition, Watermarks { low, high }) in marks {
        let announced = announced.get(partition).unwrap_or_default();
        if announced > *high {
            tracing::warn!(%partition, announced = announced.0, high = high.0, "the topic ends before what the index has seen: it was made anew, and is read as new");
        }
        if *low > Offset(0) {
            tracing::warn!(%partition, low = low.0, "the topic no longer begins at its first offset; rows that only its lost part had are not known");
        }
    }
}

/// Where reading starts.
#[derive(Default)]
struct Begin {
    /// Of every partition, also of those that are read from offset 0.
    start: Position,
    /// How far the view has to come before the index may follow it.
    target: Position,
    /// What lies before this is not fresh: the index knew it already, or is new and catches up with it.
    old: Position,
}

impl Begin {
    fn of(marks: &BTreeMap<Partition, Watermarks>, landed: Option<&Position>, announced: &Position) -> Begin {
        let mut begin = Begin::default();
        for (partition, Watermarks { low, high }) in marks {
            let announced = announced.get(partition).map(|a| a.min(*high));
            begin.start.advance(partition, landed.and_then(|l| l.get(partition)).unwrap_or(*low));
            begin.target.advance(partition, announced.unwrap_or_default());
            begin.old.advance(partition, announced.unwrap_or(*high));
        }
        begin
    }
}

/// What keeps a step from being done.
pub(crate) struct Trouble {
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
        let mut all_read = begin.start.clone();
        // A partition between whose watermarks nothing lies yields nothing.
        all_read.join(&at.iter().filter(|(_, w)| w.low < w.high).map(|(p, w)| (p.clone(), w.high)).collect());
        assert!(all_read.covers(&begin.target), "{all_read:?} does not cover {:?}", begin.target);
        let landed = position(&[(0, 100), (1, 80)]);
        assert_eq!(Begin::of(&at, Some(&landed), &announced).start.get(&partition(1)), Some(Offset(80)));
    }
}
