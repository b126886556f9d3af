//! A table of a configuration file, read key by key: each key is taken once, checked, and named when it is wrong or unknown.
//!
//! The invariant: reading never stops at a mistake. A value that is wrong is replaced by its default and its problem is kept, so that one look
//! finds them all.

use std::cell::RefCell;
use std::ops::RangeInclusive;
use std::path::Path;

use toml::{Table, Value};

use super::file::Problem;

const UNSET: &str = "the environment variable";

/// What all tables of a file share.
pub(super) struct Context<'a> {
    pub folder: &'a Path,
    pub problems: &'a RefCell<Vec<Problem>>,
    pub variable: &'a dyn Fn(&str) -> Option<String>,
}

impl Context<'_> {
    pub fn problem(&self, key: impl Into<String>, reason: impl Into<String>) {
        let problem = Problem { key: key.into(), reason: reason.into() };
        let is_unknown = |p: &Problem| p.key == problem.key && p.reason.starts_with(UNSET);
        // Of a value that nobody knows nothing more can be said than that.
        if problem.reason.starts_with(UNSET) || !self.problems.borrow().iter().any(is_unknown) {
            self.problems.borrow_mut().push(problem);
        }
    }

    /// Puts the environment into a value: `${NAME}`, `${NAME:-text}` (which may hold variables itself), `$$` for a dollar.
    pub fn expand(&self, key: &str, text: &str) -> String {
        let mut out = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            out.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('$') {
                out.push('$');
                rest = after;
            } else if let Some(inside) = rest.strip_prefix('{') {
                let Some(end) = closing(inside) else {
                    self.problem(key, "a ${ is not closed");
                    return out;
                };
                let (name, fallback) = match inside[..end].split_once(":-") {
                    Some((name, fallback)) => (name, Some(fallback)),
                    None => (&inside[..end], None),
                };
                match ((self.variable)(name).filter(|v| !v.is_empty() || fallback.is_none()), fallback) {
                    (Some(value), _) => out.push_str(&value),
                    (None, Some(fallback)) => out.push_str(&self.expand(key, fallback)),
                    (None, None) => self.problem(key, format!("{UNSET} {name} is not set")),
                }
                rest = &inside[end + 1..];
            } else {
                out.push('$');
            }
        }
        out + rest
    }
}

/// Where the brace that opened before `text` closes.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => return Some(at),
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// One table of the file. Keys are taken out as they are read; what is left when it is dropped is unknown.
pub(super) struct Section<'a> {
    pub cx: &'a Context<'a>,
    path: String,
    pub table: Table,
    known: Vec<&'static str>,
}

impl<'a> Section<'a> {
    pub fn new(cx: &'a Context<'a>, path: String, table: Table) -> Section<'a> {
        Section { cx, path, table, known: Vec::new() }
    }

    pub fn path(&self) -> &str {
        &self.path
    }

    pub fn key(&self, key: &str) -> String {
        // After the name of a file the keys begin.
        let dot = if self.path.is_empty() || self.path.ends_with(' ') { "" } else { "." };
        format!("{}{dot}{key}", self.path)
    }

    pub fn problem(&self, key: &str, reason: impl Into<String>) {
        self.cx.problem(self.key(key), reason);
    }

    pub fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        self.table.remove(key)
    }

    pub fn take_table(&mut self, key: &'static str) -> Table {
        match self.take(key) {
            Some(Value::Table(table)) => table,
            None => Table::new(),
            Some(other) => {
                self.problem(key, format!("is a {}, not a table", other.type_str()));
                Table::new()
            }
        }
    }

    pub fn take_list(&mut self, key: &'static str) -> Vec<Value> {
        match self.take(key) {
            Some(Value::Array(items)) => items,
            None => Vec::new(),
            Some(other) => {
                self.problem(key, format!("is a {}, not a list", other.type_str()));
                Vec::new()
            }
        }
    }

    /// A text as it stands, without the environment.
    pub fn raw_text(&mut self, key: &'static str) -> Option<String> {
        match self.take(key)? {
            Value::String(text) => Some(text),
            other => {
                self.problem(key, format!("is a {}, not text", other.type_str()));
                None
            }
        }
    }

    pub fn section(&mut self, key: &'static str) -> Section<'a> {
        let table = self.take_table(key);
        Section::new(self.cx, self.key(key), table)
    }

    pub fn optional_text(&mut self, key: &'static str) -> Option<String> {
        self.raw_text(key).map(|text| self.cx.expand(&self.key(key), &text))
    }

    pub fn text(&mut self, key: &'static str, default: Option<&str>) -> String {
        let had = self.table.contains_key(key);
        match (self.optional_text(key), default) {
            (Some(text), _) if !text.trim().is_empty() => text,
            (Some(_), _) => {
                // A variable that is not set has been named already.
                let full = self.key(key);
                if !self.cx.problems.borrow().iter().any(|p| p.key == full) {
                    self.problem(key, "is empty");
                }
                String::new()
            }
            (None, Some(default)) => default.into(),
            (None, None) => {
                if !had {
                    self.problem(key, "is missing");
                }
                String::new()
            }
        }
    }

    pub fn number(&mut self, key: &'static str, default: u64, range: RangeInclusive<u64>) -> u64 {
        match self.take(key) {
            None => default,
            Some(Value::Integer(n)) => match u64::try_from(n).ok().filter(|n| range.contains(n)) {
                Some(n) => n,
                None => {
                    self.problem(key, format!("is {n}; {} to {} are possible", range.start(), range.end()));
                    default
                }
            },
            Some(other) => {
                self.problem(key, format!("is a {}, not a whole number", other.type_str()));
                default
            }
        }
    }

    pub fn size(&mut self, key: &'static str, default: u64, range: RangeInclusive<u64>) -> usize {
        usize::try_from(self.number(key, default, range)).unwrap_or(usize::MAX)
    }

    pub fn share(&mut self, key: &'static str, default: f64) -> f64 {
        match self.take(key) {
            None => default,
            Some(Value::Float(v)) if (0.0..=1.0).contains(&v) => v,
            Some(Value::Integer(v)) if (0..=1).contains(&v) => v as f64,
            Some(other) => {
                self.problem(key, format!("is {other}; 0.0 to 1.0 are possible"));
                default
            }
        }
    }

    pub fn choice<T: Copy>(&mut self, key: &'static str, default: T, choices: &[(&str, T)]) -> T {
        let Some(text) = self.optional_text(key) else { return default };
        match choices.iter().find(|(name, _)| *name == text) {
            Some((_, choice)) => *choice,
            None => {
                let names: Vec<String> = choices.iter().map(|(name, _)| format!("{name:?}")).collect();
                self.problem(key, format!("is {text:?}; {} are possible", names.join(" and ")));
                default
            }
        }
    }

    pub fn texts(&mut self, key: &'static str) -> Vec<String> {
        let texts = match self.take(key) {
            Some(Value::Array(items)) => {
                items.iter().map(|i| i.as_str().map(|t| self.cx.expand(&self.key(key), t))).collect()
            }
            Some(_) => None,
            None => {
                self.problem(key, "is missing");
                return Vec::new();
            }
        };
        texts.filter(|t: &Vec<String>| !t.is_empty()).unwrap_or_else(|| {
            self.problem(key, "is not a list of at least one text");
            Vec::new()
        })
    }

    /// A path relative to the dataflow's folder; one with a scheme (`s3://`) stays as it is.
    pub fn location(&mut self, key: &'static str, default: Option<&str>) -> String {
        let text = self.text(key, default);
        if text.is_empty() || text.contains("://") {
            text
        } else {
            self.cx.folder.join(text).to_string_lossy().into_owned()
        }
    }

    /// A [`location`](Self::location) that is, or is to be, a folder.
    pub fn folder(&mut self, key: &'static str, default: &str) -> String {
        let location = self.location(key, Some(default));
        // What is there of it already: a folder can be made only in folders.
        let there = Path::new(&location).ancestors().find(|p| p.exists() && !location.contains("://"));
        if let Some(file) = there.filter(|p| !p.is_dir()) {
            let reason = format!("cannot be a folder: {} is a file", file.display());
            self.problem(key, reason);
        }
        location
    }

    pub fn finish(self) {
        for key in self.table.keys() {
            let hint = near(key, self.known.iter().copied());
            self.problem(key, format!("is not a key that Freshet knows{hint}"));
        }
    }
}

/// The text of a file, without the mark that some editors put before it.
pub(super) fn text_of(path: &Path) -> std::io::Result<String> {
    let text = std::fs::read_to_string(path)?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_string).unwrap_or(text))
}

/// The name that was meant, perhaps: the end of a sentence.
pub(super) fn near<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let near = known.map(|k| (distance(k, name), k)).min().filter(|(d, k)| *d <= 3 && *d < k.len());
    near.map_or(String::new(), |(_, k)| format!("; did you mean {k}?"))
}

/// Levenshtein's.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let cost = if x == *y { diagonal } else { 1 + diagonal.min(row[j]).min(row[j + 1]) };
            diagonal = row[j + 1];
            row[j + 1] = cost;
        }
    }
    row[b.len()]
}
