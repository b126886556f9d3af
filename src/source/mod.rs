//! A source yields the messages of its topics, partition by partition, in the order of their offsets.
//!
//! It keeps the invariant that within one partition offsets only grow, and it never interprets a byte of what it carries.
//! The seam between the world and the engine: [`kafka`] is the real one; [`embedded`] is a broker and a schema registry
//! inside this process for the demo and the tests, reached over real sockets.

pub mod embedded;
pub mod kafka;

use std::ops::Range;
use std::time::Duration;

use crate::time::{Offset, Partition, Position};

/// Messages of one partition in the order of their offsets (which may have gaps: compaction, transaction markers).
/// Keys and values of all messages lie in one buffer.
#[derive(Clone, Debug)]
pub struct MessageBatch {
    pub partition: Partition,
    /// Keys and values, one after the other.
    pub bytes: Vec<u8>,
    pub messages: Vec<Message>,
    /// Where the next messages begin, if not right after these: what lies between is known to hold none.
    passed: Option<Offset>,
}

/// One message; its key and value are ranges of [`MessageBatch::bytes`]. `None` is Kafka's null.
#[derive(Clone, Debug)]
pub struct Message {
    pub offset: Offset,
    /// The broker's or producer's time stamp in milliseconds since 1970; 0 when there is none.
    pub timestamp_ms: i64,
    pub key: Option<Range<usize>>,
    pub value: Option<Range<usize>>,
}

impl MessageBatch {
    pub fn new(partition: Partition) -> Self {
        MessageBatch { partition, bytes: Vec::new(), messages: Vec::new(), passed: None }
    }

    /// No messages: none lies before `end`.
    pub fn passed(partition: Partition, end: Offset) -> Self {
        MessageBatch { passed: Some(end), ..Self::new(partition) }
    }

    pub fn push(&mut self, offset: Offset, timestamp_ms: i64, key: Option<&[u8]>, value: Option<&[u8]>) {
        let mut put = |part: Option<&[u8]>| {
            part.map(|part| {
                let start = self.bytes.len();
                self.bytes.extend_from_slice(part);
                start..self.bytes.len()
            })
        };
        let (key, value) = (put(key), put(value));
        self.messages.push(Message { offset, timestamp_ms, key, value });
    }

    pub fn key(&self, message: &Message) -> Option<&[u8]> {
        message.key.clone().map(|r| &self.bytes[r])
    }

    pub fn value(&self, message: &Message) -> Option<&[u8]> {
        message.value.clone().map(|r| &self.bytes[r])
    }

    /// The next offset after this batch; `None` when it says nothing of any.
    pub fn end(&self) -> Option<Offset> {
        self.passed.or(self.messages.last().map(|m| Offset(m.offset.0 + 1)))
    }
}

/// Low and high watermark of a partition: the first offset that is kept, and the next one to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermarks {
    pub low: Offset,
    pub high: Offset,
}

/// A partition as it is now, or why that cannot be told.
pub type Look = (Partition, Result<Watermarks, Error>);

/// Where messages come from. Used by one thread.
pub trait Source: Send {
    /// All partitions of the topics, as of now. One that is away hides no other: its error is a passing one.
    fn look(&mut self) -> Result<Vec<Look>, Error>;

    /// All partitions of the topics with their watermarks, as of now.
    fn watermarks(&mut self) -> Result<Vec<(Partition, Watermarks)>, Error> {
        self.look()?.into_iter().map(|(partition, marks)| Ok((partition, marks?))).collect()
    }

    /// How many messages a topic has ever had; 0 when there is none of this name.
    fn written(&mut self, topic: &str) -> Result<i64, Error>;

    /// Reads every partition from `position`; partitions that it does not name, from the first offset that is kept.
    fn seek(&mut self, position: &Position) -> Result<(), Error>;

    /// The next messages of any partition, or where a partition ends when nothing but transaction markers lies before it: waits up to
    /// `timeout`, then answers `None`.
    /// A peer that is away is [`Error::Unavailable`], which may be said once or more often than it is so: [`Source::look`] tells. Has to be
    /// called meanwhile.
    fn poll(&mut self, timeout: Duration) -> Result<Option<MessageBatch>, Error>;

    /// Bytes that were fetched and not polled yet.
    fn queued_bytes(&self) -> usize {
        0
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Passing: the broker is away or slow. Call again; nothing is lost.
    #[error("kafka at {brokers} does not answer: {reason}")]
    Unavailable { brokers: String, reason: String },
    /// A listed topic does not exist (yet).
    #[error("topic {topic} does not exist at {brokers}")]
    NoTopic { brokers: String, topic: String },
    /// The next offset to be read is no longer, or not yet, in the partition.
    #[error("{partition} no longer holds offset {wanted}: it keeps {low} to {high}")]
    OutOfRange { partition: Partition, wanted: i64, low: i64, high: i64 },
    /// Will not heal by waiting: a missing permission, a damaged message, a setting that librdkafka refuses.
    #[error("kafka at {brokers}: {reason}")]
    Fatal { brokers: String, reason: String },
}

impl Error {
    /// Whether waiting can help.
    pub fn is_passing(&self) -> bool {
        matches!(self, Error::Unavailable { .. } | Error::NoTopic { .. })
    }
}
