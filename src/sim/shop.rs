//! The shop: what happens to its tables, as events that are on their way to the topics, and the topics themselves with what each message means.
//!
//! The invariant: what a message means follows from the messages before it in its partition alone, as it does for any reader; a key stays in its
//! partition. Events come late, come twice, and some are no events at all.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use serde_json::{Value, json};

use super::dataflow::{CATEGORIES, PRODUCTS};
use super::wire::{self, Wire};
use crate::time::{Offset, Partition, Position};

const IDS: i64 = 12;
const CATEGORY_IDS: i64 = 4;
/// Few words, so that products share texts and come back to old ones.
const NAMES: [&str; 4] = ["tent", "saucepan", "lamp", "two-person tent"];
const DESCRIPTIONS: [&str; 3] = ["light", "of steel", "for the evening"];
const TITLES: [&str; 3] = ["camping", "kitchen", "garden"];
/// Messages of one day, by their time stamps.
const DAY_MESSAGES: i64 = 40;
const DAY_MS: i64 = 86_400_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Product {
    pub name: String,
    pub description: Option<String>,
    pub category: i64,
    pub version: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Category {
    pub title: String,
    pub version: i64,
}

/// A message, and what it is to say.
#[derive(Clone, Debug)]
struct Event {
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    says: Says,
}

#[derive(Clone, Debug)]
enum Says {
    /// Nothing of a table.
    Nothing,
    /// What nobody can read.
    Garbage,
    /// The row after the change; `keeps` says that its description was not sent.
    Product {
        id: i64,
        row: Option<Product>,
        keeps: bool,
    },
    Category {
        id: i64,
        row: Option<Category>,
    },
    Truncate,
}

/// A message in its topic.
pub struct Message {
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub timestamp_ms: i64,
    says: Says,
    /// An offset that no reader gets: a transaction's marker.
    pub is_marker: bool,
}

impl Message {
    pub fn is_garbage(&self) -> bool {
        matches!(self.says, Says::Garbage)
    }
}

#[derive(Default)]
pub struct Topic {
    pub messages: Vec<Message>,
    /// The first offset that is kept.
    pub low: i64,
}

impl Topic {
    /// The next offset after all that it has.
    pub fn end(&self) -> i64 {
        self.messages.len() as i64
    }

    pub fn offsets(&self) -> impl Iterator<Item = i64> {
        self.messages.iter().enumerate().filter(|(_, m)| !m.is_marker).map(|(n, _)| n as i64)
    }
}

/// The rows of the tables at some position.
#[derive(Default)]
struct Tables {
    products: BTreeMap<i64, Product>,
    categories: BTreeMap<i64, Category>,
}

impl Tables {
    fn apply(&mut self, says: &Says) {
        match says {
            Says::Nothing | Says::Garbage => {}
            Says::Product { id, row: Some(row), keeps } => {
                let mut row = row.clone();
                if *keeps {
                    row.description = self.products.get(id).and_then(|old| old.description.clone());
                }
                self.products.insert(*id, row);
            }
            Says::Product { id, row: None, .. } => drop(self.products.remove(id)),
            Says::Category { id, row: Some(row) } => drop(self.categories.insert(*id, row.clone())),
            Says::Category { id, row: None } => drop(self.categories.remove(id)),
            Says::Truncate => self.categories.clear(),
        }
    }
}

/// What a key's row was after each event that was about it; before the first there was none.
pub type History<R> = BTreeMap<i64, Vec<Option<R>>>;

pub struct Shop {
    pub topics: BTreeMap<Partition, Topic>,
    /// Written by the connector, and not in the topics yet.
    under_way: BTreeMap<Partition, VecDeque<Event>>,
    wire: Wire,
    /// As the database has them.
    own: Tables,
    /// As the topics have them up to their ends.
    read: Tables,
    pub products: History<Product>,
    pub categories: History<Category>,
    versions: i64,
    pub events: usize,
}

impl Shop {
    pub fn new() -> Shop {
        let partitions = [(PRODUCTS, 0), (PRODUCTS, 1), (CATEGORIES, 0)];
        let topics = partitions.map(|(topic, n)| (Partition::new(topic, n), Topic::default()));
        let (under_way, own, read, products, categories) = Default::default();
        Shop {
            topics: topics.into(),
            under_way,
            wire: Wire::new(),
            own,
            read,
            products,
            categories,
            versions: 0,
            events: 0,
        }
    }

    /// The registry's schemas.
    pub fn schemas(&self) -> BTreeMap<u32, Arc<str>> {
        self.wire.schemas()
    }

    /// Something happens in the shop.
    pub fn change(&mut self, rng: &mut StdRng) {
        self.versions += 1;
        let version = self.versions;
        match rng.random_range(0..100) {
            0..58 => {
                let id = rng.random_range(1..=IDS);
                let name = (*NAMES.choose(rng).expect("not empty")).to_string();
                let text =
                    |rng: &mut StdRng| rng.random_bool(0.8).then(|| DESCRIPTIONS.choose(rng).map(|d| (*d).into()));
                let old = self.own.products.get(&id);
                let keeps = old.is_some() && rng.random_bool(0.25);
                let description = match old {
                    Some(old) if keeps => old.description.clone(),
                    _ => text(rng).flatten(),
                };
                let category = rng.random_range(1..=CATEGORY_IDS);
                let row = Product { name, description, category, version };
                let value = self.wire.product(id, Some(&row), keeps, rng.random_bool(0.3));
                self.own.products.insert(id, row.clone());
                self.send_product(id, Some(value), Says::Product { id, row: Some(row), keeps });
            }
            58..62 => {
                // The key of a row changes: the connector deletes the one and creates the other.
                let (id, other) = (rng.random_range(1..=IDS), rng.random_range(1..=IDS));
                let Some(row) = self.own.products.get(&id).filter(|_| id != other).cloned() else { return };
                let row = Product { version, ..row };
                self.own.products.remove(&id);
                self.own.products.insert(other, row.clone());
                self.send_product(
                    id,
                    Some(self.wire.product(id, None, false, false)),
                    Says::Product { id, row: None, keeps: false },
                );
                // Compaction may have left nothing of the delete but its tombstone, which is read as one.
                self.send_product(id, None, Says::Product { id, row: None, keeps: false });
                let value = self.wire.product(other, Some(&row), false, false);
                self.send_product(other, Some(value), Says::Product { id: other, row: Some(row), keeps: false });
            }
            62..73 => {
                let id = rng.random_range(1..=IDS);
                if self.own.products.remove(&id).is_some() {
                    let value = self.wire.product(id, None, false, false);
                    self.send_product(id, Some(value), Says::Product { id, row: None, keeps: false });
                    // Compaction may have left nothing of the delete but its tombstone, which is read as one.
                    self.send_product(id, None, Says::Product { id, row: None, keeps: false });
                }
            }
            73..87 => {
                let id = rng.random_range(1..=CATEGORY_IDS);
                let row = Category { title: (*TITLES.choose(rng).expect("not empty")).to_string(), version };
                let value = wire::category(id, Some(&row), rng.random());
                self.own.categories.insert(id, row.clone());
                self.send_category(id, Some(value), Says::Category { id, row: Some(row) });
            }
            87..90 => {
                let id = rng.random_range(1..=CATEGORY_IDS);
                if self.own.categories.remove(&id).is_some() {
                    self.send_category(
                        id,
                        Some(wire::category(id, None, rng.random())),
                        Says::Category { id, row: None },
                    );
                }
            }
            90 => {
                self.own.categories.clear();
                let truncate = json!({"before": null, "after": null, "op": "t"}).to_string().into_bytes();
                self.send(Partition::new(CATEGORIES, 0), None, Some(truncate), Says::Truncate);
            }
            _ => {
                let id = rng.random_range(1..=IDS);
                let garbage = match rng.random_range(0..3) {
                    0 => b"garbage".to_vec(),
                    1 => wire::unknown_schema(),
                    _ => {
                        // Cut off in the middle.
                        let row = Product { name: "torn".into(), description: None, category: 1, version };
                        let whole = self.wire.product(id, Some(&row), false, false);
                        whole[..whole.len() / 2].to_vec()
                    }
                };
                match rng.random_range(0..4) {
                    0 => self.send_category(1, Some(b"{\"op\": ".to_vec()), Says::Garbage),
                    1 => self.send_category(1, Some(wire::refused_category(1)), Says::Garbage),
                    _ => self.send_product(id, Some(garbage), Says::Garbage),
                }
            }
        }
    }

    fn send_product(&mut self, id: i64, value: Option<Vec<u8>>, says: Says) {
        let key = self.wire.product_key(id);
        self.send(Partition::new(PRODUCTS, (id % 2) as i32), Some(key), value, says);
    }

    fn send_category(&mut self, id: i64, value: Option<Vec<u8>>, says: Says) {
        let key = json!({"id": id}).to_string().into_bytes();
        self.send(Partition::new(CATEGORIES, 0), Some(key), value, says);
    }

    fn send(&mut self, partition: Partition, key: Option<Vec<u8>>, value: Option<Vec<u8>>, says: Says) {
        self.under_way.entry(partition).or_default().push_back(Event { key, value, says });
    }

    /// Some of what is under way in one partition comes to its topic.
    pub fn arrive(&mut self, rng: &mut StdRng) {
        let waiting: Vec<Partition> =
            self.under_way.iter().filter(|(_, events)| !events.is_empty()).map(|(p, _)| p.clone()).collect();
        let Some(partition) = waiting.choose(rng) else { return };
        for _ in 0..rng.random_range(1..=8) {
            let Some(event) = self.under_way.get_mut(partition).and_then(VecDeque::pop_front) else { break };
            self.append(partition, event);
            if rng.random_bool(0.03) {
                let topic = self.topics.get_mut(partition).expect("every partition has a topic");
                let timestamp_ms = 0;
                topic.messages.push(Message {
                    key: None,
                    value: None,
                    timestamp_ms,
                    says: Says::Nothing,
                    is_marker: true,
                });
            }
        }
    }

    /// All that is under way comes.
    pub fn arrive_all(&mut self) {
        for (partition, events) in std::mem::take(&mut self.under_way) {
            events.into_iter().for_each(|event| self.append(&partition, event));
        }
    }

    /// The last messages of a partition come once more, as from a connector that was killed before it had stored how far it was.
    pub fn resend(&mut self, rng: &mut StdRng) {
        let partitions: Vec<Partition> = self.topics.keys().cloned().collect();
        let Some(partition) = partitions.choose(rng) else { return };
        let messages = &self.topics[partition].messages;
        let again = messages.iter().rev().take(rng.random_range(1..=5)).filter(|m| !m.is_marker).map(|m| Event {
            key: m.key.clone(),
            value: m.value.clone(),
            says: m.says.clone(),
        });
        let mut again: Vec<Event> = again.collect();
        again.reverse();
        again.into_iter().for_each(|event| self.append(partition, event));
    }

    fn append(&mut self, partition: &Partition, Event { key, value, says }: Event) {
        self.read.apply(&says);
        record(&self.read, &says, &mut self.products, &mut self.categories);
        self.events += 1;
        let topic = self.topics.get_mut(partition).expect("every partition has a topic");
        let timestamp_ms = 1_700_000_000_000 + topic.messages.len() as i64 / DAY_MESSAGES * DAY_MS;
        topic.messages.push(Message { key, value, timestamp_ms, says, is_marker: false });
    }

    /// The next offsets after all that there is.
    pub fn end(&self) -> Position {
        let ends = self.topics.iter().map(|(partition, topic)| (partition.clone(), Offset(topic.end())));
        ends.filter(|(_, end)| *end > Offset(0)).collect()
    }

    /// The histories as far as a reader knows them that has read up to a position.
    pub fn histories(&self, position: &Position) -> (History<Product>, History<Category>) {
        let (mut tables, mut products, mut categories) = Default::default();
        for (partition, topic) in &self.topics {
            let end = position.get(partition).unwrap_or_default().0;
            for message in topic.messages.iter().take(end as usize) {
                Tables::apply(&mut tables, &message.says);
                record(&tables, &message.says, &mut products, &mut categories);
            }
        }
        (products, categories)
    }
}

/// Writes down what has just become of the tables.
fn record(tables: &Tables, says: &Says, products: &mut History<Product>, categories: &mut History<Category>) {
    match says {
        Says::Nothing | Says::Garbage => {}
        Says::Product { id, .. } => {
            products.entry(*id).or_insert_with(|| vec![None]).push(tables.products.get(id).cloned());
        }
        Says::Category { id, .. } => {
            categories.entry(*id).or_insert_with(|| vec![None]).push(tables.categories.get(id).cloned());
        }
        Says::Truncate => categories.values_mut().for_each(|history| history.push(None)),
    }
}

impl Category {
    pub fn json(&self, id: i64) -> Value {
        json!({"id": id, "title": self.title, "version": self.version})
    }
}
