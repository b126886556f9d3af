//! Planning turns the models' SQL into operators that can be maintained.
//!
//! The invariant: a plan exists only if every node of it can be maintained incrementally and every function gives the same answer each
//! time; what cannot is refused by name, with its line. DataFusion parses, resolves and optimises; the same plan run in batch is the oracle.

mod lower;

use std::fmt;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::{Schema, SchemaRef};
use datafusion::catalog::MemTable;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::datasource::empty::EmptyTable;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{Expr, LogicalPlan, Volatility};
use datafusion::prelude::{SessionConfig, SessionContext};

use self::lower::{Lowering, Refusal, Relations};
use super::graph::{Graph, KeyedValue, NodeId, NullKeys, Operator};
use crate::config::{Line, Model};

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
}

/// Models as a graph of operators.
#[derive(Clone)]
pub struct Plan {
    pub(super) graph: Graph,
    pub(super) view: NodeId,
    /// Whether the view's rows come out under a key; otherwise as a multiset.
    pub(super) keyed: bool,
    view_schema: SchemaRef,
    models: Vec<Model>,
    view_name: String,
    tables: Vec<Table>,
    shown: String,
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan").field("graph", &self.graph).finish_non_exhaustive()
    }
}

/// The optimised logical plan of the view.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl Plan {
    /// Plans `view` over `tables` and the models before it; its rows come out by the column `index_key`.
    pub fn new(models: &[Model], view: &str, tables: &[Table], index_key: &str) -> Result<Plan, PlanError> {
        futures::executor::block_on(Self::plan(models, view, tables, Some(index_key)))
    }

    /// Plans a view without a key: its rows come out as the diffs of a multiset.
    pub fn query(models: &[Model], view: &str, tables: &[Table]) -> Result<Plan, PlanError> {
        futures::executor::block_on(Self::plan(models, view, tables, None))
    }

    async fn plan(models: &[Model], view: &str, tables: &[Table], index_key: Option<&str>) -> Result<Plan, PlanError> {
        let refused = |reason: String| PlanError::View { view: view.into(), reason };
        let context = context();
        let mut graph = Graph::default();
        let mut relations = Relations::new();
        for (n, table) in tables.iter().enumerate() {
            let provider = Arc::new(EmptyTable::new(table.columns.clone()));
            context.register_table(table.name(), provider).map_err(|e| refused(message(&e)))?;
            let name: Arc<str> = format!("{}.{}", table.schema, table.table).into();
            let node = graph.add(Operator::Source { table: n }, table.columns.clone(), &name);
            relations.insert(table.name(), node);
        }
        register_models(&context, models, view).await?;
        let plan = context.table(view).await.map_err(|e| refused(message(&e)))?.into_unoptimized_plan();
        let plan = context.state().optimize(&plan).map_err(|e| refused(message(&e)))?;
        let view_schema: SchemaRef = Arc::new(Schema::new(plan.schema().fields().clone()));
        let props = context.state().execution_props().clone();
        let mut lowering =
            Lowering { graph: &mut graph, relations: &relations, props, model: format!("{view}.sql").into() };
        let mut node = lowering.lower(&plan).map_err(|refusal| located(models, view, refusal))?;
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
            view_schema,
            models: models.to_vec(),
            view_name: view.into(),
            tables: tables.to_vec(),
            shown: plan.display_indent().to_string(),
        })
    }

    /// The view's columns.
    pub fn view_schema(&self) -> &SchemaRef {
        &self.view_schema
    }

    /// For each table, which of its columns the models read: a flag for each; none of a table that no model reads.
    pub fn columns_read(&self) -> Vec<Vec<bool>> {
        let mut read: Vec<Vec<bool>> = self.tables.iter().map(|t| vec![false; t.columns.fields().len()]).collect();
        for id in self.graph.needed([self.view]) {
            for input in self.graph.inputs(id) {
                if let Operator::Source { table } = self.graph.nodes[input].operator {
                    self.graph.nodes[id].operator.marks(&mut read[table]);
                }
            }
        }
        read
    }

    /// The operators that maintain the view, inputs first, as text.
    pub fn operators(&self) -> String {
        let mut out = String::new();
        for id in self.graph.needed([self.view]) {
            let node = &self.graph.nodes[id];
            let inputs: Vec<String> = self.graph.inputs(id).iter().map(|i| format!("#{i}")).collect();
            out.push_str(&format!(
                "#{id} {}{}{}\n",
                node.describe(),
                if inputs.is_empty() { "" } else { " <- " },
                inputs.join(", ")
            ));
        }
        out
    }

    /// The view computed from scratch over whole tables, by DataFusion's own execution: what the maintained one must equal.
    pub async fn batch_view(&self, tables: Vec<RecordBatch>) -> Result<RecordBatch, DataFusionError> {
        let context = context();
        for (table, batch) in self.tables.iter().zip(tables) {
            let provider = MemTable::try_new(table.columns.clone(), vec![vec![batch]])?;
            context.register_table(table.name(), Arc::new(provider))?;
        }
        register_models(&context, &self.models, &self.view_name)
            .await
            .map_err(|e| DataFusionError::Plan(e.to_string()))?;
        let batches = context.table(self.view_name.as_str()).await?.collect().await?;
        Ok(concat_batches(&self.view_schema, &batches)?)
    }
}

/// A refusal with the model and line that it is about: the first model that has the word, the view before the others.
fn located(models: &[Model], view: &str, refusal: Refusal) -> PlanError {
    let word = refusal.word.to_lowercase();
    let mut candidates: Vec<&Model> = models.iter().filter(|m| m.name == view).collect();
    candidates.extend(models.iter().filter(|m| m.name != view));
    let found = candidates.iter().find(|m| m.sql.to_lowercase().contains(&word)).or(candidates.first());
    match found {
        Some(model) => {
            let at = model.at(line_of(&model.sql, &refusal.word)).clone();
            PlanError::At { at, reason: refusal.reason }
        }
        None => PlanError::View { view: view.into(), reason: refusal.reason },
    }
}

fn context() -> SessionContext {
    let config = SessionConfig::new()
        .with_target_partitions(1)
        // Text stays the type that the tables have.
        .set_bool("datafusion.sql_parser.map_string_types_to_utf8view", false)
        // Identifiers are the database's: their case counts.
        .set_bool("datafusion.sql_parser.enable_ident_normalization", true)
        // A scalar subquery is a join: that is what can be maintained.
        .set_bool("datafusion.optimizer.enable_physical_uncorrelated_scalar_subquery", false);
    SessionContext::new_with_config(config)
}

/// Registers the models that come before the view, and the view, each as a view over the ones before it.
async fn register_models(context: &SessionContext, models: &[Model], view: &str) -> Result<(), PlanError> {
    for model in models {
        let at = |reason: String| PlanError::At { at: model.at(line_in(&reason)).clone(), reason };
        let frame = context.sql(&model.sql).await.map_err(|e| at(message(&e)))?;
        check_functions(model, frame.logical_plan())?;
        context.register_table(model.name.as_str(), frame.into_view()).map_err(|e| at(message(&e)))?;
        if model.name == view {
            break;
        }
    }
    Ok(())
}

/// Refuses functions whose answer depends on more than their arguments, before the optimiser turns them into constants.
fn check_functions(model: &Model, plan: &LogicalPlan) -> Result<(), PlanError> {
    let mut found = None;
    let walked = plan.apply_with_subqueries(|node| {
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
    });
    let at = |line, reason| PlanError::At { at: model.at(line).clone(), reason };
    if let Err(e) = walked {
        return Err(at(1, message(&e)));
    }
    match found {
        Some(name) => {
            let reason = format!("{name}() gives another answer each time; a maintained view cannot follow it");
            Err(at(line_of(&model.sql, &name), reason))
        }
        None => Ok(()),
    }
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
