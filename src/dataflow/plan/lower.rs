//! Lowering turns an optimised logical plan into operators that are maintained.
//!
//! The invariant: a node's columns are those of the logical plan it stands for, in order. Whatever has no operator, or has no defined answer,
//! is refused by name; nothing is approximated.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray};
use arrow::compute::SortOptions;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow_row::{RowConverter, SortField};
use datafusion::common::{DFSchema, JoinType, NullEquality, ScalarValue};
use datafusion::error::DataFusionError;
use datafusion::execution::context::ExecutionProps;
use datafusion::logical_expr::logical_plan::{Aggregate, Distinct, Join, Limit, Projection, Values, Window};
use datafusion::logical_expr::{Expr, FetchType, LogicalPlan, Operator as Comparison, SkipType};
use datafusion::physical_expr::aggregate::{AggregateExprBuilder, LoweredAggregateBuilder};
use datafusion::physical_expr::expressions::{CastExpr, Column, IsNotNullExpr, IsNullExpr, lit};
use datafusion::physical_expr::{PhysicalExpr, PhysicalSortExpr, create_physical_expr};
use datafusion::physical_plan::WindowExpr;
use datafusion::physical_planner::create_window_expr;

use super::super::Row;
use super::super::accumulator::AggregateCall;
use super::super::aggregate;
use super::super::codec::{self, Codec};
use super::super::graph::{Emit, Graph, KeyedValue, NodeId, NullKeys, Operator, Stage, WindowCalls};
use super::message;
use super::opaque::Opaque;

/// Why a plan cannot be maintained, and the word to look for in the SQL.
#[derive(Debug)]
pub(super) struct Refusal {
    pub word: String,
    pub reason: String,
}

type Lowered<T = NodeId> = Result<T, Refusal>;

fn refuse<T>(word: &str, reason: impl Into<String>) -> Lowered<T> {
    Err(Refusal { word: word.into(), reason: reason.into() })
}

/// What a plan may read, by name.
pub(super) type Relations = HashMap<String, NodeId>;

pub(super) struct Lowering<'a> {
    pub graph: &'a mut Graph,
    pub relations: &'a Relations,
    /// Which of the relations are tables: whatever else is made of a source as it is has other names for its columns.
    pub tables: &'a BTreeSet<String>,
    pub props: ExecutionProps,
    pub model: Arc<str>,
}

/// Columns by index, and the largest number that anybody looks at.
type Bounds = HashMap<usize, usize>;

/// An expression that is ready to be evaluated.
type Physical = Arc<dyn PhysicalExpr>;

impl Lowering<'_> {
    pub fn lower(&mut self, plan: &LogicalPlan) -> Lowered {
        self.bounded(plan, &Bounds::new())
    }

    /// Lowers a plan of whose rows only those matter that keep to `bounds`: no others need to be right.
    fn bounded(&mut self, plan: &LogicalPlan, bounds: &Bounds) -> Lowered {
        for field in plan.schema().fields() {
            check_type(field)?;
        }
        match plan {
            LogicalPlan::TableScan(scan) => {
                let name = scan.table_name.table();
                let Some(node) = self.relations.get(name).copied() else {
                    return refuse(name, format!("there is no relation {name}"));
                };
                if scan.fetch.is_some() {
                    return refuse("limit", UNORDERED_LIMIT);
                }
                let mut stages = Vec::new();
                for filter in &scan.filters {
                    let schema =
                        DFSchema::try_from(self.graph.schema(node).as_ref().clone()).map_err(|e| failed(&e))?;
                    stages.push(Stage::Filter(self.physical(filter, &schema)?));
                }
                let kept = self.graph.schema(node);
                let of_source =
                    self.tables.contains(name) && matches!(self.graph.nodes[node].operator, Operator::Source { .. });
                let places: Vec<usize> = match &scan.projection {
                    Some(columns) => columns.clone(),
                    None => (0..plan.schema().fields().len()).collect(),
                };
                let exprs = places
                    .into_iter()
                    .zip(plan.schema().fields())
                    .map(|(place, field)| match kept.index_of(field.name()) {
                        // Only a source goes by names: fewer columns of it may be kept than it has. Nobody looks at the others, which
                        // are null here.
                        Ok(index) if of_source => Ok(column(kept, index)),
                        Err(_) if of_source => {
                            Ok(lit(ScalarValue::try_from(field.data_type()).map_err(|e| failed(&e))?))
                        }
                        _ => Ok(column(kept, place)),
                    })
                    .collect::<Lowered<Vec<Physical>>>()?;
                if !is_identity(&exprs, kept) {
                    stages.push(Stage::Project(exprs, schema_of(plan)));
                }
                Ok(self.linear(node, stages, schema_of(plan)))
            }
            LogicalPlan::SubqueryAlias(alias) => self.bounded(&alias.input, bounds),
            LogicalPlan::Extension(extension) => match Opaque::of(extension) {
                Some(opaque) => self.bounded(&opaque.input, bounds),
                None => refuse("select", format!("{} cannot be maintained", extension.node.name())),
            },
            LogicalPlan::Subquery(subquery) => self.lower(&subquery.subquery),
            LogicalPlan::Repartition(repartition) => self.lower(&repartition.input),
            LogicalPlan::Filter(filter) => {
                let mut bounds = bounds.clone();
                bound(&filter.predicate, filter.input.schema(), &mut bounds);
                let input = self.bounded(&filter.input, &bounds)?;
                let predicate = self.physical(&filter.predicate, filter.input.schema())?;
                Ok(self.linear(input, vec![Stage::Filter(predicate)], schema_of(plan)))
            }
            LogicalPlan::Projection(projection) => {
                let mut of_input = Bounds::new();
                for (n, expr) in projection.expr.iter().enumerate() {
                    if let (Some(limit), Expr::Column(column)) = (bounds.get(&n), expr.clone().unalias())
                        && let Ok(index) = projection.input.schema().index_of_column(&column)
                    {
                        of_input.insert(index, *limit);
                    }
                }
                let input = self.bounded(&projection.input, &of_input)?;
                self.projection(projection, input)
            }
            LogicalPlan::Join(join) => self.join(join),
            LogicalPlan::Union(union) => {
                let schema = schema_of(plan);
                let inputs = union
                    .inputs
                    .iter()
                    .map(|input| {
                        let node = self.lower(input)?;
                        Ok(self.cast(node, &schema))
                    })
                    .collect::<Lowered<Vec<_>>>()?;
                Ok(self.add(Operator::Union { inputs }, schema))
            }
            LogicalPlan::Aggregate(aggregate) => self.aggregate(aggregate),
            LogicalPlan::Distinct(Distinct::All(input)) => {
                let node = self.lower(input)?;
                let keyed = self.keyed(node, every_column(&schema_of(plan)), NullKeys::Keep, Some(0..0));
                let arguments = Arc::new(Schema::empty());
                Ok(self.add(Operator::Aggregate { input: keyed, calls: vec![], arguments }, schema_of(plan)))
            }
            LogicalPlan::Window(window) => self.window(window, bounds),
            LogicalPlan::Sort(sort) => match sort.fetch {
                // A view is a set of rows: their order is nobody's business.
                None => self.lower(&sort.input),
                Some(fetch) => self.top(plan, 0, Some(fetch)),
            },
            LogicalPlan::Limit(limit) => self.limit(limit),
            LogicalPlan::Values(values) => self.values(values),
            LogicalPlan::EmptyRelation(empty) => {
                let rows = if empty.produce_one_row { vec![Row::from([])] } else { vec![] };
                Ok(self.add(Operator::Constant { rows }, schema_of(plan)))
            }
            other => {
                let (word, name) = match other {
                    LogicalPlan::Unnest(_) => ("unnest", "UNNEST"),
                    LogicalPlan::RecursiveQuery(_) => ("recursive", "a recursive query"),
                    LogicalPlan::Distinct(_) => ("distinct", "this kind of DISTINCT"),
                    _ => ("select", "this kind of query"),
                };
                refuse(word, format!("{name} cannot be maintained"))
            }
        }
    }

    fn add(&mut self, operator: Operator, schema: SchemaRef) -> NodeId {
        let model = self.model.clone();
        self.graph.add(operator, schema, &model)
    }

    fn linear(&mut self, input: NodeId, stages: Vec<Stage>, schema: SchemaRef) -> NodeId {
        let model = self.model.clone();
        self.graph.linear(input, stages, schema, &model)
    }

    fn physical(&self, expr: &Expr, schema: &DFSchema) -> Lowered<Physical> {
        create_physical_expr(expr, schema, &self.props)
            .map_err(|e| Refusal { word: expr.schema_name().to_string(), reason: message(&e) })
    }

    fn projection(&mut self, projection: &Projection, input: NodeId) -> Lowered {
        let schema: SchemaRef = Arc::new(projection.schema.as_arrow().clone());
        let exprs =
            projection.expr.iter().map(|e| self.physical(e, projection.input.schema())).collect::<Lowered<Vec<_>>>()?;
        // Names alone cost nothing.
        let stages = if is_identity(&exprs, self.graph.schema(input)) {
            vec![]
        } else {
            vec![Stage::Project(exprs, schema.clone())]
        };
        Ok(self.linear(input, stages, schema))
    }

    /// The node with its columns as `schema` types them.
    fn cast(&mut self, node: NodeId, schema: &SchemaRef) -> NodeId {
        let from = self.graph.schema(node).clone();
        if from.fields().iter().map(|f| f.data_type()).eq(schema.fields().iter().map(|f| f.data_type())) {
            return node;
        }
        let exprs = (0..from.fields().len())
            .map(|n| Arc::new(CastExpr::new(column(&from, n), schema.field(n).data_type().clone(), None)) as Physical)
            .collect();
        self.linear(node, vec![Stage::Project(exprs, schema.clone())], schema.clone())
    }

    /// A node with its rows under a key; `value` are the columns that are kept with it, all of the node's by default.
    fn keyed(
        &mut self,
        node: NodeId,
        key: Vec<Physical>,
        nulls: NullKeys,
        value: Option<std::ops::Range<usize>>,
    ) -> NodeId {
        let schema = self.graph.schema(node).clone();
        let (mut columns, mut exprs) = (Vec::new(), every_column(&schema));
        for expr in &key {
            match expr.downcast_ref::<Column>() {
                Some(column) => columns.push(column.index()),
                None => {
                    columns.push(exprs.len());
                    exprs.push(expr.clone());
                }
            }
        }
        let width = schema.fields().len();
        let mut stages = Vec::new();
        let mut kept = value.map_or(KeyedValue::Row, KeyedValue::Columns);
        if exprs.len() > width {
            let mut fields: Vec<Arc<Field>> = schema.fields().iter().cloned().collect();
            for (n, expr) in exprs[width..].iter().enumerate() {
                let ty = expr.data_type(&schema).expect("planning has typed the key");
                fields.push(Arc::new(Field::new(format!("key {n}"), ty, true)));
            }
            stages.push(Stage::Project(exprs, Arc::new(Schema::new(fields))));
            if kept == KeyedValue::Row {
                kept = KeyedValue::Columns(0..width);
            }
        }
        let (input, stages) = self.graph.fused(node, stages);
        self.add(Operator::Key { input, stages, key: columns, value: kept, nulls }, schema)
    }

    /// The node with what an order computes as columns behind its own, so that a row whose order fails is left out alone.
    fn computed(&mut self, node: NodeId, order: Vec<PhysicalSortExpr>) -> (NodeId, Vec<PhysicalSortExpr>) {
        let schema = self.graph.schema(node).clone();
        let mut exprs = every_column(&schema);
        let mut fields: Vec<Arc<Field>> = schema.fields().iter().cloned().collect();
        let width = fields.len();
        let order = order
            .into_iter()
            .map(|sort| {
                if sort.expr.is::<Column>() {
                    return sort;
                }
                let ty = sort.expr.data_type(&schema).expect("planning has typed the order");
                let name = format!("order {}", fields.len() - width);
                fields.push(Arc::new(Field::new(&name, ty, true)));
                exprs.push(sort.expr);
                let expr = Arc::new(Column::new(&name, fields.len() - 1));
                PhysicalSortExpr { expr, options: sort.options }
            })
            .collect();
        if exprs.len() == width {
            return (node, order);
        }
        let schema: SchemaRef = Arc::new(Schema::new(fields));
        (self.linear(node, vec![Stage::Project(exprs, schema.clone())], schema), order)
    }

    fn join(&mut self, join: &Join) -> Lowered {
        use JoinType::{Full, Inner, Left, LeftAnti, LeftMark, LeftSemi, Right, RightAnti, RightMark, RightSemi};
        let (left, right) = (self.lower(&join.left)?, self.lower(&join.right)?);
        let on = |this: &Self, side: fn(&(Expr, Expr)) -> &Expr, plan: &LogicalPlan| {
            join.on.iter().map(|pair| this.physical(side(pair), plan.schema())).collect::<Lowered<Vec<_>>>()
        };
        let sides = Sides {
            left,
            right,
            left_key: on(self, |pair| &pair.0, &join.left)?,
            right_key: on(self, |pair| &pair.1, &join.right)?,
            filter: match &join.filter {
                Some(filter) => {
                    let both = join.left.schema().join(join.right.schema()).map_err(|e| failed(&e))?;
                    Some(self.physical(filter, &both)?)
                }
                None => None,
            },
            drop: match join.null_equality {
                NullEquality::NullEqualsNothing => NullKeys::Drop,
                NullEquality::NullEqualsNull => NullKeys::Keep,
            },
        };
        if join.null_aware {
            return self.not_in(&sides);
        }
        let schema: SchemaRef = Arc::new(join.schema.as_arrow().clone());
        let nothing = || Row::from([]);
        match join.join_type {
            Inner => Ok(self.inner(&sides, false, false)),
            LeftSemi => Ok(self.presence(&sides, true, Emit::Present)),
            RightSemi => Ok(self.presence(&sides, false, Emit::Present)),
            LeftAnti => Ok(self.presence(&sides, true, Emit::Absent { before: nothing(), after: nothing() })),
            RightAnti => Ok(self.presence(&sides, false, Emit::Absent { before: nothing(), after: nothing() })),
            LeftMark | RightMark => {
                let emit = Emit::Mark { present: flag(true), absent: flag(false) };
                let node = self.presence(&sides, join.join_type == LeftMark, emit);
                Ok(node)
            }
            Left | Right | Full => {
                let (keep_left, keep_right) = (join.join_type != Right, join.join_type != Left);
                let mut inputs = vec![self.inner(&sides, keep_left, keep_right)];
                if keep_left {
                    let after = Codec::new(self.graph.schema(right)).nulls();
                    inputs.push(self.presence(&sides, true, Emit::Absent { before: nothing(), after }));
                }
                if keep_right {
                    let before = Codec::new(self.graph.schema(left)).nulls();
                    inputs.push(self.presence(&sides, false, Emit::Absent { before, after: nothing() }));
                }
                Ok(self.add(Operator::Union { inputs }, schema))
            }
        }
    }

    /// The pairs that match. Of a side whose rows are kept without a partner too, null keys stay in its arrangement, so that both uses share
    /// it; it is enough that the other side has none.
    fn inner(&mut self, sides: &Sides, keep_left: bool, keep_right: bool) -> NodeId {
        let nulls = |keep: bool| if keep { NullKeys::Keep } else { sides.drop };
        let schema = self.pair_schema(sides);
        let left = self.keyed(sides.left, sides.left_key.clone(), nulls(keep_left), None);
        let right = self.keyed(sides.right, sides.right_key.clone(), nulls(keep_right && !keep_left), None);
        let pairs = self.add(Operator::Join { left, right }, schema.clone());
        let stages = sides.filter.iter().map(|f| Stage::Filter(f.clone())).collect();
        self.linear(pairs, stages, schema)
    }

    fn pair_schema(&self, sides: &Sides) -> SchemaRef {
        let fields = [sides.left, sides.right].map(|side| self.graph.schema(side).fields().iter().cloned());
        Arc::new(Schema::new(fields.into_iter().flatten().collect::<Vec<_>>()))
    }

    /// The rows of one side by whether the other has a partner for them.
    fn presence(&mut self, sides: &Sides, of_left: bool, emit: Emit) -> NodeId {
        let (this, other) = if of_left { (sides.left, sides.right) } else { (sides.right, sides.left) };
        let (this_key, other_key) =
            if of_left { (&sides.left_key, &sides.right_key) } else { (&sides.right_key, &sides.left_key) };
        let (rows, keys) = if sides.filter.is_none() {
            let rows = self.keyed(this, this_key.clone(), NullKeys::Keep, None);
            (rows, self.keyed(other, other_key.clone(), sides.drop, None))
        } else {
            // With a condition on the pair, a row has a partner if it is part of a pair: the whole row is the key.
            let pairs = self.inner(sides, false, false);
            let schema = self.graph.schema(this).clone();
            let first = if of_left { 0 } else { self.graph.schema(sides.left).fields().len() };
            let pair_schema = self.graph.schema(pairs).clone();
            let exprs = (first..first + schema.fields().len()).map(|n| column(&pair_schema, n)).collect();
            let matched = self.linear(pairs, vec![Stage::Project(exprs, schema.clone())], schema.clone());
            let rows = self.keyed(this, every_column(&schema), NullKeys::Keep, None);
            (rows, self.keyed(matched, every_column(&schema), NullKeys::Keep, Some(0..0)))
        };
        let mut fields: Vec<Arc<Field>> = self.graph.schema(this).fields().iter().cloned().collect();
        match &emit {
            Emit::Mark { .. } => fields.push(Arc::new(Field::new("mark", DataType::Boolean, false))),
            Emit::Absent { before, after } if !before.is_empty() || !after.is_empty() => {
                fields = self.pair_schema(sides).fields().iter().cloned().collect();
            }
            _ => {}
        }
        self.add(Operator::Presence { rows, keys, emit }, Arc::new(Schema::new(fields)))
    }

    /// `x NOT IN (select y ...)`: no row if any y is null; a row whose x is null only if there is no y at all.
    fn not_in(&mut self, sides: &Sides) -> Lowered {
        let ([left_key], [right_key], None) =
            (sides.left_key.as_slice(), sides.right_key.as_slice(), sides.filter.as_ref())
        else {
            let reason = "NOT IN, where columns can be null, with a correlated subquery or a constant on its left; write NOT EXISTS";
            return refuse("not in", reason);
        };
        let absent = || Emit::Absent { before: Row::from([]), after: Row::from([]) };
        let schema = self.graph.schema(sides.left).clone();
        let right_schema = self.graph.schema(sides.right).clone();
        let unmatched = self.presence(sides, true, absent());
        let nulls = Stage::Filter(Arc::new(IsNullExpr::new(right_key.clone())) as Physical);
        let null_keys = self.linear(sides.right, vec![nulls], right_schema);
        let null_keys = self.keyed(null_keys, vec![], NullKeys::Keep, Some(0..0));
        let rows = self.keyed(unmatched, vec![], NullKeys::Keep, None);
        let without_nulls = self.add(Operator::Presence { rows, keys: null_keys, emit: absent() }, schema.clone());
        let known = Stage::Filter(Arc::new(IsNotNullExpr::new(left_key.clone())) as Physical);
        let unknown = Stage::Filter(Arc::new(IsNullExpr::new(left_key.clone())) as Physical);
        let known = self.linear(without_nulls, vec![known], schema.clone());
        let unknown = self.linear(without_nulls, vec![unknown], schema.clone());
        let rows = self.keyed(unknown, vec![], NullKeys::Keep, None);
        let keys = self.keyed(sides.right, vec![], NullKeys::Keep, Some(0..0));
        let unknown = self.add(Operator::Presence { rows, keys, emit: absent() }, schema.clone());
        Ok(self.add(Operator::Union { inputs: vec![known, unknown] }, schema))
    }

    fn aggregate(&mut self, aggregate: &Aggregate) -> Lowered {
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
        let (mut calls, mut columns) = (Vec::new(), Vec::new());
        for expr in &aggregate.aggr_expr {
            let word = function_name(expr);
            let at = |e: &DataFusionError| Refusal { word: word.clone(), reason: message(e) };
            let lowered =
                LoweredAggregateBuilder::new(expr, input_schema, &arrow, &self.props).build().map_err(|e| at(&e))?;
            let (function, filter, order) = (lowered.aggregate, lowered.filter, lowered.order_bys);
            let name = function.fun().name().to_string();
            if order.is_empty() && ORDERED_AGGREGATES.contains(&name.as_str()) {
                return refuse(
                    &word,
                    format!("{name}() without ORDER BY has no defined answer; add one inside its brackets"),
                );
            }
            if name.starts_with("approx_percentile") || name == "approx_median" {
                return refuse(&word, format!("{name}() depends on the order in which rows come"));
            }
            let distinct = function.is_distinct();
            let unordered = AggregateExprBuilder::new(Arc::new(function.fun().clone()), function.expressions())
                .schema(arrow.clone())
                .alias(function.name())
                .with_ignore_nulls(function.ignore_nulls())
                .build()
                .map_err(|e| at(&e))?;
            let order: Vec<(Physical, SortOptions)> = order.into_iter().map(|o| (o.expr, o.options)).collect();
            let call = AggregateCall::new(Arc::new(unordered), distinct, filter, &order, &arrow, &mut columns)
                .map_err(|e| at(&e))?;
            calls.push(call);
        }
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

    /// Window functions; row numbers above their bound need not be made.
    fn window(&mut self, window: &Window, bounds: &Bounds) -> Lowered {
        let mut node = self.lower(&window.input)?;
        let input_schema = window.input.schema();
        let width = input_schema.fields().len();
        let mut groups: Vec<(String, Vec<NumberedCall>)> = Vec::new();
        for (n, expr) in window.window_expr.iter().enumerate() {
            let word = function_name(expr);
            let call = create_window_expr(expr, input_schema, &self.props)
                .map_err(|e| Refusal { word: word.clone(), reason: message(&e) })?;
            if call.order_by().is_empty() && ORDERED_WINDOWS.contains(&word.as_str()) {
                return refuse(&word, format!("{word}() OVER a window without ORDER BY has no defined answer"));
            }
            let numbers = word == "row_number";
            let identity = format!("{numbers} {:?} {:?}", call.partition_by(), call.order_by());
            match groups.iter_mut().find(|(known, _)| *known == identity) {
                Some((_, calls)) => calls.push((n, call)),
                None => groups.push((identity, vec![(n, call)])),
            }
        }
        let mut places = vec![0; window.window_expr.len()];
        let mut fields: Vec<Arc<Field>> = self.graph.schema(node).fields().iter().cloned().collect();
        for (_, calls) in groups {
            let first = &calls[0].1;
            let partition = first.partition_by().to_vec();
            let before = fields.len();
            let (with_order, order) = self.computed(node, first.order_by().to_vec());
            fields.extend(self.graph.schema(with_order).fields()[before..].iter().cloned());
            let input = self.keyed(with_order, partition, NullKeys::Keep, None);
            let of_calls: Vec<Arc<Field>> = calls.iter().map(|(n, _)| window.schema.field(width + n).clone()).collect();
            for (at, (n, _)) in calls.iter().enumerate() {
                places[*n] = fields.len() + at;
            }
            fields.extend(of_calls.iter().cloned());
            let schema: SchemaRef = Arc::new(Schema::new(fields.clone()));
            let operator = if function_name(&window.window_expr[calls[0].0]) == "row_number" && calls.len() == 1 {
                let fetch = bounds.get(&(width + calls[0].0)).copied();
                Operator::TopK { input, order, skip: 0, fetch, rank: true }
            } else {
                let results = Arc::new(Schema::new(of_calls));
                let calls = calls.into_iter().map(|(_, call)| call).collect();
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

    fn limit(&mut self, limit: &Limit) -> Lowered {
        let (SkipType::Literal(skip), FetchType::Literal(fetch)) =
            (limit.get_skip_type().map_err(|e| failed(&e))?, limit.get_fetch_type().map_err(|e| failed(&e))?)
        else {
            return refuse("limit", "LIMIT and OFFSET have to be numbers");
        };
        self.top(&limit.input, skip, fetch)
    }

    /// The first rows of an ordered plan.
    fn top(&mut self, plan: &LogicalPlan, skip: usize, fetch: Option<usize>) -> Lowered {
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

    fn values(&mut self, values: &Values) -> Lowered {
        let schema: SchemaRef = Arc::new(values.schema.as_arrow().clone());
        let empty = DFSchema::empty();
        let one = codec::batch(Arc::new(Schema::empty()), vec![], 1).map_err(|e| failed(&e.into()))?;
        let mut rows = Vec::new();
        let codec = Codec::new(&schema);
        for row in &values.values {
            let mut columns: Vec<ArrayRef> = Vec::new();
            for (expr, field) in row.iter().zip(schema.fields()) {
                let evaluate = || {
                    let value = create_physical_expr(expr, &empty, &self.props)?.evaluate(&one)?.into_array(1)?;
                    Ok(arrow::compute::cast(&value, field.data_type())?)
                };
                columns.push(evaluate().map_err(|e: DataFusionError| failed(&e))?);
            }
            codec.encode(&columns, 1, |bytes| rows.push(Row::from(bytes))).map_err(|e| failed(&e.into()))?;
        }
        Ok(self.add(Operator::Constant { rows }, schema))
    }
}

/// A window function and its place in the plan's node.
type NumberedCall = (usize, Arc<dyn WindowExpr>);

/// Both sides of a join.
struct Sides {
    left: NodeId,
    right: NodeId,
    left_key: Vec<Physical>,
    right_key: Vec<Physical>,
    /// A condition on the pair, left columns first.
    filter: Option<Physical>,
    /// What the join's equality makes of null keys.
    drop: NullKeys,
}

const UNORDERED_LIMIT: &str = "LIMIT without ORDER BY has no defined answer";

/// Aggregates whose answer depends on the order of the rows.
const ORDERED_AGGREGATES: &[&str] = &["array_agg", "string_agg", "first_value", "last_value", "nth_value"];

/// Window functions whose answer depends on the order of the rows.
const ORDERED_WINDOWS: &[&str] = &[
    "row_number",
    "lag",
    "lead",
    "first_value",
    "last_value",
    "nth_value",
    "ntile",
    "rank",
    "dense_rank",
    "percent_rank",
    "cume_dist",
];

fn schema_of(plan: &LogicalPlan) -> SchemaRef {
    Arc::new(plan.schema().as_arrow().clone())
}

fn column(schema: &Schema, index: usize) -> Physical {
    Arc::new(Column::new(schema.field(index).name(), index))
}

/// Whether these are all columns of a schema in their order.
fn is_identity(exprs: &[Physical], schema: &Schema) -> bool {
    exprs.len() == schema.fields().len()
        && exprs.iter().enumerate().all(|(n, e)| e.downcast_ref::<Column>().is_some_and(|c| c.index() == n))
}

fn every_column(schema: &Schema) -> Vec<Physical> {
    (0..schema.fields().len()).map(|n| column(schema, n)).collect()
}

fn failed(error: &DataFusionError) -> Refusal {
    Refusal { word: "select".into(), reason: message(error) }
}

/// The row bytes of one flag.
fn flag(value: bool) -> Row {
    let codec = Codec::new(&Schema::new(vec![Field::new("mark", DataType::Boolean, false)]));
    let mut row = Row::from([]);
    let column: ArrayRef = Arc::new(BooleanArray::from(vec![value]));
    codec.encode(&[column], 1, |bytes| row = bytes.into()).expect("a flag is a boolean");
    row
}

/// The function that an expression calls, whatever it is called.
fn function_name(expr: &Expr) -> String {
    match expr {
        Expr::Alias(alias) => function_name(&alias.expr),
        Expr::AggregateFunction(call) => call.func.name().to_string(),
        Expr::WindowFunction(call) => call.fun.name().to_string(),
        other => other.schema_name().to_string(),
    }
}

/// Refuses types that rows cannot be made of, or that do not come back as they were.
fn check_type(field: &Field) -> Lowered<()> {
    fn plain(ty: &DataType) -> bool {
        match ty {
            DataType::Dictionary(..) | DataType::RunEndEncoded(..) | DataType::Map(..) | DataType::Union(..) => false,
            DataType::List(f) | DataType::LargeList(f) | DataType::FixedSizeList(f, _) => plain(f.data_type()),
            DataType::Struct(fields) => fields.iter().all(|f| plain(f.data_type())),
            _ => true,
        }
    }
    let ty = field.data_type();
    if plain(ty) && RowConverter::supports_fields(&[SortField::new(ty.clone())]) {
        return Ok(());
    }
    refuse(field.name(), format!("the column {} is of type {ty}, which cannot be maintained", field.name()))
}

/// Adds the columns whose whole numbers `predicate` bounds from above.
fn bound(predicate: &Expr, schema: &DFSchema, bounds: &mut Bounds) {
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
