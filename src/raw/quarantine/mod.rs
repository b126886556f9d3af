//! Quarantine is where a rejected message waits: with its coordinates, its bytes, the rule and the reason, as a row of a Delta table of its own.
//!
//! ```text
//! Decoded --rejects, what has healed--> Quarantine (bounded queue) --> QuarantineTable: one commit = rows + marks
//!                                          |
//!                                          Gate: the index's position and raw's commits wait here
//! ```
//!
//! The invariant: a message is in it once, however often it is read again, and it is there before raw lands it and before the announced position
//! passes it. A message is open until it has been read again and has become a change: then its row is marked as healed. So there is nothing
//! to be retried by hand: a start reads every message again, at its own offset, under the contracts and the registry of the day.
//!
//! | column | |
//! |---|---|
//! | `topic`, `partition`, `offset`, `timestamp` | where the message is in Kafka; the broker's time stamp |
//! | `commit` | the version of the table that brought the row |
//! | `key`, `value` | the message as it came |
//! | `value_in_raw` | the value is not here: the raw table had taken it apart before the contract began to refuse it |
//! | `schema_id` | the registry's id of the value's schema, as far as the value names one |
//! | `stage`, `rule`, `reason` | who rejected it, by what, and why |
//! | `quarantined_at`, `healed_at` | when; the second is null while the message is open |

mod entry;
mod keeper;
mod table;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};

use super::columns::COMMIT;
use crate::decode::Reject;
use crate::decode::logical::UTC;
use crate::time::Coordinates;

pub use entry::{Entries, Entry};
pub use keeper::{Gate, Quarantine};
pub use table::QuarantineTable;

/// A message. By its time stamp it is another one than that of a topic which lay there before, and had the same coordinates.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Message {
    at: Coordinates,
    timestamp_ms: i64,
}

impl Message {
    fn of(reject: &Reject) -> Message {
        Message::new(reject.coordinates(), reject.timestamp_ms)
    }

    /// A time stamp that microseconds do not reach is the last one that they do, as in raw.
    fn new(at: Coordinates, timestamp_ms: i64) -> Message {
        Message { at, timestamp_ms: timestamp_ms.clamp(i64::MIN / 1000, i64::MAX / 1000) }
    }
}

/// Columns that say which message a row is of, and whether it is open.
const IDENTITY: [&str; 6] = ["topic", "partition", "offset", "timestamp", COMMIT, "healed_at"];
/// The bytes.
const BYTES: [&str; 2] = ["key", "value"];

fn schema() -> SchemaRef {
    let micros = DataType::Timestamp(TimeUnit::Microsecond, Some(UTC.into()));
    let field = |name: &str, ty: DataType| Field::new(name, ty, true);
    Arc::new(Schema::new(vec![
        field("topic", DataType::Utf8),
        field("partition", DataType::Int32),
        field("offset", DataType::Int64),
        field("timestamp", micros.clone()),
        field(COMMIT, DataType::Int64),
        field("key", DataType::Binary),
        field("value", DataType::Binary),
        field("value_in_raw", DataType::Boolean),
        field("schema_id", DataType::Int64),
        field("stage", DataType::Utf8),
        field("rule", DataType::Utf8),
        field("reason", DataType::Utf8),
        field("quarantined_at", micros.clone()),
        field("healed_at", micros),
    ]))
}

/// The columns that `keep` takes.
fn projected(keep: impl Fn(&str) -> bool) -> SchemaRef {
    let whole = schema();
    Arc::new(Schema::new(whole.fields().iter().filter(|f| keep(f.name())).cloned().collect::<Vec<_>>()))
}
