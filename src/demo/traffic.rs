//! Traffic is what happens in the shop by itself on a working day, one thing at a time.
//!
//! The invariant: what happens depends on the seed and on what has happened before.

use rand::Rng;

use super::brands::BRANDS;
use super::changelog::{Error, Seen};
use super::prose::{self, pick};
use super::rows::Price;
use super::shop::{Entry, Renamed, Shop, rounded};

/// Prices of one product in one currency that are kept.
const PRICES_KEPT: usize = 4;
/// Products up to this one are changed by hand alone.
const LEFT_ALONE: i64 = 1;
const STATUSES: &[&str] = &["active", "active", "preorder", "sold_out", "discontinued"];

impl Shop {
    /// One thing that happens in a shop: mostly a price, often a review or a text, rarely another name for a category or a brand. Says what
    /// has another name, if something has.
    pub fn step(&mut self) -> Result<Option<Renamed>, Error> {
        let Some(id) = self.some_product() else {
            let entry = self.draw_product();
            return self.insert(entry).map(|()| None);
        };
        match self.rng.random_range(0..2000) {
            0..1200 => self.change_price(id)?,
            1200..1280 => self.correct_price(id)?,
            1280..1440 => self.restock(id)?,
            1440..1600 => self.rewrite(id)?,
            1600..1780 => self.review(id)?,
            1780..1820 => self.change_review(id)?,
            1820..1900 => {
                let entry = self.draw_product();
                self.insert(entry)?;
            }
            1900..1980 => {
                self.remove(id)?;
            }
            1980..1997 => self.change(id, |p, rng| {
                p.status = pick(rng, STATUSES);
                p.is_active = p.is_active != rng.random_bool(0.3);
            })?,
            1997..1999 => return self.rename_some_category(),
            _ => return self.rename_some_brand(),
        }
        Ok(None)
    }

    fn rename_some_category(&mut self) -> Result<Option<Renamed>, Error> {
        let ids: Vec<i64> = self.shelves.keys().copied().collect();
        let id = pick(&mut self.rng, &ids);
        let shelf = self.shelves[&id].1;
        let is_usual = self.categories.get(&id).is_some_and(|c| c.name == shelf.name);
        self.rename_category(id, if is_usual { shelf.also } else { shelf.name })
    }

    fn rename_some_brand(&mut self) -> Result<Option<Renamed>, Error> {
        let n = self.rng.random_range(0..BRANDS.len());
        let (usual, _, also) = BRANDS[n];
        let id = n as i64 + 1;
        let is_usual = self.brands.get(&id).is_some_and(|b| b.name == usual);
        self.rename_brand(id, if is_usual { also } else { usual })
    }

    /// Any product but the first ones, which are left to whoever tries the shop.
    fn some_product(&mut self) -> Option<i64> {
        let from = self.rng.random_range(0..self.next_product).max(LEFT_ALONE + 1);
        let found = self.products.range(from..).next().or_else(|| self.products.range(LEFT_ALONE + 1..).next());
        found.map(|(id, _)| *id)
    }

    /// A change that no text and no number of rows follows from.
    pub fn restock(&mut self, id: i64) -> Result<(), Error> {
        self.change(id, |p, rng| p.stock = rng.random_range(0..200))
    }

    fn rewrite(&mut self, id: i64) -> Result<(), Error> {
        let Some(product) = self.get(id) else { return Ok(()) };
        let group = self.shelves[&product.category_id].0;
        self.change(id, |p, rng| p.description = prose::description(rng, group, p.item))
    }

    /// A product's price goes up or down a little; the oldest one is forgotten once there are many.
    fn change_price(&mut self, id: i64) -> Result<(), Error> {
        let factor = self.rng.random_range(0.85..1.18);
        let in_pounds = self.rng.random_bool(0.1);
        let Some(entry) = self.products.get(&id) else { return Ok(()) };
        let currency = if in_pounds && entry.prices.iter().any(|p| p.currency == "GBP") { "GBP" } else { "EUR" };
        let Some(last) = entry.prices.iter().rfind(|p| p.currency == currency) else { return Ok(()) };
        let cents = rounded((last.amount_cents as f64 * factor) as i64);
        self.set_price(id, currency, cents)?;
        let Some(entry) = self.products.get_mut(&id) else { return Ok(()) };
        let of_currency = |p: &Price| p.currency == currency;
        if entry.prices.iter().filter(|p| of_currency(p)).count() > PRICES_KEPT
            && let Some(oldest) = entry.prices.iter().position(of_currency)
        {
            self.changelog.deleted(&entry.prices.remove(oldest))?;
        }
        Ok(())
    }

    /// The current price was a mistake: its row is corrected in place.
    fn correct_price(&mut self, id: i64) -> Result<(), Error> {
        let more = self.rng.random_range(1..50) * 10;
        let Some(entry) = self.products.get_mut(&id) else { return Ok(()) };
        let Some(price) = entry.prices.iter_mut().rfind(|p| p.currency == "EUR") else { return Ok(()) };
        price.amount_cents += more;
        entry.product.price_cents = price.amount_cents;
        self.changelog.updated(price)
    }

    fn review(&mut self, id: i64) -> Result<(), Error> {
        let Some(product) = self.get(id).cloned() else { return Ok(()) };
        let review = self.draw_review(&product);
        self.changelog.inserted(&review, Seen::Live)?;
        if let Some(entry) = self.products.get_mut(&id) {
            entry.reviews.push(review);
        }
        Ok(())
    }

    /// A customer thinks again.
    fn change_review(&mut self, id: i64) -> Result<(), Error> {
        let rating = self.rng.random_range(1..=5);
        let Some(Entry { product, reviews, .. }) = self.products.get_mut(&id) else { return Ok(()) };
        let Some(review) = reviews.last_mut() else { return Ok(()) };
        let group = self.shelves[&product.category_id].0;
        review.rating = rating;
        (review.title, review.body) = prose::review(&mut self.rng, group, product.item, rating);
        self.changelog.updated(review)
    }
}
