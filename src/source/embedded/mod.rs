//! A broker and a schema registry inside this process, reached over real sockets: for the demo and the tests.
//!
//! The broker is librdkafka's mock cluster. It keeps at most 5 MiB a partition and drops the oldest without a word: whoever writes has to
//! be paced by whoever reads.

mod registry;

use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer as _};

pub use registry::Registry;

/// How long a broker that is away is waited for.
const FLUSH_MAX: Duration = Duration::from_secs(30);

pub struct Broker {
    cluster: MockCluster<'static, DefaultProducerContext>,
}

impl Broker {
    pub fn start(topics: &[(&str, i32)]) -> Result<Broker, KafkaError> {
        let cluster = MockCluster::new(1)?;
        for (topic, partitions) in topics {
            cluster.create_topic(topic, *partitions, 1)?;
        }
        Ok(Broker { cluster })
    }

    /// The same with a second broker beside it, which leads one partition of the topic.
    pub fn start_with_second(topic: &str, partitions: i32, led: i32) -> Result<Broker, KafkaError> {
        let cluster = MockCluster::new(2)?;
        cluster.create_topic(topic, partitions, 1)?;
        for partition in 0..partitions {
            cluster.partition_leader(topic, partition, Some(if partition == led { 2 } else { 1 }))?;
        }
        Ok(Broker { cluster })
    }

    pub fn bootstrap_servers(&self) -> String {
        self.cluster.bootstrap_servers()
    }

    /// Takes the broker away, or brings it back with all that it holds.
    pub fn set_down(&self, down: bool) -> Result<(), KafkaError> {
        if down { self.cluster.broker_down(1) } else { self.cluster.broker_up(1) }
    }

    /// The same of the second.
    pub fn set_second_down(&self, down: bool) -> Result<(), KafkaError> {
        if down { self.cluster.broker_down(2) } else { self.cluster.broker_up(2) }
    }
}

/// Where whoever writes gets the ids of its schemas from.
pub trait Subjects {
    /// The id of a schema under a subject; the reason when it is not to be had.
    fn id(&self, subject: &str, schema: &str) -> Result<u32, String>;
}

/// Writes to a broker. Messages of one partition keep their order.
pub struct Producer {
    producer: BaseProducer,
}

impl Producer {
    pub fn new(bootstrap_servers: &str) -> Result<Producer, KafkaError> {
        let producer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap_servers)
            .set("linger.ms", "1")
            .set("enable.idempotence", "false")
            .set("max.in.flight.requests.per.connection", "1")
            .set("message.max.bytes", "20000000")
            .create()?;
        Ok(Producer { producer })
    }

    /// Hands a message over; when the local queue is full, waits until there is room.
    pub fn send(
        &self,
        topic: &str,
        partition: i32,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
    ) -> Result<(), KafkaError> {
        let mut record = BaseRecord::<[u8], [u8]>::to(topic).partition(partition);
        record.key = key;
        record.payload = value;
        loop {
            match self.producer.send(record) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(rdkafka::types::RDKafkaErrorCode::QueueFull), back)) => {
                    record = back;
                    self.producer.poll(Duration::from_millis(10));
                }
                Err((error, _)) => return Err(error),
            }
        }
        self.producer.poll(Duration::ZERO);
        Ok(())
    }

    /// Waits until the broker has everything.
    pub fn flush(&self) -> Result<(), KafkaError> {
        let deadline = Instant::now() + FLUSH_MAX;
        // The client's own flush looks again every 100 ms only.
        while self.producer.in_flight_count() > 0 && Instant::now() < deadline {
            self.producer.poll(Duration::from_millis(1));
        }
        self.producer.flush(Duration::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::config;
    use crate::source::kafka::KafkaSource;
    use crate::source::{Error, Source};
    use crate::time::{Offset, Partition, Position};

    fn source(broker: &Broker) -> KafkaSource {
        let config = config::Kafka {
            bootstrap_servers: broker.bootstrap_servers(),
            options: BTreeMap::new(),
            queue_max_bytes: 8 << 20,
            heartbeat_topics: vec![],
            heartbeat_max_silence_s: 60,
        };
        KafkaSource::new(&config, &[Arc::from("t")]).unwrap()
    }

    fn read(source: &mut KafkaSource, count: usize) -> Vec<(i32, i64, Option<Vec<u8>>)> {
        let mut all = Vec::new();
        let started = Instant::now();
        while all.len() < count {
            assert!(started.elapsed() < Duration::from_secs(30), "only {} of {count} came", all.len());
            if let Ok(Some(batch)) = source.poll(Duration::from_millis(100)) {
                all.extend(
                    batch
                        .messages
                        .iter()
                        .map(|m| (batch.partition.number, m.offset.0, batch.value(m).map(<[u8]>::to_vec))),
                );
            }
        }
        all
    }

    #[test]
    fn a_source_resumes_where_it_is_told_and_keeps_nulls() {
        let broker = Broker::start(&[("t", 2)]).unwrap();
        let producer = Producer::new(&broker.bootstrap_servers()).unwrap();
        for n in 0..10_u8 {
            producer.send("t", i32::from(n % 2), Some(b"k"), (n != 4).then_some(&[n][..])).unwrap();
        }
        producer.flush().unwrap();
        let mut source = source(&broker);
        let marks = source.watermarks().unwrap();
        assert_eq!(marks.iter().map(|(_, w)| w.high.0).sum::<i64>(), 10);
        assert_eq!((source.written("t").unwrap(), source.written("absent").unwrap()), (10, 0));
        let position: Position = [(Partition::new("t", 0), Offset(2))].into_iter().collect();
        source.seek(&position).unwrap();
        let mut all = read(&mut source, 8);
        all.sort();
        assert_eq!(all[0], (0, 2, None), "offset 2 of partition 0 is the null");
        assert_eq!(all.len(), 8);
        let gone: Position = [(Partition::new("t", 0), Offset(99))].into_iter().collect();
        assert!(matches!(source.seek(&gone), Err(Error::OutOfRange { wanted: 99, high: 5, .. })));
    }

    #[test]
    fn a_broker_that_comes_back_has_lost_nothing() {
        let broker = Broker::start(&[("t", 1)]).unwrap();
        let producer = Producer::new(&broker.bootstrap_servers()).unwrap();
        producer.send("t", 0, None, Some(b"a")).unwrap();
        producer.flush().unwrap();
        let mut source = source(&broker);
        source.seek(&Position::default()).unwrap();
        assert_eq!(read(&mut source, 1).len(), 1);
        broker.set_down(true).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        broker.set_down(false).unwrap();
        producer.send("t", 0, None, Some(b"b")).unwrap();
        assert_eq!(read(&mut source, 1), [(0, 1, Some(b"b".to_vec()))]);
    }

    #[test]
    fn a_broker_that_is_away_is_told_of_in_words_until_it_answers() {
        let broker = Broker::start(&[("t", 1)]).unwrap();
        let mut source = source(&broker);
        source.seek(&Position::default()).unwrap();
        broker.set_down(true).unwrap();
        let started = Instant::now();
        let mut is_polled = false;
        // Polling says at once that it is away; why, librdkafka finds out when it connects again.
        loop {
            assert!(started.elapsed() < Duration::from_secs(60), "polling said {is_polled}, and a look not why");
            is_polled |= matches!(source.poll(Duration::from_millis(20)), Err(Error::Unavailable { .. }));
            let Err(Error::Unavailable { reason, .. }) = source.look() else { panic!("a broker that is down answers") };
            if is_polled && reason.contains(&broker.bootstrap_servers()) {
                break;
            }
        }
        broker.set_down(false).unwrap();
        while source.look().is_err() {
            assert!(started.elapsed() < Duration::from_secs(90), "it is not found again");
        }
    }

    #[test]
    fn a_partition_without_a_leader_is_told_of_beside_the_others() {
        let broker = Broker::start(&[("t", 3)]).unwrap();
        broker.cluster.partition_leader("t", 1, None).unwrap();
        let looked = source(&broker).look().unwrap();
        let are_there: Vec<_> = looked.iter().map(|(partition, marks)| (partition.number, marks.is_ok())).collect();
        assert_eq!(are_there, [(0, true), (1, false), (2, true)]);
        assert!(matches!(&looked[1].1, Err(Error::Unavailable { reason, .. }) if reason == "t/1: no broker leads it"));
        assert!(source(&broker).watermarks().is_err(), "a start needs all of them");
    }

    #[test]
    fn an_end_that_was_come_to_does_not_overtake_the_messages_before_it() {
        let broker = Broker::start(&[("t", 1)]).unwrap();
        let producer = Producer::new(&broker.bootstrap_servers()).unwrap();
        (0..5000).for_each(|_| producer.send("t", 0, None, Some(b"a")).unwrap());
        producer.flush().unwrap();
        let mut source = source(&broker);
        source.seek(&Position::default()).unwrap();
        // Long enough for all of it to be fetched, for its end to be come to, and for a report of that, which librdkafka makes every second.
        std::thread::sleep(Duration::from_secs(4));
        let (mut next, started) = (0, Instant::now());
        while next < 5000 {
            assert!(started.elapsed() < Duration::from_secs(30), "{next} messages came");
            let Some(batch) = source.poll(Duration::from_millis(20)).unwrap() else { continue };
            assert_eq!(batch.messages.first().map(|m| m.offset.0), Some(next), "it ends at {:?}", batch.end());
            next = batch.end().unwrap().0;
        }
    }

    #[test]
    fn what_was_fetched_and_not_polled_is_reported() {
        const ROUND: usize = 100;
        let broker = Broker::start(&[("t", 1)]).unwrap();
        let producer = Producer::new(&broker.bootstrap_servers()).unwrap();
        let mut source = source(&broker);
        source.seek(&Position::default()).unwrap();
        let (mut reported, started) = (0, Instant::now());
        // Nothing is polled until librdkafka has looked at its queue, which it does by its own clock, once a second.
        while reported == 0 {
            assert!(started.elapsed() < Duration::from_secs(30), "nothing is said to wait");
            for _ in 0..ROUND {
                producer.send("t", 0, None, Some(&[7; 10_000])).unwrap();
            }
            producer.flush().unwrap();
            std::thread::sleep(Duration::from_millis(1500));
            let mut taken = 0;
            while taken < ROUND {
                assert!(started.elapsed() < Duration::from_secs(30), "{taken} of {ROUND} came");
                taken += source.poll(Duration::from_millis(10)).unwrap().map_or(0, |batch| batch.messages.len());
                reported = reported.max(source.queued_bytes());
            }
        }
        assert!(reported <= ROUND * 11_000, "{reported} bytes are said to wait, of {ROUND} messages");
        while source.queued_bytes() > 0 {
            assert!(started.elapsed() < Duration::from_secs(30), "{} bytes are said to wait", source.queued_bytes());
            assert!(source.poll(Duration::from_millis(10)).unwrap().is_none(), "all were taken");
        }
    }
}
