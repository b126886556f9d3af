//! SQL as a tree that knows which of its parts can go, so that a failing query can be made smaller without knowing what it means.
//!
//! The invariant: taking parts away never makes an answer undetermined: what an order needs to be total ([`Sql::While`]) goes only together
//! with the names that it mentions. Whether what is left still makes sense is for the planner to say.

use std::collections::HashSet;

#[derive(Clone, Debug)]
pub enum Sql {
    Text(String),
    Seq(Vec<Sql>),
    /// A clause that may go.
    Optional(Box<Sql>),
    /// Parts between separators; all but one may go. What is empty needs no separator.
    List(&'static str, Vec<Sql>),
    /// A keyword before something; there unless that is empty.
    Clause(&'static str, Box<Sql>),
    /// May be replaced by a part of the same kind that lies in it, or by a constant.
    Part {
        kind: Kind,
        constant: Option<String>,
        of: Box<Sql>,
    },
    /// Where a name (of a relation, or of a column of a subquery) is bound.
    Bind(String),
    /// There as long as the names that it needs are bound.
    While {
        bound: Vec<String>,
        text: String,
    },
    Twice(Twice),
}

/// What the engine is asked, and what its answer has to be, put as a question to DataFusion that has only one answer.
#[derive(Clone, Debug)]
pub struct Twice {
    pub about: &'static str,
    pub maintained: String,
    pub batch: String,
}

/// Who reads a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    Engine,
    Batch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Query,
    Relation,
    Scalar,
    Predicate,
}

impl From<&str> for Sql {
    fn from(text: &str) -> Sql {
        Sql::Text(text.into())
    }
}

impl From<String> for Sql {
    fn from(text: String) -> Sql {
        Sql::Text(text)
    }
}

impl From<Twice> for Sql {
    fn from(twice: Twice) -> Sql {
        Sql::Twice(twice)
    }
}

/// A sequence of anything that is SQL.
macro_rules! sql {
    ($($part:expr),* $(,)?) => { $crate::oracle::sql::Sql::Seq(vec![$($crate::oracle::sql::Sql::from($part)),*]) };
}
pub(super) use sql;

impl Sql {
    pub fn optional(self) -> Sql {
        Sql::Optional(Box::new(self))
    }

    pub fn part(self, kind: Kind) -> Sql {
        Sql::Part { kind, constant: None, of: Box::new(self) }
    }

    pub fn part_or(self, kind: Kind, constant: impl Into<String>) -> Sql {
        Sql::Part { kind, constant: Some(constant.into()), of: Box::new(self) }
    }

    /// As the engine reads it.
    pub fn render(&self) -> String {
        self.render_for(Reader::Engine)
    }

    pub fn render_for(&self, reader: Reader) -> String {
        let mut bound = HashSet::new();
        self.bound(&mut bound);
        let mut out = String::new();
        self.write(reader, &bound, &mut out);
        out
    }

    /// What it says twice.
    pub fn twice(&self, found: &mut Vec<&'static str>) {
        match self {
            Sql::Twice(twice) => found.push(twice.about),
            _ => self.children().for_each(|child| child.twice(found)),
        }
    }

    /// As text, where every name is taken to be bound.
    pub fn render_part(&self) -> String {
        let mut names = HashSet::new();
        self.needed(&mut names);
        let mut out = String::new();
        self.write(Reader::Engine, &names, &mut out);
        out
    }

    fn needed<'a>(&'a self, names: &mut HashSet<&'a str>) {
        match self {
            Sql::While { bound, .. } => names.extend(bound.iter().map(String::as_str)),
            _ => self.children().for_each(|child| child.needed(names)),
        }
    }

    fn bound<'a>(&'a self, names: &mut HashSet<&'a str>) {
        match self {
            Sql::Bind(name) => drop(names.insert(name)),
            _ => self.children().for_each(|child| child.bound(names)),
        }
    }

    fn write(&self, reader: Reader, bound: &HashSet<&str>, out: &mut String) {
        match self {
            Sql::Text(text) | Sql::Bind(text) => out.push_str(text),
            Sql::Twice(twice) if reader == Reader::Batch => out.push_str(&twice.batch),
            Sql::Twice(twice) => out.push_str(&twice.maintained),
            Sql::While { bound: needed, text } => {
                if needed.iter().all(|name| bound.contains(name.as_str())) {
                    out.push_str(text);
                }
            }
            Sql::Clause(keyword, of) => {
                let before = out.len();
                out.push_str(keyword);
                let empty = out.len();
                of.write(reader, bound, out);
                if out.len() == empty {
                    out.truncate(before);
                }
            }
            Sql::List(separator, items) => {
                let mut any = false;
                for item in items {
                    let before = out.len();
                    if any {
                        out.push_str(separator);
                    }
                    let empty = out.len();
                    item.write(reader, bound, out);
                    if out.len() == empty {
                        out.truncate(before);
                    } else {
                        any = true;
                    }
                }
            }
            _ => self.children().for_each(|child| child.write(reader, bound, out)),
        }
    }

    fn children(&self) -> Box<dyn Iterator<Item = &Sql> + '_> {
        match self {
            Sql::Text(_) | Sql::Bind(_) | Sql::While { .. } | Sql::Twice(_) => Box::new(std::iter::empty()),
            Sql::Seq(items) | Sql::List(_, items) => Box::new(items.iter()),
            Sql::Optional(of) | Sql::Clause(_, of) | Sql::Part { of, .. } => Box::new(std::iter::once(&**of)),
        }
    }

    fn children_mut(&mut self) -> Box<dyn Iterator<Item = &mut Sql> + '_> {
        match self {
            Sql::Text(_) | Sql::Bind(_) | Sql::While { .. } | Sql::Twice(_) => Box::new(std::iter::empty()),
            Sql::Seq(items) | Sql::List(_, items) => Box::new(items.iter_mut()),
            Sql::Optional(of) | Sql::Clause(_, of) | Sql::Part { of, .. } => Box::new(std::iter::once(&mut **of)),
        }
    }

    /// Makes the tree's `n`th part simpler, from the whole to the details; otherwise takes the number of its parts off `n`.
    pub fn simplify(&mut self, n: &mut usize) -> bool {
        let own = self.own_simpler();
        if *n < own.len() {
            *self = own.into_iter().nth(*n).expect("it was counted");
            return true;
        }
        *n -= own.len();
        self.children_mut().any(|child| child.simplify(n))
    }

    fn own_simpler(&self) -> Vec<Sql> {
        match self {
            Sql::Optional(_) => vec![Sql::Text(String::new())],
            Sql::List(separator, items) if items.len() > 1 => (0..items.len())
                .filter(|n| !matches!(items[*n], Sql::While { .. }))
                .map(|gone| {
                    let mut rest = items.clone();
                    rest.remove(gone);
                    Sql::List(separator, rest)
                })
                .collect(),
            Sql::Part { kind, constant, of } => {
                let mut found = Vec::new();
                of.nearest(*kind, &mut found);
                let constant = constant.iter().map(|c| Sql::Text(c.clone()));
                constant.chain(found.into_iter().cloned()).collect()
            }
            _ => vec![],
        }
    }

    fn nearest<'a>(&'a self, wanted: Kind, found: &mut Vec<&'a Sql>) {
        match self {
            Sql::Part { kind, .. } if *kind == wanted => found.push(self),
            _ => self.children().for_each(|child| child.nearest(wanted, found)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_can_go_but_not_what_keeps_an_order_total() {
        let item = |text: &str| sql!(text, " as ", Sql::Bind(text.to_uppercase()));
        let tie = |name: &str| Sql::While { bound: vec![name.into()], text: name.into() };
        let tree = sql!(
            "select ",
            Sql::List(", ", vec![item("a"), item("b")]),
            sql!(" where ", sql!("not ", sql!("p").part(Kind::Predicate)).part_or(Kind::Predicate, "true")).optional(),
            Sql::Clause(" order by ", Box::new(Sql::List(", ", vec![tie("A"), tie("B")]))),
        );
        let simpler = |mut n: usize| {
            let mut tree = tree.clone();
            tree.simplify(&mut n).then(|| tree.render())
        };
        let all: Vec<String> = (0..).map_while(simpler).collect();
        assert_eq!(
            all,
            [
                "select b as B where not p order by B",
                "select a as A where not p order by A",
                "select a as A, b as B order by A, B",
                "select a as A, b as B where true order by A, B",
                "select a as A, b as B where p order by A, B",
            ]
        );
    }
}
