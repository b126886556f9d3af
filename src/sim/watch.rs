//! The watch holds every answer that searches could have had, across all lives of the process, against what has happened in the shop.
//!
//! The invariant: what it asks for is right for any order in which partitions are read: an answer's epoch and position never go back; no row is an
//! older one than its position has, or than an answer had before, or is gone without a reason in its history.

use std::collections::{BTreeMap, BTreeSet};

use super::dataflow::Shown;
use super::shop::Shop;
use crate::time::{Epoch, Position};

#[derive(Default)]
pub struct Watch {
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

impl Watch {
    pub fn violation(&self) -> Option<&str> {
        self.violation.as_deref()
    }

    /// Of the last answer.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub fn violated(&mut self, what: impl Into<String>) {
        self.violation.get_or_insert_with(|| what.into());
    }

    pub fn embedded(&mut self, text: &str) {
        if self.stored.contains(text) {
            self.violated(format!("the text {text:?} was embedded again"));
        }
    }

    pub fn stored(&mut self, text: String) {
        self.stored.insert(text);
    }

    /// The embedding store is gone, and with it what of its vectors the index does not have.
    pub fn lost_vectors(&mut self, index: &[Shown]) {
        self.stored.retain(|text| index.iter().any(|row| row.text == *text));
    }

    /// The index may have lost rows that were beyond its position.
    pub fn lost_rows(&mut self) {
        self.products.clear();
        self.categories.clear();
    }

    /// How far the index was is not known any more.
    pub fn lost_position(&mut self) {
        self.lost_rows();
        (self.epoch, self.position) = Default::default();
    }

    /// All rows that a search could find now, and what an answer says of them.
    pub fn answer(&mut self, shop: &Shop, epoch: Epoch, position: &Position, rows: &[Shown]) {
        self.answers += 1;
        if let Err(what) = self.check(shop, epoch, position, rows) {
            self.violated(what);
        }
    }

    fn check(&mut self, shop: &Shop, epoch: Epoch, position: &Position, rows: &[Shown]) -> Result<(), String> {
        if epoch < self.epoch || !position.covers(&self.position) {
            return Err(format!(
                "an answer is of epoch {} at {position:?}, after one of epoch {} at {:?}",
                epoch.0, self.epoch.0, self.position
            ));
        }
        (self.epoch, self.position) = (epoch, position.clone());
        let mut found: BTreeMap<i64, &Shown> = BTreeMap::new();
        for row in rows {
            if found.insert(row.id, row).is_some() {
                return Err(format!("the index has two rows of product {}", row.id));
            }
        }
        let (products, categories) = shop.histories(position);
        for (id, history) in &shop.products {
            let row = found.get(id);
            let seen = self.products.entry(*id).or_default();
            let from = (*seen).max(last(products.get(id)));
            let Some(at) = later(history, from, row.map(|row| &row.product)) else {
                return Err(format!(
                    "at {position:?} product {id} is one of before: {row:?}, after {:?}",
                    history[from]
                ));
            };
            *seen = at;
            let Some(row) = row else { continue };
            let category = row.product.category;
            let seen = self.categories.entry((*id, category)).or_default();
            let never = [None];
            let history = shop.categories.get(&category).map_or(&never[..], Vec::as_slice);
            let from = (*seen).max(last(categories.get(&category)));
            let Some(at) = later(history, from, row.category.as_ref()) else {
                return Err(format!(
                    "at {position:?} product {id} has a category of before: {row:?}, after {:?}",
                    history[from]
                ));
            };
            *seen = at;
        }
        Ok(())
    }
}

/// Where in its history something is.
fn last<R>(history: Option<&Vec<Option<R>>>) -> usize {
    history.map_or(0, |history| history.len() - 1)
}

/// The first place in a history from `seen` on that has this row.
fn later<R: PartialEq>(history: &[Option<R>], seen: usize, row: Option<&R>) -> Option<usize> {
    (seen..history.len()).find(|at| history[*at].as_ref() == row)
}
