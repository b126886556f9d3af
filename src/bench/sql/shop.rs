//! The shop whose tables the queries are over: products and categories, written as Debezium's Avro events.
//!
//! The invariant: a row is a function of its key and of how often it has changed, so that the tables as they stand need not be kept.

use std::sync::Arc;

use arrow::array::{ArrayRef, Decimal128Array, Int32Array, Int64Array, RecordBatch, StringArray};

use crate::bench::Error;
use crate::config::{Envelope, Format, Source};
use crate::dataflow::Plan;
use crate::source::MessageBatch;
use crate::time::{Offset, Partition};

const CATEGORIES: i64 = 1_000;
const BATCH: usize = 4_096;

pub(super) const PRODUCT: &str = r#"{"type":"record","name":"product","fields":[
    {"name":"id","type":"long"},{"name":"category_id","type":"long"},{"name":"group_id","type":"long"},
    {"name":"name","type":"string"},{"name":"description","type":"string"},
    {"name":"price","type":{"type":"bytes","logicalType":"decimal","precision":15,"scale":2}},
    {"name":"stock","type":"int"},{"name":"updated","type":"long"}]}"#;
pub(super) const CATEGORY: &str =
    r#"{"type":"record","name":"category","fields":[{"name":"id","type":"long"},{"name":"name","type":"string"}]}"#;

pub(super) const KEY: &str = r#"{"type":"record","name":"Key","fields":[{"name":"id","type":"long"}]}"#;
pub(super) const KEY_ID: u32 = 3;

/// Debezium's envelope around a row.
pub(super) fn envelope(row: &str) -> Arc<str> {
    let name = if row == PRODUCT { "product" } else { "category" };
    format!(
        r#"{{"type":"record","name":"Envelope","fields":[
            {{"name":"before","type":["null",{row}],"default":null}},{{"name":"after","type":["null","{name}"],"default":null}},
            {{"name":"source","type":{{"type":"record","name":"Source","fields":[{{"name":"ts_ms","type":"long"}},
                {{"name":"snapshot","type":["null","string"],"default":null}},{{"name":"table","type":"string"}}]}}}},
            {{"name":"op","type":"string"}},{{"name":"ts_ms","type":["null","long"],"default":null}}]}}"#
    )
    .into()
}

pub(super) fn source(table: &str, contract: &str) -> Source {
    Source {
        schema: "shop".into(),
        table: table.into(),
        topic: table.into(),
        format: Format::Avro,
        envelope: Envelope::Debezium,
        key: vec!["id".into()],
        unavailable: "__debezium_unavailable_value".into(),
        contract: contract.into(),
        contract_path: format!("{table}.avsc").into(),
    }
}

/// A table of products, each with the number of times that it has changed.
pub(super) struct Shop {
    seed: u64,
    pub(super) versions: Vec<u32>,
    next: u64,
    offset: i64,
}

/// A product at one version.
struct Product {
    id: i64,
    category_id: i64,
    group_id: i64,
    name: String,
    description: String,
    price: i128,
    stock: i32,
    updated: i64,
}

/// Steele and others, Fast splittable pseudorandom number generators.
fn mixed(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Shop {
    pub(super) fn new(seed: u64, rows: u32) -> Shop {
        Shop { seed, versions: vec![0; rows as usize], next: 0, offset: 0 }
    }

    fn product(&self, id: usize) -> Product {
        let version = self.versions[id];
        let chance = mixed(self.seed ^ (id as u64) << 24 ^ u64::from(version));
        // Seven in ten changes are of the price alone.
        let text = version / 4;
        Product {
            id: id as i64,
            category_id: id as i64 % CATEGORIES,
            group_id: id as i64 % (self.versions.len() as i64 / 10).max(1),
            name: format!("product {} of the range", id / 2),
            description: format!(
                "what is to be said of number {id} in edition {text}, at some length and with care, so that it is read"
            ),
            price: (chance % 100_000) as i128,
            stock: (chance >> 32) as i32 & 0x3f,
            updated: i64::from(version) * 1_000 + (chance >> 48) as i64 % 1_000,
        }
    }

    pub(super) fn categories(&mut self) -> Vec<MessageBatch> {
        let mut batch = MessageBatch::new(Partition::new("category", 0));
        for id in 0..CATEGORIES {
            let row = |out: &mut Vec<u8>| {
                long(out, id);
                bytes(out, category_name(id).as_bytes());
            };
            message(&mut batch, Offset(id), id, 2, "category", row);
        }
        vec![batch]
    }

    pub(super) fn snapshot(&mut self, ids: std::ops::Range<usize>) -> Vec<MessageBatch> {
        self.messages(ids)
    }

    /// So many updates of random products.
    pub(super) fn changes(&mut self, count: usize) -> Vec<MessageBatch> {
        let ids: Vec<usize> = (0..count)
            .map(|_| {
                self.next += 1;
                mixed(self.seed.wrapping_add(self.next.wrapping_mul(0x9e37_79b9_7f4a_7c15))) as usize
                    % self.versions.len()
            })
            .collect();
        let mut batches = Vec::new();
        for ids in ids.chunks(BATCH) {
            // Versions count on within a batch, so that a product which changes twice in it does so.
            let mut batch = MessageBatch::new(Partition::new("product", 0));
            for id in ids {
                self.versions[*id] += 1;
                self.write(&mut batch, *id);
            }
            batches.push(batch);
        }
        batches
    }

    fn messages(&mut self, ids: std::ops::Range<usize>) -> Vec<MessageBatch> {
        let mut batches = Vec::new();
        for start in ids.clone().step_by(BATCH) {
            let mut batch = MessageBatch::new(Partition::new("product", 0));
            (start..(start + BATCH).min(ids.end)).for_each(|id| self.write(&mut batch, id));
            batches.push(batch);
        }
        batches
    }

    fn write(&mut self, batch: &mut MessageBatch, id: usize) {
        let p = self.product(id);
        let row = |out: &mut Vec<u8>| {
            [p.id, p.category_id, p.group_id].into_iter().for_each(|v| long(out, v));
            bytes(out, p.name.as_bytes());
            bytes(out, p.description.as_bytes());
            bytes(out, &(p.price as i32).to_be_bytes());
            long(out, i64::from(p.stock));
            long(out, p.updated);
        };
        message(batch, Offset(self.offset), p.id, 1, "product", row);
        self.offset += 1;
    }

    /// The tables as they stand.
    pub(super) fn tables(&self, plan: &Plan) -> Result<Vec<RecordBatch>, Error> {
        let products: Vec<Product> = (0..self.versions.len()).map(|id| self.product(id)).collect();
        let longs =
            |of: fn(&Product) -> i64| Arc::new(Int64Array::from_iter_values(products.iter().map(of))) as ArrayRef;
        let column = |name: &str| -> ArrayRef {
            match name {
                "id" => longs(|p| p.id),
                "category_id" => longs(|p| p.category_id),
                "group_id" => longs(|p| p.group_id),
                "updated" => longs(|p| p.updated),
                "name" => Arc::new(StringArray::from_iter_values(products.iter().map(|p| &p.name))),
                "description" => Arc::new(StringArray::from_iter_values(products.iter().map(|p| &p.description))),
                "stock" => Arc::new(Int32Array::from_iter_values(products.iter().map(|p| p.stock))),
                "price" => {
                    let cents = Decimal128Array::from_iter_values(products.iter().map(|p| p.price));
                    Arc::new(cents.with_precision_and_scale(15, 2).expect("prices have few digits"))
                }
                other => unreachable!("the product has no column {other}"),
            }
        };
        let of_category = |name: &str| -> ArrayRef {
            match name {
                "id" => Arc::new(Int64Array::from_iter_values(0..CATEGORIES)),
                _ => Arc::new(StringArray::from_iter_values((0..CATEGORIES).map(category_name))),
            }
        };
        let batch = |n: usize, column: &dyn Fn(&str) -> ArrayRef| {
            let schema = plan.tables()[n].columns.clone();
            let columns: Vec<ArrayRef> = schema.fields().iter().map(|f| column(f.name())).collect();
            Ok::<_, Error>(RecordBatch::try_new(schema, columns)?)
        };
        Ok(vec![batch(0, &column)?, batch(1, &of_category)?])
    }
}

fn category_name(id: i64) -> String {
    format!("category number {id}")
}

/// An event that leaves this row: key and value in Confluent's wire format.
fn message(batch: &mut MessageBatch, offset: Offset, id: i64, schema: u32, table: &str, row: impl Fn(&mut Vec<u8>)) {
    let head = |schema: u32| [&[0][..], &schema.to_be_bytes()].concat();
    let mut value = head(schema);
    long(&mut value, 0);
    long(&mut value, 1);
    row(&mut value);
    long(&mut value, 1_700_000_000_000);
    long(&mut value, 0);
    bytes(&mut value, table.as_bytes());
    bytes(&mut value, b"u");
    long(&mut value, 0);
    let mut key = head(KEY_ID);
    long(&mut key, id);
    batch.push(offset, 0, Some(&key), Some(&value));
}

/// Avro's zigzag.
fn long(out: &mut Vec<u8>, value: i64) {
    let mut z = ((value << 1) ^ (value >> 63)) as u64;
    while z >= 0x80 {
        out.push(z as u8 | 0x80);
        z >>= 7;
    }
    out.push(z as u8);
}

fn bytes(out: &mut Vec<u8>, value: &[u8]) {
    long(out, value.len() as i64);
    out.extend_from_slice(value);
}
