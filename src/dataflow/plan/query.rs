//! A query is the SQL of one step, parsed: one statement that only reads, of clauses that are all heeded.
//!
//! The invariant: what is no query never reaches the planner, and nothing that stands in a query is ignored by it. Each mistake has its line;
//! comments and texts between quotes are never taken for SQL. Nothing here asks a catalog.

use datafusion::error::{DataFusionError, Result};
use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::SQLOptions;
use datafusion::sql::parser::{DFParserBuilder, Statement as DFStatement};
use datafusion::sql::sqlparser::ast::{self, Spanned, Statement};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};

use super::clauses;
use super::message::{leaves, message};
use super::nesting;

/// What is wrong with a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// Of the rendered SQL, from 1.
    pub line: usize,
    pub reason: String,
}

impl Fault {
    pub fn new(line: u64, reason: impl Into<String>) -> Fault {
        Fault { line: usize::try_from(line).unwrap_or(1).max(1), reason: reason.into() }
    }
}

pub(super) struct Query {
    pub ast: Box<ast::Query>,
    /// Without white space and comments.
    tokens: Vec<TokenWithSpan>,
}

/// Brackets and calls inside of each other.
const BRACKETS_MAX: usize = 256;
/// Operators and keywords of one query: each may be one level more that the parser's tree is deep.
const OPERATORS_MAX: usize = 100_000;

impl Query {
    /// Parses SQL; `is_scalar` says whether a function of this name computes one row's value.
    pub fn parse(sql: &str, is_scalar: &dyn Fn(&str) -> bool) -> Result<Query, Vec<Fault>> {
        let dialect = GenericDialect {};
        let all = Tokenizer::new(&dialect, sql)
            .tokenize_with_location()
            .map_err(|e| vec![Fault::new(e.location.line, e.message)])?;
        let is_sql = |t: &&TokenWithSpan| !matches!(t.token, Token::Whitespace(_) | Token::EOF);
        let tokens: Vec<TokenWithSpan> = all.iter().filter(is_sql).cloned().collect();
        one_query(&tokens).map_err(|fault| vec![fault])?;
        let last = tokens.last().map_or(1, |t| t.span.end.line);
        let parsed = DFParserBuilder::new(all)
            .with_dialect(&dialect)
            .with_recursion_limit(BRACKETS_MAX)
            .build()
            .and_then(|mut parser| parser.parse_statements());
        let mut statements = parsed.map_err(|e| leaves(&e).map(|e| of_parser(e, last)).collect::<Vec<_>>())?;
        let ast = match statements.pop_front() {
            Some(DFStatement::Statement(statement)) => match *statement {
                Statement::Query(ast) => ast,
                other => return Err(vec![no_query(1, &other.to_string())]),
            },
            other => return Err(vec![no_query(1, &other.map_or(String::new(), |s| s.to_string()))]),
        };
        let query = Query { ast, tokens };
        let mut faults = clauses::ignored(&query, is_scalar);
        faults.extend(nesting::of_query(&query.ast));
        if faults.is_empty() { Ok(query) } else { Err(faults) }
    }

    /// The names of the relations that it reads, but for those of its own `with`.
    pub fn relations(&self, state: &SessionState) -> Result<Vec<String>> {
        let references = state.resolve_table_references(&statement(&self.ast))?;
        Ok(references.iter().map(|r| r.table().to_string()).collect())
    }

    /// Whether these words are in an expression, or right before it.
    pub fn names(&self, expr: &ast::Expr, words: &str) -> bool {
        let start = expr.span().start;
        let at = self.tokens.partition_point(|t| t.span.start < start);
        let before = at.checked_sub(1).filter(|_| start.line > 0).map(|at| self.tokens[at].token.to_string());
        let last = words.rsplit(' ').next().unwrap_or_default();
        before.is_some_and(|word| word.eq_ignore_ascii_case(last))
            || expr.to_string().to_lowercase().contains(&words.to_lowercase())
    }

    /// The line of the first of these words that stand one after the other; of the first word of all, if there is none.
    pub fn line(&self, words: &str) -> u64 {
        self.find(words).or(self.tokens.first()).map_or(1, |t| t.span.start.line)
    }

    /// Whether these words stand one after the other.
    pub fn has(&self, words: &str) -> bool {
        self.find(words).is_some()
    }

    fn find(&self, words: &str) -> Option<&TokenWithSpan> {
        let words: Vec<&str> = words.split_whitespace().collect();
        let is = |token: &TokenWithSpan, word: &str| match &token.token {
            Token::Word(w) => w.value.eq_ignore_ascii_case(word),
            other => other.to_string().eq_ignore_ascii_case(word),
        };
        let is_there = |some: &&[TokenWithSpan]| some.iter().zip(&words).all(|(token, word)| is(token, word));
        self.tokens.windows(words.len().max(1)).find(is_there).filter(|_| !words.is_empty())?.first()
    }
}

/// Plans a query, and runs nothing.
pub(super) async fn plan(state: &SessionState, query: &ast::Query) -> Result<LogicalPlan> {
    let plan = state.statement_to_plan(statement(query)).await?;
    let only_reads = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    only_reads.verify_plan(&plan)?;
    Ok(plan)
}

fn statement(query: &ast::Query) -> DFStatement {
    DFStatement::Statement(Box::new(Statement::Query(Box::new(query.clone()))))
}

fn no_query(line: u64, begins: &str) -> Fault {
    let begins = begins.split_whitespace().next().unwrap_or_default();
    Fault::new(line, format!("has to be one query, which SELECT, WITH or VALUES begins; this begins with {begins}"))
}

/// Whether there is one query, as far as can be told from its words.
fn one_query(tokens: &[TokenWithSpan]) -> Result<(), Fault> {
    let Some(first) = tokens.first() else {
        return Err(Fault::new(1, "there is no SQL in it"));
    };
    let begins = match &first.token {
        Token::LParen => true,
        Token::Word(word) => {
            matches!(word.keyword, Keyword::SELECT | Keyword::WITH | Keyword::VALUES | Keyword::FROM)
        }
        _ => false,
    };
    if !begins {
        return Err(no_query(first.span.start.line, &first.token.to_string()));
    }
    let end = tokens.iter().position(|t| t.token == Token::SemiColon).unwrap_or(tokens.len());
    if let Some(second) = tokens[end..].iter().find(|t| t.token != Token::SemiColon) {
        let reason = format!("has to be one query; a second statement begins here with {}", second.token);
        return Err(Fault::new(second.span.start.line, reason));
    }
    let nests = |t: &&TokenWithSpan| match &t.token {
        Token::Word(word) => word.keyword != Keyword::NoKeyword,
        Token::Comma | Token::Period | Token::LParen | Token::RParen | Token::Number(..) => false,
        Token::SingleQuotedString(_) => false,
        _ => true,
    };
    match tokens.iter().filter(nests).nth(OPERATORS_MAX) {
        Some(token) => {
            let reason = format!("the query has more than {OPERATORS_MAX} operators and keywords");
            Err(Fault::new(token.span.start.line, reason))
        }
        None => Ok(()),
    }
}

/// What the parser says; its lines stand in its text. Where it came to the end, that is the line.
fn of_parser(error: &DataFusionError, last: u64) -> Fault {
    let reason = message(error);
    if reason.contains("recursion limit exceeded") {
        return Fault::new(last, format!("more than {BRACKETS_MAX} brackets or calls stand inside of each other"));
    }
    match reason.rsplit_once(" at Line: ") {
        Some((reason, place)) => {
            let line = place.split(',').next().and_then(|l| l.trim().parse().ok());
            Fault::new(line.unwrap_or(last), reason)
        }
        None => Fault::new(last, reason),
    }
}
