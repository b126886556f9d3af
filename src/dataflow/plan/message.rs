//! What DataFusion's errors say, without how it says it: no names of its kinds of errors, no backtrace, no names that are ours alone.

use datafusion::common::SchemaError;
use datafusion::error::DataFusionError;
use datafusion::sql::sqlparser::parser::ParserError;
use datafusion::sql::sqlparser::tokenizer::Location;

/// The errors that were found together.
pub(super) fn leaves(error: &DataFusionError) -> impl Iterator<Item = &DataFusionError> {
    error.iter().flat_map(|e| {
        let root = e.find_root();
        // A diagnostic is lost with what is around its error; what is gathered further down is not.
        if let DataFusionError::Collection(_) = root { root.iter().collect::<Vec<_>>() } else { vec![e] }
    })
}

/// One sentence; what stood on several lines is put on one.
pub(crate) fn message(error: &DataFusionError) -> String {
    let root = error.find_root();
    let text = match root {
        DataFusionError::SQL(e, _) => match &**e {
            ParserError::ParserError(text) | ParserError::TokenizerError(text) => text.clone(),
            ParserError::RecursionLimitExceeded => "recursion limit exceeded".into(),
        },
        DataFusionError::Internal(text) => text.clone(),
        other => other.message().into_owned(),
    };
    let text = text.split(DataFusionError::BACK_TRACE_SEP).next().unwrap_or_default();
    let text = text.replace("datafusion.public.", "");
    text.split('\n').map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join(" ").trim_end_matches('.').into()
}

/// Where an error itself says that it is.
pub(super) fn start(error: &DataFusionError) -> Option<Location> {
    let spanned = error.diagnostic().and_then(|d| d.span);
    let span = spanned.or_else(|| match error.find_root() {
        DataFusionError::SchemaError(e, _) => match &**e {
            SchemaError::FieldNotFound { field, .. } | SchemaError::AmbiguousReference { field } => field.spans.first(),
            _ => None,
        },
        _ => None,
    });
    span.map(|s| Location { line: s.start.line, column: s.start.column }).filter(|at| at.line > 0)
}

/// What an error is about: a column by its name alone, since what is made of a query calls it the same.
pub(super) fn subject(error: &DataFusionError) -> String {
    let text = message(error);
    let sentence = text.split(". ").next().unwrap_or_default();
    match sentence.strip_prefix("No field named ") {
        Some(name) => column(name),
        None => sentence.into(),
    }
}

/// The column of a name such as `table."column"`, which a sentence begins with.
pub(super) fn column(name: &str) -> String {
    let name = name.split(". ").next().unwrap_or_default();
    name.rsplit('.').next().unwrap_or_default().trim_matches('"').into()
}
