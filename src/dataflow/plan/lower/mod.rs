//! Lowering turns an optimised logical plan into operators that are maintained.
//!
//! The invariant: a node's columns are those of the logical plan it stands for, in order. Whatever has no operator, or has no defined answer,
//! is refused by name; nothing is approximated.

mod aggregate;
mod join;
mod top;
mod window;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow_row::{RowConverter, SortField};
use datafusion::common::tree_node::TreeNode;
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::error::DataFusionError;
use datafusion::execution::context::ExecutionProps;
use datafusion::logical_expr::logical_plan::{Distinct, Projection, TableScan, Values};
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::physical_expr::expressions::{CastExpr, Column, lit};
use datafusion::physical_expr::{PhysicalExpr, PhysicalSortExpr, create_physical_expr};

use self::top::UNORDERED_LIMIT;
pub(crate) use self::window::LOST;
use self::window::{Bounds, bound};
use super::message;
use super::opaque::Opaque;
use crate::dataflow::Row;
use crate::dataflow::codec::{self, Codec};
use crate::dataflow::graph::{Graph, KeyedValue, NodeId, NullKeys, Operator, Stage};

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

/// What is said of a subquery that DataFusion has left where it stood.
pub(crate) const NOT_A_JOIN: &str =
    "DataFusion makes no join of this subquery, so it cannot be maintained; write the join";

pub(super) struct Lowering<'a> {
    pub graph: &'a mut Graph,
    pub relations: &'a Relations,
    /// Which of the relations are tables: whatever else is made of a source as it is has other names for its columns.
    pub tables: &'a BTreeSet<String>,
    pub props: ExecutionProps,
    pub model: Arc<str>,
}

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
            LogicalPlan::TableScan(scan) => self.scan(scan, schema_of(plan)),
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

    fn scan(&mut self, scan: &TableScan, schema: SchemaRef) -> Lowered {
        let name = scan.table_name.table();
        let Some(node) = self.relations.get(name).copied() else {
            return refuse(name, format!("there is no relation {name}"));
        };
        if scan.fetch.is_some() {
            return refuse("limit", UNORDERED_LIMIT);
        }
        let mut stages = Vec::new();
        for filter in &scan.filters {
            let of_node = DFSchema::try_from(self.graph.schema(node).as_ref().clone()).map_err(|e| failed(&e))?;
            stages.push(Stage::Filter(self.physical(filter, &of_node)?));
        }
        let kept = self.graph.schema(node);
        let of_source =
            self.tables.contains(name) && matches!(self.graph.nodes[node].operator, Operator::Source { .. });
        let places: Vec<usize> = match &scan.projection {
            Some(columns) => columns.clone(),
            None => (0..schema.fields().len()).collect(),
        };
        let exprs = places
            .into_iter()
            .zip(schema.fields())
            .map(|(place, field)| match kept.index_of(field.name()) {
                // Only a source goes by names: fewer columns of it may be kept than it has. Nobody looks at the others, which
                // are null here.
                Ok(index) if of_source => Ok(column(kept, index)),
                Err(_) if of_source => Ok(lit(ScalarValue::try_from(field.data_type()).map_err(|e| failed(&e))?)),
                _ => Ok(column(kept, place)),
            })
            .collect::<Lowered<Vec<Physical>>>()?;
        if !is_identity(&exprs, kept) {
            stages.push(Stage::Project(exprs, schema.clone()));
        }
        Ok(self.linear(node, stages, schema))
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
        let asks = |e: &Expr| matches!(e, Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_));
        if expr.exists(|e| Ok(asks(e))).map_err(|e| failed(&e))? {
            return refuse("select", NOT_A_JOIN);
        }
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

/// Whether the answer of an aggregate function depends on the order of the rows.
fn needs_order(name: &str) -> bool {
    ["array_agg", "string_agg", "first_value", "last_value", "nth_value"].contains(&name)
}

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
