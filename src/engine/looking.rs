//! Looks at the topics beside reading them: what each partition holds, for which no broker answers, which connector is silent.
//!
//! The invariant: what a look tells is said whether reading goes on or is held up, and one partition that is away hides no other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::pulse::Pulses;
use crate::config;
use crate::serve::{Status, Wait};
use crate::source::{self, Look, Source, Watermarks};
use crate::thread;
use crate::time::Partition;

pub(super) const LOOK_EVERY: Duration = Duration::from_millis(1000);
/// The same when there is doubt.
const DOUBTED_EVERY: Duration = Duration::from_millis(100);

pub(super) struct Looks {
    status: Arc<Status>,
    pulses: Pulses,
    /// What each partition held when it was last seen.
    marks: BTreeMap<Partition, Watermarks>,
    next: Instant,
    next_glance: Instant,
    last: Option<Instant>,
    /// What the log was told of as away.
    broker_is_away: bool,
    partition_is_away: bool,
    /// Whether a topic was not there, while reading was held up.
    was_gone: bool,
}

impl Looks {
    pub fn new(kafka: &config::Kafka, status: Arc<Status>) -> Looks {
        let (pulses, now) = (Pulses::new(kafka), thread::now());
        let (marks, last) = (BTreeMap::new(), None);
        let (broker_is_away, partition_is_away, was_gone) = Default::default();
        Looks { status, pulses, marks, next: now, next_glance: now, last, broker_is_away, partition_is_away, was_gone }
    }

    /// Looks if it is time to. A broker that does not answer is said to be away, and is looked for again while it is polled: what it still sends
    /// is read.
    pub fn look(&mut self, source: &mut dyn Source) -> Result<Looked, source::Error> {
        if thread::now() < self.next {
            return Ok(Looked::NotYet);
        }
        let begun = thread::now();
        let looked = source.look();
        // A look that costs a time-out leaves as much time for reading.
        self.next = thread::now() + LOOK_EVERY.max(thread::elapsed(begun));
        self.next_glance = self.next;
        self.last = Some(thread::now());
        match looked {
            Ok(looked) => {
                let marks = self.tell(source, looked);
                let was_gone = std::mem::take(&mut self.was_gone);
                Ok(Looked::At { marks, was_gone, all: !self.partition_is_away })
            }
            Err(source::Error::NoTopic { .. }) => Ok(Looked::Gone),
            Err(e) if e.is_passing() => {
                self.tell_broker(Some(e.to_string()));
                Ok(Looked::NotYet)
            }
            Err(e) => Err(e),
        }
    }

    /// Looks if it is time to, while reading is held up.
    pub fn glance(&mut self, source: &mut dyn Source) {
        if thread::now() < self.next_glance {
            return;
        }
        match source.look() {
            Ok(looked) => drop(self.tell(source, looked)),
            Err(e) => self.was_gone |= matches!(e, source::Error::NoTopic { .. }),
        }
        self.next_glance = thread::now() + LOOK_EVERY;
    }

    /// Polling says that the broker is away. Whether it still is, the next look tells, and that is soon.
    pub fn doubt(&mut self, why: &source::Error) {
        self.tell_broker(Some(why.to_string()));
        if let Some(last) = self.last {
            self.next = self.next.min(last + DOUBTED_EVERY);
        }
    }

    fn tell(&mut self, source: &mut dyn Source, looked: Vec<Look>) -> Vec<(Partition, Watermarks)> {
        let mut before = std::mem::take(&mut self.marks);
        let (mut seen, mut away) = (Vec::new(), Vec::new());
        for (partition, marks) in looked {
            let known = match marks {
                Ok(marks) => {
                    seen.push((partition.clone(), marks));
                    Some(marks)
                }
                Err(e) => {
                    away.push(e.to_string());
                    before.remove(&partition)
                }
            };
            self.marks.extend(known.map(|marks| (partition, marks)));
        }
        self.status.set_watermarks(self.marks.clone());
        self.tell_broker(None);
        self.tell_partitions(&away);
        // Of what a partition that is away has had, nobody knows.
        if away.is_empty() {
            self.pulses.look(source, &seen, &self.status);
        }
        seen
    }

    fn tell_broker(&mut self, why: Option<String>) {
        match &why {
            Some(reason) if !self.broker_is_away => tracing::warn!(reason, "waiting for the broker"),
            None if self.broker_is_away => tracing::info!("the broker answers again"),
            _ => {}
        }
        self.broker_is_away = why.is_some();
        self.status.set_waiting(Wait::Broker, why);
    }

    fn tell_partitions(&mut self, away: &[String]) {
        let why = away.first().map(|first| match away.len() - 1 {
            0 => first.clone(),
            others => format!("{first}; {others} more are away"),
        });
        match &why {
            Some(reason) if !self.partition_is_away => {
                tracing::warn!(reason, "waiting for a partition; the others are read");
            }
            None if self.partition_is_away => tracing::info!("every partition answers again"),
            _ => {}
        }
        self.partition_is_away = why.is_some();
        self.status.set_waiting(Wait::Partitions, why);
    }
}

/// What a look has come to.
pub(super) enum Looked {
    /// It is not time, or nobody has answered.
    NotYet,
    /// A topic is not there.
    Gone,
    At {
        /// Of every partition that could be seen, which may be `all`.
        marks: Vec<(Partition, Watermarks)>,
        all: bool,
        /// Whether a topic was not there in between.
        was_gone: bool,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::{Metrics, State};
    use crate::source::{Error, MessageBatch};
    use crate::time::{Offset, Position};

    /// Of two partitions with as many messages each; one may be away, or both.
    struct Two {
        messages: i64,
        away: usize,
    }

    fn away() -> Error {
        Error::Unavailable { brokers: "b:9092".into(), reason: "t/0: no broker leads it".into() }
    }

    impl Source for Two {
        fn look(&mut self) -> Result<Vec<Look>, Error> {
            let marks = Watermarks { low: Offset(0), high: Offset(self.messages) };
            let first = match self.away {
                0 => Ok(marks),
                1 => Err(away()),
                _ => return Err(away()),
            };
            Ok(vec![(Partition::new("t", 0), first), (Partition::new("t", 1), Ok(marks))])
        }

        fn written(&mut self, _: &str) -> Result<i64, Error> {
            Ok(0)
        }

        fn seek(&mut self, _: &Position) -> Result<(), Error> {
            Ok(())
        }

        fn poll(&mut self, _: Duration) -> Result<Option<MessageBatch>, Error> {
            Ok(None)
        }
    }

    fn looks() -> (Looks, Arc<Status>) {
        let kafka = config::Kafka {
            bootstrap_servers: String::new(),
            options: Default::default(),
            queue_max_bytes: 0,
            heartbeat_topics: vec![],
            heartbeat_max_silence_s: 1,
        };
        let status = Arc::new(Status::new(Arc::new(Metrics::new())));
        status.set_state(State::Live, "caught up");
        (Looks::new(&kafka, status.clone()), status)
    }

    #[test]
    fn what_is_away_is_named_and_hides_nothing_else() {
        let (mut looks, status) = looks();
        let mut look = |messages, away| {
            looks.next = thread::now();
            let seen = match looks.look(&mut Two { messages, away }).unwrap() {
                Looked::At { marks, all, .. } => {
                    assert_eq!(all, away == 0);
                    marks.len()
                }
                _ => 0,
            };
            (seen, status.lag_total(), status.state_and_why())
        };
        let live = || (State::Live, "caught up".into());
        assert_eq!(look(3, 0), (2, 6, live()));
        let (seen, lag, (state, why)) = look(5, 1);
        assert_eq!((seen, lag, state), (1, 8, State::Waiting), "what was seen of the other one still counts");
        assert!(why.contains("t/0") && why.contains("no broker leads it"), "{why}");
        let (seen, lag, (state, why)) = look(6, 2);
        assert_eq!((seen, lag, state), (0, 8, State::Waiting));
        assert!(why.contains("b:9092"), "{why}");
        assert_eq!(look(6, 0), (2, 12, live()));
    }

    #[test]
    fn lag_is_told_while_reading_is_held_up() {
        let (mut looks, status) = looks();
        looks.glance(&mut Two { messages: 3, away: 0 });
        assert_eq!(status.lag_total(), 6);
        looks.glance(&mut Two { messages: 5, away: 0 });
        assert_eq!(status.lag_total(), 6, "it is not time yet");
        assert!(matches!(looks.look(&mut Two { messages: 5, away: 0 }), Ok(Looked::At { .. })), "a glance is no look");
        assert!(matches!(looks.look(&mut Two { messages: 7, away: 0 }), Ok(Looked::NotYet)));
        looks.doubt(&away());
        assert_eq!(status.state(), State::Waiting);
        std::thread::sleep(DOUBTED_EVERY);
        assert!(matches!(looks.look(&mut Two { messages: 7, away: 0 }), Ok(Looked::At { .. })));
        assert_eq!((status.lag_total(), status.state()), (14, State::Live));
    }
}
