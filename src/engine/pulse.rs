//! Whether the connectors are alive. A topic looks the same when nothing changes and when its connector, or the database behind that, is away: lag is
//! 0, and the index is old. Debezium's heartbeats, which go on while nothing changes, tell the two apart.

use std::time::{Duration, Instant};

use super::looking::LOOK_EVERY;
use crate::config;
use crate::serve::{Status, Wait};
use crate::source::{Source, Watermarks};
use crate::thread;
use crate::time::Partition;

/// Time in which nobody looked counts as this much: whether there was a heartbeat then is not known.
const LOOK_MAX: Duration = LOOK_EVERY.saturating_mul(2);

pub(super) struct Pulses {
    connectors: Vec<Connector>,
    max_silence: Duration,
    looked: Instant,
}

struct Connector {
    heartbeats: String,
    /// What the names of its other topics begin with. They count too: no heartbeat is sent during a snapshot.
    prefix: Option<String>,
    /// Messages of all its topics so far.
    written: i64,
    silent: Duration,
}

impl Connector {
    fn new(heartbeats: &str) -> Connector {
        // `<topic.heartbeat.prefix>.<topic.prefix>`
        let prefix = heartbeats.split_once('.').map(|(_, prefix)| format!("{prefix}."));
        Connector { heartbeats: heartbeats.into(), prefix, written: 0, silent: Duration::ZERO }
    }

    fn owns(&self, topic: &str) -> bool {
        self.prefix.as_ref().is_some_and(|prefix| topic.starts_with(prefix))
    }
}

impl Pulses {
    pub fn new(kafka: &config::Kafka) -> Pulses {
        Pulses {
            connectors: kafka.heartbeat_topics.iter().map(|topic| Connector::new(topic)).collect(),
            max_silence: Duration::from_secs(kafka.heartbeat_max_silence_s),
            looked: thread::now(),
        }
    }

    /// Looks whether each connector has written anything since the last look, and says which has fallen silent, and which is heard again.
    pub fn look(&mut self, source: &mut dyn Source, marks: &[(Partition, Watermarks)], status: &Status) {
        let passed = thread::elapsed(self.looked);
        self.looked = thread::now();
        let heartbeats: Result<Vec<i64>, _> = self.connectors.iter().map(|c| source.written(&c.heartbeats)).collect();
        // A broker that does not answer says nothing of a connector.
        if let Ok(heartbeats) = heartbeats {
            self.hear(passed.min(LOOK_MAX), &heartbeats, marks, status);
        }
    }

    /// The same of what was looked at: how many heartbeats each connector has sent so far, and how long after the last look that was.
    fn hear(&mut self, passed: Duration, heartbeats: &[i64], marks: &[(Partition, Watermarks)], status: &Status) {
        let mut changed = false;
        for (connector, heartbeats) in self.connectors.iter_mut().zip(heartbeats) {
            let owned = marks.iter().filter(|(partition, _)| connector.owns(&partition.topic));
            let written = heartbeats + owned.map(|(_, marks)| marks.high.0).sum::<i64>();
            let was_silent = connector.silent > self.max_silence;
            // A topic that was made anew has less than before.
            connector.silent = if written == connector.written { connector.silent + passed } else { Duration::ZERO };
            connector.written = written;
            let is_silent = connector.silent > self.max_silence;
            let heartbeats = &connector.heartbeats;
            match (was_silent, is_silent) {
                (false, true) => tracing::warn!(
                    heartbeats,
                    silent_s = connector.silent.as_secs(),
                    "a connector is silent: it or its database is away, and what changes there is not heard of"
                ),
                (true, false) => tracing::info!(heartbeats, "a connector that was silent is heard again"),
                _ => continue,
            }
            changed = true;
        }
        if changed {
            status.set_waiting(Wait::Connector, self.silence());
        }
    }

    fn silence(&self) -> Option<String> {
        let silent = self.connectors.iter().filter(|c| c.silent > self.max_silence);
        let topics: Vec<&str> = silent.map(|c| c.heartbeats.as_str()).collect();
        (!topics.is_empty()).then(|| {
            format!(
                "nothing has come to {} for more than {} s, and no change either: the connector or its database is away",
                topics.join(", "),
                self.max_silence.as_secs()
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::serve::{Metrics, State};
    use crate::time::Offset;

    fn pulses() -> (Pulses, Status) {
        let kafka = config::Kafka {
            bootstrap_servers: String::new(),
            options: Default::default(),
            queue_max_bytes: 0,
            heartbeat_topics: vec!["beat.shop".into(), "beat.store".into()],
            heartbeat_max_silence_s: 3,
        };
        (Pulses::new(&kafka), Status::new(Arc::new(Metrics::new())))
    }

    fn of_topics(ends: &[(&str, i64)]) -> Vec<(Partition, Watermarks)> {
        let marks = |high| Watermarks { low: Offset(0), high: Offset(high) };
        ends.iter().map(|(topic, high)| (Partition::new(*topic, 0), marks(*high))).collect()
    }

    fn waits_for(status: &Status) -> Option<String> {
        let (state, why) = status.state_and_why();
        (state == State::Waiting).then_some(why)
    }

    #[test]
    fn a_connector_of_which_nothing_is_heard_is_named_until_it_is_heard_again() {
        let (mut pulses, status) = pulses();
        let mut after_two_seconds = |shop, store| {
            pulses.hear(Duration::from_secs(2), &[shop, store], &[], &status);
            waits_for(&status)
        };
        assert_eq!(after_two_seconds(1, 0), None);
        let why = after_two_seconds(2, 0).unwrap();
        assert!(why.contains("beat.store") && !why.contains("beat.shop") && why.contains("3 s"), "{why}");
        after_two_seconds(2, 0);
        let why = after_two_seconds(2, 0).unwrap();
        assert!(why.contains("beat.shop, beat.store"), "{why}");
        let why = after_two_seconds(3, 0).unwrap();
        assert!(!why.contains("beat.shop"), "{why}");
        assert_eq!(after_two_seconds(4, 1), None);
        assert_eq!(after_two_seconds(0, 2), None, "a topic that was made anew has fewer than before");
    }

    #[test]
    fn changes_of_a_connector_count_and_those_of_others_do_not() {
        let (mut pulses, status) = pulses();
        for n in 1..5 {
            let marks = of_topics(&[("shop.public.product", n), ("storehouse.public.product", n)]);
            pulses.hear(Duration::from_secs(1), &[0, 0], &marks, &status);
        }
        let why = waits_for(&status).unwrap();
        assert!(why.contains("beat.store") && !why.contains("beat.shop"), "{why}");
    }
}
