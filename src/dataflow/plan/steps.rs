//! Steps are the queries of a plan in the order in which they are planned: each relation, the rows that fail its tests, and then the relation
//! without those that must not go on.
//!
//! The invariant: a step reads what steps before it (or tables) stand for; whoever reads a name after its tests reads what they let through.

use std::sync::Arc;

use super::query::Fault;
use super::{Mistake, Table};
use crate::config::{DataTest, Materialized, Model, Severity, TestKind};

/// One query of a plan, and what becomes of its rows.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub sql: String,
    pub work: Work,
    pub from: From,
}

#[derive(Clone, Debug)]
pub(super) enum Work {
    /// It is a part of whatever reads this name from here on.
    Inline(String),
    /// Its rows are what this name stands for from here on.
    Keep(String),
    /// Its rows fail this test.
    Test(Arc<DataTest>),
    /// Nothing that is maintained reads this name: it has to be right, and that is all.
    Look(String),
}

/// Who wrote a step's query.
#[derive(Clone, Debug)]
pub(super) enum From {
    Model(Model),
    Test(Arc<DataTest>),
    /// What the tests of a relation let through.
    Gate(String),
}

/// What a plan computes, in order; `others` are models that it does not need.
pub(super) fn steps(models: &[Model], others: &[Model], tests: &[DataTest], tables: &[Table]) -> Vec<Step> {
    let mut steps = Vec::new();
    for table in tables {
        gate(&table.name(), tests, &mut steps);
    }
    for model in models {
        let alone = model.materialized == Materialized::Table || tests.iter().any(|t| t.relation == model.name);
        let work = if alone { Work::Keep } else { Work::Inline }(model.name.clone());
        steps.push(Step { sql: model.sql.clone(), work, from: From::Model(model.clone()) });
        gate(&model.name, tests, &mut steps);
    }
    for test in tests {
        if let TestKind::Query { sql } = &test.kind {
            let test = Arc::new(test.clone());
            steps.push(Step { sql: sql.clone(), work: Work::Test(test.clone()), from: From::Test(test) });
        }
    }
    for model in others {
        let work = Work::Look(model.name.clone());
        steps.push(Step { sql: model.sql.clone(), work, from: From::Model(model.clone()) });
    }
    steps
}

fn gate(relation: &str, tests: &[DataTest], steps: &mut Vec<Step>) {
    let mut hold = Vec::new();
    for test in tests.iter().filter(|t| t.relation == relation) {
        let Some(predicate) = test.predicate() else { continue };
        let test = Arc::new(test.clone());
        // Failing rows are counted: no column of them need be kept.
        let sql = format!("select 1 as failing from \"{relation}\" where {predicate}");
        steps.push(Step { sql, work: Work::Test(test.clone()), from: From::Test(test.clone()) });
        if test.severity == Severity::Error {
            hold.push(predicate);
        }
    }
    if !hold.is_empty() {
        // Each by itself: a subquery in a condition of its own becomes an anti join.
        let held: Vec<String> = hold.iter().map(|p| format!("({p}) is not true")).collect();
        let sql = format!("select * from \"{relation}\" where {}", held.join(" and "));
        // A part of its readers, so that columns which none of them reads are dropped before it.
        let (work, from) = (Work::Inline(relation.into()), From::Gate(relation.into()));
        steps.push(Step { sql, work, from });
    }
}

impl Step {
    pub fn name(&self) -> String {
        match &self.from {
            From::Model(model) => model.name.clone(),
            From::Test(test) => format!("test {}", test.name),
            From::Gate(relation) => format!("{relation}, tested"),
        }
    }

    /// The name that its rows are read by.
    pub fn defines(&self) -> Option<&str> {
        match &self.work {
            Work::Inline(name) | Work::Keep(name) | Work::Look(name) => Some(name),
            Work::Test(_) => None,
        }
    }

    /// A fault of the query, where it was written.
    pub fn mistake(&self, fault: Fault) -> Mistake {
        let Fault { line, reason } = fault;
        match &self.from {
            From::Model(model) => Mistake::At { at: model.at(line).clone(), reason },
            From::Test(test) => match test.lines.get(line - 1) {
                Some(at) => Mistake::At { at: at.clone(), reason },
                None => Mistake::Test { declared: test.declared.clone(), reason },
            },
            From::Gate(relation) => Mistake::View { view: relation.clone(), reason },
        }
    }
}
