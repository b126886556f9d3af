//! The watch holds every answer that searches could have had, across all lives of the process, against what has happened in the shop.
//!
//! The invariant: what it asks for is right for any order in which partitions are read: an answer's epoch and position never go back; no row is an
//! older one than an answer had before, or is gone without a reason in its history; and once an answer says that it is complete, its rows are
//! exactly those of its position.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::dataflow::Shown;
use super::embedder;
use super::shop::Shop;
use crate::index::Fingerprint;
use crate::time::{Epoch, Position};

#[derive(Default)]
pub struct Watch {
    /// Rows that the view has had, by their hashes.
    rows: HashMap<[u8; 16], Shown>,
    epoch: Epoch,
    position: Position,
    /// How far along its history each product was when it was seen last; and along a category's, when it was seen with that product.
    products: BTreeMap<i64, usize>,
    categories: BTreeMap<(i64, i64), usize>,
    /// Texts whose vectors are stored.
    stored: BTreeSet<String>,
    pub answers: u64,
    /// What was wrong first.
    violation: Option<String>,
}

/// What a search could find.
pub struct Answer<'a> {
    pub epoch: Epoch,
    pub position: &'a Position,
    pub rows: &'a HashMap<Box<[u8]>, Fingerprint>,
    /// Everything up to the position is in it, and nothing beyond; after a start there may be either more or less, until the index follows.
    pub is_complete: bool,
}

impl Watch {
    pub fn violation(&self) -> Option<&str> {
        self.violation.as_deref()
    }

    pub fn violated(&mut self, what: impl Into<String>) {
        self.violation.get_or_insert_with(|| what.into());
    }

    /// How far the last answer went.
    pub fn reached(&self) -> (Epoch, Position) {
        (self.epoch, self.position.clone())
    }

    /// The view has had a row.
    pub fn row(&mut self, hash: [u8; 16], row: Shown) {
        self.rows.insert(hash, row);
    }

    pub fn shown(&self, hash: &[u8; 16]) -> Option<&Shown> {
        self.rows.get(hash)
    }

    pub fn embedded(&mut self, text: &str) {
        if self.stored.contains(text) {
            self.violated(format!("the text {text:?} was embedded again"));
        }
    }

    pub fn stored(&mut self, text: String) {
        self.stored.insert(text);
    }

    pub fn answer(&mut self, shop: &Shop, answer: &Answer<'_>) {
        self.answers += 1;
        if let Err(what) = self.check(shop, answer) {
            self.violated(what);
        }
    }

    fn check(&mut self, shop: &Shop, answer: &Answer<'_>) -> Result<(), String> {
        let Answer { epoch, position, rows, is_complete } = answer;
        if *epoch < self.epoch || !position.covers(&self.position) {
            return Err(format!(
                "an answer is of epoch {} at {position:?}, after one of epoch {} at {:?}",
                epoch.0, self.epoch.0, self.position
            ));
        }
        (self.epoch, self.position) = (*epoch, (*position).clone());
        let mut found: BTreeMap<i64, &Shown> = BTreeMap::new();
        for hashes in rows.values() {
            let row = self.rows.get(&hashes.row).ok_or("the index has a row that the view never had")?;
            if embedder::hash(&row.text).0 != hashes.text {
                return Err(format!("the hash of the text of {row:?} is another one"));
            }
            if found.insert(row.id, row).is_some() {
                return Err(format!("the index has two rows of product {}", row.id));
            }
        }
        for (id, history) in &shop.products {
            let row = found.get(id);
            let seen = self.products.entry(*id).or_default();
            let Some(at) = later(history, *seen, row.map(|row| &row.product)) else {
                return Err(format!("product {id} goes back: {row:?}, after {:?} was seen", history[*seen]));
            };
            *seen = at;
            let Some(row) = row else { continue };
            let category = row.product.category;
            let seen = self.categories.entry((*id, category)).or_default();
            let never = [None];
            let history = shop.categories.get(&category).map_or(&never[..], Vec::as_slice);
            let Some(at) = later(history, *seen, row.category.as_ref()) else {
                return Err(format!("product {id} goes back to a category of before: {row:?}, after {:?}", history[*seen]));
            };
            *seen = at;
        }
        if *is_complete {
            let tables = shop.tables(position);
            let expected: BTreeMap<i64, Shown> =
                tables.products.iter().map(|(id, p)| (*id, Shown::new(*id, p, tables.categories.get(&p.category)))).collect();
            let found: BTreeMap<i64, Shown> = found.into_iter().map(|(id, row)| (id, row.clone())).collect();
            let wrong = expected.keys().chain(found.keys()).find(|id| expected.get(id) != found.get(id));
            if let Some(id) = wrong {
                return Err(format!(
                    "at {position:?} product {id} is {:?}, and the index has {:?}",
                    expected.get(id),
                    found.get(id)
                ));
            }
        }
        Ok(())
    }
}

/// The first place in a history from `seen` on that has this row.
fn later<R: PartialEq>(history: &[Option<R>], seen: usize, row: Option<&R>) -> Option<usize> {
    (seen..history.len()).find(|at| history[*at].as_ref() == row)
}
