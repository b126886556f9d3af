//! The answer to `GET /v1/status`: everything that the service says about itself, in one object.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Instant;

use serde_json::{Map, Value, json};

use super::building::Building;
use super::{State, Status, Wait};
use crate::decode::Rule;
use crate::serve::freshness::WINDOW;
use crate::serve::metrics::EventOp;
use crate::time::Partition;

impl Status {
    /// The answer to `GET /v1/status`.
    pub fn to_json(&self) -> Value {
        let freshness = self.freshness_json();
        let m = &self.metrics;
        let now = self.now();
        let (state, why) = now.shown();
        let lag = now.lag();
        json!({
            "state": state.name(),
            "why": why,
            "state_s": now.since.elapsed().as_secs(),
            "ready": self.ready.load(Ordering::Relaxed) && now.state != State::Failed,
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_s": self.started.elapsed().as_secs(),
            "epoch": now.epoch,
            "position": now.position,
            "lag": by_partition(&lag),
            "lag_total": lag.values().sum::<u64>(),
            "freshness_ms": freshness,
            "source": {"messages": m.source_messages.get(), "bytes": m.source_bytes.get()},
            "decode": {
                "events": EventOp::ALL.iter().map(|op| (op.name().to_string(), m.events(*op).into())).collect::<Map<_, _>>(),
                "rejects": Rule::ALL.iter().map(|rule| (rule.name().to_string(), m.rejects(*rule).into())).collect::<Map<_, _>>(),
            },
            "raw": now.landed.as_ref().map(|landed| json!({
                "landed": landed,
                "rows": m.raw_landed_rows.get(),
                "commits": m.raw_commits.get(),
                "waiting": now.waiting.get(&Wait::Raw),
            })),
            "view": {"rows": m.view_rows.get(), "changes": m.view_changes.get(), "epochs": m.epochs.get()},
            "tests": now.tests.iter().map(|(t, failing)| json!({
                "name": t.name, "relation": t.relation, "severity": t.severity.name(), "failing": failing,
            })).collect::<Vec<_>>(),
            "operators": now.operators.iter().map(|(o, rate)| json!({
                "id": o.id,
                "operator": o.operator,
                "model": o.model,
                "inputs": o.inputs,
                "state_rows": o.state_rows,
                "state_bytes": o.state_bytes,
                "updates": o.updates,
                "updates_per_s": (rate * 10.0).round() / 10.0,
                "values_not_sent": o.not_sent,
            })).collect::<Vec<_>>(),
            "embed": {
                "asked": m.embeds_asked.get(),
                "cached": m.embeds_cached.get(),
                "computed": m.embeds_computed.get(),
                "tokens": m.embed_tokens.get(),
            },
            "quarantine": {"open": m.quarantine_open.get(), "total": m.quarantine_total.get()},
            "index": {
                "rows": m.index_rows.get(),
                "commits": m.index_commits.get(),
                "upserted": m.index_upserted_rows.get(),
                "deleted": m.index_deleted_rows.get(),
                "table": now.table,
                "building": match &now.building {
                    Building::Not => Value::Null,
                    Building::Asked => json!({"lacking": null}),
                    Building::Lacking(lacking) => json!({"lacking": lacking}),
                    Building::Failed(why) => json!({"failed": why}),
                },
            },
            "serve": {
                "requests": m.requests(),
                "running": m.searches_running.get(),
                "refused": m.searches_refused.get(),
                "queries": {"cached": m.queries_cached.get(), "computed": m.queries_computed.get()},
            },
        })
    }

    fn freshness_json(&self) -> Value {
        let now = Instant::now();
        let window = self.window();
        json!({
            "p50": window.quantile(now, 0.5),
            "p99": window.quantile(now, 0.99),
            "changes": window.count(now),
            "window_s": WINDOW.as_secs(),
        })
    }
}

/// `{topic: {partition: events}}`, the shape that a position has.
fn by_partition(lag: &BTreeMap<Partition, u64>) -> Value {
    let mut topics = Map::new();
    for (partition, events) in lag {
        let topic = topics.entry(&*partition.topic).or_insert_with(|| Map::new().into());
        topic[partition.number.to_string()] = (*events).into();
    }
    topics.into()
}
