//! Options of librdkafka: which of them the user may set, and why not the others.
//!
//! The invariant: what Freshet promises never rests on a setting that somebody else has made. librdkafka knows some settings by two names, and
//! some that its documentation does not list (`rdkafka_conf.c`); both are here. Whether it knows an option at all is asked of itself.

use std::collections::BTreeMap;

use toml::Value;

use super::section::Section;

const POSITION: &str = "the position lives beside the index, not in Kafka";
const NO_GROUP: &str = "partitions are assigned by hand; there is no group";
const MOCK: &str = "a made-up broker would take the place of the real ones";
const PROTOCOL: &str = "the broker is asked what it can do, or it would not know which events are committed";
const HANDLED: &str = "Freshet itself hears what librdkafka reports";

/// Settings of librdkafka that what Freshet promises rests on, and why each is not the user's.
pub const FORBIDDEN: &[(&str, &str)] = &[
    ("bootstrap.servers", "it is kafka.bootstrap_servers"),
    ("metadata.broker.list", "it is kafka.bootstrap_servers"),
    ("test.mock.num.brokers", MOCK),
    ("test.mock.broker.rtt", MOCK),
    ("topic.blacklist", "a source's topic would not be seen"),
    ("allow.auto.create.topics", "a topic that is missing has to be noticed, not made"),
    ("group.id", NO_GROUP),
    ("group.instance.id", NO_GROUP),
    ("group.protocol", NO_GROUP),
    ("group.protocol.type", NO_GROUP),
    ("group.remote.assignor", NO_GROUP),
    ("partition.assignment.strategy", NO_GROUP),
    ("enable.auto.commit", POSITION),
    ("auto.commit.enable", POSITION),
    ("auto.commit.interval.ms", POSITION),
    ("enable.auto.offset.store", POSITION),
    ("offset.store.method", POSITION),
    ("offset.store.path", POSITION),
    ("offset.store.sync.interval.ms", POSITION),
    ("auto.offset.reset", "an offset that is gone has to be noticed, not skipped"),
    ("isolation.level", "only committed events are read"),
    ("api.version.request", PROTOCOL),
    ("api.version.fallback.ms", PROTOCOL),
    ("broker.version.fallback", PROTOCOL),
    ("enable.partition.eof", "the lag is taken from the watermarks"),
    ("check.crcs", "damaged bytes have to be noticed"),
    ("queued.max.messages.kbytes", "it is kafka.queue_max_bytes"),
    ("queued.min.messages", "it follows from kafka.queue_max_bytes"),
    ("statistics.interval.ms", "what waits in kafka.queue_max_bytes is taken from the statistics"),
    ("enabled_events", HANDLED),
    ("log.queue", HANDLED),
    ("plugin.library.paths", "a plugin could change what is read"),
    ("interceptors", "an interceptor could change what is read"),
];

/// `kafka.options`.
pub(super) fn options(kafka: &mut Section<'_>) -> BTreeMap<String, String> {
    let section = kafka.section("options");
    let mut options = BTreeMap::new();
    for (key, value) in &section.table {
        if let Some((_, why)) = FORBIDDEN.iter().find(|(name, _)| name == key) {
            section.problem(key, format!("cannot be set: {why}"));
            continue;
        }
        let text = match value {
            Value::String(text) => section.cx.expand(&section.key(key), text),
            Value::Integer(_) | Value::Boolean(_) | Value::Float(_) => value.to_string(),
            other => {
                section.problem(key, format!("is a {}; keys with dots have to be quoted", other.type_str()));
                continue;
            }
        };
        options.insert(key.clone(), text);
    }
    options
}
