//! The back office: `/shop/products/{id}`, `/shop/categories/{id}` and `/shop/brands/{id}`, through which a person does to the tables what the
//! shop's own software would do.
//!
//! The invariant: when a category or brand gets another name, nothing else happens in the shop until searches see it, so that what was
//! embedded meanwhile was embedded for that name alone.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};
use warp::Filter;
use warp::http::{Method, StatusCode};

use super::changelog::Error;
use super::shop::{Renamed, Shop};
use super::trading::Floor;
use crate::serve::Status;
use crate::time::Position;

/// How long an answer waits for the index.
const PATIENCE: Duration = Duration::from_secs(120);
/// The highest price that the office takes.
const PRICE_MAX: f64 = 1_000_000.0;

#[derive(Clone)]
pub(super) struct Office {
    shop: Arc<Mutex<Shop>>,
    floor: Floor,
    status: Arc<Status>,
    stop: Arc<AtomicBool>,
}

type Answer = (StatusCode, Value);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProductEdit {
    name: Option<String>,
    description: Option<String>,
    list_price: Option<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rename {
    name: String,
}

/// What gets another name with all its products.
#[derive(Clone, Copy)]
enum Named {
    Category,
    Brand,
}

impl Office {
    pub fn new(shop: Arc<Mutex<Shop>>, floor: Floor, status: Arc<Status>, stop: Arc<AtomicBool>) -> Office {
        Office { shop, floor, status, stop }
    }

    pub fn routes(self) -> impl Filter<Extract = (impl warp::Reply,), Error = warp::Rejection> + Clone {
        warp::method().and(warp::path!("shop" / String / i64)).and(warp::body::bytes()).then(
            move |method: Method, table: String, id, body: bytes::Bytes| {
                let office = self.clone();
                async move {
                    let (status, value) = office.answer(&method, &table, id, body).await;
                    warp::reply::with_status(warp::reply::json(&value), status)
                }
            },
        )
    }

    pub async fn answer(self, method: &Method, table: &str, id: i64, body: bytes::Bytes) -> Answer {
        let named = match table {
            "products" => return self.product(method, id, body).await,
            "categories" => Named::Category,
            "brands" => Named::Brand,
            other => return not_found(format!("{other} are none of products, categories, brands")),
        };
        match method.as_str() {
            "GET" => self.blocking(move |shop| show(shop, named, id)).await,
            "PUT" => match object::<Rename>(&body) {
                Ok(Rename { name }) if !name.trim().is_empty() => self.rename(named, id, name).await,
                Ok(_) => bad_request("the name is empty"),
                Err(answer) => answer,
            },
            other => not_allowed(other, "GET, PUT"),
        }
    }

    /// An answer to a change comes when searches see it, and says how long that took.
    async fn product(&self, method: &Method, id: i64, body: bytes::Bytes) -> Answer {
        let changes = *method != Method::GET;
        let method = method.clone();
        let (status, mut value) = self.blocking(move |shop| product(shop, &method, id, &body)).await;
        let written = Instant::now();
        if changes && status == StatusCode::OK {
            if !self.settled().await {
                return not_settled("the shop has changed it");
            }
            value["searchable_after_ms"] = json!(written.elapsed().as_millis() as u64);
        }
        (status, value)
    }

    /// Works on the shop where waiting for the broker holds up nobody.
    async fn blocking(&self, work: impl FnOnce(&mut Shop) -> Answer + Send + 'static) -> Answer {
        let shop = self.shop.clone();
        let done = tokio::task::spawn_blocking(move || work(&mut shop.lock().expect("no holder of this lock panics")));
        done.await.unwrap_or_else(|e| (StatusCode::INTERNAL_SERVER_ERROR, json!({"error": e.to_string()})))
    }

    async fn rename(&self, named: Named, id: i64, name: String) -> Answer {
        let _floor = self.floor.lock().await;
        if !self.settled().await {
            return not_settled("nothing was renamed");
        }
        let before = self.embeds();
        let shop = self.shop.clone();
        let renaming = tokio::task::spawn_blocking(move || {
            let mut shop = shop.lock().expect("no holder of this lock panics");
            match named {
                Named::Category => shop.rename_category(id, &name),
                Named::Brand => shop.rename_brand(id, &name),
            }
        });
        let renamed = match renaming.await {
            Ok(Ok(Some(renamed))) => renamed,
            Ok(Ok(None)) => return not_found(format!("there is no {} {id}", named.noun())),
            Ok(Err(e)) => return failed(&e),
            Err(e) => return (StatusCode::INTERNAL_SERVER_ERROR, json!({"error": e.to_string()})),
        };
        if !self.settled().await {
            return not_settled("it has its new name");
        }
        let after = self.embeds();
        let [asked, cached, computed] = [0, 1, 2].map(|n| after[n] - before[n]);
        say!("{}", said(&renamed, cached, computed));
        let mut answer = json!(renamed);
        answer["embed"] = json!({"asked": asked, "cached": cached, "computed": computed});
        (StatusCode::OK, answer)
    }

    /// Waits until searches see all that the shop has written; `false` when that takes too long.
    async fn settled(&self) -> bool {
        let written: Position = self.shop.lock().expect("no holder of this lock panics").written();
        let started = Instant::now();
        while !self.status.position().covers(&written) {
            if self.stop.load(Ordering::SeqCst) || started.elapsed() > PATIENCE {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        true
    }

    /// Texts asked for, found and computed so far.
    fn embeds(&self) -> [u64; 3] {
        let m = self.status.metrics();
        [m.embeds_asked.get(), m.embeds_cached.get(), m.embeds_computed.get()]
    }
}

impl Named {
    fn noun(self) -> &'static str {
        match self {
            Named::Category => "category",
            Named::Brand => "brand",
        }
    }
}

fn said(renamed: &Renamed, cached: u64, computed: u64) -> String {
    let Renamed { table, id, products, .. } = renamed;
    let known = if cached > 0 { format!(", {cached} known from before") } else { String::new() };
    format!("{table} {id} renamed: {products} products, {computed} texts embedded{known}")
}

fn product(shop: &mut Shop, method: &Method, id: i64, body: &[u8]) -> Answer {
    let none = || not_found(format!("there is no product {id}"));
    match method.as_str() {
        "GET" => shop.get(id).map_or_else(none, |p| (StatusCode::OK, json!(p))),
        "DELETE" => match shop.delete(id) {
            Ok(true) => (StatusCode::OK, json!({"deleted": id})),
            Ok(false) => none(),
            Err(e) => failed(&e),
        },
        "PUT" => match object::<ProductEdit>(body) {
            Ok(ProductEdit { list_price: Some(price), .. }) if !(0.0..=PRICE_MAX).contains(&price) => {
                bad_request(format!("list_price is {price}; it has to be from 0 to {PRICE_MAX}"))
            }
            Ok(edit) => {
                let cents = edit.list_price.map(|p| (p * 100.0).round() as i64);
                match shop.edit(id, edit.name, edit.description, cents) {
                    Ok(Some(product)) => (StatusCode::OK, json!(product)),
                    Ok(None) => none(),
                    Err(e) => failed(&e),
                }
            }
            Err(answer) => answer,
        },
        other => not_allowed(other, "GET, PUT, DELETE"),
    }
}

fn show(shop: &Shop, named: Named, id: i64) -> Answer {
    let found = match named {
        Named::Category => shop.category(id).map(|c| (json!(c), shop.listed_in(id))),
        Named::Brand => shop.brand(id).map(|b| (json!(b), shop.listed_of(id))),
    };
    let Some((mut row, products)) = found else { return not_found(format!("there is no {} {id}", named.noun())) };
    row["products"] = products.into();
    (StatusCode::OK, row)
}

/// A body's fields. serde also takes an array for a struct, field by field.
fn object<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Answer> {
    match body.iter().find(|b| !b.is_ascii_whitespace()) {
        Some(b'{') => serde_json::from_slice(body).map_err(|e| bad_request(e.to_string())),
        _ => Err(bad_request("the body is not a JSON object")),
    }
}

fn bad_request(reason: impl Into<String>) -> Answer {
    (StatusCode::BAD_REQUEST, json!({"error": reason.into()}))
}

fn not_found(reason: String) -> Answer {
    (StatusCode::NOT_FOUND, json!({"error": reason}))
}

fn not_allowed(method: &str, allowed: &str) -> Answer {
    (StatusCode::METHOD_NOT_ALLOWED, json!({"error": format!("{method} is none of {allowed}")}))
}

fn not_settled(what: &str) -> Answer {
    let reason = format!("the index has not caught up within {} s; {what}", PATIENCE.as_secs());
    (StatusCode::SERVICE_UNAVAILABLE, json!({"error": reason}))
}

fn failed(error: &Error) -> Answer {
    (StatusCode::INTERNAL_SERVER_ERROR, json!({"error": error.to_string()}))
}
