//! Building plans one step after the other, and goes on after a mistake.
//!
//! The invariant: every step is looked at once. Of one that reads what is not there because of another's mistake only names are looked
//! at, so that each mistake is told once; all others are planned as if there were no mistake anywhere.

mod blame;
mod names;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::TableReference;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::datasource::empty::EmptyTable;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{Expr, LogicalPlan, Volatility};
use datafusion::prelude::{DataFrame, SessionContext};
use datafusion::sql::sqlparser::ast;

use super::context::context;
use super::lower::{Lowering, Refusal, Relations};
use super::message::{leaves, message};
use super::nesting;
use super::outline::Outline;
use super::query::{self, Query};
use super::steps::{From, Step, Work};
use super::subquery;
use super::{Mistake, Plan, PlanError, Shown, Table, TestOutput};
use crate::config::Severity;
use crate::dataflow::graph::{Graph, NodeId, Operator};

/// What stands between a query and its operators.
#[derive(Debug)]
enum Trouble {
    /// Of the query itself: its lines are the query's.
    Query(DataFusionError),
    /// It is too large to be looked at any further.
    TooLarge(String),
    /// Of the query and all that is a part of it.
    Whole(DataFusionError),
    Refused(Refusal),
}

impl Trouble {
    fn reasons(&self) -> Vec<String> {
        match self {
            Trouble::Query(e) | Trouble::Whole(e) => leaves(e).map(message).collect(),
            Trouble::TooLarge(reason) => vec![reason.clone()],
            Trouble::Refused(refusal) => vec![refusal.reason.clone()],
        }
    }
}

impl std::convert::From<DataFusionError> for Trouble {
    fn from(e: DataFusionError) -> Trouble {
        Trouble::Query(e)
    }
}

/// A query that was planned: as DataFusion optimises it, and its operators.
struct Lowered {
    plan: LogicalPlan,
    schema: SchemaRef,
    node: NodeId,
}

pub(super) struct Builder<'a> {
    steps: &'a [Step],
    context: SessionContext,
    graph: Graph,
    relations: Relations,
    tables: BTreeSet<String>,
    /// Relations that are not there because of a mistake that was told.
    absent: BTreeSet<String>,
    /// What is known of the columns of those all the same.
    outlines: HashMap<String, Outline>,
    /// The steps that could be planned, for looking for mistakes in what others are made of.
    queries: HashMap<usize, Query>,
    /// The steps that are a part of others that could be lowered.
    covered: BTreeSet<usize>,
    mistakes: Vec<Mistake>,
    outputs: Vec<TestOutput>,
    shown: Vec<Shown>,
}

impl<'a> Builder<'a> {
    /// Over tables, of whose columns only `kept` are there, and beside relations that cannot be read.
    pub fn new(steps: &'a [Step], tables: &[Table], kept: &[SchemaRef], absent: &BTreeSet<String>) -> Builder<'a> {
        let mut builder = Builder {
            steps,
            context: context(),
            graph: Graph::default(),
            relations: Relations::new(),
            tables: tables.iter().map(Table::name).collect(),
            absent: absent.clone(),
            outlines: HashMap::new(),
            queries: HashMap::new(),
            covered: BTreeSet::new(),
            mistakes: Vec::new(),
            outputs: Vec::new(),
            shown: Vec::new(),
        };
        for (n, table) in tables.iter().enumerate() {
            builder.define(&table.name(), &table.columns);
            let name: Arc<str> = format!("{}.{}", table.schema, table.table).into();
            let node = builder.graph.add(Operator::Source { table: n }, kept[n].clone(), &name);
            builder.relations.insert(table.name(), node);
        }
        builder
    }

    /// Plans every step, and `view` at the end.
    pub async fn build(mut self, view: &str, tables: &[Table]) -> Result<Plan, PlanError> {
        // Of relations some test of which is wrong.
        let mut untested = BTreeSet::new();
        for at in 0..self.steps.len() {
            let step = &self.steps[at];
            if matches!(&step.from, From::Gate(relation) if untested.contains(relation)) {
                continue;
            }
            if !self.step(at).await {
                match (&step.work, &step.from) {
                    (Work::Test(test), _) if test.severity == Severity::Error => {
                        untested.insert(test.relation.clone());
                    }
                    (Work::Test(_), _) | (_, From::Gate(_)) => {}
                    (Work::Inline(name) | Work::Keep(name) | Work::Look(name), _) => {
                        self.absent.insert(name.clone());
                    }
                }
            }
        }
        let read = if self.absent.contains(view) { None } else { self.view(view).await };
        self.parts().await;
        let mut told = Vec::new();
        self.mistakes.retain(|m| {
            let is_new = !told.contains(&m.to_string());
            told.push(m.to_string());
            is_new
        });
        match read {
            Some(read) if self.mistakes.is_empty() => {
                if !self.shown.iter().any(|s| s.name == view) {
                    self.show(view.into(), &read);
                }
                Ok(Plan {
                    graph: self.graph,
                    view: read.node,
                    keyed: false,
                    tests: self.outputs,
                    view_schema: read.schema,
                    steps: self.steps.to_vec(),
                    view_name: view.into(),
                    index_key: None,
                    tables: tables.to_vec(),
                    shown: self.shown,
                })
            }
            read => Err(PlanError {
                mistakes: self.mistakes,
                view_schema: read.map(|r| r.schema),
                view_outline: self.outlines.remove(view),
            }),
        }
    }

    fn define(&self, name: &str, columns: &SchemaRef) {
        let name = TableReference::bare(name);
        let defined = self.context.deregister_table(name.clone());
        let defined =
            defined.and_then(|_| self.context.register_table(name, Arc::new(EmptyTable::new(columns.clone()))));
        defined.expect("a name that is free can be given");
    }

    /// Whether the step is right, as far as it can be known.
    async fn step(&mut self, at: usize) -> bool {
        let step = &self.steps[at];
        let state = self.context.state();
        let is_scalar = |name: &str| state.scalar_functions().contains_key(name);
        let query = match Query::parse(&step.sql, &is_scalar) {
            Ok(query) => query,
            Err(faults) => {
                self.mistakes.extend(faults.into_iter().map(|fault| step.mistake(fault)));
                return false;
            }
        };
        let told = self.mistakes.len();
        match query.relations(&state) {
            Ok(read) if read.iter().any(|name| self.absent.contains(name)) => {
                match &step.from {
                    From::Test(test) if !test.columns().is_empty() => self.untestable(test).await,
                    _ => self.named(at, &query, &read).await,
                }
                self.outlined(at, &query, told).await;
                return false;
            }
            _ => {}
        }
        let planned = self.planned(&query.ast).await;
        let done = match (planned, &step.work) {
            (Err(trouble), _) => Err(trouble),
            (Ok(plan), Work::Inline(name)) => self.inline(name, plan).map(|()| None),
            (Ok(plan), Work::Look(name)) => match state.optimize(&plan) {
                Ok(_) => self.inline(name, plan).map(|()| None),
                Err(e) => Err(Trouble::Whole(e)),
            },
            (Ok(plan), _) => self.added(&plan, &step.name()).map(Some),
        };
        let lowered = match done {
            Ok(lowered) => lowered,
            Err(trouble) => {
                self.blame(at, &query, &trouble).await;
                if let Trouble::Query(e) = &trouble {
                    self.further(at, &query, e).await;
                }
                self.outlined(at, &query, told).await;
                return false;
            }
        };
        if lowered.is_some() {
            self.covered.extend(self.parts_of(&query));
        }
        self.queries.insert(at, query);
        let Some(lowered) = lowered else { return true };
        self.show(step.name(), &lowered);
        match &step.work {
            Work::Inline(_) | Work::Look(_) => unreachable!("they are not lowered"),
            Work::Keep(name) => {
                self.define(name, &lowered.schema);
                self.relations.insert(name.clone(), lowered.node);
            }
            // A test that the schema alone settles needs no operators.
            Work::Test(_) if self.graph.never_has_rows(lowered.node) => {}
            Work::Test(test) => self.outputs.push(TestOutput {
                name: test.name.clone(),
                severity: test.severity,
                relation: test.relation.clone(),
                node: lowered.node,
                schema: lowered.schema,
            }),
        }
        true
    }

    /// The view stands under its name like any model; reading it once more gives its columns and its node.
    async fn view(&mut self, view: &str) -> Option<Lowered> {
        let step = self.steps.iter().rposition(|s| s.defines() == Some(view) && matches!(s.from, From::Model(_)));
        let frame = match self.context.table(TableReference::bare(view)).await {
            Ok(frame) => frame,
            Err(e) => {
                self.mistakes.push(Mistake::View { view: view.into(), reason: message(&e) });
                return None;
            }
        };
        let lowered = self.added(frame.logical_plan(), view);
        match (lowered, step.and_then(|at| Some((at, self.queries.remove(&at)?)))) {
            (Ok(lowered), of) => {
                if let Some((at, query)) = of {
                    self.covered.extend(self.parts_of(&query));
                    self.covered.insert(at);
                    self.queries.insert(at, query);
                }
                Some(lowered)
            }
            (Err(trouble), Some((at, query))) => {
                self.blame(at, &query, &trouble).await;
                self.covered.insert(at);
                self.queries.insert(at, query);
                None
            }
            (Err(trouble), None) => {
                let reason = trouble.reasons().join("; ");
                self.mistakes.push(Mistake::View { view: view.into(), reason });
                None
            }
        }
    }

    /// Looks at the models that are a part of nothing that could be lowered, each by itself.
    async fn parts(&mut self) {
        for at in 0..self.steps.len() {
            if !matches!(self.steps[at].work, Work::Inline(_)) || self.covered.contains(&at) {
                continue;
            }
            let Some(query) = self.queries.remove(&at) else { continue };
            let tried = match self.planned(&query.ast).await {
                Ok(plan) => self.lowered(&plan, "", &mut self.graph.clone()).map(drop),
                Err(trouble) => Err(trouble),
            };
            if let Err(trouble) = tried {
                self.blame(at, &query, &trouble).await;
            }
            self.queries.insert(at, query);
        }
    }

    fn show(&mut self, name: String, lowered: &Lowered) {
        self.shown.push(Shown { name, plan: lowered.plan.display_indent().to_string(), node: lowered.node });
    }

    fn inline(&self, name: &str, plan: LogicalPlan) -> Result<(), Trouble> {
        let frame = DataFrame::new(self.context.state(), plan);
        // A relation without what fails its tests takes the place of the whole one.
        self.context.deregister_table(TableReference::bare(name))?;
        self.context.register_table(TableReference::bare(name), frame.into_view())?;
        Ok(())
    }

    /// A query as a plan, of which no function has been computed yet.
    async fn planned(&self, query: &ast::Query) -> Result<LogicalPlan, Trouble> {
        let plan = query::plan(&self.context.state(), query).await?;
        if let Some(reason) = nesting::of_plan(&plan) {
            return Err(Trouble::TooLarge(reason));
        }
        match subquery::of_several_rows(&plan).map_err(Trouble::Whole)? {
            Some(refusal) => Err(Trouble::Refused(refusal)),
            None => Ok(plan),
        }
    }

    fn added(&mut self, plan: &LogicalPlan, model: &str) -> Result<Lowered, Trouble> {
        let mut graph = std::mem::take(&mut self.graph);
        let lowered = self.lowered(plan, model, &mut graph);
        self.graph = graph;
        lowered
    }

    fn lowered(&self, plan: &LogicalPlan, model: &str, graph: &mut Graph) -> Result<Lowered, Trouble> {
        if let Some(name) = unsteady_function(plan).map_err(Trouble::Whole)? {
            let reason = format!("{name}() gives another answer each time; a maintained view cannot follow it");
            return Err(Trouble::Refused(Refusal { word: name, reason }));
        }
        let state = self.context.state();
        let plan = state.optimize(plan).map_err(Trouble::Whole)?;
        if let Some(reason) = nesting::of_expressions(&plan) {
            return Err(Trouble::TooLarge(reason));
        }
        let schema: SchemaRef = Arc::new(Schema::new(plan.schema().fields().clone()));
        let props = state.execution_props().clone();
        let mut lowering =
            Lowering { graph, relations: &self.relations, tables: &self.tables, props, model: model.into() };
        let node = lowering.lower(&plan).map_err(Trouble::Refused)?;
        Ok(Lowered { plan, schema, node })
    }

    /// The steps that are a part of a query.
    fn parts_of(&self, query: &Query) -> BTreeSet<usize> {
        let state = self.context.state();
        let mut parts = BTreeSet::new();
        let mut names = query.relations(&state).unwrap_or_default();
        while let Some(name) = names.pop() {
            let is_part = |s: &Step| matches!(&s.work, Work::Inline(n) | Work::Look(n) if *n == name);
            let part = self.steps.iter().position(is_part);
            if let Some(part) = part.filter(|part| parts.insert(*part))
                && let Some(query) = self.queries.get(&part)
            {
                names.extend(query.relations(&state).unwrap_or_default());
            }
        }
        parts
    }
}

/// A function whose answer depends on more than its arguments, looked for before the optimiser turns it into a constant.
fn unsteady_function(plan: &LogicalPlan) -> Result<Option<String>, DataFusionError> {
    let mut found = None;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|e| {
                if let Expr::ScalarFunction(call) = e
                    && call.func.signature().volatility != Volatility::Immutable
                {
                    found = Some(call.func.name().to_string());
                    return Ok(TreeNodeRecursion::Stop);
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    Ok(found)
}
