//! Planning turns the models' SQL into operators that can be maintained.
//!
//! The invariant: a plan exists only if every node of it can be maintained incrementally and every function gives the same answer each
//! time; what cannot is refused by name, with its line. DataFusion parses, resolves and optimises; the same plan run in batch is the oracle.

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
use datafusion::physical_expr::{PhysicalExpr, create_physical_expr};
use datafusion::prelude::{SessionConfig, SessionContext};

use crate::config::Model;

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
    #[error("{model}.sql, line {line}: {reason}")]
    At { model: String, line: usize, reason: String },
    #[error("the view {view}: {reason}")]
    View { view: String, reason: String },
}

/// One step on rows of one table.
#[derive(Clone, Debug)]
pub(super) enum Stage {
    Project(Vec<Arc<dyn PhysicalExpr>>, SchemaRef),
    Filter(Arc<dyn PhysicalExpr>),
}

/// The maintained graph: joins and aggregates become further variants here, each an operator with a file of its own.
#[derive(Clone, Debug)]
pub(super) enum Node {
    /// Rows of a table, stage by stage.
    Linear { table: usize, stages: Vec<Stage> },
}

#[derive(Clone)]
pub struct Plan {
    pub(super) node: Node,
    pub(super) view_schema: SchemaRef,
    pub(super) key_column: usize,
    models: Vec<Model>,
    view: String,
    tables: Vec<Table>,
    shown: String,
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan").field("node", &self.node).finish_non_exhaustive()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl Plan {
    /// Plans `view` over `tables`, which it names by dbt's `source` and `ref`.
    pub fn new(models: &[Model], view: &str, tables: &[Table], index_key: &str) -> Result<Plan, PlanError> {
        futures::executor::block_on(Self::plan(models, view, tables, index_key))
    }

    async fn plan(models: &[Model], view: &str, tables: &[Table], index_key: &str) -> Result<Plan, PlanError> {
        let refused = |reason: String| PlanError::View { view: view.into(), reason };
        let context = context();
        for table in tables {
            let provider = Arc::new(EmptyTable::new(table.columns.clone()));
            context.register_table(table.name(), provider).map_err(|e| refused(message(&e)))?;
        }
        register_models(&context, models, view, tables).await?;
        let plan = context.table(view).await.map_err(|e| refused(message(&e)))?.into_unoptimized_plan();
        let plan = context.state().optimize(&plan).map_err(|e| refused(message(&e)))?;
        let view_schema: SchemaRef = Arc::new(Schema::new(plan.schema().fields().clone()));
        let node = lower(&context, &plan, tables).map_err(|(node, reason)| {
            let model = models.iter().find(|m| m.name == view);
            let line = model.map_or(1, |m| line_of(&m.sql, &node));
            PlanError::At { model: view.into(), line, reason }
        })?;
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
        let shown = plan.display_indent().to_string();
        Ok(Plan {
            node,
            view_schema,
            key_column,
            models: models.to_vec(),
            view: view.into(),
            tables: tables.to_vec(),
            shown,
        })
    }

    /// The view's columns.
    pub fn view_schema(&self) -> &SchemaRef {
        &self.view_schema
    }

    /// The view computed from scratch over whole tables, by DataFusion's own execution: what the maintained one must equal.
    pub async fn batch_view(&self, tables: Vec<RecordBatch>) -> Result<RecordBatch, DataFusionError> {
        let context = context();
        for (table, batch) in self.tables.iter().zip(tables) {
            let provider = MemTable::try_new(table.columns.clone(), vec![vec![batch]])?;
            context.register_table(table.name(), Arc::new(provider))?;
        }
        register_models(&context, &self.models, &self.view, &self.tables)
            .await
            .map_err(|e| DataFusionError::Plan(e.to_string()))?;
        let batches = context.table(self.view.as_str()).await?.collect().await?;
        Ok(concat_batches(&self.view_schema, &batches)?)
    }
}

fn context() -> SessionContext {
    let config = SessionConfig::new()
        .with_target_partitions(1)
        // Text stays the type that the tables have.
        .set_bool("datafusion.sql_parser.map_string_types_to_utf8view", false)
        // Identifiers are the database's: their case counts.
        .set_bool("datafusion.sql_parser.enable_ident_normalization", true);
    SessionContext::new_with_config(config)
}

/// Registers the models that come before the view, and the view, each as a view over the ones before it.
async fn register_models(
    context: &SessionContext,
    models: &[Model],
    view: &str,
    tables: &[Table],
) -> Result<(), PlanError> {
    for model in models {
        let sql = resolve(model, tables, models)?;
        let at = |reason: String| PlanError::At { model: model.name.clone(), line: line_in(&reason), reason };
        let frame = context.sql(&sql).await.map_err(|e| at(message(&e)))?;
        check_functions(model, frame.logical_plan())?;
        context.register_table(model.name.as_str(), frame.into_view()).map_err(|e| at(message(&e)))?;
        if model.name == view {
            break;
        }
    }
    Ok(())
}

/// Replaces dbt's `{{ source('a', 'b') }}` and `{{ ref('c') }}` by names; line numbers stay what they are.
fn resolve(model: &Model, tables: &[Table], models: &[Model]) -> Result<String, PlanError> {
    let mut out = String::new();
    let mut rest = model.sql.as_str();
    while let Some(start) = rest.find("{{") {
        let line = model.sql[..model.sql.len() - rest.len() + start].lines().count().max(1);
        let at = |reason: String| PlanError::At { model: model.name.clone(), line, reason };
        out.push_str(&rest[..start]);
        let Some(end) = rest[start..].find("}}") else { return Err(at("a {{ is not closed".into())) };
        let call = rest[start + 2..start + end].trim();
        let (name, arguments) = call
            .strip_suffix(')')
            .and_then(|c| c.split_once('('))
            .ok_or_else(|| at(format!("{{{{ {call} }}}} is neither source(...) nor ref(...)")))?;
        let arguments: Vec<&str> = arguments.split(',').map(|a| a.trim().trim_matches(['\'', '"'])).collect();
        match (name.trim(), arguments.as_slice()) {
            ("source", [schema, table]) => match tables.iter().find(|t| t.schema == *schema && t.table == *table) {
                Some(table) => out.push_str(&format!("\"{}\"", table.name())),
                None => return Err(at(format!("there is no [[source]] with schema {schema:?} and table {table:?}"))),
            },
            ("ref", [name]) => match models.iter().take_while(|m| m.name != model.name).find(|m| m.name == *name) {
                Some(_) => out.push_str(&format!("\"{name}\"")),
                None => return Err(at(format!("there is no model {name}.sql before {}.sql", model.name))),
            },
            _ => return Err(at(format!("{{{{ {call} }}}} is neither source('schema', 'table') nor ref('model')"))),
        }
        rest = &rest[start + end + 2..];
    }
    out.push_str(rest);
    Ok(out.trim_end().trim_end_matches(';').to_string())
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
    let at = |line, reason| PlanError::At { model: model.name.clone(), line, reason };
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

/// Lowers a plan; the error is the name to look for in the SQL, and the reason.
fn lower(context: &SessionContext, plan: &LogicalPlan, tables: &[Table]) -> Result<Node, (String, String)> {
    let no = |word: &str, reason: String| Err((word.to_string(), reason));
    let physical = |expr: &Expr, input: &LogicalPlan| {
        create_physical_expr(expr, input.schema(), context.state().execution_props())
            .map_err(|e| (expr.schema_name().to_string(), message(&e)))
    };
    match plan {
        LogicalPlan::TableScan(scan) => {
            let name = scan.table_name.table();
            let Some(table) = tables.iter().position(|t| t.name() == name) else {
                return no(name, format!("there is no table {name}"));
            };
            if scan.fetch.is_some() {
                return no("limit", "LIMIT cannot be maintained".into());
            }
            let mut stages = Vec::new();
            if let Some(columns) = &scan.projection {
                let exprs = columns
                    .iter()
                    .map(|i| {
                        let name = tables[table].columns.field(*i).name();
                        Arc::new(datafusion::physical_expr::expressions::Column::new(name, *i)) as Arc<dyn PhysicalExpr>
                    })
                    .collect();
                stages.push(Stage::Project(exprs, Arc::new(Schema::new(scan.projected_schema.fields().clone()))));
            }
            for filter in &scan.filters {
                stages.push(Stage::Filter(physical(filter, plan)?));
            }
            Ok(Node::Linear { table, stages })
        }
        LogicalPlan::SubqueryAlias(alias) => lower(context, &alias.input, tables),
        LogicalPlan::Filter(filter) => {
            let Node::Linear { table, mut stages } = lower(context, &filter.input, tables)?;
            stages.push(Stage::Filter(physical(&filter.predicate, &filter.input)?));
            Ok(Node::Linear { table, stages })
        }
        LogicalPlan::Projection(projection) => {
            let Node::Linear { table, mut stages } = lower(context, &projection.input, tables)?;
            let exprs = projection.expr.iter().map(|e| physical(e, &projection.input)).collect::<Result<_, _>>()?;
            stages.push(Stage::Project(exprs, Arc::new(Schema::new(plan.schema().fields().clone()))));
            Ok(Node::Linear { table, stages })
        }
        other => {
            let (word, name) = match other {
                LogicalPlan::Join(_) => ("join", "JOIN"),
                LogicalPlan::Aggregate(_) => ("group", "an aggregate (GROUP BY, count, sum, ...)"),
                LogicalPlan::Window(_) => ("over", "a window function (OVER)"),
                LogicalPlan::Sort(_) => ("order by", "ORDER BY"),
                LogicalPlan::Limit(_) => ("limit", "LIMIT"),
                LogicalPlan::Distinct(_) => ("distinct", "DISTINCT"),
                LogicalPlan::Union(_) => ("union", "UNION"),
                LogicalPlan::Unnest(_) => ("unnest", "UNNEST"),
                LogicalPlan::EmptyRelation(_) => ("select", "a SELECT without a table, or one that can have no rows"),
                LogicalPlan::Values(_) => ("values", "VALUES"),
                _ => ("select", "this kind of query"),
            };
            no(word, format!("{name} cannot be maintained yet: a view is a projection and a filter of one table"))
        }
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
