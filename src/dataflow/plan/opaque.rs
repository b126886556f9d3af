//! An opaque node hides what DataFusion takes to determine what among a group's columns.
//!
//! The invariant: it changes no row. DataFusion 54 loses track of the columns that a group's key stands in when a projection computes another
//! one before it, and then drops columns of `group by` and `order by` that were not determined at all: over
//! `select upper(x) as label, g from (select g, max(x) as x from t group by g)` it groups by `label, g` as by `label`. Without the claim it
//! keeps them. The node is gone once the plan is lowered.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchemaRef, FunctionalDependencies};
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, Extension, LogicalPlan, UserDefinedLogicalNodeCore};
use datafusion::optimizer::{OptimizerConfig, OptimizerRule};

#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Opaque {
    pub input: LogicalPlan,
    schema: DFSchemaRef,
}

impl Opaque {
    fn over(input: LogicalPlan) -> Result<Opaque> {
        let schema = input.schema().as_ref().clone().with_functional_dependencies(FunctionalDependencies::empty())?;
        Ok(Opaque { schema: Arc::new(schema), input })
    }

    /// The node under an extension, if it is one of these.
    pub fn of(extension: &Extension) -> Option<&Opaque> {
        extension.node.as_any().downcast_ref()
    }
}

impl PartialOrd for Opaque {
    fn partial_cmp(&self, other: &Opaque) -> Option<Ordering> {
        self.input.partial_cmp(&other.input)
    }
}

impl UserDefinedLogicalNodeCore for Opaque {
    fn name(&self) -> &str {
        "Opaque"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        vec![]
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Opaque")
    }

    fn with_exprs_and_inputs(&self, _: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Opaque> {
        Opaque::over(inputs.swap_remove(0))
    }

    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        Some(vec![output_columns.to_vec()])
    }
}

/// Puts an opaque node over every aggregate. It has its place right before the rule that believes in determined columns.
#[derive(Debug)]
pub(super) struct HideDependencies;

impl OptimizerRule for HideDependencies {
    fn name(&self) -> &str {
        "hide_dependencies"
    }

    fn supports_rewrite(&self) -> bool {
        true
    }

    fn rewrite(&self, plan: LogicalPlan, _: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        plan.transform_up(|node| {
            Ok(match node {
                LogicalPlan::Aggregate(_) => {
                    let node = Arc::new(Opaque::over(node)?);
                    Transformed::yes(LogicalPlan::Extension(Extension { node }))
                }
                // One is enough, however often the rules run.
                LogicalPlan::Extension(outer) => match Opaque::of(&outer).map(|o| &o.input) {
                    Some(inner @ LogicalPlan::Extension(e)) if Opaque::of(e).is_some() => {
                        Transformed::no(inner.clone())
                    }
                    _ => Transformed::no(LogicalPlan::Extension(outer)),
                },
                // What its input determines has changed.
                other => Transformed::no(other.recompute_schema()?),
            })
        })
    }
}
