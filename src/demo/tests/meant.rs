//! What the shop means: its rows as its tables have to hold them, and its products as the view has to show them.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Decimal128Array, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow::datatypes::{Decimal128Type, Float64Type, Int64Type};

use super::*;

/// What matters of the view's rows, by key.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct View(pub BTreeMap<i64, Shown>);

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Shown {
    pub text: String,
    pub category: String,
    pub path: String,
    pub brand: Option<String>,
    pub cents: i128,
    pub rating: Option<f64>,
    pub reviews: i64,
}

impl From<&RecordBatch> for View {
    fn from(batch: &RecordBatch) -> View {
        let column = |name: &str| batch.column_by_name(name).unwrap_or_else(|| panic!("the view has no {name}"));
        let text = |name: &str, n| column(name).as_string::<i32>().value(n).to_string();
        let some = |name: &str, n| column(name).is_valid(n);
        let row = |n| Shown {
            text: text("search_text", n),
            category: text("category", n),
            path: text("category_path", n),
            brand: some("brand", n).then(|| text("brand", n)),
            cents: column("list_price").as_primitive::<Decimal128Type>().value(n),
            rating: some("rating", n).then(|| column("rating").as_primitive::<Float64Type>().value(n)),
            reviews: column("review_count").as_primitive::<Int64Type>().value(n),
        };
        let ids = column("id").as_primitive::<Int64Type>();
        let view: BTreeMap<_, _> = (0..batch.num_rows()).map(|n| (ids.value(n), row(n))).collect();
        assert_eq!(view.len(), batch.num_rows(), "a key stands in the view once");
        View(view)
    }
}

impl View {
    /// The view by plain code over the shop.
    pub fn of(shop: &Shop) -> View {
        let mut marks: BTreeMap<i64, Vec<i32>> = BTreeMap::new();
        shop.reviews().for_each(|r| marks.entry(r.product_id).or_default().push(r.rating));
        let mut prices: BTreeMap<i64, (i64, i64)> = BTreeMap::new();
        for price in shop.prices().filter(|p| p.currency == "EUR") {
            let latest = prices.entry(price.product_id).or_default();
            *latest = (*latest).max((price.valid_from_us, price.amount_cents));
        }
        let listed = shop.products().filter(|p| p.is_active && p.status != "discontinued");
        let shown = |p: &Product| {
            let mut path = Vec::new();
            let mut above = Some(p.category_id);
            while let Some(category) = above.and_then(|id| shop.category(id)) {
                path.insert(0, category.name.as_str());
                above = category.parent_id;
            }
            let path = path.join(" > ");
            let brand = p.brand_id.map(|id| shop.brand(id).unwrap().name.clone());
            let by = brand.as_ref().map_or(String::new(), |b| format!("Brand: {b}. "));
            let marks = marks.get(&p.id).cloned().unwrap_or_default();
            let mean = marks.iter().sum::<i32>() as f64 / marks.len() as f64;
            Shown {
                text: format!("{}. {by}Category: {path}. {}", p.name, p.description),
                category: shop.category(p.category_id).unwrap().name.clone(),
                path,
                brand,
                cents: i128::from(prices[&p.id].1),
                rating: (!marks.is_empty()).then_some((mean * 100.0).round() / 100.0),
                reviews: marks.len() as i64,
            }
        };
        View(listed.map(|p| (p.id, shown(p))).collect())
    }

    /// The keys whose rows, and those whose texts, are not what they were.
    pub fn changed(&self, before: &View) -> (BTreeSet<i64>, BTreeSet<i64>) {
        let keys = || self.0.keys().chain(before.0.keys());
        let text = |view: &View, key| view.0.get(key).map(|row| row.text.clone());
        let rows = keys().filter(|key| self.0.get(key) != before.0.get(key));
        let texts = keys().filter(|key| text(self, key) != text(before, key));
        (rows.copied().collect(), texts.copied().collect())
    }
}

/// A table as the shop has it, in the types of its contract.
pub(super) fn expected(shop: &Shop, table: Table, row_type: &RowType) -> Vec<ArrayRef> {
    fn of<'a, R: 'a, A: FromIterator<T>, T>(rows: impl Iterator<Item = &'a R>, get: impl Fn(&'a R) -> T) -> A {
        rows.map(get).collect()
    }
    let times = |at: usize, values: Vec<Option<i64>>| -> ArrayRef {
        let data_type = row_type.schema().field(at).data_type().clone();
        Arc::new(TimestampMicrosecondArray::from(values).with_data_type(data_type))
    };
    match table {
        Table::Product => {
            let rows = || shop.products();
            vec![
                Arc::new(of::<_, Int64Array, _>(rows(), |p| Some(p.id))),
                Arc::new(of::<_, StringArray, _>(rows(), |p| Some(&p.sku))),
                Arc::new(of::<_, StringArray, _>(rows(), |p| Some(&p.name))),
                Arc::new(of::<_, StringArray, _>(rows(), |p| Some(&p.description))),
                Arc::new(of::<_, Int64Array, _>(rows(), |p| Some(p.category_id))),
                Arc::new(of::<_, Int64Array, _>(rows(), |p| p.brand_id)),
                Arc::new(of::<_, Int32Array, _>(rows(), |p| Some(p.stock))),
                Arc::new(of::<_, StringArray, _>(rows(), |p| Some(p.status))),
                Arc::new(of::<_, BooleanArray, _>(rows(), |p| Some(p.is_active))),
                times(9, of(rows(), |p| Some(p.created_us))),
                times(10, of(rows(), |p| p.updated_us)),
            ]
        }
        Table::Category => {
            let rows = || shop.categories();
            vec![
                Arc::new(of::<_, Int64Array, _>(rows(), |c| Some(c.id))),
                Arc::new(of::<_, Int64Array, _>(rows(), |c| c.parent_id)),
                Arc::new(of::<_, StringArray, _>(rows(), |c| Some(&c.name))),
                Arc::new(of::<_, StringArray, _>(rows(), |c| c.description.as_ref())),
            ]
        }
        Table::Brand => {
            let rows = || shop.brands();
            vec![
                Arc::new(of::<_, Int64Array, _>(rows(), |b| Some(b.id))),
                Arc::new(of::<_, StringArray, _>(rows(), |b| Some(&b.name))),
                Arc::new(of::<_, StringArray, _>(rows(), |b| b.country.as_ref())),
            ]
        }
        Table::Price => {
            let mut all: Vec<&Price> = shop.prices().collect();
            all.sort_by_key(|p| p.id);
            let rows = || all.iter().copied();
            let amounts: Decimal128Array = of(rows(), |p| Some(i128::from(p.amount_cents)));
            vec![
                Arc::new(of::<_, Int64Array, _>(rows(), |p| Some(p.id))),
                Arc::new(of::<_, Int64Array, _>(rows(), |p| Some(p.product_id))),
                Arc::new(of::<_, StringArray, _>(rows(), |p| Some(p.currency))),
                Arc::new(amounts.with_precision_and_scale(10, 2).unwrap()),
                times(4, of(rows(), |p| Some(p.valid_from_us))),
            ]
        }
        Table::Review => {
            let mut all: Vec<&Review> = shop.reviews().collect();
            all.sort_by_key(|r| r.id);
            let rows = || all.iter().copied();
            vec![
                Arc::new(of::<_, Int64Array, _>(rows(), |r| Some(r.id))),
                Arc::new(of::<_, Int64Array, _>(rows(), |r| Some(r.product_id))),
                Arc::new(of::<_, Int32Array, _>(rows(), |r| Some(r.rating))),
                Arc::new(of::<_, StringArray, _>(rows(), |r| Some(&r.title))),
                Arc::new(of::<_, StringArray, _>(rows(), |r| r.body.as_ref())),
                times(5, of(rows(), |r| Some(r.created_us))),
            ]
        }
    }
}
