//! Rows as JSON text, as answers have them.
//!
//! The invariant: a number has the digits that the column has.

use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use arrow::json::WriterBuilder;
use arrow::json::writer::LineDelimited;

use crate::serve::Json;

/// These columns of a batch's rows as JSON objects, nulls included.
pub(super) fn rows(batch: &RecordBatch, columns: &[String]) -> Result<Vec<Json>, ArrowError> {
    if columns.is_empty() {
        return Ok(vec!["{}".into(); batch.num_rows()]);
    }
    let places = columns.iter().map(|c| batch.schema().index_of(c)).collect::<Result<Vec<_>, _>>()?;
    lines(&batch.project(&places)?)
}

/// The values of a column.
pub(super) fn keys(batch: &RecordBatch, column: &str) -> Result<Vec<Json>, ArrowError> {
    let values = batch.column_by_name(column).ok_or_else(|| wrong("there is no key"))?;
    let alone = RecordBatch::try_from_iter([("k", values.clone())])?;
    let bare = |line: &Json| line.strip_prefix(r#"{"k":"#).and_then(|l| l.strip_suffix('}')).map(Into::into);
    lines(&alone)?.iter().map(|line| bare(line).ok_or_else(|| wrong("a key is no JSON"))).collect()
}

fn lines(batch: &RecordBatch) -> Result<Vec<Json>, ArrowError> {
    let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(Vec::new());
    writer.write(batch).and_then(|()| writer.finish())?;
    let text = String::from_utf8(writer.into_inner()).map_err(|e| wrong(&e.to_string()))?;
    Ok(text.lines().map(Into::into).collect())
}

fn wrong(what: &str) -> ArrowError {
    ArrowError::JsonError(what.into())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Decimal256Array, Float32Array, Int64Array, StringArray};
    use arrow::datatypes::i256;

    use super::*;

    #[test]
    fn numbers_keep_their_digits() {
        let wide = i256::from_string("99999999999999999999999999999999999123456789012345678901234567891").unwrap();
        let wide = Decimal256Array::from(vec![Some(wide), None]).with_precision_and_scale(65, 30).unwrap();
        let columns: [(&str, ArrayRef); 4] = [
            ("wide", Arc::new(wide)),
            ("id\"}", Arc::new(Int64Array::from(vec![i64::MAX, -1]))),
            ("text", Arc::new(StringArray::from(vec!["two\nlines\r\u{2028}", "\"}"]))),
            ("weight", Arc::new(Float32Array::from(vec![0.1, -0.0]))),
        ];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let of = |columns: &[&str]| {
            rows(&batch, &columns.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap().join("; ")
        };
        assert_eq!(
            of(&["wide"]),
            r#"{"wide":99999999999999999999999999999999999.123456789012345678901234567891}; {"wide":null}"#
        );
        assert_eq!(
            of(&["weight", "text"]),
            "{\"weight\":0.1,\"text\":\"two\\nlines\\r\u{2028}\"}; {\"weight\":-0.0,\"text\":\"\\\"}\"}"
        );
        assert_eq!(of(&[]), "{}; {}");
        assert_eq!(keys(&batch, "id\"}").unwrap().join(" "), "9223372036854775807 -1");
        assert_eq!(keys(&batch, "text").unwrap()[1], Json::from(r#""\"}""#));
        assert!(rows(&batch, &["no".into()]).is_err());
    }
}
