//! A dataflow's folder as the dbt project that it is: models, macros, properties and tests become a graph of rendered SQL.
//!
//! The invariant: models come after those that they refer to, and every relation that is named is a `[[source]]` or a model of the folder.

mod dbt;
mod generic;
mod graph;
mod jinja;
mod properties;
mod template;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use minijinja::Value as JinjaValue;
use toml::Value;

use super::section::{Context, near, text_of};
use super::{DataTest, Materialized, Model, Severity, Source, TestKind};
use dbt::Names;
use jinja::{Jinja, Rendered, Unrendered};
use properties::Described;
use template::Template;

pub(super) struct Project {
    pub models: Vec<Model>,
    /// Enabled models that neither the view nor a test needs.
    pub others: Vec<Model>,
    pub tests: Vec<DataTest>,
    pub view: String,
    /// Models that are not among these because of a mistake that was told.
    pub absent: BTreeSet<String>,
}

/// What dataflow.toml says of the project.
pub(super) struct Settings<'a> {
    /// Whether it could be read. If not, sources and variables are taken for what templates say.
    pub read: bool,
    pub name: &'a str,
    pub target: String,
    pub variables: BTreeMap<String, Value>,
    pub sources: &'a [Source],
    pub view: Option<String>,
}

pub(super) fn read(cx: &Context<'_>, settings: &Settings<'_>) -> Project {
    let (models, properties) = model_files(cx);
    let singular = |path: &&PathBuf| !path.starts_with("tests/generic");
    let test_files = files(cx, Path::new("tests"), &["sql"]);
    let macro_files = files(cx, Path::new("macros"), &["sql"]);
    let generic = test_files.iter().filter(|p| !singular(p));
    let macros: Vec<Template> = macro_files.iter().chain(generic).filter_map(|path| template(cx, path)).collect();
    let described: Vec<Described> = properties
        .iter()
        .filter_map(|path| Some((path, text(cx, path)?)))
        .flat_map(|(path, text)| properties::read(cx, path, &text))
        .collect();
    let mut absent = BTreeMap::new();
    for source in settings.sources {
        let name = format!("{}__{}", source.schema, source.table);
        if let Some(path) = models.get(&name) {
            let reason =
                format!("{name} is the source {}.{} in SQL; give the model another name", source.schema, source.table);
            cx.problem(path.display().to_string(), reason);
            absent.insert(name, Vec::new());
        }
    }
    let names = Names {
        settled: settings.read,
        project: settings.name.into(),
        target: settings.target.clone(),
        variables: settings.variables.iter().map(|(name, value)| (name.clone(), jinja_value(value))).collect(),
        models: models.keys().cloned().collect(),
        sources: settings.sources.iter().map(|s| (s.schema.clone(), s.table.clone())).collect(),
        described: described
            .iter()
            .filter_map(|d| Some(((d.source.clone()?, d.name.clone()), d.key.clone())))
            .collect(),
    };
    let jinja = Jinja::new(names, &macros, &mut cx.problems.borrow_mut());
    let mut reading = Reading { cx, settings, jinja, nodes: BTreeMap::new(), absent, found: Vec::new() };
    reading.render_models(&models, &described);
    reading.describe(&described);
    for path in test_files.iter().filter(singular) {
        reading.singular_test(path);
    }
    reading.finish(&models)
}

/// A model of the graph.
struct Node {
    path: PathBuf,
    rendered: Rendered,
    materialized: Materialized,
}

struct Reading<'a> {
    cx: &'a Context<'a>,
    settings: &'a Settings<'a>,
    jinja: Jinja,
    /// The models that are enabled and could be rendered.
    nodes: BTreeMap<String, Node>,
    /// The relations that something is wrong with, and what they read all the same, as far as it is known.
    absent: BTreeMap<String, Vec<String>>,
    /// Each test with the relations that it reads.
    found: Vec<(DataTest, Vec<String>)>,
}

impl Reading<'_> {
    fn problem(&self, key: impl Into<String>, reason: impl Into<String>) {
        self.cx.problem(key, reason);
    }

    fn render_models(&mut self, models: &BTreeMap<String, PathBuf>, described: &[Described]) {
        for (name, path) in models {
            if self.absent.contains_key(name) {
                continue;
            }
            let Some(template) = template(self.cx, path) else {
                self.absent.insert(name.clone(), Vec::new());
                continue;
            };
            let properties = described.iter().find(|d| d.source.is_none() && d.name == *name);
            let config = properties.map(|p| p.config.iter().map(|(k, v)| (k.clone(), jinja_value(v))).collect());
            match self.jinja.render(&template, name, config.unwrap_or_default(), self.cx.variable) {
                Ok(rendered) if enabled(&rendered) => {
                    let materialized = rendered.config.get("materialized").map_or("view".into(), |m| m.to_string());
                    let materialized = match materialized.as_str() {
                        "view" | "ephemeral" => Materialized::View,
                        "table" | "incremental" => Materialized::Table,
                        other => {
                            let possible = "view, ephemeral, table and incremental are possible";
                            self.problem(
                                template.place("materialized"),
                                format!("materialized is {other:?}; {possible}"),
                            );
                            Materialized::View
                        }
                    };
                    self.nodes.insert(name.clone(), Node { path: path.clone(), rendered, materialized });
                }
                Ok(_) => {}
                Err(Unrendered { problems, relations }) => {
                    self.absent.insert(name.clone(), relations);
                    self.cx.problems.borrow_mut().extend(problems);
                }
            }
        }
    }

    fn describe(&mut self, described: &[Described]) {
        let mut seen = BTreeMap::new();
        for entry in described {
            if let Some(first) = seen.insert((&entry.source, &entry.name), &entry.key) {
                self.problem(&entry.key, format!("is described already, by {first}"));
                continue;
            }
            match &entry.source {
                Some(schema) => {
                    match self.settings.sources.iter().find(|s| s.schema == *schema && s.table == entry.name) {
                        Some(source) => {
                            for (key, column) in &entry.columns {
                                self.check_column(source, key, column);
                            }
                        }
                        None if entry.tests.is_empty() || !self.settings.read => continue,
                        None => {
                            let reason = "has data tests, but dataflow.toml has no [[source]] for it";
                            self.problem(&entry.key, reason);
                            continue;
                        }
                    }
                }
                None if self.jinja.names().models.contains(&entry.name) => {}
                None => {
                    let hint = near(&entry.name, self.jinja.names().models.iter().map(String::as_str));
                    self.problem(&entry.key, format!("there is no model {} in models/{hint}", entry.name));
                    continue;
                }
            }
            for test in &entry.tests {
                self.generic_test(entry, test);
            }
        }
    }

    fn check_column(&self, source: &Source, key: &str, column: &str) {
        if let Ok(apache_avro::Schema::Record(record)) = apache_avro::Schema::parse_str(&source.contract)
            && !record.fields.iter().any(|f| f.name == column)
        {
            let hint = near(column, record.fields.iter().map(|f| f.name.as_str()));
            let contract = source.contract_path.display();
            self.problem(key, format!("the contract {contract} has no column {column}{hint}"));
        }
    }

    fn singular_test(&mut self, path: &Path) {
        let Some(template) = template(self.cx, path) else { return };
        let (name, key) = (stem(path), path.display().to_string());
        let rendered = match self.jinja.render(&template, &name, BTreeMap::new(), self.cx.variable) {
            Ok(rendered) if enabled(&rendered) => rendered,
            Ok(_) => return,
            Err(unrendered) => return self.cx.problems.borrow_mut().extend(unrendered.problems),
        };
        let severity = rendered.config.get("severity").map_or("error".into(), |s| s.to_string().to_ascii_lowercase());
        let severity = match severity.as_str() {
            "error" => Severity::Error,
            "warn" => Severity::Warn,
            other => return self.problem(key, format!("severity is {other:?}; error and warn are possible")),
        };
        for refused in properties::REFUSED_OF_TEST.iter().filter(|k| rendered.config.contains_key(**k)) {
            self.problem(&key, format!("{refused} is not supported: a test fails with its first failing row"));
        }
        let Some(relation) = rendered.relations.first().cloned() else {
            return self.problem(key, "tests nothing: it has neither a ref() nor a source()");
        };
        let (kind, lines) = (TestKind::Query { sql: rendered.sql }, rendered.lines);
        let test = DataTest { name, relation, kind, severity, condition: None, declared: key, lines };
        self.add(test, rendered.relations);
    }

    fn add(&mut self, test: DataTest, relations: Vec<String>) {
        match self.found.iter().find(|(t, _)| t.name == test.name) {
            Some((first, _)) => {
                let reason = format!("the test {} is there already, at {}; give one a name", test.name, first.declared);
                self.problem(test.declared, reason);
            }
            None => self.found.push((test, relations)),
        }
    }
}

/// The models by their names, and the properties files, below `models/`.
fn model_files(cx: &Context<'_>) -> (BTreeMap<String, PathBuf>, Vec<PathBuf>) {
    let mut models: BTreeMap<String, PathBuf> = BTreeMap::new();
    for path in files(cx, Path::new("models"), &["sql"]) {
        let name = stem(&path);
        match models.get(&name) {
            Some(first) => {
                let reason = format!("there is a model {name} already, in {}", first.display());
                cx.problem(path.display().to_string(), reason);
            }
            None => drop(models.insert(name, path)),
        }
    }
    if models.is_empty() {
        cx.problem("models", format!("there is no *.sql in {}", cx.folder.join("models").display()));
    }
    (models, files(cx, Path::new("models"), &["yml", "yaml"]))
}

/// The files below a folder of the dataflow, in the order of their paths, which are relative to the dataflow's folder.
fn files(cx: &Context<'_>, below: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let entries = match std::fs::read_dir(cx.folder.join(below)) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(e) => {
            cx.problem(below.display().to_string(), format!("cannot be read: {e}"));
            return Vec::new();
        }
    };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let path = below.join(entry.file_name());
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        if entry.path().is_dir() {
            found.extend(files(cx, &path, extensions));
        } else if path.extension().is_some_and(|e| extensions.iter().any(|x| e.eq_ignore_ascii_case(x))) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn text(cx: &Context<'_>, path: &Path) -> Option<String> {
    text_of(&cx.folder.join(path))
        .map_err(|e| cx.problem(path.display().to_string(), format!("cannot be read: {e}")))
        .ok()
}

fn template(cx: &Context<'_>, path: &Path) -> Option<Template> {
    let text = text(cx, path)?;
    let template = Template::new(Arc::from(path), text);
    template.map_err(|(line, reason)| cx.problem(format!("{}:{line}", path.display()), reason)).ok()
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn enabled(rendered: &Rendered) -> bool {
    rendered.config.get("enabled").is_none_or(JinjaValue::is_true)
}

fn jinja_value(value: &Value) -> JinjaValue {
    match value {
        Value::String(text) => text.as_str().into(),
        Value::Integer(n) => (*n).into(),
        Value::Float(n) => (*n).into(),
        Value::Boolean(yes) => (*yes).into(),
        Value::Datetime(time) => time.to_string().into(),
        Value::Array(items) => items.iter().map(jinja_value).collect(),
        Value::Table(table) => table.iter().map(|(k, v)| (k.clone(), jinja_value(v))).collect(),
    }
}
