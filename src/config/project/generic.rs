//! Generic tests: those of a properties file become data tests of SQL, by dbt's rules.
//!
//! The invariant: a test that is accepted tests what dbt would test, under the name that dbt would give it; what is missing, too much or
//! unknown is told by its key.

use std::collections::BTreeMap;
use std::fmt::Write;

use minijinja::Value as JinjaValue;
use toml::Value;

use super::jinja::Rendered;
use super::properties::{Described, DescribedTest};
use super::{Reading, jinja_value};
use crate::config::section::{Section, near};
use crate::config::{DataTest, TestKind, quoted};

impl Reading<'_> {
    pub fn generic_test(&mut self, entry: &Described, test: &DescribedTest) {
        let relation = match &entry.source {
            Some(schema) => format!("{schema}__{}", entry.name),
            None => entry.name.clone(),
        };
        let mut arguments = test.arguments.clone();
        if let Some(column) = &test.column {
            arguments.insert("column_name".into(), Value::String(column.clone()));
        }
        let flat: Vec<String> = arguments.values().flat_map(flat).collect();
        let name = test.name.clone();
        let name = name.unwrap_or_else(|| generic_name(&test.test, entry.source.as_deref(), &entry.name, &flat));
        let mut relations = vec![relation.clone()];
        let condition = test.condition.as_ref().map(|c| self.render(&test.key, c, &mut relations));
        let mut built = DataTest {
            name,
            relation: relation.clone(),
            kind: TestKind::Query { sql: String::new() },
            severity: test.severity,
            condition,
            declared: test.key.clone(),
            lines: Vec::new(),
        };
        if self.jinja.has_test(&test.test) {
            // Its rows are already those that the condition lets through, as dbt does it.
            let of = quoted(&relation);
            let of = match built.condition.take() {
                Some(condition) => format!("(select * from {of} where {condition}) dbt_subquery"),
                None => of,
            };
            let mut values = BTreeMap::from([("model".to_string(), JinjaValue::from(of))]);
            for (name, value) in &arguments {
                let value = match value {
                    Value::String(text) if is_relation(text) => {
                        self.render(&test.key, &format!("{{{{ {text} }}}}"), &mut relations).into()
                    }
                    Value::String(text) if name != "column_name" => self.render(&test.key, text, &mut relations).into(),
                    value => jinja_value(value),
                };
                values.insert(name.clone(), value);
            }
            match self.jinja.call_test(&test.test, &values, self.cx.variable) {
                Ok(rendered) => {
                    relations.extend(rendered.relations);
                    built.kind = TestKind::Query { sql: rendered.sql };
                    built.lines = rendered.lines;
                }
                Err(reason) => return self.problem(&test.key, reason),
            }
        } else {
            let arguments = test.arguments.clone().into_iter().collect();
            let mut section = Section::new(self.cx, test.key.clone(), arguments);
            let Some(kind) = self.kind(test, &mut section, &mut relations) else { return };
            section.finish();
            built.kind = kind;
        }
        self.add(built, relations);
    }

    /// One of the tests that dbt brings along. What is missing or wrong is told.
    fn kind(&self, test: &DescribedTest, arguments: &mut Section<'_>, relations: &mut Vec<String>) -> Option<TestKind> {
        let column = || {
            if test.column.is_none() {
                self.problem(&test.key, "tests a column: it belongs under one, or wants column_name");
            }
            test.column.clone()
        };
        match test.test.as_str() {
            "not_null" => Some(TestKind::NotNull { column: column()? }),
            "unique" => Some(TestKind::Unique { column: column()? }),
            "accepted_values" => {
                let quote = match arguments.take("quote") {
                    None => None,
                    Some(Value::Boolean(quote)) => Some(quote),
                    Some(other) => {
                        arguments.problem("quote", format!("is {other}; true and false are possible"));
                        None
                    }
                };
                let mut values = arguments.take_list("values");
                for value in &mut values {
                    if let Value::String(text) = value {
                        *text = self.render(&test.key, text, relations);
                    }
                }
                if values.is_empty() {
                    arguments.problem("values", "is not a list of at least one value");
                    return None;
                }
                let values = values.iter().map(|v| literal(v, quote)).collect::<Option<Vec<String>>>();
                if values.is_none() {
                    arguments.problem("values", "has a list or a mapping among its values");
                }
                Some(TestKind::AcceptedValues { column: column()?, values: values? })
            }
            "relationships" => {
                let (to, field) = (arguments.raw_text("to"), arguments.raw_text("field"));
                for (key, value) in [("to", &to), ("field", &field)] {
                    if value.is_none() {
                        arguments.problem(key, "is missing");
                    }
                }
                let to = self.relation(&test.key, &to?)?;
                relations.push(to.clone());
                Some(TestKind::Relationships { column: column()?, to, field: field? })
            }
            "dbt_utils.expression_is_true" => {
                let Some(expression) = arguments.raw_text("expression") else {
                    arguments.problem("expression", "is missing");
                    return None;
                };
                let expression = self.render(&test.key, &expression, relations);
                let expression = match &test.column {
                    Some(column) => format!("{} {expression}", quoted(column)),
                    None => expression,
                };
                Some(TestKind::Expression { expression })
            }
            other => {
                let known = ["not_null", "unique", "accepted_values", "relationships", "dbt_utils.expression_is_true"];
                let hint = near(other, known.into_iter());
                let reason =
                    format!("{other} is not a test that dbt brings along or macros/ and tests/generic/ define{hint}");
                self.problem(&test.key, reason);
                None
            }
        }
    }

    /// The relation that `ref('a')` or `source('a', 'b')` in a properties file names.
    fn relation(&self, key: &str, text: &str) -> Option<String> {
        let text = if is_relation(text) { format!("{{{{ {text} }}}}") } else { text.to_string() };
        let reason = match self.jinja.render_text(&text, self.cx.variable) {
            Ok(Rendered { relations, .. }) if relations.len() == 1 => return relations.into_iter().next(),
            Ok(_) => format!("is {text:?}, neither ref('model') nor source('schema', 'table')"),
            Err(reason) => reason,
        };
        self.problem(format!("{key}.to"), reason);
        None
    }

    fn render(&self, key: &str, text: &str, relations: &mut Vec<String>) -> String {
        if !text.contains("{{") && !text.contains("{%") {
            return text.into();
        }
        match self.jinja.render_text(text, self.cx.variable) {
            Ok(rendered) => {
                relations.extend(rendered.relations);
                rendered.sql
            }
            Err(reason) => {
                self.problem(key, reason);
                text.into()
            }
        }
    }
}

/// Whether an argument names a relation, which dbt lets one write without braces.
fn is_relation(text: &str) -> bool {
    (text.starts_with("ref(") || text.starts_with("source(")) && text.ends_with(')')
}

/// An argument as dbt writes it into a test's name.
fn flat(value: &Value) -> Vec<String> {
    fn text(value: &Value) -> String {
        match value {
            Value::String(text) => text.clone(),
            Value::Boolean(true) => "True".into(),
            Value::Boolean(false) => "False".into(),
            other => other.to_string(),
        }
    }
    match value {
        Value::Array(items) => items.iter().map(text).collect(),
        Value::Table(table) => table.values().map(text).collect(),
        other => vec![text(other)],
    }
}

/// A value as SQL writes it: texts in quotes, unless `quote` says otherwise.
fn literal(value: &Value, quote: Option<bool>) -> Option<String> {
    let (text, is_text) = match value {
        Value::String(text) => (text.clone(), true),
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) => (value.to_string(), false),
        _ => return None,
    };
    Some(if quote.unwrap_or(is_text) { format!("'{}'", text.replace('\'', "''")) } else { text })
}

/// The name that dbt gives a generic test: the test, what it tests, and its arguments in the order of their names.
fn generic_name(test: &str, of_source: Option<&str>, relation: &str, arguments: &[String]) -> String {
    let (package, test) = test.split_once('.').map_or(("", test), |(package, test)| (package, test));
    let mut name = String::new();
    if !package.is_empty() {
        name = format!("{package}_");
    }
    if let Some(source) = of_source {
        let _ = write!(name, "source_{test}_{source}_{relation}");
    } else {
        let _ = write!(name, "{test}_{relation}");
    }
    let clean: Vec<String> = arguments.iter().map(|a| clean(a)).collect();
    name + "_" + &clean.join("__")
}

/// Every run of characters that a name does not have becomes one `_`.
fn clean(argument: &str) -> String {
    let mut out = String::new();
    let mut gap = false;
    for c in argument.chars() {
        if c.is_ascii_alphanumeric() || c == '_' {
            out.push(c);
            gap = false;
        } else if !gap {
            out.push('_');
            gap = true;
        }
    }
    out
}
