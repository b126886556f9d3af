//! Aggregates: one row for each key, from calls over the rows of the key.
//!
//! The invariant: a call whose answer depends on the order of the rows has an order of its own; calls with the same order see the same rows
//! in the same order. Whatever a function refuses to do, it refuses here and not over the first row.

use std::sync::Arc;

use arrow::compute::SortOptions;
use arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::common::DFSchema;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::logical_plan::Aggregate;
use datafusion::physical_expr::aggregate::{AggregateExprBuilder, LoweredAggregateBuilder};

use super::{Lowered, Lowering, Physical, Refusal, check_type, failed, function_name, needs_order, refuse};
use crate::dataflow::accumulator::AggregateCall;
use crate::dataflow::aggregate;
use crate::dataflow::graph::{KeyedValue, NullKeys, Operator, Stage};
use crate::dataflow::plan::message;

impl Lowering<'_> {
    pub(super) fn aggregate(&mut self, aggregate: &Aggregate) -> Lowered {
        let input = self.lower(&aggregate.input)?;
        let input_schema = aggregate.input.schema();
        let arrow: SchemaRef = Arc::new(input_schema.as_arrow().clone());
        let mut key = Vec::new();
        for expr in &aggregate.group_expr {
            if matches!(expr, Expr::GroupingSet(_)) {
                return refuse("group by", "GROUPING SETS, ROLLUP and CUBE cannot be maintained");
            }
            key.push(self.physical(expr, input_schema)?);
        }
        let mut columns = Vec::new();
        let calls = aggregate.aggr_expr.iter().map(|expr| self.call(expr, input_schema, &arrow, &mut columns));
        let mut calls = calls.collect::<Lowered<Vec<_>>>()?;
        AggregateCall::share_rows(&mut calls);
        let groups = key.len();
        let mut fields = Vec::new();
        for (n, expr) in key.iter().chain(&columns).enumerate() {
            let ty = expr.data_type(&arrow).map_err(|e| failed(&e))?;
            let field = Field::new(format!("{n}"), ty, true);
            check_type(&field)?;
            fields.push(field);
        }
        let arguments: SchemaRef = Arc::new(Schema::new(fields[groups..].to_vec()));
        let all = key.into_iter().chain(columns).collect::<Vec<_>>();
        let width = all.len();
        let stages = vec![Stage::Project(all, Arc::new(Schema::new(fields)))];
        let (from, stages) = self.graph.fused(input, stages);
        let schema: SchemaRef = Arc::new(aggregate.schema.as_arrow().clone());
        let keyed = self.add(
            Operator::Key {
                input: from,
                stages,
                key: (0..groups).collect(),
                value: KeyedValue::Columns(groups..width),
                nulls: NullKeys::Keep,
            },
            schema.clone(),
        );
        let node = self.add(
            Operator::Aggregate { input: keyed, calls: calls.clone(), arguments: arguments.clone() },
            schema.clone(),
        );
        if groups > 0 {
            return Ok(node);
        }
        let row = aggregate::Aggregate::new(calls, &arguments, true).row_over_nothing().map_err(|e| failed(&e))?;
        let constant = self.add(Operator::Constant { rows: vec![row] }, schema.clone());
        Ok(self.add(Operator::Union { inputs: vec![node, constant] }, schema))
    }

    /// One call; the columns that it reads are added to `columns`, unless they are there already.
    fn call(
        &self,
        expr: &Expr,
        input: &DFSchema,
        arrow: &SchemaRef,
        columns: &mut Vec<Physical>,
    ) -> Lowered<AggregateCall> {
        let word = function_name(expr);
        let at = |e: DataFusionError| Refusal { word: word.clone(), reason: message(&e) };
        let lowered = LoweredAggregateBuilder::new(expr, input, arrow, &self.props).build().map_err(at)?;
        let (function, filter, order) = (lowered.aggregate, lowered.filter, lowered.order_bys);
        let name = function.fun().name().to_string();
        if order.is_empty() && needs_order(&name) {
            let reason = format!("{name}() without ORDER BY has no defined answer; add one inside its brackets");
            return refuse(&word, reason);
        }
        if name.starts_with("approx_percentile") || name == "approx_median" {
            return refuse(&word, format!("{name}() depends on the order in which rows come"));
        }
        let nested = function.expressions().iter().any(|e| e.data_type(arrow).is_ok_and(|ty| ty.is_nested()));
        if nested && (name == "min" || name == "max") {
            return refuse(
                &word,
                format!("{name}() of a list or a struct has no defined answer where they have nulls"),
            );
        }
        let distinct = function.is_distinct();
        let unordered = AggregateExprBuilder::new(Arc::new(function.fun().clone()), function.expressions())
            .schema(arrow.clone())
            .alias(function.name())
            .with_ignore_nulls(function.ignore_nulls())
            .build()
            .map_err(at)?;
        unordered.create_accumulator().map_err(at)?;
        let order: Vec<(Physical, SortOptions)> = order.into_iter().map(|o| (o.expr, o.options)).collect();
        AggregateCall::new(Arc::new(unordered), distinct, filter, &order, arrow, columns).map_err(at)
    }
}
