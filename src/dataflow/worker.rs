//! Timely workers that maintain the graph, on threads of their own, and the handle that feeds them.
//!
//! The invariant: epochs come out in the order in which they went in, each once, when every operator is done with it. The threads wait for
//! nobody but their input.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use differential_dataflow::consolidation::consolidate;
use timely::communication::allocator::thread::Thread;
use timely::communication::{Allocator, AllocatorBuilder};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::Probe;
use timely::dataflow::operators::generic::Operator as _;
use timely::dataflow::{InputHandle, ProbeHandle, Scope};
use timely::worker::Worker;

use super::epochs::{Diffs, Updates};
use super::graph::Operator;
use super::key::{Key, hasher};
use super::plan::Plan;
use super::render::{Failures, Rendering};
use super::stats::{OperatorStatus, Share, Stats};
use super::upsert::{Event, EventOp, Upsert};
use super::view::{View, ViewDiff};
use super::{EpochOutput, FailedRow, Row, Violation};
use crate::decode::{Decoded, Op, RowType};
use crate::time::{Epoch, Position};

/// Stack of a worker: DataFusion's expressions call themselves once for each level that they nest, of which planning lets a thousand
/// pass. Only what is used of it is ever taken.
const STACK_BYTES: usize = 64 << 20;
/// Epochs that may be under way; more would only wait.
const EPOCHS_IN_FLIGHT: usize = 8;

/// How long a worker may go on waiting for one that has panicked.
const DEAD_AFTER: Duration = Duration::from_millis(100);

/// The workers are gone: they were shut down, or one of them panicked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the dataflow has stopped")]
pub struct Stopped;

/// Starts dataflows.
pub struct Engine;

/// Feeds a running dataflow and takes its results. Dropping it shuts the dataflow down.
pub struct Handle {
    plan: Arc<Plan>,
    stats: Arc<[Arc<Stats>]>,
    /// Whether a worker has panicked: the others wait for it in vain.
    dead: Arc<AtomicBool>,
    input: Option<SyncSender<Fed>>,
    output: Mutex<Receiver<EpochOutput>>,
    thread: Option<JoinHandle<()>>,
}

/// An epoch that goes in.
struct Fed {
    epoch: Epoch,
    decoded: Vec<Decoded>,
    /// Whether all of the view is to come out with it.
    whole: bool,
}

type Seed = (Receiver<Fed>, std::sync::mpsc::Sender<EpochOutput>);

impl Engine {
    /// Starts `workers` threads. `row_types` are the tables', in the plan's order, which is the sources'.
    pub fn start(plan: Plan, row_types: Vec<Arc<RowType>>, workers: usize) -> Result<Handle, String> {
        let plan = Arc::new(plan);
        let stats: Arc<[Arc<Stats>]> = plan.graph.nodes.iter().map(|_| Arc::default()).collect();
        let failures = Failures::default();
        let (input, commands) = sync_channel(EPOCHS_IN_FLIGHT);
        let (results, output) = channel();
        let seed: Arc<Mutex<Option<Seed>>> = Arc::new(Mutex::new(Some((commands, results))));
        let config = if workers > 1 { timely::Config::process(workers) } else { timely::Config::thread() };
        let (of_workers, counters) = (plan.clone(), stats.clone());
        let dead = Arc::new(AtomicBool::new(false));
        let (of_workers_dead, of_feed) = (dead.clone(), dead.clone());
        let work: Work = Arc::new(move |worker| {
            let seed = if worker.index() == 0 { seed.lock().ok().and_then(|mut s| s.take()) } else { None };
            let work = || {
                run(worker, &of_workers, &row_types, &failures, &counters, &of_feed, seed);
                // The others only have their share of the work, and end when the first one has closed its inputs.
                while worker.has_dataflows() && !of_feed.load(Ordering::SeqCst) {
                    // Nobody wakes a worker to tell it of another one's panic.
                    worker.step_or_park(Some(DEAD_AFTER));
                }
            };
            if std::panic::catch_unwind(AssertUnwindSafe(work)).is_err() {
                tracing::error!("a dataflow worker panicked");
                of_workers_dead.store(true, Ordering::SeqCst);
            }
        });
        let thread = spawn(config, &work)?;
        Ok(Handle { plan, stats, dead, input: Some(input), output: Mutex::new(output), thread: Some(thread) })
    }
}

/// What each worker does.
type Work = Arc<dyn Fn(&mut Worker) + Send + Sync>;

/// Starts the workers as `timely::execute` does, which cannot be told how large their stacks are. The thread that is returned ends after them.
fn spawn(config: timely::Config, work: &Work) -> Result<JoinHandle<()>, String> {
    let failed = |e: std::io::Error| format!("a thread cannot be started: {e}");
    let (builders, others) = config.communication.try_build()?;
    let mut threads = Vec::new();
    for (index, builder) in builders.into_iter().enumerate() {
        let (work, of_worker) = (work.clone(), config.worker.clone());
        let run = move || {
            let allocator = match builder {
                AllocatorBuilder::Thread(_) => Allocator::Thread(Thread::default()),
                AllocatorBuilder::Process(process) => Allocator::Process(process.build()),
                AllocatorBuilder::Tcp(tcp) => Allocator::Tcp(tcp.build()),
            };
            let mut worker = Worker::new(of_worker, allocator, Some(Instant::now()));
            work(&mut worker);
        };
        let thread = std::thread::Builder::new().name(format!("timely:work-{index}")).stack_size(STACK_BYTES);
        threads.push(thread.spawn(run).map_err(failed)?);
    }
    let join = move || {
        // A panic in one was logged when it happened.
        threads.into_iter().for_each(|thread| drop(thread.join()));
        drop(others);
    };
    std::thread::Builder::new().name("dataflow".into()).spawn(join).map_err(failed)
}

impl Handle {
    /// Feeds one epoch; waits while too many are under way. Epochs only grow.
    pub fn send(&self, epoch: Epoch, decoded: Vec<Decoded>) -> Result<(), Stopped> {
        self.feed(Fed { epoch, decoded, whole: false })
    }

    /// The same, and asks for all of the view as it is after the epoch.
    pub fn send_for_whole(&self, epoch: Epoch, decoded: Vec<Decoded>) -> Result<(), Stopped> {
        self.feed(Fed { epoch, decoded, whole: true })
    }

    fn feed(&self, fed: Fed) -> Result<(), Stopped> {
        self.input.as_ref().ok_or(Stopped)?.send(fed).map_err(|_| Stopped)
    }

    /// The operators, inputs first, and what each holds and has done.
    pub fn operators(&self) -> Vec<OperatorStatus> {
        let graph = &self.plan.graph;
        let status = |id: usize| {
            let node = &graph.nodes[id];
            self.stats[id].status(id, node.describe(), node.model.to_string(), graph.inputs(id))
        };
        graph.needed(self.plan.outputs()).into_iter().map(status).collect()
    }

    /// The next finished epoch; `None` when there is none within `timeout`.
    pub fn recv(&self, timeout: Duration) -> Result<Option<EpochOutput>, Stopped> {
        match self.output.lock().map_err(|_| Stopped)?.recv_timeout(timeout) {
            Ok(output) => Ok(Some(output)),
            Err(RecvTimeoutError::Timeout) if self.dead.load(Ordering::SeqCst) => Err(Stopped),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(Stopped),
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        drop(self.input.take());
        // Workers whose peer has panicked wait for it for ever; the process is about to end.
        if let Some(thread) = self.thread.take().filter(|_| !self.dead.load(Ordering::SeqCst)) {
            // A panic in it was logged when it happened.
            let _ = thread.join();
        }
    }
}

/// What has arrived of the view in the epochs that are not done, at the worker that gathers.
#[derive(Default)]
struct Gathered {
    keyed: BTreeMap<u64, Vec<ViewDiff>>,
    rows: BTreeMap<u64, Vec<(Row, isize)>>,
    /// Rows that fail a test, by its index.
    violations: BTreeMap<u64, Vec<ViolationDiff>>,
}

/// A row that fails the test of this index, and its diff.
type ViolationDiff = ((usize, Row), isize);

type Input = InputHandle<u64, CapacityContainerBuilder<Vec<Event>>>;

fn run(
    worker: &mut Worker,
    plan: &Plan,
    row_types: &[Arc<RowType>],
    failures: &Failures,
    stats: &Arc<[Arc<Stats>]>,
    dead: &Arc<AtomicBool>,
    seed: Option<Seed>,
) {
    let gathered = Rc::new(RefCell::new(Gathered::default()));
    let probe = ProbeHandle::new();
    let place = (worker.index(), worker.peers());
    let needed = plan.graph.needed(plan.outputs());
    let inputs = worker.dataflow::<u64, _, _>(|scope| {
        let (mut inputs, mut sources) = (Vec::new(), Vec::new());
        for (table, row_type) in row_types.iter().enumerate() {
            let source = needed
                .iter()
                .find(|id| matches!(&plan.graph.nodes[**id].operator, Operator::Source { table: t } if *t == table));
            // A table that no model reads is not kept.
            let (input, rows) = match source {
                Some(id) => {
                    let mut input = Input::new();
                    let rows = latest(&mut input, scope, row_type.clone(), Share::new(stats[*id].clone()));
                    (Some(input), Some(rows))
                }
                None => (None, None),
            };
            inputs.push(input);
            sources.push(rows);
        }
        let mut rendering = Rendering::new(scope, &plan.graph, sources, failures.clone(), stats.clone(), place);
        rendering.build(&plan.outputs());
        let into = gathered.clone();
        if plan.keyed {
            let view = rendering.keyed(plan.view);
            gather(view, &probe, move |time, keyed, diff| {
                into.borrow_mut().keyed.entry(time).or_default().push((keyed, diff));
            });
        } else {
            let view = rendering.rows(plan.view);
            gather(view, &probe, move |time, row, diff| {
                into.borrow_mut().rows.entry(time).or_default().push((row, diff));
            });
        }
        for (test, output) in plan.tests.iter().enumerate() {
            let into = gathered.clone();
            gather(rendering.rows(output.node), &probe, move |time, row, diff| {
                into.borrow_mut().violations.entry(time).or_default().push(((test, row), diff));
            });
        }
        inputs
    });
    if let Some((commands, results)) = seed {
        let (failures, dead) = (failures.clone(), dead.clone());
        let view = plan.keyed.then(|| (View::default(), Share::new(stats[plan.view].clone())));
        let feed = Feed { inputs, probe, gathered, failures, commands, results, view, dead };
        feed.run(worker);
    }
}

/// The latest rows of a table as diffs.
fn latest<'scope>(
    input: &mut Input,
    scope: Scope<'scope, u64>,
    row_type: Arc<RowType>,
    mut share: Share,
) -> Diffs<'scope, Row> {
    let mut upsert = Upsert::new(row_type);
    input.to_stream(scope).unary::<CapacityContainerBuilder<Updates<Row>>, _, _, _>(
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
                    share.updates(diffs.len());
                    share.holds(upsert.size());
                    share.lacks(upsert.not_sent());
                    output.session(&stamp).give_iterator(diffs.into_iter());
                });
            }
        },
    )
}

/// Brings a stream to the first worker.
fn gather<'scope, D>(stream: Diffs<'scope, D>, probe: &ProbeHandle<u64>, mut take: impl FnMut(u64, D, isize) + 'static)
where
    D: differential_dataflow::ExchangeData,
{
    stream
        .unary::<CapacityContainerBuilder<Vec<()>>, _, _, _>(
            Exchange::new(|_: &(D, u64, isize)| 0),
            "gather",
            |_, _| {
                move |input, _| {
                    input.for_each(|_, updates| updates.drain(..).for_each(|(d, time, diff)| take(time, d, diff)));
                }
            },
        )
        .container::<Vec<()>>()
        .probe_with(probe);
}

/// The first worker's part: it takes epochs, hands their events to all, and tells what came of them.
struct Feed {
    /// One for each table; `None` for a table that no model reads.
    inputs: Vec<Option<Input>>,
    probe: ProbeHandle<u64>,
    gathered: Rc<RefCell<Gathered>>,
    failures: Failures,
    commands: Receiver<Fed>,
    results: std::sync::mpsc::Sender<EpochOutput>,
    /// `None` where the view's rows come out as a multiset.
    view: Option<(View, Share)>,
    dead: Arc<AtomicBool>,
}

impl Feed {
    fn run(mut self, worker: &mut Worker) {
        let peers = worker.peers() as u64;
        let hasher = hasher();
        let mut applied = Position::default();
        let mut under_way: VecDeque<(Epoch, bool)> = VecDeque::new();
        while !self.dead.load(Ordering::SeqCst) {
            // With nothing under way there is nothing to step for: sleep until something comes.
            let command = if under_way.is_empty() {
                self.commands.recv().map_err(|_| TryRecvError::Disconnected)
            } else {
                self.commands.try_recv()
            };
            match command {
                Ok(Fed { epoch, decoded, whole }) => {
                    self.advance(epoch.0);
                    for batch in decoded {
                        let seen = applied.get(&batch.partition).unwrap_or_default();
                        applied.advance(&batch.partition, batch.end);
                        let Some(input) = &mut self.inputs[batch.source] else { continue };
                        for change in batch.changes.into_iter().filter(|c| c.offset >= seen) {
                            let op = match change.op {
                                Op::Upsert { row, unavailable } => EventOp::Upsert { row, unavailable },
                                Op::Delete => EventOp::Delete,
                                Op::Truncate => {
                                    for route in 0..peers {
                                        input.send(Event { route, key: Key::default(), op: EventOp::Truncate });
                                    }
                                    continue;
                                }
                            };
                            let key = Key::from(&*change.key);
                            input.send(Event { route: hasher.hash_one(&key), key, op });
                        }
                    }
                    self.advance(epoch.0 + 1);
                    under_way.push_back((epoch, whole));
                }
                Err(TryRecvError::Empty) => {
                    worker.step_or_park(Some(Duration::from_micros(200)));
                }
                Err(TryRecvError::Disconnected) if under_way.is_empty() => return,
                Err(TryRecvError::Disconnected) => {
                    worker.step();
                }
            }
            while let Some((epoch, whole)) = under_way.front().copied().filter(|e| !self.probe.less_than(&(e.0.0 + 1)))
            {
                under_way.pop_front();
                let output = self.output(epoch, whole);
                if self.results.send(output).is_err() {
                    return;
                }
            }
        }
    }

    fn advance(&mut self, time: u64) {
        self.inputs.iter_mut().flatten().for_each(|input| input.advance_to(time));
    }

    /// What an epoch that is over came to; constants, which were there before the first epoch, come with it.
    fn output(&mut self, epoch: Epoch, whole: bool) -> EpochOutput {
        let (keyed, mut diffs, mut violations) = {
            let mut gathered = self.gathered.borrow_mut();
            (
                until(&mut gathered.keyed, epoch),
                until(&mut gathered.rows, epoch),
                until(&mut gathered.violations, epoch),
            )
        };
        consolidate(&mut diffs);
        consolidate(&mut violations);
        let violations = violations.into_iter().map(|((test, row), diff)| Violation { test, row, diff }).collect();
        let failures = until(&mut self.failures.lock().expect("no holder of this lock panics"), epoch);
        let mut failed: Vec<_> = failures.into_iter().map(|f| ((f.row, f.reason), f.diff)).collect();
        // A row that failed on two ways with one result each way has not changed.
        consolidate(&mut failed);
        let failed_rows = failed.into_iter().map(|((row, reason), diff)| FailedRow { row, reason, diff }).collect();
        let (mut changes, mut view_rows, mut duplicate_keys) = (Vec::new(), 0, 0);
        if let Some((view, share)) = &mut self.view {
            changes = view.apply(keyed);
            share.holds(view.size());
            (view_rows, duplicate_keys) = (view.len(), view.duplicates());
        }
        let whole = self.view.as_ref().filter(|_| whole).map(|(view, _)| view.whole());
        EpochOutput { epoch, changes, diffs, view_rows, duplicate_keys, failed_rows, violations, whole }
    }
}

/// Takes what came up to an epoch.
fn until<D>(waiting: &mut BTreeMap<u64, Vec<D>>, epoch: Epoch) -> Vec<D> {
    let later = waiting.split_off(&(epoch.0 + 1));
    std::mem::replace(waiting, later).into_values().flatten().collect()
}
