//! The first rows of an order, of all rows or of each group.
//!
//! The invariant: an order ends with every column in scope, unless all that is asked of the row that comes first is whether it exists.

use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};

use super::{Col, Generator, Out, item};
use crate::oracle::sql::{Sql, Twice, sql};

impl Generator<'_> {
    /// `order by` and `limit`, in a total order.
    pub(super) fn top(&mut self, depth: usize) -> (Sql, Vec<Out>) {
        let (from, scope) = self.from(depth);
        let (items, outs) = self.items(&scope, None);
        let mut order = Vec::new();
        for _ in 0..self.rng.random_range(0..=2) {
            order.push(sql!(self.varying(1, &scope).0, self.direction()));
        }
        order.extend(outs.iter().map(|o| Sql::While { bound: vec![o.name.clone()], text: o.name.clone() }));
        let limit = format!(" limit {}", self.rng.random_range(1..=6));
        let offset = if self.chance(20) { format!(" offset {}", self.rng.random_range(1..=3)) } else { String::new() };
        let order = Sql::Clause(" order by ", Box::new(Sql::List(", ", order)));
        (sql!("select ", Sql::List(", ", items), from, order, limit, offset), outs)
    }

    /// The first rows of each group by their number, now and then with what other window functions say of them.
    pub(super) fn top_of_groups(&mut self, depth: usize) -> (Sql, Vec<Out>) {
        let others = if self.chance(40) { self.rng.random_range(1..=2) } else { 0 };
        let (from, scope) = if others > 0 { self.distinct_from(depth) } else { self.from(depth) };
        let (mut items, mut outs) = self.items(&scope, None);
        let (number, alias) = (self.name("o"), self.name("r"));
        let place = self.place(&scope);
        items.push(item(sql!("row_number() ", place.over("")), &number));
        for _ in 0..others {
            let (ty, name) = (self.type_in(&scope), self.name("o"));
            items.push(item(self.window(ty, &scope, Some(&place)), &name));
            outs.push(Out { name, ty });
        }
        let shown: Vec<Sql> = outs
            .iter()
            .map(|o| Sql::While { bound: vec![o.name.clone()], text: format!("{alias}.{}", o.name) })
            .collect();
        let inner = sql!("select ", Sql::List(", ", items), from);
        let bound = format!(" where {alias}.{number}{}", self.up_to());
        let outer = sql!("select ", Sql::List(", ", shown), " from (", inner, ") as ", Sql::Bind(alias), bound);
        (outer, outs)
    }

    /// One row of each group, the first in a total order.
    pub(super) fn distinct_on(&mut self, depth: usize) -> (Sql, Vec<Out>) {
        let (from, scope) = self.from(depth);
        let (items, outs) = self.items(&scope, None);
        // Each column once: DataFusion's `first_value` panics over an order that says something twice.
        let mut columns: Vec<&Col> = scope.iter().collect();
        columns.shuffle(&mut self.rng);
        let groups = self.rng.random_range(1..=2).min(columns.len());
        let on: Vec<&str> = columns[..groups].iter().map(|c| c.name.as_str()).collect();
        let mut order: Vec<Sql> = on.iter().map(|column| format!("{column}{}", self.direction()).into()).collect();
        for column in &columns[groups..] {
            let text = format!("{}{}", column.name, self.direction());
            order.push(Sql::While { bound: column.bound.clone(), text });
        }
        let on = format!("distinct on ({}) ", on.join(", "));
        (sql!("select ", on, Sql::List(", ", items), from, " order by ", Sql::List(", ", order)), outs)
    }

    /// One row of each group of a table, the first or the last in an order with ties. Which of them it is, is not said, but it is one of them:
    /// the engine's row is looked for in the table, and what is left are the groups and what their rows are ordered by.
    pub(super) fn tied(&mut self) -> (Sql, Vec<Out>) {
        let table = self.tables.choose(&mut self.rng).expect("a case has a table").clone();
        let mut columns = table.columns;
        columns.shuffle(&mut self.rng);
        let names: Vec<&str> = columns.iter().map(|c| c.name.as_str()).collect();
        let (by, order) = (names[0], names[1]);
        let ways =
            [("", " desc"), (" desc", ""), (" nulls first", " desc nulls last"), (" desc nulls last", " nulls first")];
        let (way, back) = *ways.choose(&mut self.rng).expect("not empty");
        let from = &table.name;
        let found = |call: &str| -> String {
            let calls: Vec<String> =
                names[1..].iter().map(|name| format!("{call}({name} order by {order}{way}) as {name}")).collect();
            format!("select {by}, {} from {from} group by {by}", calls.join(", "))
        };
        let (found, first) = match self.rng.random_range(0..3) {
            0 => (found("first_value"), way),
            1 => (found("last_value"), back),
            _ => {
                (format!("select distinct on ({by}) {} from {from} order by {by}, {order}{way}", names.join(", ")), way)
            }
        };
        let same: Vec<String> = names.iter().map(|n| format!("(q.{n} is not distinct from r.{n})")).collect();
        let maintained = format!(
            "select q.{by}, q.{order} from ({found}) as q left semi join {from} as r on {}",
            same.join(" and ")
        );
        let rank = format!("rank() over (partition by {by} order by {order}{first})");
        let batch = format!("select distinct {by}, {order} from {from} qualify {rank} = 1");
        let alias = self.name("r");
        let outs: Vec<Out> = columns[..2].iter().map(|c| Out { name: self.name("o"), ty: c.ty }).collect();
        let items = [by, order].iter().zip(&outs).map(|(c, o)| item(format!("{alias}.{c}").into(), &o.name)).collect();
        let twice = Twice { about: "ties", maintained, batch };
        (sql!("select ", Sql::List(", ", items), " from (", twice, ") as ", Sql::Bind(alias)), outs)
    }
}
