//! Nesting: how deep a query's expressions and plan are, and where that ends.
//!
//! The invariant: what passes here can be planned, rendered and evaluated by code that calls itself once for each level, on the stacks that
//! its threads have. A bound is far above what people write; generated SQL that meets it can be split.

use std::ops::ControlFlow;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::sql::sqlparser::ast::{self, SetExpr, Spanned, Visit, Visitor};

use super::query::Fault;

/// Levels of an expression: a chain of operators has one for each, `a or b or c` two.
const EXPRESSION_MAX: usize = 1_000;
/// Queries that one chain of unions (or others of their kind) puts together.
const SET_OPERATIONS_MAX: usize = 1_000;
/// Levels of a plan, with the models that are a part of it.
const PLAN_DEPTH_MAX: usize = 5_000;
/// Nodes of a plan: a model that two others read is in it twice, where neither is a table.
const PLAN_NODES_MAX: usize = 20_000;

/// What is nested too deep in a query as it is written.
pub(super) fn of_query(query: &ast::Query) -> Option<Fault> {
    match query.visit(&mut Depth::default()) {
        ControlFlow::Break(fault) => Some(fault),
        ControlFlow::Continue(()) => None,
    }
}

#[derive(Default)]
struct Depth {
    now: usize,
}

impl Visitor for Depth {
    type Break = Fault;

    fn pre_visit_query(&mut self, query: &ast::Query) -> ControlFlow<Fault> {
        let (mut count, mut left) = (0, &*query.body);
        while let SetExpr::SetOperation { left: further, .. } = left {
            (count, left) = (count + 1, &**further);
        }
        if count < SET_OPERATIONS_MAX {
            return ControlFlow::Continue(());
        }
        let reason = format!(
            "{} queries in one chain of set operations; at most {SET_OPERATIONS_MAX} are possible, more in brackets",
            count + 1
        );
        ControlFlow::Break(Fault::new(left.span().start.line, reason))
    }

    fn pre_visit_expr(&mut self, expr: &ast::Expr) -> ControlFlow<Fault> {
        self.now += 1;
        if self.now <= EXPRESSION_MAX {
            return ControlFlow::Continue(());
        }
        ControlFlow::Break(Fault::new(expr.span().start.line, too_deep()))
    }

    fn post_visit_expr(&mut self, _: &ast::Expr) -> ControlFlow<Fault> {
        self.now -= 1;
        ControlFlow::Continue(())
    }
}

fn too_deep() -> String {
    format!(
        "an expression nests operators more than {EXPRESSION_MAX} deep; put parts of it in brackets or columns, or write in (...)"
    )
}

/// What a plan is too large for, with all that is a part of it.
pub(super) fn of_plan(plan: &LogicalPlan) -> Option<String> {
    fits(plan, 1, &mut 0).is_err().then(|| {
        format!(
            "with the models that are a part of it, the query is more than {PLAN_DEPTH_MAX} nodes deep or has more than \
             {PLAN_NODES_MAX}; configure some of them with materialized='table', which is computed once for all"
        )
    })
}

struct TooLarge;

/// Calls itself for subqueries alone, which the parser has a bound for.
fn fits(plan: &LogicalPlan, at: usize, nodes: &mut usize) -> Result<(), TooLarge> {
    let mut below = vec![(plan, at)];
    while let Some((plan, at)) = below.pop() {
        *nodes += 1;
        if at > PLAN_DEPTH_MAX || *nodes > PLAN_NODES_MAX {
            return Err(TooLarge);
        }
        below.extend(plan.inputs().into_iter().map(|input| (input, at + 1)));
        let mut result = Ok(());
        let looked = plan.apply_subqueries(|subquery| {
            result = fits(subquery, at + 1, nodes);
            Ok(if result.is_err() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
        });
        looked.expect("looking changes nothing");
        result?;
    }
    Ok(())
}

/// Whether an optimised plan has an expression that is too deep: models that are parts of each other make one of several.
pub(super) fn of_expressions(plan: &LogicalPlan) -> Option<String> {
    let mut deep = false;
    let looked = plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            deep |= is_deep(expr);
            Ok(if deep { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
        })
    });
    looked.expect("looking changes nothing");
    deep.then(too_deep)
}

fn is_deep(expr: &Expr) -> bool {
    let mut below = vec![(expr, 1)];
    while let Some((expr, at)) = below.pop() {
        if at > EXPRESSION_MAX + 64 {
            return true;
        }
        let children = expr.apply_children(|child| {
            below.push((child, at + 1));
            Ok(TreeNodeRecursion::Continue)
        });
        children.expect("looking changes nothing");
    }
    false
}
