//! Raw is where every event lands as it came: one Delta table for each source, append-only, readable by anything that reads Delta.
//!
//! ```text
//! source --> Landing (bounded queue) --> Events: rows by the writer's schema --> RawTable: one commit = files + txn
//!                                                                                   |
//!                   Decoder <-- Hydration <-- snapshot + tail <-- upkeep (compaction, vacuum, checkpoint, snapshot)
//! ```
//!
//! The invariant: a table holds every (topic, partition, offset) below its landed position exactly once, whatever crashes. It rests on
//! three rules. A commit carries its rows together with, for each partition, a `txn` action that says up to where they go. A commit is put as
//! the one version that follows what this writer has seen, and only if that version is not there: a log that anybody else has written to
//! refuses it. A commit whose outcome is not known is put again with the same bytes under the same version, until the log says whose it is.
//!
//! Nothing here is on the path to the index, and landing judges no event: what cannot be read lands with its bytes and the reason. What decoding
//! rejects waits in a table beside these ([`Quarantine`]), and is in it before it lands.
//!
//! | column | |
//! |---|---|
//! | `topic`, `partition`, `offset` | where the message is in Kafka |
//! | `timestamp`, `day` | the broker's time stamp (the last one that microseconds reach, for any beyond); its day in UTC, by which the table is partitioned |
//! | `commit` | the version of the table that brought the row |
//! | `key` | the message's key as it came |
//! | `op` | `c`, `u`, `d`, `r`, `t`; null where the value was not read as an event |
//! | `ts_ms`, `snapshot`, `lsn`, `change_lsn`, `commit_lsn`, `event_serial_no`, `table` | Debezium's source position |
//! | `schema_id` | the registry's id of the value's schema, or a hash of a JSON message's schema part; the table's property `freshet.schema.<id>` has its text |
//! | `before`, `after` | the row, every column that its writer had; a value lies as `value.rs` says |
//! | `unavailable` | columns of `after` whose value the database did not send (null there) |
//! | `value` | the message's value as it came, where the columns above do not say all of it |
//! | `error` | why they do not |

mod columns;
mod events;
mod files;
mod hydrate;
mod landing;
mod log;
mod merge;
mod patience;
mod quarantine;
mod snapshot;
mod store;
mod table;
mod upkeep;
mod value;
mod writer;

#[cfg(test)]
mod tests;

use arrow::error::ArrowError;
use buoyant_kernel::error::Error as KernelError;
use deltalake::DeltaTableError;
use deltalake::ObjectStoreError;
use deltalake::parquet::errors::ParquetError;

pub use columns::Columns;
pub use events::{Events, Rows};
pub use hydrate::{Hydration, LastMessage};
pub use landing::{Landing, Observer};
pub use quarantine::{Entries, Entry, Gate, Quarantine, QuarantineTable};
pub use snapshot::{Snapshot, SnapshotStats};
pub use table::RawTable;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Passing: call again; what was asked for has not happened, or will be found to have.
    #[error("the table {table} cannot be reached: {reason}")]
    Storage { table: String, reason: String },
    /// The same for the schema registry.
    #[error(transparent)]
    Schemas(#[from] crate::decode::Error),
    /// Somebody else writes to the table. This writer has stopped: what it would add may be there already.
    #[error(
        "another writer has committed version {version} of the table {table} ({by}); it has one writer: stop the other one and start again"
    )]
    OtherWriter { table: String, version: u64, by: String },
    /// Will not heal by waiting.
    #[error("the table {table}: {reason}")]
    Table { table: String, reason: String },
}

impl Error {
    /// Whether waiting can help.
    pub fn is_passing(&self) -> bool {
        match self {
            Error::Storage { .. } => true,
            Error::Schemas(e) => e.is_passing(),
            Error::OtherWriter { .. } | Error::Table { .. } => false,
        }
    }

    fn delta(table: &str, error: DeltaTableError) -> Error {
        use DeltaTableError as E;
        let lasting = match &error {
            E::ObjectStore { source } => is_lasting(source),
            E::KernelError(e) => is_damage(e),
            E::InvalidJsonLog { .. } | E::InvalidStatsJson { .. } | E::InvalidTableLocation(_) | E::NotATable(_) => {
                true
            }
            _ => false,
        };
        Error::of(table, lasting, error.to_string())
    }

    fn parquet(table: &str, error: ParquetError) -> Error {
        Error::of(table, is_damaged(&error), error.to_string())
    }

    fn store(table: &str, error: ObjectStoreError) -> Error {
        Error::of(table, is_lasting(&error), error.to_string())
    }

    fn of(table: &str, lasting: bool, reason: String) -> Error {
        match lasting {
            true => Error::Table { table: table.into(), reason },
            false => Error::Storage { table: table.into(), reason },
        }
    }

    fn lasting(table: &str, reason: impl ToString) -> Error {
        Error::of(table, true, reason.to_string())
    }
}

/// Whether delta-rs has read what it cannot understand, and not only failed to read.
fn is_damage(error: &KernelError) -> bool {
    use KernelError as E;
    match error {
        E::Backtraced { source, .. } => is_damage(source),
        E::ObjectStore(source) => is_lasting(source),
        E::Parquet(source) => is_damaged(source),
        E::Arrow(ArrowError::ExternalError(_) | ArrowError::IoError(..)) => false,
        E::IOError(_) | E::Reqwest(_) | E::JoinFailure(_) | E::Generic(_) | E::GenericError { .. } => false,
        _ => true,
    }
}

/// Whether a file that a commit names is not there, or was read and is not what was written.
fn is_damaged(error: &ParquetError) -> bool {
    match error {
        ParquetError::External(e) => match e.downcast_ref() {
            Some(ObjectStoreError::NotFound { .. }) => true,
            found => found.is_some_and(is_lasting),
        },
        _ => true,
    }
}

fn is_lasting(error: &ObjectStoreError) -> bool {
    use ObjectStoreError as E;
    matches!(
        error,
        E::InvalidPath { .. }
            | E::NotSupported { .. }
            | E::NotImplemented { .. }
            | E::PermissionDenied { .. }
            | E::Unauthenticated { .. }
            | E::UnknownConfigurationKey { .. }
    )
}
