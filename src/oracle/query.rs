//! Random queries over the nodes that can be maintained.
//!
//! The invariant: the answer of a query is determined by the tables alone: orders end with every column in scope, text is aggregated in an
//! order, and sums of values that are not exact are only shown, never compared.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use super::sql::{Kind, Sql, sql};
use super::table::{TableDef, Type};

/// Relations that one query reads, at most.
const RELATIONS: usize = 6;

pub(super) struct Generator<'a> {
    pub(super) rng: StdRng,
    tables: &'a [TableDef],
    names: usize,
    relations: usize,
    ctes: Vec<(String, Vec<Out>)>,
}

/// A column in scope.
#[derive(Clone)]
pub(super) struct Col {
    pub name: String,
    pub ty: Type,
    /// The names that the column is there through.
    bound: Vec<String>,
}

/// A column of a query.
#[derive(Clone)]
struct Out {
    name: String,
    ty: Type,
}

/// A query, and those before it that it reads by name.
#[derive(Clone, Debug)]
pub struct Query {
    pub named: Vec<(String, Sql)>,
    pub body: Sql,
}

pub fn query(rng: StdRng, tables: &[TableDef]) -> Query {
    let mut generator = Generator { rng, tables, names: 0, relations: 0, ctes: vec![] };
    let mut named = Vec::new();
    while named.len() < 2 && generator.chance(25) {
        let (sql, outs) = generator.query(1, false);
        let name = generator.name("e");
        named.push((name.clone(), sql));
        generator.ctes.push((name, outs));
    }
    let (body, _) = generator.query(2, true);
    Query { named, body }
}

impl Query {
    /// As one statement, with common table expressions.
    pub fn render(&self) -> String {
        let with: Vec<String> = self.named.iter().map(|(name, sql)| format!("{name} as ({})", sql.render())).collect();
        let with = if with.is_empty() { String::new() } else { format!("with {} ", with.join(", ")) };
        format!("{with}{}", self.body.render())
    }

    /// The query with its `n`th part made simpler, from the whole to the details; `None` when there are no more than `n`.
    pub fn simpler(&self, mut n: usize) -> Option<Query> {
        let mut query = self.clone();
        if n < self.named.len() {
            query.named.remove(n);
            return Some(query);
        }
        n -= self.named.len();
        let parts = query.named.iter_mut().map(|(_, sql)| sql);
        let simpler = parts.chain([&mut query.body]).any(|part| part.simplify(&mut n));
        simpler.then_some(query)
    }
}

fn tie(col: &Col) -> Sql {
    Sql::While { bound: col.bound.clone(), text: col.name.clone() }
}

fn item(expr: Sql, name: &str) -> Sql {
    sql!(expr, " as ", Sql::Bind(name.into()))
}

impl Generator<'_> {
    fn name(&mut self, prefix: &str) -> String {
        self.names += 1;
        format!("{prefix}{}", self.names)
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.rng.random_ratio(percent, 100)
    }

    fn pick(&mut self, of: &[&'static str]) -> &'static str {
        of.choose(&mut self.rng).copied().expect("not empty")
    }

    /// A query; `outermost` ones may show what must not be compared.
    fn query(&mut self, depth: usize, outermost: bool) -> (Sql, Vec<Out>) {
        let (sql, outs) = match self.rng.random_range(0..100) {
            0..14 => self.union(depth),
            14..26 => self.top(depth),
            26..33 => self.top_of_groups(depth),
            _ => self.select(depth, outermost, None),
        };
        (sql.part(Kind::Query), outs)
    }

    fn union(&mut self, depth: usize) -> (Sql, Vec<Out>) {
        let types: Vec<Type> = (0..self.rng.random_range(1..=3)).map(|_| self.type_of_tables()).collect();
        let mut arms = Vec::new();
        let mut outs = Vec::new();
        for n in 0..self.rng.random_range(2..=3) {
            let (arm, names) = self.select(depth.saturating_sub(1), false, Some(&types));
            arms.push(arm);
            if n == 0 {
                outs = names;
            }
        }
        let operator = self.pick(&[" union all ", " union all ", " union "]);
        (Sql::List(operator, arms), outs)
    }

    fn type_of_tables(&mut self) -> Type {
        let table = self.tables.choose(&mut self.rng).expect("a case has a table");
        table.columns.choose(&mut self.rng).expect("a table has a column").ty
    }

    /// `order by` and `limit`, in a total order.
    fn top(&mut self, depth: usize) -> (Sql, Vec<Out>) {
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

    /// An expression to group or to order by: a constant would be taken for the number of a column.
    fn varying(&mut self, depth: usize, scope: &[Col]) -> (Sql, Type) {
        let ty = self.type_in(scope);
        let expr = self.scalar(ty, depth, scope);
        let text = expr.render();
        match self.column(ty, scope) {
            Some(column) if !scope.iter().any(|c| text.contains(&c.name)) => (column.into(), ty),
            _ => (expr, ty),
        }
    }

    /// The first rows of each group, by `row_number() <= k`.
    fn top_of_groups(&mut self, depth: usize) -> (Sql, Vec<Out>) {
        let (from, scope) = self.from(depth);
        let (mut items, outs) = self.items(&scope, None);
        let (number, alias) = (self.name("o"), self.name("r"));
        let over = self.over(&scope, true);
        items.push(item(sql!("row_number() ", over), &number));
        let shown: Vec<Sql> = outs
            .iter()
            .map(|o| Sql::While { bound: vec![o.name.clone()], text: format!("{alias}.{}", o.name) })
            .collect();
        let k = self.rng.random_range(1..=3).to_string();
        let inner = sql!("select ", Sql::List(", ", items), from);
        let outer = sql!(
            "select ",
            Sql::List(", ", shown),
            " from (",
            inner,
            ") as ",
            Sql::Bind(alias.clone()),
            format!(" where {alias}.{number} <= "),
            k
        );
        (outer, outs)
    }

    fn direction(&mut self) -> &'static str {
        self.pick(&["", " desc", " nulls first", " desc nulls last"])
    }

    fn select(&mut self, depth: usize, outermost: bool, want: Option<&[Type]>) -> (Sql, Vec<Out>) {
        match self.rng.random_range(0..100) {
            0..40 => {
                let (from, scope) = self.from(depth);
                let (mut items, mut outs) = self.items(&scope, want);
                if want.is_none() && depth > 0 && self.room() && self.chance(15) {
                    let ty = self.type_in(&scope);
                    let name = self.name("o");
                    items.push(item(self.scalar_subquery(ty, &scope), &name));
                    outs.push(Out { name, ty });
                }
                (sql!("select ", Sql::List(", ", items), from), outs)
            }
            40..50 => {
                let (from, scope) = self.from(depth);
                let (items, outs) = self.items(&scope, want);
                (sql!("select distinct ", Sql::List(", ", items), from), outs)
            }
            50..80 => self.aggregate_select(depth, outermost, want),
            _ => self.window_select(depth, outermost, want),
        }
    }

    /// One to four expressions, or one for each type that is wanted.
    fn items(&mut self, scope: &[Col], want: Option<&[Type]>) -> (Vec<Sql>, Vec<Out>) {
        let types: Vec<Type> = match want {
            Some(types) => types.to_vec(),
            None => (0..self.rng.random_range(1..=4)).map(|_| self.type_in(scope)).collect(),
        };
        let outs: Vec<Out> = types.into_iter().map(|ty| Out { name: self.name("o"), ty }).collect();
        let items = outs.iter().map(|o| item(self.scalar(o.ty, 2, scope), &o.name)).collect();
        (items, outs)
    }

    fn aggregate_select(&mut self, depth: usize, outermost: bool, want: Option<&[Type]>) -> (Sql, Vec<Out>) {
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

    fn aggregate(&mut self, ty: Type, scope: &[Col]) -> Sql {
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

    fn window_select(&mut self, depth: usize, outermost: bool, want: Option<&[Type]>) -> (Sql, Vec<Out>) {
        let (from, scope) = self.from(depth);
        let (mut items, mut outs) = self.items(&scope, want);
        // Where types are wanted, one of the columns is the window's.
        if want.is_some() {
            let at = self.rng.random_range(0..outs.len());
            items[at] = item(self.window(outs[at].ty, &scope), &outs[at].name);
        } else {
            for _ in 0..self.rng.random_range(1..=2) {
                let name = self.name("o");
                if outermost && self.chance(10) {
                    items.push(item(
                        sql!("avg(", self.scalar(Type::Double, 1, &scope), ") ", self.over(&scope, false)),
                        &name,
                    ));
                    continue;
                }
                let ty = if self.chance(50) { Type::BigInt } else { self.type_in(&scope) };
                items.push(item(self.window(ty, &scope), &name));
                outs.push(Out { name, ty });
            }
        }
        let mut qualify = Sql::from("");
        if self.chance(20) {
            let of = Col { name: self.window(Type::BigInt, &scope).render_part(), ty: Type::BigInt, bound: vec![] };
            let predicate = self.predicate(0, std::slice::from_ref(&of));
            // DataFusion wants a window in it.
            if predicate.render().contains(&of.name) {
                qualify = sql!(" qualify ", predicate).optional();
            }
        }
        (sql!("select ", Sql::List(", ", items), from, qualify), outs)
    }

    fn window(&mut self, ty: Type, scope: &[Col]) -> Sql {
        match (ty, self.rng.random_range(0..10)) {
            (Type::BigInt, 0 | 1) => sql!("cast(row_number() ", self.over(scope, true), " as bigint)"),
            (Type::BigInt, 2 | 3) => {
                // Ties are what a rank is about.
                let call = self.pick(&["rank", "dense_rank"]);
                let (of, direction) = (self.type_in(scope), self.direction());
                let order = sql!(" order by ", self.scalar(of, 1, scope), direction);
                sql!("cast(", call, "() over (", self.partition(scope), order, ") as bigint)")
            }
            (Type::BigInt, 4) => sql!("count(*) ", self.over(scope, false)),
            (Type::BigInt, 5) => {
                let of = self.type_in(scope);
                sql!("count(", self.scalar(of, 1, scope), ") ", self.over(scope, false))
            }
            (Type::BigInt | Type::Double | Type::Decimal(..), 6 | 7) => {
                let total = self.chance(25);
                sql!("sum(", self.scalar(ty, 1, scope), ") ", self.over(scope, total))
            }
            (_, 0..=4) => {
                let call = self.pick(&["lag", "lead"]);
                let more = match self.rng.random_range(0..4) {
                    0 | 1 => String::new(),
                    2 => format!(", {}", self.rng.random_range(1..=2)),
                    _ => format!(", 1, {}", self.literal(ty)),
                };
                sql!(call, "(", self.scalar(ty, 0, scope), more, ") ", self.over(scope, true))
            }
            _ => {
                let call = self.pick(&["first_value", "last_value"]);
                sql!(call, "(", self.scalar(ty, 1, scope), ") ", self.over_in_frame(scope))
            }
        }
    }

    fn partition(&mut self, scope: &[Col]) -> Sql {
        let mut by = Vec::new();
        while by.len() < 2 && self.chance(65) {
            let (ty, depth) = (self.type_in(scope), usize::from(self.chance(20)));
            by.push(self.scalar(ty, depth, scope));
        }
        if by.is_empty() { "".into() } else { sql!("partition by ", Sql::List(", ", by)).optional() }
    }

    /// `over (...)`: the whole partition, or a total order in it.
    fn over(&mut self, scope: &[Col], ordered: bool) -> Sql {
        let order = if ordered { self.total_order(scope) } else { "".into() };
        sql!("over (", self.partition(scope), order, ")")
    }

    fn over_in_frame(&mut self, scope: &[Col]) -> Sql {
        let frame = self.pick(&["", " rows between unbounded preceding and unbounded following"]);
        let order = self.total_order(scope);
        sql!("over (", self.partition(scope), order, frame, ")")
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

    fn room(&self) -> bool {
        self.relations < RELATIONS
    }

    /// `from ... where ...`
    fn from(&mut self, depth: usize) -> (Sql, Vec<Col>) {
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

    fn relation(&mut self, depth: usize) -> (Sql, Vec<Col>) {
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

    fn meeting(&mut self, left: &[Col], right: &[Col]) -> Option<(Col, Col)> {
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

    fn subquery_predicate(&mut self, outer: &[Col]) -> Sql {
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
    fn scalar_subquery(&mut self, ty: Type, outer: &[Col]) -> Sql {
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
