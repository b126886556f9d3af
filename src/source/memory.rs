//! A source in memory, for tests: a log that a handle appends to, with outages on demand.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::{Error, MessageBatch, Source, Watermarks};
use crate::time::{Offset, Partition, Position};

type Entry = (Option<Vec<u8>>, Option<Vec<u8>>);

/// The log by partition; clones share it.
#[derive(Clone, Default)]
pub struct MemoryLog(Arc<Mutex<Log>>);

#[derive(Default)]
struct Log {
    partitions: BTreeMap<Partition, Vec<Entry>>,
    failures: usize,
}

impl MemoryLog {
    pub fn append(&self, partition: &Partition, key: Option<&[u8]>, value: Option<&[u8]>) -> Offset {
        let mut log = self.lock();
        let entries = log.partitions.entry(partition.clone()).or_default();
        entries.push((key.map(Into::into), value.map(Into::into)));
        Offset(entries.len() as i64 - 1)
    }

    /// Makes the next `calls` calls of every source on this log fail.
    pub fn fail(&self, calls: usize) {
        self.lock().failures = calls;
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        self.0.lock().expect("no holder of this lock panics")
    }
}

pub struct MemorySource {
    log: MemoryLog,
    next: Position,
    batch_max_messages: usize,
}

impl MemorySource {
    pub fn new(log: MemoryLog, batch_max_messages: usize) -> MemorySource {
        MemorySource { log, next: Position::default(), batch_max_messages }
    }

    fn log(&self) -> Result<MutexGuard<'_, Log>, Error> {
        let mut log = self.log.lock();
        if log.failures > 0 {
            log.failures -= 1;
            return Err(Error::Unavailable { brokers: "memory".into(), reason: "an outage that was asked for".into() });
        }
        Ok(log)
    }
}

impl Source for MemorySource {
    fn watermarks(&mut self) -> Result<Vec<(Partition, Watermarks)>, Error> {
        let log = self.log()?;
        Ok(log
            .partitions
            .iter()
            .map(|(p, e)| (p.clone(), Watermarks { low: Offset(0), high: Offset(e.len() as i64) }))
            .collect())
    }

    fn seek(&mut self, position: &Position) -> Result<(), Error> {
        self.next = position.clone();
        Ok(())
    }

    fn poll(&mut self, timeout: Duration) -> Result<Option<MessageBatch>, Error> {
        let mut found = None;
        {
            let log = self.log()?;
            for (partition, entries) in &log.partitions {
                let start = self.next.get(partition).unwrap_or_default().0 as usize;
                if start < entries.len() {
                    let mut batch = MessageBatch::new(partition.clone());
                    for (n, (key, value)) in entries.iter().enumerate().skip(start).take(self.batch_max_messages) {
                        batch.push(Offset(n as i64), 0, key.as_deref(), value.as_deref());
                    }
                    found = Some(batch);
                    break;
                }
            }
        }
        match &found {
            Some(batch) => {
                let end = batch.end().unwrap_or_default();
                self.next.advance(&batch.partition, end);
            }
            None => std::thread::sleep(timeout.min(Duration::from_millis(5))),
        }
        Ok(found)
    }
}
