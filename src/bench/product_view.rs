//! The shipped product view among the queries of `bench sql`: five tables that join, over what the demo's shop writes.

use std::time::{Duration, Instant};

use super::ingest::{difference, expected, ingest};
use super::recording::Recording;
use super::report::{peak_mib, reset_peak, rounded};
use super::sql::{MARK_FLAT, Options};
use super::{Error, Report, Sample, Scratch};
use crate::dataflow;
use crate::source::MessageBatch;
use crate::time::Epoch;

/// A product comes with its prices and reviews, about ten rows, and each of them has several changes here.
const EVENTS_OF_A_PRODUCT: usize = 25;

pub(super) async fn run(options: &Options, report: &mut Report) -> Result<(), Error> {
    let events = options.changes as usize;
    let products = (events / EVENTS_OF_A_PRODUCT).max(100);
    let scratch = Scratch::new("sql")?;
    let recording = Recording::make(&scratch, options.seed, products, events).await?;
    let expected = expected(&recording).await?;
    report.figure("product_view_events", recording.messages);
    report.figure("product_view_rows", expected.len());
    for workers in [1, 2] {
        reset_peak();
        let started = Instant::now();
        let (view, _) = ingest(&recording, 1, workers)?;
        let rate = recording.messages as f64 / started.elapsed().as_secs_f64();
        let peak = peak_mib().unwrap_or(0);
        tell!("product_view, {workers} workers: {rate:.0} events/s, {peak} MiB");
        report
            .check(view == expected, format!("product_view with {workers} workers: {}", difference(&view, &expected)));
        report.figure(format!("product_view_workers_{workers}_events_per_second"), rounded(rate));
        report.figure(format!("product_view_workers_{workers}_peak_rss_mib"), peak);
    }
    one_change(options, products, report).await
}

/// The time of one of the shop's changes by the size of the shop, the sizes in turn so that a slow moment meets all of them.
async fn one_change(options: &Options, products: usize, report: &mut Report) -> Result<(), Error> {
    let singles = options.singles as usize;
    let sizes = [products / 100, products / 10, products].map(|size| size.max(10));
    let mut runs = Vec::new();
    for size in sizes {
        let scratch = Scratch::new("sql")?;
        let recording = Recording::make(&scratch, options.seed, size, EVENTS_OF_A_PRODUCT * size + singles).await?;
        runs.push((Run::start(&recording, singles)?, Sample::default()));
    }
    for n in 0..singles {
        for (run, sample) in &mut runs {
            let (source, batch) = run.left[n].clone();
            sample.add(run.read(source, &batch)?.as_secs_f64() * 1e6);
        }
    }
    let mut medians = Vec::new();
    for (size, (_, sample)) in sizes.iter().zip(&mut runs) {
        let median = sample.percentile(50.0).unwrap_or(0.0);
        report.figure(format!("product_view_one_change_of_{size}_p50_us"), rounded(median));
        medians.push(median);
    }
    let ratio = medians[2] / medians[0];
    tell!("product_view: one change costs {medians:.0?} us at {sizes:?} products");
    report.figure("product_view_one_change_ratio", rounded(ratio));
    report.figure("product_view_one_change_mark_met", ratio <= MARK_FLAT);
    Ok(())
}

/// A dataflow that has read all of a recording but the last messages.
struct Run {
    handle: dataflow::Handle,
    decoders: Vec<crate::decode::Decoder>,
    epoch: Epoch,
    /// The last messages, one by one, each with its source.
    left: Vec<(usize, MessageBatch)>,
}

impl Run {
    fn start(recording: &Recording, singles: usize) -> Result<Run, Error> {
        let handle = dataflow::Engine::start(recording.plan.clone(), recording.row_types.clone(), 1)?;
        let decoders = recording.decoders()?;
        let mut run = Run { handle, decoders, epoch: Epoch(0), left: Vec::new() };
        let mut held = recording.batches.len();
        let mut messages = 0;
        while held > 0 && messages < singles {
            held -= 1;
            messages += recording.batches[held].messages.len();
        }
        for batch in &recording.batches[..held] {
            run.read(recording.source_of(batch), batch)?;
        }
        let last = recording.batches[held..].iter().flat_map(|batch| batch.messages.iter().map(move |m| (batch, m)));
        for (n, (batch, message)) in last.enumerate() {
            let (source, mut one) = (recording.source_of(batch), MessageBatch::new(batch.partition.clone()));
            one.push(message.offset, message.timestamp_ms, batch.key(message), batch.value(message));
            // There are more than are timed: the first of them are read like the rest.
            match n + singles < messages {
                true => drop(run.read(source, &one)?),
                false => run.left.push((source, one)),
            }
        }
        Ok(run)
    }

    /// Reads a batch in an epoch of its own; the time that the dataflow took.
    fn read(&mut self, source: usize, batch: &MessageBatch) -> Result<Duration, Error> {
        let decoded = futures::executor::block_on(self.decoders[source].decode(batch))?;
        self.epoch = Epoch(self.epoch.0 + 1);
        let started = Instant::now();
        self.handle.send(self.epoch, vec![decoded])?;
        while self.handle.recv(Duration::from_secs(1))?.is_none() {}
        Ok(started.elapsed())
    }
}
