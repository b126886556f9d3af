//! Upsert keeps the latest row of every key of one table and turns changes of rows into diffs.
//!
//! The invariant: what it has emitted so far sums up to exactly the rows that it holds. It has a map of its own, because `before` cannot be
//! trusted and because differential's upsert arrangement costs several times as much (see shared/findings.md).

use std::sync::Arc;

use ahash::AHashMap;

use super::Row;
use super::key::Key;
use super::stats::Size;
use crate::decode::RowType;

/// What arrives at a worker: one change of one key of one table.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Event {
    /// Which worker it belongs to, modulo their number: the key's hash, or a worker's index for a truncate.
    pub route: u64,
    pub key: Key,
    pub op: EventOp,
}

#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(super) enum EventOp {
    Upsert { row: Row, unavailable: Option<Box<[u16]>> },
    Delete,
    Truncate,
}

pub(super) struct Upsert {
    rows: AHashMap<Key, Row>,
    row_type: Arc<RowType>,
    size: Size,
    not_sent: u64,
}

impl Upsert {
    pub fn new(row_type: Arc<RowType>) -> Upsert {
        Upsert { rows: AHashMap::new(), row_type, size: Size::default(), not_sent: 0 }
    }

    /// Applies a change and emits its diffs.
    pub fn apply(&mut self, event: Event, mut emit: impl FnMut(Row, isize)) {
        match event.op {
            EventOp::Upsert { row, unavailable } => {
                let row = match (unavailable, self.rows.get(&event.key)) {
                    (Some(columns), Some(old)) => patch(&self.row_type, &row, old, &columns),
                    // Its key is new, or what came before is not in the topic: the values are null until they are sent.
                    (Some(columns), None) => {
                        self.not_sent += columns.len() as u64;
                        row
                    }
                    (None, _) => row,
                };
                match self.rows.get_mut(&event.key) {
                    Some(old) if **old == *row => {}
                    Some(old) => {
                        self.size.bytes += row.len() as i64 - old.len() as i64;
                        emit(std::mem::replace(old, row.clone()), -1);
                        emit(row, 1);
                    }
                    None => {
                        self.size.add(event.key.len() + row.len());
                        self.rows.insert(event.key, row.clone());
                        emit(row, 1);
                    }
                }
            }
            EventOp::Delete => {
                if let Some(old) = self.rows.remove(&event.key) {
                    self.size.remove(event.key.len() + old.len());
                    emit(old, -1);
                }
            }
            EventOp::Truncate => {
                self.size = Size::default();
                self.rows.drain().for_each(|(_, old)| emit(old, -1));
            }
        }
    }

    pub fn size(&self) -> Size {
        self.size
    }

    /// Values so far that the database did not send and that no former row had.
    pub fn not_sent(&self) -> u64 {
        self.not_sent
    }
}

/// The new row with the old row's values in the columns that the database did not send.
pub fn patch(row_type: &RowType, new: &[u8], old: &[u8], columns: &[u16]) -> Row {
    let decode = |row: &[u8]| row_type.rows_to_columns([row]).expect("row bytes are of their own row type");
    let (mut patched, old) = (decode(new), decode(old));
    for column in columns {
        patched[usize::from(*column)] = old[usize::from(*column)].clone();
    }
    let rows = row_type.converter().convert_columns(&patched).expect("the columns are of the row type");
    rows.row(0).data().into()
}
