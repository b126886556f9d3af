//! Decoding beside apache-avro: the same messages, in turns, in one thread.

use std::time::{Duration, Instant};

use apache_avro::types::Value;

use super::plain::{self, Schemas};
use super::recording::Recording;
use super::report::rounded;
use super::{Error, Report, Sample, Scratch};
use crate::decode::{Change, Decoded, Op, RowType};
use crate::source::MessageBatch;

const MARK_RATIO: f64 = 3.0;

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Messages to decode: the shop's snapshot, then its changes.
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(1..=5_000_000))]
    pub events: u32,
    /// Products of the shop.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub products: u32,
    /// Turns of each decoder; the figures are of the turn in the middle.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

pub(super) async fn run(options: &Options) -> Result<Report, Error> {
    let scratch = Scratch::new("decode")?;
    tell!("the shop writes {} events of {} products", options.events, options.products);
    let recording = Recording::make(&scratch, options.seed, options.products as usize, options.events as usize).await?;
    let mut report = Report::new("decode", options.seed);
    report.figure("events", recording.messages);
    report.figure("event_mean_bytes", rounded(recording.bytes as f64 / recording.messages as f64));
    let schemas = Schemas::parse(&recording.schemas)?;
    let readers = schemas.readers()?;
    let (mut ours, mut theirs, mut ratios) = (Sample::default(), Sample::default(), Sample::default());
    let mut decoders = recording.decoders()?;
    for round in 0..options.rounds {
        let started = Instant::now();
        for batch in &recording.batches {
            let decoded = decoders[recording.source_of(batch)].decode(batch).await?;
            std::hint::black_box(decoded);
        }
        let own = started.elapsed();
        let started = Instant::now();
        for batch in &recording.batches {
            plain::read_all(&readers, batch)?;
        }
        let other = started.elapsed();
        tell!("round {}: {} ms, apache-avro {} ms", round + 1, own.as_millis(), other.as_millis());
        ours.add(own.as_secs_f64());
        theirs.add(other.as_secs_f64());
        ratios.add(other.as_secs_f64() / own.as_secs_f64());
    }
    for (name, sample) in [("freshet", &mut ours), ("apache_avro", &mut theirs)] {
        let took = Duration::from_secs_f64(sample.percentile(50.0).unwrap_or_default()).as_secs_f64();
        report.figure(format!("{name}_events_per_second"), rounded(recording.messages as f64 / took));
        report.figure(format!("{name}_mb_per_second"), rounded(recording.bytes as f64 / took / 1e6));
    }
    let ratio = ratios.percentile(50.0).unwrap_or_default();
    report.figure("ratio", rounded(ratio));
    report.figure("mark_ratio", MARK_RATIO);
    report.figure("mark_met", ratio >= MARK_RATIO);
    let mut compared = 0;
    for batch in &recording.batches {
        let source = recording.source_of(batch);
        let decoded = decoders[source].decode(batch).await?;
        let envelopes = batch.messages.iter().map(|m| batch.value(m).map(|v| readers.read(v)).transpose());
        let envelopes: Vec<Option<Value>> = envelopes.collect::<Result<_, _>>()?;
        let keys = batch.messages.iter().map(|m| readers.read(batch.key(m).unwrap_or_default()));
        let keys: Vec<Value> = keys.collect::<Result<_, _>>()?;
        match compare(&recording.row_types[source], batch, &decoded, &envelopes, &keys)? {
            Ok(values) => compared += values,
            Err(difference) => {
                let from = batch.messages.first().map_or(0, |m| m.offset.0);
                report.check(false, format!("{} from offset {from} on: {difference}", batch.partition));
            }
        }
    }
    report.figure("values_compared", compared);
    report.check(compared > 0, "nothing was compared");
    Ok(report)
}

/// The number of values that both decoders agree on, or where they do not.
fn compare(
    row_type: &RowType,
    batch: &MessageBatch,
    decoded: &Decoded,
    envelopes: &[Option<Value>],
    keys: &[Value],
) -> Result<Result<usize, String>, Error> {
    if let Some(reject) = decoded.rejects.first() {
        return Ok(Err(format!("offset {} was rejected: {}", reject.offset.0, reject.reason)));
    }
    if decoded.changes.len() != batch.messages.len() {
        return Ok(Err(format!("{} changes of {} messages", decoded.changes.len(), batch.messages.len())));
    }
    let mut values = 0;
    for (change, envelope) in decoded.changes.iter().zip(envelopes) {
        let source = envelope.as_ref().and_then(|e| plain::field(e, "source"));
        let of = |name| source.and_then(|s| plain::field(s, name)).cloned();
        let (ts_ms, lsn) = (change.origin.ts_ms, change.origin.lsn);
        if source.is_some() && (of("ts_ms") != Some(Value::Long(ts_ms)) || of("lsn") != lsn.map(Value::Long)) {
            return Ok(Err(format!("offset {} has another source", change.offset.0)));
        }
        values += 2;
    }
    let kept = |c: &Change| matches!(c.op, Op::Upsert { .. });
    let theirs: Vec<Option<&Value>> = envelopes.iter().map(|e| e.as_ref().and_then(plain::row)).collect();
    if let Some(n) = (0..theirs.len()).find(|n| kept(&decoded.changes[*n]) != theirs[*n].is_some()) {
        return Ok(Err(format!("offset {} is a row for one and none for the other", batch.messages[n].offset.0)));
    }
    let ours = decoded.changes.iter().filter_map(|c| match &c.op {
        Op::Upsert { row, .. } => Some(&**row),
        _ => None,
    });
    let ours = row_type.rows_to_columns(ours)?;
    let theirs = plain::columns(row_type.schema(), &theirs.into_iter().flatten().collect::<Vec<_>>())?;
    for ((mine, other), field) in ours.iter().zip(&theirs).zip(row_type.schema().fields()) {
        if mine != other {
            return Ok(Err(format!("the column {} differs", field.name())));
        }
        values += mine.len();
    }
    let key_schema = row_type.schema().project(row_type.key_columns())?;
    let keys = plain::columns(&key_schema.into(), &keys.iter().collect::<Vec<_>>())?;
    let keys = row_type.key_converter()?.convert_columns(&keys)?;
    if (0..batch.messages.len()).any(|n| *keys.row(n).data() != *decoded.changes[n].key) {
        return Ok(Err("a key differs".into()));
    }
    Ok(Ok(values + batch.messages.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn both_decoders_see_the_same_values() {
        let options = Options { events: 3_000, products: 300, rounds: 1, seed: 5 };
        let report = run(&options).await.unwrap();
        assert!(report.is_ok(), "{:?}", report.wrong());
        let json = report.json();
        assert!(json["values_compared"].as_u64().unwrap() > 3_000 * 7, "{json}");
        for figure in ["freshet_events_per_second", "freshet_mb_per_second", "apache_avro_events_per_second", "ratio"] {
            assert!(json[figure].as_f64().unwrap() > 0.0, "{json}");
        }
    }
}
