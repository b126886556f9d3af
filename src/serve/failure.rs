//! A failure is what a client is told when it gets no answer: a status, a code for programs and a sentence for people.
//!
//! The invariant: every answer that is not a success has the body `{"error": {"code", "message"}}`. What went wrong inside is logged, never told.

use serde_json::json;
use warp::http::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use warp::http::{Response, StatusCode};
use warp::reply::Response as Reply;

use super::SearchError;

/// Seconds after which a client that was sent away may come back.
const RETRY_AFTER_S: &str = "1";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub status: StatusCode,
    pub code: &'static str,
    pub message: String,
    /// The methods that the path knows; only with 405.
    allow: Option<&'static str>,
}

impl Failure {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Failure {
        Failure { status, code, message: message.into(), allow: None }
    }

    /// The client's mistake.
    pub fn bad(code: &'static str, message: impl Into<String>) -> Failure {
        Failure::new(StatusCode::BAD_REQUEST, code, message)
    }

    pub fn method(allow: &'static str) -> Failure {
        let message = format!("this path answers only {allow}");
        Failure { allow: Some(allow), ..Failure::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message) }
    }

    pub fn internal() -> Failure {
        Failure::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "the request could not be answered; the log says why",
        )
    }

    pub fn into_reply(self) -> Reply {
        let body = json!({"error": {"code": self.code, "message": self.message}}).to_string();
        let mut reply = Response::new(body.into());
        *reply.status_mut() = self.status;
        let headers = reply.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_S));
        }
        if let Some(allow) = self.allow {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        reply
    }
}

impl From<SearchError> for Failure {
    fn from(error: SearchError) -> Failure {
        match error {
            SearchError::BadFilter(reason) => Failure::bad("bad_filter", reason),
            SearchError::UnknownColumn(column) => {
                Failure::bad("unknown_column", format!("the view has no column {column:?}"))
            }
            SearchError::BadKey(reason) => Failure::bad("bad_key", reason),
            SearchError::NoSuchKey(key) => {
                Failure::new(StatusCode::NOT_FOUND, "not_found", format!("the index has no row with the key {key:?}"))
            }
            SearchError::Unavailable(reason) => {
                tracing::warn!(reason, "a search could not be answered for now");
                Failure::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "unavailable",
                    "the index does not answer for now; try again",
                )
            }
            SearchError::Internal(reason) => {
                tracing::error!(reason, "a search failed");
                Failure::internal()
            }
        }
    }
}
