//! A script is what happens to the tables, epoch by epoch, and how they stand at the points where views are compared.
//!
//! The invariant: every query gets the same script, and a point's tables are what the events before it lead to.

use std::collections::BTreeMap;

use arrow::array::RecordBatch;

use super::changes::Shop;
use super::tables::{Event, Table};
use crate::bench::Error;

/// Events of one epoch of the load.
pub(super) const LOAD_EPOCH: usize = 10_000;

/// An epoch's events of one table, in their order.
pub(super) struct TableEvents {
    pub table: Table,
    pub rows: RecordBatch,
    /// Whether each is a delete.
    pub deleted: Vec<bool>,
}

/// Where views are compared.
pub(super) struct Point {
    /// Epochs that lie before it.
    pub epochs: usize,
    /// Row changes after the load that lie before it.
    pub changes: usize,
    /// All tables, as [`Table::ALL`] has them.
    pub tables: Vec<RecordBatch>,
}

pub(super) struct Script {
    pub epochs: Vec<Vec<TableEvents>>,
    /// So many of the epochs, the first ones, are the load.
    pub load_epochs: usize,
    pub points: Vec<Point>,
}

impl Script {
    /// The load, then at least so many row changes in epochs of about `epoch`; points are after the load, at `checks` further places
    /// evenly, and so at the end.
    pub fn make(seed: u64, scale: f64, changes: usize, epoch: usize, checks: usize) -> Result<Script, Error> {
        let mut shop = Shop::new(seed, scale);
        let mut epochs = Vec::new();
        let loaded = tables(&shop)?;
        for (table, rows) in Table::ALL.into_iter().zip(&loaded) {
            for start in (0..rows.num_rows()).step_by(LOAD_EPOCH) {
                let rows = rows.slice(start, LOAD_EPOCH.min(rows.num_rows() - start));
                let deleted = vec![false; rows.num_rows()];
                epochs.push(vec![TableEvents { table, rows, deleted }]);
            }
        }
        let load_epochs = epochs.len();
        let mut points = vec![Point { epochs: load_epochs, changes: 0, tables: loaded }];
        let mut done = 0;
        while done < changes {
            let mut events = Vec::new();
            while events.len() < epoch.min(changes - done) {
                shop.change(&mut events);
            }
            done += events.len();
            epochs.push(by_table(&events)?);
            // The next of the evenly spaced places, or the end.
            if done >= changes || done * checks >= changes * points.len() {
                points.push(Point { epochs: epochs.len(), changes: done, tables: tables(&shop)? });
            }
        }
        Ok(Script { epochs, load_epochs, points })
    }
}

fn tables(shop: &Shop) -> Result<Vec<RecordBatch>, Error> {
    Ok(Table::ALL.into_iter().map(|table| shop.rows(table).batch()).collect::<Result<_, _>>()?)
}

fn by_table(events: &[Event]) -> Result<Vec<TableEvents>, Error> {
    let mut tables: BTreeMap<Table, Vec<&Event>> = BTreeMap::new();
    for event in events {
        tables.entry(event.table).or_default().push(event);
    }
    let of = |(table, events): (Table, Vec<&Event>)| {
        let rows = table.batch(events.iter().map(|e| &*e.row))?;
        Ok(TableEvents { table, rows, deleted: events.iter().map(|e| e.deleted).collect() })
    };
    tables.into_iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_lie_evenly_and_at_the_end() {
        let script = Script::make(1, 0.001, 1000, 100, 4).unwrap();
        let at: Vec<usize> = script.points.iter().map(|p| p.changes).collect();
        assert_eq!(at.len(), 5, "{at:?}");
        assert_eq!(at[0], 0);
        for (n, changes) in at.iter().enumerate().skip(1) {
            assert!((n * 250..n * 250 + 130).contains(changes), "{at:?}");
        }
        assert_eq!(script.points.last().unwrap().epochs, script.epochs.len());
        let events = |epochs: &[Vec<TableEvents>]| epochs.iter().flatten().map(|e| e.rows.num_rows()).sum::<usize>();
        let loaded: usize = script.points[0].tables.iter().map(RecordBatch::num_rows).sum();
        assert_eq!(events(&script.epochs[..script.load_epochs]), loaded);
        assert_eq!(events(&script.epochs[script.load_epochs..]), at[4]);
    }
}
