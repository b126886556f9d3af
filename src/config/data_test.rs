//! A data test says what must hold for the rows of a relation, as dbt has it: a row that it is false for fails.
//!
//! The invariant: a test's answer depends on nothing but the rows, and null is what dbt takes it for: only `not_null` minds it.

use super::Line;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The row is kept out.
    Error,
    /// The row is counted and passes.
    Warn,
}

impl Severity {
    /// As dbt writes it.
    pub fn name(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warn => "warn",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataTest {
    /// As dbt names it, such as `not_null_stg_product_id`; unique in the dataflow.
    pub name: String,
    /// What is tested: `schema__table` of a source, or a model's name.
    pub relation: String,
    pub kind: TestKind,
    pub severity: Severity,
    /// Only the rows that this SQL predicate (dbt's `where`) is true for are tested. A query has its own in it.
    pub condition: Option<String>,
    /// The file and key that it is declared at, for messages: `models/schema.yml: models.stg_product.columns.id.tests[0].not_null`.
    pub declared: String,
    /// For a query: where each line of it was written. Empty otherwise.
    pub lines: Vec<Line>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TestKind {
    NotNull {
        column: String,
    },
    Unique {
        column: String,
    },
    AcceptedValues {
        column: String,
        /// As SQL literals.
        values: Vec<String>,
    },
    /// Each value of `column` is one of `field` of the relation `to`.
    Relationships {
        column: String,
        to: String,
        field: String,
    },
    /// A SQL predicate over the relation's columns.
    Expression {
        expression: String,
    },
    /// The rows of this query fail.
    Query {
        sql: String,
    },
}

impl DataTest {
    /// The columns that it names, each with the relation that has to have it; those of SQL are not looked for.
    pub fn columns(&self) -> Vec<(&str, &str)> {
        match &self.kind {
            TestKind::NotNull { column } | TestKind::Unique { column } | TestKind::AcceptedValues { column, .. } => {
                vec![(&self.relation, column)]
            }
            TestKind::Relationships { column, to, field } => vec![(&self.relation, column), (to, field)],
            TestKind::Expression { .. } | TestKind::Query { .. } => vec![],
        }
    }

    /// A SQL predicate over the relation's columns that is true for the rows that fail; `None` for a query.
    pub fn predicate(&self) -> Option<String> {
        let relation = quoted(&self.relation);
        let fails = match &self.kind {
            TestKind::NotNull { column } => format!("{} is null", quoted(column)),
            TestKind::Unique { column } => {
                let column = quoted(column);
                let only = self.condition.as_ref().map_or(String::new(), |c| format!(" where ({c})"));
                format!("{column} in (select {column} from {relation}{only} group by {column} having count(*) > 1)")
            }
            TestKind::AcceptedValues { column, values } => {
                format!("{} not in ({})", quoted(column), values.join(", "))
            }
            TestKind::Relationships { column, to, field } => {
                let (column, to, field) = (quoted(column), quoted(to), quoted(field));
                format!("{column} is not null and {column} not in (select {field} from {to} where {field} is not null)")
            }
            TestKind::Expression { expression } => format!("not ({expression})"),
            TestKind::Query { .. } => return None,
        };
        Some(match &self.condition {
            Some(condition) => format!("({condition}) and ({fails})"),
            None => fails,
        })
    }
}

/// An identifier in SQL's quotes.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
