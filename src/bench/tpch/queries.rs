//! The twenty-two queries, a file each, written as models after the specification with its default parameters.
//!
//! The invariant: a query's answer is one multiset. An order without a limit means nothing for a view and is left out; where a limit stands,
//! the order is total.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::tables::SCHEMA;
use crate::config::{Line, Materialized, Model};

/// A query as a model.
pub(super) struct Query {
    pub name: &'static str,
    sql: &'static str,
}

pub(super) const QUERIES: [Query; 22] = [
    Query { name: "q01", sql: include_str!("queries/q01.sql") },
    Query { name: "q02", sql: include_str!("queries/q02.sql") },
    Query { name: "q03", sql: include_str!("queries/q03.sql") },
    Query { name: "q04", sql: include_str!("queries/q04.sql") },
    Query { name: "q05", sql: include_str!("queries/q05.sql") },
    Query { name: "q06", sql: include_str!("queries/q06.sql") },
    Query { name: "q07", sql: include_str!("queries/q07.sql") },
    Query { name: "q08", sql: include_str!("queries/q08.sql") },
    Query { name: "q09", sql: include_str!("queries/q09.sql") },
    Query { name: "q10", sql: include_str!("queries/q10.sql") },
    Query { name: "q11", sql: include_str!("queries/q11.sql") },
    Query { name: "q12", sql: include_str!("queries/q12.sql") },
    Query { name: "q13", sql: include_str!("queries/q13.sql") },
    Query { name: "q14", sql: include_str!("queries/q14.sql") },
    Query { name: "q15", sql: include_str!("queries/q15.sql") },
    Query { name: "q16", sql: include_str!("queries/q16.sql") },
    Query { name: "q17", sql: include_str!("queries/q17.sql") },
    Query { name: "q18", sql: include_str!("queries/q18.sql") },
    Query { name: "q19", sql: include_str!("queries/q19.sql") },
    Query { name: "q20", sql: include_str!("queries/q20.sql") },
    Query { name: "q21", sql: include_str!("queries/q21.sql") },
    Query { name: "q22", sql: include_str!("queries/q22.sql") },
];

impl Query {
    /// The model at a scale factor: q11's share depends on it.
    pub fn model(&self, scale: f64) -> Model {
        let sql = self
            .sql
            .replace("{{ var('fraction') }}", &format!("{}", 0.0001 / scale))
            .replace(&format!("{{{{ source('{SCHEMA}', '"), &format!("{SCHEMA}__"))
            .replace("') }}", "");
        let path: Arc<Path> = PathBuf::from(format!("queries/{}.sql", self.name)).into();
        let lines = (1..=sql.lines().count()).map(|n| Line { path: path.clone(), number: n as u32 }).collect();
        Model { name: self.name.into(), path: path.to_path_buf(), sql, lines, materialized: Materialized::View }
    }
}
