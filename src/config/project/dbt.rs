//! The words that dbt has in templates: `ref`, `source`, `config`, `var`, `env_var`, `return`, `adapter`, packages, and the values they give.
//!
//! The invariant: what a template reads and how it is configured is kept as it is said, so that the graph needs no second look at the text. No
//! word asks a database, or the clock.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use minijinja::value::{Enumerator, Kwargs, Object, ObjectRepr, from_args};
use minijinja::{Error, ErrorKind, State, Value};

use super::template::{MACRO, is_blank};
use crate::config::quoted;
use crate::config::section::near;

/// Macros that may be inside of each other's calls; each takes some of the thread's stack.
const DEPTH_MAX: usize = 32;

/// What templates may name.
pub(super) struct Names {
    /// Whether all sources and variables are known.
    pub settled: bool,
    pub project: String,
    pub target: String,
    pub variables: BTreeMap<String, Value>,
    pub models: BTreeSet<String>,
    /// Schema and table of each `[[source]]`.
    pub sources: BTreeSet<(String, String)>,
    /// Tables that properties describe, and where.
    pub described: BTreeMap<(String, String), String>,
}

/// What one template has said while it was rendered.
#[derive(Default)]
pub(super) struct Said {
    pub relations: Vec<String>,
    pub config: BTreeMap<String, Value>,
}

/// What rendering cannot know by itself.
pub(super) enum Question {
    Variable(String),
    /// Something is missing; told once, a placeholder stands for it, so that what comes after it is seen too.
    Complaint(String),
}

#[derive(Default)]
pub(super) struct Asked {
    pub now: Option<Question>,
    pub tolerated: BTreeSet<String>,
    /// What the environment had, for each variable that was asked for.
    pub variables: BTreeMap<String, Option<String>>,
}

pub(super) struct Rendering {
    pub names: Arc<Names>,
    pub said: Mutex<Said>,
    pub asked: Mutex<Asked>,
    /// What `return` was called with: it ends a macro by an error.
    pub returned: Mutex<Option<Value>>,
    pub depth: AtomicUsize,
}

impl fmt::Debug for Rendering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rendering")
    }
}

impl Rendering {
    pub fn said(&self) -> MutexGuard<'_, Said> {
        lock(&self.said)
    }

    pub fn asked(&self) -> MutexGuard<'_, Asked> {
        lock(&self.asked)
    }

    fn missing(&self, reason: String, placeholder: Value) -> Result<Value, Error> {
        let mut asked = self.asked();
        if asked.tolerated.contains(&reason) {
            return Ok(placeholder);
        }
        asked.now = Some(Question::Complaint(reason.clone()));
        Err(refused(reason))
    }

    fn reads(&self, relation: Relation) -> Value {
        let mut said = self.said();
        if !said.relations.contains(&relation.name) {
            said.relations.push(relation.name.clone());
        }
        drop(said);
        Value::from_object(relation)
    }

    fn model(&self, args: &[Value]) -> Result<Value, Error> {
        if args.last().is_some_and(Value::is_kwargs) {
            let reason = "ref is given a version, and the models of a dataflow have none".into();
            return self.missing(reason, Value::from("?"));
        }
        let name = match args {
            [name] => text_of(name)?,
            [project, name] if text_of(project)? == self.names.project => text_of(name)?,
            [project, name] => {
                let reason =
                    format!("ref('{project}', '{name}') is of another project; this one is {}", self.names.project);
                return self.missing(reason, Value::from("?"));
            }
            _ => return Err(refused("ref takes a model's name, or the project's name and a model's".into())),
        };
        if self.names.models.contains(name) {
            return Ok(self.reads(Relation::new(&self.names.project, name, name)));
        }
        let hint = near(name, self.names.models.iter().map(String::as_str));
        self.missing(format!("there is no model {name} in models/{hint}"), Value::from("?"))
    }

    fn source(&self, args: &[Value]) -> Result<Value, Error> {
        let [schema, table] = args else {
            return Err(refused("source takes two texts: the source's name and the table's".into()));
        };
        let (schema, table) = (text_of(schema)?, text_of(table)?);
        if !self.names.settled || self.names.sources.contains(&(schema.into(), table.into())) {
            return Ok(self.reads(Relation::new(schema, table, &format!("{schema}__{table}"))));
        }
        if let Some(key) = self.names.described.get(&(schema.into(), table.into())) {
            let reason = format!(
                "{key} describes the source, but dataflow.toml has no [[source]] with schema {schema:?} and table {table:?}: its topic, key and contract"
            );
            return self.missing(reason, Value::from("?"));
        }
        let tables = self.names.sources.iter().filter(|(s, _)| s == schema).map(|(_, t)| t.as_str());
        let hint = near(table, tables);
        let reason = format!("dataflow.toml has no [[source]] with schema {schema:?} and table {table:?}{hint}");
        self.missing(reason, Value::from("?"))
    }

    fn var(&self, args: &[Value]) -> Result<Value, Error> {
        let (name, default): (&str, Option<Value>) = from_args(args)?;
        match (self.names.variables.get(name), default) {
            (Some(value), _) => Ok(value.clone()),
            (None, Some(default)) => Ok(default),
            (None, None) if !self.names.settled => Ok(Value::from("?")),
            (None, None) => {
                let hint = near(name, self.names.variables.keys().map(String::as_str));
                self.missing(format!("the variable {name} is not in [vars] of dataflow.toml{hint}"), Value::from("?"))
            }
        }
    }

    fn env_var(&self, args: &[Value]) -> Result<Value, Error> {
        let (name, default): (&str, Option<Value>) = from_args(args)?;
        let mut asked = self.asked();
        match asked.variables.get(name).cloned() {
            Some(value) => {
                drop(asked);
                match value.map(Value::from).or(default) {
                    Some(value) => Ok(value),
                    None => self.missing(format!("the environment variable {name} is not set"), Value::from("?")),
                }
            }
            None => {
                asked.now = Some(Question::Variable(name.into()));
                Err(refused(format!("the environment variable {name} is not known yet")))
            }
        }
    }

    fn configure(&self, args: &[Value]) -> Result<Value, Error> {
        let mut said = self.said();
        for arg in args {
            for key in arg.try_iter()? {
                said.config.insert(key.to_string(), arg.get_item(&key)?);
            }
        }
        Ok(Value::from(""))
    }
}

/// A function or object of dbt's.
#[derive(Debug)]
pub(super) struct Spoken {
    pub word: Word,
    pub rendering: Arc<Rendering>,
}

#[derive(Debug)]
pub(super) enum Word {
    Config,
    Var,
    EnvVar,
    Ref,
    Source,
    Return,
    Exceptions,
    /// With the project's macros, for `dispatch`.
    Adapter(BTreeMap<String, Value>),
    Package(String, BTreeMap<String, Value>),
}

impl Object for Spoken {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, _: &State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        match &self.word {
            Word::Config => self.rendering.configure(args),
            Word::Var => self.rendering.var(args),
            Word::EnvVar => self.rendering.env_var(args),
            Word::Ref => self.rendering.model(args),
            Word::Source => self.rendering.source(args),
            Word::Return => {
                let (value,) = from_args(args)?;
                if self.rendering.depth.load(Ordering::Relaxed) == 0 {
                    return Err(refused("return is called outside of a macro".into()));
                }
                *lock(&self.rendering.returned) = Some(value);
                Err(refused("return".into()))
            }
            Word::Exceptions => Err(unknown("exceptions")),
            Word::Adapter(_) => Err(unknown("adapter")),
            Word::Package(name, _) => Err(unknown(name)),
        }
    }

    fn call_method(self: &Arc<Self>, state: &State<'_, '_>, method: &str, args: &[Value]) -> Result<Value, Error> {
        match (&self.word, method) {
            (Word::Config, "get") => {
                let (name, default, _): (&str, Option<Value>, Kwargs) = from_args(args)?;
                Ok(self.rendering.said().config.get(name).cloned().or(default).unwrap_or(Value::from(())))
            }
            (Word::Config, "require") => {
                let (name, _): (&str, Kwargs) = from_args(args)?;
                let value = self.rendering.said().config.get(name).cloned();
                value.ok_or_else(|| refused(format!("the configuration has no {name}")))
            }
            (Word::Var, "has_var") => {
                let (name,): (&str,) = from_args(args)?;
                Ok(self.rendering.names.variables.contains_key(name).into())
            }
            (Word::Exceptions, "raise_compiler_error") => {
                let (message,): (String,) = from_args(args)?;
                Err(refused(message))
            }
            (Word::Exceptions, "warn") => {
                let (message,): (String,) = from_args(args)?;
                tracing::warn!(message, "a template warns");
                Ok(Value::from(""))
            }
            (Word::Adapter(_), "quote") => {
                let (name,): (&str,) = from_args(args)?;
                Ok(quoted(name).into())
            }
            (Word::Adapter(macros), "dispatch") => {
                let (name, _, _): (&str, Option<Value>, Kwargs) = from_args(args)?;
                let names = [format!("datafusion__{name}"), format!("default__{name}")];
                let found = names.iter().find_map(|n| macros.get(n)).cloned();
                found.ok_or_else(|| refused(format!("there is neither a macro {} nor {}", names[0], names[1])))
            }
            (Word::Package(name, macros), method) => match macros.get(method) {
                Some(called) => called.call(state, args),
                None => Err(unknown(&format!("{name}.{method}"))),
            },
            (Word::Adapter(_), method) => Err(unknown(&format!("adapter.{method}"))),
            (Word::Exceptions, method) => Err(unknown(&format!("exceptions.{method}"))),
            _ => Err(Error::from(ErrorKind::UnknownMethod)),
        }
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.word)
    }
}

/// A macro of another file, which is a template of its own, so that macros may use each other in any order.
#[derive(Debug)]
pub(super) struct Macro {
    pub name: String,
    pub template: String,
    pub rendering: Arc<Rendering>,
}

impl Object for Macro {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, state: &State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        let depth = self.rendering.depth.fetch_add(1, Ordering::Relaxed);
        let run = || {
            if depth >= DEPTH_MAX {
                return Err(refused(format!("macros call each other more than {DEPTH_MAX} deep")));
            }
            let captured = state.env().get_template(&self.template)?.render_captured(())?;
            captured.state().call_macro(MACRO, args)
        };
        let ran = run();
        self.rendering.depth.fetch_sub(1, Ordering::Relaxed);
        let returned = lock(&self.rendering.returned).take();
        match (ran, returned) {
            (Err(_), Some(value)) => Ok(value),
            (ran, _) => ran.map(Value::from),
        }
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)
    }
}

/// What `ref` and `source` give: written out, it is the relation's name in quotes.
#[derive(Debug)]
pub(super) struct Relation {
    schema: String,
    identifier: String,
    name: String,
}

impl Relation {
    pub fn new(schema: &str, identifier: &str, name: &str) -> Relation {
        Relation { schema: schema.into(), identifier: identifier.into(), name: name.into() }
    }
}

impl Object for Relation {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        match key.as_str()? {
            "schema" => Some(self.schema.clone().into()),
            "identifier" | "name" | "table" => Some(self.identifier.clone().into()),
            _ => None,
        }
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&quoted(&self.name))
    }
}

/// A list that a template wrote: unlike Jinja's own it can grow, as Python's do.
#[derive(Debug)]
pub(super) struct List(Mutex<Vec<Value>>);

impl List {
    /// What a template writes between brackets. An item that is not defined would vanish from whatever is made of the list.
    pub fn value(items: Vec<Value>) -> Result<Value, Error> {
        match items.iter().position(Value::is_undefined) {
            Some(n) => Err(refused(format!("item {} of the list is not defined", n + 1))),
            None => Ok(Value::from_object(List(Mutex::new(items)))),
        }
    }

    fn items(&self) -> MutexGuard<'_, Vec<Value>> {
        lock(&self.0)
    }
}

impl Object for List {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.items().get(key.as_usize()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.items().len())
    }

    fn call_method(self: &Arc<Self>, _: &State<'_, '_>, method: &str, args: &[Value]) -> Result<Value, Error> {
        match method {
            "append" => {
                let (item,) = from_args(args)?;
                self.items().push(item);
            }
            "extend" => {
                let (more,): (Value,) = from_args(args)?;
                let more: Vec<Value> = more.try_iter()?.collect();
                self.items().extend(more);
            }
            "insert" => {
                let (at, item): (usize, Value) = from_args(args)?;
                let mut items = self.items();
                let at = at.min(items.len());
                items.insert(at, item);
            }
            "pop" => {
                let () = from_args(args)?;
                return self.items().pop().ok_or_else(|| refused("pop from an empty list".into()));
            }
            _ => return Err(Error::from(ErrorKind::UnknownMethod)),
        }
        Ok(Value::from(()))
    }
}

/// The methods that Python's values have, with marks counted as white space.
pub(super) fn method(state: &State<'_, '_>, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    match (value.as_str(), method, args) {
        (Some(text), "strip", []) => Ok(text.trim_matches(is_blank).into()),
        (Some(text), "lstrip", []) => Ok(text.trim_start_matches(is_blank).into()),
        (Some(text), "rstrip", []) => Ok(text.trim_end_matches(is_blank).into()),
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
    }
}

pub(super) fn trim(text: String, chars: Option<&str>) -> String {
    match chars {
        Some(chars) => text.trim_matches(|c| chars.contains(c)).into(),
        None => text.trim_matches(is_blank).into(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder of this lock panics")
}

fn text_of(value: &Value) -> Result<&str, Error> {
    value.as_str().ok_or_else(|| refused(format!("{value} is not a text")))
}

fn refused(reason: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason)
}

fn unknown(name: &str) -> Error {
    refused(format!("{name} is not a function or macro that this project or Freshet has"))
}
