//! The seeded shop: five tables, and what happens to them on a working day.
//!
//! The invariant: an event is in the broker before the tables' new state can be asked for. What the tables hold depends on the seed and the
//! calls alone: the shop's own clock goes on with what it does, and only its events know what time it really is. A product has a price in
//! euros for as long as it is there.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::brands::BRANDS;
use super::catalogue::{DEPARTMENTS, Group, Shelf};
use super::changelog::{Changelog, Error, Seen};
use super::prose::{self, pick};
use super::rows::{Brand, Category, Price, Product, Review, Table};
use crate::source::embedded::{Producer, Subjects};
use crate::time::Position;

/// When the shop's clock begins: 2025-10-01.
const OPENED_US: i64 = 1_759_276_800_000_000;
const DAY_US: i64 = 86_400_000_000;
/// Hundredths of a pound for a euro.
const PENCE: i64 = 86;

pub struct Shop {
    pub(super) rng: StdRng,
    pub(super) changelog: Changelog,
    pub(super) categories: BTreeMap<i64, Category>,
    pub(super) brands: BTreeMap<i64, Brand>,
    pub(super) products: BTreeMap<i64, Entry>,
    /// The lowest categories, where products stand.
    pub(super) shelves: BTreeMap<i64, (&'static Group, &'static Shelf)>,
    pub(super) next_product: i64,
    next_price: i64,
    next_review: i64,
    clock_us: i64,
}

/// A product with what belongs to it and goes with it, oldest first.
pub(super) struct Entry {
    pub product: Product,
    pub prices: Vec<Price>,
    pub reviews: Vec<Review>,
}

/// A category or brand that has another name now.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Renamed {
    pub table: &'static str,
    pub id: i64,
    pub from: String,
    pub to: String,
    /// Products that customers can find under it.
    pub products: usize,
}

impl Shop {
    /// Opens a shop with so many products, and writes the snapshot of its categories and brands.
    pub fn new(seed: u64, products: usize, producer: Producer, registry: &dyn Subjects) -> Result<Shop, Error> {
        let mut shop = Shop {
            rng: StdRng::seed_from_u64(seed),
            changelog: Changelog::new(producer, registry)?,
            categories: BTreeMap::new(),
            brands: BTreeMap::new(),
            products: BTreeMap::new(),
            shelves: BTreeMap::new(),
            next_product: 1,
            next_price: 1,
            next_review: 1,
            clock_us: OPENED_US,
        };
        shop.furnish();
        for _ in 0..products {
            let mut entry = shop.draw_product();
            entry.product.created_us -= shop.rng.random_range(0..700 * DAY_US);
            for _ in 0..shop.rng.random_range(0..5) {
                let review = shop.draw_review(&entry.product);
                entry.reviews.push(review);
            }
            shop.products.insert(entry.product.id, entry);
        }
        for category in shop.categories.values() {
            shop.changelog.inserted(category, Seen::InSnapshot)?;
        }
        for brand in shop.brands.values() {
            shop.changelog.inserted(brand, Seen::InSnapshot)?;
        }
        Ok(shop)
    }

    pub fn len(&self) -> usize {
        self.products.len()
    }

    pub fn is_empty(&self) -> bool {
        self.products.is_empty()
    }

    pub fn get(&self, id: i64) -> Option<&Product> {
        self.products.get(&id).map(|entry| &entry.product)
    }

    pub fn category(&self, id: i64) -> Option<&Category> {
        self.categories.get(&id)
    }

    pub fn brand(&self, id: i64) -> Option<&Brand> {
        self.brands.get(&id)
    }

    /// The ids of all products.
    pub fn ids(&self) -> Vec<i64> {
        self.products.keys().copied().collect()
    }

    pub fn categories(&self) -> impl Iterator<Item = &Category> {
        self.categories.values()
    }

    pub fn brands(&self) -> impl Iterator<Item = &Brand> {
        self.brands.values()
    }

    pub fn products(&self) -> impl Iterator<Item = &Product> {
        self.products.values().map(|entry| &entry.product)
    }

    pub fn prices(&self) -> impl Iterator<Item = &Price> {
        self.products.values().flat_map(|entry| &entry.prices)
    }

    pub fn reviews(&self) -> impl Iterator<Item = &Review> {
        self.products.values().flat_map(|entry| &entry.reviews)
    }

    /// Products that customers can find in a category or those below it.
    pub fn listed_in(&self, category: i64) -> usize {
        let is_below = |mut id: i64| loop {
            match self.categories.get(&id) {
                _ if id == category => return true,
                Some(Category { parent_id: Some(parent), .. }) => id = *parent,
                _ => return false,
            }
        };
        self.products().filter(|p| p.is_listed() && is_below(p.category_id)).count()
    }

    /// Products of a brand that customers can find.
    pub fn listed_of(&self, brand: i64) -> usize {
        self.products().filter(|p| p.is_listed() && p.brand_id == Some(brand)).count()
    }

    /// How far the shop has written: the next offset of every partition.
    pub fn written(&self) -> Position {
        self.changelog.written()
    }

    /// Bytes that the fullest partition holds beyond what was read.
    pub fn bytes_ahead(&mut self, read: &Position) -> usize {
        self.changelog.bytes_ahead(read)
    }

    pub fn flush(&self) -> Result<(), Error> {
        self.changelog.flush()
    }

    /// The snapshot's events of one product, its prices and its reviews.
    pub fn snapshot(&mut self, id: i64, last: bool) -> Result<(), Error> {
        let Some(Entry { product, prices, reviews }) = self.products.get(&id) else { return Ok(()) };
        prices.iter().try_for_each(|price| self.changelog.inserted(price, Seen::InSnapshot))?;
        reviews.iter().try_for_each(|review| self.changelog.inserted(review, Seen::InSnapshot))?;
        self.changelog.inserted(product, if last { Seen::LastOfSnapshot } else { Seen::InSnapshot })
    }

    /// From now on the table of products has the column eco_label, and its events another schema.
    pub fn add_column(&mut self) {
        self.changelog.evolve();
    }

    /// Changes what is given of a product; `None` if there is no such product.
    pub fn edit(
        &mut self,
        id: i64,
        name: Option<String>,
        description: Option<String>,
        price_cents: Option<i64>,
    ) -> Result<Option<Product>, Error> {
        self.alter(id, name, description, price_cents)?;
        self.changelog.flush()?;
        Ok(self.get(id).cloned())
    }

    /// The same without waiting for the broker, for whoever writes as fast as it goes and [flushes](Self::flush) at the end.
    pub fn alter(
        &mut self,
        id: i64,
        name: Option<String>,
        description: Option<String>,
        price_cents: Option<i64>,
    ) -> Result<(), Error> {
        if name.is_some() || description.is_some() {
            self.change(id, |p, _| {
                p.name = name.unwrap_or_else(|| p.name.clone());
                p.description = description.unwrap_or_else(|| p.description.clone());
            })?;
        }
        if let Some(cents) = price_cents {
            self.set_price(id, "EUR", cents)?;
        }
        Ok(())
    }

    /// Deletes a product with its prices and reviews. Says whether there was one.
    pub fn delete(&mut self, id: i64) -> Result<bool, Error> {
        let deleted = self.remove(id)?;
        self.changelog.flush()?;
        Ok(deleted)
    }

    /// Gives a category another name; `None` if there is no such category.
    pub fn rename_category(&mut self, id: i64, name: &str) -> Result<Option<Renamed>, Error> {
        let products = self.listed_in(id);
        let Some(category) = self.categories.get_mut(&id) else { return Ok(None) };
        let from = std::mem::replace(&mut category.name, name.into());
        self.changelog.updated(category)?;
        self.changelog.flush()?;
        Ok(Some(Renamed { table: Table::Category.name(), id, from, to: name.into(), products }))
    }

    /// Gives a brand another name; `None` if there is no such brand.
    pub fn rename_brand(&mut self, id: i64, name: &str) -> Result<Option<Renamed>, Error> {
        let products = self.listed_of(id);
        let Some(brand) = self.brands.get_mut(&id) else { return Ok(None) };
        let from = std::mem::replace(&mut brand.name, name.into());
        self.changelog.updated(brand)?;
        self.changelog.flush()?;
        Ok(Some(Renamed { table: Table::Brand.name(), id, from, to: name.into(), products }))
    }

    /// Sets up the categories, numbered from the top down each branch, and the brands.
    fn furnish(&mut self) {
        for department in DEPARTMENTS {
            let top = self.add_category(None, department.name, Some(department.about));
            for group in department.groups {
                let middle = self.add_category(Some(top), group.name, None);
                for shelf in group.shelves {
                    let id = self.add_category(Some(middle), shelf.name, None);
                    self.shelves.insert(id, (group, shelf));
                }
            }
        }
        for (id, (name, country, _)) in (1..).zip(BRANDS) {
            self.brands.insert(id, Brand { id, name: (*name).into(), country: Some((*country).into()) });
        }
    }

    fn add_category(&mut self, parent_id: Option<i64>, name: &str, about: Option<&str>) -> i64 {
        let id = self.categories.len() as i64 + 1;
        let description = about.map(str::to_string);
        self.categories.insert(id, Category { id, parent_id, name: name.into(), description });
        id
    }

    /// A product that nobody knows yet.
    pub(super) fn draw_product(&mut self) -> Entry {
        let id = self.next_product;
        self.next_product += 1;
        let shelves: Vec<i64> = self.shelves.keys().copied().collect();
        let rng = &mut self.rng;
        let category_id = pick(rng, &shelves);
        let (group, shelf) = self.shelves[&category_id];
        let item = pick(rng, shelf.items);
        let brand = rng.random_range(0..BRANDS.len() as i64 + 2);
        let (low, high) = group.euros;
        // Most things are cheap.
        let euros = low + (high - low) * rng.random::<f64>().powi(3);
        let eco_label = rng.random_bool(0.5).then(|| pick(rng, &["A", "B", "C"]));
        let code: String = shelf.name.chars().filter(char::is_ascii_alphabetic).take(3).collect();
        let product = Product {
            id,
            sku: format!("{}-{id:06}", code.to_uppercase()),
            name: prose::name(rng, item, id),
            description: prose::description(rng, group, item),
            category_id,
            // Some things have no brand.
            brand_id: (1..=BRANDS.len() as i64).contains(&brand).then_some(brand),
            stock: rng.random_range(0..200),
            status: pick(rng, &["active", "active", "active", "preorder", "sold_out"]),
            is_active: true,
            created_us: 0,
            updated_us: None,
            eco_label: if self.changelog.is_evolved() { eco_label } else { None },
            price_cents: rounded((euros * 100.0) as i64),
            item,
        };
        let in_pounds = self.rng.random_bool(0.3);
        let mut entry = Entry { product, prices: Vec::new(), reviews: Vec::new() };
        entry.product.created_us = self.tick();
        let cents = entry.product.price_cents;
        let euros = self.draw_price(id, "EUR", cents);
        entry.prices.push(euros);
        if in_pounds {
            let pounds = self.draw_price(id, "GBP", rounded(cents * PENCE / 100));
            entry.prices.push(pounds);
        }
        entry
    }

    fn draw_price(&mut self, product_id: i64, currency: &'static str, amount_cents: i64) -> Price {
        let id = self.next_price;
        self.next_price += 1;
        Price { id, product_id, currency, amount_cents, valid_from_us: self.tick() }
    }

    pub(super) fn draw_review(&mut self, product: &Product) -> Review {
        let id = self.next_review;
        self.next_review += 1;
        let rating = draw_rating(&mut self.rng, product.id);
        let (title, body) = prose::review(&mut self.rng, self.shelves[&product.category_id].0, product.item, rating);
        Review { id, product_id: product.id, rating, title, body, created_us: self.tick() }
    }

    /// Some time passes.
    fn tick(&mut self) -> i64 {
        self.clock_us += self.rng.random_range(1_000..90_000_000);
        self.clock_us
    }

    pub(super) fn insert(&mut self, entry: Entry) -> Result<(), Error> {
        self.changelog.inserted(&entry.product, Seen::Live)?;
        entry.prices.iter().try_for_each(|price| self.changelog.inserted(price, Seen::Live))?;
        self.products.insert(entry.product.id, entry);
        Ok(())
    }

    pub(super) fn remove(&mut self, id: i64) -> Result<bool, Error> {
        let Some(entry) = self.products.remove(&id) else { return Ok(false) };
        self.changelog.deleted(&entry.product)?;
        entry.prices.iter().try_for_each(|price| self.changelog.deleted(price))?;
        entry.reviews.iter().try_for_each(|review| self.changelog.deleted(review))?;
        Ok(true)
    }

    pub(super) fn change(&mut self, id: i64, change: impl FnOnce(&mut Product, &mut StdRng)) -> Result<(), Error> {
        let now = self.tick();
        let Some(entry) = self.products.get_mut(&id) else { return Ok(()) };
        change(&mut entry.product, &mut self.rng);
        entry.product.updated_us = Some(now);
        self.changelog.updated(&entry.product)
    }

    pub(super) fn set_price(&mut self, id: i64, currency: &'static str, cents: i64) -> Result<(), Error> {
        if !self.products.contains_key(&id) {
            return Ok(());
        }
        let price = self.draw_price(id, currency, cents);
        self.changelog.inserted(&price, Seen::Live)?;
        if let Some(entry) = self.products.get_mut(&id) {
            if currency == "EUR" {
                entry.product.price_cents = cents;
            }
            entry.prices.push(price);
        }
        Ok(())
    }
}

/// Amounts end in nine cents.
pub(super) fn rounded(cents: i64) -> i64 {
    (cents - cents % 10 + 9).max(99)
}

/// Some products are better than others.
fn draw_rating(rng: &mut StdRng, product: i64) -> i32 {
    let quality = (product.wrapping_mul(0x9E37_79B9) >> 7) & 3;
    let luck = rng.random_range(0..10);
    match luck + quality {
        0 => 1,
        1 => 2,
        2..4 => 3,
        4..8 => 4,
        _ => 5,
    }
}
