//! The shop's topics as a source: any partition next, a few messages at a time, now and then some that were read before.

use std::time::Duration;

use rand::Rng;
use rand::seq::IndexedRandom;

use super::world::{Shared, lock};
use crate::source::{Error, Look, MessageBatch, Source, Watermarks};
use crate::thread;
use crate::time::{Offset, Position};

/// Most messages of a batch.
const BATCH_MAX: usize = 6;

pub struct Topics {
    world: Shared,
    next: Position,
}

impl Topics {
    pub fn new(world: Shared) -> Topics {
        Topics { world, next: Position::default() }
    }
}

fn away() -> Error {
    Error::Unavailable { brokers: "the shop".into(), reason: "it is away".into() }
}

impl Source for Topics {
    fn look(&mut self) -> Result<Vec<Look>, Error> {
        let mut world = lock(&self.world);
        if world.fails() {
            return Err(away());
        }
        let marks = world.shop.topics.iter().map(|(partition, topic)| {
            let (low, high) = (Offset(topic.low), Offset(topic.end()));
            (partition.clone(), Ok(Watermarks { low, high }))
        });
        let mut looked: Vec<Look> = marks.collect();
        // Its leader is away, and the others' are not.
        if world.fails() {
            let one = world.rng.random_range(0..looked.len());
            looked[one].1 = Err(away());
        }
        Ok(looked)
    }

    /// The shop's connector sends no heartbeats.
    fn written(&mut self, _topic: &str) -> Result<i64, Error> {
        Ok(0)
    }

    fn seek(&mut self, position: &Position) -> Result<(), Error> {
        let mut world = lock(&self.world);
        if world.fails() {
            return Err(away());
        }
        self.next = Position::default();
        for (partition, topic) in &world.shop.topics {
            let (low, high) = (topic.low, topic.end());
            let start = position.get(partition).unwrap_or(Offset(low));
            if start.0 < low || start.0 > high {
                return Err(Error::OutOfRange { partition: partition.clone(), wanted: start.0, low, high });
            }
            self.next.advance(partition, start);
        }
        Ok(())
    }

    fn poll(&mut self, timeout: Duration) -> Result<Option<MessageBatch>, Error> {
        thread::pause(timeout);
        let mut world = lock(&self.world);
        if world.fails() {
            return Err(away());
        }
        let world = &mut *world;
        let waiting =
            world.shop.topics.iter().filter(|(p, topic)| self.next.get(p).unwrap_or_default().0 < topic.end());
        let waiting: Vec<_> = waiting.collect();
        let Some((partition, topic)) = waiting.choose(&mut world.rng).copied() else { return Ok(None) };
        let next = self.next.get(partition).unwrap_or_default().0;
        let again = if world.rng.random_bool(0.1) { world.rng.random_range(1..=3) } else { 0 };
        let from = (next - again).max(topic.low);
        let count = world.rng.random_range(1..=BATCH_MAX) + (next - from) as usize;
        let mut batch = MessageBatch::new(partition.clone());
        for (n, message) in
            topic.messages.iter().enumerate().skip(from as usize).filter(|(_, m)| !m.is_marker).take(count)
        {
            batch.push(Offset(n as i64), message.timestamp_ms, message.key.as_deref(), message.value.as_deref());
        }
        // Markers have offsets, and no message.
        if batch.messages.is_empty() {
            batch = MessageBatch::passed(partition.clone(), Offset(topic.end()));
        }
        self.next.advance(partition, batch.end().expect("it has one of both"));
        Ok(Some(batch))
    }
}
