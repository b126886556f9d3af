//! What a batch has come to so far: columns of rows and of keys, and what is to become of each.
//!
//! The invariant: columns grow only by what fits all of them; a message that is rejected has left nothing behind.

use arrow_row::RowConverter;

use super::cell::{Cell, Column};
use super::envelope::{Event, Kind};
use super::plan::{Bad, bad};
use super::row::RowType;
use super::{Change, Counts, Op, Origin, Rule};
use crate::time::Offset;

/// What the batch has come to so far.
pub(super) struct Assembly {
    rows: Vec<Column>,
    row_count: usize,
    keys: Vec<Column>,
    changes: Vec<Pending>,
    pub(super) counts: Counts,
}

struct Pending {
    offset: Offset,
    has_key: bool,
    op: PendingOp,
    origin: Origin,
    commit_ms: i64,
}

enum PendingOp {
    Upsert { row: usize, unavailable: Option<Box<[u16]>> },
    Delete,
    Truncate,
}

impl Assembly {
    /// Room for `capacity` messages.
    pub(super) fn new(of: &RowType, capacity: usize) -> Assembly {
        let column = |index: usize| Column::with_capacity(&of.columns[index].ty.arrow, capacity);
        Assembly {
            rows: (0..of.columns.len()).map(column).collect(),
            row_count: 0,
            keys: of.key_columns().iter().copied().map(column).collect(),
            changes: Vec::with_capacity(capacity),
            counts: Counts::default(),
        }
    }

    /// Adds what a message says. Everything that can fail has to have happened before the first column grows.
    pub(super) fn add(
        &mut self,
        offset: Offset,
        key: Option<Vec<Cell<'_>>>,
        event: Option<Event<'_>>,
        of: &RowType,
    ) -> Result<(), Bad> {
        let Some(Event { kind, row, before_key, origin }) = event else {
            let Some(key) = key else {
                return Err(bad(Rule::Envelope, "a tombstone without a key says nothing about any row"));
            };
            self.counts.tombstone += 1;
            self.push(offset, Some(&key), PendingOp::Delete, Origin::default());
            return Ok(());
        };
        match kind {
            Kind::Truncate => {
                self.counts.truncate += 1;
                self.push(offset, None, PendingOp::Truncate, origin);
            }
            Kind::Delete => {
                let Some(key) = key.or(before_key) else {
                    return Err(bad(Rule::Envelope, "a delete without a key says nothing about any row"));
                };
                self.counts.delete += 1;
                self.push(offset, Some(&key), PendingOp::Delete, origin);
            }
            Kind::Create | Kind::Update | Kind::Snapshot => {
                let Some(row) = row else {
                    return Err(bad(Rule::Envelope, "after is null, though the operation writes a row"));
                };
                if let Some(column) = of.key_columns().iter().find(|k| row.unavailable.contains(&(**k as u16))) {
                    return Err(bad(Rule::Value, format!("the key column {} was not sent", of.columns[*column].name)));
                }
                let key = key.unwrap_or_else(|| of.key_columns().iter().map(|k| row.cells[*k].clone()).collect());
                match kind {
                    Kind::Create => self.counts.create += 1,
                    Kind::Update => self.counts.update += 1,
                    _ => self.counts.snapshot += 1,
                }
                if let Some(old) = before_key.filter(|old| kind == Kind::Update && *old != key) {
                    self.push(offset, Some(&old), PendingOp::Delete, origin.clone());
                }
                for (column, cell) in self.rows.iter_mut().zip(&row.cells) {
                    column.append(cell);
                }
                let unavailable = (!row.unavailable.is_empty()).then(|| row.unavailable.into_boxed_slice());
                self.row_count += 1;
                self.push(offset, Some(&key), PendingOp::Upsert { row: self.row_count - 1, unavailable }, origin);
            }
        }
        Ok(())
    }

    fn push(&mut self, offset: Offset, key: Option<&[Cell<'_>]>, op: PendingOp, origin: Origin) {
        for (column, cell) in self.keys.iter_mut().zip(key.unwrap_or_default()) {
            column.append(cell);
        }
        let commit_ms = if origin.snapshot { 0 } else { origin.ts_ms };
        self.changes.push(Pending { offset, has_key: key.is_some(), op, origin, commit_ms });
    }

    /// The changes that were added, in their order.
    pub(super) fn finish(self, of: &RowType, key_converter: &RowConverter) -> (Vec<Change>, Counts) {
        let Assembly { mut rows, mut keys, changes, counts, .. } = self;
        let columns: Vec<_> = rows.iter_mut().map(Column::finish).collect();
        let rows = of.converter().convert_columns(&columns).expect("the columns are of the converter's types");
        let columns: Vec<_> = keys.iter_mut().map(Column::finish).collect();
        let keys = key_converter.convert_columns(&columns).expect("the columns are of the converter's types");
        let mut next_key = 0;
        let change = |pending: Pending| {
            let key: Box<[u8]> = match pending.has_key {
                true => {
                    next_key += 1;
                    keys.row(next_key - 1).data().into()
                }
                false => Box::default(),
            };
            let op = match pending.op {
                PendingOp::Upsert { row, unavailable } => Op::Upsert { row: rows.row(row).data().into(), unavailable },
                PendingOp::Delete => Op::Delete,
                PendingOp::Truncate => Op::Truncate,
            };
            Change { offset: pending.offset, key, op, commit_ms: pending.commit_ms, origin: pending.origin }
        };
        (changes.into_iter().map(change).collect(), counts)
    }
}
