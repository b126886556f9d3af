//! Building plans one step after the other, and goes on after a mistake.
//!
//! The invariant: every step is looked at once. One that reads what is not there because of another's mistake is parsed and then left alone,
//! so that each mistake is told once; all others are planned as if there were no mistake anywhere.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::TableReference;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::datasource::empty::EmptyTable;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{Expr, LogicalPlan, Volatility};
use datafusion::prelude::{DataFrame, SessionContext};
use datafusion::sql::sqlparser::ast;

use super::context::context;
use super::lower::{Lowering, Refusal, Relations};
use super::message::{self, leaves, message};
use super::nesting;
use super::outline::{Outline, outline};
use super::place::{Change, blamed, forget};
use super::query::{self, Fault, Query};
use super::steps::{From, Step, Work};
use super::subquery;
use super::{Mistake, Plan, PlanError, Shown, Table, TestOutput};
use crate::config::{DataTest, Severity};
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
        match query.relations(&state) {
            Ok(read) if read.iter().any(|name| self.absent.contains(name)) => {
                match &step.from {
                    From::Test(test) if !test.columns().is_empty() => self.untestable(test).await,
                    _ => self.named(at, &query, &read).await,
                }
                self.outlined(at, &query).await;
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
                let told = self.mistakes.len();
                self.blame(at, &query, &trouble).await;
                if let Trouble::Query(e) = &trouble {
                    self.further(at, &query, e).await;
                }
                self.outlined(at, &query).await;
                self.forget_misnamed(at, told);
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

    /// Tells of a test that cannot be planned which of its columns are not there.
    async fn untestable(&mut self, test: &DataTest) {
        for (relation, column) in test.columns() {
            let has = self.outline_of(relation).await.filter(|has| !has.iter().any(|name| name == column));
            if let Some(has) = has {
                let reason = format!("{relation} has no column {column}; it has {}", has.join(", "));
                self.mistakes.push(Mistake::Test { declared: test.declared.clone(), reason });
            }
        }
    }

    /// Tells of names that are nowhere in a step that cannot be planned: its relations have the columns of their outlines, of no type.
    async fn named(&mut self, at: usize, query: &Query, read: &[String]) {
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

    /// Keeps the names of the columns of a step that cannot be planned.
    async fn outlined(&mut self, at: usize, query: &Query) {
        let step = &self.steps[at];
        let Some(name) = step.defines() else { return };
        let mut read = HashMap::new();
        for relation in query.relations(&self.context.state()).unwrap_or_default() {
            if let Some(columns) = self.outline_of(&relation).await {
                read.insert(relation, columns);
            }
        }
        if let Some(columns) = outline(&query.ast, &|relation| read.get(relation).cloned()) {
            self.outlines.insert(name.into(), columns);
        }
    }

    /// Knows nothing of a step's columns any more when one of them has a name that is itself a mistake: nobody can say what it was to be.
    fn forget_misnamed(&mut self, at: usize, told: usize) {
        let wrong: Vec<String> = self.mistakes[told..].iter().filter_map(Mistake::misnamed).collect();
        let Some(name) = self.steps[at].defines() else { return };
        if self.outlines.get(name).is_some_and(|columns| columns.iter().any(|column| wrong.contains(column))) {
            self.outlines.remove(name);
        }
    }

    async fn outline_of(&self, relation: &str) -> Option<Outline> {
        if self.absent.contains(relation) {
            return self.outlines.get(relation).cloned();
        }
        let table = self.context.table_provider(TableReference::bare(relation)).await.ok()?;
        Some(table.schema().fields().iter().map(|f| f.name().clone()).collect())
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

    /// Tells what is wrong with a step, at the model that it is wrong in: that may be one that is a part of the query.
    async fn blame(&mut self, at: usize, query: &Query, trouble: &Trouble) {
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
    async fn further(&mut self, at: usize, query: &Query, error: &DataFusionError) {
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

/// How far a query is followed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Planned,
    Optimised,
    Lowered,
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
