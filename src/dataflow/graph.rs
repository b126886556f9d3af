//! The graph of operators that maintains the models: what planning makes and rendering builds.
//!
//! The invariant: a node's inputs stand before it; two nodes never do the same work on the same input, so that what several models need is
//! computed and kept once. A node's rows are the row bytes of its schema's columns, in order.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_expr::{PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::WindowExpr;

use super::Row;
use super::accumulator::AggregateCall;

pub(super) type NodeId = usize;

/// One step on rows.
#[derive(Clone, Debug)]
pub(super) enum Stage {
    Project(Vec<Arc<dyn PhysicalExpr>>, SchemaRef),
    Filter(Arc<dyn PhysicalExpr>),
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub operator: Operator,
    pub schema: SchemaRef,
    /// Where it comes from, for people: `stg_product.sql` or the table's name.
    pub model: Arc<str>,
}

#[derive(Clone, Debug)]
pub(super) enum Operator {
    /// The latest rows of a source.
    Source { table: usize },
    /// Rows that are always there.
    Constant { rows: Vec<Row> },
    /// Projections and filters, fused.
    Linear { input: NodeId, stages: Vec<Stage> },
    /// The same as [`Operator::Linear`], its rows split into a key and the row it stands for.
    Key { input: NodeId, stages: Vec<Stage>, key: Vec<usize>, value: KeyedValue, nulls: NullKeys },
    /// All rows of all inputs.
    Union { inputs: Vec<NodeId> },
    /// For each pair of rows with the same key: left row, right row. Both inputs are keyed.
    Join { left: NodeId, right: NodeId },
    /// The rows of one keyed input by whether the other has their key.
    Presence { rows: NodeId, keys: NodeId, emit: Emit },
    /// One row for each key: the key's columns, then one for each call. The input is keyed, its values are the calls' arguments.
    Aggregate { input: NodeId, calls: Vec<AggregateCall>, arguments: SchemaRef },
    /// Each row with the results of window functions over the rows of its key.
    Window { input: NodeId, window: WindowCalls },
    /// The first rows of each key, by an order.
    TopK { input: NodeId, order: Vec<PhysicalSortExpr>, skip: usize, fetch: Option<usize>, rank: bool },
}

/// What a keyed node keeps beside its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum KeyedValue {
    /// The whole row.
    Row,
    /// These columns; none, if only the key counts.
    Columns(Range<usize>),
}

/// What becomes of rows with a null in their key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NullKeys {
    Keep,
    /// SQL's equality: null equals nothing.
    Drop,
}

/// What a presence operator gives.
#[derive(Clone, Debug)]
pub(super) enum Emit {
    /// Rows whose key is there.
    Present,
    /// Rows whose key is not there, between two constant pieces (an outer join's nulls).
    Absent { before: Row, after: Row },
    /// All rows, followed by one of these: if the key is there, if it is not.
    Mark { present: Row, absent: Row },
}

/// Window functions over one partition and order.
#[derive(Clone, Debug)]
pub(super) struct WindowCalls {
    pub order: Vec<PhysicalSortExpr>,
    pub calls: Vec<WindowCall>,
    pub results: SchemaRef,
}

#[derive(Clone, Debug)]
pub(super) struct WindowCall {
    pub function: Arc<dyn WindowExpr>,
    /// DataFusion evaluates it rightly only for one row after the other.
    pub row_by_row: bool,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Graph {
    pub nodes: Vec<Node>,
    /// Nodes by what they do, to find the same work again.
    known: HashMap<String, NodeId>,
}

impl Graph {
    /// Adds an operator, or finds the node that does the same already.
    pub fn add(&mut self, operator: Operator, schema: SchemaRef, model: &Arc<str>) -> NodeId {
        // The name of a column is no part of what is computed; its type is.
        let types: Vec<_> = schema.fields().iter().map(|f| f.data_type()).collect();
        let identity = format!("{operator:?} {types:?}");
        *self.known.entry(identity).or_insert_with(|| {
            self.nodes.push(Node { operator, schema, model: model.clone() });
            self.nodes.len() - 1
        })
    }

    pub fn schema(&self, node: NodeId) -> &SchemaRef {
        &self.nodes[node].schema
    }

    /// Adds steps to a node; those of a node that only has steps itself are joined to them.
    pub fn linear(&mut self, input: NodeId, stages: Vec<Stage>, schema: SchemaRef, model: &Arc<str>) -> NodeId {
        let (input, stages) = self.fused(input, stages);
        if stages.is_empty() { input } else { self.add(Operator::Linear { input, stages }, schema, model) }
    }

    /// The steps before a node and `stages` in one list, and where they begin.
    pub fn fused(&self, input: NodeId, stages: Vec<Stage>) -> (NodeId, Vec<Stage>) {
        match &self.nodes[input].operator {
            Operator::Linear { input, stages: before } => (*input, before.iter().cloned().chain(stages).collect()),
            _ => (input, stages),
        }
    }

    pub fn inputs(&self, node: NodeId) -> Vec<NodeId> {
        match &self.nodes[node].operator {
            Operator::Source { .. } | Operator::Constant { .. } => vec![],
            Operator::Linear { input, .. }
            | Operator::Key { input, .. }
            | Operator::Aggregate { input, .. }
            | Operator::Window { input, .. }
            | Operator::TopK { input, .. } => vec![*input],
            Operator::Union { inputs } => inputs.clone(),
            Operator::Join { left, right } => vec![*left, *right],
            Operator::Presence { rows, keys, .. } => vec![*rows, *keys],
        }
    }

    /// Whether a node has no rows, whatever comes.
    pub fn never_has_rows(&self, node: NodeId) -> bool {
        match &self.nodes[node].operator {
            Operator::Constant { rows } => rows.is_empty(),
            Operator::Linear { input, .. } => self.never_has_rows(*input),
            _ => false,
        }
    }

    /// The nodes that `outputs` need, inputs first.
    pub fn needed(&self, outputs: impl IntoIterator<Item = NodeId>) -> Vec<NodeId> {
        let mut open: Vec<NodeId> = outputs.into_iter().collect();
        let mut needed = BTreeSet::new();
        while let Some(node) = open.pop() {
            if needed.insert(node) {
                open.extend(self.inputs(node));
            }
        }
        needed.into_iter().collect()
    }
}

impl Operator {
    /// Marks the columns of its input that it reads.
    pub fn marks(&self, read: &mut [bool]) {
        let mut mark = |expr: &Arc<dyn PhysicalExpr>| collect_columns(expr).iter().for_each(|c| read[c.index()] = true);
        if let Operator::Linear { stages, .. } | Operator::Key { stages, .. } = self {
            for stage in stages {
                match stage {
                    Stage::Filter(predicate) => mark(predicate),
                    // What comes after a projection reads that.
                    Stage::Project(exprs, _) => return exprs.iter().for_each(mark),
                }
            }
        }
        if let Operator::Key { key, value: KeyedValue::Columns(range), .. } = self {
            return key.iter().copied().chain(range.clone()).for_each(|column| read[column] = true);
        }
        read.fill(true);
    }
}

impl Node {
    /// What the operator does, in a line: its name first.
    pub fn describe(&self) -> String {
        let list = |exprs: &mut dyn Iterator<Item = String>| exprs.collect::<Vec<_>>().join(", ");
        let steps = |stages: &[Stage]| {
            list(&mut stages.iter().map(|stage| match stage {
                Stage::Project(exprs, _) => format!("project [{}]", list(&mut exprs.iter().map(|e| e.to_string()))),
                Stage::Filter(predicate) => format!("filter {predicate}"),
            }))
        };
        match &self.operator {
            Operator::Source { .. } => format!("source {}", self.model),
            Operator::Constant { rows } => format!("constant: {} rows", rows.len()),
            Operator::Linear { stages, .. } => format!("linear: {}", steps(stages)),
            Operator::Key { stages, key, nulls, .. } => {
                let key = list(&mut key.iter().map(|c| c.to_string()));
                let dropped = if *nulls == NullKeys::Drop { ", null keys dropped" } else { "" };
                let steps = if stages.is_empty() { String::new() } else { format!(", after {}", steps(stages)) };
                format!("arrange by columns [{key}]{dropped}{steps}")
            }
            Operator::Union { inputs } => format!("union of {}", inputs.len()),
            Operator::Join { .. } => "join on the key".into(),
            Operator::Presence { emit, .. } => match emit {
                Emit::Present => "semi join".into(),
                Emit::Absent { .. } => "anti join".into(),
                Emit::Mark { .. } => "mark join".into(),
            },
            Operator::Aggregate { calls, .. } if calls.is_empty() => "distinct keys".into(),
            Operator::Aggregate { calls, .. } => {
                format!("aggregate: {}", list(&mut calls.iter().map(|c| c.to_string())))
            }
            Operator::Window { window, .. } => {
                format!("window: {}", list(&mut window.calls.iter().map(|c| c.function.name().to_string())))
            }
            Operator::TopK { order, skip, fetch, rank, .. } => {
                let order = list(&mut order.iter().map(|o| o.to_string()));
                let fetch = fetch.map_or("all".into(), |n| n.to_string());
                let rank = if *rank { ", numbered" } else { "" };
                format!("top {fetch} of each key after {skip}, by [{order}]{rank}")
            }
        }
    }
}

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (id, node) in self.nodes.iter().enumerate() {
            let inputs: Vec<String> = self.inputs(id).iter().map(|i| format!("#{i}")).collect();
            writeln!(f, "#{id} {} {}", node.describe(), inputs.join(" "))?;
        }
        Ok(())
    }
}
