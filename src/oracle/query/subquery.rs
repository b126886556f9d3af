//! Queries in expressions: `exists`, `in`, and aggregates of other relations as one value, correlated or not.
//!
//! The invariant: a subquery for one value is an aggregate without groups, so that it has one row.

use rand::Rng;

use super::{Col, Generator};
use crate::oracle::sql::{Kind, Sql, sql};
use crate::oracle::table::Type;

impl Generator<'_> {
    /// Where a subquery meets the rows around it.
    fn correlation(&mut self, outer: &[Col], inner: &[Col]) -> Option<Sql> {
        let (l, r) = self.meeting(inner, outer)?;
        let equality = sql!(l.name, " = ", r.name);
        Some(match self.chance(15) {
            true => {
                let both: Vec<Col> = inner.iter().chain(outer).cloned().collect();
                sql!(equality, sql!(" and ", self.predicate(0, &both)).optional())
            }
            false => equality,
        })
    }

    pub(super) fn subquery_predicate(&mut self, outer: &[Col]) -> Sql {
        let (relation, inner) = self.relation(0);
        let own = match self.chance(35) {
            true => Some(self.predicate(1, &inner)),
            false => None,
        };
        let filter = |conditions: Vec<Option<Sql>>| {
            Sql::Clause(" where ", Box::new(Sql::List(" and ", conditions.into_iter().flatten().collect())))
        };
        let not = self.pick(&["", "not "]);
        let expr = match self.rng.random_range(0..10) {
            0..4 => {
                let filter = filter(vec![self.correlation(outer, &inner), own]);
                let exists = sql!(not, "exists (select 1 from ", relation, filter, ")");
                match self.chance(25) {
                    true => sql!("(", exists, " or ", self.predicate(0, outer), ")"),
                    false => exists,
                }
            }
            4..8 => {
                let ty = self.type_in(if not.is_empty() { &inner } else { outer });
                // DataFusion decorrelates `in`, and no `not in`.
                let correlated = not.is_empty() && self.chance(25);
                let correlation = if correlated { self.correlation(outer, &inner) } else { None };
                let filter = filter(vec![correlation, own]);
                // A constant that is `not in` something is a filter to DataFusion, which forgets about nulls.
                let of = match self.column(ty, outer) {
                    Some(column) if !not.is_empty() => column.into(),
                    _ => self.scalar(ty, 1, outer),
                };
                let shown = self.scalar(ty, 0, &inner);
                sql!(of, " ", not, "in (select ", shown, " from ", relation, filter, ")")
            }
            _ => {
                let ty = self.type_in(outer);
                let operator = self.pick(&[" = ", " < ", " >= "]);
                sql!(self.scalar(ty, 1, outer), operator, self.scalar_subquery(ty, outer))
            }
        };
        expr.part_or(Kind::Predicate, "true")
    }

    /// An aggregate of another relation, as one value.
    pub(super) fn scalar_subquery(&mut self, ty: Type, outer: &[Col]) -> Sql {
        let (relation, inner) = self.relation(0);
        let correlation = if self.chance(60) { self.correlation(outer, &inner) } else { None };
        let own = match self.chance(25) {
            true => Some(self.predicate(1, &inner)),
            false => None,
        };
        let conditions = Sql::List(" and ", correlation.into_iter().chain(own).collect());
        let of = self.aggregate(ty, &inner);
        let filter = Sql::Clause(" where ", Box::new(conditions));
        let constant = self.literal(ty);
        sql!("(select ", of, " from ", relation, filter, ")").part_or(Kind::Scalar, constant)
    }
}
