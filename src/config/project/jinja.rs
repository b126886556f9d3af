//! What a template can say: dbt's functions and the project's macros, in minijinja.
//!
//! The invariant: a template renders to the same text each time, from the project's files, its variables and the environment alone; there is no
//! clock and no database behind a template. What is unknown is refused with the file and line where it is said.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};

use minijinja::value::{Kwargs, Rest};
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value};

use super::dbt::{self, List, Macro, Names, Question, Relation, Rendering, Said, Spoken, Word};
use super::template::{Definition, LIST, MACRO, Marks, Template};
use crate::config::{Line, Problem};

const PACKAGES: &[(&str, &str)] =
    &[("dbt", include_str!("packages/dbt.sql")), ("dbt_utils", include_str!("packages/dbt_utils.sql"))];
/// Between a file and a macro in the name of a template; no path has it.
const SEPARATOR: char = '\u{1f}';
/// Names that macros cannot have: what they stand for is what the graph is read from.
const RESERVED: &[&str] = &["ref", "source", "config", "var", "env_var", "return", "this", "target", LIST, MACRO];

/// What a template became.
#[derive(Debug)]
pub(super) struct Rendered {
    pub sql: String,
    pub lines: Vec<Line>,
    /// Relations that it reads: `schema__table` or a model's name, as they first come.
    pub relations: Vec<String>,
    pub config: BTreeMap<String, Value>,
}

/// What is wrong with a text, and the relations that it reads all the same, as far as it was rendered.
pub(super) struct Unrendered {
    pub problems: Vec<Problem>,
    pub relations: Vec<String>,
}

pub(super) struct Jinja {
    environment: Environment<'static>,
    marks: Marks,
    names: Arc<Names>,
    /// Macro -> the template that defines it and nothing else.
    macros: BTreeMap<String, String>,
    packages: BTreeMap<&'static str, BTreeMap<String, String>>,
}

impl Jinja {
    /// An environment with the macros of `files`; what is wrong with them comes as problems, and the rest still works.
    pub fn new(names: Names, files: &[Template], problems: &mut Vec<Problem>) -> Jinja {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_keep_trailing_newline(true);
        environment.set_debug(true);
        environment.set_unknown_method_callback(dbt::method);
        environment.add_filter("trim", dbt::trim);
        environment.add_function(LIST, List::value);
        let mut jinja = Jinja {
            environment,
            marks: Marks::default(),
            names: Arc::new(names),
            macros: BTreeMap::new(),
            packages: BTreeMap::new(),
        };
        for (package, text) in PACKAGES {
            let template = Template::new(Path::new(package).into(), text.to_string());
            let template = template.unwrap_or_else(|(line, reason)| panic!("{package}:{line}: {reason}"));
            let definitions =
                template.definitions().unwrap_or_else(|(line, reason)| panic!("{package}:{line}: {reason}"));
            let mut macros = BTreeMap::new();
            for definition in definitions {
                let id = id(package, &definition.name);
                let text = template.definition(&definition, None);
                jinja.environment.add_template_owned(id.clone(), text).unwrap_or_else(|e| panic!("{id}: {e}"));
                macros.insert(definition.name, id);
            }
            jinja.packages.insert(package, macros);
        }
        let mut seen: BTreeMap<String, String> = BTreeMap::new();
        for file in files {
            let at = |line: u32| format!("{}:{line}", file.path.display());
            let definitions = file.definitions().unwrap_or_else(|(line, reason)| {
                problems.push(Problem { key: at(line), reason });
                Vec::new()
            });
            for definition in definitions {
                let name =
                    if definition.is_test { format!("test_{}", definition.name) } else { definition.name.clone() };
                let key = at(definition.line);
                if RESERVED.contains(&name.as_str()) {
                    problems.push(Problem { key, reason: format!("a macro cannot be named {name}") });
                } else if let Some(first) = seen.get(&name) {
                    problems.push(Problem { key, reason: format!("the macro {name} is defined already, in {first}") });
                } else {
                    if let Err(problem) = jinja.define(file, &definition, &name) {
                        problems.push(problem);
                    }
                    seen.insert(name, key);
                }
            }
        }
        jinja
    }

    fn define(&mut self, file: &Template, definition: &Definition, name: &str) -> Result<(), Problem> {
        let id = id(&file.path.display().to_string(), name);
        let text = file.definition(definition, Some(&mut self.marks));
        self.environment.add_template_owned(id.clone(), text).map_err(|e| problem(&e))?;
        self.macros.insert(name.into(), id);
        Ok(())
    }

    /// Renders the model or singular test `this`; `config` is what its properties say already. All that can be found in one go is reported.
    pub fn render(
        &self,
        template: &Template,
        this: &str,
        config: BTreeMap<String, Value>,
        env_var: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Rendered, Unrendered> {
        let mut marks = self.marks.clone();
        let text = template.marked(&mut marks);
        let path = template.path.display().to_string();
        if marks.is_full() {
            let reason = "this template and all macros have more lines together than can be traced (65,534)".into();
            return Err(Unrendered { problems: vec![Problem { key: path, reason }], relations: Vec::new() });
        }
        let rendered = self.attempt(this, config, env_var, |environment| {
            environment.template_from_named_str(&path, &text)?.render(())
        });
        let default = Line { path: template.path.clone(), number: 1 };
        rendered.map(|(text, said)| said.rendered(marks.take_out(&text, &default)))
    }

    /// Renders a text of a properties file, which has no lines.
    pub fn render_text(&self, text: &str, env_var: &dyn Fn(&str) -> Option<String>) -> Result<Rendered, String> {
        let rendered = self.attempt("", BTreeMap::new(), env_var, |environment| environment.render_str(text, ()));
        self.without_lines(rendered)
    }

    pub fn names(&self) -> &Names {
        &self.names
    }

    /// Whether the project defines a generic test.
    pub fn has_test(&self, test: &str) -> bool {
        self.macros.contains_key(&format!("test_{test}"))
    }

    /// Calls a generic test of the project: the query that it renders to.
    pub fn call_test(
        &self,
        test: &str,
        arguments: &BTreeMap<String, Value>,
        env_var: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Rendered, String> {
        let name = format!("test_{test}");
        let file = file_of(&self.macros[&name]);
        let rendered = self.attempt("", BTreeMap::new(), env_var, |environment| {
            let state = environment.empty_state();
            let callee = state.lookup(&name).expect("every macro is a global");
            let keywords: Kwargs = arguments.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
            Ok(callee.call(&state, &[Value::from(keywords)])?.to_string())
        });
        let default = Line { path: Path::new(file).into(), number: 1 };
        match rendered {
            Ok((text, said)) => Ok(said.rendered(self.marks.take_out(&text, &default))),
            rendered => self.without_lines(rendered),
        }
    }

    fn without_lines(&self, rendered: Result<(String, Said), Unrendered>) -> Result<Rendered, String> {
        match rendered {
            Ok((text, said)) => Ok(said.rendered((text, Vec::new()))),
            Err(Unrendered { problems, .. }) => {
                let told = problems.iter().map(|p| match p.key.as_str() {
                    "" => p.reason.clone(),
                    key => format!("{} ({key})", p.reason),
                });
                Err(told.collect::<Vec<_>>().join("; "))
            }
        }
    }

    /// Renders again after each complaint that a placeholder can stand for, until the rest is known too.
    fn attempt(
        &self,
        this: &str,
        config: BTreeMap<String, Value>,
        env_var: &dyn Fn(&str) -> Option<String>,
        render: impl Fn(&Environment<'_>) -> Result<String, Error>,
    ) -> Result<(String, Said), Unrendered> {
        let rendering = Arc::new(Rendering {
            names: self.names.clone(),
            said: Mutex::default(),
            asked: Mutex::default(),
            returned: Mutex::default(),
            depth: AtomicUsize::new(0),
        });
        let environment = self.environment(&rendering, this);
        let mut problems = Vec::new();
        loop {
            *rendering.said() = Said { config: config.clone(), ..Said::default() };
            let error = match render(&environment) {
                Ok(text) if problems.is_empty() => return Ok((text, std::mem::take(&mut rendering.said()))),
                Ok(_) => {
                    return Err(Unrendered { problems, relations: std::mem::take(&mut rendering.said().relations) });
                }
                Err(error) => error,
            };
            let mut asked = rendering.asked();
            match asked.now.take() {
                Some(Question::Variable(name)) => {
                    let value = env_var(&name);
                    asked.variables.insert(name, value);
                }
                Some(Question::Complaint(reason)) => {
                    problems.push(problem(&error));
                    asked.tolerated.insert(reason);
                }
                None => {
                    problems.push(problem(&error));
                    return Err(Unrendered { problems, relations: std::mem::take(&mut rendering.said().relations) });
                }
            }
        }
    }

    fn environment(&self, rendering: &Arc<Rendering>, this: &str) -> Environment<'static> {
        let mut environment = self.environment.clone();
        let word = |word: Word| Value::from_object(Spoken { word, rendering: rendering.clone() });
        let macros = |macros: &BTreeMap<String, String>| -> BTreeMap<String, Value> {
            let value = |(name, template): (&String, &String)| {
                let called = Macro { name: name.clone(), template: template.clone(), rendering: rendering.clone() };
                (name.clone(), Value::from_object(called))
            };
            macros.iter().map(value).collect()
        };
        let own = macros(&self.macros);
        let project = Word::Package(self.names.project.clone(), own.clone());
        environment.add_global(self.names.project.clone(), word(project));
        for (package, of_package) in &self.packages {
            environment.add_global(*package, word(Word::Package(package.to_string(), macros(of_package))));
        }
        environment.add_global("config", word(Word::Config));
        environment.add_global("var", word(Word::Var));
        environment.add_global("env_var", word(Word::EnvVar));
        environment.add_global("ref", word(Word::Ref));
        environment.add_global("source", word(Word::Source));
        environment.add_global("return", word(Word::Return));
        environment.add_global("adapter", word(Word::Adapter(own.clone())));
        environment.add_global("exceptions", word(Word::Exceptions));
        environment.add_global("this", Value::from_object(Relation::new(&self.names.project, this, this)));
        environment.add_global("model", Value::from_iter([("name", this)]));
        environment.add_global("project_name", self.names.project.clone());
        environment.add_global("execute", true);
        let target = [("name", self.names.target.as_str()), ("schema", &self.names.project), ("type", "datafusion")];
        environment.add_global("target", Value::from_iter(target));
        environment.add_function("is_incremental", || false);
        environment.add_function("log", |message: Value, _: Rest<Value>| {
            tracing::info!(%message, "a template says");
            ""
        });
        // Last, so that a macro may stand for a word; those that the graph is read from are reserved.
        for (name, value) in own {
            environment.add_global(name, value);
        }
        environment
    }
}

impl Said {
    fn rendered(self, (mut sql, mut lines): (String, Vec<Line>)) -> Rendered {
        // Queries are put into others, where a `;` at their end would be in the way.
        sql.truncate(sql.trim_end().trim_end_matches(';').trim_end().len());
        lines.truncate(sql.split('\n').count());
        Rendered { sql, lines, relations: self.relations, config: self.config }
    }
}

/// The name of the template that has one macro of a file.
fn id(file: &str, name: &str) -> String {
    format!("{file}{SEPARATOR}{name}")
}

fn file_of(template: &str) -> &str {
    template.split(SEPARATOR).next().unwrap_or_default()
}

/// An error of Jinja's by the file and line that it names.
fn problem(error: &Error) -> Problem {
    let name = error.name().unwrap_or_default();
    let file = file_of(name);
    let key = match (file, error.line()) {
        ("" | "<string>" | "<expression>", _) => String::new(),
        (file, Some(line)) => format!("{file}:{line}"),
        (file, None) => file.into(),
    };
    let detail = error.detail().unwrap_or_default();
    let undefined = error.template_source().zip(error.range()).and_then(|(source, range)| {
        let expression = source.get(range.clone())?;
        // Of an attribute or a method the range begins after what should have it.
        let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
        let owner = source[..range.start].rsplit(|c| !is_path(c)).next().filter(|_| expression.starts_with('.'));
        Some(owner.unwrap_or(expression).trim().to_string()).filter(|e| !e.is_empty() && !e.contains(LIST))
    });
    let reason = match (error.kind(), undefined) {
        (ErrorKind::UndefinedError, Some(undefined)) => format!("{undefined} is not defined"),
        (ErrorKind::UnknownMethod, Some(undefined)) if detail.starts_with("undefined has no method") => {
            format!("{undefined} is not defined")
        }
        (ErrorKind::UnknownFunction, _) => {
            let name = detail.trim_end_matches(" is unknown");
            format!("{name} is not a function or macro that this project or Freshet has")
        }
        (ErrorKind::InvalidOperation, _) if !detail.is_empty() => detail.into(),
        (kind, _) if detail.is_empty() => kind.to_string(),
        (kind, _) => format!("{kind}: {detail}"),
    };
    Problem { key, reason }
}
