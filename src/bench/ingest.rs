//! Ingest: bytes in memory to a folded view, by the decoder and the dataflow as the engine runs them, one thread each side of a bounded
//! queue.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use arrow_row::{RowConverter, SortField};

use super::recording::Recording;
use super::report::{peak_mib, reset_peak, resident_mib, rounded};
use super::{Error, Report, Sample, Scratch, plain};
use crate::dataflow::{self, Row};
use crate::decode::Decoded;
use crate::time::{Epoch, Offset};

const MARK_EVENTS_PER_SECOND: f64 = 300_000.0;
const WORKERS: [usize; 2] = [1, 2];

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Messages that the shop writes.
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(1..=5_000_000))]
    pub events: u32,
    /// Products of the shop.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub products: u32,
    /// Times that all of them are read in a row, under offsets that go on.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repeats: u32,
    /// Turns of each number of workers; the figures are of the turn in the middle.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// The view's rows by key, both in row format.
pub(super) type View = HashMap<Box<[u8]>, Row>;

pub(super) async fn run(options: &Options) -> Result<Report, Error> {
    let scratch = Scratch::new("ingest")?;
    tell!("the shop writes {} events of {} products", options.events, options.products);
    let recording = Recording::make(&scratch, options.seed, options.products as usize, options.events as usize).await?;
    let expected = expected(&recording).await?;
    let mut report = Report::new("ingest", options.seed);
    let events = recording.messages * options.repeats as usize;
    report.figure("events", events);
    report.figure("event_mean_bytes", rounded(recording.bytes as f64 / recording.messages as f64));
    report.figure("view_rows", expected.len());
    let mut best = 0.0_f64;
    let mut samples = WORKERS.map(|_| (Sample::default(), None));
    for round in 0..options.rounds {
        for (workers, (sample, peak)) in WORKERS.into_iter().zip(&mut samples) {
            reset_peak();
            let before = resident_mib();
            let started = Instant::now();
            let (view, reached) = ingest(&recording, options.repeats, workers)?;
            let rate = events as f64 / started.elapsed().as_secs_f64();
            tell!("round {}, {workers} workers: {rate:.0} events/s", round + 1);
            sample.add(rate);
            *peak = (*peak).max(peak_mib());
            if round == 0 && workers == WORKERS[0] {
                report.figure("input_rss_mib", before);
            }
            report.check(reached == events, format!("{workers} workers: {reached} changes came of {events} events"));
            report.check(view == expected, format!("{workers} workers: {}", difference(&view, &expected)));
        }
    }
    for (workers, (mut sample, peak)) in WORKERS.into_iter().zip(samples) {
        let rate = sample.percentile(50.0).unwrap_or_default();
        best = best.max(rate);
        report.figure(format!("workers_{workers}_events_per_second"), rounded(rate));
        report.figure(format!("workers_{workers}_peak_rss_mib"), peak);
    }
    report.figure("mark_events_per_second", MARK_EVENTS_PER_SECOND);
    report.figure("mark_met", best >= MARK_EVENTS_PER_SECOND);
    Ok(report)
}

/// Runs everything through a dataflow of its own: the view that an index would hold, and the events that were applied.
pub(super) fn ingest(recording: &Recording, repeats: u32, workers: usize) -> Result<(View, usize), Error> {
    let engine = &recording.config.engine;
    let handle = dataflow::Engine::start(recording.plan.clone(), recording.row_types.clone(), workers)?;
    let (send, receive) = sync_channel(engine.decoded_max_batches);
    std::thread::scope(|scope| {
        let decoding = scope.spawn(move || -> Result<(), Error> {
            let mut decoders = recording.decoders()?;
            for repeat in 0..repeats {
                for batch in &recording.batches {
                    let decoder = &mut decoders[recording.source_of(batch)];
                    let mut decoded = futures::executor::block_on(decoder.decode(batch))?;
                    if let Some(reject) = decoded.rejects.first() {
                        return Err(format!("offset {} was rejected: {}", reject.offset.0, reject.reason).into());
                    }
                    // No partition holds more messages than all of them together.
                    move_on(&mut decoded, i64::from(repeat) * recording.messages as i64);
                    if send.send(decoded).is_err() {
                        return Ok(());
                    }
                }
            }
            Ok(())
        });
        let maintained = maintain(&handle, &receive, engine.epoch_max_events);
        drop(receive);
        decoding.join().map_err(|_| "the decoding thread panicked")??;
        maintained
    })
}

fn move_on(decoded: &mut Decoded, by: i64) {
    decoded.end = Offset(decoded.end.0 + by);
    decoded.changes.iter_mut().for_each(|c| c.offset = Offset(c.offset.0 + by));
}

/// Cuts an epoch when the last one is done, as the engine's driver does.
fn maintain(
    handle: &dataflow::Handle,
    receive: &Receiver<Decoded>,
    epoch_max_events: usize,
) -> Result<(View, usize), Error> {
    let (mut view, mut epoch, mut applied) = (View::new(), Epoch(1), 0);
    while let Ok(first) = receive.recv() {
        let mut events = first.changes.len();
        let mut decoded = vec![first];
        while events < epoch_max_events {
            let Ok(next) = receive.try_recv() else { break };
            events += next.changes.len();
            decoded.push(next);
        }
        handle.send(epoch, decoded)?;
        let output = loop {
            if let Some(output) = handle.recv(Duration::from_secs(1))? {
                break output;
            }
        };
        if let Some(failed) = output.failed_rows.first() {
            return Err(format!("the model failed for a row: {}", failed.reason).into());
        }
        for change in output.changes {
            match change.row {
                Some(row) => view.insert(change.key, row),
                None => view.remove(&change.key),
            };
        }
        applied += events;
        epoch = Epoch(epoch.0 + 1);
    }
    Ok((view, applied))
}

/// The model's SQL in batch over the latest rows.
pub(super) async fn expected(recording: &Recording) -> Result<View, Error> {
    let batch = recording.plan.batch_view(plain::tables(recording)?).await?;
    let schema = batch.schema();
    let key = schema.index_of(&recording.config.index.key)?;
    let converter = |columns: std::ops::Range<usize>| {
        RowConverter::new(columns.map(|n| SortField::new(schema.field(n).data_type().clone())).collect())
    };
    let rows = converter(0..batch.num_columns())?.convert_columns(batch.columns())?;
    let keys = converter(key..key + 1)?.convert_columns(&batch.columns()[key..=key])?;
    Ok((0..batch.num_rows()).map(|n| (keys.row(n).data().into(), rows.row(n).data().into())).collect())
}

pub(super) fn difference(view: &View, expected: &View) -> String {
    let missing = expected.keys().filter(|k| !view.contains_key(*k)).count();
    let orphans = view.keys().filter(|k| !expected.contains_key(*k)).count();
    let others = view.iter().filter(|(k, row)| expected.get(*k).is_some_and(|e| e != *row)).count();
    format!("of {} rows {missing} are missing and {others} differ; {orphans} should not be there", expected.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn the_folded_view_is_the_batch_view() {
        let options = Options { events: 3_000, products: 300, repeats: 2, rounds: 1, seed: 5 };
        let report = run(&options).await.unwrap();
        assert!(report.is_ok(), "{:?}", report.wrong());
        let json = report.json();
        assert!(json["view_rows"].as_u64().unwrap() > 100, "{json}");
        for figure in ["workers_1_events_per_second", "workers_2_events_per_second"] {
            assert!(json[figure].as_f64().unwrap() > 0.0, "{json}");
        }
    }

    #[test]
    fn what_differs_is_counted() {
        let view =
            |rows: &[(u8, u8)]| -> View { rows.iter().map(|(k, r)| (Box::from([*k]), Row::from([*r]))).collect() };
        let text = difference(&view(&[(1, 1), (2, 2), (9, 9)]), &view(&[(1, 1), (2, 3), (4, 4)]));
        assert_eq!(text, "of 3 rows 1 are missing and 1 differ; 1 should not be there");
    }
}
