//! Properties are what dbt's YAML files beside the models say: the tables of sources, the models' columns, and the data tests of both.
//!
//! The invariant: every key is dbt's, or it is named as unknown; what says nothing about the data (`description`, `meta`, `docs`, ...) is
//! accepted and ignored. What would change a test's answer is either followed or refused, never ignored.

use std::collections::BTreeMap;
use std::path::Path;

use toml::{Table, Value};

use crate::config::Severity;
use crate::config::section::{Context, Section};

/// A table of a source, or a model.
pub(super) struct Described {
    /// The key that its mistakes are named by.
    pub key: String,
    /// Whose table it is; `None` for a model.
    pub source: Option<String>,
    pub name: String,
    pub config: BTreeMap<String, Value>,
    /// Each with the key that it was found at.
    pub columns: Vec<(String, String)>,
    pub tests: Vec<DescribedTest>,
}

/// A generic test as it is written, not yet checked against what it tests.
pub(super) struct DescribedTest {
    pub key: String,
    /// With its package, if it has one: `dbt_utils.expression_is_true`.
    pub test: String,
    pub column: Option<String>,
    pub name: Option<String>,
    pub arguments: BTreeMap<String, Value>,
    pub severity: Severity,
    pub condition: Option<String>,
}

/// What dbt has in many places and says nothing about the data.
const ANYWHERE: &[&str] = &["description", "meta", "tags"];
const OF_FILE: &[&str] = &[
    "version",
    "macros",
    "exposures",
    "groups",
    "metrics",
    "semantic_models",
    "saved_queries",
    "analyses",
    "seeds",
    "snapshots",
    "anchors",
];
/// Of a source and of each of its tables.
const OF_SOURCES: &[&str] = &["loader", "loaded_at_field", "loaded_at_query", "freshness", "config", "quoting"];
const OF_SOURCE: &[&str] = &["database", "schema", "overrides"];
const OF_TABLE: &[&str] = &["identifier", "external"];
const OF_MODEL: &[&str] =
    &["docs", "group", "access", "latest_version", "deprecation_date", "constraints", "time_spine", "primary_key"];
const OF_COLUMN: &[&str] = &["docs", "data_type", "config", "quote", "constraints", "policy_tags", "granularity"];
/// What a test's `config` may say that does not change its answer.
const OF_TEST: &[&str] =
    &["docs", "group", "alias", "schema", "database", "limit", "store_failures", "store_failures_as"];
/// What would change a test's answer in a way that a maintained one does not have.
pub(super) const REFUSED_OF_TEST: &[&str] = &["error_if", "warn_if", "fail_calc"];

/// Reads one file; its mistakes are kept by their keys.
pub(super) fn read(cx: &Context<'_>, path: &Path, text: &str) -> Vec<Described> {
    let file = path.display().to_string();
    let table = match parse(text) {
        Ok(table) => table,
        Err((line, reason)) => {
            cx.problem(line.map_or(file.clone(), |line| format!("{file}:{line}")), reason);
            return Vec::new();
        }
    };
    let mut root = Section::new(cx, format!("{file}: "), table);
    let mut found = Vec::new();
    for (name, mut source) in entries(&mut root, "sources", "source") {
        ignore(&mut source, &[ANYWHERE, OF_SOURCES, OF_SOURCE]);
        for (table, mut entry) in entries(&mut source, "tables", "table") {
            ignore(&mut entry, &[ANYWHERE, OF_SOURCES, OF_TABLE]);
            let described = described(entry, Some(name.clone()), table, BTreeMap::new());
            found.push(described);
        }
        source.finish();
    }
    for (name, mut model) in entries(&mut root, "models", "model") {
        ignore(&mut model, &[ANYWHERE, OF_MODEL]);
        let config = model.take_table("config");
        found.push(described(model, None, name, config.into_iter().collect()));
    }
    ignore(&mut root, &[OF_FILE]);
    root.finish();
    found
}

fn described(
    mut entry: Section<'_>,
    source: Option<String>,
    name: String,
    config: BTreeMap<String, Value>,
) -> Described {
    let key = entry.path().to_string();
    let mut found = tests(&mut entry, None);
    let mut columns = Vec::new();
    for (column, mut of_column) in entries(&mut entry, "columns", "column") {
        ignore(&mut of_column, &[ANYWHERE, OF_COLUMN]);
        found.extend(tests(&mut of_column, Some(&column)));
        columns.push((of_column.path().to_string(), column));
        of_column.finish();
    }
    entry.finish();
    Described { key, source, name, config, columns, tests: found }
}

/// The named entries of a list, each as a section of its own, by their names.
fn entries<'a>(parent: &mut Section<'a>, key: &'static str, noun: &str) -> Vec<(String, Section<'a>)> {
    let mut found: Vec<(String, Section<'a>)> = Vec::new();
    for (n, item) in parent.take_list(key).into_iter().enumerate() {
        let at = parent.key(&format!("{key}[{n}]"));
        let Value::Table(mut table) = item else {
            parent.cx.problem(at, "is not a mapping with a name");
            continue;
        };
        let name = match table.remove("name") {
            Some(Value::String(name)) if !name.is_empty() => name,
            Some(other) => {
                parent.cx.problem(at, format!("name is {other}, not a text"));
                continue;
            }
            None => {
                parent.cx.problem(at, "has no name");
                continue;
            }
        };
        if found.iter().any(|(n, _)| *n == name) {
            parent.cx.problem(at, format!("the {noun} {name} is described twice"));
            continue;
        }
        let path = parent.key(&format!("{key}.{name}"));
        found.push((name, Section::new(parent.cx, path, table)));
    }
    found
}

fn ignore(section: &mut Section<'_>, lists: &[&'static [&'static str]]) {
    for key in lists.iter().copied().flatten() {
        section.take(key);
    }
}

/// The tests of a table, a model or a column: dbt calls them `tests`, later `data_tests`.
fn tests(section: &mut Section<'_>, column: Option<&str>) -> Vec<DescribedTest> {
    let mut found = Vec::new();
    for list in ["tests", "data_tests"] {
        for (n, item) in section.take_list(list).into_iter().enumerate() {
            let key = section.key(&format!("{list}[{n}]"));
            found.extend(test(section.cx, key, item, column));
        }
    }
    found
}

fn test(cx: &Context<'_>, key: String, item: Value, column: Option<&str>) -> Option<DescribedTest> {
    let (test, table) = match item {
        Value::String(test) => (test, Table::new()),
        // `- test_name: unique` with the rest beside it.
        Value::Table(mut table) if table.contains_key("test_name") => match table.remove("test_name") {
            Some(Value::String(test)) => (test, table),
            _ => {
                cx.problem(key, "test_name is not a text");
                return None;
            }
        },
        Value::Table(table) if table.len() == 1 => match table.into_iter().next() {
            Some((test, Value::Table(inside))) => (test, inside),
            Some((test, _)) => {
                cx.problem(key, format!("{test} has to be followed by a mapping"));
                return None;
            }
            None => unreachable!("it has one entry"),
        },
        _ => {
            cx.problem(key, "is not a test: its name, or a mapping from its name to its arguments");
            return None;
        }
    };
    let mut s = Section::new(cx, format!("{key}.{test}"), table);
    let mut config = Section::new(cx, s.key("config"), s.take_table("config"));
    let name = s.raw_text("name");
    let (mut severity, mut condition) = (None, None);
    let mut enabled = true;
    for of in [&mut s, &mut config] {
        if let Some(text) = of.raw_text("severity") {
            match text.to_ascii_lowercase().as_str() {
                "error" => severity = Some(Severity::Error),
                "warn" => severity = Some(Severity::Warn),
                _ => of.problem("severity", format!("is {text:?}; error and warn are possible")),
            }
        }
        condition = of.raw_text("where").or(condition);
        match of.take("enabled") {
            None => {}
            Some(Value::Boolean(yes)) => enabled &= yes,
            Some(other) => of.problem("enabled", format!("is {other}; true and false are possible")),
        }
        for key in REFUSED_OF_TEST {
            if of.take(key).is_some() {
                of.problem(key, "is not supported: a test fails with its first failing row");
            }
        }
        ignore(of, &[ANYWHERE, OF_TEST]);
    }
    config.finish();
    let mut column = column.map(str::to_string);
    let mut arguments: BTreeMap<String, Value> = s.take_table("arguments").into_iter().collect();
    arguments.extend(std::mem::take(&mut s.table));
    match arguments.remove("column_name") {
        None => {}
        Some(Value::String(name)) if column.is_none() => column = Some(name),
        Some(_) => s.problem("column_name", "is not the name of a column, or the test is a column's already"),
    }
    let severity = severity.unwrap_or(Severity::Error);
    enabled.then_some(DescribedTest {
        key: format!("{key}.{test}"),
        test,
        column,
        name,
        arguments,
        severity,
        condition,
    })
}

/// YAML as the tables that [`Section`] reads. A key without a value is as good as none.
fn parse(text: &str) -> Result<Table, (Option<usize>, String)> {
    use serde_yaml_ng::Value as Yaml;
    let wrong = |what: &str, e: serde_yaml_ng::Error| (e.location().map(|l| l.line()), format!("{what}: {e}"));
    let mut yaml: Yaml = serde_yaml_ng::from_str(text).map_err(|e| wrong("is no YAML", e))?;
    yaml.apply_merge().map_err(|e| wrong("has a merge key that does not merge", e))?;
    match yaml {
        Yaml::Null => Ok(Table::new()),
        yaml => match value(yaml).map_err(|reason| (None, reason))? {
            Some(Value::Table(table)) => Ok(table),
            _ => Err((None, "is not a mapping with sources: or models:".into())),
        },
    }
}

fn value(yaml: serde_yaml_ng::Value) -> Result<Option<Value>, String> {
    use serde_yaml_ng::Value as Yaml;
    Ok(Some(match yaml {
        Yaml::Null => return Ok(None),
        Yaml::Bool(yes) => Value::Boolean(yes),
        Yaml::Number(n) => match (n.as_i64(), n.as_f64()) {
            (Some(n), _) => Value::Integer(n),
            (None, Some(n)) if !n.is_finite() || n.abs() < 9e18 => Value::Float(n),
            _ => Value::String(n.to_string()),
        },
        Yaml::String(text) => Value::String(text),
        Yaml::Sequence(items) => {
            let items = items.into_iter().map(value).collect::<Result<Option<Vec<_>>, _>>()?;
            Value::Array(items.ok_or("has an empty item in a list")?)
        }
        Yaml::Mapping(map) => {
            let mut table = Table::new();
            for (key, inside) in map {
                let key = match key {
                    Yaml::String(key) => key,
                    // YAML reads `on:` or `1:` as something else than a text.
                    other => return Err(format!("has the key {}, which is not a text", other_key(&other))),
                };
                if let Some(inside) = value(inside)? {
                    table.insert(key, inside);
                }
            }
            Value::Table(table)
        }
        Yaml::Tagged(tagged) => return value(tagged.value),
    }))
}

fn other_key(key: &serde_yaml_ng::Value) -> String {
    serde_yaml_ng::to_string(key).map_or("?".into(), |text| text.trim().into())
}
