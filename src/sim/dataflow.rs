//! The dataflow that is simulated: a small shop's products with their categories, from two sources of different formats.
//!
//! The invariant: it is configured and planned as any dataflow is; only where things lie differs from seed to seed.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use serde_json::{Value, json};

use super::Error;
use super::shop::{Category, Product};
use crate::config::{self, Config};
use crate::dataflow::Plan;
use crate::decode::RowType;
use crate::engine;

pub const PRODUCTS: &str = "shop.public.product";
pub const CATEGORIES: &str = "shop.public.category";

const CONFIG: &str = r#"
name = "shop"
view = "product"
[kafka]
bootstrap_servers = "localhost:1"
[registry]
url = "http://localhost:1"
[[source]]
schema = "shop"
table = "product"
topic = "shop.public.product"
key = ["id"]
contract = "product.avsc"
[[source]]
schema = "shop"
table = "category"
topic = "shop.public.category"
format = "json"
key = ["id"]
contract = "category.avsc"
[raw]
uri = "raw"
[index]
uri = "index"
key = "id"
text = "text"
"#;

const VIEW: &str = r#"
select p.id, concat_ws(', ', p.name, p.description, c.title) as text, p.name, p.description, p.category_id, p.version,
    c.title, c.version as category_version
from {{ source('shop', 'product') }} p
left join {{ source('shop', 'category') }} c on p.category_id = c.id
"#;

/// The dataflow, checked and planned once for all seeds.
#[derive(Clone)]
pub struct Dataflow {
    pub config: Config,
    pub plan: Plan,
    pub row_types: Vec<Arc<RowType>>,
}

/// A row of the view: the product, and its category if there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub id: i64,
    pub text: String,
    pub product: Product,
    pub category: Option<Category>,
}

impl Dataflow {
    /// Writes the folder and reads it.
    pub fn new(folder: &Path) -> Result<Dataflow, Error> {
        std::fs::create_dir_all(folder.join("models"))?;
        let write = |name: &str, text: &str| std::fs::write(folder.join(name), text);
        write("dataflow.toml", CONFIG)?;
        write("models/product.sql", VIEW)?;
        write("product.avsc", &product_row().to_string())?;
        write("category.avsc", &category_row().to_string())?;
        let config = config::load_with(folder, |_| None)?;
        let planned = engine::plan(&config);
        let (plan, row_types) = planned.map_err(|problems| format!("the shop cannot be planned: {problems:?}"))?;
        Ok(Dataflow { config, plan, row_types })
    }

    /// The view's columns, in the order of their [rows](Shown::all).
    pub fn columns(&self) -> Vec<&str> {
        self.plan.view_schema().fields().iter().map(|field| field.name().as_str()).collect()
    }

    pub fn raw(&self) -> &config::Raw {
        self.config.raw.as_ref().expect("the shop has [raw]")
    }
}

impl Shown {
    /// The rows of the index.
    pub fn all(rows: &RecordBatch) -> Vec<Shown> {
        let columns = rows.columns();
        let long = |column: usize, n: usize| columns[column].as_primitive::<Int64Type>().value(n);
        let text = |column: usize, n: usize| columns[column].as_string::<i32>().value(n).to_string();
        let shown = |n: usize| Shown {
            id: long(0, n),
            text: text(1, n),
            product: Product {
                name: text(2, n),
                description: columns[3].is_valid(n).then(|| text(3, n)),
                category: long(4, n),
                version: long(5, n),
            },
            category: columns[6].is_valid(n).then(|| Category { title: text(6, n), version: long(7, n) }),
        };
        (0..rows.num_rows()).map(shown).collect()
    }
}

pub fn product_row() -> Value {
    json!({"type": "record", "name": "Value", "namespace": PRODUCTS, "fields": [
        {"name": "id", "type": "long"},
        {"name": "name", "type": "string"},
        {"name": "description", "type": ["null", "string"], "default": null},
        {"name": "category_id", "type": "long"},
        {"name": "version", "type": "long"},
    ]})
}

fn category_row() -> Value {
    json!({"type": "record", "name": "Value", "namespace": CATEGORIES, "fields": [
        {"name": "id", "type": "long"},
        {"name": "title", "type": "string"},
        {"name": "version", "type": "long"},
    ]})
}
