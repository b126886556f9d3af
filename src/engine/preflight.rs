//! What can be said of a configuration before anything runs: whether its models can be maintained, and whether its peers answer.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;

use crate::config::{self, Config, DataTest, Problem, TestKind};
use crate::dataflow::{Plan, PlanError, Table};
use crate::decode::{RegistryClient, RowType, SchemaStore};
use crate::source::Source;
use crate::source::kafka::KafkaSource;

/// Plans a configuration's models; what is wrong with contracts and SQL comes as problems by key.
pub fn plan(config: &Config) -> Result<(Plan, Vec<Arc<RowType>>), Vec<Problem>> {
    let mut problems = Vec::new();
    let mut row_types = Vec::new();
    for (n, source) in config.sources.iter().enumerate() {
        match RowType::from_contract(source) {
            Ok(row_type) => row_types.push(Arc::new(row_type)),
            Err(e) => problems.push(Problem { key: format!("source[{n}].contract"), reason: e.to_string() }),
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let whole = planned(config, &row_types)?;
    if whole.view_schema().index_of(&config.index.text).is_err() {
        let reason = format!("the view {} has no column {}", config.view, config.index.text);
        return Err(vec![Problem { key: "index.text".into(), reason }]);
    }
    // Columns that no model reads are neither decoded nor kept.
    let read = whole.columns_read();
    let row_types: Vec<_> = row_types.iter().zip(read).map(|(r, read)| Arc::new(r.pruned(&read))).collect();
    let kept: Vec<_> = row_types.iter().map(|r| r.schema().clone()).collect();
    Ok((whole.keeping(&kept).map_err(problems_of)?, row_types))
}

fn planned(config: &Config, row_types: &[Arc<RowType>]) -> Result<Plan, Vec<Problem>> {
    let tables: Vec<Table> = config
        .sources
        .iter()
        .zip(row_types)
        .map(|(s, r)| Table { schema: s.schema.clone(), table: s.table.clone(), columns: r.schema().clone() })
        .collect();
    // That the key of a source is unique is upsert's doing: there is nothing to test.
    let is_key = |test: &DataTest| {
        let TestKind::Unique { column } = &test.kind else { return false };
        let keyed =
            |s: &config::Source| format!("{}__{}", s.schema, s.table) == test.relation && s.key == [column.as_str()];
        config.sources.iter().any(keyed)
    };
    let tests: Vec<DataTest> = config.tests.iter().filter(|t| !is_key(t)).cloned().collect();
    Plan::tested(&config.models, &tests, &config.view, &tables, &config.index.key).map_err(problems_of)
}

fn problems_of(error: PlanError) -> Vec<Problem> {
    let (key, reason) = match error {
        PlanError::At { at, reason } => (at.to_string(), reason),
        PlanError::Test { declared, reason } => (declared, reason),
        e => ("models".into(), e.to_string()),
    };
    vec![Problem { key, reason }]
}

/// Whether the broker answers, and what it keeps of the topics.
pub fn ask_broker(config: &Config) -> Result<String, String> {
    let topics: Vec<Arc<str>> = config.sources.iter().map(|s| s.topic.clone()).collect();
    let mut source = KafkaSource::new(&config.kafka, &topics).map_err(|e| e.to_string())?;
    let marks = source.watermarks().map_err(|e| e.to_string())?;
    let events: i64 = marks.iter().map(|(_, w)| w.high.0 - w.low.0).sum();
    Ok(format!("{} has {events} events in {} partitions", config.kafka.bootstrap_servers, marks.len()))
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
