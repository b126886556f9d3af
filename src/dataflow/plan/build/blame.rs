//! Blame finds what is wrong with a step: at which model, at which line, and what else.
//!
//! The invariant: it plans and lowers copies; the plan in the making stays as it is.

use std::collections::BTreeSet;

use datafusion::error::DataFusionError;
use datafusion::sql::sqlparser::ast;

use super::super::message::{self, leaves, message};
use super::super::place::{Change, blamed, forget};
use super::super::query::{Fault, Query};
use super::super::steps::Work;
use super::{Builder, Trouble};

/// How far a query is followed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Planned,
    Optimised,
    Lowered,
}

impl Builder<'_> {
    /// Tells what is wrong with a step, at the model that it is wrong in: that may be one that is a part of the query.
    pub(super) async fn blame(&mut self, at: usize, query: &Query, trouble: &Trouble) {
        let reasons = trouble.reasons();
        let mut found = Vec::new();
        for (n, reason) in reasons.iter().enumerate() {
            let (at, line) = match trouble {
                Trouble::TooLarge(_) => (at, query.line("")),
                Trouble::Query(e) => match leaves(e).nth(n).and_then(message::start) {
                    Some(start) => (at, start.line),
                    None => (at, self.searched(query, &reasons, n, Stage::Planned, "").await),
                },
                Trouble::Whole(_) | Trouble::Refused(_) => {
                    let stage = if let Work::Look(_) = self.steps[at].work { Stage::Optimised } else { Stage::Lowered };
                    let (at, query) = self.culprit(at, query, reason, stage).await;
                    let word = if let Trouble::Refused(refusal) = trouble { &refusal.word } else { "" };
                    (at, self.searched(query, &reasons, n, stage, word).await)
                }
            };
            found.push(self.steps[at].mistake(Fault::new(line, reason)));
        }
        self.mistakes.extend(found);
    }

    /// Tells what else is wrong with a query whose planning ended at an error: null stands for what is not there, which is of any type. Only
    /// errors that have a place of their own are told, since others may come from the null.
    pub(super) async fn further(&mut self, at: usize, query: &Query, error: &DataFusionError) {
        let mut ast = query.ast.clone();
        let mut told: BTreeSet<String> = leaves(error).map(message::subject).collect();
        let mut forgotten = BTreeSet::new();
        let mut places: Vec<_> = leaves(error).filter_map(message::start).collect();
        // Each round forgets what was not forgotten before.
        while !places.is_empty() {
            for place in places.drain(..).filter(|place| forgotten.insert(*place)) {
                forget(&mut ast, place);
            }
            let Err(Trouble::Query(e)) = self.planned(&ast).await else { return };
            for e in leaves(&e) {
                let Some(start) = message::start(e).filter(|start| !forgotten.contains(start)) else { continue };
                places.push(start);
                if told.insert(message::subject(e)) {
                    self.mistakes.push(self.steps[at].mistake(Fault::new(start.line, message(e))));
                }
            }
        }
    }

    /// The line of the expression that the query's `n`th trouble comes from: one that has `word` in it, if there is any.
    async fn searched(&self, query: &Query, reasons: &[String], n: usize, stage: Stage, word: &str) -> u64 {
        let reason = &reasons[n];
        let changed = async |changed: &ast::Query| match self.attempt(changed, stage).await {
            Ok(()) => Change::Gone,
            Err(now) if now.contains(reason) => Change::Same,
            Err(now) if now.iter().all(|r| reasons.contains(r)) => Change::Gone,
            Err(_) => Change::Other,
        };
        // What the query alone does not have is not in one of its expressions.
        if changed(&query.ast).await != Change::Same {
            return query.line(word);
        }
        if let Some(line) = blamed(&query.ast, |expr| query.names(expr, word), &changed).await {
            return line;
        }
        match query.has(word) {
            true => query.line(word),
            false => blamed(&query.ast, |_| true, &changed).await.unwrap_or(query.line("")),
        }
    }

    /// The first step that has the same trouble by itself, among those that are a part of this one.
    async fn culprit<'b>(&'b self, at: usize, query: &'b Query, reason: &String, stage: Stage) -> (usize, &'b Query) {
        for part in self.parts_of(query) {
            if let Some(query) = self.queries.get(&part)
                && self.attempt(&query.ast, stage).await.is_err_and(|reasons| reasons.contains(reason))
            {
                return (part, query);
            }
        }
        (at, query)
    }

    /// What is wrong with a query, were it a step now.
    async fn attempt(&self, query: &ast::Query, stage: Stage) -> Result<(), Vec<String>> {
        let plan = self.planned(query).await.map_err(|trouble| trouble.reasons())?;
        let tried = match stage {
            Stage::Planned => Ok(()),
            Stage::Optimised => self.context.state().optimize(&plan).map(drop).map_err(Trouble::Whole),
            Stage::Lowered => self.lowered(&plan, "", &mut self.graph.clone()).map(drop),
        };
        tried.map_err(|trouble| trouble.reasons())
    }
}
