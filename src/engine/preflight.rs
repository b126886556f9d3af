//! What can be said of a dataflow before anything runs: whether its configuration and models are right, and whether its peers answer.
//!
//! The invariant: what a start would refuse because of how it is configured is refused here, by the same functions, and all of it at once.
//! Looking at a configuration reaches no peer and writes nothing.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use futures::FutureExt;
use futures::future::BoxFuture;

use crate::config::{self, Config, DataTest, Errors, Problem, Severity, TestKind};
use crate::dataflow::{Mistake, Plan, PlanError, Project, Table};
use crate::decode::{self, ContractError, ContractErrors, RegistryClient, RowType, SchemaStore};
use crate::source::Source;
use crate::source::kafka::{self, KafkaSource};
use crate::{embed, index};

/// A dataflow that can be run.
pub struct Checked {
    pub config: Config,
    pub plan: Plan,
}

/// Reads and plans the dataflow in `folder`. A mistake that follows from another one is not told.
pub fn check(folder: &Path) -> BoxFuture<'_, Result<Checked, Errors>> {
    examine(folder).boxed()
}

async fn examine(folder: &Path) -> Result<Checked, Errors> {
    let config::Draft { config, mut problems, absent } = config::draft(folder);
    let told: BTreeSet<String> = problems.iter().map(|p| p.key.clone()).collect();
    // Without a readable dataflow.toml the sections are made up.
    let is_readable = !told.iter().any(|key| key.starts_with("dataflow.toml"));
    if is_readable {
        let is_forbidden = |option: &str| config::FORBIDDEN.iter().any(|(name, _)| *name == option);
        let mut options = told.iter().filter_map(|key| key.strip_prefix("kafka.options."));
        // What options are together is not known where the value of one is not: what may not be one hides nothing of it.
        let is_unset = options.any(|option| !is_forbidden(option));
        let is_known = |p: &Problem| told.contains(&p.key) || (is_unset && p.key == "kafka.options");
        problems.extend(of_sections(&config).into_iter().filter(|p| !is_known(p)));
    }
    let planned = planned(&config, absent);
    if let Some(view) = &planned.view_schema {
        problems.extend(index::refused_columns(view).await);
    }
    // Not once more by what is missing or wrong in dataflow.toml, and not by what nobody knows without it.
    let is_new = |p: &Problem| match p.key.split(['.', '[']).next() {
        Some("index") => is_readable && !told.contains(&p.key),
        Some("source") if p.key.ends_with(".key") => !told.contains(&p.key),
        // A test of a column that is not there.
        _ => !p.key.split_once(".tests[").is_some_and(|(column, _)| told.contains(column)),
    };
    problems.extend(planned.problems.into_iter().filter(is_new));
    match (Errors::of(folder, problems), planned.plan) {
        (Some(errors), _) => Err(errors),
        (None, Some((plan, _))) => Ok(Checked { config, plan }),
        (None, None) => unreachable!("a project without a plan has problems"),
    }
}

/// What is wrong with one section by itself.
fn of_sections(config: &Config) -> Vec<Problem> {
    let mut problems = kafka::problems(&config.kafka);
    if let Err(e) = RegistryClient::new(&config.registry) {
        let reason = if let decode::Error::Away { reason, .. } = e { reason } else { e.to_string() };
        problems.push(Problem { key: "registry.url".into(), reason });
    }
    problems.extend(embed::problems(&config.embed));
    problems
}

/// Plans a configuration's models; what is wrong with contracts and SQL comes as problems by key.
pub fn plan(config: &Config) -> Result<(Plan, Vec<Arc<RowType>>), Vec<Problem>> {
    let planned = planned(config, BTreeSet::new());
    planned.plan.ok_or(planned.problems)
}

#[derive(Default)]
struct Planned {
    plan: Option<(Plan, Vec<Arc<RowType>>)>,
    /// Known also where something else of the plan is wrong.
    view_schema: Option<SchemaRef>,
    problems: Vec<Problem>,
}

fn planned(config: &Config, mut absent: BTreeSet<String>) -> Planned {
    let mut planned = Planned::default();
    let (mut row_types, mut tables) = (Vec::new(), Vec::new());
    for (n, source) in config.sources.iter().enumerate() {
        let table = |columns: &SchemaRef| Table {
            schema: source.schema.clone(),
            table: source.table.clone(),
            columns: columns.clone(),
        };
        let mut wrong = |key: &str, ContractErrors(errors): ContractErrors| {
            let problem = |e: ContractError| Problem { key: format!("source[{n}].{key}"), reason: e.to_string() };
            planned.problems.extend(errors.into_iter().map(problem));
        };
        let of_all = match RowType::from_contract(source) {
            Ok(row_type) => {
                tables.push(table(row_type.schema()));
                row_types.push(Arc::new(row_type));
                continue;
            }
            Err(errors) => errors,
        };
        match RowType::from_contract(&config::Source { key: vec![], ..source.clone() }) {
            // A key that is wrong leaves the columns as they are.
            Ok(keyless) => {
                tables.push(table(keyless.schema()));
                wrong("key", of_all);
            }
            Err(errors) => {
                absent.insert(format!("{}__{}", source.schema, source.table));
                // One that is no contract at all was told as it was read.
                if !source.contract.is_empty() {
                    wrong("contract", errors);
                }
            }
        }
    }
    // A view that is not known, or not there: told already.
    if !config.models.iter().any(|m| m.name == config.view) {
        absent.insert(config.view.clone());
    }
    // That the key of a source is unique is upsert's doing: there is nothing to test.
    let is_key = |test: &DataTest| {
        let TestKind::Unique { column } = &test.kind else { return false };
        let keyed =
            |s: &config::Source| format!("{}__{}", s.schema, s.table) == test.relation && s.key == [column.as_str()];
        config.sources.iter().any(keyed)
    };
    let mut tests: Vec<DataTest> = config.tests.iter().filter(|t| !is_key(t)).cloned().collect();
    tests.extend(key_is_there(config));
    let project = Project { models: &config.models, others: &config.others, tests: &tests, view: &config.view };
    let whole = match Plan::project(&project, &tables, &absent) {
        Ok(plan) => plan,
        Err(mut e) => {
            planned.view_schema = e.view_schema.take();
            let outline = e.view_outline.take();
            // That the view lacks the key is told below.
            planned.problems.extend(problems_of(e).into_iter().filter(|p| p.key != INDEX_KEY));
            planned.problems.extend(match (&planned.view_schema, outline) {
                (Some(view), _) => index::problems(&config.index, view),
                (None, Some(names)) => {
                    index::missing_columns(&config.index, &names.iter().map(String::as_str).collect::<Vec<_>>())
                }
                (None, None) => vec![],
            });
            return planned;
        }
    };
    planned.view_schema = Some(whole.view_schema().clone());
    planned.problems.extend(index::problems(&config.index, whole.view_schema()));
    if !planned.problems.is_empty() {
        return planned;
    }
    // Columns that no model reads are neither decoded nor kept.
    let read = whole.columns_read();
    let row_types: Vec<_> = row_types.iter().zip(read).map(|(r, read)| Arc::new(r.pruned(&read))).collect();
    let kept: Vec<_> = row_types.iter().map(|r| r.schema().clone()).collect();
    match whole.keyed(&config.index.key).and_then(|whole| whole.keeping(&kept)) {
        Ok(plan) => planned.plan = Some((plan, row_types)),
        Err(e) => planned.problems.extend(problems_of(e)),
    }
    planned
}

const INDEX_KEY: &str = "index.key";

/// A row without a key is no row of the index, where nothing could find it again: it is held back, unless a test of the dataflow's does that.
fn key_is_there(config: &Config) -> Option<DataTest> {
    let (relation, kind) = (config.view.clone(), TestKind::NotNull { column: config.index.key.clone() });
    let is_said =
        |t: &DataTest| (&t.relation, &t.kind, t.severity, &t.condition) == (&relation, &kind, Severity::Error, &None);
    (!config.tests.iter().any(is_said)).then(|| DataTest {
        name: format!("index_key_{relation}_{}", config.index.key),
        relation,
        kind,
        severity: Severity::Error,
        condition: None,
        declared: INDEX_KEY.into(),
        lines: vec![],
    })
}

fn problems_of(error: PlanError) -> Vec<Problem> {
    let problem = |mistake| {
        let (key, reason) = match mistake {
            Mistake::At { at, reason } => (at.to_string(), reason),
            Mistake::Test { declared, reason } => (declared, reason),
            Mistake::View { view, reason } => ("view".into(), format!("{view}: {reason}")),
        };
        Problem { key, reason }
    };
    error.mistakes.into_iter().map(problem).collect()
}

/// Whether the broker answers, what it keeps of the topics, and which connector has sent no heartbeat.
pub fn ask_broker(config: &Config) -> Result<String, String> {
    let topics: Vec<Arc<str>> = config.sources.iter().map(|s| s.topic.clone()).collect();
    let mut source = KafkaSource::new(&config.kafka, &topics).map_err(|e| e.to_string())?;
    let marks = source.watermarks().map_err(|e| e.to_string())?;
    let events: i64 = marks.iter().map(|(_, w)| w.high.0 - w.low.0).sum();
    let mut told = format!("{} has {events} events in {} partitions", config.kafka.bootstrap_servers, marks.len());
    for topic in &config.kafka.heartbeat_topics {
        if source.written(topic).map_err(|e| e.to_string())? == 0 {
            told.push_str(&format!(", and no heartbeat in {topic}: is the connector's heartbeat.interval.ms set?"));
        }
    }
    Ok(told)
}

/// Whether the registry answers. An id that nobody registers is as good a question as any.
pub fn ask_registry(config: &Config) -> BoxFuture<'_, Result<String, String>> {
    let ask = async {
        let client = RegistryClient::new(&config.registry).map_err(|e| e.to_string())?;
        client.get(i32::MAX as u32).await.map_err(|e| e.to_string())?;
        Ok(config.registry.url.clone().unwrap_or_default())
    };
    ask.boxed()
}
