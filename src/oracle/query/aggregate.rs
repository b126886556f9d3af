//! Groups and aggregates over them.
//!
//! The invariant: what depends on the order in which rows are added up, or in which a list is, is shown by the outermost query only.

use rand::Rng;

use super::{Col, Generator, Out, item};
use crate::oracle::sql::{Sql, sql};
use crate::oracle::table::Type;

impl Generator<'_> {
    pub(super) fn aggregate_select(&mut self, depth: usize, outermost: bool, want: Option<&[Type]>) -> (Sql, Vec<Out>) {
        let (from, scope) = self.from(depth);
        let types: Vec<Option<Type>> = match want {
            Some(types) => types.iter().copied().map(Some).collect(),
            None => vec![None; self.rng.random_range(1..=4)],
        };
        let keyed = self.chance(80);
        let (mut items, mut keys, mut outs) = (vec![], vec![], vec![]);
        for ty in types {
            let name = self.name("o");
            let depth = usize::from(self.chance(30));
            if keyed && (ty.is_none_or(|ty| scope.iter().any(|c| c.ty == ty))) && self.chance(45) {
                let (expr, ty) = match ty {
                    Some(ty) => (self.column(ty, &scope).expect("it was looked for").into(), ty),
                    None => self.varying(depth, &scope),
                };
                items.push(item(expr, &name));
                keys.push(Sql::While { bound: vec![name.clone()], text: name.clone() });
                outs.push(Out { name, ty });
            } else if want.is_none() && outermost && self.chance(30) {
                // Shown only: nothing may depend on its last digits, or on a list.
                items.push(item(self.inexact_aggregate(&scope), &name));
            } else {
                let ty = ty.unwrap_or_else(|| self.aggregate_type(&scope));
                let mut expr = self.aggregate(ty, &scope);
                if self.chance(15) {
                    let of = Col { name: expr.render_part(), ty, bound: vec![] };
                    expr = self.scalar(ty, 1, &[of]);
                }
                items.push(item(expr, &name));
                outs.push(Out { name, ty });
            }
        }
        if keyed && self.chance(15) {
            keys.push(self.varying(0, &scope).0);
        }
        let keys = Sql::Clause(" group by ", Box::new(Sql::List(", ", keys)));
        let having = match self.chance(20) {
            true => {
                let ty = self.aggregate_type(&scope);
                let of = Col { name: self.aggregate(ty, &scope).render_part(), ty, bound: vec![] };
                sql!(" having ", self.predicate(1, &[of])).optional()
            }
            false => "".into(),
        };
        (sql!("select ", Sql::List(", ", items), from, keys, having), outs)
    }

    /// A type that an aggregate over the scope can have.
    fn aggregate_type(&mut self, scope: &[Col]) -> Type {
        if self.chance(50) { Type::BigInt } else { self.type_in(scope) }
    }

    pub(super) fn aggregate(&mut self, ty: Type, scope: &[Col]) -> Sql {
        let of = self.type_in(scope);
        let call = match (ty, self.rng.random_range(0..6)) {
            (Type::BigInt, 0) => sql!("count(*)"),
            (Type::BigInt, 1) => sql!("count(", self.scalar(of, 1, scope), ")"),
            (Type::BigInt, 2) => sql!("count(distinct ", self.scalar(of, 1, scope), ")"),
            (Type::BigInt, 3) => sql!("sum(", self.scalar(Type::Int, 1, scope), ")"),
            (Type::BigInt | Type::Double, 4 | 5) => sql!("sum(", self.scalar(ty, 1, scope), ")"),
            (Type::Decimal(..), 3) => sql!("avg(", self.scalar(ty, 1, scope), ")"),
            (Type::Decimal(..), 4 | 5) => sql!("sum(", self.scalar(ty, 1, scope), ")"),
            (Type::Bool, 0..4) => {
                let call = self.pick(&["bool_and", "bool_or"]);
                sql!(call, "(", self.predicate(1, scope), ")")
            }
            (Type::Text, 0..4) => match self.column(Type::Text, scope) {
                // One column both as the argument and as the last key of the order.
                Some(text) => {
                    let by = self.type_in(scope);
                    let by = sql!(self.scalar(by, 0, scope), self.direction());
                    let order = Sql::List(", ", vec![by, Sql::While { bound: vec![], text: text.clone() }]);
                    sql!("string_agg(", text, ", ',' order by ", order, ")")
                }
                None => sql!("max(", self.scalar(ty, 1, scope), ")"),
            },
            _ => {
                let call = self.pick(&["min", "max"]);
                sql!(call, "(", self.scalar(ty, 1, scope), ")")
            }
        };
        self.filtered(call, scope)
    }

    fn filtered(&mut self, call: Sql, scope: &[Col]) -> Sql {
        match self.chance(15) {
            true => sql!(call, sql!(" filter (where ", self.predicate(1, scope), ")").optional()),
            false => call,
        }
    }

    fn inexact_aggregate(&mut self, scope: &[Col]) -> Sql {
        let call = match self.rng.random_range(0..4) {
            0 => sql!("avg(", self.scalar(Type::Double, 1, scope), ")"),
            1 => sql!("avg(", self.scalar(Type::Int, 1, scope), ")"),
            // Of one sign: a sum near zero would be made of last digits.
            2 => sql!("sum(abs(", self.scalar(Type::Double, 1, scope), ") / 3.0)"),
            _ => {
                let ty = self.type_in(scope);
                let column = self.column(ty, scope).unwrap_or_else(|| "1".into());
                let distinct = if self.chance(20) { "distinct " } else { "" };
                let (by, direction) = (self.type_in(scope), self.direction());
                let by = match (distinct, self.column(by, scope)) {
                    ("", Some(by)) => format!("{by}{direction}, "),
                    _ => String::new(),
                };
                sql!("array_agg(", distinct, column.clone(), " order by ", by, column, direction, ")")
            }
        };
        self.filtered(call, scope)
    }
}
