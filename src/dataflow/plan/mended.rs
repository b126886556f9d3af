//! Rules of DataFusion 54 without the cases in which they change answers; what is maintained and what is computed in batch both use them.
//!
//! The invariant: a mended rule does what its original does, or leaves a node as it is, or does it right. Each case has a query in `tests/sql`.
//!
//! * `extract_equijoin_predicate` makes a key of `is not distinct from`, for which nulls are equal in the whole join, and later of an equality
//!   that stands beside it, for which they are not.
//! * `eliminate_cross_join` puts joins together that differ in that, and makes keys of the conditions above them.
//! * `optimize_unions` moves a projection into a union below it, under the names of the first input.
//! * `push_down_filter` takes `x = 1 and 1 = x` for two values of x, and of `x >= 1 and 1 < x` drops the second.
//! * `push_down_filter` moves a condition without columns below an aggregate without keys, which has a row all the same; and holds a condition on
//!   the left side of `not in` against the right side too, where it drops the nulls that make the answer unknown.
//! * `propagate_empty_relation` looks for a union's columns in the one input that is left, under the names of the first one.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchemaRef, NullEquality};
use datafusion::error::Result;
use datafusion::logical_expr::expr::BinaryExpr;
use datafusion::logical_expr::logical_plan::{Filter, Projection};
use datafusion::logical_expr::utils::{conjunction, split_conjunction_owned};
use datafusion::logical_expr::{Distinct, Expr, Join, JoinType, LogicalPlan, Union};
use datafusion::optimizer::optimizer::ApplyOrder;
use datafusion::optimizer::{OptimizerConfig, OptimizerRule};

type Rule = Arc<dyn OptimizerRule + Send + Sync>;

/// Looks at a node before the rule does.
type Mend = fn(LogicalPlan) -> Result<Look>;

enum Look {
    /// The rule may have it.
    Let(LogicalPlan),
    /// This is what becomes of it.
    Done(Transformed<LogicalPlan>),
}

const MENDS: [(&str, Mend); 5] = [
    ("optimize_unions", unions),
    ("extract_equijoin_predicate", extract),
    ("eliminate_cross_join", flatten),
    ("push_down_filter", push_down),
    ("propagate_empty_relation", propagate),
];

/// The rules, each mended where it has to be.
pub(super) fn mended(rules: Vec<Rule>) -> Vec<Rule> {
    let known = MENDS.iter().all(|(name, _)| rules.iter().any(|rule| rule.name() == *name));
    assert!(known, "DataFusion has other rules than those that are mended");
    let mend = |rule: Rule| match MENDS.iter().find(|(name, _)| *name == rule.name()) {
        Some((_, mend)) => Arc::new(Mended { rule, mend: *mend }),
        None => rule,
    };
    rules.into_iter().map(mend).collect()
}

#[derive(Debug)]
struct Mended {
    rule: Rule,
    mend: Mend,
}

impl OptimizerRule for Mended {
    fn name(&self) -> &str {
        self.rule.name()
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        self.rule.apply_order()
    }

    fn supports_rewrite(&self) -> bool {
        true
    }

    fn rewrite(&self, plan: LogicalPlan, config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        match (self.mend)(plan)? {
            Look::Let(plan) => self.rule.rewrite(plan, config),
            Look::Done(done) => Ok(done),
        }
    }
}

fn leave(plan: LogicalPlan) -> Look {
    Look::Done(Transformed::no(plan))
}

/// What else such a join asks of a pair stays a condition.
fn extract(plan: LogicalPlan) -> Result<Look> {
    Ok(match &plan {
        LogicalPlan::Join(join) if join.null_equality == NullEquality::NullEqualsNull => leave(plan),
        _ => Look::Let(plan),
    })
}

fn flatten(plan: LogicalPlan) -> Result<Look> {
    let is_inner = |plan: &LogicalPlan| matches!(plan, LogicalPlan::Join(j) if j.join_type == JoinType::Inner);
    let apart = plan.transform_down(|node| {
        Ok(match node {
            LogicalPlan::Filter(filter) if nulls_meet(&filter.input) => {
                let filter = Filter::try_new(filter.predicate, fenced(filter.input))?;
                Transformed::yes(LogicalPlan::Filter(filter))
            }
            LogicalPlan::Join(join) if join.join_type == JoinType::Inner => {
                let own = join.null_equality == NullEquality::NullEqualsNull;
                let fence = |side: Arc<LogicalPlan>| match is_inner(&side) && (own || nulls_meet(&side)) {
                    true => fenced(side),
                    false => side,
                };
                let (left, right) = (fence(join.left.clone()), fence(join.right.clone()));
                Transformed::yes(LogicalPlan::Join(Join { left, right, ..join }))
            }
            other => Transformed::no(other),
        })
    })?;
    Ok(Look::Let(apart.data))
}

/// Whether this is a join whose keys are equal where both are null.
fn nulls_meet(plan: &LogicalPlan) -> bool {
    matches!(plan, LogicalPlan::Join(join)
        if join.join_type == JoinType::Inner && join.null_equality == NullEquality::NullEqualsNull)
}

/// A projection of all columns, which the rule does not look through.
fn fenced(plan: Arc<LogicalPlan>) -> Arc<LogicalPlan> {
    let schema = plan.schema().clone();
    Arc::new(LogicalPlan::Projection(Projection::new_from_schema(plan, schema)))
}

fn unions(plan: LogicalPlan) -> Result<Look> {
    let names = |schema: &DFSchemaRef| schema.iter().map(|(q, f)| (q.cloned(), f.name().clone())).collect::<Vec<_>>();
    let is_mixed = |input: &Arc<LogicalPlan>| {
        let LogicalPlan::Projection(projection) = &**input else { return false };
        let LogicalPlan::Union(union) = &*projection.input else { return false };
        union.inputs.iter().any(|input| names(input.schema()) != names(&union.schema))
    };
    let inputs = match &plan {
        LogicalPlan::Union(union) => &union.inputs,
        LogicalPlan::Distinct(Distinct::All(input)) => match &**input {
            LogicalPlan::Union(union) => &union.inputs,
            _ => return Ok(Look::Let(plan)),
        },
        _ => return Ok(Look::Let(plan)),
    };
    Ok(if inputs.iter().any(is_mixed) { leave(plan) } else { Look::Let(plan) })
}

/// Comparisons of a column with a literal, the column first.
fn turned(predicate: Expr) -> Expr {
    let turn = |expr| match expr {
        Expr::BinaryExpr(BinaryExpr { left, op, right })
            if matches!((&*left, &*right), (Expr::Literal(..), Expr::Column(_))) && op.swap().is_some() =>
        {
            Expr::BinaryExpr(BinaryExpr { op: op.swap().expect("it was asked"), left: right, right: left })
        }
        other => other,
    };
    conjunction(split_conjunction_owned(predicate).into_iter().map(turn)).expect("a condition has a part")
}

fn push_down(plan: LogicalPlan) -> Result<Look> {
    let plan = match plan {
        LogicalPlan::Filter(Filter { predicate, input, .. }) => {
            LogicalPlan::Filter(Filter::try_new(turned(predicate), input)?)
        }
        other => other,
    };
    let of_not_in = |input: &LogicalPlan| matches!(input, LogicalPlan::Join(join) if join.null_aware);
    // No condition has a key to go by, so that none may go further down.
    let over_all = |input: &LogicalPlan| matches!(input, LogicalPlan::Aggregate(a) if a.group_expr.is_empty());
    Ok(match plan {
        LogicalPlan::Filter(filter) if over_all(&filter.input) => leave(LogicalPlan::Filter(filter)),
        LogicalPlan::Filter(Filter { predicate, input, .. }) if of_not_in(&input) => {
            let LogicalPlan::Join(join) = Arc::unwrap_or_clone(input) else { unreachable!("it was asked") };
            // Its rows are the left side's.
            let left = Arc::new(LogicalPlan::Filter(Filter::try_new(predicate, join.left)?));
            Look::Done(Transformed::yes(LogicalPlan::Join(Join { left, ..join })))
        }
        plan if of_not_in(&plan) => leave(plan),
        plan => Look::Let(plan),
    })
}

fn propagate(plan: LogicalPlan) -> Result<Look> {
    let LogicalPlan::Union(Union { inputs, schema }) = &plan else { return Ok(Look::Let(plan)) };
    let has_rows =
        |input: &&Arc<LogicalPlan>| !matches!(&***input, LogicalPlan::EmptyRelation(e) if !e.produce_one_row);
    let mut left = inputs.iter().filter(has_rows);
    let (Some(input), None) = (left.next(), left.next()) else { return Ok(Look::Let(plan)) };
    let names = input.schema().iter().zip(schema.iter()).map(|((qualifier, field), (wanted, of_union))| {
        let column = Expr::Column(Column::new(qualifier.cloned(), field.name()));
        column.alias_qualified(wanted.cloned(), of_union.name())
    });
    let named = Projection::try_new_with_schema(names.collect(), input.clone(), schema.clone())?;
    Ok(Look::Done(Transformed::yes(LogicalPlan::Projection(named))))
}
