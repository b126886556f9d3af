//! The view as it stands: for each key the rows that have it, and from them the one row that the index shows.
//!
//! The invariant: the same diffs in any order lead to the same view; among several rows of one key the smallest stands for it.

use std::collections::BTreeMap;

use ahash::AHashMap;
use differential_dataflow::consolidation::consolidate;

use super::key::{Key, Value};
use super::stats::Size;
use super::{Row, ViewChange};

/// One diff of the view: key, row, diff.
pub(super) type ViewDiff = ((Key, Value), isize);

#[derive(Default)]
pub(super) struct View {
    /// Nearly every key has one row, once.
    rows: AHashMap<Key, Row>,
    /// All rows of the keys that have several.
    several: AHashMap<Key, BTreeMap<Row, isize>>,
    size: Size,
}

impl View {
    /// Applies an epoch's diffs; what comes back is net.
    pub fn apply(&mut self, mut diffs: Vec<ViewDiff>) -> Vec<ViewChange> {
        consolidate(&mut diffs);
        let mut changes = Vec::new();
        let mut rest = diffs.into_iter().peekable();
        while let Some(((key, value), diff)) = rest.next() {
            let mut of_key = vec![(value.row, diff)];
            while let Some(((_, value), diff)) = rest.next_if(|((next, _), _)| *next == key) {
                of_key.push((value.row, diff));
            }
            let old = self.rows.get(&key).cloned();
            let mut all = match (self.several.remove(&key), &old) {
                (Some(all), _) => all,
                (None, Some(old)) => BTreeMap::from([(old.clone(), 1)]),
                (None, None) => BTreeMap::new(),
            };
            all.keys().for_each(|row| self.size.remove(key.len() + row.len()));
            for (row, diff) in of_key {
                let count = all.entry(row).or_default();
                *count += diff;
            }
            all.retain(|_, count| *count != 0);
            all.keys().for_each(|row| self.size.add(key.len() + row.len()));
            let new = all.keys().next().cloned();
            match &new {
                Some(row) => {
                    self.rows.insert(key.clone(), row.clone());
                    if all.len() > 1 || all.values().any(|count| *count != 1) {
                        self.several.insert(key.clone(), all);
                    }
                }
                None => {
                    self.rows.remove(&key);
                }
            }
            if old != new {
                changes.push(ViewChange { key: Box::from(&*key), row: new });
            }
        }
        changes
    }

    /// Every key with the row that stands for it.
    pub fn whole(&self) -> Vec<ViewChange> {
        self.rows.iter().map(|(key, row)| ViewChange { key: Box::from(&**key), row: Some(row.clone()) }).collect()
    }

    /// Its different rows with their keys.
    pub fn size(&self) -> Size {
        self.size
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn duplicates(&self) -> usize {
        self.several.len()
    }
}

#[cfg(test)]
mod tests {
    use super::super::key::hasher;
    use super::*;

    fn diff(key: u8, row: u8, diff: isize) -> ViewDiff {
        ((Key::from(&[key][..]), Value::new(Row::from([row]), &hasher())), diff)
    }

    fn change(key: u8, row: Option<u8>) -> ViewChange {
        ViewChange { key: Box::from([key]), row: row.map(|r| Row::from([r])) }
    }

    #[test]
    fn what_comes_out_is_net() {
        let mut view = View::default();
        assert_eq!(view.apply(vec![diff(1, 1, 1), diff(1, 1, -1), diff(1, 2, 1)]), [change(1, Some(2))]);
        assert_eq!(view.apply(vec![diff(1, 2, -1), diff(1, 2, 1)]), []);
        assert_eq!(view.apply(vec![diff(1, 2, -1)]), [change(1, None)]);
        assert_eq!((view.len(), view.size()), (0, Size::default()));
    }

    #[test]
    fn the_smallest_of_several_rows_stands_for_their_key() {
        let mut view = View::default();
        view.apply(vec![diff(1, 5, 1)]);
        assert_eq!(view.apply(vec![diff(1, 3, 1)]), [change(1, Some(3))]);
        assert_eq!((view.len(), view.duplicates(), view.size()), (1, 1, Size { rows: 2, bytes: 4 }));
        assert_eq!(view.whole(), [change(1, Some(3))]);
        assert_eq!(view.apply(vec![diff(1, 3, -1)]), [change(1, Some(5))]);
        assert_eq!(view.duplicates(), 0);
        assert_eq!(view.apply(vec![diff(1, 5, 1)]), [], "the same row twice is one row");
        assert_eq!(view.apply(vec![diff(1, 5, -1)]), []);
        assert_eq!(view.apply(vec![diff(1, 5, -1)]), [change(1, None)]);
    }
}
