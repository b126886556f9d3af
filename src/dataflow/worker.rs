//! Timely workers that maintain the graph, on threads of their own, and the handle that feeds them.
//!
//! The invariant: epochs come out in the order in which they went in, each once, when every operator is done with it. The threads wait for
//! nobody but their input.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use differential_dataflow::consolidation::consolidate_updates;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::Probe;
use timely::dataflow::operators::generic::Operator;
use timely::dataflow::{InputHandle, ProbeHandle};

use super::linear::Linear;
use super::plan::{Node, Plan};
use super::upsert::{Event, EventOp, Upsert};
use super::view::{View, ViewDiff};
use super::{EpochOutput, FailedRow, Row};
use crate::decode::{Decoded, Op, RowType};
use crate::time::{Epoch, Position};

/// Epochs that may be under way; more would only wait.
const EPOCHS_IN_FLIGHT: usize = 8;

/// The workers are gone: they were shut down, or one of them panicked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the dataflow has stopped")]
pub struct Stopped;

/// Starts dataflows.
pub struct Engine;

/// Feeds a running dataflow and takes its results. Dropping it shuts the dataflow down.
pub struct Handle {
    input: Option<SyncSender<(Epoch, Vec<Decoded>)>>,
    output: Mutex<Receiver<EpochOutput>>,
    thread: Option<JoinHandle<()>>,
}

/// A row of the view with its key, or a row that failed and why; its time and diff.
type Evaluation = (Result<(Box<[u8]>, Row), (Row, String)>, u64, isize);

type Seed = (Receiver<(Epoch, Vec<Decoded>)>, std::sync::mpsc::Sender<EpochOutput>);

impl Engine {
    /// Starts `workers` threads. `row_types` are the tables', in the plan's order, which is the sources'.
    pub fn start(plan: Plan, row_types: Vec<Arc<RowType>>, workers: usize) -> Result<Handle, String> {
        let (input, commands) = sync_channel(EPOCHS_IN_FLIGHT);
        let (results, output) = channel();
        let seed: Arc<Mutex<Option<Seed>>> = Arc::new(Mutex::new(Some((commands, results))));
        let config = if workers > 1 { timely::Config::process(workers) } else { timely::Config::thread() };
        let guards = timely::execute(config, move |worker| {
            let seed = if worker.index() == 0 { seed.lock().ok().and_then(|mut s| s.take()) } else { None };
            run(worker, &plan, &row_types, seed);
        })?;
        let thread = std::thread::Builder::new()
            .name("dataflow".into())
            .spawn(move || {
                for joined in guards.join() {
                    if let Err(e) = joined {
                        tracing::error!(reason = e, "a dataflow worker panicked");
                    }
                }
            })
            .map_err(|e| e.to_string())?;
        Ok(Handle { input: Some(input), output: Mutex::new(output), thread: Some(thread) })
    }
}

impl Handle {
    /// Feeds one epoch; waits while too many are under way. Epochs only grow.
    pub fn send(&self, epoch: Epoch, decoded: Vec<Decoded>) -> Result<(), Stopped> {
        self.input.as_ref().ok_or(Stopped)?.send((epoch, decoded)).map_err(|_| Stopped)
    }

    /// The next finished epoch; `None` when there is none within `timeout`.
    pub fn recv(&self, timeout: Duration) -> Result<Option<EpochOutput>, Stopped> {
        match self.output.lock().map_err(|_| Stopped)?.recv_timeout(timeout) {
            Ok(output) => Ok(Some(output)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(Stopped),
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        drop(self.input.take());
        if let Some(thread) = self.thread.take() {
            // A panic in it was logged when it happened.
            let _ = thread.join();
        }
    }
}

/// What has arrived of the epochs that are not done, at the worker that gathers.
#[derive(Default)]
struct Gathered {
    diffs: BTreeMap<u64, Vec<ViewDiff>>,
    failed: BTreeMap<u64, Vec<FailedRow>>,
}

fn run(worker: &mut timely::worker::Worker, plan: &Plan, row_types: &[Arc<RowType>], seed: Option<Seed>) {
    let Node::Linear { table, stages } = plan.node.clone();
    let row_type = row_types[table].clone();
    let gathered = Rc::new(RefCell::new(Gathered::default()));
    let mut input = InputHandle::<u64, timely::container::CapacityContainerBuilder<Vec<Event>>>::new();
    let probe = ProbeHandle::new();
    let peers = worker.peers() as u64;
    worker.dataflow::<u64, _, _>(|scope| {
        let mut upsert = Upsert::new(row_type.clone());
        let rows = input
            .to_stream(scope)
            .unary::<timely::container::CapacityContainerBuilder<Vec<(Row, u64, isize)>>, _, _, _>(
                Exchange::new(|event: &Event| event.route),
                "upsert",
                |_, _| {
                    move |input, output| {
                        // Container by container as they come: grouping them could put two of one epoch in another order.
                        input.for_each(|stamp, events| {
                            // Records without a time make no claim on the view; none is ever sent.
                            let Some(time) = stamp.stamp().least().copied() else { return };
                            let mut diffs = Vec::new();
                            for event in events.drain(..) {
                                upsert.apply(event, |row, diff| diffs.push((row, time, diff)));
                            }
                            consolidate_updates(&mut diffs);
                            output.session(&stamp).give_iterator(diffs.into_iter());
                        });
                    }
                },
            );
        let linear = Linear::new(row_type.clone(), stages, &plan.view_schema, plan.key_column);
        let view = rows.unary::<timely::container::CapacityContainerBuilder<Vec<Evaluation>>, _, _, _>(
            Pipeline,
            "linear",
            |_, _| {
                move |input, output| {
                    input.for_each(|stamp, diffs| {
                        let rows: Vec<&[u8]> = diffs.iter().map(|(row, _, _)| &**row).collect();
                        let (done, failed) = linear.evaluate(&rows);
                        let mut session = output.session(&stamp);
                        for evaluated in done {
                            let (_, time, diff) = &diffs[evaluated.input];
                            session.give((Ok((evaluated.key, evaluated.row)), *time, *diff));
                        }
                        for (input, reason) in failed {
                            let (row, time, diff) = &diffs[input];
                            session.give((Err((row.clone(), reason)), *time, *diff));
                        }
                        drop(session);
                        diffs.clear();
                    });
                }
            },
        );
        let into = gathered.clone();
        view.unary::<timely::container::CapacityContainerBuilder<Vec<()>>, _, _, _>(
            Exchange::new(|_: &Evaluation| 0),
            "gather",
            |_, _| {
                move |input, _| {
                    input.for_each(|_, diffs| {
                        let mut gathered = into.borrow_mut();
                        for (result, time, diff) in diffs.drain(..) {
                            match result {
                                Ok(keyed) => gathered.diffs.entry(time).or_default().push((keyed, diff)),
                                Err((row, reason)) => {
                                    gathered.failed.entry(time).or_default().push(FailedRow { row, reason, diff })
                                }
                            }
                        }
                    });
                }
            },
        )
        .container::<Vec<()>>()
        .probe_with(&probe);
    });
    match seed {
        Some((commands, results)) => feed(worker, input, &probe, peers, table, &commands, &results, &gathered),
        // The others only have their share of the work, and end when the first one closes its input.
        None => input.close(),
    }
}

#[allow(clippy::too_many_arguments)]
fn feed(
    worker: &mut timely::worker::Worker,
    mut input: InputHandle<u64, timely::container::CapacityContainerBuilder<Vec<Event>>>,
    probe: &ProbeHandle<u64>,
    peers: u64,
    table: usize,
    commands: &Receiver<(Epoch, Vec<Decoded>)>,
    results: &std::sync::mpsc::Sender<EpochOutput>,
    gathered: &Rc<RefCell<Gathered>>,
) {
    let hasher = ahash::RandomState::with_seeds(1, 2, 3, 4);
    let mut applied = Position::default();
    let mut view = View::default();
    let mut under_way: std::collections::VecDeque<Epoch> = Default::default();
    loop {
        // With nothing under way there is nothing to step for: sleep until something comes.
        let command = if under_way.is_empty() {
            commands.recv().map_err(|_| TryRecvError::Disconnected)
        } else {
            commands.try_recv()
        };
        match command {
            Ok((epoch, decoded)) => {
                input.advance_to(epoch.0);
                for batch in decoded.into_iter() {
                    let seen = applied.get(&batch.partition).unwrap_or_default();
                    for change in batch.changes.into_iter().filter(|c| c.offset >= seen && batch.source == table) {
                        let op = match change.op {
                            Op::Upsert { row, unavailable } => EventOp::Upsert { row, unavailable },
                            Op::Delete => EventOp::Delete,
                            Op::Truncate => {
                                for route in 0..peers {
                                    input.send(Event { route, key: Box::default(), op: EventOp::Truncate });
                                }
                                continue;
                            }
                        };
                        input.send(Event { route: hasher.hash_one(&change.key), key: change.key, op });
                    }
                    applied.advance(&batch.partition, batch.end);
                }
                input.advance_to(epoch.0 + 1);
                under_way.push_back(epoch);
            }
            Err(TryRecvError::Empty) => {
                worker.step_or_park(Some(Duration::from_micros(200)));
            }
            Err(TryRecvError::Disconnected) if under_way.is_empty() => return,
            Err(TryRecvError::Disconnected) => {
                worker.step();
            }
        }
        while let Some(epoch) = under_way.front().copied().filter(|e| !probe.less_than(&(e.0 + 1))) {
            under_way.pop_front();
            let (diffs, failed_rows) = {
                let mut gathered = gathered.borrow_mut();
                (
                    gathered.diffs.remove(&epoch.0).unwrap_or_default(),
                    gathered.failed.remove(&epoch.0).unwrap_or_default(),
                )
            };
            let changes = view.apply(diffs);
            let output =
                EpochOutput { epoch, changes, view_rows: view.len(), duplicate_keys: view.duplicates(), failed_rows };
            if results.send(output).is_err() {
                return;
            }
        }
    }
}
