//! Random scalar expressions and predicates over the columns in scope.
//!
//! The invariant: an expression never fails (no division by what may be zero, no cast that may not fit, no overflow of a decimal), and its
//! value depends on the row alone.

use rand::Rng;
use rand::seq::IndexedRandom;

use super::query::{Col, Generator};
use super::random::{DECIMAL, skewed, value};
use super::sql::{Kind, Sql, sql};
use super::table::{Type, literal};

impl Generator<'_> {
    pub(super) fn literal(&mut self, ty: Type) -> String {
        literal(&value(&mut self.rng, ty), ty)
    }

    /// A column of the type, when there is one.
    pub(super) fn column(&mut self, ty: Type, scope: &[Col]) -> Option<String> {
        let fitting: Vec<&Col> = scope.iter().filter(|c| c.ty == ty).collect();
        fitting.choose(&mut self.rng).map(|c| c.name.clone())
    }

    fn leaf(&mut self, ty: Type, scope: &[Col]) -> Sql {
        if self.rng.random_ratio(1, 10) {
            return self.literal(ty).into();
        }
        match self.column(ty, scope) {
            Some(name) => name.into(),
            None => self.converted(ty, scope).unwrap_or_else(|| self.literal(ty)).into(),
        }
    }

    /// A column of another type as one of this type, where that cannot fail.
    fn converted(&mut self, ty: Type, scope: &[Col]) -> Option<String> {
        let any = scope.choose(&mut self.rng)?.name.clone();
        Some(match ty {
            Type::BigInt => match self.column(Type::Int, scope) {
                Some(int) => format!("cast({int} as bigint)"),
                None => format!("character_length(cast({any} as varchar))"),
            },
            Type::Int => format!("cast({any} is null as int)"),
            Type::Double | Type::Decimal(..) => {
                format!("cast({} as {})", self.column(Type::Int, scope)?, ty.sql())
            }
            // A double has more than one way to be written.
            Type::Text if scope.iter().any(|c| c.name == any && c.ty == Type::Double) => return None,
            Type::Text => format!("cast({any} as varchar)"),
            Type::Bool => format!("({any} is not null)"),
            Type::Date => format!("cast({} as date)", self.column(Type::Timestamp, scope)?),
            Type::Timestamp => format!("cast({} as {})", self.column(Type::Date, scope)?, ty.sql()),
        })
    }

    /// A type that some column in scope has.
    pub(super) fn type_in(&mut self, scope: &[Col]) -> Type {
        scope.choose(&mut self.rng).map_or(Type::BigInt, |c| c.ty)
    }

    pub(super) fn scalar(&mut self, ty: Type, depth: usize, scope: &[Col]) -> Sql {
        if depth == 0 || self.rng.random_ratio(2, 5) {
            return self.leaf(ty, scope).part(Kind::Scalar);
        }
        let constant = self.literal(ty);
        let depth = depth - 1;
        let of_any_type = match self.rng.random_range(0..10) {
            0 | 1 => {
                let mut arms = Vec::new();
                for _ in 0..self.rng.random_range(1..=2) {
                    arms.push(sql!(" when ", self.predicate(depth, scope), " then ", self.scalar(ty, depth, scope)));
                }
                let otherwise = sql!(" else ", self.scalar(ty, depth, scope)).optional();
                Some(sql!("case", Sql::List("", arms), otherwise, " end"))
            }
            2 => {
                let of = self.type_in(scope);
                let (subject, when) = (self.scalar(of, 0, scope), self.literal(of));
                let then = self.scalar(ty, depth, scope);
                let otherwise = sql!(" else ", self.scalar(ty, depth, scope)).optional();
                Some(sql!("case ", subject, " when ", when, " then ", then, otherwise, " end"))
            }
            3 => {
                let (first, second) = (self.scalar(ty, depth, scope), self.scalar(ty, depth, scope));
                Some(sql!("coalesce(", Sql::List(", ", vec![first, second]), ")"))
            }
            4 => {
                let of = self.scalar(ty, depth, scope);
                Some(sql!("nullif(", of, ", ", self.literal(ty), ")"))
            }
            _ => None,
        };
        let expr = match of_any_type {
            Some(expr) => expr,
            None => self.of_type(ty, depth, scope),
        };
        expr.part_or(Kind::Scalar, constant)
    }

    fn of_type(&mut self, ty: Type, depth: usize, scope: &[Col]) -> Sql {
        let choice = self.rng.random_range(0..6);
        match (ty, choice) {
            (Type::BigInt, 0) => {
                sql!("character_length(", self.scalar(Type::Text, depth, scope), ")")
            }
            (Type::BigInt, 1) => {
                let by = self.rng.random_range(2..5);
                let operator = *[" % ", " / "].choose(&mut self.rng).expect("not empty");
                sql!("(", self.scalar(ty, depth, scope), operator, by.to_string(), ")")
            }
            (Type::BigInt, 2) => {
                let part = *["day", "month", "year"].choose(&mut self.rng).expect("not empty");
                let of = *[Type::Date, Type::Timestamp].choose(&mut self.rng).expect("not empty");
                let of = self.scalar(of, depth, scope);
                sql!("cast(extract(", part, " from ", of, ") as bigint)")
            }
            (Type::BigInt, 3) => {
                let of = *[Type::Int, Type::Bool].choose(&mut self.rng).expect("not empty");
                sql!("cast(", self.scalar(of, depth, scope), " as bigint)")
            }
            (Type::Int, 0..=2) => sql!("cast(", self.scalar(Type::Bool, depth, scope), " as int)"),
            (Type::Int, _) => sql!("abs(", self.leaf(ty, scope), ")"),
            (Type::Double, 0) => sql!("cast(", self.scalar(Type::Int, depth, scope), " as double)"),
            (Type::Double, 1) => {
                let call = *["floor", "ceil", "abs"].choose(&mut self.rng).expect("not empty");
                sql!(call, "(", self.scalar(ty, depth, scope), ")")
            }
            // By a power of two: the result is as exact as what it is made of.
            (Type::Double, 2) => sql!("(", self.scalar(ty, depth, scope), " / 2.0)"),
            (Type::Decimal(..), 0 | 1) => {
                sql!("cast(", self.scalar(Type::Int, depth, scope), " as ", DECIMAL.sql(), ")")
            }
            (Type::Decimal(..), 2) => sql!("(", self.leaf(ty, scope), " * ", self.leaf(ty, scope), ")"),
            (Type::BigInt | Type::Double | Type::Decimal(..), 4) => {
                sql!("(", self.scalar(ty, depth, scope), " * ", (2 + skewed(&mut self.rng, 3)).to_string(), ")")
            }
            (Type::BigInt | Type::Double | Type::Decimal(..), _) => {
                let operator = *[" + ", " - "].choose(&mut self.rng).expect("not empty");
                sql!("(", self.scalar(ty, depth, scope), operator, self.scalar(ty, depth, scope), ")")
            }
            (Type::Text, 0) => {
                let call = *["upper", "lower", "trim", "reverse"].choose(&mut self.rng).expect("not empty");
                sql!(call, "(", self.scalar(ty, depth, scope), ")")
            }
            (Type::Text, 1) => sql!("substr(", self.scalar(ty, depth, scope), ", 1, 1)"),
            (Type::Text, 2) => {
                let of = self.type_in(scope);
                let of = if of == Type::Double { Type::BigInt } else { of };
                sql!("cast(", self.scalar(of, depth, scope), " as varchar)")
            }
            (Type::Text, 3) => {
                sql!("(", self.scalar(ty, depth, scope), " || ", self.scalar(ty, depth, scope), ")")
            }
            (Type::Text, _) => {
                let parts = vec![self.scalar(ty, depth, scope), "'-'".into(), self.scalar(ty, depth, scope)];
                sql!("concat(", Sql::List(", ", parts), ")")
            }
            (Type::Bool, _) => sql!("(", self.predicate(depth, scope), ")"),
            (Type::Date, 0..=2) => sql!("cast(", self.scalar(Type::Timestamp, depth, scope), " as date)"),
            (Type::Date, _) => self.leaf(ty, scope),
            (Type::Timestamp, 0..=2) => {
                let unit = *["day", "month", "hour"].choose(&mut self.rng).expect("not empty");
                sql!("date_trunc('", unit, "', ", self.scalar(ty, depth, scope), ")")
            }
            (Type::Timestamp, _) => {
                sql!("(", self.scalar(ty, depth, scope), " + interval '36 hours')")
            }
        }
    }

    pub(super) fn predicate(&mut self, depth: usize, scope: &[Col]) -> Sql {
        let choice = if depth == 0 { self.rng.random_range(3..10) } else { self.rng.random_range(0..10) };
        let below = depth.saturating_sub(1);
        let ty = self.type_in(scope);
        let expr = match choice {
            0 => {
                let (left, right) = (self.predicate(below, scope), self.predicate(below, scope));
                sql!("(", left, " and ", right, ")")
            }
            1 => {
                let (left, right) = (self.predicate(below, scope), self.predicate(below, scope));
                sql!("(", left, " or ", right, ")")
            }
            2 => sql!("not (", self.predicate(below, scope), ")"),
            3 => {
                let test = *[" is null", " is not null"].choose(&mut self.rng).expect("not empty");
                sql!(self.scalar(ty, below, scope), test)
            }
            4 => {
                let not = *["", "not "].choose(&mut self.rng).expect("not empty");
                let mut items: Vec<Sql> = (0..self.rng.random_range(1..=3)).map(|_| self.literal(ty).into()).collect();
                if self.rng.random_ratio(1, 10) {
                    items.push("null".into());
                }
                sql!(self.scalar(ty, below, scope), " ", not, "in (", Sql::List(", ", items), ")")
            }
            5 if ty == Type::Bool => {
                let test = *["true", "false", "unknown", "not true", "not false", "not unknown"]
                    .choose(&mut self.rng)
                    .expect("not empty");
                sql!("(", self.scalar(ty, below, scope), ") is ", test)
            }
            5 if ty == Type::Text => {
                let pattern = *["'a%'", "'%b'", "'_'", "'%'"].choose(&mut self.rng).expect("not empty");
                sql!(self.scalar(ty, below, scope), " like ", pattern)
            }
            5 => {
                let not = *["", "", " not"].choose(&mut self.rng).expect("not empty");
                let mut ends = [value(&mut self.rng, ty), value(&mut self.rng, ty)];
                if !self.rng.random_ratio(1, 6) {
                    ends.sort_by(|a, b| a.partial_cmp(b).expect("of one type"));
                }
                let [low, high] = ends.map(|end| literal(&end, ty));
                sql!(self.scalar(ty, below, scope), not, " between ", low, " and ", high)
            }
            6 => {
                let test = *[" is distinct from ", " is not distinct from "].choose(&mut self.rng).expect("not empty");
                // In parentheses: the parser takes all that follows for its right side.
                let (left, right) = self.two(ty, below, scope);
                sql!("(", left, test, right, ")")
            }
            _ => {
                let operator = *[" = ", " <> ", " < ", " <= ", " > ", " >= "].choose(&mut self.rng).expect("not empty");
                let (left, right) = self.two(ty, below, scope);
                sql!(left, operator, right)
            }
        };
        expr.part_or(Kind::Predicate, "true")
    }

    /// Two sides of a comparison; never the same expression, which would decide it.
    fn two(&mut self, ty: Type, depth: usize, scope: &[Col]) -> (Sql, Sql) {
        let (left, right) = (self.scalar(ty, depth, scope), self.scalar(ty, depth, scope));
        if self.rng.random_ratio(1, 3) || left.render() == right.render() {
            return (left, self.literal(ty).into());
        }
        (left, right)
    }
}
