//! The first rows of an order: `order by` with `limit`.
//!
//! The invariant: an order is what makes a limit defined; without one it is refused. Rows of equal order are told apart by their bytes.

use arrow::compute::SortOptions;
use datafusion::logical_expr::logical_plan::Limit;
use datafusion::logical_expr::{FetchType, LogicalPlan, SkipType};
use datafusion::physical_expr::PhysicalSortExpr;

use super::{Lowered, Lowering, column, failed, refuse};
use crate::dataflow::graph::{NullKeys, Operator, Stage};

pub(super) const UNORDERED_LIMIT: &str = "LIMIT without ORDER BY has no defined answer";

impl Lowering<'_> {
    pub(super) fn limit(&mut self, limit: &Limit) -> Lowered {
        let (SkipType::Literal(skip), FetchType::Literal(fetch)) =
            (limit.get_skip_type().map_err(|e| failed(&e))?, limit.get_fetch_type().map_err(|e| failed(&e))?)
        else {
            return refuse("limit", "LIMIT and OFFSET have to be numbers");
        };
        self.top(&limit.input, skip, fetch)
    }

    /// The first rows of an ordered plan.
    pub(super) fn top(&mut self, plan: &LogicalPlan, skip: usize, fetch: Option<usize>) -> Lowered {
        match plan {
            LogicalPlan::Projection(projection) => {
                let input = self.top(&projection.input, skip, fetch)?;
                self.projection(projection, input)
            }
            LogicalPlan::SubqueryAlias(alias) => self.top(&alias.input, skip, fetch),
            LogicalPlan::Sort(sort) => {
                let node = self.lower(&sort.input)?;
                let order = sort
                    .expr
                    .iter()
                    .map(|o| {
                        let expr = self.physical(&o.expr, sort.input.schema())?;
                        let options = SortOptions { descending: !o.asc, nulls_first: o.nulls_first };
                        Ok(PhysicalSortExpr { expr, options })
                    })
                    .collect::<Lowered<Vec<_>>>()?;
                // The optimiser may have put a bound of its own into the sort: rows before the offset count towards it.
                let fetch = match (fetch, sort.fetch) {
                    (Some(a), Some(b)) => Some(a.min(b.saturating_sub(skip))),
                    (None, Some(b)) => Some(b.saturating_sub(skip)),
                    (fetch, None) => fetch,
                };
                let schema = self.graph.schema(node).clone();
                let (with_order, order) = self.computed(node, order);
                let input = self.keyed(with_order, vec![], NullKeys::Keep, None);
                let of_input = self.graph.schema(with_order).clone();
                let top = self.add(Operator::TopK { input, order, skip, fetch, rank: false }, of_input.clone());
                if of_input.fields().len() == schema.fields().len() {
                    return Ok(top);
                }
                let exprs = (0..schema.fields().len()).map(|n| column(&of_input, n)).collect();
                Ok(self.linear(top, vec![Stage::Project(exprs, schema.clone())], schema))
            }
            _ => refuse("limit", UNORDERED_LIMIT),
        }
    }
}
