//! Random queries over the nodes that can be maintained.
//!
//! The invariant: the answer of a query is determined by the tables alone: orders end with every column in scope, text is aggregated in an
//! order, and sums of values that are not exact are only shown, never compared.

mod aggregate;
mod failing;
mod first;
mod relation;
mod subquery;
mod window;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use super::sql::{Kind, Reader, Sql, sql};
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
    let (mut body, outs) = generator.query(2, true);
    if generator.chance(8)
        && let Some(failing) = generator.failing(&body, &outs)
    {
        body = failing;
    }
    Query { named, body }
}

impl Query {
    /// As one statement, with common table expressions.
    pub fn render(&self, reader: Reader) -> String {
        let with: Vec<String> =
            self.named.iter().map(|(name, sql)| format!("{name} as ({})", sql.render_for(reader))).collect();
        let with = if with.is_empty() { String::new() } else { format!("with {} ", with.join(", ")) };
        format!("{with}{}", self.body.render_for(reader))
    }

    /// What of the query the engine and the batch do not read alike.
    pub fn twice(&self) -> Vec<&'static str> {
        let mut found = Vec::new();
        self.named.iter().map(|(_, sql)| sql).chain([&self.body]).for_each(|sql| sql.twice(&mut found));
        found
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
            26..35 => self.top_of_groups(depth),
            35..39 => self.distinct_on(depth),
            39..42 => self.tied(),
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

    fn direction(&mut self) -> &'static str {
        self.pick(&["", " desc", " nulls first", " desc nulls last"])
    }
}
