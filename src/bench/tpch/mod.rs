//! TPC-H as maintained views: each of its queries is a model over its eight tables, which change while it runs.
//!
//! The invariant: every query that can be planned is compared with DataFusion's batch answer over the tables as they stand, after the load, on
//! the way and at the end; one that cannot is named with its reason. This is not TPC's benchmark, and its figures are not TPC's metrics.

mod changes;
mod compare;
mod data;
mod maintain;
mod queries;
mod script;
mod tables;
mod words;

use serde_json::{Map, Value, json};

use self::maintain::Planned;
use self::queries::QUERIES;
use self::script::Script;
use super::{Error, Report};

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// The scale factor: 1 is 6,000,000 lines of 1,500,000 orders.
    #[arg(long, default_value_t = 0.1, value_parser = scale)]
    pub scale: f64,
    /// Row changes after the load.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub changes: u32,
    /// Row changes of an epoch.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub epoch: u32,
    /// Places among the changes, the end included, where views are compared.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub checks: u32,
    /// Only these queries, such as q01,q13.
    #[arg(long, value_delimiter = ',', value_parser = QUERIES.map(|q| q.name))]
    pub queries: Vec<String>,
    /// Dataflow workers.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub workers: u32,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

fn scale(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(scale) if (0.0001..=10.0).contains(&scale) => Ok(scale),
        _ => Err("it is a number from 0.0001 to 10".into()),
    }
}

pub(super) async fn run(options: &Options) -> Result<Report, Error> {
    let mut report = Report::new("tpch", options.seed);
    tell!("making the tables at scale factor {} and {} changes", options.scale, options.changes);
    let (changes, epoch, checks) = (options.changes as usize, options.epoch as usize, options.checks as usize);
    let script = Script::make(options.seed, options.scale, changes, epoch, checks)?;
    let (first, last) = (&script.points[0], &script.points[script.points.len() - 1]);
    report.figure("scale_factor", options.scale);
    report.figure("load_events", first.tables.iter().map(|t| t.num_rows()).sum::<usize>());
    report.figure("change_events", last.changes);
    report.figure("workers", options.workers);
    let (mut found, mut refused) = (Map::new(), Map::new());
    for query in &QUERIES {
        if !options.queries.is_empty() && !options.queries.iter().any(|name| name == query.name) {
            continue;
        }
        let planned = match Planned::new(query, options.scale)? {
            Ok(planned) => planned,
            Err(reason) => {
                tell!("{}: refused: {reason}", query.name);
                refused.insert(query.name.into(), json!(reason.to_string()));
                continue;
            }
        };
        let figures = match planned.run(&script, options.workers as usize).await {
            Ok(outcome) => {
                outcome.wrong.iter().for_each(|what| report.check(false, format!("{}: {what}", query.name)));
                outcome.json()
            }
            Err(e) => {
                report.check(false, format!("{}: {e}", query.name));
                json!({"ok": false})
            }
        };
        tell!("{}: {figures}", query.name);
        found.insert(query.name.into(), figures);
    }
    report.check(!found.is_empty(), "no query could be maintained");
    report.figure("queries", Value::Object(found));
    report.figure("refused", Value::Object(refused));
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn every_query_is_maintained_and_agrees() {
        for workers in [1, 2] {
            let options =
                Options { scale: 0.002, changes: 500, epoch: 50, checks: 5, queries: vec![], workers, seed: 3 };
            let report = run(&options).await.unwrap();
            assert!(report.is_ok(), "{:#?}", report.wrong());
            let json = report.json();
            assert_eq!(json["refused"], json!({}));
            let queries = json["queries"].as_object().unwrap();
            assert_eq!(queries.len(), 22);
            assert!(queries.values().all(|q| q["compared"] == 6), "{json}");
            let empty = queries.iter().filter(|(_, q)| q["rows"] == 0).map(|(name, _)| name).collect::<Vec<_>>();
            assert!(empty.len() < 8, "too small for {empty:?}");
        }
    }
}
