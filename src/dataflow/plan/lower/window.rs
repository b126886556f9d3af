//! Window functions: each row with what they say of it and the rows around it.
//!
//! The invariant: a function sees every row of its partition. Only the row numbers that are made last of all may end at the largest one that
//! anybody asks for, since then nothing else looks at the rows that are left out. A function whose answer depends on the order of the rows has
//! an order; what DataFusion cannot evaluate over a frame is refused here and not over the first rows.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::logical_expr::expr::NullTreatment;
use datafusion::logical_expr::logical_plan::Window;
use datafusion::logical_expr::{
    Expr, ExprSchemable, Operator as Comparison, WindowFrameUnits, WindowFunctionDefinition,
};
use datafusion::physical_plan::WindowExpr;
use datafusion::physical_planner::create_window_expr;

use super::{Lowered, Lowering, Refusal, column, function_name, needs_order, refuse};
use crate::dataflow::graph::{NullKeys, Operator, Stage, WindowCall, WindowCalls};
use crate::dataflow::plan::message;

/// Columns by index, and the largest number that anybody looks at.
pub(super) type Bounds = HashMap<usize, usize>;

/// Calls over the same partition and order, each with its place in the plan's node.
struct Group {
    numbers: bool,
    identity: String,
    calls: Vec<(usize, WindowCall)>,
}

impl Group {
    /// The column of the plan's node that is nothing but the number of each row.
    fn number(&self) -> Option<usize> {
        match self.calls.as_slice() {
            [(place, _)] if self.numbers => Some(*place),
            _ => None,
        }
    }
}

impl Lowering<'_> {
    pub(super) fn window(&mut self, window: &Window, bounds: &Bounds) -> Lowered {
        let mut node = self.lower(&window.input)?;
        let width = window.input.schema().fields().len();
        let mut groups: Vec<Group> = Vec::new();
        for (n, expr) in window.window_expr.iter().enumerate() {
            let call = self.window_call(expr, window.input.schema())?;
            let numbers = function_name(expr) == "row_number";
            let identity = format!("{numbers} {:?} {:?}", call.function.partition_by(), call.function.order_by());
            match groups.iter_mut().find(|group| group.identity == identity) {
                Some(group) => group.calls.push((n, call)),
                None => groups.push(Group { numbers, identity, calls: vec![(n, call)] }),
            }
        }
        // What comes after a bounded number sees only the rows up to the bound: one such group can be bounded, and it comes last.
        let bound = |group: &Group| group.number().and_then(|place| bounds.get(&(width + place)).copied());
        groups.sort_by_key(|group| bound(group).is_some());
        let last = groups.len() - 1;
        let mut places = vec![0; window.window_expr.len()];
        let mut fields: Vec<Arc<Field>> = self.graph.schema(node).fields().iter().cloned().collect();
        for (at, group) in groups.into_iter().enumerate() {
            let fetch = if at == last { bound(&group) } else { None };
            let only_number = group.number().is_some();
            let first = &group.calls[0].1.function;
            let partition = first.partition_by().to_vec();
            let before = fields.len();
            let (with_order, order) = self.computed(node, first.order_by().to_vec());
            fields.extend(self.graph.schema(with_order).fields()[before..].iter().cloned());
            let input = self.keyed(with_order, partition, NullKeys::Keep, None);
            let of_calls: Vec<Arc<Field>> =
                group.calls.iter().map(|(n, _)| window.schema.field(width + n).clone()).collect();
            for (at, (n, _)) in group.calls.iter().enumerate() {
                places[*n] = fields.len() + at;
            }
            fields.extend(of_calls.iter().cloned());
            let schema: SchemaRef = Arc::new(Schema::new(fields.clone()));
            let operator = if only_number {
                Operator::TopK { input, order, skip: 0, fetch, rank: true }
            } else {
                let results = Arc::new(Schema::new(of_calls));
                let calls = group.calls.into_iter().map(|(_, call)| call).collect();
                Operator::Window { input, window: WindowCalls { order, calls, results } }
            };
            node = self.add(operator, schema);
        }
        let schema: SchemaRef = Arc::new(window.schema.as_arrow().clone());
        if places.iter().copied().eq(width..width + places.len()) {
            return Ok(node);
        }
        let from = self.graph.schema(node).clone();
        let exprs = (0..width).chain(places).map(|n| column(&from, n)).collect();
        Ok(self.linear(node, vec![Stage::Project(exprs, schema.clone())], schema))
    }

    fn window_call(&self, expr: &Expr, input: &DFSchema) -> Lowered<WindowCall> {
        let name = function_name(expr);
        let function = create_window_expr(expr, input, &self.props)
            .map_err(|e| Refusal { word: name.clone(), reason: message(&e) })?;
        if let Some(reason) = undetermined(&name, function.as_ref()) {
            return refuse(&name, reason);
        }
        // DataFusion gathers different values in a set, whose order is another each time: no lists of them, and no sums that are rounded.
        let rounded = function.field().is_ok_and(|field| field.data_type().is_floating()) && !EXACT.contains(&&*name);
        if is_distinct(expr) && (needs_order(&name) || rounded) {
            return refuse(&name, format!("{name}(DISTINCT) OVER a window depends on the order of what it gathers"));
        }
        if !function.get_window_frame().start_bound.is_unbounded() && !slides(expr, input) {
            return refuse(&name, format!("{name}() OVER a frame whose start moves cannot be maintained: {LOST}"));
        }
        if let Err(e) = function.create_window_fn() {
            return refuse(&name, format!("{name}() cannot be maintained over this frame: {}", message(&e)));
        }
        let passed = rows_passed(expr);
        if passed.is_some_and(|rows| rows < -1) {
            let reason = "lead() by more than one row with IGNORE NULLS cannot be maintained: DataFusion loses count of the nulls";
            return refuse(&name, reason);
        }
        Ok(WindowCall { function, row_by_row: passed.is_some() })
    }
}

/// What DataFusion 54 does with an aggregate over a frame whose start moves, but for a few: `min` keeps a value that has left when only nulls are left,
/// sums of floating point keep what was rounded, and others take nothing for 0.
pub(crate) const LOST: &str = "DataFusion loses count of what has left the frame";

/// Whether a function can let go of rows. Functions that are no aggregates look at the frame's ends alone.
fn slides(expr: &Expr, input: &DFSchema) -> bool {
    let call = match expr {
        Expr::Alias(alias) => return slides(&alias.expr, input),
        Expr::WindowFunction(call) => call,
        _ => return true,
    };
    if matches!(call.fun, WindowFunctionDefinition::WindowUDF(_)) {
        return true;
    }
    // Small whole numbers are exact in floating point, also as a sum.
    let exact = |arg: &Expr| {
        let of = match arg {
            Expr::Cast(cast) => &*cast.expr,
            other => other,
        };
        let small = |ty: DataType| ty.is_integer() && ty.primitive_width().is_some_and(|bytes| bytes <= 4);
        let is = |e: &Expr, holds: &dyn Fn(DataType) -> bool| e.get_type(input).is_ok_and(holds);
        is(of, &small) || is(arg, &|ty| !ty.is_floating())
    };
    !call.params.distinct
        && match call.fun.name() {
            "count" | "max" => true,
            "sum" | "avg" => call.params.args.iter().all(exact),
            _ => false,
        }
}

fn is_distinct(expr: &Expr) -> bool {
    match expr {
        Expr::Alias(alias) => is_distinct(&alias.expr),
        Expr::WindowFunction(call) => call.params.distinct,
        _ => false,
    }
}

/// Why a call over rows without an order has no defined answer.
fn undetermined(name: &str, call: &dyn WindowExpr) -> Option<String> {
    if !call.order_by().is_empty() {
        return None;
    }
    if ORDERED_WINDOWS.contains(&name) || needs_order(name) || name.starts_with("approx_percentile") {
        return Some(format!("{name}() OVER a window without ORDER BY has no defined answer"));
    }
    let frame = call.get_window_frame();
    let whole = frame.start_bound.is_unbounded() && frame.end_bound.is_unbounded();
    match frame.units {
        WindowFrameUnits::Range => None,
        _ if whole => None,
        units => Some(format!("{name}() OVER {units} of a window without ORDER BY has no defined answer")),
    }
}

/// How many rows back `lag` looks, or `lead` (less than zero), when it passes over nulls. DataFusion 54 can only do that row by row: over a
/// whole partition `lag` panics where there are no nulls, and `lead` finds nothing.
fn rows_passed(expr: &Expr) -> Option<i64> {
    let call = match expr {
        Expr::Alias(alias) => return rows_passed(&alias.expr),
        Expr::WindowFunction(call) if call.params.null_treatment == Some(NullTreatment::IgnoreNulls) => call,
        _ => return None,
    };
    let rows = match call.params.args.get(1) {
        Some(Expr::Literal(ScalarValue::Int64(Some(rows)), _)) => *rows,
        _ => 1,
    };
    match call.fun.name() {
        "lag" => Some(rows),
        "lead" => Some(rows.saturating_neg()),
        _ => None,
    }
}

/// Window functions whose answer depends on the order of the rows.
const ORDERED_WINDOWS: &[&str] =
    &["row_number", "lag", "lead", "ntile", "rank", "dense_rank", "percent_rank", "cume_dist"];

/// Functions that give back one of their arguments.
const EXACT: &[&str] = &["min", "max"];

/// Adds the columns whose whole numbers `predicate` bounds from above.
pub(super) fn bound(predicate: &Expr, schema: &DFSchema, bounds: &mut Bounds) {
    let Expr::BinaryExpr(binary) = predicate else { return };
    let literal = |e: &Expr| match e {
        Expr::Literal(ScalarValue::UInt64(Some(n)), _) => usize::try_from(*n).ok(),
        Expr::Literal(ScalarValue::Int64(Some(n)), _) => usize::try_from(*n).ok(),
        _ => None,
    };
    let (number, limit) = match (&*binary.left, binary.op, &*binary.right) {
        (left, Comparison::And, right) => {
            bound(left, schema, bounds);
            return bound(right, schema, bounds);
        }
        (Expr::Column(n), Comparison::LtEq | Comparison::Eq, k) => (n, literal(k)),
        (Expr::Column(n), Comparison::Lt, k) => (n, literal(k).map(|k| k.saturating_sub(1))),
        (k, Comparison::GtEq | Comparison::Eq, Expr::Column(n)) => (n, literal(k)),
        (k, Comparison::Gt, Expr::Column(n)) => (n, literal(k).map(|k| k.saturating_sub(1))),
        _ => return,
    };
    if let (Some(limit), Ok(index)) = (limit, schema.index_of_column(number)) {
        bounds.entry(index).and_modify(|known| *known = limit.min(*known)).or_insert(limit);
    }
}
