//! Rules for plans that are run in batch, in place of what DataFusion 54 gets wrong.
//!
//! The invariant: they change no row. Nobody believes what a join claims of its rows: DataFusion keeps what it knows of a side of an outer
//! join for the rows in which that side is null (`EquivalenceGroup::join`): over `(select 5 as x, k from t) a full join b on a.k = b.k` it takes x for a constant, and leaves it out when it
//! sorts. A union with nothing makes no such claim. And a group names a key once, which is all that is right in `eliminate_duplicated_expr`.

use std::sync::Arc;

use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::error::Result;
use datafusion::logical_expr::logical_plan::Aggregate;
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::optimizer::optimizer::ApplyOrder;
use datafusion::optimizer::{OptimizerConfig, OptimizerRule};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::union::UnionExec;

/// Has its place before all other rules, which lose their way where a group names a key twice.
#[derive(Debug)]
pub(super) struct DropRepeatedKeys;

impl OptimizerRule for DropRepeatedKeys {
    fn name(&self) -> &str {
        "drop_repeated_keys"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::TopDown)
    }

    fn supports_rewrite(&self) -> bool {
        true
    }

    fn rewrite(&self, plan: LogicalPlan, _: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        let LogicalPlan::Aggregate(aggregate) = plan else { return Ok(Transformed::no(plan)) };
        let mut keys: Vec<Expr> = Vec::new();
        for key in &aggregate.group_expr {
            if !keys.contains(key) {
                keys.push(key.clone());
            }
        }
        if keys.len() == aggregate.group_expr.len() {
            return Ok(Transformed::no(LogicalPlan::Aggregate(aggregate)));
        }
        let once = Aggregate::try_new(aggregate.input, keys, aggregate.aggr_expr)?;
        Ok(Transformed::yes(LogicalPlan::Aggregate(once)))
    }
}

/// Has its place before all rules that believe what joins claim.
#[derive(Debug)]
pub(super) struct DoubtJoins;

impl PhysicalOptimizerRule for DoubtJoins {
    fn name(&self) -> &str {
        "doubt_joins"
    }

    fn schema_check(&self) -> bool {
        true
    }

    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let doubted = plan.transform_up(|node| {
            if !node.name().ends_with("JoinExec") {
                return Ok(Transformed::no(node));
            }
            let nothing = Arc::new(EmptyExec::new(node.schema()));
            let rows = UnionExec::try_new(vec![node, nothing])?;
            Ok(Transformed::yes(Arc::new(CoalescePartitionsExec::new(rows)) as Arc<dyn ExecutionPlan>))
        })?;
        Ok(doubted.data)
    }
}
