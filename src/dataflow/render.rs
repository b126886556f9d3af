//! Rendering builds a graph's operators in a timely scope.
//!
//! The invariant: a node is built once, however many others read it, and so is its arrangement. All operators of an epoch see the same epoch:
//! what has state waits for the epoch's end.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use differential_dataflow::operators::arrange::arrangement::arrange_core;
use differential_dataflow::operators::arrange::{Arranged, TraceAgent};
use differential_dataflow::trace::implementations::ValBatcher;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::Scope;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::Operator as _;
use timely::dataflow::operators::{Concatenate, Exchange, Inspect, ToStream};

use super::aggregate::{Aggregate, Applied};
use super::codec::concat;
use super::epochs::{Diffs, Updates, by_epoch};
use super::graph::{Graph, NodeId, Operator};
use super::key::{Key, Value, hasher};
use super::linear::Linear;
use super::presence::{Arrangement, presence};
use super::stats::{Share, Size, Stats};
use super::window::Windows;
use super::{FailedRow, Row};

/// Rows that failed, by epoch: told by all workers, taken by the one that speaks for them when the epoch is over.
pub(super) type Failures = Arc<Mutex<BTreeMap<u64, Vec<FailedRow>>>>;

/// The streams of a graph's nodes in one scope.
pub(super) struct Rendering<'scope, 'a> {
    pub scope: Scope<'scope, u64>,
    pub graph: &'a Graph,
    /// The latest rows of each table.
    pub sources: Vec<Option<Diffs<'scope, Row>>>,
    pub failures: Failures,
    /// One for each node.
    pub stats: Arc<[Arc<Stats>]>,
    pub index: usize,
    pub peers: usize,
    rows: HashMap<NodeId, Diffs<'scope, Row>>,
    keyed: HashMap<NodeId, Diffs<'scope, (Key, Value)>>,
    arranged: HashMap<NodeId, Arranged<'scope, TraceAgent<Arrangement>>>,
}

impl<'scope, 'a> Rendering<'scope, 'a> {
    pub fn new(
        scope: Scope<'scope, u64>,
        graph: &'a Graph,
        sources: Vec<Option<Diffs<'scope, Row>>>,
        failures: Failures,
        stats: Arc<[Arc<Stats>]>,
        (index, peers): (usize, usize),
    ) -> Self {
        let (rows, keyed, arranged) = Default::default();
        Rendering { scope, graph, sources, failures, stats, index, peers, rows, keyed, arranged }
    }

    /// Builds the nodes that `outputs` need.
    pub fn build(&mut self, outputs: &[NodeId]) {
        for id in self.graph.needed(outputs.iter().copied()) {
            if let Operator::Key { .. } = &self.graph.nodes[id].operator {
                let stream = self.key(id);
                self.keyed.insert(id, stream);
            } else {
                let stream = self.operator(id);
                self.rows.insert(id, stream);
            }
        }
    }

    /// The stream of a node that gives rows.
    pub fn rows(&self, id: NodeId) -> Diffs<'scope, Row> {
        self.rows[&id].clone()
    }

    /// The stream of a node that gives keys and rows.
    pub fn keyed(&self, id: NodeId) -> Diffs<'scope, (Key, Value)> {
        self.keyed[&id].clone()
    }

    fn share(&self, id: NodeId) -> Share {
        Share::new(self.stats[id].clone())
    }

    /// Updates of equal keys go to the same worker.
    fn routed(&self, stream: Diffs<'scope, (Key, Value)>) -> Diffs<'scope, (Key, Value)> {
        if self.peers == 1 {
            return stream;
        }
        let hasher = hasher();
        stream.exchange(move |((key, _), _, _)| hasher.hash_one(key))
    }

    /// A keyed node's rows by key, kept and shared.
    fn arrangement(&mut self, id: NodeId) -> Arranged<'scope, TraceAgent<Arrangement>> {
        if let Some(known) = self.arranged.get(&id) {
            return known.clone();
        }
        let (mut share, mut size) = (self.share(id), Size::default());
        let counted = self.keyed(id).unary::<CapacityContainerBuilder<Updates<(Key, Value)>>, _, _, _>(
            Pipeline,
            "size",
            move |_, _| {
                move |input, output| {
                    input.for_each(|stamp, updates| {
                        for ((key, value), _, diff) in updates.iter() {
                            size.count(*diff, key.len() + value.row.len());
                        }
                        output.session(&stamp).give_container(updates);
                    });
                    share.holds(size);
                }
            },
        );
        let name = format!("arrange #{id}");
        let arranged =
            arrange_core::<_, _, ValBatcher<_, _, _, _>, Arrangement>(counted, Pipeline, &name, ValBatcher::new);
        self.arranged.insert(id, arranged.clone());
        arranged
    }

    fn key(&mut self, id: NodeId) -> Diffs<'scope, (Key, Value)> {
        let Operator::Key { input, stages, key, value, nulls } = &self.graph.nodes[id].operator else {
            unreachable!("only keyed nodes come here");
        };
        let linear = Linear::keyed(self.graph.schema(*input), stages, key, value, *nulls);
        let hasher = hasher();
        let stream = self.evaluated(id, *input, linear, move |key, row| (key, Value::new(row, &hasher)));
        self.routed(stream)
    }

    /// Rows of `input` through projections and filters.
    fn evaluated<D: Clone + Ord + 'static>(
        &self,
        id: NodeId,
        input: NodeId,
        linear: Linear,
        make: impl Fn(Key, Row) -> D + 'static,
    ) -> Diffs<'scope, D> {
        let (failures, share) = (self.failures.clone(), self.share(id));
        let name = format!("linear #{id}");
        self.rows(input).unary::<CapacityContainerBuilder<Updates<D>>, _, _, _>(Pipeline, &name, |_, _| {
            move |input, output| {
                input.for_each(|stamp, updates| {
                    let rows: Vec<&Row> = updates.iter().map(|(row, _, _)| row).collect();
                    let (done, failed) = linear.evaluate(&rows);
                    share.updates(done.len());
                    let mut session = output.session(&stamp);
                    for evaluated in done {
                        let (_, time, diff) = &updates[evaluated.input];
                        session.give((make(evaluated.key, evaluated.row), *time, *diff));
                    }
                    drop(session);
                    let failed = failed.into_iter().map(|(n, reason)| {
                        let (row, time, diff) = &updates[n];
                        (*time, FailedRow { row: row.clone(), reason, diff: *diff })
                    });
                    tell(&failures, failed);
                    updates.clear();
                });
            }
        })
    }

    fn operator(&mut self, id: NodeId) -> Diffs<'scope, Row> {
        let node = &self.graph.nodes[id];
        let (failures, mut share) = (self.failures.clone(), self.share(id));
        let name = format!("{} #{id}", node.describe().split([':', ' ']).next().unwrap_or_default());
        match &node.operator {
            Operator::Source { table } => {
                self.sources[*table].clone().expect("every table that a plan reads has its rows")
            }
            Operator::Constant { rows } => {
                // One worker has them; they are there before the first epoch.
                let rows = if self.index == 0 { rows.clone() } else { vec![] };
                share.updates(rows.len());
                rows.into_iter().map(|row| (row, 0, 1)).to_stream(self.scope)
            }
            Operator::Linear { input, stages } => {
                let linear = Linear::rows(self.graph.schema(*input), stages, &node.schema);
                self.evaluated(id, *input, linear, |_, row| row)
            }
            Operator::Key { .. } => unreachable!("keyed nodes are built by themselves"),
            Operator::Union { inputs } => {
                let inputs: Vec<_> = inputs.iter().map(|i| self.rows(*i)).collect();
                self.scope.concatenate(inputs).inspect_core(move |event| {
                    if let Ok((_, updates)) = event {
                        share.updates(updates.len());
                    }
                })
            }
            Operator::Join { left, right } => {
                let (left, right) = (self.arrangement(*left), self.arrangement(*right));
                left.join_core(right, move |_, left: &Value, right: &Value| {
                    share.updates(1);
                    Some(concat(&left.row, &right.row))
                })
                .inner
            }
            Operator::Presence { rows, keys, emit } => {
                let rows = self.arrangement(*rows);
                presence(rows, self.keyed(*keys), emit.clone(), share)
            }
            Operator::Aggregate { input, calls, arguments } => {
                let always = node.schema.fields().len() == calls.len();
                let mut state = Aggregate::new(calls.clone(), arguments, always);
                by_epoch(self.keyed(*input), &name, move |time, updates, out| {
                    let applied = state.apply(&updates).expect("planning has checked the calls' types");
                    give(applied, time, out, &failures, &mut share, state.size());
                })
            }
            Operator::Window { .. } | Operator::TopK { .. } => {
                let (input, state) = match &node.operator {
                    Operator::Window { input, window } => {
                        (*input, Windows::functions(self.graph.schema(*input), window.clone()))
                    }
                    Operator::TopK { input, order, skip, fetch, rank } => {
                        (*input, Windows::first(self.graph.schema(*input), order.clone(), *skip, *fetch, *rank))
                    }
                    _ => unreachable!("both kinds are above"),
                };
                let mut state = state.expect("planning has checked the order's types");
                by_epoch(self.keyed(input), &name, move |time, updates, out| {
                    let applied = state.apply(&updates).expect("planning has checked the order's types");
                    give(applied, time, out, &failures, &mut share, state.size());
                })
            }
        }
    }
}

/// Hands on what an epoch came to.
fn give(applied: Applied, time: u64, out: &mut Vec<(Row, isize)>, failures: &Failures, share: &mut Share, size: Size) {
    share.updates(applied.out.len());
    share.holds(size);
    out.extend(applied.out);
    let failed = applied.failed.into_iter().map(|(row, reason, diff)| (time, FailedRow { row, reason, diff }));
    tell(failures, failed);
}

fn tell(failures: &Failures, failed: impl Iterator<Item = (u64, FailedRow)>) {
    let mut failed = failed.peekable();
    if failed.peek().is_some() {
        let mut known = failures.lock().expect("no holder of this lock panics");
        failed.for_each(|(time, row)| known.entry(time).or_default().push(row));
    }
}
