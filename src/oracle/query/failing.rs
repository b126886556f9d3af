//! Expressions that fail for some rows: a division by zero, a cast that does not fit.
//!
//! The invariant: in batch a row that fails would fail the query, so the batch is given the same query without these rows. Only the outermost
//! query has such an expression: what reads rows that fail never gets them.

use rand::Rng;
use rand::seq::SliceRandom;

use super::{Generator, Out};
use crate::oracle::sql::{Sql, Twice, sql};
use crate::oracle::table::Type;

impl Generator<'_> {
    /// The query with an expression that may fail, as a column more or as a condition; `None` where no column is of a type for it.
    pub(super) fn failing(&mut self, query: &Sql, outs: &[Out]) -> Option<Sql> {
        let alias = self.name("r");
        let mut numbers: Vec<&Out> = outs.iter().filter(|o| matches!(o.ty, Type::BigInt | Type::Int)).collect();
        numbers.shuffle(&mut self.rng);
        let (by, ty) = (format!("{alias}.{}", numbers.first()?.name), numbers[0].ty.sql());
        // Not by itself: that is simplified to a constant which does not fail.
        let of = numbers.get(1).map_or("10".into(), |o| format!("{alias}.{}", o.name));
        let (text, defined, passes) = match self.rng.random_range(0..3) {
            0 => {
                let text = format!("(cast({by} as bigint) * 1000000000)");
                let fits = format!("try_cast({text} as int)");
                (format!("cast({text} as int)"), fits.clone(), format!("({by} is null or {fits} is not null)"))
            }
            n => {
                let operator = ["/", "%"][n - 1];
                let passes = format!("({by} is null or {of} is null or {by} <> 0)");
                let by_none = format!("cast(nullif({by}, 0) as {ty})");
                (format!("{of} {operator} {by}"), format!("{of} {operator} {by_none}"), passes)
            }
        };
        let twice = |maintained: String, batch: String| Twice { about: "rows that fail", maintained, batch };
        let shown: Vec<Sql> = outs
            .iter()
            .map(|o| Sql::While { bound: vec![o.name.clone()], text: format!("{alias}.{}", o.name) })
            .collect();
        let (expr, filter) = match self.chance(60) {
            true => {
                let name = self.name("o");
                let expr = twice(format!(", {text} as {name}"), format!(", {defined} as {name}"));
                (expr, twice(String::new(), format!(" where {passes}")))
            }
            false => {
                let over = |expr: String| format!(" where ({expr}) > 1");
                (twice(String::new(), String::new()), twice(over(text), over(defined)))
            }
        };
        let shown = Sql::List(", ", shown);
        Some(sql!("select ", shown, expr, " from (", query.clone(), ") as ", Sql::Bind(alias), filter))
    }
}
