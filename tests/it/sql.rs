//! The files under tests/sql: statements change tables, views are maintained from the tables' events, queries read the views.
//!
//! `create model <name> as` names a query for the views after it, which is maintained for itself. Besides SQL a file may say `begin` and `commit` (what lies between is one epoch), `truncate <table>`, and `redeliver <table>` (all events of
//! the table come once more). A table needs a primary key; an insert of a key that is there replaces its row. After every epoch each view
//! is compared with DataFusion's answer in batch, whatever the file asks; after a line `-- in batch` a view says what DataFusion is asked
//! instead, and its rows may fail.

use std::collections::BTreeMap;
use std::path::Path;

use arrow::array::RecordBatch;
use datafusion::common::ScalarValue;
use datafusion::sql::sqlparser::ast::{
    Assignment, AssignmentTarget, ColumnOption, CreateTable, Delete, FromTable, Insert, Statement, TableConstraint,
    TableObject, TableWithJoins, Update,
};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::Parser;
use freshet::decode::Decoded;
use freshet::oracle::{
    Batch, Cells, Column, Database, Event, IN_BATCH, Maintained, Named, Step, TableDef, Type, difference, printed,
    session,
};
use sqllogictest::{ColumnType, DB, DBOutput, Runner};
use tokio::runtime::Runtime;

#[derive(Debug)]
struct Failed(String);

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failed {}

impl From<datafusion::error::DataFusionError> for Failed {
    fn from(e: datafusion::error::DataFusionError) -> Failed {
        Failed(e.strip_backtrace())
    }
}

type Result<T> = std::result::Result<T, Failed>;

fn failed<T>(reason: impl std::fmt::Display) -> Result<T> {
    Err(Failed(reason.to_string()))
}

struct Session {
    runtime: Runtime,
    database: Database,
    models: Vec<Named>,
    views: BTreeMap<String, (Maintained, Batch)>,
    /// Events since `begin`.
    open: Option<Vec<Decoded>>,
    workers: usize,
}

impl DB for Session {
    type Error = Failed;

    fn run(&mut self, sql: &str) -> Result<DBOutput> {
        let sql = sql.trim().trim_end_matches(';');
        let words: Vec<String> = sql.split_whitespace().take(3).map(str::to_lowercase).collect();
        match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["begin"] => self.open = Some(Vec::new()),
            ["commit"] => {
                let Some(events) = self.open.take() else { return failed("a commit without a begin") };
                self.epoch(&events)?;
            }
            ["truncate", table] => self.apply(table, Event::Truncate)?,
            ["redeliver", table] => self.apply(table, Event::Redeliver)?,
            ["create", "materialized", "view"] => self.create_view(sql)?,
            ["create", "model", _] => {
                let (name, sql) = named(sql, 2)?;
                self.models.push(Named { name, sql });
            }
            ["create" | "insert" | "update" | "delete", ..] => self.statement(sql)?,
            _ => return self.query(sql),
        }
        Ok(DBOutput::StatementComplete(0))
    }
}

impl Session {
    fn new(workers: usize) -> Session {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        Session { runtime, database: Database::default(), models: vec![], views: BTreeMap::new(), open: None, workers }
    }

    fn apply(&mut self, table: &str, event: Event) -> Result<()> {
        let table = self.table(table)?;
        self.steps(vec![Step { table, event }])
    }

    fn table(&self, name: &str) -> Result<usize> {
        let found = self.database.defs().position(|def| def.name == name);
        found.ok_or_else(|| Failed(format!("there is no table {name}")))
    }

    fn def(&self, table: usize) -> TableDef {
        self.database.defs().nth(table).expect("tables are found by name").clone()
    }

    fn steps(&mut self, steps: Vec<Step>) -> Result<()> {
        let events = self.database.apply(&steps)?;
        match &mut self.open {
            Some(open) => open.extend(events),
            None => self.epoch(&events)?,
        }
        Ok(())
    }

    fn epoch(&mut self, events: &[Decoded]) -> Result<()> {
        for (name, (maintained, batch)) in &mut self.views {
            maintained.send(events).and_then(|()| maintained.receive()).map_err(|e| Failed(format!("{name}: {e}")))?;
            Self::compare(&self.runtime, name, maintained, batch, &self.database)?;
        }
        Ok(())
    }

    fn compare(runtime: &Runtime, name: &str, view: &Maintained, batch: &Batch, database: &Database) -> Result<()> {
        let expected = runtime.block_on(batch.answer(database))?;
        match difference(&view.answer()?, &expected)? {
            None => Ok(()),
            Some(found) => failed(format!(
                "the view {name} is not what DataFusion computes: it lacks {:#?} and has {:#?}",
                found.missing, found.extra
            )),
        }
    }

    fn create_view(&mut self, sql: &str) -> Result<()> {
        let (name, query) = named(sql, 3)?;
        // What DataFusion is asked where it is asked something else: a row that fails would fail its query.
        let (query, in_batch) = match query.split_once(IN_BATCH) {
            Some((query, in_batch)) => (query.to_string(), Some(in_batch.to_string())),
            None => (query, None),
        };
        let of_batch = in_batch.as_ref().unwrap_or(&query);
        let batch = self.runtime.block_on(Batch::plan(&self.models, of_batch, &self.database))?;
        let plan = Maintained::plan(&self.models, &query, &self.database).map_err(|e| Failed(e.to_string()))?;
        let started = Maintained::start(plan, &self.database, self.workers, in_batch.is_some());
        let mut maintained = started.map_err(|e| Failed(e.to_string()))?;
        let history = self.database.history();
        maintained.send(history).and_then(|()| maintained.receive()).map_err(|e| Failed(e.to_string()))?;
        Self::compare(&self.runtime, &name, &maintained, &batch, &self.database)?;
        self.views.insert(name, (maintained, batch));
        Ok(())
    }

    /// A query over the views as they are maintained.
    fn query(&mut self, sql: &str) -> Result<DBOutput> {
        let (context, _) = session(&self.database)?;
        for (name, (maintained, _)) in &self.views {
            context.register_batch(name, maintained.answer()?)?;
        }
        let answer = self.rows(&context, sql)?;
        let rows: Vec<Vec<String>> = answer.iter().flat_map(printed).collect();
        let columns = rows.first().map_or(0, Vec::len);
        Ok(DBOutput::Rows { types: vec![ColumnType::Any; columns], rows })
    }

    fn rows(&self, context: &datafusion::prelude::SessionContext, sql: &str) -> Result<Vec<RecordBatch>> {
        Ok(self.runtime.block_on(async { context.sql(sql).await?.collect().await })?)
    }

    /// Rows of scalars that a query over the tables gives.
    fn cells(&self, sql: &str) -> Result<Vec<Cells>> {
        let (context, _) = session(&self.database)?;
        let mut rows = Vec::new();
        for batch in self.rows(&context, sql)? {
            for n in 0..batch.num_rows() {
                let cells = batch.columns().iter().map(|c| ScalarValue::try_from_array(c, n));
                rows.push(cells.collect::<datafusion::error::Result<Cells>>()?);
            }
        }
        Ok(rows)
    }

    fn statement(&mut self, sql: &str) -> Result<()> {
        let parsed = Parser::parse_sql(&GenericDialect {}, sql).map_err(|e| Failed(e.to_string()))?;
        let [statement] = parsed.as_slice() else { return failed("one statement at a time") };
        match statement {
            Statement::CreateTable(create) => self.create_table(create),
            Statement::Insert(insert) => self.insert(insert),
            Statement::Update(update) => self.update(update),
            Statement::Delete(delete) => self.delete(delete),
            other => failed(format!("{other} is no statement of these files")),
        }
    }

    fn create_table(&mut self, create: &CreateTable) -> Result<()> {
        let mut columns = Vec::new();
        for column in &create.columns {
            let rows = self.cells(&format!("select cast(null as {})", column.data_type))?;
            let arrow = rows[0][0].data_type();
            let ty = match arrow {
                arrow::datatypes::DataType::Decimal128(precision, scale) => Type::Decimal(precision, scale),
                _ => {
                    let all =
                        [Type::BigInt, Type::Int, Type::Double, Type::Text, Type::Bool, Type::Date, Type::Timestamp];
                    let found = all.into_iter().find(|ty| ty.arrow() == arrow);
                    found.ok_or_else(|| Failed(format!("{} is no type of these files", column.data_type)))?
                }
            };
            let nullable = !column.options.iter().any(|o| o.option == ColumnOption::NotNull);
            columns.push(Column { name: column.name.value.clone(), ty, nullable });
        }
        let key = create.constraints.iter().find_map(|c| match c {
            TableConstraint::PrimaryKey(key) => {
                Some(key.columns.iter().map(|c| c.column.expr.to_string()).collect::<Vec<_>>())
            }
            _ => None,
        });
        let Some(key) = key else { return failed("a table needs `primary key (...)`") };
        let find = |name: &String| columns.iter().position(|c| c.name == *name);
        let key: Option<Vec<usize>> = key.iter().map(find).collect();
        let Some(key) = key else { return failed("the primary key names no column") };
        self.database.create(TableDef { name: create.name.to_string(), columns, key });
        Ok(())
    }

    fn insert(&mut self, insert: &Insert) -> Result<()> {
        let TableObject::TableName(name) = &insert.table else { return failed("insert into a table") };
        let table = self.table(&name.to_string())?;
        let def = self.def(table);
        let Some(source) = &insert.source else { return failed("insert values or a query") };
        let names: Vec<String> = match insert.columns.is_empty() {
            true => def.columns.iter().map(|c| c.name.clone()).collect(),
            false => insert.columns.iter().map(ToString::to_string).collect(),
        };
        let cast: Vec<String> = def
            .columns
            .iter()
            .map(|c| match names.contains(&c.name) {
                true => format!("cast({} as {})", c.name, c.ty.sql()),
                false => format!("cast(null as {})", c.ty.sql()),
            })
            .collect();
        let rows =
            self.cells(&format!("select {} from ({source}) as source ({})", cast.join(", "), names.join(", ")))?;
        self.put(table, &def, rows)
    }

    fn put(&mut self, table: usize, def: &TableDef, rows: Vec<Cells>) -> Result<()> {
        let broken = |row: &Cells| def.columns.iter().zip(row).any(|(c, cell)| !c.nullable && cell.is_null());
        if rows.iter().any(broken) {
            return failed(format!("null in a column of {} that is not null", def.name));
        }
        self.steps(rows.into_iter().map(|row| Step { table, event: Event::Put(row) }).collect())
    }

    /// A row whose key changes is deleted, and put under its new key.
    fn update(&mut self, update: &Update) -> Result<()> {
        let (table, def) = self.target(std::slice::from_ref(&update.table))?;
        let value = |column: &Column| {
            let assigned = update.assignments.iter().find(|Assignment { target, .. }| {
                matches!(target, AssignmentTarget::ColumnName(name) if name.to_string() == column.name)
            });
            let value = assigned.map_or_else(|| column.name.clone(), |a| a.value.to_string());
            format!("cast({value} as {})", column.ty.sql())
        };
        let filter = update.selection.as_ref().map_or_else(String::new, |p| format!(" where {p}"));
        let keys = key_columns(&def);
        let old = self.cells(&format!("select {} from {}{filter}", keys.join(", "), def.name))?;
        let values: Vec<String> = def.columns.iter().map(value).collect();
        let new = self.cells(&format!("select {} from {}{filter}", values.join(", "), def.name))?;
        let mut steps: Vec<Step> = Vec::new();
        for (old, new) in old.iter().zip(&new) {
            if def.key.iter().zip(old).any(|(k, cell)| new[*k] != *cell) {
                steps.push(Step { table, event: Event::Delete(old.clone()) });
            }
        }
        steps.extend(new.into_iter().map(|row| Step { table, event: Event::Put(row) }));
        self.steps(steps)
    }

    fn delete(&mut self, delete: &Delete) -> Result<()> {
        let (FromTable::WithFromKeyword(from) | FromTable::WithoutKeyword(from)) = &delete.from;
        let (table, def) = self.target(from)?;
        let filter = delete.selection.as_ref().map_or_else(String::new, |p| format!(" where {p}"));
        let keys = self.cells(&format!("select {} from {}{filter}", key_columns(&def).join(", "), def.name))?;
        self.steps(keys.into_iter().map(|key| Step { table, event: Event::Delete(key) }).collect())
    }

    fn target(&self, from: &[TableWithJoins]) -> Result<(usize, TableDef)> {
        let [TableWithJoins { relation, joins }] = from else { return failed("one table at a time") };
        if !joins.is_empty() {
            return failed("one table at a time");
        }
        let table = self.table(&relation.to_string())?;
        Ok((table, self.def(table)))
    }
}

/// The name after so many words, and the query after `as`.
fn named(sql: &str, words: usize) -> Result<(String, String)> {
    let mut rest = sql;
    for _ in 0..words {
        rest = rest.trim_start().split_once(char::is_whitespace).map_or("", |(_, rest)| rest);
    }
    let found = rest.trim_start().split_once(char::is_whitespace).and_then(|(name, rest)| {
        let query = rest.trim_start().strip_prefix("as")?;
        Some((name.to_string(), query.trim().to_string()))
    });
    found.ok_or_else(|| Failed(format!("a name and `as` were expected: {sql}")))
}

fn key_columns(def: &TableDef) -> Vec<&str> {
    def.key.iter().map(|k| def.columns[*k].name.as_str()).collect()
}

#[test]
fn every_file_says_what_the_views_hold() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sql");
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "slt"));
    files.sort();
    assert!(files.len() >= 30, "only {} files in {}", files.len(), folder.display());
    let mut wrong = Vec::new();
    for file in &files {
        for workers in [1, 2] {
            if let Err(e) = Runner::new(Session::new(workers)).run_file(file) {
                wrong.push(format!("{} with {workers} worker(s): {e}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}
