//! The real source: one consumer over all partitions of the topics, assigned by hand.
//!
//! The invariant: nothing is skipped. An offset that the broker no longer has is an error, never a jump; a broker that is away is waited
//! for by librdkafka itself, and only said, in librdkafka's words.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::{Offset as KafkaOffset, TopicPartitionList};
use rdkafka::types::RDKafkaConfRes;

use super::{Error, Look, MessageBatch, Source, Watermarks};
use crate::config;
use crate::time::{Offset, Partition, Position};

/// Most messages and bytes of one batch.
const BATCH_MAX_MESSAGES: usize = 4096;
const BATCH_MAX_BYTES: usize = 2 << 20;
/// Errors of connections that are polled at once.
const HEARD_MAX: usize = 16;
/// Options that name a file, or a folder of them. librdkafka says of one alone that it is not there, and not which.
const FILES: [&str; 7] = [
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.key.location",
    "ssl.crl.location",
    "ssl.keystore.location",
    "sasl.kerberos.keytab",
    "https.ca.location",
];
const METADATA_TIMEOUT: Duration = Duration::from_secs(5);

pub struct KafkaSource {
    client: ClientConfig,
    consumer: BaseConsumer<Reported>,
    brokers: String,
    topics: Vec<Arc<str>>,
    /// What polling took beyond one partition's batch, by partition.
    ready: HashMap<(usize, i32), MessageBatch>,
    /// The next offset that polling takes of each partition.
    next: HashMap<(usize, i32), i64>,
    /// The last report after which polling has found nothing more.
    drained: u64,
    /// What was said last of what may pass.
    said: String,
}

/// What librdkafka reports of itself.
#[derive(Default)]
struct Reported {
    queued_bytes: AtomicU64,
    /// The last end of each partition that was come to. All messages before it are queued by then, and polled later: a report overtakes messages.
    ends: Mutex<Vec<(String, i32, i64)>>,
    /// How many reports were polled.
    reports: AtomicU64,
    /// Why a connection failed last, until a broker answers.
    trouble: Mutex<Option<String>>,
}

impl Reported {
    fn trouble(&self) -> MutexGuard<'_, Option<String>> {
        self.trouble.lock().expect("no holder of this lock panics")
    }
}

impl ClientContext for Reported {
    /// Of what polling meets, before it gives the error's code alone.
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka");
        // That no connection is left says less than why the last one broke.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            *self.trouble() = Some(reason.into());
        }
    }

    fn stats(&self, statistics: Statistics) {
        let partitions =
            || statistics.topics.values().flat_map(|topic| topic.partitions.values().map(|p| (&topic.topic, p)));
        self.queued_bytes.store(partitions().map(|(_, p)| p.fetchq_size).sum(), Ordering::Relaxed);
        let came_to = partitions().filter(|(_, p)| p.eof_offset >= 0);
        let ends = came_to.map(|(topic, p)| (topic.clone(), p.partition, p.eof_offset)).collect();
        *self.ends.lock().expect("no holder of this lock panics") = ends;
        self.reports.fetch_add(1, Ordering::Relaxed);
    }
}

/// What a consumer is told, but for its brokers; of the user's options those that librdkafka takes.
fn client<'a>(config: &config::Kafka, options: impl Iterator<Item = (&'a String, &'a String)>) -> ClientConfig {
    let mut client = ClientConfig::new();
    // Quick to answer and to come back: freshness is what this is for. The user may say otherwise.
    client
        .set("client.id", "freshet")
        .set("fetch.wait.max.ms", "20")
        .set("reconnect.backoff.max.ms", "1000")
        .set("fetch.error.backoff.ms", "100")
        .set("topic.metadata.refresh.interval.ms", "10000")
        .set("statistics.interval.ms", "1000");
    for (key, value) in options {
        client.set(key, value);
    }
    client
        .set("group.id", "freshet")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "false")
        .set("check.crcs", "true")
        .set("queued.min.messages", "1000000")
        .set("queued.max.messages.kbytes", (config.queue_max_bytes / 1024).max(1).to_string())
        .set_log_level(RDKafkaLogLevel::Error);
    client
}

/// What librdkafka itself says is wrong with a configuration, by its keys. It is told no broker, so that it asks none.
pub fn problems(config: &config::Kafka) -> Vec<config::Problem> {
    let (mut problems, mut known, mut is_bad) = (Vec::new(), Vec::new(), false);
    for (option, value) in &config.options {
        let is_file = FILES.contains(&option.as_str()) && value != "probe";
        if let Some(e) = is_file.then(|| std::fs::metadata(value).err()).flatten() {
            is_bad = true;
            let reason = format!("{value} cannot be read: {e}");
            problems.push(config::Problem { key: format!("kafka.options.{option}"), reason });
        }
        match ClientConfig::new().set(option, value).create_native_config() {
            Ok(_) => known.push((option, value)),
            Err(e) => {
                let reason = match e {
                    KafkaError::ClientConfig(result, reason, ..) => {
                        is_bad |= result != RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN;
                        reason
                    }
                    e => e.to_string(),
                };
                problems.push(config::Problem { key: format!("kafka.options.{option}"), reason });
            }
        }
    }
    // What options are together is not known where the value of one is not: what is none hides nothing of it.
    if !is_bad
        && let Err(e) =
            client(config, known.into_iter()).create_with_context::<_, BaseConsumer<Reported>>(Reported::default())
    {
        let reason = match e {
            KafkaError::ClientCreation(reason) => reason,
            e => e.to_string(),
        };
        problems.push(config::Problem { key: "kafka.options".into(), reason });
    }
    for broker in config.bootstrap_servers.split(',') {
        let address = broker.trim().split_once("://").map_or(broker.trim(), |(_, address)| address);
        let (host, port) = address.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')).unwrap_or((address, "0"));
        if host.is_empty() || port.parse::<u16>().is_err() {
            let reason = format!("{broker:?} is not host:port");
            problems.push(config::Problem { key: "kafka.bootstrap_servers".into(), reason });
        }
    }
    problems
}

impl ConsumerContext for Reported {}

/// Whether it says that nobody has answered, and not what. A broker that goes down breaks handshakes too, so even that credentials are refused may pass.
fn is_silence(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::AllBrokersDown
                | Code::BrokerTransportFailure
                | Code::OperationTimedOut
                | Code::Resolve
                | Code::SSL
                | Code::Authentication
                | Code::SaslAuthenticationFailed
        )
    )
}

fn consumer(client: &ClientConfig, brokers: &str) -> Result<BaseConsumer<Reported>, Error> {
    let made = client.create_with_context(Reported::default());
    made.map_err(|e: KafkaError| Error::Fatal { brokers: brokers.into(), reason: e.to_string() })
}

impl KafkaSource {
    pub fn new(config: &config::Kafka, topics: &[Arc<str>]) -> Result<KafkaSource, Error> {
        let mut client = client(config, config.options.iter());
        client.set("bootstrap.servers", &config.bootstrap_servers);
        let brokers = config.bootstrap_servers.clone();
        let consumer = consumer(&client, &brokers)?;
        let (ready, next, drained, said) = Default::default();
        Ok(KafkaSource { client, consumer, brokers, topics: topics.to_vec(), ready, next, drained, said })
    }

    fn error(&self, error: &KafkaError) -> Error {
        use RDKafkaErrorCode as Code;
        let (brokers, reason) = (self.brokers.clone(), error.to_string());
        match error.rdkafka_error_code() {
            Some(
                Code::TopicAuthorizationFailed
                | Code::ClusterAuthorizationFailed
                // librdkafka goes on behind a message that is damaged, which would be lost.
                | Code::BadMessage
                | Code::Fatal,
            ) => Error::Fatal { brokers, reason },
            _ if is_silence(error) => {
                let trouble = self.consumer.context().trouble().clone();
                Error::Unavailable { brokers, reason: trouble.unwrap_or(reason) }
            }
            _ => Error::Unavailable { brokers, reason },
        }
    }

    /// The partitions of a topic, each with the broker that leads it, if one does; none when it does not exist.
    fn partitions(&self, topic: &str) -> Result<Vec<(i32, Option<i32>)>, Error> {
        use RDKafkaErrorCode as Code;
        let metadata = self.consumer.fetch_metadata(Some(topic), METADATA_TIMEOUT).map_err(|e| {
            self.hear();
            self.error(&e)
        })?;
        *self.consumer.context().trouble() = None;
        let Some(found) = metadata.topics().iter().find(|t| t.name() == topic) else { return Ok(vec![]) };
        match found.error().map(Code::from) {
            None => {}
            Some(Code::UnknownTopicOrPartition | Code::UnknownTopic) => return Ok(vec![]),
            Some(code) => {
                return Err(match self.error(&KafkaError::MetadataFetch(code)) {
                    Error::Fatal { brokers, reason } => Error::Fatal { brokers, reason: format!("{topic}: {reason}") },
                    error => error,
                });
            }
        }
        let led = |leader: i32| (leader >= 0).then_some(leader);
        Ok(found.partitions().iter().map(|p| (p.id(), led(p.leader()))).collect())
    }

    /// What librdkafka has to say of its connections comes by polling alone. Before anything is read there is nothing else to be polled.
    fn hear(&self) {
        if self.next.is_empty() {
            for _ in 0..HEARD_MAX {
                let _ = self.consumer.poll(Duration::ZERO);
            }
        }
    }

    fn bounds(&self, topic: &str, number: i32) -> Result<Watermarks, KafkaError> {
        let (low, high) = self.consumer.fetch_watermarks(topic, number, METADATA_TIMEOUT)?;
        Ok(Watermarks { low: Offset(low.max(0)), high: Offset(high.max(0)) })
    }

    /// The partitions of a topic as they are now. `silent` are brokers that have not answered, with the reason: they are not asked once more for
    /// each partition, which costs a time-out every time.
    fn look_at(&self, topic: &Arc<str>, silent: &mut HashMap<i32, String>) -> Result<Vec<Look>, Error> {
        let mut looked = Vec::new();
        for (number, leader) in self.partitions(topic)? {
            let partition = Partition::new(topic.clone(), number);
            let away = |reason: &str| Error::Unavailable {
                brokers: self.brokers.clone(),
                reason: format!("{partition}: {reason}"),
            };
            let marks = match leader.map(|leader| (leader, silent.get(&leader))) {
                None => Err(away("no broker leads it")),
                Some((_, Some(reason))) => Err(away(reason)),
                Some((leader, None)) => match self.bounds(topic, number) {
                    Ok(marks) => Ok(marks),
                    Err(e) => match self.error(&e) {
                        Error::Unavailable { reason, .. } => {
                            let away = away(&reason);
                            if is_silence(&e) {
                                silent.insert(leader, reason);
                            }
                            Err(away)
                        }
                        lasting => return Err(lasting),
                    },
                },
            };
            looked.push((partition, marks));
        }
        Ok(looked)
    }

    fn reports(&self) -> u64 {
        self.consumer.context().reports.load(Ordering::Relaxed)
    }

    fn take_ready(&mut self) -> Option<MessageBatch> {
        // The fullest first; all of them are taken before the next poll.
        let key = self.ready.iter().max_by_key(|(_, b)| b.messages.len()).map(|(k, _)| *k)?;
        self.ready.remove(&key)
    }

    /// A partition that was polled up to transaction markers, and they are all it has. Asked for when nothing is ready: what was polled has been handed
    /// out; and what was queued before the report was polled, if nothing has been left since.
    fn take_passed(&mut self) -> Option<MessageBatch> {
        if self.drained != self.reports() {
            return None;
        }
        let mut ends = self.consumer.context().ends.lock().expect("no holder of this lock panics");
        while let Some((topic, number, end)) = ends.pop() {
            let Some(topic) = self.topics.iter().position(|t| **t == *topic) else { continue };
            if let Some(next) = self.next.get_mut(&(topic, number)).filter(|next| end > **next) {
                *next = end;
                return Some(MessageBatch::passed(Partition::new(self.topics[topic].clone(), number), Offset(end)));
            }
        }
        None
    }
}

impl Source for KafkaSource {
    fn look(&mut self) -> Result<Vec<Look>, Error> {
        let (mut looked, mut silent) = (Vec::new(), HashMap::new());
        for topic in &self.topics {
            let partitions = self.look_at(topic, &mut silent)?;
            if partitions.is_empty() {
                return Err(Error::NoTopic { brokers: self.brokers.clone(), topic: topic.to_string() });
            }
            looked.extend(partitions);
        }
        Ok(looked)
    }

    fn written(&mut self, topic: &str) -> Result<i64, Error> {
        self.look_at(&topic.into(), &mut HashMap::new())?.into_iter().map(|(_, marks)| Ok(marks?.high.0)).sum()
    }

    fn seek(&mut self, position: &Position) -> Result<(), Error> {
        let mut list = TopicPartitionList::new();
        let mut next = HashMap::new();
        for (partition, Watermarks { low, high }) in self.watermarks()? {
            let start = position.get(&partition).unwrap_or(low);
            if start < low || start > high {
                return Err(Error::OutOfRange { partition, wanted: start.0, low: low.0, high: high.0 });
            }
            let Partition { topic, number } = &partition;
            list.add_partition_offset(topic, *number, KafkaOffset::Offset(start.0)).map_err(|e| self.error(&e))?;
            let index = self.topics.iter().position(|t| t == topic).expect("a partition is one of these topics");
            next.insert((index, *number), start.0);
        }
        // Of another consumer than before, so that what is reported of ends is about this assignment.
        let consumer = consumer(&self.client, &self.brokers)?;
        consumer.assign(&list).map_err(|e| self.error(&e))?;
        self.ready.clear();
        (self.consumer, self.next, self.drained) = (consumer, next, 0);
        Ok(())
    }

    fn poll(&mut self, timeout: Duration) -> Result<Option<MessageBatch>, Error> {
        if let Some(batch) = self.take_ready().or_else(|| self.take_passed()) {
            return Ok(Some(batch));
        }
        let mut wait = timeout;
        let mut trouble = None;
        loop {
            let reports = self.reports();
            match self.consumer.poll(wait).map(|polled| polled.map(|message| message.detach())) {
                None => {
                    // Nothing is there; or a report was, of which nothing is said, and messages may stand behind it.
                    if self.reports() == reports {
                        self.drained = reports;
                    }
                    return self.take_ready().map_or_else(|| trouble.map_or(Ok(None), Err), |batch| Ok(Some(batch)));
                }
                Some(Ok(message)) => {
                    if self.push(&message) {
                        return Ok(self.take_ready());
                    }
                    // What has arrived already comes along; nothing is waited for.
                    wait = Duration::ZERO;
                }
                // An outage queues an error for every try to connect. They say one thing together, and messages may stand behind them.
                Some(Err(error)) => {
                    wait = Duration::ZERO;
                    match self.polled_error(&error) {
                        Some(passing) if passing.is_passing() => trouble = Some(passing),
                        Some(lasting) => return Err(lasting),
                        None => {}
                    }
                }
            }
        }
    }
    /// As of librdkafka's last report: polling delivers one every second.
    fn queued_bytes(&self) -> usize {
        self.consumer.context().queued_bytes.load(Ordering::Relaxed) as usize
    }
}

impl KafkaSource {
    fn push(&mut self, message: &rdkafka::message::OwnedMessage) -> bool {
        let Some(topic) = self.topics.iter().position(|t| **t == *message.topic()) else { return false };
        let name = self.topics[topic].clone();
        let number = message.partition();
        self.next.insert((topic, number), message.offset() + 1);
        let batch =
            self.ready.entry((topic, number)).or_insert_with(|| MessageBatch::new(Partition::new(name, number)));
        batch.push(
            Offset(message.offset()),
            message.timestamp().to_millis().unwrap_or(0),
            message.key(),
            message.payload(),
        );
        batch.messages.len() >= BATCH_MAX_MESSAGES || batch.bytes.len() >= BATCH_MAX_BYTES
    }

    /// What polling has met with, if it is worth a word: that the broker is away, or what ends reading.
    fn polled_error(&mut self, error: &KafkaError) -> Option<Error> {
        use RDKafkaErrorCode as Code;
        let worth = match error.rdkafka_error_code() {
            // One connection that broke is made anew; only when none is left is it worth a word.
            Some(Code::BrokerTransportFailure | Code::Resolve | Code::SSL | Code::Authentication) => return None,
            Some(Code::AutoOffsetReset | Code::OffsetOutOfRange) => self.out_of_range(error),
            _ => self.error(error),
        };
        if !worth.is_passing() || is_silence(error) {
            return Some(worth);
        }
        // Of a partition, as a rule: librdkafka asks for it again and again, and says this each time.
        let said = worth.to_string();
        if self.said != said {
            tracing::warn!(reason = said, "reading meets with what may pass");
            self.said = said;
        }
        None
    }

    /// Finds the partition whose next offset the broker does not have.
    fn out_of_range(&self, error: &KafkaError) -> Error {
        let found = || -> Result<Option<Error>, Error> {
            for element in self.consumer.position().map_err(|e| self.error(&e))?.elements() {
                let KafkaOffset::Offset(wanted) = element.offset() else { continue };
                let bounds = self.bounds(element.topic(), element.partition());
                let Watermarks { low, high } = bounds.map_err(|e| self.error(&e))?;
                if wanted < low.0 || wanted > high.0 {
                    let partition = Partition::new(element.topic(), element.partition());
                    return Ok(Some(Error::OutOfRange { partition, wanted, low: low.0, high: high.0 }));
                }
            }
            Ok(None)
        };
        // Never a passing one: librdkafka says this once, and fetches nothing more of the partition.
        let otherwise = || Error::Fatal { brokers: self.brokers.clone(), reason: error.to_string() };
        found().ok().flatten().unwrap_or_else(otherwise)
    }
}
