//! A case: tables, changes and a query, all drawn from one seed; checking it compares the maintained view with the batch after every epoch.
//!
//! The invariant: the same case has the same outcome each time.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio::runtime::Runtime;

use super::compare::{Difference, difference};
use super::database::{Database, Step};
use super::query::Query;
use super::sql::Reader;
use super::table::TableDef;
use super::view::{Batch, Maintained, Named};
use super::{query, random};

#[derive(Clone, Debug)]
pub struct Case {
    pub tables: Vec<TableDef>,
    pub epochs: Vec<Vec<Step>>,
    pub query: Query,
    /// The queries before the last one are models that are maintained for themselves; else they are its common table expressions.
    pub models: bool,
    /// Timely worker threads.
    pub workers: usize,
    /// Epochs are sent one after the other without waiting for their results.
    pub pipelined: bool,
}

#[derive(Debug)]
pub enum Outcome {
    /// The maintained view was right after every epoch.
    Agreed(Agreed),
    /// DataFusion itself would not plan or run the query.
    Skipped(String),
    Failed(Failure),
}

/// What was compared.
#[derive(Debug, Default)]
pub struct Agreed {
    pub epochs: usize,
    /// Rows of the view, summed over the epochs.
    pub rows: usize,
    /// Epochs after which the view was another than before.
    pub changes: usize,
    /// What the query is made of.
    pub nodes: Vec<String>,
}

#[derive(Debug)]
pub enum Failure {
    Refused(String),
    /// After the epoch (from 1), the view was wrong.
    Differs {
        epoch: usize,
        difference: Difference,
    },
    Broken(String),
    Panicked(String),
}

impl Failure {
    /// Whether a smaller case shows the same failure. The words of a reason up to its first name or number tell reasons apart.
    pub fn is_like(&self, other: &Failure) -> bool {
        let start = |reason: &str| reason.split(['"', '`', '\'', '(']).next().unwrap_or_default().to_string();
        match (self, other) {
            (Failure::Differs { .. }, Failure::Differs { .. }) => true,
            (Failure::Refused(one), Failure::Refused(two)) => start(one) == start(two),
            (Failure::Broken(one), Failure::Broken(two)) | (Failure::Panicked(one), Failure::Panicked(two)) => {
                start(one) == start(two)
            }
            _ => false,
        }
    }
}

impl Case {
    pub fn new(seed: u64, workers: Option<usize>) -> Case {
        let tables = random::tables(&mut random::generator(seed, 0));
        let epochs = random::epochs(&mut random::generator(seed, 1), &tables);
        let query = query::query(random::generator(seed, 2), &tables);
        let workers = workers.unwrap_or(1 + (seed % 2) as usize);
        Case { tables, epochs, query, workers, pipelined: seed.is_multiple_of(3), models: seed % 5 < 2 }
    }

    pub fn check(&self, runtime: &Runtime) -> Outcome {
        catch_unwind(AssertUnwindSafe(|| runtime.block_on(self.compare()))).unwrap_or_else(|panic| {
            let said = panic.downcast_ref::<String>().cloned();
            let said = said.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
            Outcome::Failed(Failure::Panicked(said.unwrap_or_else(|| "something that is no text".into())))
        })
    }

    /// The models, and the query over them, as one of the two reads them.
    pub fn sql(&self, reader: Reader) -> (Vec<Named>, String) {
        if !self.models {
            return (vec![], self.query.render(reader));
        }
        let named = self.query.named.iter();
        let named = named.map(|(name, sql)| Named { name: name.clone(), sql: sql.render_for(reader) });
        (named.collect(), self.query.body.render_for(reader))
    }

    async fn compare(&self) -> Outcome {
        let (models, sql) = self.sql(Reader::Batch);
        let skipped = |e: datafusion::error::DataFusionError| Outcome::Skipped(reason(&e.strip_backtrace()));
        let broken = |e: super::view::Broken| Outcome::Failed(Failure::Broken(e.to_string()));
        let mut database = Database::new(&self.tables);
        let batch = match Batch::plan(&models, &sql, &database).await {
            Ok(batch) => batch,
            Err(e) => return skipped(e),
        };
        let mut epochs = Vec::new();
        for steps in &self.epochs {
            let events = match database.apply(steps) {
                Ok(events) => events,
                Err(e) => return skipped(e),
            };
            match batch.answer(&database).await {
                Ok(answer) => epochs.push((events, answer)),
                Err(e) => return skipped(e),
            }
        }
        let (models, sql) = self.sql(Reader::Engine);
        let twice = self.query.twice();
        let plan = match Maintained::plan(&models, &sql, &database) {
            Ok(plan) => plan,
            Err(e) => return Outcome::Failed(Failure::Refused(e.to_string())),
        };
        let mut maintained = match Maintained::start(plan, &database, self.workers, !twice.is_empty()) {
            Ok(maintained) => maintained,
            Err(e) => return broken(e),
        };
        if self.pipelined
            && let Err(e) = epochs.iter().try_for_each(|(events, _)| maintained.send(events))
        {
            return broken(e);
        }
        let nodes = batch.nodes().into_iter().chain(twice.into_iter().map(Into::into)).collect();
        let mut agreed = Agreed { nodes, ..Agreed::default() };
        let mut before = None;
        for (n, (events, expected)) in epochs.iter().enumerate() {
            if !self.pipelined
                && let Err(e) = maintained.send(events)
            {
                return broken(e);
            }
            if let Err(e) = maintained.receive() {
                return broken(e);
            }
            match maintained.answer().and_then(|answer| difference(&answer, expected)) {
                Ok(None) => {}
                Ok(Some(difference)) => return Outcome::Failed(Failure::Differs { epoch: n + 1, difference }),
                Err(e) => return Outcome::Failed(Failure::Broken(e.strip_backtrace())),
            }
            agreed.epochs += 1;
            agreed.rows += expected.num_rows();
            agreed.changes += usize::from(before.replace(expected).is_some_and(|b| b != expected));
        }
        Outcome::Agreed(agreed)
    }
}

fn reason(message: &str) -> String {
    message.lines().next().unwrap_or_default().chars().take(160).collect()
}
