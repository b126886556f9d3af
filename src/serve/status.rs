//! What the service says about itself: the state of the engine and why, how far it is, how fresh its answers are.
//!
//! The invariant: one truth for each figure. Counts live in [`Metrics`] and are read from there; the epoch and the position only move
//! forward. Setters are cheap enough for every epoch; nothing here waits for anything but a short lock.

mod building;
mod json;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use building::Building;

use super::freshness::Window;
use super::metrics::Metrics;
use crate::dataflow::{OperatorStatus, TestOutput};
use crate::source::Watermarks;
use crate::time::{Epoch, Partition, Position};

/// What the engine is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Filling the state of the dataflow from what was kept.
    Hydrating,
    /// Reading towards the position that the index already reflects, or through a backlog.
    CatchingUp,
    /// Every change is searchable soon after its commit.
    Live,
    /// A peer is away; the engine asks again until it is back.
    Waiting,
    /// Stopped for good; the reason says by what.
    Failed,
}

impl State {
    pub const ALL: [State; 5] = [State::Hydrating, State::CatchingUp, State::Live, State::Waiting, State::Failed];

    pub fn name(self) -> &'static str {
        match self {
            State::Hydrating => "hydrating",
            State::CatchingUp => "catching_up",
            State::Live => "live",
            State::Waiting => "waiting",
            State::Failed => "failed",
        }
    }
}

/// What may have to be waited for; the first of them that is says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wait {
    /// No broker answers.
    Broker,
    /// Something else without which nothing can be read.
    Peer,
    /// Partitions that no broker answers for; the others are read.
    Partitions,
    /// Raw's storage. The index goes on meanwhile, until the queue before raw is full: only then the service waits.
    Raw,
    /// The quarantine's storage. The index does not go on past a message that was rejected meanwhile.
    Quarantine,
    /// The index's storage.
    Index,
    /// A connector that is not heard of. What it wrote is searchable; what the database has changed since is not known.
    Connector,
}

/// Shared by the engine, which sets, and the API, which tells.
#[derive(Debug)]
pub struct Status {
    metrics: Arc<Metrics>,
    started: Instant,
    /// Whether answers are worth having; once true, it stays true.
    ready: AtomicBool,
    now: Mutex<Now>,
    freshness: Mutex<Window>,
}

#[derive(Debug)]
struct Now {
    /// What the engine does as far as it depends on itself: never [`State::Waiting`].
    state: State,
    why: String,
    /// What is away meanwhile, and why it is thought so.
    waiting: BTreeMap<Wait, String>,
    /// Whether the queue before raw has no room.
    raw_is_full: bool,
    /// Since when the state is what is shown.
    since: Instant,
    epoch: Epoch,
    position: Position,
    /// What each partition holds, as it was last looked at.
    marks: BTreeMap<Partition, Watermarks>,
    /// How far raw has landed; there may be no raw.
    landed: Option<Position>,
    /// The dataflow's operators, each with its updates in a second since it was told of before.
    operators: Vec<(OperatorStatus, f64)>,
    operators_told: Instant,
    /// Data tests and how many rows fail each.
    tests: Vec<(TestOutput, i64)>,
    /// The table that is searched.
    table: Option<String>,
    building: Building,
}

impl Now {
    /// The state as it is shown. Whoever waits is still where it was before, and goes on from there; a failure is not waited for.
    fn shown(&self) -> (State, &str) {
        let mut waiting = self.waiting.iter().filter(|(wait, _)| **wait != Wait::Raw || self.raw_is_full);
        match waiting.next() {
            Some((_, why)) if self.state != State::Failed => (State::Waiting, why),
            _ => (self.state, &self.why),
        }
    }

    /// Events of each partition that were there when it was last looked at, and are not searchable yet.
    fn lag(&self) -> BTreeMap<Partition, u64> {
        let behind = |(partition, marks): (&Partition, &Watermarks)| {
            let done = self.position.get(partition).unwrap_or_default().max(marks.low);
            (partition.clone(), (marks.high.0 - done.0).max(0) as u64)
        };
        self.marks.iter().map(behind).collect()
    }
}

impl Status {
    pub fn new(metrics: Arc<Metrics>) -> Status {
        let started = Instant::now();
        let now = Now {
            state: State::Hydrating,
            why: "the service is starting".into(),
            waiting: BTreeMap::new(),
            raw_is_full: false,
            since: started,
            epoch: Epoch(0),
            position: Position::default(),
            marks: BTreeMap::new(),
            landed: None,
            operators: Vec::new(),
            operators_told: started,
            tests: Vec::new(),
            table: None,
            building: Building::Not,
        };
        Status {
            metrics,
            started,
            ready: AtomicBool::new(false),
            now: Mutex::new(now),
            freshness: Mutex::new(Window::new(started)),
        }
    }

    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The state and one sentence why. [`State::Live`] also makes the service ready. A failure is final: it keeps its reason.
    pub fn set_state(&self, state: State, why: impl Into<String>) {
        assert!(state != State::Waiting, "waiting lies over a state and is said with set_waiting");
        self.change(|now| {
            if now.state != State::Failed {
                (now.state, now.why) = (state, why.into());
            }
        });
        if state == State::Live {
            self.set_ready();
        }
    }

    /// Says why something has to be waited for, or that it no longer has to. Whatever the engine was doing goes on beneath.
    pub fn set_waiting(&self, wait: Wait, why: Option<String>) {
        self.change(|now| match why {
            Some(why) => drop(now.waiting.insert(wait, why)),
            None => drop(now.waiting.remove(&wait)),
        });
    }

    /// Says whether reading stands still because the queue before raw has no room.
    pub fn set_raw_is_full(&self, is_full: bool) {
        self.change(|now| now.raw_is_full = is_full);
    }

    fn change(&self, change: impl FnOnce(&mut Now)) {
        let mut now = self.now();
        let before = now.shown().0;
        change(&mut now);
        let after = now.shown().0;
        if before != after {
            now.since = Instant::now();
            self.metrics.set_state(after);
        }
    }

    pub fn state(&self) -> State {
        self.now().shown().0
    }

    /// What the engine does, whether it has to wait meanwhile or not.
    pub fn state_beneath(&self) -> State {
        self.now().state
    }

    /// The state with its reason.
    pub fn state_and_why(&self) -> (State, String) {
        let now = self.now();
        let (state, why) = now.shown();
        (state, why.to_string())
    }

    /// Says that answers are worth having although the engine is not live yet: the index reflects what it did before a restart.
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Relaxed);
    }

    /// Whether the service has been live, or serves what it had before a restart; and the engine has not failed.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed) && self.state() != State::Failed
    }

    /// An index commit: searches now reflect this epoch and position. One that is older changes nothing.
    pub fn set_committed(&self, epoch: Epoch, position: &Position) {
        let mut now = self.now();
        now.epoch = now.epoch.max(epoch);
        now.position.join(position);
        self.metrics.set_lag(&now.lag());
    }

    pub fn epoch(&self) -> Epoch {
        self.now().epoch
    }

    pub fn position(&self) -> Position {
        self.now().position.clone()
    }

    /// What each partition holds, which the lag is counted from; partitions that are not named are forgotten.
    pub fn set_watermarks(&self, marks: impl IntoIterator<Item = (Partition, Watermarks)>) {
        let mut now = self.now();
        now.marks = marks.into_iter().collect();
        self.metrics.set_lag(&now.lag());
    }

    /// How far a source's raw table has landed. Others keep theirs.
    pub fn set_landed(&self, landed: &Position) {
        self.now().landed.get_or_insert_default().join(landed);
    }

    /// How far the raw tables have landed.
    pub fn landed(&self) -> Position {
        self.now().landed.clone().unwrap_or_default()
    }

    /// What the dataflow's operators hold and have done, inputs first.
    pub fn set_operators(&self, operators: Vec<OperatorStatus>) {
        let mut now = self.now();
        let seconds = now.operators_told.elapsed().as_secs_f64().max(1e-3);
        let before: BTreeMap<usize, (u64, u64)> =
            now.operators.iter().map(|(o, _)| (o.id, (o.updates, o.not_sent))).collect();
        now.operators = operators
            .into_iter()
            .map(|o| {
                let (updates, not_sent) = before.get(&o.id).copied().unwrap_or_default();
                if o.not_sent > not_sent {
                    let (source, values) = (&o.model, o.not_sent - not_sent);
                    self.metrics().values_not_sent.inc_by(values);
                    tracing::warn!(
                        source,
                        values,
                        "values that the database did not send, and that no former row had, are null until it sends them"
                    );
                }
                let since = o.updates.saturating_sub(updates);
                (o, since as f64 / seconds)
            })
            .collect();
        now.operators_told = Instant::now();
    }

    /// How many rows fail each data test.
    pub fn set_tests(&self, tests: Vec<(TestOutput, i64)>) {
        self.now().tests = tests;
    }

    /// Events of all partitions that are not searchable yet.
    pub fn lag_total(&self) -> u64 {
        self.now().lag().values().sum()
    }

    /// Changes that have just become searchable: for each, the milliseconds since the source's commit. Clocks that disagree may make
    /// one negative: it counts as 0.
    pub fn observe_freshness(&self, changes_ms: impl IntoIterator<Item = i64>) {
        let now = Instant::now();
        let mut window = self.window();
        for ms in changes_ms {
            let ms = ms.max(0) as u64;
            window.observe(now, ms);
            self.metrics.observe_freshness(ms);
        }
    }

    /// The p50 and p99 of the sliding window in milliseconds; `None` when nothing became searchable in it.
    pub fn freshness_ms(&self) -> Option<(f64, f64)> {
        let now = Instant::now();
        let window = self.window();
        Some((window.quantile(now, 0.5)?, window.quantile(now, 0.99)?))
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().expect("no holder of this lock panics")
    }

    fn window(&self) -> MutexGuard<'_, Window> {
        self.freshness.lock().expect("no holder of this lock panics")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::time::Offset;

    fn status() -> Status {
        Status::new(Arc::new(Metrics::new()))
    }

    fn position(next: i64) -> Position {
        [(Partition::new("t", 0), Offset(next))].into_iter().collect()
    }

    #[test]
    fn neither_epoch_nor_position_goes_back() {
        let status = status();
        status.set_committed(Epoch(7), &position(40));
        status.set_committed(Epoch(6), &position(30));
        assert_eq!((status.epoch(), status.position()), (Epoch(7), position(40)));
    }

    #[test]
    fn a_failure_is_final_and_keeps_its_reason() {
        let status = status();
        status.set_state(State::Live, "caught up");
        assert!(status.is_ready());
        status.set_state(State::Failed, "the disk is full");
        status.set_state(State::Live, "caught up");
        assert_eq!(status.state_and_why(), (State::Failed, "the disk is full".into()));
        assert!(!status.is_ready());
        assert!(status.metrics().render().unwrap().contains(r#"freshet_state_info{state="failed"} 1"#));
        assert!(status.metrics().render().unwrap().contains(r#"freshet_state_info{state="live"} 0"#));
    }

    #[test]
    fn ready_outlives_waiting() {
        let status = status();
        assert!(!status.is_ready());
        status.set_state(State::CatchingUp, "reading the backlog");
        assert!(!status.is_ready());
        status.set_state(State::Live, "caught up");
        status.set_waiting(Wait::Peer, Some("the broker is away".into()));
        assert!(status.is_ready());
    }

    #[test]
    fn waiting_lies_over_what_goes_on_beneath() {
        let status = status();
        let shown = |state: State| {
            let text = status.metrics().render().unwrap();
            text.contains(&format!(r#"freshet_state_info{{state="{}"}} 1"#, state.name()))
        };
        status.set_waiting(Wait::Peer, Some("the registry is away".into()));
        assert_eq!(status.state_and_why(), (State::Waiting, "the registry is away".into()));
        assert!(shown(State::Waiting) && !shown(State::Hydrating));
        status.set_state(State::CatchingUp, "the index follows the view");
        assert_eq!((status.state(), status.state_beneath()), (State::Waiting, State::CatchingUp));
        status.set_waiting(Wait::Peer, None);
        assert_eq!(status.state_and_why(), (State::CatchingUp, "the index follows the view".into()));
        assert!(shown(State::CatchingUp) && !shown(State::Waiting));
        status.set_waiting(Wait::Quarantine, Some("the bucket is away".into()));
        status.set_waiting(Wait::Index, Some("the disk has no room".into()));
        status.set_waiting(Wait::Peer, None);
        assert_eq!(status.state_and_why(), (State::Waiting, "the bucket is away".into()), "each ends its own waiting");
        status.set_waiting(Wait::Quarantine, None);
        assert_eq!(status.state_and_why(), (State::Waiting, "the disk has no room".into()));
        status.set_waiting(Wait::Index, None);
        assert_eq!(status.state(), State::CatchingUp);
        status.set_waiting(Wait::Peer, Some("the broker is away".into()));
        status.set_state(State::Failed, "the disk is full");
        assert_eq!(status.state_and_why(), (State::Failed, "the disk is full".into()));
    }

    #[test]
    fn raw_is_waited_for_once_it_holds_up_reading() {
        let status = status();
        status.set_state(State::Live, "caught up");
        status.set_waiting(Wait::Raw, Some("the bucket is away".into()));
        assert_eq!(status.state(), State::Live, "the index goes on");
        assert_eq!(status.to_json()["raw"], Value::Null, "nothing of raw is known yet");
        status.set_landed(&position(3));
        assert_eq!(status.to_json()["raw"]["waiting"], "the bucket is away");
        status.set_raw_is_full(true);
        assert_eq!(status.state_and_why(), (State::Waiting, "the bucket is away".into()));
        status.set_waiting(Wait::Raw, None);
        assert_eq!(status.state(), State::Live, "a full queue alone is a bound at work");
    }

    #[test]
    fn lag_goes_with_the_commit_and_not_with_the_next_look() {
        let status = status();
        status.set_watermarks([(Partition::new("t", 0), Watermarks { low: Offset(10), high: Offset(30) })]);
        assert_eq!(status.lag_total(), 20);
        status.set_committed(Epoch(1), &position(28));
        assert_eq!(status.lag_total(), 2);
        assert!(status.metrics().render().unwrap().contains(r#"freshet_lag_events{partition="0",topic="t"} 2"#));
        status.set_committed(Epoch(2), &position(35));
        assert_eq!(status.lag_total(), 0, "more was read than there was at the last look");
    }

    #[test]
    fn the_json_has_the_promised_shape() {
        let status = status();
        status.set_state(State::CatchingUp, "12 events behind");
        status.set_committed(Epoch(3), &position(9));
        let marks = |low, high| Watermarks { low: Offset(low), high: Offset(high) };
        let (t0, t1, u0) = (Partition::new("t", 0), Partition::new("t", 1), Partition::new("u", 0));
        status.set_watermarks([(t1, marks(3, 8)), (t0, marks(0, 16)), (u0, marks(4, 4))]);
        status.observe_freshness([10, 10, 10, -4]);
        let m = status.metrics();
        m.embeds_asked.inc_by(5);
        m.embeds_cached.inc_by(2);
        m.embeds_computed.inc_by(3);
        m.quarantine_open.set(1);
        m.quarantine_total.inc_by(4);
        m.index_rows.set(11);
        let told = status.to_json();
        assert_eq!((&told["state"], &told["why"]), (&json!("catching_up"), &json!("12 events behind")));
        assert_eq!((&told["epoch"], &told["position"]), (&json!(3), &json!({"t": {"0": 9}})));
        assert_eq!(told["lag"], json!({"t": {"0": 7, "1": 5}, "u": {"0": 0}}));
        assert_eq!(told["lag_total"], 12);
        assert_eq!((&told["freshness_ms"]["p50"], &told["freshness_ms"]["changes"]), (&json!(10.0), &json!(4)));
        assert_eq!(
            (&told["embed"]["asked"], &told["embed"]["cached"], &told["embed"]["computed"]),
            (&json!(5), &json!(2), &json!(3))
        );
        assert_eq!(told["quarantine"], json!({"open": 1, "total": 4}));
        assert_eq!(told["index"]["rows"], 11);
    }

    #[test]
    fn without_changes_there_is_no_freshness() {
        let told = status().to_json();
        assert_eq!((&told["freshness_ms"]["p50"], &told["freshness_ms"]["p99"]), (&Value::Null, &Value::Null));
        assert_eq!(status().freshness_ms(), None);
    }
}
