//! Requests as checked values: which route a path is, and what a search asks for.
//!
//! The invariant: what leaves here is within its bounds and names only columns that exist; what does not says in one sentence what is wrong.
//! Pure functions on text; the filter alone is judged by the index.

use std::borrow::Cow;
use std::net::SocketAddr;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Number;
use warp::http::HeaderMap;
use warp::http::header::ORIGIN;

use super::Shape;
use super::failure::Failure;

/// Neighbours when a request does not say.
const K_DEFAULT: usize = 10;
/// Longest text of a query. A model looks at some hundred tokens; taking a megabyte apart for them costs a hundred times its size in memory.
const QUERY_MAX_BYTES: usize = 32 << 10;

/// The routes, as they are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    Page,
    Search,
    Item,
    Similar,
    Status,
    Rebuild,
    Healthz,
    Readyz,
    Metrics,
    /// Whatever else was asked for.
    Unknown,
}

impl Route {
    pub fn name(self) -> &'static str {
        match self {
            Route::Page => "page",
            Route::Search => "search",
            Route::Item => "item",
            Route::Similar => "similar",
            Route::Status => "status",
            Route::Rebuild => "rebuild",
            Route::Healthz => "healthz",
            Route::Readyz => "readyz",
            Route::Metrics => "metrics",
            Route::Unknown => "unknown",
        }
    }

    /// The route of a path, and the part of it that is the key, still percent-encoded.
    pub(super) fn of(path: &str) -> (Route, &str) {
        let route = match path {
            "/" => Route::Page,
            "/v1/search" => Route::Search,
            "/v1/status" => Route::Status,
            "/v1/rebuild" => Route::Rebuild,
            "/healthz" => Route::Healthz,
            "/readyz" => Route::Readyz,
            "/metrics" => Route::Metrics,
            _ => {
                // An empty text is a key too.
                let of_key = |prefix| path.strip_prefix(prefix).filter(|key: &&str| !key.contains('/'));
                return match (of_key("/v1/items/"), of_key("/v1/similar/")) {
                    (Some(key), _) => (Route::Item, key),
                    (_, Some(key)) => (Route::Similar, key),
                    _ => (Route::Unknown, ""),
                };
            }
        };
        (route, "")
    }

    /// The methods that it answers, as the `Allow` header lists them.
    pub(super) fn methods(self) -> &'static str {
        if matches!(self, Route::Search | Route::Rebuild) { "POST" } else { "GET, HEAD" }
    }
}

/// Whether whoever asks may have more done than searches: it is on the service's own machine, and no page that a browser there shows.
pub(super) fn is_of_operator(headers: &HeaderMap, from: Option<SocketAddr>) -> bool {
    from.is_some_and(|from| from.ip().to_canonical().is_loopback()) && !headers.contains_key(ORIGIN)
}

/// What a search is near to.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Near {
    Text(String),
    Vector(Vec<f32>),
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct SearchRequest {
    pub near: Near,
    pub k: usize,
    pub filter: Option<String>,
    pub columns: Option<Vec<String>>,
}

/// The body of a search as it comes. Fields of another name are mistakes, not extensions.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    query: Option<String>,
    vector: Option<Vec<f64>>,
    k: Option<Number>,
    filter: Option<String>,
    columns: Option<Vec<String>>,
}

pub(super) fn search(body: &[u8], shape: &Shape, k_max: usize) -> Result<SearchRequest, Failure> {
    let body = parse(body)?;
    let near = match (body.query, body.vector) {
        (Some(_), Some(_)) => return Err(Failure::bad("bad_request", "give \"query\" or \"vector\", not both")),
        (None, None) => return Err(Failure::bad("bad_request", "give a \"query\" (text) or a \"vector\"")),
        (Some(text), None) if text.trim().is_empty() => return Err(Failure::bad("bad_query", "\"query\" is empty")),
        (Some(text), None) if text.len() > QUERY_MAX_BYTES => {
            let reason = format!("\"query\" is {} bytes long; at most {QUERY_MAX_BYTES} are possible", text.len());
            return Err(Failure::bad("bad_query", reason));
        }
        (Some(text), None) => Near::Text(text),
        (None, Some(vector)) => Near::Vector(checked_vector(vector, shape.dimension)?),
    };
    let k = match body.k {
        // What is no whole number, or below 0, is out of range like any other k.
        Some(k) => checked_k(k.as_u64(), &k.to_string(), k_max)?,
        None => K_DEFAULT.min(k_max),
    };
    if body.filter.as_ref().is_some_and(|filter| filter.trim().is_empty()) {
        return Err(Failure::bad("bad_filter", "\"filter\" is empty; leave it out to search all rows"));
    }
    if let Some(columns) = &body.columns {
        check_columns(columns, shape)?;
    }
    Ok(SearchRequest { near, k, filter: body.filter, columns: body.columns })
}

/// Two steps: text that is no JSON is another mistake than JSON that is no search.
fn parse(body: &[u8]) -> Result<Body, Failure> {
    let is_json = |error: &serde_json::Error| error.classify() == serde_json::error::Category::Data;
    let bad_json = |error| Failure::bad("bad_json", format!("the body is not JSON: {error}"));
    match body.iter().find(|b| !b.is_ascii_whitespace()) {
        None => Err(Failure::bad("bad_json", "the body is empty; a JSON object is expected")),
        Some(b'{') => serde_json::from_slice::<Body>(body).map_err(|error| match is_json(&error) {
            true => Failure::bad("bad_request", error.to_string()),
            false => bad_json(error),
        }),
        // serde also takes an array for a struct, field by field.
        Some(_) => match serde_json::from_slice::<IgnoredAny>(body) {
            Ok(_) => Err(Failure::bad("bad_request", "the body is not a JSON object")),
            Err(error) => Err(bad_json(error)),
        },
    }
}

fn checked_vector(vector: Vec<f64>, dimension: usize) -> Result<Vec<f32>, Failure> {
    if vector.len() != dimension {
        let message = format!("\"vector\" has {} numbers, but the index has vectors of {dimension}", vector.len());
        return Err(Failure::bad("bad_vector", message));
    }
    let vector: Vec<f32> = vector.into_iter().map(|x| x as f32).collect();
    if vector.iter().any(|x| !x.is_finite()) {
        return Err(Failure::bad("bad_vector", "\"vector\" has a number that a 32-bit float cannot hold"));
    }
    let length: f32 = vector.iter().map(|x| x * x).sum();
    if !length.is_normal() {
        // Neither the cosine to nothing nor the one whose square overflows means anything.
        return Err(Failure::bad("bad_vector", "\"vector\" is too short or too long to have a direction"));
    }
    Ok(vector)
}

fn checked_k(k: Option<u64>, found: &str, k_max: usize) -> Result<usize, Failure> {
    k.and_then(|k| usize::try_from(k).ok())
        .filter(|k| (1..=k_max).contains(k))
        .ok_or_else(|| Failure::bad("bad_k", format!("\"k\" is {found}, but must be a whole number from 1 to {k_max}")))
}

fn check_columns(columns: &[String], shape: &Shape) -> Result<(), Failure> {
    for (n, column) in columns.iter().enumerate() {
        if !shape.columns.contains(column) {
            let known = shape.columns.join(", ");
            return Err(Failure::bad("unknown_column", format!("the view has no column {column:?}; it has {known}")));
        }
        if columns[..n].contains(column) {
            return Err(Failure::bad("bad_request", format!("\"columns\" names {column:?} twice")));
        }
    }
    Ok(())
}

/// The key in a path.
pub(super) fn key(encoded: &str) -> Result<String, Failure> {
    decode(encoded)
        .map(Cow::into_owned)
        .ok_or_else(|| Failure::bad("bad_key", "the key in the path is not percent-encoded UTF-8"))
}

/// The only parameter that a query string may have.
pub(super) fn k_parameter(query: &str, k_max: usize) -> Result<usize, Failure> {
    let mut k = None;
    for (name, value) in parameters(query) {
        if name != "k" {
            return Err(Failure::bad("bad_request", format!("there is no parameter {name:?}; there is \"k\"")));
        }
        if k.replace(value).is_some() {
            return Err(Failure::bad("bad_request", "the parameter \"k\" is given twice"));
        }
    }
    match k {
        Some(found) => {
            // Digits only: Rust's numbers may also begin with a plus sign.
            let number = found.bytes().all(|b| b.is_ascii_digit()).then(|| found.parse().ok()).flatten();
            checked_k(number, &format!("{found:?}"), k_max)
        }
        None => Ok(K_DEFAULT.min(k_max)),
    }
}

pub(super) fn no_parameters(query: &str) -> Result<(), Failure> {
    match parameters(query).next() {
        Some((name, _)) => Err(Failure::bad("bad_request", format!("there is no parameter {name:?} here"))),
        None => Ok(()),
    }
}

fn parameters(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

/// Undoes percent-encoding; `None` when it is malformed or no UTF-8 comes out.
fn decode(encoded: &str) -> Option<Cow<'_, str>> {
    if !encoded.contains('%') {
        return Some(encoded.into());
    }
    let mut bytes = Vec::with_capacity(encoded.len());
    let mut rest = encoded.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |n: usize| (*rest.get(n)? as char).to_digit(16);
        bytes.push((digit(0)? * 16 + digit(1)?) as u8);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> Shape {
        Shape { dimension: 3, columns: vec!["id".into(), "name".into()] }
    }

    fn code(body: &str) -> &'static str {
        search(body.as_bytes(), &shape(), 50).map_or_else(|failure| failure.code, |_| "ok")
    }

    #[test]
    fn an_operator_is_on_the_same_machine_and_no_page() {
        let is = |from: Option<&str>, headers: &HeaderMap| {
            is_of_operator(headers, from.map(|ip| (ip.parse::<std::net::IpAddr>().unwrap(), 9).into()))
        };
        let mut headers = HeaderMap::new();
        for (from, expected) in
            [("127.0.0.1", true), ("::1", true), ("::ffff:127.0.0.1", true), ("10.0.0.1", false), ("fe80::1", false)]
        {
            assert_eq!(is(Some(from), &headers), expected, "{from}");
        }
        assert!(!is(None, &headers));
        headers.insert(ORIGIN, "http://localhost:8080".parse().unwrap());
        assert!(!is(Some("127.0.0.1"), &headers));
    }

    #[test]
    fn every_mistake_has_its_code() {
        for (body, expect) in [
            (r#"{"query": "lamp"}"#, "ok"),
            (r#" {"query": "lamp", "k": 50, "filter": "id > 3", "columns": ["name"]}"#, "ok"),
            (r#"{"query": "lamp", "vector": null, "k": null}"#, "ok"),
            (r#"{"vector": [1, 0.5, -2e-3], "columns": []}"#, "ok"),
            ("", "bad_json"),
            ("  ", "bad_json"),
            ("{", "bad_json"),
            (r#"{"query": "lamp"} x"#, "bad_json"),
            ("\"lamp\"", "bad_request"),
            (r#"["lamp", null, null, null, null]"#, "bad_request"),
            ("{}", "bad_request"),
            (r#"{"query": "lamp", "vector": [1, 2, 3]}"#, "bad_request"),
            (r#"{"query": "lamp", "limit": 3}"#, "bad_request"),
            (r#"{"query": "lamp", "query": "desk"}"#, "bad_request"),
            (r#"{"query": 7}"#, "bad_request"),
            (r#"{"query": " "}"#, "bad_query"),
            (r#"{"vector": [1, 2]}"#, "bad_vector"),
            (r#"{"vector": [0, 0, 0]}"#, "bad_vector"),
            (r#"{"vector": [1e39, 0, 0]}"#, "bad_vector"),
            (r#"{"vector": [3e38, 3e38, 0]}"#, "bad_vector"),
            (r#"{"query": "lamp", "k": 0}"#, "bad_k"),
            (r#"{"query": "lamp", "k": 51}"#, "bad_k"),
            (r#"{"query": "lamp", "k": -1}"#, "bad_k"),
            (r#"{"query": "lamp", "k": 2.5}"#, "bad_k"),
            (r#"{"query": "lamp", "k": 18446744073709551616}"#, "bad_k"),
            (r#"{"query": "lamp", "k": "5"}"#, "bad_request"),
            (r#"{"query": "lamp", "filter": ""}"#, "bad_filter"),
            (r#"{"query": "lamp", "columns": ["price"]}"#, "unknown_column"),
            (r#"{"query": "lamp", "columns": ["id", "id"]}"#, "bad_request"),
        ] {
            assert_eq!(code(body), expect, "{body}");
        }
    }

    #[test]
    fn a_query_has_a_longest_text() {
        let of = |bytes: usize| code(&format!(r#"{{"query": "{}"}}"#, "x".repeat(bytes)));
        assert_eq!((of(QUERY_MAX_BYTES), of(QUERY_MAX_BYTES + 1)), ("ok", "bad_query"));
    }

    #[test]
    fn bytes_that_are_no_text_are_no_json() {
        assert_eq!(search(b"{\"query\": \"\xff\"}", &shape(), 50).unwrap_err().code, "bad_json");
    }

    #[test]
    fn k_has_a_default_that_its_bound_holds_for() {
        let k = |k_max| search(br#"{"query": "lamp"}"#, &shape(), k_max).unwrap().k;
        assert_eq!((k(50), k(4)), (10, 4));
    }

    #[test]
    fn routes_and_keys() {
        for (path, route, rest) in [
            ("/", Route::Page, ""),
            ("/v1/search", Route::Search, ""),
            ("/v1/items/a%2Fb", Route::Item, "a%2Fb"),
            ("/v1/similar/7", Route::Similar, "7"),
            ("/v1/items/", Route::Item, ""),
            ("/v1/items/a/b", Route::Unknown, ""),
            ("/v1/search/", Route::Unknown, ""),
            ("/v2/search", Route::Unknown, ""),
            ("", Route::Unknown, ""),
        ] {
            assert_eq!(Route::of(path), (route, rest), "{path}");
        }
        for (encoded, expect) in [
            ("a%2Fb", Some("a/b")),
            ("caf%C3%A9", Some("café")),
            ("a+b", Some("a+b")),
            ("%", None),
            ("%2", None),
            ("%zz", None),
            ("%FF", None),
        ] {
            assert_eq!(key(encoded).ok().as_deref(), expect, "{encoded}");
        }
    }

    #[test]
    fn the_parameter_k() {
        for (query, expect) in
            [("", Ok(10)), ("k=3", Ok(3)), ("k=50&", Ok(50)), ("k=51", Err("bad_k")), ("k=", Err("bad_k"))]
        {
            assert_eq!(k_parameter(query, 50).map_err(|f| f.code), expect, "{query}");
        }
        for (query, expect) in
            [("k=+3", "bad_k"), ("k=1.0", "bad_k"), ("k=1&k=2", "bad_request"), ("n=1", "bad_request")]
        {
            assert_eq!(k_parameter(query, 50).unwrap_err().code, expect, "{query}");
        }
        assert!(no_parameters("").is_ok() && no_parameters("x").is_err());
    }
}
