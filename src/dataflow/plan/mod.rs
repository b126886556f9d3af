//! Planning turns the models' SQL into operators that can be maintained.
//!
//! The invariant: a plan exists only if every node of it can be maintained incrementally and every function gives the same answer each
//! time; what cannot is refused by name, with its line. DataFusion parses, resolves and optimises; the same plan run in batch is the oracle.

mod batch;
mod lower;
mod opaque;
mod subquery;

use std::fmt;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::{Schema, SchemaRef};
use datafusion::catalog::MemTable;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::datasource::empty::EmptyTable;
use datafusion::error::DataFusionError;
use datafusion::execution::SessionStateBuilder;
use datafusion::logical_expr::{Expr, LogicalPlan, Volatility};
use datafusion::optimizer::Optimizer;
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
use datafusion::prelude::{DataFrame, SessionConfig, SessionContext};

pub(crate) use self::batch::{DoubtJoins, DropRepeatedKeys};
use self::lower::{Lowering, Refusal, Relations};
use self::opaque::HideDependencies;
use super::codec;
use super::graph::{Graph, KeyedValue, NodeId, NullKeys, Operator};
use crate::config::{DataTest, Line, Materialized, Model, Severity, TestKind};

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

#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("{at}: {reason}")]
    At { at: Line, reason: String },
    #[error("the view {view}: {reason}")]
    View { view: String, reason: String },
    #[error("{declared}: {reason}")]
    Test { declared: String, reason: String },
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
        Self::tested(models, &[], view, tables, index_key)
    }

    /// The same with data tests. A row that fails one of severity `error` is held back where it is tested: neither other models nor the view
    /// see it, until it heals.
    pub fn tested(
        models: &[Model],
        tests: &[DataTest],
        view: &str,
        tables: &[Table],
        index_key: &str,
    ) -> Result<Plan, PlanError> {
        alone(|| Self::plan(models, tests, view, tables, Some(index_key)))
    }

    /// Plans a view without a key: its rows come out as the diffs of a multiset.
    pub fn query(models: &[Model], view: &str, tables: &[Table]) -> Result<Plan, PlanError> {
        alone(|| Self::plan(models, &[], view, tables, None))
    }

    async fn plan(
        models: &[Model],
        tests: &[DataTest],
        view: &str,
        tables: &[Table],
        index_key: Option<&str>,
    ) -> Result<Plan, PlanError> {
        let kept: Vec<SchemaRef> = tables.iter().map(|t| t.columns.clone()).collect();
        Self::build(steps(models, tests, tables), view, tables, &kept, index_key).await
    }

    /// The same plan over tables of which only these columns are there. They have to be those that it reads, at least.
    pub fn keeping(&self, kept: &[SchemaRef]) -> Result<Plan, PlanError> {
        let (steps, key) = (self.steps.clone(), self.index_key.as_deref());
        alone(|| Self::build(steps, &self.view_name, &self.tables, kept, key))
    }

    async fn build(
        steps: Vec<Step>,
        view: &str,
        tables: &[Table],
        kept: &[SchemaRef],
        index_key: Option<&str>,
    ) -> Result<Plan, PlanError> {
        let refused = |reason: String| PlanError::View { view: view.into(), reason };
        let context = context();
        let mut graph = Graph::default();
        let mut relations = Relations::new();
        for (n, table) in tables.iter().enumerate() {
            let provider = Arc::new(EmptyTable::new(table.columns.clone()));
            context.register_table(table.name(), provider).map_err(|e| refused(message(&e)))?;
            let name: Arc<str> = format!("{}.{}", table.schema, table.table).into();
            let node = graph.add(Operator::Source { table: n }, kept[n].clone(), &name);
            relations.insert(table.name(), node);
        }
        let mut outputs = Vec::new();
        let mut shown = Vec::new();
        for step in &steps {
            let frame = step.frame(&context).await?;
            // What a model refers to is a part of it: the word may stand in another's file.
            let at = |refusal: Refusal| match step.from {
                From::Model(_) => located(&steps, &step.name(), refusal),
                _ => step.refused(refusal),
            };
            if let Some(refusal) = subquery::of_several_rows(frame.logical_plan()).map_err(|e| step.error(&e))? {
                return Err(at(refusal));
            }
            if let Work::Inline(name) = &step.work {
                context.register_table(name.as_str(), frame.into_view()).map_err(|e| step.error(&e))?;
                continue;
            }
            let plan = context.state().optimize(frame.logical_plan()).map_err(|e| step.error(&e))?;
            let schema: SchemaRef = Arc::new(Schema::new(plan.schema().fields().clone()));
            let (props, model) = (context.state().execution_props().clone(), step.name().into());
            let mut lowering = Lowering { graph: &mut graph, relations: &relations, props, model };
            let node = lowering.lower(&plan).map_err(at)?;
            shown.push(Shown { name: step.name(), plan: plan.display_indent().to_string(), node });
            match &step.work {
                Work::Inline(_) => unreachable!("it was registered above"),
                Work::Keep(name) => {
                    context.deregister_table(name.as_str()).map_err(|e| step.error(&e))?;
                    let provider = Arc::new(EmptyTable::new(schema));
                    context.register_table(name.as_str(), provider).map_err(|e| step.error(&e))?;
                    relations.insert(name.clone(), node);
                }
                // A test that the schema alone settles needs no operators.
                Work::Test(_) if graph.never_has_rows(node) => {}
                Work::Test(test) => outputs.push(TestOutput {
                    name: test.name.clone(),
                    severity: test.severity,
                    relation: test.relation.clone(),
                    node,
                    schema,
                }),
            }
        }
        // The view stands under its name like any model; reading it once more gives its columns and its node.
        let frame = context.table(view).await.map_err(|e| refused(message(&e)))?;
        let plan = context.state().optimize(frame.logical_plan()).map_err(|e| refused(message(&e)))?;
        let view_schema: SchemaRef = Arc::new(Schema::new(plan.schema().fields().clone()));
        let props = context.state().execution_props().clone();
        let mut lowering = Lowering { graph: &mut graph, relations: &relations, props, model: view.into() };
        let mut node = lowering.lower(&plan).map_err(|refusal| located(&steps, view, refusal))?;
        if !shown.iter().any(|s| s.name == view) {
            shown.push(Shown { name: view.into(), plan: plan.display_indent().to_string(), node });
        }
        if let Some(index_key) = index_key {
            let key_column = view_schema.index_of(index_key).map_err(|_| {
                let columns: Vec<_> = view_schema.fields().iter().map(|f| f.name().as_str()).collect();
                refused(format!("it has no column {index_key} (index.key); it has {}", columns.join(", ")))
            })?;
            for field in view_schema.fields() {
                if field.name().starts_with('_') {
                    return Err(refused(format!(
                        "the column {} begins with _, which the index keeps for itself",
                        field.name()
                    )));
                }
            }
            let (input, stages) = graph.fused(node, vec![]);
            let operator =
                Operator::Key { input, stages, key: vec![key_column], value: KeyedValue::Row, nulls: NullKeys::Keep };
            node = graph.add(operator, view_schema.clone(), &view.into());
        }
        Ok(Plan {
            graph,
            view: node,
            keyed: index_key.is_some(),
            tests: outputs,
            view_schema,
            steps,
            view_name: view.into(),
            index_key: index_key.map(Into::into),
            tables: tables.to_vec(),
            shown,
        })
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
            let own = match alone(|| Self::build(self.steps.clone(), part, &self.tables, &kept, None)) {
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
        let context = batch_context();
        for (table, batch) in self.tables.iter().zip(tables) {
            let provider = MemTable::try_new(table.columns.clone(), vec![vec![batch]])?;
            context.register_table(table.name(), Arc::new(provider))?;
        }
        let failed = |e: PlanError| DataFusionError::Plan(e.to_string());
        for step in &self.steps {
            match &step.work {
                Work::Test(_) => {}
                Work::Inline(name) => {
                    let frame = step.frame(&context).await.map_err(failed)?;
                    context.register_table(name.as_str(), frame.into_view())?;
                }
                Work::Keep(name) => {
                    let frame = step.frame(&context).await.map_err(failed)?;
                    let schema: SchemaRef = Arc::new(Schema::new(frame.schema().fields().clone()));
                    let provider = MemTable::try_new(codec::nullable(&schema), vec![frame.collect().await?])?;
                    context.deregister_table(name.as_str())?;
                    context.register_table(name.as_str(), Arc::new(provider))?;
                }
            }
        }
        let batches = context.table(self.view_name.as_str()).await?.collect().await?;
        Ok(concat_batches(&self.view_schema, &batches)?)
    }
}

/// Plans on a thread of its own: whoever calls may be part of an executor, and one cannot run inside another.
fn alone<F: Future<Output = Result<Plan, PlanError>>>(plan: impl FnOnce() -> F + Send) -> Result<Plan, PlanError> {
    let planned = std::thread::scope(|scope| scope.spawn(|| futures::executor::block_on(plan())).join());
    planned.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// A refusal with the model and line that it is about: the first model that has the word, the view before the others.
fn located(steps: &[Step], view: &str, refusal: Refusal) -> PlanError {
    let models = || steps.iter().filter(|s| matches!(s.from, From::Model(_)));
    let has = |step: &&Step| step.sql.to_lowercase().contains(&refusal.word.to_lowercase());
    let of_view = models().filter(|s| s.name() == view);
    match of_view.clone().find(has).or(models().find(has)).or(of_view.clone().next()) {
        Some(step) => step.refused(refusal),
        None => PlanError::View { view: view.into(), reason: refusal.reason },
    }
}

fn config() -> SessionConfig {
    SessionConfig::new()
        .with_target_partitions(1)
        // Text stays the type that the tables have.
        .set_bool("datafusion.sql_parser.map_string_types_to_utf8view", false)
        // Identifiers are the database's: their case counts.
        .set_bool("datafusion.sql_parser.enable_ident_normalization", true)
        // A scalar subquery is a join: that is what can be maintained.
        .set_bool("datafusion.optimizer.enable_physical_uncorrelated_scalar_subquery", false)
}

/// Parses and optimises what is to be maintained.
fn context() -> SessionContext {
    let mut rules = Optimizer::new().rules;
    // Before all rules, and once more where subqueries have become joins.
    let at = rules.iter().position(|rule| rule.name() == WRONG[0]).expect("DataFusion prunes columns");
    rules.insert(at, Arc::new(HideDependencies));
    rules.insert(0, Arc::new(HideDependencies));
    let state = SessionStateBuilder::new_with_default_features().with_config(config()).with_optimizer_rules(rules);
    SessionContext::new_with_state(state.build())
}

/// DataFusion's rules that drop columns which only seem to be determined by others (see [`opaque`]). The first one also drops those that
/// nobody reads; without the second one the third panics over a key that a group names twice.
const WRONG: &[&str] =
    &["optimize_projections", "eliminate_duplicated_expr", "single_distinct_aggregation_to_group_by"];

/// Rules of DataFusion's physical optimiser that lose rows: a predicate that is moved through a projection keeps its columns' numbers.
const WRONG_IN_BATCH: &[&str] = &["FilterPushdown", "FilterPushdown(Post)"];

/// Computes in batch, without the rules that are known to give wrong answers.
fn batch_context() -> SessionContext {
    let mut logical = Optimizer::new().rules;
    logical.retain(|rule| !WRONG.contains(&rule.name()));
    logical.insert(0, Arc::new(DropRepeatedKeys));
    let mut physical = PhysicalOptimizer::new().rules;
    physical.retain(|rule| !WRONG_IN_BATCH.contains(&rule.name()));
    physical.insert(0, Arc::new(DoubtJoins));
    let state = SessionStateBuilder::new_with_default_features()
        .with_config(config())
        .with_optimizer_rules(logical)
        .with_physical_optimizer_rules(physical);
    SessionContext::new_with_state(state.build())
}

/// One query of a plan, and what becomes of its rows.
#[derive(Clone, Debug)]
struct Step {
    sql: String,
    work: Work,
    from: From,
}

#[derive(Clone, Debug)]
enum Work {
    /// It is a part of whatever reads this name.
    Inline(String),
    /// Its rows are what this name stands for from here on.
    Keep(String),
    /// Its rows fail this test.
    Test(Arc<DataTest>),
}

/// Who wrote a step's query.
#[derive(Clone, Debug)]
enum From {
    Model(Model),
    Test(Arc<DataTest>),
    /// What the tests of a relation let through.
    Gate(String),
}

/// What a plan computes, in order: each relation, the rows that fail its tests, and then the relation without those that must not go on.
fn steps(models: &[Model], tests: &[DataTest], tables: &[Table]) -> Vec<Step> {
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
    steps
}

fn gate(relation: &str, tests: &[DataTest], steps: &mut Vec<Step>) {
    let mut hold = Vec::new();
    for test in tests.iter().filter(|t| t.relation == relation) {
        let Some(predicate) = test.predicate() else { continue };
        let test = Arc::new(test.clone());
        let sql = format!("select * from \"{relation}\" where {predicate}");
        steps.push(Step { sql, work: Work::Test(test.clone()), from: From::Test(test.clone()) });
        if test.severity == Severity::Error {
            hold.push(predicate);
        }
    }
    if !hold.is_empty() {
        // Each by itself: a subquery in a condition of its own becomes an anti join.
        let held: Vec<String> = hold.iter().map(|p| format!("({p}) is not true")).collect();
        let sql = format!("select * from \"{relation}\" where {}", held.join(" and "));
        let (work, from) = (Work::Keep(relation.into()), From::Gate(relation.into()));
        steps.push(Step { sql, work, from });
    }
}

impl Step {
    fn name(&self) -> String {
        match &self.from {
            From::Model(model) => model.name.clone(),
            From::Test(test) => format!("test {}", test.name),
            From::Gate(relation) => format!("{relation}, tested"),
        }
    }

    async fn frame(&self, context: &SessionContext) -> Result<DataFrame, PlanError> {
        let frame = context.sql(&self.sql).await.map_err(|e| self.error(&e))?;
        if let Some(name) = unsteady_function(frame.logical_plan()).map_err(|e| self.error(&e))? {
            let reason = format!("{name}() gives another answer each time; a maintained view cannot follow it");
            return Err(self.refused(Refusal { word: name, reason }));
        }
        Ok(frame)
    }

    fn error(&self, error: &DataFusionError) -> PlanError {
        let reason = message(error);
        self.at(line_in(&reason), reason)
    }

    fn refused(&self, refusal: Refusal) -> PlanError {
        self.at(line_of(&self.sql, &refusal.word), refusal.reason)
    }

    fn at(&self, line: usize, reason: String) -> PlanError {
        match &self.from {
            From::Model(model) => PlanError::At { at: model.at(line).clone(), reason },
            From::Test(test) => match test.lines.get(line - 1) {
                Some(at) => PlanError::At { at: at.clone(), reason },
                None => PlanError::Test { declared: test.declared.clone(), reason },
            },
            From::Gate(relation) => PlanError::View { view: relation.clone(), reason },
        }
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

/// The line of the first `word` in the SQL, whatever its case.
fn line_of(sql: &str, word: &str) -> usize {
    let (sql, word) = (sql.to_lowercase(), word.to_lowercase());
    sql.find(&word).map_or(1, |at| sql[..at].matches('\n').count() + 1)
}

/// DataFusion's parser says "Line: 3"; other errors have no line.
fn line_in(reason: &str) -> usize {
    let after = reason.split_once("Line: ").map(|(_, rest)| rest);
    after.and_then(|r| r.split(|c: char| !c.is_ascii_digit()).next()).and_then(|d| d.parse().ok()).unwrap_or(1)
}

/// DataFusion's message without its backtrace.
fn message(error: &DataFusionError) -> String {
    error.strip_backtrace().lines().next().unwrap_or_default().to_string()
}
