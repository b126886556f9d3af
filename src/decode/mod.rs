//! Decoding turns messages into changes of rows: bytes -> event -> change, by column, straight into Arrow's row format.
//!
//! The invariant: every message of a batch becomes a change, a skip (heartbeat, transaction marker) or a [`Reject`]; none is
//! lost, and one bad message never harms another. Infrastructure that fails (the registry is away) is an `Err`, never a reject.

mod assembly;
pub(crate) mod avro;
pub(crate) mod cell;
mod decoder;
pub(crate) mod envelope;
mod instant;
pub(crate) mod json;
pub(crate) mod logical;
mod plan;
mod registry;
mod row;
pub(crate) mod schema;
mod taken;
pub(crate) mod text;
pub(crate) mod unavailable;
pub(crate) mod wire;

use std::sync::Arc;

pub use decoder::Decoder;
pub(crate) use decoder::schema_and_payload;
pub use registry::{Error, FixedSchemas, RegistryClient, SchemaStore};
pub use row::{ContractError, ContractErrors, RowType};
pub(crate) use taken::{Taken, TakenEvent, TakenValue, WriterSchema};

use crate::time::{Coordinates, Offset, Partition};

/// What one [`crate::source::MessageBatch`] came to.
#[derive(Clone, Debug)]
pub struct Decoded {
    /// Index of the source in the configuration.
    pub source: usize,
    pub partition: Partition,
    /// The next offset after the batch.
    pub end: Offset,
    /// In the order of their offsets.
    pub changes: Vec<Change>,
    pub rejects: Vec<Reject>,
    pub counts: Counts,
}

/// One change of one key. A key change becomes two: a delete of the old key and an upsert of the new one.
#[derive(Clone, Debug)]
pub struct Change {
    pub offset: Offset,
    /// The key columns in row format; empty for [`Op::Truncate`].
    pub key: Box<[u8]>,
    pub op: Op,
    /// When the source committed it, in milliseconds since 1970; 0 when unknown, from a snapshot, or read again.
    pub commit_ms: i64,
    pub origin: Origin,
}

/// Where in the source a change comes from: Debezium's `source`, as far as it is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// When the source committed it (or the snapshot read it), in milliseconds since 1970.
    pub ts_ms: i64,
    pub snapshot: bool,
    /// PostgreSQL's log sequence number.
    pub lsn: Option<i64>,
    /// SQL Server's.
    pub change_lsn: Option<Arc<str>>,
    pub commit_lsn: Option<Arc<str>>,
    pub event_serial_no: Option<i64>,
    pub table: Option<Arc<str>>,
}

#[derive(Clone, Debug)]
pub enum Op {
    /// The whole row in row format (the contract's columns). `unavailable` lists columns whose value the database did not
    /// send: they keep what the row had.
    Upsert {
        row: Arc<[u8]>,
        unavailable: Option<Box<[u16]>>,
    },
    Delete,
    /// Removes every row of the source.
    Truncate,
}

/// Events of a batch by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub create: u64,
    pub update: u64,
    pub delete: u64,
    pub snapshot: u64,
    pub truncate: u64,
    pub tombstone: u64,
    pub skipped: u64,
}

/// A message that could not become a change: bad data as a value. It keeps its coordinates and its bytes.
#[derive(Clone, Debug)]
pub struct Reject {
    pub partition: Partition,
    pub offset: Offset,
    pub timestamp_ms: i64,
    pub rule: Rule,
    /// One sentence: what was found and what was expected.
    pub reason: String,
    pub schema_id: Option<u32>,
    pub key: Option<Box<[u8]>>,
    pub value: Option<Box<[u8]>>,
    /// The message had a value, and raw has it in columns alone: there are no bytes any more.
    pub value_in_raw: bool,
}

impl Reject {
    pub fn coordinates(&self) -> Coordinates {
        Coordinates { partition: self.partition.clone(), offset: self.offset }
    }
}

/// Why a message was rejected; the label of the metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rule {
    /// Not Confluent's wire format, or not JSON.
    Wire,
    /// The registry knows no such schema id.
    UnknownSchema,
    /// The body is not what its schema says.
    Body,
    /// No Debezium envelope, or an operation that is none.
    Envelope,
    /// A type that Freshet does not know, named in the reason.
    Type,
    /// A value that its column cannot hold.
    Value,
    /// The writer schema breaks the source's contract.
    Contract,
    /// A data test of the dataflow.
    Test,
}

impl Rule {
    pub const ALL: [Rule; 8] = [
        Rule::Wire,
        Rule::UnknownSchema,
        Rule::Body,
        Rule::Envelope,
        Rule::Type,
        Rule::Value,
        Rule::Contract,
        Rule::Test,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Rule::Wire => "wire",
            Rule::UnknownSchema => "unknown_schema",
            Rule::Body => "body",
            Rule::Envelope => "envelope",
            Rule::Type => "type",
            Rule::Value => "value",
            Rule::Contract => "contract",
            Rule::Test => "test",
        }
    }

    /// The stage that rejects by this rule.
    pub fn stage(self) -> &'static str {
        match self {
            Rule::Test => "test",
            _ => "decode",
        }
    }
}
