//! Searching: what the API asks, answered from one snapshot of the table.
//!
//! The invariant: an answer comes from exactly one snapshot, whose position and epoch it names. A filter is checked against the view's columns
//! before the table sees it.

use std::sync::{Arc, RwLock};

use arrow::array::{Array, Float32Array, RecordBatch};
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, DFSchemaRef};
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{Expr, ExprSchemable, Operator, lit};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::prelude::SessionContext;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};
use futures::TryStreamExt;
use futures::future::BoxFuture;
use lancedb::DistanceType;
use lancedb::query::{ExecutableQuery, QueryBase, Select};

use super::database::not_lance;
use super::design::VECTOR;
use super::json::{keys, rows};
use super::{Design, Error, IndexTable, Table};
use crate::dataflow::message;
use crate::serve::{Hit, Hits, Item, Search, SearchError, Searcher, Shape};
use crate::time::{Epoch, Position};

/// Partitions of the ANN index that a search looks into at least, and into more until there are as many hits as were asked for; where there is no
/// ANN index, all rows are compared.
const PROBES: usize = 20;
/// Longest text of a filter: a list of a few thousand values.
const FILTER_MAX_BYTES: usize = 32 << 10;
/// Most operators of a filter, and how deep its brackets may nest.
const FILTER_MAX_OPERATORS: usize = 200;
const FILTER_MAX_DEPTH: usize = 10;
/// Functions of a filter: what comes out of them is no larger than what goes in, so that no filter takes all memory or time.
const FILTER_FUNCTIONS: &[&str] = &[
    "abs",
    "btrim",
    "ceil",
    "character_length",
    "coalesce",
    "contains",
    "date_part",
    "date_trunc",
    "ends_with",
    "floor",
    "left",
    "lower",
    "ltrim",
    "nullif",
    "octet_length",
    "right",
    "round",
    "rtrim",
    "starts_with",
    "strpos",
    "substr",
    "to_timestamp",
    "trunc",
    "upper",
];
const DISTANCE: &str = "_distance";

/// One state of a table that is searched.
pub(super) struct Snapshot {
    table: Arc<dyn Table>,
    pub epoch: Epoch,
    pub position: Arc<Position>,
    /// The table's, which is not removed while somebody searches it.
    _in_use: Arc<()>,
}

impl Snapshot {
    pub async fn of(table: &IndexTable, epoch: Epoch, position: Arc<Position>) -> Result<Arc<Snapshot>, Error> {
        Ok(Arc::new(Snapshot { table: table.pinned().await?, epoch, position, _in_use: table.in_use.clone() }))
    }
}

/// The state that is searched now.
pub(super) type Shown = Arc<RwLock<Arc<Snapshot>>>;

pub struct IndexSearcher {
    shown: Shown,
    shape: Shape,
    schema: SchemaRef,
    key: String,
    filters: (SessionContext, DFSchemaRef),
}

impl IndexSearcher {
    pub(super) fn new(design: &Design, shown: Shown) -> Result<IndexSearcher, Error> {
        let schema = design.view.clone();
        let columns = schema.fields().iter().map(|f| f.name().clone()).collect();
        let filters = DFSchema::try_from(schema.as_ref().clone()).map_err(|e| design.storage(e))?;
        Ok(IndexSearcher {
            shown,
            shape: Shape { dimension: design.dimension, columns },
            key: design.key().name().clone(),
            schema,
            filters: (SessionContext::new(), Arc::new(filters)),
        })
    }

    /// What is searched, and what its answers say of it.
    pub(crate) fn state(&self) -> (Arc<dyn Table>, Epoch, Arc<Position>) {
        let now = self.now();
        (now.table.clone(), now.epoch, now.position.clone())
    }

    pub(super) fn now(&self) -> Arc<Snapshot> {
        self.shown.read().expect("no holder of this lock panics").clone()
    }

    /// A filter, checked, as the table's scan takes it.
    fn planned(&self, filter: &str) -> Result<Expr, SearchError> {
        bounded(filter)?;
        let (context, schema) = &self.filters;
        let bad = |e: datafusion::error::DataFusionError| SearchError::BadFilter(told(&message(&e)));
        let expr = context.parse_sql_expr(filter, schema).map_err(bad)?;
        let mut refused = None;
        expr.apply(|e| {
            refused = refused.take().or_else(|| refusal(e));
            Ok(if refused.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
        })
        .map_err(bad)?;
        if let Some(reason) = refused {
            return Err(SearchError::BadFilter(reason));
        }
        match expr.get_type(schema).map_err(bad)? {
            DataType::Boolean => {}
            other => return Err(SearchError::BadFilter(format!("the filter is a {other}, not a condition"))),
        }
        self.fitted(expr).map_err(bad)
    }

    /// That a row has this key.
    fn condition(&self, key: &str) -> Result<Expr, SearchError> {
        let field = self.schema.field_with_name(&self.key).map_err(internal)?;
        let value = match field.data_type() {
            DataType::Utf8 => lit(key),
            _ => lit(key
                .parse::<i64>()
                .map_err(|_| SearchError::BadKey(format!("{key:?} is not a whole number, which the key is")))?),
        };
        self.fitted(Expr::Column(Column::from_name(&self.key)).eq(value)).map_err(internal)
    }

    /// The same expression with its types made to fit each other, and what is constant computed: the table's scan does neither.
    fn fitted(&self, expr: Expr) -> datafusion::error::Result<Expr> {
        let schema = &self.filters.1;
        let simplifier = ExprSimplifier::new(SimplifyContext::builder().with_schema(schema.clone()).build());
        simplifier.simplify(simplifier.coerce(expr, schema)?)
    }

    /// The nearest rows that pass a filter. What is wrong with one may show only when it meets rows (a division by zero).
    async fn filtered(
        &self,
        snapshot: &Snapshot,
        vector: &[f32],
        k: usize,
        filter: Option<Expr>,
        columns: Option<Vec<String>>,
    ) -> Result<Vec<Hit>, SearchError> {
        let has_filter = filter.is_some();
        self.nearest(snapshot, vector, k, filter, columns).await.map_err(|e| match e {
            SearchError::Internal(reason) if has_filter && is_of_filter(&reason) => {
                SearchError::BadFilter(without_place(&reason))
            }
            e => e,
        })
    }

    async fn nearest(
        &self,
        snapshot: &Snapshot,
        vector: &[f32],
        k: usize,
        filter: Option<Expr>,
        columns: Option<Vec<String>>,
    ) -> Result<Vec<Hit>, SearchError> {
        let mut wanted = columns.clone().unwrap_or_else(|| self.shape.columns.clone());
        if !wanted.contains(&self.key) {
            wanted.push(self.key.clone());
        }
        wanted.push(DISTANCE.into());
        let table = snapshot.table.lance().ok_or_else(|| internal(not_lance()))?;
        let query = table.query().nearest_to(vector).map_err(internal)?;
        let mut query =
            query.column(VECTOR).distance_type(DistanceType::Cosine).limit(k).select(Select::columns(&wanted));
        // `nprobes` would be the most, too, and rows that pass a filter would be missed. Without effort the least is also what is begun with.
        query = query.minimum_nprobes(PROBES).and_then(|q| q.search_effort(0.0)).map_err(internal)?;
        if let Some(filter) = filter {
            // Where fewer rows pass than were asked for, Lance gives those of partitions that it has not looked into without their distances.
            query = query.only_if_expr(filter).refine_factor(1);
        }
        let batches: Vec<RecordBatch> =
            query.execute().await.map_err(internal)?.try_collect().await.map_err(internal)?;
        let mut hits = Vec::new();
        for batch in &batches {
            let distances = batch.column_by_name(DISTANCE).and_then(|c| c.as_any().downcast_ref::<Float32Array>());
            let distances = distances.ok_or_else(|| SearchError::Internal("the table gave no distances".into()))?;
            let rows = rows(batch, columns.as_ref().unwrap_or(&self.shape.columns)).map_err(internal)?;
            for (n, (key, row)) in keys(batch, &self.key).map_err(internal)?.into_iter().zip(rows).enumerate() {
                hits.push(Hit { key, score: 1.0 - distances.value(n), row });
            }
        }
        Ok(hits)
    }
}

impl Searcher for IndexSearcher {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn search(&self, search: Search) -> BoxFuture<'_, Result<Hits, SearchError>> {
        Box::pin(async move {
            let Search { vector, k, filter, columns } = search;
            let filter = filter.map(|filter| self.planned(&filter)).transpose()?;
            let snapshot = self.now();
            let hits = self.filtered(&snapshot, &vector, k, filter, columns).await?;
            Ok(Hits { hits, epoch: snapshot.epoch, position: snapshot.position.clone() })
        })
    }

    fn item<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Item, SearchError>> {
        Box::pin(async move {
            let snapshot = self.now();
            let columns: Vec<&str> = self.shape.columns.iter().map(String::as_str).collect();
            let found = snapshot.table.scan(&columns, Some(self.condition(key)?), Some(1)).await.map_err(internal)?;
            let batches: Vec<RecordBatch> = found.try_collect().await.map_err(internal)?;
            for batch in &batches {
                let keys = keys(batch, &self.key).map_err(internal)?;
                let rows = rows(batch, &self.shape.columns).map_err(internal)?;
                if let Some((key, row)) = keys.into_iter().zip(rows).next() {
                    return Ok(Item { key, row, epoch: snapshot.epoch, position: snapshot.position.clone() });
                }
            }
            Err(SearchError::NoSuchKey(key.into()))
        })
    }

    fn similar<'a>(&'a self, key: &'a str, k: usize) -> BoxFuture<'a, Result<Hits, SearchError>> {
        Box::pin(async move {
            let snapshot = self.now();
            let condition = self.condition(key)?;
            let found = snapshot.table.scan(&[VECTOR], Some(condition.clone()), Some(1)).await.map_err(internal)?;
            let batches: Vec<RecordBatch> = found.try_collect().await.map_err(internal)?;
            let Some(batch) = batches.iter().find(|b| b.num_rows() > 0) else {
                return Err(SearchError::NoSuchKey(key.into()));
            };
            let vectors = batch.column(0).as_any().downcast_ref::<arrow::array::FixedSizeListArray>();
            let vector = vectors
                .map(|v| v.value(0))
                .ok_or_else(|| SearchError::Internal("the vector is of another type".into()))?;
            let numbers = vector
                .as_any()
                .downcast_ref::<Float32Array>()
                .ok_or_else(|| SearchError::Internal("the vector is of another type".into()))?;
            let hits = self.nearest(&snapshot, numbers.values(), k, Some(!condition), None).await?;
            Ok(Hits { hits, epoch: snapshot.epoch, position: snapshot.position.clone() })
        })
    }
}

/// What DataFusion says of a filter, without its advice to those who configure it and to those who have its functions.
fn told(message: &str) -> String {
    if let Some((name, _)) = message.strip_prefix("Invalid function '").and_then(|rest| rest.split_once('\'')) {
        return format!("a filter can have no {name}(); its functions are {}", FILTER_FUNCTIONS.join(", "));
    }
    let sentences = message.split(". ").filter(|sentence| !sentence.contains("datafusion."));
    sentences.collect::<Vec<_>>().join(". ")
}

/// Why a filter can have no such part, if it cannot.
fn refusal(expr: &Expr) -> Option<String> {
    let no =
        |what: String| Some(format!("a filter can have no {what}; its functions are {}", FILTER_FUNCTIONS.join(", ")));
    match expr {
        Expr::Exists(_) | Expr::InSubquery(_) | Expr::ScalarSubquery(_) | Expr::SetComparison(_) => {
            Some("a filter is about one row: it can have no SELECT".into())
        }
        Expr::AggregateFunction(call) => {
            Some(format!("a filter is about one row: it can have no {}()", call.func.name()))
        }
        Expr::WindowFunction(call) => Some(format!("a filter is about one row: it can have no {}()", call.fun.name())),
        Expr::GroupingSet(_) | Expr::Unnest(_) => Some("a filter is about one row: it can have no groups".into()),
        Expr::Placeholder(held) => Some(format!("a filter has no parameters: {} stands for nothing", held.id)),
        Expr::ScalarVariable(_, names) => {
            Some(format!("a filter has no variables: {} stands for nothing", names.join(".")))
        }
        Expr::ScalarFunction(call) if !FILTER_FUNCTIONS.contains(&call.name()) => no(format!("{}()", call.name())),
        Expr::BinaryExpr(binary) if binary.op == Operator::StringConcat => no("||".into()),
        _ => None,
    }
}

/// Refuses a filter that nests deeper, or has more operators, than those who plan it can bear: they recurse, and the parser's time doubles with
/// each bracket around a mistake. Operators are the words and signs that are neither names, values nor commas.
fn bounded(filter: &str) -> Result<(), SearchError> {
    if filter.len() > FILTER_MAX_BYTES {
        let bytes = filter.len();
        return Err(SearchError::BadFilter(format!(
            "the filter has {bytes} bytes, and {FILTER_MAX_BYTES} are allowed"
        )));
    }
    let tokens = Tokenizer::new(&GenericDialect {}, filter).tokenize();
    let tokens = tokens.map_err(|e| SearchError::BadFilter(format!("{}{}", e.message, e.location)))?;
    let tokens: Vec<Token> = tokens.into_iter().filter(|token| !matches!(token, Token::Whitespace(_))).collect();
    if tokens.iter().any(
        |token| matches!(token, Token::Word(word) if word.keyword == Keyword::SELECT && word.quote_style.is_none()),
    ) {
        return Err(SearchError::BadFilter("a filter is about one row: it can have no SELECT".into()));
    }
    let nests = |n: usize| match &tokens[n] {
        Token::Word(word) => word.keyword != Keyword::NoKeyword,
        Token::Number(..) | Token::Comma | Token::SingleQuotedString(_) => false,
        // What opens is counted, what closes is not.
        Token::RParen | Token::RBracket | Token::RBrace => false,
        // The sign of a number in a list.
        Token::Minus | Token::Plus => {
            let in_list = n > 0 && matches!(tokens[n - 1], Token::Comma | Token::LParen);
            !(in_list && matches!(tokens.get(n + 1), Some(Token::Number(..))))
        }
        _ => true,
    };
    let operators = (0..tokens.len()).filter(|n| nests(*n)).count();
    if operators > FILTER_MAX_OPERATORS {
        return Err(SearchError::BadFilter(format!(
            "the filter has {operators} operators, keywords and brackets, and {FILTER_MAX_OPERATORS} are allowed; many values of one column go into one IN"
        )));
    }
    let mut depth = 0_usize;
    for token in &tokens {
        match token {
            Token::LParen | Token::LBracket | Token::LBrace => depth += 1,
            Token::RParen | Token::RBracket | Token::RBrace => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > FILTER_MAX_DEPTH {
            return Err(SearchError::BadFilter(format!("the filter's brackets nest deeper than {FILTER_MAX_DEPTH}")));
        }
    }
    Ok(())
}

/// Whether LanceDB says that it could not compute a filter, rather than that it could not read.
fn is_of_filter(reason: &str) -> bool {
    [IN_FILTER, OF_ARROW].iter().any(|said| reason.contains(said))
}

const IN_FILTER: &str = "filter expression to batch: ";
const OF_ARROW: &str = "LanceError(Arrow): ";

/// An error of LanceDB without where in its code it happened.
fn without_place(reason: &str) -> String {
    let first = reason.lines().next().unwrap_or_default();
    let said = first.split(", rust/").next().unwrap_or(first).split(", /").next().unwrap_or(first);
    // Where it happened among LanceDB's parts is told by what goes before.
    let said = said.rsplit_once(IN_FILTER).map_or(said, |(_, said)| said);
    let said = ["lance error: ", "Query Execution error: ", "Internal error: ", OF_ARROW]
        .iter()
        .fold(said, |said, kind| said.strip_prefix(kind).unwrap_or(said));
    said.trim_end_matches(|c: char| c == ',' || c.is_whitespace()).to_string()
}

fn internal(e: impl std::fmt::Display) -> SearchError {
    SearchError::Internal(e.to_string())
}
