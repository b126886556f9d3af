//! What a query reads: tables, subqueries, common table expressions and values, joined and filtered.
//!
//! The invariant: a column in scope has one name, which says the relation that it is of.

use rand::Rng;
use rand::seq::IndexedRandom;

use super::{Col, Generator, Out, RELATIONS, item};
use crate::oracle::sql::{Kind, Sql, sql};
use crate::oracle::table::Type;

impl Generator<'_> {
    pub(super) fn room(&self) -> bool {
        self.relations < RELATIONS
    }

    /// `from ... where ...`
    pub(super) fn from(&mut self, depth: usize) -> (Sql, Vec<Col>) {
        let (relation, scope) = self.relation(depth);
        let mut conditions = Vec::new();
        while conditions.len() < 2 && self.chance(24) {
            let nested = depth > 0 && self.room() && self.chance(45);
            conditions.push(if nested { self.subquery_predicate(&scope) } else { self.predicate(2, &scope) });
        }
        let filter = match conditions.is_empty() {
            true => "".into(),
            false => sql!(" where ", Sql::List(" and ", conditions)).optional(),
        };
        (sql!(" from ", relation, filter), scope)
    }

    /// The same without equal rows: in a total order of these each has one place, so that several functions can say it of the same row.
    pub(super) fn distinct_from(&mut self, depth: usize) -> (Sql, Vec<Col>) {
        let (from, scope) = self.from(depth);
        let alias = self.name("r");
        let (mut items, mut columns) = (Vec::new(), Vec::new());
        for column in scope {
            let name = self.name("o");
            items.push(item(column.name.into(), &name));
            columns.push(Col { name: format!("{alias}.{name}"), ty: column.ty, bound: vec![alias.clone(), name] });
        }
        (sql!(" from (select distinct ", Sql::List(", ", items), from, ") as ", Sql::Bind(alias)), columns)
    }

    pub(super) fn relation(&mut self, depth: usize) -> (Sql, Vec<Col>) {
        let (mut sql, mut scope) = self.base(depth);
        while self.room() && self.chance(if depth == 0 { 15 } else { 45 }) {
            let (right, columns) = self.base(depth.saturating_sub(1));
            (sql, scope) = self.join(sql, scope, right, columns);
        }
        (sql, scope)
    }

    fn base(&mut self, depth: usize) -> (Sql, Vec<Col>) {
        self.relations += 1;
        let alias = self.name("r");
        let bind = Sql::Bind(alias.clone());
        let of_outs = |outs: Vec<Out>| -> Vec<Col> {
            outs.into_iter()
                .map(|o| Col { name: format!("{alias}.{}", o.name), ty: o.ty, bound: vec![alias.clone(), o.name] })
                .collect()
        };
        if !self.ctes.is_empty() && self.chance(40) {
            let (name, outs) = self.ctes.choose(&mut self.rng).cloned().expect("not empty");
            if !outs.is_empty() {
                // Their columns are bound in another query, which keeps them for as long as this one reads them.
                let mut columns = of_outs(outs);
                columns.iter_mut().for_each(|c| c.bound.truncate(1));
                return (sql!(name, " as ", bind).part(Kind::Relation), columns);
            }
        }
        if depth > 0 && self.room() && self.chance(30) {
            let (query, outs) = self.query(depth - 1, false);
            if !outs.is_empty() {
                let columns = of_outs(outs);
                return (sql!("(", query, ") as ", bind).part(Kind::Relation), columns);
            }
        }
        if self.chance(5) {
            return self.values(alias);
        }
        let table = self.tables.choose(&mut self.rng).expect("a case has a table");
        let columns = table
            .columns
            .iter()
            .map(|c| Col { name: format!("{alias}.{}", c.name), ty: c.ty, bound: vec![alias.clone()] })
            .collect();
        (sql!(table.name.clone(), " as ", bind).part(Kind::Relation), columns)
    }

    fn values(&mut self, alias: String) -> (Sql, Vec<Col>) {
        let types: Vec<Type> = (0..self.rng.random_range(1..=3))
            .map(|_| *[Type::BigInt, Type::Text, Type::Bool].choose(&mut self.rng).expect("some"))
            .collect();
        let mut rows = Vec::new();
        for _ in 0..self.rng.random_range(1..=4) {
            let cells: Vec<String> = types.iter().map(|ty| self.literal(*ty)).collect();
            rows.push(Sql::Text(format!("({})", cells.join(", "))));
        }
        let names: Vec<String> = types.iter().map(|_| self.name("o")).collect();
        let columns = names
            .iter()
            .zip(&types)
            .map(|(name, ty)| Col { name: format!("{alias}.{name}"), ty: *ty, bound: vec![alias.clone()] })
            .collect();
        let sql =
            sql!("(values ", Sql::List(", ", rows), ") as ", Sql::Bind(alias), format!(" ({})", names.join(", ")));
        (sql.part(Kind::Relation), columns)
    }

    /// An equality of a column of one side with one of the other; now and then of an expression.
    fn equality(&mut self, left: &[Col], right: &[Col]) -> Option<Sql> {
        let (l, r) = self.meeting(left, right)?;
        Some(match self.rng.random_range(0..20) {
            0 => sql!("(", l.name, " is not distinct from ", r.name, ")"),
            1 | 2 => sql!(self.scalar(l.ty, 1, left), " = ", r.name),
            _ => sql!(l.name, " = ", r.name),
        })
    }

    pub(super) fn meeting(&mut self, left: &[Col], right: &[Col]) -> Option<(Col, Col)> {
        let alike =
            |l: Type, r: Type| l == r || matches!((l, r), (Type::Int, Type::BigInt) | (Type::BigInt, Type::Int));
        let mut pairs: Vec<(&Col, &Col)> = Vec::new();
        for l in left {
            pairs.extend(right.iter().filter(|r| alike(l.ty, r.ty)).map(|r| (l, r)));
        }
        // Booleans meet too often to tell much.
        if pairs.iter().any(|(l, _)| l.ty != Type::Bool) {
            pairs.retain(|(l, _)| l.ty != Type::Bool);
        }
        pairs.choose(&mut self.rng).map(|(l, r)| ((*l).clone(), (*r).clone()))
    }

    fn join(&mut self, left: Sql, scope: Vec<Col>, right: Sql, columns: Vec<Col>) -> (Sql, Vec<Col>) {
        let both: Vec<Col> = scope.iter().chain(&columns).cloned().collect();
        let mut on = Vec::new();
        while on.len() < 2 && (on.is_empty() || self.chance(15)) {
            match self.equality(&scope, &columns) {
                Some(equality) => on.push(equality),
                None => break,
            }
        }
        if on.is_empty() || self.chance(6) {
            return (sql!(left, " cross join ", right).part(Kind::Relation), both);
        }
        if self.chance(20) {
            on.push(self.predicate(1, &both));
        }
        let on = Sql::List(" and ", on);
        let (kind, seen) = match self.rng.random_range(0..100) {
            0..32 => (" join ", both),
            32..60 => (" left join ", both),
            60..74 => (" right join ", both),
            74..90 => (" full join ", both),
            90..95 => (" left semi join ", scope),
            _ => (" left anti join ", scope),
        };
        (sql!(left, kind, right, " on ", on).part(Kind::Relation), seen)
    }
}
