//! Planning turns the models' SQL into operators that can be maintained.
//!
//! The invariant: a plan exists only if every node of it can be maintained incrementally and every function gives the same answer each
//! time; what cannot is refused by name, with its line, and all of it at once. DataFusion parses, resolves and optimises; the same plan run in
//! batch is the oracle.

mod batch;
mod build;
mod clauses;
mod context;
mod lower;
mod mended;
mod message;
mod nesting;
mod opaque;
mod outline;
mod place;
mod query;
mod steps;
mod subquery;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::{Schema, SchemaRef};
use datafusion::catalog::MemTable;
use datafusion::common::TableReference;
use datafusion::error::DataFusionError;
use datafusion::prelude::{DataFrame, SessionContext};

use self::build::Builder;
pub(crate) use self::context::plain_session;
use self::context::{alone, batch_context};
pub(crate) use self::lower::{LOST, NOT_A_JOIN};
pub(crate) use self::message::message;
use self::query::Query;
use self::steps::{From, Step, Work, steps};
use super::codec;
use super::graph::{Graph, KeyedValue, NodeId, NullKeys, Operator};
use crate::config::{DataTest, Line, Model, Severity};

/// A table that models may read: dbt's source.
#[derive(Clone, Debug)]
pub struct Table {
    pub schema: String,
    pub table: String,
    pub columns: SchemaRef,
}

impl Table {
    fn name(&self) -> String {
        format!("{}__{}", self.schema, self.table)
    }
}

/// Why there is no plan: each mistake once.
#[derive(Clone, Debug)]
pub struct PlanError {
    pub mistakes: Vec<Mistake>,
    /// The view's columns, if they are known all the same.
    pub view_schema: Option<SchemaRef>,
    /// Otherwise their names, if these can be read: it has no others.
    pub view_outline: Option<Vec<String>>,
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mistakes: Vec<String> = self.mistakes.iter().map(ToString::to_string).collect();
        f.write_str(&mistakes.join("; "))
    }
}

impl std::error::Error for PlanError {}

#[derive(Clone, Debug, thiserror::Error)]
pub enum Mistake {
    #[error("{at}: {reason}")]
    At { at: Line, reason: String },
    #[error("the view {view}: {reason}")]
    View { view: String, reason: String },
    #[error("{declared}: {reason}")]
    Test { declared: String, reason: String },
}

impl Mistake {
    /// The name of the column that is not there, if that is the mistake.
    fn misnamed(&self) -> Option<String> {
        let Mistake::At { reason, .. } = self else { return None };
        Some(message::column(reason.strip_prefix("No field named ")?))
    }
}

/// What is planned, beside the tables that it reads.
#[derive(Clone, Copy, Debug, Default)]
pub struct Project<'a> {
    /// Each after those that it refers to.
    pub models: &'a [Model],
    /// Models that neither the view nor a test needs: they have to be right SQL, and are not maintained.
    pub others: &'a [Model],
    /// A row that fails one of severity `error` is held back where it is tested: neither other models nor the view see it, until it heals.
    pub tests: &'a [DataTest],
    pub view: &'a str,
}

/// A data test, and where the rows that fail it come out.
#[derive(Clone, Debug)]
pub struct TestOutput {
    pub name: String,
    pub severity: Severity,
    /// What is tested: `schema__table` or a model.
    pub relation: String,
    pub(super) node: NodeId,
    /// The columns of the rows that fail.
    pub schema: SchemaRef,
}

/// Models as a graph of operators.
#[derive(Clone)]
pub struct Plan {
    pub(super) graph: Graph,
    pub(super) view: NodeId,
    /// Whether the view's rows come out under a key; otherwise as a multiset.
    pub(super) keyed: bool,
    pub(super) tests: Vec<TestOutput>,
    view_schema: SchemaRef,
    steps: Vec<Step>,
    view_name: String,
    index_key: Option<String>,
    /// With all columns that models may name.
    tables: Vec<Table>,
    shown: Vec<Shown>,
}

/// A step as it was planned.
#[derive(Clone, Debug)]
struct Shown {
    name: String,
    plan: String,
    node: NodeId,
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan").field("graph", &self.graph).finish_non_exhaustive()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.explain(None).unwrap_or_default())
    }
}

impl Plan {
    /// Plans `view` over `tables` and the models before it; its rows come out by the column `index_key`.
    pub fn new(models: &[Model], view: &str, tables: &[Table], index_key: &str) -> Result<Plan, PlanError> {
        Self::query(models, view, tables)?.keyed(index_key)
    }

    /// Plans a view without a key: its rows come out as the diffs of a multiset.
    pub fn query(models: &[Model], view: &str, tables: &[Table]) -> Result<Plan, PlanError> {
        Self::project(&Project { models, view, ..Project::default() }, tables, &BTreeSet::new())
    }

    /// Plans a project's view without a key. What reads one of the relations `absent`, about which there is nothing to say here, is only parsed.
    pub fn project(project: &Project<'_>, tables: &[Table], absent: &BTreeSet<String>) -> Result<Plan, PlanError> {
        let steps = steps(project.models, project.others, project.tests, tables);
        let kept: Vec<SchemaRef> = tables.iter().map(|t| t.columns.clone()).collect();
        Self::build(&steps, project.view, tables, &kept, absent)
    }

    fn build(
        steps: &[Step],
        view: &str,
        tables: &[Table],
        kept: &[SchemaRef],
        absent: &BTreeSet<String>,
    ) -> Result<Plan, PlanError> {
        alone(|| Builder::new(steps, tables, kept, absent).build(view, tables))
    }

    /// The same plan over tables of which only these columns are there. They have to be those that it reads, at least.
    pub fn keeping(&self, kept: &[SchemaRef]) -> Result<Plan, PlanError> {
        let plan = Self::build(&self.steps, &self.view_name, &self.tables, kept, &BTreeSet::new())?;
        match &self.index_key {
            Some(key) => plan.keyed(key),
            None => Ok(plan),
        }
    }

    /// The same plan with its rows by the column `index_key`.
    pub fn keyed(mut self, index_key: &str) -> Result<Plan, PlanError> {
        let Ok(key) = self.view_schema.index_of(index_key) else {
            let columns: Vec<_> = self.view_schema.fields().iter().map(|f| f.name().as_str()).collect();
            let reason = format!("it has no column {index_key} (index.key); it has {}", columns.join(", "));
            let mistakes = vec![Mistake::View { view: self.view_name, reason }];
            return Err(PlanError { mistakes, view_schema: Some(self.view_schema), view_outline: None });
        };
        let (input, stages) = self.graph.fused(self.view, vec![]);
        let operator = Operator::Key { input, stages, key: vec![key], value: KeyedValue::Row, nulls: NullKeys::Keep };
        self.view = self.graph.add(operator, self.view_schema.clone(), &self.view_name.as_str().into());
        (self.keyed, self.index_key) = (true, Some(index_key.into()));
        Ok(self)
    }

    /// What comes out of the graph.
    pub(super) fn outputs(&self) -> Vec<NodeId> {
        std::iter::once(self.view).chain(self.tests.iter().map(|t| t.node)).collect()
    }

    /// The tables that it reads.
    pub fn tables(&self) -> &[Table] {
        &self.tables
    }

    /// The data tests that rows can fail; the others are settled by the schema.
    pub fn tests(&self) -> &[TestOutput] {
        &self.tests
    }

    /// The view's columns.
    pub fn view_schema(&self) -> &SchemaRef {
        &self.view_schema
    }

    /// For each table, which of its columns the models read: a flag for each; none of a table that no model reads.
    pub fn columns_read(&self) -> Vec<Vec<bool>> {
        let mut read: Vec<Vec<bool>> = self.tables.iter().map(|t| vec![false; t.columns.fields().len()]).collect();
        // A view or a test that is a source as it is looks at all of it.
        for id in self.outputs() {
            if let Operator::Source { table } = self.graph.nodes[id].operator {
                read[table].fill(true);
            }
        }
        for id in self.graph.needed(self.outputs()) {
            for input in self.graph.inputs(id) {
                if let Operator::Source { table } = self.graph.nodes[input].operator {
                    self.graph.nodes[id].operator.marks(&mut read[table]);
                }
            }
        }
        read
    }

    /// The optimised plan of each step and the operators that maintain it, inputs first; of one step alone, if it is named. A model that
    /// stands as a part in others is shown as it would be on its own. `None` if there is no such step.
    pub fn explain(&self, step: Option<&str>) -> Option<String> {
        let shown: Vec<&Shown> = self.shown.iter().filter(|s| step.is_none_or(|name| s.name == name)).collect();
        if shown.is_empty() {
            let part = step.filter(|name| self.steps.iter().any(|s| s.name() == *name))?;
            let kept: Vec<SchemaRef> = self.tables.iter().map(|t| t.columns.clone()).collect();
            let own = match Self::build(&self.steps, part, &self.tables, &kept, &BTreeSet::new()) {
                Ok(plan) => plan.explain(step)?,
                Err(e) => format!("{e}\n"),
            };
            return Some(format!("-- {part} is a part of the models that refer to it; on its own it would be:\n{own}"));
        }
        let mut out = String::new();
        for shown in &shown {
            out.push_str(&format!("{}\n", shown.name));
            shown.plan.lines().for_each(|line| out.push_str(&format!("    {line}\n")));
        }
        out.push_str("operators\n");
        let last = |shown: &&Shown| shown.node;
        let nodes = if step.is_some() { shown.iter().map(last).collect() } else { self.outputs() };
        for id in self.graph.needed(nodes) {
            let node = &self.graph.nodes[id];
            let inputs: Vec<String> = self.graph.inputs(id).iter().map(|i| format!("#{i}")).collect();
            let from = if inputs.is_empty() { String::new() } else { format!(" <- {}", inputs.join(", ")) };
            out.push_str(&format!("    #{id} {}{from} ({})\n", node.describe(), node.model));
        }
        Some(out)
    }

    /// The names of the models.
    pub fn models(&self) -> Vec<&str> {
        let names = self.steps.iter().filter_map(|step| match &step.from {
            From::Model(model) => Some(model.name.as_str()),
            From::Test(_) | From::Gate(_) => None,
        });
        names.collect()
    }

    /// The view computed from scratch over whole tables, by DataFusion's own execution: what the maintained one must equal.
    pub async fn batch_view(&self, tables: Vec<RecordBatch>) -> Result<RecordBatch, DataFusionError> {
        alone(|| self.in_batch(tables))
    }

    async fn in_batch(&self, tables: Vec<RecordBatch>) -> Result<RecordBatch, DataFusionError> {
        let context = batch_context();
        for (table, batch) in self.tables.iter().zip(tables) {
            let provider = MemTable::try_new(table.columns.clone(), vec![vec![batch]])?;
            context.register_table(TableReference::bare(table.name()), Arc::new(provider))?;
        }
        for step in &self.steps {
            match &step.work {
                Work::Test(_) | Work::Look(_) => {}
                Work::Inline(name) => {
                    let frame = Self::frame(step, &context).await?;
                    context.deregister_table(TableReference::bare(name.as_str()))?;
                    context.register_table(TableReference::bare(name.as_str()), frame.into_view())?;
                }
                Work::Keep(name) => {
                    let frame = Self::frame(step, &context).await?;
                    let schema: SchemaRef = Arc::new(Schema::new(frame.schema().fields().clone()));
                    let provider = MemTable::try_new(codec::nullable(&schema), vec![frame.collect().await?])?;
                    context.deregister_table(TableReference::bare(name.as_str()))?;
                    context.register_table(TableReference::bare(name.as_str()), Arc::new(provider))?;
                }
            }
        }
        let batches = context.table(TableReference::bare(self.view_name.as_str())).await?.collect().await?;
        Ok(concat_batches(&self.view_schema, &batches)?)
    }

    async fn frame(step: &Step, context: &SessionContext) -> Result<DataFrame, DataFusionError> {
        let query = Query::parse(&step.sql, &|_| false);
        let query = query.map_err(|faults| DataFusionError::Plan(format!("{}: {faults:?}", step.name())))?;
        let plan = query::plan(&context.state(), &query.ast).await?;
        Ok(DataFrame::new(context.state(), plan))
    }
}
