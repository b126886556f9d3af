//! Restarting: how long a service that has ended is away, and what its history costs it.

use std::sync::Arc;

use super::report::rounded;
use super::rig::{Peers, Restart, Rig};
use super::words::WordEmbedder;
use super::{Error, Report, Sample, Scratch};
use crate::embed::TextEmbedder;

const MARK_RATIO: f64 = 1.3;
/// Numbers of a vector, as many as the default model gives.
const DIMENSION: usize = 384;

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Products of the shop.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(100..=10_000_000))]
    pub rows: u32,
    /// Events in the end, as a multiple of those that the tables began with. 1 leaves the second measurement out.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub history: u32,
    /// Restarts of each kind; the figures are of the one in the middle.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub restarts: u32,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

pub(super) async fn run(options: &Options) -> Result<Report, Error> {
    let scratch = Scratch::new("restart")?;
    let mut report = Report::new("restart", options.seed);
    let embedder: Arc<dyn TextEmbedder> = Arc::new(WordEmbedder::new(DIMENSION));
    let made = embedder.clone();
    let rig = Rig::start(&scratch, options.seed, options.rows as usize, Peers::own().await?, |_| Ok(made)).await?;
    let begun = events(&rig);
    report.figure("rows", options.rows);
    report.figure("events", begun);
    let (rig, first) = measure(rig, &embedder, options.restarts, "", &mut report).await?;
    if options.history > 1 {
        let more = begun * (options.history as usize - 1);
        tell!("{more} more events");
        rig.restock(more).await?;
        report.figure("events_after_history", events(&rig));
        let (rig, second) = measure(rig, &embedder, options.restarts, "_after_history", &mut report).await?;
        report.figure("ratio", rounded(second / first));
        report.figure("mark_ratio", MARK_RATIO);
        report.figure("mark_met", second / first <= MARK_RATIO);
        rig.stop().await;
    } else {
        rig.stop().await;
    }
    Ok(report)
}

fn events(rig: &Rig) -> usize {
    rig.shop().written().iter().map(|(_, next)| next.0 as usize).sum()
}

/// Restarts, and says how many seconds catching up took.
async fn measure(
    mut rig: Rig,
    embedder: &Arc<dyn TextEmbedder>,
    restarts: u32,
    name: &str,
    report: &mut Report,
) -> Result<(Rig, f64), Error> {
    let (mut searchable, mut caught_up) = (Sample::default(), Sample::default());
    let rows = rig.service.status().metrics().index_rows.get();
    for _ in 0..restarts {
        let restart;
        (rig, restart) = rig.restarted(embedder.clone()).await?;
        let Restart { asked, computed, .. } = restart;
        report.check(computed == 0, format_args!("a restart embedded {computed} texts"));
        report.check(asked == 0, format_args!("a restart asked for the vectors of {asked} texts"));
        let now = rig.service.status().metrics().index_rows.get();
        report.check(now == rows, format_args!("the index has {now} rows after a restart, and had {rows}"));
        searchable.add(restart.searchable.as_secs_f64());
        caught_up.add(restart.caught_up.as_secs_f64());
        tell!("searchable after {:?}, caught up after {:?}", restart.searchable, restart.caught_up);
    }
    let (searchable, caught_up) = (searchable.percentile(50.0), caught_up.percentile(50.0));
    report.figure(format!("searchable{name}_seconds"), searchable.map(rounded));
    report.figure(format!("caught_up{name}_seconds"), caught_up.map(rounded));
    report.figure(format!("embedded{name}"), rig.service.status().metrics().embeds_computed.get());
    Ok((rig, caught_up.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_restart_embeds_nothing_and_loses_no_row() {
        let report = run(&Options { rows: 300, history: 3, restarts: 1, seed: 5 }).await.unwrap();
        assert!(report.is_ok(), "{:?}", report.wrong());
        let json = report.json();
        assert_eq!((&json["embedded"], &json["embedded_after_history"]), (&0.into(), &0.into()), "{json}");
        let events = |name: &str| json[name].as_u64().unwrap();
        assert_eq!(events("events_after_history"), 3 * events("events"), "{json}");
        for figure in ["searchable_seconds", "caught_up_after_history_seconds", "ratio"] {
            assert!(json[figure].as_f64().unwrap() > 0.0, "{json}");
        }
    }
}
