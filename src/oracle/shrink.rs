//! Makes a failing case smaller while it still fails in the same way, and writes it down as a file for tests/sql.
//!
//! The invariant: what is printed is a case that was run and failed.

use std::time::{Duration, Instant};

use datafusion::common::ScalarValue;
use tokio::runtime::Runtime;

use super::case::{Case, Failure, Outcome};
use super::database::{Database, Event, Step};
use super::sql::Reader;
use super::table::Cells;
use super::view::Batch;

/// The line between what the engine is asked and what the batch is asked instead, in a file for tests/sql.
pub const IN_BATCH: &str = "-- in batch";

/// When to be content with what was found.
const PATIENCE: Duration = Duration::from_secs(60);

pub fn shrink(case: Case, failure: Failure, runtime: &Runtime) -> (Case, Failure) {
    let mut search = Search { case, failure, runtime, until: Instant::now() + PATIENCE };
    loop {
        let before = search.size();
        search.fewer_epochs();
        search.fewer_steps();
        search.simpler_query();
        search.unused();
        if search.size() == before || Instant::now() > search.until {
            return (search.case, search.failure);
        }
    }
}

struct Search<'a> {
    case: Case,
    failure: Failure,
    runtime: &'a Runtime,
    until: Instant,
}

impl Search<'_> {
    fn size(&self) -> (usize, usize, usize, usize) {
        let case = &self.case;
        let columns = case.tables.iter().map(|t| t.columns.len()).sum();
        (case.query.render(Reader::Engine).len(), case.epochs.len(), case.epochs.iter().map(Vec::len).sum(), columns)
    }

    fn take_if_it_fails(&mut self, case: Case) -> bool {
        if Instant::now() > self.until {
            return false;
        }
        match case.check(self.runtime) {
            Outcome::Failed(failure) if failure.is_like(&self.failure) => {
                (self.case, self.failure) = (case, failure);
                true
            }
            _ => false,
        }
    }

    fn fewer_epochs(&mut self) {
        // What comes after the epoch that failed has no part in it.
        if let Failure::Differs { epoch, .. } = self.failure {
            let mut case = self.case.clone();
            case.epochs.truncate(epoch);
            self.take_if_it_fails(case);
        }
        let mut simple = self.case.clone();
        (simple.workers, simple.pipelined) = (1, false);
        self.take_if_it_fails(simple);
        let without_models = Case { models: false, ..self.case.clone() };
        self.take_if_it_fails(without_models);
        // All in one, or two neighbours in one.
        let mut one = self.case.clone();
        one.epochs = vec![one.epochs.concat()];
        self.take_if_it_fails(one);
        let mut at = 0;
        while at + 1 < self.case.epochs.len() {
            let mut without = self.case.clone();
            without.epochs.remove(at);
            let mut joined = self.case.clone();
            let next = joined.epochs.remove(at + 1);
            joined.epochs[at].extend(next);
            if !self.take_if_it_fails(without) && !self.take_if_it_fails(joined) {
                at += 1;
            }
        }
    }

    fn fewer_steps(&mut self) {
        for epoch in (0..self.case.epochs.len()).rev() {
            let mut size = self.case.epochs[epoch].len().div_ceil(2);
            while size > 0 {
                let mut at = 0;
                while at < self.case.epochs[epoch].len() {
                    let mut case = self.case.clone();
                    let end = (at + size).min(case.epochs[epoch].len());
                    case.epochs[epoch].drain(at..end);
                    if !self.take_if_it_fails(case) {
                        at += size;
                    }
                }
                size /= 2;
            }
        }
    }

    fn simpler_query(&mut self) {
        let mut n = 0;
        while let Some(query) = self.case.query.simpler(n) {
            let case = Case { query, ..self.case.clone() };
            if !self.take_if_it_fails(case) {
                n += 1;
            }
            if Instant::now() > self.until {
                return;
            }
        }
    }

    /// Tables and columns that nobody reads.
    fn unused(&mut self) {
        for table in (0..self.case.tables.len()).rev() {
            if self.case.tables.len() > 1 {
                let mut case = self.case.clone();
                case.tables.remove(table);
                for steps in &mut case.epochs {
                    steps.retain(|s| s.table != table);
                    steps.iter_mut().filter(|s| s.table > table).for_each(|s| s.table -= 1);
                }
                if self.take_if_it_fails(case) {
                    continue;
                }
            }
            for column in (self.case.tables[table].key.len()..self.case.tables[table].columns.len()).rev() {
                let mut case = self.case.clone();
                case.tables[table].columns.remove(column);
                for step in case.epochs.iter_mut().flatten().filter(|s| s.table == table) {
                    if let Event::Put(cells) = &mut step.event {
                        cells.remove(column);
                    }
                }
                self.take_if_it_fails(case);
            }
        }
    }
}

/// The case as a file for tests/sql, with DataFusion's answer as what is expected.
pub fn script(case: &Case, runtime: &Runtime) -> String {
    let mut out = String::new();
    let mut say = |text: &str| {
        out.push_str(text);
        out.push('\n');
    };
    for table in &case.tables {
        say(&format!("statement ok\n{}\n", table.create()));
    }
    let (models, sql) = case.sql(Reader::Engine);
    for model in &models {
        say(&format!("statement ok\ncreate model {} as\n{}\n", model.name, model.sql));
    }
    // What the batch is asked stands below what the engine is asked, where it is another question.
    let (batch_models, batch_sql) = case.sql(Reader::Batch);
    let in_batch = if case.query.twice().is_empty() { String::new() } else { format!("\n{IN_BATCH}\n{batch_sql}") };
    say(&format!("statement ok\ncreate materialized view v as\n{sql}{in_batch}\n"));
    let mut database = Database::new(&case.tables);
    for steps in &case.epochs {
        let several = steps.len() != 1;
        if several {
            say("statement ok\nbegin\n");
        }
        for step in steps {
            say(&format!("statement ok\n{}\n", statement(case, step)));
        }
        if several {
            say("statement ok\ncommit\n");
        }
        if database.apply(steps).is_err() {
            say("# the rows of this epoch have no row format");
        }
    }
    let answer =
        runtime.block_on(async { Batch::plan(&batch_models, &batch_sql, &database).await?.answer(&database).await });
    match answer {
        Ok(answer) => {
            let types = "?".repeat(answer.num_columns().max(1));
            say(&format!("query {types} rowsort\nselect * from v\n----"));
            let mut rows: Vec<String> = super::printed(&answer).into_iter().map(|row| row.join(" ")).collect();
            rows.sort();
            rows.iter().for_each(|row| say(row));
        }
        Err(e) => say(&format!("# DataFusion: {}", e.strip_backtrace())),
    }
    out
}

fn statement(case: &Case, step: &Step) -> String {
    let table = &case.tables[step.table];
    match &step.event {
        Event::Put(cells) => format!("insert into {} values ({})", table.name, plain(cells).join(", ")),
        Event::Delete(key) => {
            let key: Vec<String> = table
                .key
                .iter()
                .zip(plain(key))
                .map(|(k, value)| format!("{} = {value}", table.columns[*k].name))
                .collect();
            format!("delete from {} where {}", table.name, key.join(" and "))
        }
        Event::Truncate => format!("truncate {}", table.name),
        Event::Redeliver => format!("redeliver {}", table.name),
    }
}

/// Values as an `insert` takes them, which knows their types.
fn plain(cells: &Cells) -> Vec<String> {
    cells
        .iter()
        .map(|cell| match cell {
            cell if cell.is_null() => "null".into(),
            ScalarValue::Utf8(Some(text)) => format!("'{}'", text.replace('\'', "''")),
            ScalarValue::Date32(_) | ScalarValue::TimestampMicrosecond(..) => {
                format!("'{}'", super::shown(&cell.to_array().expect("a scalar is an array of one"), 0))
            }
            ScalarValue::Float64(Some(value)) => format!("{value:?}"),
            cell => super::shown(&cell.to_array().expect("a scalar is an array of one"), 0),
        })
        .collect()
}
