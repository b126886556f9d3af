//! Every figure that Freshet shows to Prometheus, in one struct: a stage counts by touching a field, and nothing else.
//!
//! The invariant: a name is registered once, follows `freshet_<noun>_<unit>[_total]`, and takes its labels from enums or from the
//! configuration (topics), never from data; so the number of series has a bound. Nothing here decides anything.

mod register;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{Gauge, Histogram, HistogramVec, IntCounter, IntGauge, IntGaugeVec, Registry, TextEncoder};

use register::Register;

use super::request::Route;
use super::status::State;
use crate::decode::{Counts, Rule};
use crate::time::Partition;

/// Seconds from a commit in the database to the first search that sees it: from 5 ms to 10 min.
const FRESHNESS_SECONDS: [f64; 17] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.35, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 600.0];
/// Seconds of one answer: from 0.5 ms to 10 s.
const REQUEST_SECONDS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
/// Seconds of one batch of texts, or of one index commit: from 5 ms to 30 s.
const WORK_SECONDS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0];
const FILL_RATIO: [f64; 10] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];

/// What an event did, as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventOp {
    Create,
    Update,
    Delete,
    Snapshot,
    Truncate,
    Tombstone,
    Skipped,
}

impl EventOp {
    pub const ALL: [EventOp; 7] = [
        EventOp::Create,
        EventOp::Update,
        EventOp::Delete,
        EventOp::Snapshot,
        EventOp::Truncate,
        EventOp::Tombstone,
        EventOp::Skipped,
    ];

    pub fn name(self) -> &'static str {
        match self {
            EventOp::Create => "create",
            EventOp::Update => "update",
            EventOp::Delete => "delete",
            EventOp::Snapshot => "snapshot",
            EventOp::Truncate => "truncate",
            EventOp::Tombstone => "tombstone",
            EventOp::Skipped => "skipped",
        }
    }

    fn of(self, counts: &Counts) -> u64 {
        match self {
            EventOp::Create => counts.create,
            EventOp::Update => counts.update,
            EventOp::Delete => counts.delete,
            EventOp::Snapshot => counts.snapshot,
            EventOp::Truncate => counts.truncate,
            EventOp::Tombstone => counts.tombstone,
            EventOp::Skipped => counts.skipped,
        }
    }
}

/// What a bounded queue holds, in its own unit and as a share of its bound.
#[derive(Debug)]
pub struct Queue {
    held: IntGauge,
    fill: Gauge,
}

impl Queue {
    /// To be called by one thread at a time, so that what is shown last is what was true last.
    pub fn set(&self, held: usize, bound: usize) {
        self.held.set(held as i64);
        self.fill.set(held as f64 / bound.max(1) as f64);
    }

    /// What it held when it was last looked at.
    pub fn held(&self) -> i64 {
        self.held.get()
    }
}

/// The process's metrics. Counters are public: adding to one is an atomic addition. What has labels is counted through a
/// method that takes the enum.
#[derive(Debug)]
pub struct Metrics {
    /// Messages and bytes (keys and values) that the source handed on.
    pub source_messages: IntCounter,
    pub source_bytes: IntCounter,
    /// Events that landed in the raw tables, and the commits that brought them.
    pub raw_landed_rows: IntCounter,
    pub raw_commits: IntCounter,
    /// Rows of the view, as of the last finished epoch, and the changes that epochs made to it.
    pub view_rows: IntGauge,
    pub view_changes: IntCounter,
    /// Values that the database did not send and that no former row had: they are null.
    pub values_not_sent: IntCounter,
    /// Epochs that the dataflow has finished.
    pub epochs: IntCounter,
    /// Texts that changed rows asked for, those whose vector was already stored, and those that went through the model.
    pub embeds_asked: IntCounter,
    pub embeds_cached: IntCounter,
    pub embeds_computed: IntCounter,
    /// Real tokens that went through the model, and the padding that went along.
    pub embed_tokens: IntCounter,
    pub embed_padding_tokens: IntCounter,
    pub index_commits: IntCounter,
    pub index_commit_seconds: Histogram,
    pub index_upserted_rows: IntCounter,
    pub index_deleted_rows: IntCounter,
    pub index_rows: IntGauge,
    /// What lies in quarantine now, and what ever went in.
    pub quarantine_open: IntGauge,
    pub quarantine_total: IntCounter,
    /// Query texts answered from the cache of query vectors, and those that went through the model.
    pub queries_cached: IntCounter,
    pub queries_computed: IntCounter,
    /// Searches that are being answered now; bounded by `serve.concurrency_max`.
    pub searches_running: IntGauge,
    /// Requests that were refused because `serve.concurrency_max` was reached.
    pub searches_refused: IntCounter,
    /// The queues, in the order in which data moves. The consumer's is what librdkafka has said last, which it does once a second.
    pub source_queue: Queue,
    pub raw_queue: Queue,
    pub decoded: Queue,
    pub pending: Queue,

    embed_batch_fill: Histogram,
    embed_batch_seconds: Histogram,
    freshness_seconds: Histogram,
    events: Vec<IntCounter>,
    rejects: Vec<IntCounter>,
    states: IntGaugeVec,
    lag: IntGaugeVec,
    /// The partitions that `lag` has a series for, so that one that is gone stops being shown.
    lag_partitions: Mutex<BTreeSet<Partition>>,
    request_seconds: HistogramVec,

    registry: Registry,
    series: Vec<String>,
}

impl Metrics {
    pub fn new() -> Metrics {
        let mut r = Register { registry: Registry::new(), series: Vec::new() };

        let events = r.counters("freshet_events_total", "Events decoded, by operation", &["op"]);
        let rejects = r.counters("freshet_rejects_total", "Messages and rows sent to quarantine, by rule", &["rule"]);
        let states =
            r.gauges("freshet_state_info", "1 for the state that the engine is in, 0 for the others", &["state"]);
        let build = r.gauges("freshet_build_info", "Always 1; its label is the version", &["version"]);
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);

        let mut metrics = Metrics {
            source_messages: r.counter("freshet_source_messages_total", "Messages read from Kafka"),
            source_bytes: r.counter("freshet_source_bytes_total", "Bytes of keys and values read from Kafka"),
            raw_landed_rows: r.counter("freshet_raw_landed_rows_total", "Events that landed in the raw tables"),
            raw_commits: r.counter("freshet_raw_commits_total", "Commits to the raw tables"),
            view_rows: r.gauge("freshet_view_rows", "Rows of the view after the last finished epoch"),
            view_changes: r.counter("freshet_view_changes_total", "Keys of the view that epochs changed"),
            values_not_sent: r
                .counter("freshet_values_not_sent_total", "Values that were not sent and that no former row had: null"),
            epochs: r.counter("freshet_epochs_finished_total", "Epochs that the dataflow has finished"),
            embeds_asked: r.counter("freshet_embeds_asked_total", "Texts that changed rows needed a vector for"),
            embeds_cached: r.counter("freshet_embeds_cached_total", "Texts whose vector was known"),
            embeds_computed: r.counter("freshet_embeds_computed_total", "Texts that went through the model"),
            embed_tokens: r
                .counter("freshet_embed_tokens_total", "Tokens that went through the model, without padding"),
            embed_padding_tokens: r
                .counter("freshet_embed_padding_tokens_total", "Padding that went through the model"),
            index_commits: r.counter("freshet_index_commits_total", "Commits to the index"),
            index_commit_seconds: r.histogram(
                "freshet_index_commit_seconds",
                "Duration of an index commit",
                &WORK_SECONDS,
            ),
            index_upserted_rows: r.counter("freshet_index_upserted_rows_total", "Rows written to the index"),
            index_deleted_rows: r.counter("freshet_index_deleted_rows_total", "Rows deleted from the index"),
            index_rows: r.gauge("freshet_index_rows", "Rows of the index"),
            quarantine_open: r.gauge("freshet_quarantine_open_rows", "Messages and rows in quarantine now"),
            quarantine_total: r
                .counter("freshet_quarantine_rows_total", "Messages and rows that ever went into quarantine"),
            queries_cached: r.counter("freshet_queries_cached_total", "Query texts whose vector was in the cache"),
            queries_computed: r.counter("freshet_queries_computed_total", "Query texts that went through the model"),
            searches_running: r.gauge("freshet_searches_running_requests", "Requests that are reading the index now"),
            searches_refused: r.counter("freshet_searches_refused_total", "Requests refused by the concurrency limit"),
            source_queue: Queue {
                held: r
                    .gauge("freshet_source_queue_bytes", "Bytes that were fetched from Kafka and wait for the decoder"),
                fill: r.float_gauge(
                    "freshet_source_queue_fill_ratio",
                    "Bytes that wait for the decoder as a share of kafka.queue_max_bytes",
                ),
            },
            raw_queue: Queue {
                held: r.gauge("freshet_raw_queue_bytes", "Bytes of messages that were read and have not landed"),
                fill: r.float_gauge(
                    "freshet_raw_queue_fill_ratio",
                    "Bytes that have not landed as a share of raw.queue_max_bytes",
                ),
            },
            decoded: Queue {
                held: r.gauge("freshet_decoded_batches", "Decoded batches that wait for the dataflow"),
                fill: r.float_gauge(
                    "freshet_decoded_fill_ratio",
                    "Decoded batches that wait as a share of engine.decoded_max_batches",
                ),
            },
            pending: Queue {
                held: r.gauge("freshet_pending_keys", "Changed keys that wait for the indexer"),
                fill: r.float_gauge("freshet_pending_fill_ratio", "Waiting keys as a share of engine.pending_max_keys"),
            },
            embed_batch_fill: r.histogram(
                "freshet_embed_batch_fill_ratio",
                "Real tokens of a batch as a share of what it could have held",
                &FILL_RATIO,
            ),
            embed_batch_seconds: r.histogram(
                "freshet_embed_batch_seconds",
                "Duration of one batch in the model",
                &WORK_SECONDS,
            ),
            freshness_seconds: r.histogram(
                "freshet_freshness_seconds",
                "Time from the source's commit to the first search that can see it",
                &FRESHNESS_SECONDS,
            ),
            events: EventOp::ALL.iter().map(|op| events.with_label_values(&[op.name()])).collect(),
            rejects: Rule::ALL.iter().map(|rule| rejects.with_label_values(&[rule.name()])).collect(),
            states,
            lag: r.gauges(
                "freshet_lag_events",
                "Events of a partition that are not yet searchable",
                &["topic", "partition"],
            ),
            lag_partitions: Mutex::default(),
            request_seconds: r.histograms(
                "freshet_request_seconds",
                "Time from a request's head to its answer, by route and status",
                &REQUEST_SECONDS,
                &["route", "status"],
            ),
            registry: Registry::new(),
            series: Vec::new(),
        };
        r.process();
        metrics.registry = r.registry;
        metrics.series = r.series;
        metrics.set_state(State::Hydrating);
        metrics
    }

    /// Adds what one batch decoded to.
    pub fn count_events(&self, counts: &Counts) {
        for (op, counter) in EventOp::ALL.iter().zip(&self.events) {
            counter.inc_by(op.of(counts));
        }
    }

    /// Events of one operation so far.
    pub fn events(&self, op: EventOp) -> u64 {
        self.events[op as usize].get()
    }

    pub fn count_reject(&self, rule: Rule) {
        self.rejects[rule as usize].inc();
    }

    /// Rejects of one rule so far.
    pub fn rejects(&self, rule: Rule) -> u64 {
        self.rejects[rule as usize].get()
    }

    /// One batch in the model: real tokens, padding, what the batch may hold, and how long it took.
    pub fn count_embed_batch(&self, tokens: usize, padding: usize, max_tokens: usize, took: Duration) {
        self.embed_tokens.inc_by(tokens as u64);
        self.embed_padding_tokens.inc_by(padding as u64);
        self.embed_batch_fill.observe(tokens as f64 / max_tokens.max(1) as f64);
        self.embed_batch_seconds.observe(took.as_secs_f64());
    }

    pub(super) fn observe_freshness(&self, ms: u64) {
        self.freshness_seconds.observe(ms as f64 / 1000.0);
    }

    pub(super) fn set_state(&self, now: State) {
        for state in State::ALL {
            self.states.with_label_values(&[state.name()]).set(i64::from(state == now));
        }
    }

    /// Shows the lag of these partitions and of no others.
    pub(super) fn set_lag(&self, lag: &BTreeMap<Partition, u64>) {
        let mut shown = self.lag_partitions.lock().expect("no holder of this lock panics");
        let mut gone = std::mem::take(&mut *shown);
        for (partition, events) in lag {
            let number = partition.number.to_string();
            self.lag.with_label_values(&[&*partition.topic, &number]).set((*events).min(i64::MAX as u64) as i64);
            gone.remove(partition);
            shown.insert(partition.clone());
        }
        for partition in gone {
            // The series was made by this method, so it is there; if not, there is nothing to remove.
            let _ = self.lag.remove_label_values(&[&*partition.topic, &partition.number.to_string()]);
        }
    }

    pub(super) fn observe_request(&self, route: Route, status: u16, took: Duration) {
        self.request_seconds.with_label_values(&[route.name(), &status.to_string()]).observe(took.as_secs_f64());
    }

    /// Requests answered so far, whatever their status.
    pub(super) fn requests(&self) -> u64 {
        let families = self.request_seconds.collect();
        families.iter().flat_map(|f| f.get_metric()).map(|m| m.get_histogram().get_sample_count()).sum()
    }

    /// Prometheus's text format.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    /// Every name under which Prometheus can find a series, a histogram's three included; what dashboards and alerts may name.
    pub fn series(&self) -> &[String] {
        &self.series
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: &str = include_str!("../../monitoring/prometheus/freshet.rules.yml");
    const DASHBOARD: &str = include_str!("../../monitoring/grafana/freshet.json");

    /// The words of `text` that can only be a series of ours or of the process's.
    fn series_named_in(text: &str) -> BTreeSet<&str> {
        text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'))
            .filter(|word| word.starts_with("freshet_") || word.starts_with("process_"))
            .collect()
    }

    #[test]
    fn a_name_is_found_in_the_midst_of_an_expression() {
        let named = series_named_in(r#"sum by (le) (rate(freshet_a_total{x="y"}[5m])) / process_b > freshet:c:ratio"#);
        assert_eq!(named.into_iter().collect::<Vec<_>>(), ["freshet_a_total", "process_b"]);
    }

    #[test]
    fn rules_and_dashboard_name_only_what_exists() {
        let metrics = Metrics::new();
        for (file, text) in [("rules", RULES), ("dashboard", DASHBOARD)] {
            let named = series_named_in(text);
            assert!(named.len() >= 10, "{file} names only {named:?}");
            for name in named {
                assert!(metrics.series().iter().any(|s| s == name), "{file} names {name}, which does not exist");
            }
        }
    }

    #[test]
    fn the_dashboard_draws_recorded_rules_that_the_rules_record() {
        let recorded: BTreeSet<&str> =
            RULES.lines().filter_map(|l| l.trim().trim_start_matches("- ").strip_prefix("record: ")).collect();
        assert!(!recorded.is_empty());
        for text in [DASHBOARD, RULES] {
            let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
            for word in words.filter(|w| w.starts_with("freshet:")) {
                assert!(recorded.contains(word), "{word} is not recorded");
            }
        }
    }

    #[test]
    fn the_dashboard_is_json_whose_panels_have_queries_and_ids_of_their_own() {
        let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).unwrap();
        let panels = dashboard["panels"].as_array().unwrap();
        let mut ids = BTreeSet::new();
        for panel in panels {
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "two panels share id {}", panel["id"]);
            if panel["type"] != "row" {
                let queries = panel["targets"].as_array().unwrap();
                assert!(
                    queries.iter().all(|q| q["expr"].as_str().is_some_and(|e| !e.is_empty())),
                    "{}",
                    panel["title"]
                );
            }
        }
    }

    #[test]
    fn names_follow_the_pattern_and_every_one_can_be_scraped() {
        let metrics = Metrics::new();
        metrics.set_lag(&BTreeMap::from([(Partition::new("t", 0), 3)]));
        metrics.observe_request(Route::Search, 200, Duration::from_millis(3));
        let text = metrics.render().unwrap();
        for name in metrics.series() {
            assert!(text.lines().any(|l| !l.starts_with('#') && l.split(['{', ' ']).next() == Some(name)), "{name}");
            if let Some(rest) = name.strip_prefix("freshet_") {
                assert!(rest.contains('_'), "{name} lacks a unit");
            }
        }
    }

    #[test]
    fn labels_count_what_their_enum_says() {
        let metrics = Metrics::new();
        let counts = Counts { create: 1, update: 2, delete: 3, snapshot: 4, truncate: 5, tombstone: 6, skipped: 7 };
        metrics.count_events(&counts);
        for op in EventOp::ALL {
            assert_eq!(metrics.events(op), op.of(&counts), "{op:?}");
        }
        for (n, rule) in Rule::ALL.into_iter().enumerate() {
            (0..=n).for_each(|_| metrics.count_reject(rule));
        }
        let text = metrics.render().unwrap();
        for (n, rule) in Rule::ALL.into_iter().enumerate() {
            assert_eq!(metrics.rejects(rule), n as u64 + 1);
            let line = format!("freshet_rejects_total{{rule=\"{}\"}} {}", rule.name(), n + 1);
            assert!(text.contains(&line), "{line}");
        }
    }

    #[test]
    fn a_partition_that_is_gone_is_no_longer_shown() {
        let metrics = Metrics::new();
        let (a, b) = (Partition::new("t", 0), Partition::new("t", 1));
        metrics.set_lag(&BTreeMap::from([(a, 1), (b.clone(), 2)]));
        metrics.set_lag(&BTreeMap::from([(b, 5)]));
        let text = metrics.render().unwrap();
        assert!(text.contains(r#"freshet_lag_events{partition="1",topic="t"} 5"#), "{text}");
        assert!(!text.contains(r#"partition="0""#), "{text}");
    }

    #[test]
    fn a_queue_is_shown_with_its_share_of_the_bound() {
        let metrics = Metrics::new();
        metrics.pending.set(50, 200);
        metrics.decoded.set(16, 16);
        metrics.source_queue.set(1 << 20, 64 << 20);
        assert_eq!(metrics.pending.held(), 50);
        let text = metrics.render().unwrap();
        for line in [
            "freshet_pending_keys 50",
            "freshet_pending_fill_ratio 0.25",
            "freshet_decoded_batches 16",
            "freshet_decoded_fill_ratio 1",
            "freshet_source_queue_bytes 1048576",
            "freshet_source_queue_fill_ratio 0.015625",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in {text}");
        }
    }
}
