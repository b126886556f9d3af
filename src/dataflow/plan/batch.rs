//! A rule for plans that are run in batch: nobody believes what a join claims of its rows.
//!
//! The invariant: it changes no row. DataFusion 54 keeps what it knows of a side of an outer join for the rows in which that side is null
//! (`EquivalenceGroup::join`): over `(select 5 as x, k from t) a full join b on a.k = b.k` it takes x for a constant, and leaves it out when it
//! sorts. A union with nothing makes no such claim.

use std::sync::Arc;

use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::error::Result;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::union::UnionExec;

/// It has its place before all rules that believe such claims.
#[derive(Debug)]
pub(crate) struct DoubtJoins;

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
