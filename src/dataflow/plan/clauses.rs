//! Clauses that the parser reads and DataFusion's planner (54) drops without a word, or refuses without a line.
//!
//! The invariant: a query without faults here is planned as it is written; whatever the planner matches with `_` or `..` is refused by its
//! name. The list follows `datafusion-sql`: `query.rs`, `select.rs`, `relation/`, `expr/function.rs`.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    self, BinaryOperator, Expr, Function, FunctionArgumentClause, FunctionArguments, GroupByExpr, LimitClause, OrderBy,
    OrderByKind, Select, SelectFlavor, SelectItem, SetExpr, SetOperator, SetQuantifier, Spanned, TableAlias,
    TableFactor, Visit, Visitor, WindowType,
};

use super::query::{Fault, Query};

/// What would be ignored of a query; `is_scalar` as for [`Query::parse`].
pub(super) fn ignored(query: &Query, is_scalar: &dyn Fn(&str) -> bool) -> Vec<Fault> {
    let mut clauses = Clauses { query, is_scalar, faults: Vec::new() };
    let _: ControlFlow<()> = query.ast.visit(&mut clauses);
    clauses.faults
}

struct Clauses<'a> {
    query: &'a Query,
    is_scalar: &'a dyn Fn(&str) -> bool,
    faults: Vec<Fault>,
}

impl Clauses<'_> {
    /// Refuses a clause that these words begin, where it is there.
    fn refuse(&mut self, there: bool, words: &str) {
        if there {
            self.faults.push(Fault::new(self.query.line(words), format!("{} is not supported", words.to_uppercase())));
        }
    }

    fn fault(&mut self, line: u64, reason: impl Into<String>) {
        self.faults.push(Fault::new(line, reason));
    }

    fn alias(&mut self, alias: Option<&TableAlias>) {
        let Some(alias) = alias else { return };
        let line = alias.name.span.start.line;
        if alias.columns.iter().any(|c| c.data_type.is_some()) {
            self.fault(line, format!("the columns of {} have types, which is not supported: cast them", alias.name));
        }
        if let Some(at) = &alias.at {
            self.fault(at.span.start.line, format!("AT {at} is not supported"));
        }
    }

    /// A window by its name is known in the select list alone; elsewhere its function would become an aggregate.
    fn windows_by_name(&mut self, visited: &impl Visit, of: &str) {
        let found = ast::visit_expressions(visited, |expr| match expr {
            Expr::Function(Function { over: Some(WindowType::NamedWindow(name)), .. }) => {
                ControlFlow::Break(name.clone())
            }
            _ => ControlFlow::Continue(()),
        });
        if let ControlFlow::Break(name) = found {
            let reason = format!("OVER {name} in {of} is not supported: write the window out, or select its result");
            self.fault(name.span.start.line, reason);
        }
    }

    fn order(&mut self, order: &OrderBy, body: &SetExpr) {
        self.windows_by_name(order, "ORDER BY");
        self.refuse(order.interpolate.is_some(), "interpolate");
        match &order.kind {
            // Of a union nothing would be left of it.
            OrderByKind::All(_) => self.refuse(!matches!(body, SetExpr::Select(_)), "order by all"),
            OrderByKind::Expressions(exprs) => self.refuse(exprs.iter().any(|e| e.with_fill.is_some()), "with fill"),
        }
    }

    fn body(&mut self, body: &SetExpr) {
        let mut left = body;
        while let SetExpr::SetOperation { op, set_quantifier, left: further, right } = left {
            // DataFusion takes them for a semi and an anti join, which do not count how often a row stands on either side.
            let counts = *set_quantifier == SetQuantifier::All && *op != SetOperator::Union;
            self.refuse(counts, &format!("{op} all"));
            self.leaf(right);
            left = further;
        }
        self.leaf(left);
    }

    fn leaf(&mut self, body: &SetExpr) {
        let word = match body {
            SetExpr::Insert(_) => "insert",
            SetExpr::Update(_) => "update",
            SetExpr::Delete(_) => "delete",
            SetExpr::Merge(_) => "merge",
            SetExpr::Table(_) => "table",
            SetExpr::SetOperation { .. } => return self.body(body),
            SetExpr::Select(_) | SetExpr::Query(_) | SetExpr::Values(_) => return,
        };
        let reason = format!("{} is no query; only what reads can be maintained", word.to_uppercase());
        self.fault(self.query.line(word), reason);
    }

    fn function(&mut self, function: &Function) {
        let line = function.name.span().start.line;
        let name = function.name.to_string().to_lowercase();
        if function.parameters != FunctionArguments::None {
            self.fault(line, format!("{name}(...)(...), a function with parameters, is not supported"));
        }
        if let FunctionArguments::Subquery(_) = function.args {
            self.fault(line, format!("{name}(SELECT ...) is not supported: put the query in brackets of its own"));
        }
        if let Some(WindowType::WindowSpec(window)) = &function.over
            && let Some(base) = &window.window_name
        {
            let reason = format!("a window made of another one ({base}) is not supported: write it out");
            self.fault(base.span.start.line, reason);
        }
        if !(self.is_scalar)(&name) {
            return;
        }
        let list = if let FunctionArguments::List(list) = &function.args { Some(list) } else { None };
        let clauses = || list.into_iter().flat_map(|l| &l.clauses);
        let nulls = |c: &FunctionArgumentClause| matches!(c, FunctionArgumentClause::IgnoreOrRespectNulls(_));
        let ordered = |c: &FunctionArgumentClause| matches!(c, FunctionArgumentClause::OrderBy(_));
        let extras = [
            (list.is_some_and(|l| l.duplicate_treatment.is_some()), "DISTINCT"),
            (function.filter.is_some(), "FILTER"),
            (function.over.is_some(), "OVER"),
            (!function.within_group.is_empty(), "WITHIN GROUP"),
            (clauses().any(ordered), "ORDER BY"),
            (function.null_treatment.is_some() || clauses().any(nulls), "IGNORE NULLS"),
        ];
        for (_, clause) in extras.into_iter().filter(|(there, _)| *there) {
            self.fault(line, format!("{name}() is computed from one row, so that {clause} means nothing for it"));
        }
    }
}

impl Visitor for Clauses<'_> {
    type Break = ();

    fn pre_visit_query(&mut self, query: &ast::Query) -> ControlFlow<()> {
        let ast::Query { with, body, order_by, limit_clause, fetch, .. } = query;
        let lock = query.locks.first().map(|lock| format!("for {}", lock.lock_type));
        self.refuse(lock.is_some(), lock.as_deref().unwrap_or_default());
        self.refuse(query.for_clause.is_some(), "for");
        self.refuse(query.settings.is_some(), "settings");
        self.refuse(query.format_clause.is_some(), "format");
        if fetch.is_some() {
            self.fault(self.query.line("fetch"), "FETCH is not supported; write LIMIT");
        }
        if let Some(LimitClause::LimitOffset { limit_by, .. }) = limit_clause {
            self.refuse(!limit_by.is_empty(), "limit");
        }
        if let Some(order) = order_by {
            self.order(order, body);
        }
        for cte in with.iter().flat_map(|with| &with.cte_tables) {
            self.alias(Some(&cte.alias));
            if let Some(from) = &cte.from {
                self.fault(from.span.start.line, format!("FROM {from} behind a WITH query is not supported"));
            }
        }
        self.body(body);
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<()> {
        let modifiers = select.select_modifiers.as_ref().map(ToString::to_string);
        self.refuse(modifiers.is_some(), modifiers.as_deref().unwrap_or_default().trim());
        if select.flavor == SelectFlavor::FromFirstNoSelect {
            self.fault(self.query.line("from"), "FROM without SELECT is not supported");
        }
        self.refuse(select.top.is_some(), "top");
        self.refuse(select.exclude.is_some(), "exclude");
        self.refuse(select.into.is_some(), "into");
        self.refuse(!select.lateral_views.is_empty(), "lateral view");
        self.refuse(select.prewhere.is_some(), "prewhere");
        self.refuse(!select.connect_by.is_empty(), "connect by");
        self.refuse(!select.cluster_by.is_empty(), "cluster by");
        self.refuse(!select.distribute_by.is_empty(), "distribute by");
        self.refuse(!select.sort_by.is_empty(), "sort by");
        if let Some(mode) = &select.value_table_mode {
            let words = mode.to_string();
            self.refuse(true, &words);
        }
        let (GroupByExpr::All(modifiers) | GroupByExpr::Expressions(_, modifiers)) = &select.group_by;
        for modifier in modifiers {
            let words = modifier.to_string();
            self.refuse(true, words.split('(').next().unwrap_or_default().trim());
        }
        if let Some(qualify) = &select.qualify {
            self.windows_by_name(qualify, "QUALIFY");
        }
        for item in &select.projection {
            let (SelectItem::Wildcard(options) | SelectItem::QualifiedWildcard(_, options)) = item else { continue };
            self.refuse(options.opt_ilike.is_some(), "ilike");
            self.refuse(options.opt_rename.is_some(), "rename");
            if let Some(alias) = &options.opt_alias {
                self.fault(alias.span.start.line, format!("an alias of *, {alias}, is not supported"));
            }
        }
        self.refuse(select.from.iter().flat_map(|t| &t.joins).any(|j| j.global), "global");
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        match factor {
            TableFactor::Table {
                alias,
                args,
                with_hints,
                version,
                with_ordinality,
                partitions,
                json_path,
                sample,
                index_hints,
                ..
            } => {
                self.alias(alias.as_ref());
                self.refuse(!with_hints.is_empty(), "with");
                self.refuse(*with_ordinality, "with ordinality");
                self.refuse(!partitions.is_empty(), "partition");
                self.refuse(sample.is_some(), sampling(sample));
                self.refuse(args.as_ref().is_some_and(|a| a.settings.is_some()), "settings");
                let line = factor.span().start.line;
                for hint in index_hints {
                    self.fault(line, format!("{hint} is not supported"));
                }
                if let Some(version) = version {
                    self.fault(line, format!("{version} is not supported"));
                }
                if let Some(path) = json_path {
                    self.fault(line, format!("the path {path} behind a relation is not supported"));
                }
            }
            TableFactor::Derived { alias, sample, .. } => {
                self.alias(alias.as_ref());
                self.refuse(sample.is_some(), sampling(sample));
            }
            TableFactor::Function { alias, with_ordinality, .. } => {
                self.alias(alias.as_ref());
                self.refuse(*with_ordinality, "with ordinality");
            }
            TableFactor::UNNEST { alias, with_ordinality, .. } => {
                self.alias(alias.as_ref());
                self.refuse(*with_ordinality, "with ordinality");
            }
            TableFactor::NestedJoin { table_with_joins, alias } => {
                self.alias(alias.as_ref());
                self.refuse(table_with_joins.joins.iter().any(|j| j.global), "global");
            }
            // The planner refuses what is left by name.
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        match expr {
            Expr::Function(function) => self.function(function),
            // PostgreSQL binds it closer than AND; this parser does not.
            Expr::IsDistinctFrom(_, right) | Expr::IsNotDistinctFrom(_, right)
                if matches!(&**right, Expr::BinaryOp { op: BinaryOperator::And | BinaryOperator::Or, .. }) =>
            {
                let reason = "what follows IS [NOT] DISTINCT FROM is taken up to the end of AND and OR: put the comparison in brackets";
                self.fault(expr.span().start.line, reason);
            }
            Expr::Trim { trim_characters: Some(characters), .. } if characters.len() > 1 => {
                self.fault(expr.span().start.line, "TRIM with more than two arguments is not supported");
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

fn sampling(sample: &Option<ast::TableSampleKind>) -> &'static str {
    use ast::{TableSampleKind as Kind, TableSampleModifier as Modifier};
    match sample {
        Some(Kind::BeforeTableAlias(sample) | Kind::AfterTableAlias(sample)) => match sample.modifier {
            Modifier::Sample => "sample",
            Modifier::TableSample => "tablesample",
        },
        None => "",
    }
}
