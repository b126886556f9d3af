//! The quarantine's rows, read back, for whoever wants to see them.
//!
//! The invariant: reading writes nothing, also not a table that is not there, and may go on beside the one who writes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use deltalake::DeltaTable;
use deltalake::logstore::LogStoreRef;
use deltalake::table::builder::DeltaTableConfig;

use super::{BYTES, projected};
use crate::raw::files::{DataFile, longs, partitions};
use crate::raw::merge::Merge;
use crate::raw::{Error, store};
use crate::time::{Coordinates, Offset, Partition};

/// A message in quarantine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub at: Coordinates,
    /// The broker's, like the others in milliseconds since 1970.
    pub timestamp_ms: i64,
    /// As it came, if it was asked for.
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    /// The value's bytes were not kept: the raw table has it, in columns.
    pub value_in_raw: bool,
    pub schema_id: Option<u32>,
    pub stage: String,
    pub rule: String,
    pub reason: String,
    pub quarantined_ms: i64,
    /// `None` while it is open.
    pub healed_ms: Option<i64>,
}

pub struct Entries(Merge);

impl Entries {
    /// The quarantine at `location` as of now, oldest first; `None` if there is none. `bytes` says whether keys and values are wanted.
    pub async fn open(
        location: &str,
        options: &BTreeMap<String, String>,
        bytes: bool,
    ) -> Result<Option<Entries>, Error> {
        if !location.contains("://") && !Path::new(location).exists() {
            return Ok(None);
        }
        Entries::with_log_store(location, store::log_store(location, options)?, bytes).await
    }

    pub(super) async fn with_log_store(
        location: &str,
        store: LogStoreRef,
        bytes: bool,
    ) -> Result<Option<Entries>, Error> {
        let delta = |e| Error::delta(location, e);
        if !store.is_delta_table_location().await.map_err(delta)? {
            return Ok(None);
        }
        let mut table = DeltaTable::new(store.clone(), DeltaTableConfig::default());
        table.load().await.map_err(delta)?;
        let files = DataFile::all(&table).map_err(|e| Error::lasting(location, e))?;
        let schema = projected(|column| bytes || !BYTES.contains(&column));
        Ok(Some(Entries(Merge::new(location, store.object_store(None), schema, files))))
    }

    /// The next of them; `None` after the last.
    pub async fn next(&mut self) -> Result<Option<Vec<Entry>>, Error> {
        Ok(self.0.next().await?.map(|rows| entries(&rows)))
    }
}

fn entries(rows: &RecordBatch) -> Vec<Entry> {
    let column = |name: &str| rows.column_by_name(name).expect("it was read by this schema").as_ref();
    let bytes = |name: &str, row: usize| {
        let column = rows.column_by_name(name)?;
        column.is_valid(row).then(|| column.as_binary::<i32>().value(row).to_vec())
    };
    let text = |name: &str, row: usize| column(name).as_string::<i32>().value(row).to_string();
    let (schema_ids, in_raw) = (column("schema_id"), column("value_in_raw"));
    let schema_id = |row| schema_ids.is_valid(row).then(|| schema_ids.as_primitive::<Int64Type>().value(row) as u32);
    let mut topic: Arc<str> = "".into();
    let entry = |row| {
        let name = column("topic").as_string::<i32>().value(row);
        if *topic != *name {
            topic = name.into();
        }
        let offset = Offset(longs(rows, "offset")[row]);
        Entry {
            at: Coordinates { partition: Partition::new(topic.clone(), partitions(rows)[row]), offset },
            timestamp_ms: millis(column("timestamp"), row).unwrap_or_default(),
            key: bytes("key", row),
            value: bytes("value", row),
            value_in_raw: in_raw.is_valid(row) && in_raw.as_boolean().value(row),
            schema_id: schema_id(row),
            stage: text("stage", row),
            rule: text("rule", row),
            reason: text("reason", row),
            quarantined_ms: millis(column("quarantined_at"), row).unwrap_or_default(),
            healed_ms: millis(column("healed_at"), row),
        }
    };
    (0..rows.num_rows()).map(entry).collect()
}

pub(super) fn millis(column: &dyn Array, row: usize) -> Option<i64> {
    column.is_valid(row).then(|| column.as_primitive::<TimestampMicrosecondType>().value(row) / 1000)
}
