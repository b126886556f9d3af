//! An outline is the names of a query's columns as far as they can be read, without planning it.
//!
//! The invariant: where there is an outline, the query has no column outside it; it may have fewer. So it can say that a name is not there
//! while a mistake elsewhere keeps the query from being planned.

use std::collections::HashMap;

use datafusion::sql::sqlparser::ast::{Expr, Ident, Query, Select, SelectItem, SetExpr, TableAlias, TableFactor};
use datafusion::sql::sqlparser::ast::{SelectItemQualifiedWildcardKind, WildcardAdditionalOptions};

pub(super) type Outline = Vec<String>;

/// A query's outline; `relation` knows those of what it reads.
pub(super) fn outline(query: &Query, relation: &dyn Fn(&str) -> Option<Outline>) -> Option<Outline> {
    let mut own: HashMap<String, Option<Outline>> = HashMap::new();
    for table in query.with.iter().flat_map(|with| &with.cte_tables) {
        let reads = |name: &str| own.get(name).cloned().unwrap_or_else(|| relation(name));
        let columns = renamed(&table.alias).unwrap_or_else(|| outline(&table.query, &reads));
        own.insert(name(&table.alias.name), columns);
    }
    of_set(&query.body, &|name| own.get(name).cloned().unwrap_or_else(|| relation(name)))
}

/// The first query of a set operation names the columns of all.
fn of_set(set: &SetExpr, relation: &dyn Fn(&str) -> Option<Outline>) -> Option<Outline> {
    match set {
        SetExpr::Select(select) => of_select(select, relation),
        SetExpr::Query(query) => outline(query, relation),
        SetExpr::SetOperation { left, .. } => of_set(left, relation),
        _ => None,
    }
}

fn of_select(select: &Select, relation: &dyn Fn(&str) -> Option<Outline>) -> Option<Outline> {
    let factors =
        select.from.iter().flat_map(|f| std::iter::once(&f.relation).chain(f.joins.iter().map(|j| &j.relation)));
    let read: Vec<(Option<String>, Option<Outline>)> = factors.map(|factor| of_factor(factor, relation)).collect();
    let mut columns = Outline::new();
    for item in &select.projection {
        match item {
            SelectItem::UnnamedExpr(Expr::Identifier(column)) => columns.push(name(column)),
            SelectItem::UnnamedExpr(Expr::CompoundIdentifier(parts)) => columns.push(name(parts.last()?)),
            SelectItem::ExprWithAlias { alias, .. } => columns.push(name(alias)),
            SelectItem::Wildcard(options) if is_plain(options) => {
                for (_, all) in &read {
                    columns.extend(all.clone()?);
                }
            }
            SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::ObjectName(of), options)
                if is_plain(options) =>
            {
                let of = name(of.0.last()?.as_ident()?);
                columns.extend(read.iter().find(|(name, _)| name.as_ref() == Some(&of))?.1.clone()?);
            }
            _ => return None,
        }
    }
    Some(columns)
}

/// The name that a relation of a FROM is known by, and its outline.
fn of_factor(factor: &TableFactor, relation: &dyn Fn(&str) -> Option<Outline>) -> (Option<String>, Option<Outline>) {
    let (own, columns, alias) = match factor {
        TableFactor::Table { name: table, alias, args: None, .. } => {
            let own = table.0.last().and_then(|part| part.as_ident()).map(name);
            let columns = own.as_deref().and_then(relation);
            (own, columns, alias)
        }
        TableFactor::Derived { subquery, alias, .. } => (None, outline(subquery, relation), alias),
        _ => return (None, None),
    };
    let Some(alias) = alias else { return (own, columns) };
    (Some(name(&alias.name)), renamed(alias).unwrap_or(columns))
}

/// The columns of an alias such as `t (a, b)`, if it has any.
fn renamed(alias: &TableAlias) -> Option<Option<Outline>> {
    (!alias.columns.is_empty()).then(|| Some(alias.columns.iter().map(|column| name(&column.name)).collect()))
}

fn is_plain(options: &WildcardAdditionalOptions) -> bool {
    let WildcardAdditionalOptions { opt_ilike, opt_exclude, opt_except, opt_replace, opt_rename, .. } = options;
    opt_ilike.is_none()
        && opt_exclude.is_none()
        && opt_except.is_none()
        && opt_replace.is_none()
        && opt_rename.is_none()
}

/// An identifier as DataFusion reads it: in lower case unless it is quoted.
fn name(ident: &Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() }
}
