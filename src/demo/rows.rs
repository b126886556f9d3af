//! The shop's five tables: their topics and contracts, and the rows that they hold.
//!
//! The invariant: a row's Avro value has the fields of its contract, in their order.

use apache_avro::Decimal;
use apache_avro::types::Value;
use chrono::{DateTime, SecondsFormat};

/// Partitions of the topics that grow with the shop.
pub const PARTITIONS: i32 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    Product,
    Category,
    Brand,
    Price,
    Review,
}

impl Table {
    pub const ALL: [Table; 5] = [Table::Product, Table::Category, Table::Brand, Table::Price, Table::Review];

    pub const fn name(self) -> &'static str {
        match self {
            Table::Product => "product",
            Table::Category => "category",
            Table::Brand => "brand",
            Table::Price => "price",
            Table::Review => "review",
        }
    }

    pub const fn topic(self) -> &'static str {
        match self {
            Table::Product => "shop.public.product",
            Table::Category => "shop.public.category",
            Table::Brand => "shop.public.brand",
            Table::Price => "shop.public.price",
            Table::Review => "shop.public.review",
        }
    }

    pub const fn partitions(self) -> i32 {
        match self {
            Table::Category | Table::Brand => 1,
            Table::Product | Table::Price | Table::Review => PARTITIONS,
        }
    }

    /// The Avro schema of its rows.
    pub const fn contract(self) -> &'static str {
        match self {
            Table::Product => include_str!("../../schemas/avro/product.avsc"),
            Table::Category => include_str!("../../schemas/avro/category.avsc"),
            Table::Brand => include_str!("../../schemas/avro/brand.avsc"),
            Table::Price => include_str!("../../schemas/avro/price.avsc"),
            Table::Review => include_str!("../../schemas/avro/review.avsc"),
        }
    }
}

/// A row of one of the tables.
pub(super) trait Row {
    const TABLE: Table;

    fn id(&self) -> i64;

    /// The columns; `evolved` once the table has gained one.
    fn fields(&self, evolved: bool) -> Vec<(&'static str, Value)>;
}

#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Category {
    pub id: i64,
    /// The category above; `None` at the top.
    pub parent_id: Option<i64>,
    pub name: String,
    pub description: Option<String>,
}

#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Brand {
    pub id: i64,
    pub name: String,
    pub country: Option<String>,
}

#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Product {
    pub id: i64,
    pub sku: String,
    pub name: String,
    pub description: String,
    pub category_id: i64,
    pub brand_id: Option<i64>,
    pub stock: i32,
    pub status: &'static str,
    pub is_active: bool,
    /// Microseconds since 1970, like every time here.
    pub created_us: i64,
    pub updated_us: Option<i64>,
    pub eco_label: Option<&'static str>,
    /// No column: the amount of its latest price in euros, in hundredths.
    pub price_cents: i64,
    /// No column: which of the catalogue's items it is.
    #[serde(skip)]
    pub(super) item: &'static str,
}

impl Product {
    /// Whether customers can find it.
    pub fn is_listed(&self) -> bool {
        self.is_active && self.status != "discontinued"
    }
}

/// A price that holds from a time on, until the next one does.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Price {
    pub id: i64,
    pub product_id: i64,
    pub currency: &'static str,
    /// In hundredths.
    pub amount_cents: i64,
    pub valid_from_us: i64,
}

#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Review {
    pub id: i64,
    pub product_id: i64,
    /// 1 to 5.
    pub rating: i32,
    pub title: String,
    pub body: Option<String>,
    pub created_us: i64,
}

impl Row for Category {
    const TABLE: Table = Table::Category;

    fn id(&self) -> i64 {
        self.id
    }

    fn fields(&self, _: bool) -> Vec<(&'static str, Value)> {
        vec![
            ("id", Value::Long(self.id)),
            ("parent_id", optional(self.parent_id.map(Value::Long))),
            ("name", text(&self.name)),
            ("description", optional(self.description.as_deref().map(text))),
        ]
    }
}

impl Row for Brand {
    const TABLE: Table = Table::Brand;

    fn id(&self) -> i64 {
        self.id
    }

    fn fields(&self, _: bool) -> Vec<(&'static str, Value)> {
        vec![
            ("id", Value::Long(self.id)),
            ("name", text(&self.name)),
            ("country", optional(self.country.as_deref().map(text))),
        ]
    }
}

impl Row for Product {
    const TABLE: Table = Table::Product;

    fn id(&self) -> i64 {
        self.id
    }

    fn fields(&self, evolved: bool) -> Vec<(&'static str, Value)> {
        let mut fields = vec![
            ("id", Value::Long(self.id)),
            ("sku", text(&self.sku)),
            ("name", text(&self.name)),
            ("description", optional(Some(text(&self.description)))),
            ("category_id", Value::Long(self.category_id)),
            ("brand_id", optional(self.brand_id.map(Value::Long))),
            ("stock", Value::Int(self.stock)),
            ("status", text(self.status)),
            ("is_active", Value::Boolean(self.is_active)),
            ("created_at", Value::Long(self.created_us)),
            ("updated_at", optional(self.updated_us.map(|us| text(&zoned(us))))),
        ];
        if evolved {
            fields.push(("eco_label", optional(self.eco_label.map(text))));
        }
        fields
    }
}

impl Row for Price {
    const TABLE: Table = Table::Price;

    fn id(&self) -> i64 {
        self.id
    }

    fn fields(&self, _: bool) -> Vec<(&'static str, Value)> {
        vec![
            ("id", Value::Long(self.id)),
            ("product_id", Value::Long(self.product_id)),
            ("currency", text(self.currency)),
            ("amount", Value::Decimal(Decimal::from(self.amount_cents.to_be_bytes().to_vec()))),
            ("valid_from", Value::Long(self.valid_from_us)),
        ]
    }
}

impl Row for Review {
    const TABLE: Table = Table::Review;

    fn id(&self) -> i64 {
        self.id
    }

    fn fields(&self, _: bool) -> Vec<(&'static str, Value)> {
        vec![
            ("id", Value::Long(self.id)),
            ("product_id", Value::Long(self.product_id)),
            ("rating", Value::Int(self.rating)),
            ("title", text(&self.title)),
            ("body", optional(self.body.as_deref().map(text))),
            ("created_at", Value::Long(self.created_us)),
        ]
    }
}

pub(super) fn text(text: &str) -> Value {
    Value::String(text.into())
}

/// A value of Avro's union with null, null first.
pub(super) fn optional(value: Option<Value>) -> Value {
    match value {
        Some(value) => Value::Union(1, Box::new(value)),
        None => Value::Union(0, Box::new(Value::Null)),
    }
}

/// As Debezium writes a timestamp with time zone.
fn zoned(us: i64) -> String {
    let time = DateTime::from_timestamp_micros(us).expect("the shop's clock is of this century");
    time.to_rfc3339_opts(SecondsFormat::Micros, true)
}
