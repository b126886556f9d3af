//! A template is a model, macro or test as written: text, and between it what Jinja computes.
//!
//! The invariant: every line that is rendered can be traced to the file and line it was written in, also out of loops, captured text and macros
//! of other files. For that, marks go into the text before it is rendered and come out afterwards; a mark is one private-use character, which
//! stands for a line. Marks never change what is rendered, nor the line numbers that Jinja itself sees.

use std::path::Path;
use std::sync::Arc;

use crate::config::Line;

/// Marks "from here on the text is this line's"; only in text that nothing captures, so that no comparison can see it.
const BEGINS: u32 = 0xF_0000;
/// Marks "what ends here is this line's"; before the line breaks of captured text, where one character more is harmless.
const ENDS: u32 = 0x10_0000;
/// Code points of a private plane that are characters.
const MARKS_MAX: usize = 0xFFFE;

/// A list that can be appended to takes the place of each list that is written; Jinja's own are constants.
pub(super) const LIST: &str = "__list";
/// The name of a macro inside of its own template, so that it finds itself where it finds the others.
pub(super) const MACRO: &str = "__macro";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    /// `{{ ... }}`
    Print,
    /// `{% ... %}`
    Tag,
    /// `{# ... #}`
    Comment,
}

#[derive(Clone, Debug)]
struct Piece {
    kind: Kind,
    start: usize,
    end: usize,
    /// Where it begins, from 1.
    line: u32,
}

pub(super) struct Template {
    /// Relative to the dataflow's folder.
    pub path: Arc<Path>,
    text: String,
    pieces: Vec<Piece>,
}

/// A macro or a generic test: the pieces from its opening tag to its closing one.
pub(super) struct Definition {
    pub name: String,
    pub line: u32,
    pub is_test: bool,
    pieces: std::ops::Range<usize>,
}

impl Template {
    /// Cuts the text into pieces; the error is a line and a reason.
    pub fn new(path: Arc<Path>, text: String) -> Result<Template, (u32, String)> {
        for (n, line) in text.split('\n').enumerate() {
            if let Some(c) = line.chars().find(|c| *c as u32 >= BEGINS) {
                let reason = format!("has the private-use character U+{:X}, which Freshet keeps for itself", c as u32);
                return Err((n as u32 + 1, reason));
            }
        }
        let pieces = cut(&text)?;
        Ok(Template { path, text, pieces })
    }

    /// Where a word first stands in it, or else the file.
    pub fn place(&self, word: &str) -> String {
        let path = self.path.display();
        match self.text.find(word) {
            Some(at) => format!("{path}:{}", self.text[..at].matches('\n').count() + 1),
            None => path.to_string(),
        }
    }

    /// The template for Jinja, with its marks.
    pub fn marked(&self, marks: &mut Marks) -> String {
        self.write(0..self.pieces.len(), Some(marks))
    }

    /// One definition as a template of its own, in which it is named [`MACRO`]; its lines keep their numbers. Without marks its lines are those
    /// of whoever calls it.
    pub fn definition(&self, definition: &Definition, marks: Option<&mut Marks>) -> String {
        let before = "\n".repeat(definition.line as usize - 1);
        let text = self.write(definition.pieces.clone(), marks);
        let (word, end) = if definition.is_test { ("test", "endtest") } else { ("macro", "endmacro") };
        let head = text.find(word).expect("the opening tag has its word");
        let rest = text[head + word.len()..].trim_start();
        let rest = rest.strip_prefix(&definition.name).expect("its name follows");
        let tail = rest.rfind(end).expect("the closing tag has its word");
        format!("{before}{}macro {MACRO}{}endmacro{}", &text[..head], &rest[..tail], &rest[tail + end.len()..])
    }

    /// The macros and generic tests that it defines outside of others.
    pub fn definitions(&self) -> Result<Vec<Definition>, (u32, String)> {
        let mut found = Vec::new();
        let mut open: Option<(usize, &str, String)> = None;
        for (n, piece) in self.pieces.iter().enumerate() {
            let (word, rest) = self.tag(piece);
            match (&open, word) {
                (None, "macro" | "test") => {
                    let name: String =
                        rest.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                    open = Some((n, word, name));
                }
                (None, "") => {}
                (None, "materialization" | "snapshot" | "docs") => {
                    return Err((piece.line, format!("{{% {word} %}} is not something that Freshet has")));
                }
                (Some((start, "macro", name)), "endmacro") | (Some((start, "test", name)), "endtest") => {
                    let line = self.pieces[*start].line;
                    let is_test = word == "endtest";
                    found.push(Definition { name: name.clone(), line, is_test, pieces: *start..n + 1 });
                    open = None;
                }
                _ => {}
            }
        }
        match open {
            Some((start, word, name)) => {
                Err((self.pieces[start].line, format!("the {word} {name} is not closed: {{% end{word} %}} is missing")))
            }
            None => Ok(found),
        }
    }

    /// The first word of a tag, and what follows it.
    fn tag(&self, piece: &Piece) -> (&str, &str) {
        if piece.kind != Kind::Tag {
            return ("", "");
        }
        word(&self.text[piece.start..piece.end])
    }

    fn write(&self, range: std::ops::Range<usize>, mut marks: Option<&mut Marks>) -> String {
        let mut out = String::new();
        let mut captured = 0_usize;
        for n in range.clone() {
            let piece = &self.pieces[n];
            let text = &self.text[piece.start..piece.end];
            let (word, rest) = self.tag(piece);
            match (piece.kind, word) {
                (Kind::Text, _) => match &mut marks {
                    Some(marks) => {
                        let before = n.checked_sub(1).filter(|b| range.contains(b)).map(|b| &self.pieces[b]);
                        let after = Some(n + 1).filter(|a| range.contains(a)).map(|a| &self.pieces[a]);
                        self.write_text(piece, before, after, captured > 0, marks, &mut out);
                    }
                    None => out += text,
                },
                (Kind::Comment, _) => out += text,
                (Kind::Print, _) => {
                    // What it prints is this line's, not that of the text before; beside text `write_text` has said so.
                    let beside_text = n > range.start && self.pieces[n - 1].kind == Kind::Text;
                    if let Some(marks) = marks.as_mut().filter(|_| captured == 0 && !beside_text) {
                        out.push(marks.mark(BEGINS, &self.path, piece.line));
                    }
                    out += &with_lists(text);
                }
                (Kind::Tag, _) => {
                    match word {
                        "macro" | "test" | "call" | "filter" => captured += 1,
                        // `{% set a %}...{% endset %}`; with a value it is a statement.
                        "set" if !rest.contains('=') => captured += 1,
                        "endmacro" | "endtest" | "endcall" | "endfilter" | "endset" => {
                            captured = captured.saturating_sub(1);
                        }
                        _ => {}
                    }
                    out += &with_lists(text);
                }
            }
        }
        out
    }

    /// White space that Jinja strips stays outside of the marks, or a mark would keep it.
    fn write_text(
        &self,
        piece: &Piece,
        before: Option<&Piece>,
        after: Option<&Piece>,
        captured: bool,
        marks: &mut Marks,
        out: &mut String,
    ) {
        let text = &self.text[piece.start..piece.end];
        let strips = |piece: &Piece, end: bool| {
            let text = &self.text[piece.start..piece.end];
            let at = if end { text.len().checked_sub(3) } else { Some(2) };
            piece.kind != Kind::Text && at.and_then(|at| text.as_bytes().get(at)) == Some(&b'-')
        };
        let stripped = if before.is_some_and(|b| strips(b, true)) { text.trim_start() } else { text };
        let lead = text.len() - stripped.len();
        let core = if after.is_some_and(|a| strips(a, false)) { stripped.trim_end() } else { stripped };
        let mut line = piece.line + text[..lead].matches('\n').count() as u32;
        *out += &text[..lead];
        if !captured {
            out.push(marks.mark(BEGINS, &self.path, line));
        }
        for (n, part) in core.split('\n').enumerate() {
            if n > 0 {
                if captured {
                    out.push(marks.mark(ENDS, &self.path, line));
                }
                out.push('\n');
                line += 1;
                if !captured {
                    out.push(marks.mark(BEGINS, &self.path, line));
                }
            }
            *out += part;
        }
        // What a call prints can be told from the text before it.
        if let Some(print) = after.filter(|a| !captured && a.kind == Kind::Print) {
            out.push(marks.mark(BEGINS, &self.path, print.line));
        }
        *out += &text[lead + core.len()..];
    }
}

/// The lines that marks stand for.
#[derive(Clone, Default)]
pub(super) struct Marks {
    lines: Vec<Line>,
}

impl Marks {
    fn mark(&mut self, plane: u32, path: &Arc<Path>, number: u32) -> char {
        if self.lines.last().is_none_or(|l| l.number != number || l.path != *path) {
            self.lines.push(Line { path: path.clone(), number });
        }
        // Past the bound the last mark stands for all that follow; `is_full` says so.
        let index = (self.lines.len() - 1).min(MARKS_MAX - 1);
        char::from_u32(plane + index as u32).expect("the private planes hold characters")
    }

    /// Whether there were more lines than marks.
    pub fn is_full(&self) -> bool {
        self.lines.len() > MARKS_MAX
    }

    fn line(&self, c: char) -> Option<(bool, &Line)> {
        let (ends, index) = match c as u32 {
            c if c >= ENDS => (true, c - ENDS),
            c if c >= BEGINS => (false, c - BEGINS),
            _ => return None,
        };
        self.lines.get(index as usize).map(|line| (ends, line))
    }

    /// Takes the marks out of what was rendered: the text, and for each of its lines where it was written.
    pub fn take_out(&self, rendered: &str, default: &Line) -> (String, Vec<Line>) {
        let text: String = rendered.chars().filter(|c| self.line(*c).is_none()).collect();
        let mut lines = Vec::new();
        // A line without any mark, such as one of a joined list, is where the next text is from.
        let mut next: Option<&Line> = None;
        for raw in rendered.rsplit('\n') {
            let content = raw.find(|c: char| !c.is_whitespace() && self.line(c).is_none()).unwrap_or(raw.len());
            let before = raw[..content].chars().rev().find_map(|c| self.line(c)).map(|(_, line)| line);
            let after = raw[content..].chars().find_map(|c| self.line(c));
            let line = match after {
                Some((true, line)) => Some(line),
                _ => before.or(after.map(|(_, line)| line)).or(next),
            };
            lines.push(line.cloned());
            next = raw.chars().find_map(|c| self.line(c)).map(|(_, line)| line).or(next);
        }
        lines.reverse();
        let mut last = default.clone();
        let lines = lines.into_iter().map(|line| {
            last = line.unwrap_or_else(|| last.clone());
            last.clone()
        });
        (text, lines.collect())
    }
}

/// Whether a character is white space, or a mark that stands beside it.
pub(super) fn is_blank(c: char) -> bool {
    c.is_whitespace() || c as u32 >= BEGINS
}

fn cut(text: &str) -> Result<Vec<Piece>, (u32, String)> {
    let mut pieces = Vec::new();
    let (mut at, mut line) = (0, 1);
    let mut push = |kind, start: usize, end: usize| {
        pieces.push(Piece { kind, start, end, line });
        line += text[start..end].matches('\n').count() as u32;
        line
    };
    let mut raw = false;
    let mut now = 1;
    while at < text.len() {
        let rest = &text[at..];
        let opens = |i: &usize| ["{{", "{%", "{#"].iter().any(|o| rest[*i..].starts_with(o));
        let ends_raw = |i: &usize| rest[*i..].starts_with("{%") && word(&rest[*i..]).0 == "endraw";
        let found = rest.match_indices('{').map(|(i, _)| i).find(|i| if raw { ends_raw(i) } else { opens(i) });
        let open = found.unwrap_or(rest.len());
        now = if open > 0 { push(Kind::Text, at, at + open) } else { now };
        at += open;
        if at == text.len() {
            break;
        }
        let rest = &text[at..];
        let (kind, end) = match &rest[..2] {
            "{#" => (Kind::Comment, rest.find("#}").map(|e| e + 2)),
            "{{" => (Kind::Print, closing(rest, "}}")),
            _ => (Kind::Tag, closing(rest, "%}")),
        };
        let Some(end) = end else { return Err((now, format!("a {} is not closed", &rest[..2]))) };
        raw = kind == Kind::Tag && word(&rest[..end]).0 == "raw";
        now = push(kind, at, at + end);
        at += end;
    }
    Ok(pieces)
}

/// Where a tag closes: outside of texts and brackets.
fn closing(tag: &str, close: &str) -> Option<usize> {
    let mut depth = 0_usize;
    let mut at = 2;
    while at < tag.len() {
        let rest = &tag[at..];
        let c = rest.chars().next()?;
        match c {
            _ if depth == 0 && rest.starts_with(close) => return Some(at + 2),
            '\'' | '"' => at += text_len(rest)?,
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if !matches!(c, '\'' | '"') {
            at += c.len_utf8();
        }
    }
    None
}

/// The length of a text in quotes, which `rest` begins with.
fn text_len(rest: &str) -> Option<usize> {
    let quote = rest.chars().next()?;
    let mut escaped = false;
    for (i, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Some(i + 1),
            _ => {}
        }
    }
    None
}

/// The first word of a tag, and what follows it.
fn word(tag: &str) -> (&str, &str) {
    let inside = tag[2..].trim_start_matches(['-', '+']).trim_start();
    let end = inside.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(inside.len());
    inside.split_at(end)
}

/// Puts each list that a tag writes (`[...]` where a value begins, not an index) into a call of [`LIST`].
fn with_lists(tag: &str) -> String {
    let mut out = String::new();
    // For each bracket that is open: whether it is a list's.
    let mut open = Vec::new();
    let mut at = 0;
    while let Some(c) = tag[at..].chars().next() {
        let len = match c {
            '\'' | '"' => text_len(&tag[at..]).unwrap_or(c.len_utf8()),
            _ => c.len_utf8(),
        };
        match c {
            '[' => {
                open.push(begins_value(&out));
                if open.last() == Some(&true) {
                    out = out + LIST + "(";
                }
                out.push('[');
            }
            ']' => {
                out.push(']');
                if open.pop() == Some(true) {
                    out.push(')');
                }
            }
            _ => out += &tag[at..at + len],
        }
        at += len;
    }
    out
}

/// Whether a value, not an index, has to follow what was written.
fn begins_value(written: &str) -> bool {
    let written = written.trim_end();
    let start = written.rfind(|c: char| !c.is_alphanumeric() && c != '_').map_or(0, |i| i + 1);
    match &written[start..] {
        "" => !written.ends_with([')', ']', '}', '\'', '"']),
        word => ["in", "if", "elif", "else", "and", "or", "not", "is", "do"].contains(&word),
    }
}
