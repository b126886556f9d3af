//! An answer: rows of the index, and the state of the index that they were read in.
//!
//! The invariant: a value stands in an answer as the index has it, digit by digit. Rows are JSON as text from where they are read on; whoever
//! parsed them on the way would round a decimal to a double.

use std::sync::Arc;

use serde_json::to_string;

use crate::time::{Epoch, Position};

/// One JSON value as text.
pub type Json = Box<str>;

/// A row that was found.
#[derive(Clone, Debug)]
pub struct Hit {
    pub key: Json,
    /// Cosine of the angle between the two vectors.
    pub score: f32,
    pub row: Json,
}

/// Rows that were found, best first, all in one state of the index.
#[derive(Clone, Debug)]
pub struct Hits {
    pub hits: Vec<Hit>,
    pub epoch: Epoch,
    pub position: Arc<Position>,
}

/// One row and the state of the index that it was read in.
#[derive(Clone, Debug)]
pub struct Item {
    pub key: Json,
    pub row: Json,
    pub epoch: Epoch,
    pub position: Arc<Position>,
}

impl Hits {
    /// `{"hits": [{"key", "score", "row"}], "epoch", "position", "took_ms"}`
    pub(super) fn json(&self, took_ms: f64) -> serde_json::Result<String> {
        let mut text = String::from(r#"{"hits":["#);
        for (n, Hit { key, score, row }) in self.hits.iter().enumerate() {
            let comma = if n > 0 { "," } else { "" };
            text += &format!(r#"{comma}{{"key":{key},"score":{},"row":{row}}}"#, to_string(score)?);
        }
        text += &format!(r#"],{},"took_ms":{}}}"#, state(self.epoch, &self.position)?, to_string(&took_ms)?);
        Ok(text)
    }
}

impl Item {
    /// `{"key", "row", "epoch", "position"}`
    pub(super) fn json(&self) -> serde_json::Result<String> {
        let Item { key, row, epoch, position } = self;
        Ok(format!(r#"{{"key":{key},"row":{row},{}}}"#, state(*epoch, position)?))
    }
}

fn state(epoch: Epoch, position: &Position) -> serde_json::Result<String> {
    Ok(format!(r#""epoch":{},"position":{}"#, to_string(&epoch)?, to_string(position)?))
}
