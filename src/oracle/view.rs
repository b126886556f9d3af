//! One query twice: maintained by the engine, and computed from scratch by DataFusion.
//!
//! The invariant: the two share nothing but the SQL and the tables. DataFusion computes the query as it is written, without the
//! optimiser that the engine's plans go through ([`plain_session`]), so that what is wrong there shows.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::{Schema, SchemaRef};
use arrow_row::{RowConverter, SortField};
use datafusion::catalog::MemTable;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::expr::NullTreatment;
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::physical_plan::collect;
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::FutureExt;

use super::database::Database;
use crate::config::{Line, Materialized, Model};
use crate::dataflow::{Engine, FailedRow, Handle, Plan, PlanError, plain_session};
use crate::decode::Decoded;
use crate::time::Epoch;

/// What a maintained view is called.
const VIEW: &str = "v";

/// An epoch that takes longer has stalled, and not for a busy machine: tables here have some dozens of rows.
const PATIENCE: Duration = Duration::from_secs(120);

/// Why a maintained view can no longer be compared.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    #[error("the engine would not start: {0}")]
    Start(String),
    #[error("the dataflow has stopped")]
    Stopped,
    #[error("no answer for epoch {0} within {PATIENCE:?}")]
    Stalled(u64),
    #[error("epoch {found} came where epoch {expected} was due")]
    Order { expected: u64, found: u64 },
    #[error("rows that failed where no expression can fail: {0}")]
    Failed(String),
    #[error("a row of the view, or one that fails, is there {0} times")]
    Negative(isize),
}

/// A view under maintenance, and its rows as they add up from what the engine emits.
pub struct Maintained {
    handle: Handle,
    schema: SchemaRef,
    /// How many of the database's tables it knows.
    tables: usize,
    rows: BTreeMap<Box<[u8]>, isize>,
    /// Rows that fail now; `None` where none may.
    failed: Option<BTreeMap<FailedRow, isize>>,
    sent: u64,
    received: u64,
}

impl Maintained {
    /// Plans the query over models that are maintained for themselves; an error is the engine's refusal.
    pub fn plan(models: &[Named], sql: &str, database: &Database) -> std::result::Result<Plan, PlanError> {
        let before = models.iter().map(|m| model(&m.name, &m.sql, Materialized::Table));
        let models: Vec<Model> = before.chain([model(VIEW, sql, Materialized::View)]).collect();
        Plan::query(&models, VIEW, &database.plan_tables())
    }

    /// Starts the view with so many workers; rows of it may fail, or that is a failure of the view.
    pub fn start(
        plan: Plan,
        database: &Database,
        workers: usize,
        may_fail: bool,
    ) -> std::result::Result<Maintained, Broken> {
        let row_types = database.row_types();
        let (schema, tables) = (plan.view_schema().clone(), row_types.len());
        let handle = Engine::start(plan, row_types, workers).map_err(Broken::Start)?;
        let failed = may_fail.then(BTreeMap::new);
        Ok(Maintained { handle, schema, tables, rows: BTreeMap::new(), failed, sent: 0, received: 0 })
    }

    /// Sends an epoch.
    pub fn send(&mut self, events: &[Decoded]) -> std::result::Result<(), Broken> {
        // A table that was created later is none of the view's.
        let events = events.iter().filter(|d| d.source < self.tables).cloned().collect();
        self.sent += 1;
        self.handle.send(Epoch(self.sent), events).map_err(|_| Broken::Stopped)
    }

    /// Waits for the next epoch and applies what it did.
    pub fn receive(&mut self) -> std::result::Result<(), Broken> {
        self.received += 1;
        let expected = self.received;
        let output = self.handle.recv(PATIENCE).map_err(|_| Broken::Stopped)?.ok_or(Broken::Stalled(expected))?;
        if output.epoch != Epoch(expected) {
            return Err(Broken::Order { expected, found: output.epoch.0 });
        }
        for row in output.failed_rows {
            let Some(failed) = &mut self.failed else { return Err(Broken::Failed(row.reason)) };
            *failed.entry(FailedRow { diff: 0, ..row }).or_default() += row.diff;
        }
        for (row, diff) in output.diffs {
            let count = self.rows.entry(row.as_ref().into()).or_default();
            *count += diff;
            if *count == 0 {
                self.rows.remove(row.as_ref());
            }
        }
        // Within an epoch a count may pass through anything; at its end it may not.
        match self.rows.values().chain(self.failed.iter().flat_map(BTreeMap::values)).find(|count| **count < 0) {
            Some(count) => Err(Broken::Negative(*count)),
            None => Ok(()),
        }
    }

    /// The view's rows, each as often as it is there.
    pub fn answer(&self) -> Result<RecordBatch> {
        let fields = self.schema.fields().iter().map(|f| SortField::new(f.data_type().clone())).collect();
        let converter = RowConverter::new(fields)?;
        let parser = converter.parser();
        let rows = self
            .rows
            .iter()
            .flat_map(|(row, count)| std::iter::repeat_n(row, count.unsigned_abs()))
            .map(|r| parser.parse(r));
        let columns: Vec<ArrayRef> = converter.convert_rows(rows)?;
        let fields: Vec<_> = self.schema.fields().iter().map(|f| f.as_ref().clone().with_nullable(true)).collect();
        Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
    }
}

/// A query by a name that others use.
#[derive(Clone, Debug)]
pub struct Named {
    pub name: String,
    pub sql: String,
}

fn model(name: &str, sql: &str, materialized: Materialized) -> Model {
    let path: Arc<Path> = Path::new(name).with_extension("sql").into();
    let lines = (1..).zip(sql.split('\n')).map(|(number, _)| Line { path: path.clone(), number }).collect();
    Model { name: name.into(), path: path.to_path_buf(), sql: sql.into(), lines, materialized }
}

/// The same query in batch: planned once, run over the tables as they stand.
pub struct Batch {
    context: SessionContext,
    plan: LogicalPlan,
    tables: Vec<Arc<MemTable>>,
}

impl Batch {
    pub async fn plan(models: &[Named], sql: &str, database: &Database) -> Result<Batch> {
        without_panic(async {
            let (context, tables) = session(database)?;
            for model in models {
                let view = context.sql(&model.sql).await?.into_view();
                context.register_table(model.name.as_str(), view)?;
            }
            let plan = context.sql(sql).await?.into_optimized_plan()?;
            Ok(Batch { context, plan, tables })
        })
        .await
    }

    /// The answer over the tables as they stand.
    pub async fn answer(&self, database: &Database) -> Result<RecordBatch> {
        without_panic(async {
            for (n, table) in self.tables.iter().enumerate() {
                *table.batches[0].write().await = vec![database.batch(n)?];
            }
            let state = self.context.state();
            let physical = state.query_planner().create_physical_plan(&self.plan, &state).await?;
            let schema = physical.schema();
            Ok(concat_batches(&schema, &collect(physical, self.context.task_ctx()).await?)?)
        })
        .await
    }

    /// What the query is made of: nodes, joins by kind, aggregate and window functions.
    pub fn nodes(&self) -> Vec<String> {
        let mut found = Vec::new();
        let walked = self.plan.apply_with_subqueries(|node| {
            match node {
                LogicalPlan::Join(join) => found.push(format!("{} join", join.join_type)),
                LogicalPlan::Distinct(_) => found.push("Distinct".into()),
                node => found.push(node.display().to_string().split([':', ' ', '(']).next().unwrap_or_default().into()),
            }
            node.apply_expressions(|expr| {
                expr.apply(|e| {
                    match e {
                        Expr::AggregateFunction(call) => found.push(format!("{}()", call.func.name())),
                        Expr::WindowFunction(call) => {
                            found.push(format!("{}() over", call.fun.name()));
                            if call.params.null_treatment == Some(NullTreatment::IgnoreNulls) {
                                found.push("ignore nulls".into());
                            }
                            if !call.params.window_frame.is_ever_expanding() {
                                found.push("sliding frame".into());
                            }
                        }
                        Expr::Case(_) => found.push("case".into()),
                        _ => {}
                    }
                    Ok(TreeNodeRecursion::Continue)
                })
            })
        });
        debug_assert!(walked.is_ok());
        found.sort();
        found.dedup();
        found
    }
}

/// Where DataFusion panics it has no answer, which is no failure of the engine.
async fn without_panic<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let done = AssertUnwindSafe(work).catch_unwind().await;
    done.unwrap_or_else(|_| Err(DataFusionError::Execution("DataFusion panicked".into())))
}

/// A session that sees the database's tables as they stand.
pub fn session(database: &Database) -> Result<(SessionContext, Vec<Arc<MemTable>>)> {
    let config = SessionConfig::new()
        .with_target_partitions(1)
        .set_bool("datafusion.sql_parser.map_string_types_to_utf8view", false);
    let context = plain_session(config);
    let mut tables = Vec::new();
    for (n, def) in database.defs().enumerate() {
        let table = Arc::new(MemTable::try_new(database.schema(n).clone(), vec![vec![database.batch(n)?]])?);
        context.register_table(def.name.as_str(), table.clone())?;
        tables.push(table);
    }
    Ok((context, tables))
}
