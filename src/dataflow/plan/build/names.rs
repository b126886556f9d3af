//! Names are what can be looked at in a step that cannot be planned, because of a mistake in what it reads or in itself.
//!
//! The invariant: nothing is told that could come from the other mistake: a name is missing only where all names are known.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use datafusion::common::TableReference;
use datafusion::error::DataFusionError;

use super::super::Mistake;
use super::super::message::{leaves, message};
use super::super::outline::{Outline, outline};
use super::super::query::Query;
use super::{Builder, Trouble};
use crate::config::DataTest;

impl Builder<'_> {
    /// Tells of a test that cannot be planned which of its columns are not there.
    pub(super) async fn untestable(&mut self, test: &DataTest) {
        for (relation, column) in test.columns() {
            let has = self.outline_of(relation).await.filter(|has| !has.iter().any(|name| name == column));
            if let Some(has) = has {
                let reason = format!("{relation} has no column {column}; it has {}", has.join(", "));
                self.mistakes.push(Mistake::Test { declared: test.declared.clone(), reason });
            }
        }
    }

    /// Tells of names that are nowhere in a step that cannot be planned: its relations have the columns of their outlines, of no type.
    pub(super) async fn named(&mut self, at: usize, query: &Query, read: &[String]) {
        for relation in read.iter().filter(|name| self.absent.contains(*name)) {
            let Some(columns) = self.outlines.get(relation) else { return };
            let distinct: BTreeSet<&String> = columns.iter().collect();
            let fields = distinct.into_iter().map(|name| Field::new(name, DataType::Null, true));
            self.define(relation, &Arc::new(Schema::new(fields.collect::<Vec<_>>())));
        }
        let Err(Trouble::Query(e)) = self.planned(&query.ast).await else { return };
        // Whatever else is said may come from a type that is not known.
        let is_of_names = |e: &DataFusionError| {
            ["No field named ", "Invalid function ", "Unsupported SQL type "]
                .iter()
                .any(|of| message(e).starts_with(of))
        };
        if leaves(&e).all(is_of_names) {
            let trouble = Trouble::Query(e);
            self.blame(at, query, &trouble).await;
            if let Trouble::Query(e) = &trouble {
                self.further(at, query, e).await;
            }
        }
    }

    /// Keeps the names of the columns of a step that cannot be planned, unless one of them is itself among the mistakes since `told`: nobody
    /// can say what it was to be.
    pub(super) async fn outlined(&mut self, at: usize, query: &Query, told: usize) {
        let step = &self.steps[at];
        let Some(name) = step.defines() else { return };
        let mut read = HashMap::new();
        for relation in query.relations(&self.context.state()).unwrap_or_default() {
            if let Some(columns) = self.outline_of(&relation).await {
                read.insert(relation, columns);
            }
        }
        let wrong: Vec<String> = self.mistakes[told..].iter().filter_map(Mistake::misnamed).collect();
        let columns = outline(&query.ast, &|relation| read.get(relation).cloned());
        if let Some(columns) = columns.filter(|columns| !columns.iter().any(|column| wrong.contains(column))) {
            self.outlines.insert(name.into(), columns);
        }
    }

    async fn outline_of(&self, relation: &str) -> Option<Outline> {
        if self.absent.contains(relation) {
            return self.outlines.get(relation).cloned();
        }
        let table = self.context.table_provider(TableReference::bare(relation)).await.ok()?;
        Some(table.schema().fields().iter().map(|f| f.name().clone()).collect())
    }
}
