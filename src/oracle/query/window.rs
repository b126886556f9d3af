//! Window functions.
//!
//! The invariant: a function whose answer depends on the order of the rows has a total order, or says the same of equal rows.

use rand::Rng;

use super::{Col, Generator, Out, item, tie};
use crate::oracle::sql::{Sql, sql};
use crate::oracle::table::Type;

/// Where a function stands: a partition, and a total order in it.
#[derive(Clone)]
pub(super) struct Place {
    partition: Sql,
    order: Sql,
}

impl Place {
    pub fn over(&self, frame: &'static str) -> Sql {
        sql!("over (", self.partition.clone(), self.order.clone(), frame, ")")
    }
}

/// Frames over rows in a total order.
const FRAMES: &[&str] = &[
    "",
    " rows between unbounded preceding and unbounded following",
    " rows between unbounded preceding and current row",
    " rows between current row and unbounded following",
    " rows between 1 preceding and 1 following",
    " rows between 2 preceding and current row",
    " rows between 1 following and 2 following",
    " rows between 3 preceding and 2 preceding",
];

impl Generator<'_> {
    pub(super) fn window_select(&mut self, depth: usize, outermost: bool, want: Option<&[Type]>) -> (Sql, Vec<Out>) {
        let several = want.is_none() && self.chance(50);
        let (from, scope) = if several { self.distinct_from(depth) } else { self.from(depth) };
        let (mut items, mut outs) = self.items(&scope, want);
        let place = self.place(&scope);
        match want {
            // Where types are wanted, one of the columns is the window's.
            Some(_) => {
                let at = self.rng.random_range(0..outs.len());
                items[at] = item(self.window(outs[at].ty, &scope, None), &outs[at].name);
            }
            // By itself: beside certain others DataFusion evaluates it over the whole partition, which it cannot do.
            None if !several && self.chance(30) => {
                let (ty, name) = (self.type_in(&scope), self.name("o"));
                items.push(item(self.filled(ty, &scope), &name));
                outs.push(Out { name, ty });
            }
            None => {
                for _ in 0..if several { self.rng.random_range(1..=2) } else { 1 } {
                    let name = self.name("o");
                    if outermost && self.chance(10) {
                        let of = self.scalar(Type::Double, 1, &scope);
                        items.push(item(sql!("avg(", of, ") ", self.framed(&place, &scope)), &name));
                        continue;
                    }
                    let ty = if self.chance(50) { Type::BigInt } else { self.type_in(&scope) };
                    items.push(item(self.window(ty, &scope, Some(&place)), &name));
                    outs.push(Out { name, ty });
                }
            }
        }
        let qualify = if several { self.qualify(&place, &scope) } else { "".into() };
        (sql!("select ", Sql::List(", ", items), from, qualify), outs)
    }

    fn qualify(&mut self, place: &Place, scope: &[Col]) -> Sql {
        match self.rng.random_range(0..10) {
            0..3 => sql!(" qualify row_number() ", place.over(""), self.up_to()).optional(),
            3..7 => {
                let of = self.window(Type::BigInt, scope, Some(place)).render_part();
                let of = Col { name: of, ty: Type::BigInt, bound: vec![] };
                let predicate = self.predicate(0, std::slice::from_ref(&of));
                // DataFusion wants a window in it.
                match predicate.render().contains(&of.name) {
                    true => sql!(" qualify ", predicate).optional(),
                    false => "".into(),
                }
            }
            _ => "".into(),
        }
    }

    /// A bound on a row number.
    pub(super) fn up_to(&mut self) -> String {
        let k = self.rng.random_range(1..=3);
        match self.rng.random_range(0..4) {
            0 => format!(" < {}", k + 1),
            1 => format!(" = {k}"),
            _ => format!(" <= {k}"),
        }
    }

    /// A window function, now and then at the place of another.
    pub(super) fn window(&mut self, ty: Type, scope: &[Col], beside: Option<&Place>) -> Sql {
        let place = match beside {
            Some(place) if self.chance(60) => place.clone(),
            _ => self.place(scope),
        };
        match (ty, self.rng.random_range(0..12)) {
            (Type::BigInt, 0 | 1) => sql!("cast(row_number() ", place.over(""), " as bigint)"),
            (Type::BigInt, 2 | 3) => {
                // Ties are what a rank is about.
                let call = self.pick(&["rank", "dense_rank"]);
                let (of, direction) = (self.type_in(scope), self.direction());
                let order = sql!(" order by ", self.scalar(of, 1, scope), direction);
                sql!("cast(", call, "() over (", self.partition(scope), order, ") as bigint)")
            }
            (Type::BigInt, 4) => sql!("count(*) ", self.framed(&place, scope)),
            (Type::BigInt, 5) => {
                let of = self.type_in(scope);
                sql!("count(", self.scalar(of, 1, scope), ") ", self.framed(&place, scope))
            }
            (Type::BigInt | Type::Double | Type::Decimal(..), 6 | 7) => {
                sql!("sum(", self.scalar(ty, 1, scope), ") ", self.framed(&place, scope))
            }
            (_, 0..=4) => {
                let call = self.pick(&["lag", "lead"]);
                let more = match self.rng.random_range(0..4) {
                    0 | 1 => String::new(),
                    2 => format!(", {}", self.rng.random_range(1..=2)),
                    _ => format!(", 1, {}", self.literal(ty)),
                };
                sql!(call, "(", self.scalar(ty, 0, scope), more, ") ", place.over(""))
            }
            (_, 5 | 6) => {
                let call = self.pick(&["min", "max"]);
                sql!(call, "(", self.scalar(ty, 1, scope), ") ", self.framed(&place, scope))
            }
            _ => {
                let (call, more) = match self.rng.random_range(0..5) {
                    0 | 1 => ("first_value", ""),
                    2 | 3 => ("last_value", ""),
                    _ => ("nth_value", ", 2"),
                };
                let nulls = self.pick(&["", "", "", " ignore nulls"]);
                let frame = self.pick(FRAMES);
                sql!(call, "(", self.scalar(ty, 1, scope), more, ")", nulls, " ", place.over(frame))
            }
        }
    }

    /// The nearest value before a row or after it.
    fn filled(&mut self, ty: Type, scope: &[Col]) -> Sql {
        let call = match self.rng.random_range(0..3) {
            0 => sql!("lead(", self.scalar(ty, 0, scope), ")"),
            1 => sql!("lag(", self.scalar(ty, 0, scope), ")"),
            _ => {
                // By more rows than one DataFusion 54 loses count, in batch.
                let otherwise = self.literal(ty);
                sql!("lag(", self.scalar(ty, 0, scope), ", 1, ", otherwise, ")")
            }
        };
        sql!(call, " ignore nulls ", self.place(scope).over(""))
    }

    pub(super) fn place(&mut self, scope: &[Col]) -> Place {
        Place { partition: self.partition(scope), order: self.total_order(scope) }
    }

    fn partition(&mut self, scope: &[Col]) -> Sql {
        let mut by = Vec::new();
        while by.len() < 2 && self.chance(65) {
            let (ty, depth) = (self.type_in(scope), usize::from(self.chance(20)));
            by.push(self.scalar(ty, depth, scope));
        }
        if by.is_empty() { "".into() } else { sql!("partition by ", Sql::List(", ", by)).optional() }
    }

    /// `over (...)` for a function that looks at a set of rows: without an order all of the partition; with one that has ties, all of them at
    /// once; or some rows around each one of a total order.
    fn framed(&mut self, place: &Place, scope: &[Col]) -> Sql {
        let partition = place.partition.clone();
        match self.rng.random_range(0..10) {
            0..3 => sql!("over (", partition, ")"),
            3 => sql!("over (", partition, " rows between unbounded preceding and unbounded following)"),
            4 => {
                let (of, direction) = (self.type_in(scope), self.direction());
                let frame = self.pick(&["", " groups between 1 preceding and 1 following"]);
                let order = sql!(" order by ", self.scalar(of, 0, scope), direction, frame);
                sql!("over (", partition, order, ")")
            }
            5 => match self.column(Type::BigInt, scope).or_else(|| self.column(Type::Int, scope)) {
                Some(column) => {
                    let direction = self.direction();
                    let frame = " range between 1 preceding and 2 following)";
                    sql!("over (", partition, " order by ", column, direction, frame)
                }
                None => sql!("over (", partition, ")"),
            },
            _ => place.over(self.pick(FRAMES)),
        }
    }

    fn total_order(&mut self, scope: &[Col]) -> Sql {
        let mut order = Vec::new();
        while order.len() < 2 && self.chance(60) {
            let (ty, depth) = (self.type_in(scope), usize::from(self.chance(20)));
            order.push(sql!(self.scalar(ty, depth, scope), self.direction()));
        }
        order.extend(scope.iter().map(tie));
        Sql::Clause(" order by ", Box::new(Sql::List(", ", order)))
    }
}
