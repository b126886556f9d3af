//! A scalar subquery stands for one value.
//!
//! The invariant: one that could have several rows is refused. A join takes its place when the plan is optimised, and that would give a row
//! for each of them where SQL has an error. What is known of the rows of a table counts for nothing here: what a key promises may be broken
//! by the next event.

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{Expr, FetchType, JoinType, LogicalPlan};

use super::lower::Refusal;

/// The first scalar subquery of a plan as it was written that can have several rows.
pub(super) fn of_several_rows(plan: &LogicalPlan) -> Result<Option<Refusal>, DataFusionError> {
    let mut found = None;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|e| match e {
                Expr::ScalarSubquery(subquery) if !at_most_one_row(&subquery.subquery) => {
                    let column = subquery.subquery.schema().field(0).name();
                    found = Some(Refusal {
                        word: column.split(['(', '.']).next().unwrap_or_default().into(),
                        reason: format!(
                            "the subquery for one value of {column} can have several rows; make it an aggregate without GROUP BY, or add ORDER BY and LIMIT 1"
                        ),
                    });
                    Ok(TreeNodeRecursion::Stop)
                }
                _ => Ok(TreeNodeRecursion::Continue),
            })
        })
    })?;
    Ok(found)
}

fn at_most_one_row(plan: &LogicalPlan) -> bool {
    match plan {
        LogicalPlan::Aggregate(aggregate) => aggregate.group_expr.is_empty() || at_most_one_row(&aggregate.input),
        LogicalPlan::Limit(limit) => {
            matches!(limit.get_fetch_type(), Ok(FetchType::Literal(Some(0 | 1)))) || at_most_one_row(&limit.input)
        }
        LogicalPlan::Sort(sort) => matches!(sort.fetch, Some(0 | 1)) || at_most_one_row(&sort.input),
        LogicalPlan::Join(join) => match join.join_type {
            JoinType::Inner | JoinType::Left | JoinType::Right => {
                at_most_one_row(&join.left) && at_most_one_row(&join.right)
            }
            JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => at_most_one_row(&join.left),
            JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => at_most_one_row(&join.right),
            JoinType::Full => false,
        },
        LogicalPlan::EmptyRelation(_) => true,
        LogicalPlan::Values(values) => values.values.len() <= 1,
        LogicalPlan::Projection(_)
        | LogicalPlan::Filter(_)
        | LogicalPlan::Window(_)
        | LogicalPlan::Distinct(_)
        | LogicalPlan::SubqueryAlias(_)
        | LogicalPlan::Subquery(_) => plan.inputs().iter().all(|input| at_most_one_row(input)),
        _ => false,
    }
}
