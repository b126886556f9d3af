//! The columns of a raw table: the fixed ones, and those that writers brought, which `before` and `after` have alike.
//!
//! The invariant: a column that is there keeps its name and its type for good. New ones are added at the end, and are null in older rows.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, TimeUnit};

use super::value::Form;
use crate::decode::logical::UTC;

/// Columns that a table takes from writers. A database has fewer; whoever sends more sends nonsense.
const COLUMNS_MAX: usize = 4096;

/// What Delta calls a field's description.
const COMMENT: &str = "comment";

/// The column that tables are partitioned by: the day of the broker's time stamp in UTC. It is in the files' paths, not in the files.
pub(super) const DAY: &str = "day";
/// The version of the table that brought the row.
pub(super) const COMMIT: &str = "commit";

/// Columns that writers brought, in the order in which they came.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Columns(Vec<FieldRef>);

impl Columns {
    /// Those of a table.
    pub(super) fn of(table: &Schema) -> Columns {
        match table.field_with_name("after").map(Field::data_type) {
            Ok(DataType::Struct(fields)) => Columns(fields.iter().map(|f| Arc::new(plain(f))).collect()),
            _ => Columns::default(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn fields(&self) -> &[FieldRef] {
        &self.0
    }

    /// The place of a writer's column; one that is new is added. The error says why the table cannot hold it.
    pub(super) fn place(&mut self, name: &str, form: &Form) -> Result<usize, String> {
        let metadata: HashMap<String, String> =
            form.comment().map(|c| (COMMENT.to_string(), c.to_string())).into_iter().collect();
        let field = Field::new(name, form.data_type(), true).with_metadata(metadata);
        // Delta's names differ by more than case.
        match self.0.iter().position(|f| f.name().eq_ignore_ascii_case(name)) {
            Some(place) if *self.0[place] == field => Ok(place),
            Some(place) if self.0[place].name() == name => Err(format!(
                "column {name} has become {}, the table has it as {}",
                described(&field),
                described(&self.0[place])
            )),
            Some(place) => Err(format!("column {name} differs from {} by case alone", self.0[place].name())),
            None if name.is_empty() || name.contains([' ', ',', ';', '{', '}', '(', ')', '\n', '\t', '=']) => {
                Err(format!("column {name:?} has a name that Delta rules out"))
            }
            None if self.0.len() >= COLUMNS_MAX => {
                Err(format!("column {name} would be one of more than {COLUMNS_MAX}"))
            }
            None => {
                self.0.push(Arc::new(field));
                Ok(self.0.len() - 1)
            }
        }
    }

    /// The table's schema, [`DAY`] and [`COMMIT`] included.
    pub(super) fn schema(&self) -> Schema {
        let mut fields: Vec<FieldRef> = fixed();
        let rest = fields.split_off(fields.len() - 3);
        if !self.0.is_empty() {
            let row = DataType::Struct(Fields::from(self.0.clone()));
            fields.push(Arc::new(Field::new("before", row.clone(), true)));
            fields.push(Arc::new(Field::new("after", row, true)));
        }
        fields.extend(rest);
        Schema::new(fields)
    }
}

fn described(field: &Field) -> String {
    match field.metadata().get(COMMENT) {
        Some(comment) => format!("{} ({comment})", field.data_type()),
        None => field.data_type().to_string(),
    }
}

/// A field as [`Columns::place`] makes it: of the metadata only the comment counts.
fn plain(field: &Field) -> Field {
    let comment = field.metadata().get(COMMENT).map(|c| (COMMENT.to_string(), c.clone()));
    Field::new(field.name(), field.data_type().clone(), true).with_metadata(comment.into_iter().collect())
}

fn fixed() -> Vec<FieldRef> {
    let micros = DataType::Timestamp(TimeUnit::Microsecond, Some(UTC.into()));
    let texts = DataType::List(Arc::new(Field::new("element", DataType::Utf8, true)));
    let field = |name: &str, ty: DataType| Arc::new(Field::new(name, ty, true));
    vec![
        field("topic", DataType::Utf8),
        field("partition", DataType::Int32),
        field("offset", DataType::Int64),
        field("timestamp", micros),
        field(DAY, DataType::Date32),
        field(COMMIT, DataType::Int64),
        field("key", DataType::Binary),
        field("op", DataType::Utf8),
        field("ts_ms", DataType::Int64),
        field("snapshot", DataType::Boolean),
        field("lsn", DataType::Int64),
        field("change_lsn", DataType::Utf8),
        field("commit_lsn", DataType::Utf8),
        field("event_serial_no", DataType::Int64),
        field("table", DataType::Utf8),
        field("schema_id", DataType::Utf8),
        field("unavailable", texts),
        field("value", DataType::Binary),
        field("error", DataType::Utf8),
    ]
}

/// `schema` with every column of `wanted` that it lacks; the error names one that has another type.
pub(super) fn merged(schema: &Schema, wanted: &Schema) -> Result<Schema, String> {
    Ok(Schema::new(merged_fields(schema.fields(), wanted.fields(), "")?))
}

fn merged_fields(fields: &Fields, wanted: &Fields, path: &str) -> Result<Fields, String> {
    let mut merged: Vec<FieldRef> = fields.to_vec();
    for field in wanted {
        let Some(place) = merged.iter().position(|f| f.name() == field.name()) else {
            merged.push(field.clone());
            continue;
        };
        let own = merged[place].clone();
        match (own.data_type(), field.data_type()) {
            (DataType::Struct(inner), DataType::Struct(more)) => {
                let inner = merged_fields(inner, more, &format!("{path}{}.", own.name()))?;
                merged[place] = Arc::new(own.as_ref().clone().with_data_type(DataType::Struct(inner)));
            }
            (own, other) if own == other => {}
            (own, other) => return Err(format!("its column {path}{} is {own}, not {other}", field.name())),
        }
    }
    Ok(merged.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_keeps_its_type_and_new_ones_come_last() {
        let mut columns = Columns::default();
        assert_eq!(columns.place("id", &Form::Long), Ok(0));
        assert_eq!(columns.place("at", &Form::Micros(1000)), Ok(1));
        assert_eq!(columns.place("at", &Form::Micros(1)), Ok(1), "the unit on the wire is the writer's");
        assert_eq!(columns.place("id", &Form::Long), Ok(0));
        assert!(columns.place("id", &Form::Text).unwrap_err().contains("has become Utf8, the table has it as Int64"));
        assert!(columns.place("at", &Form::Nanos).unwrap_err().contains("Int64 (nanoseconds)"));
        assert!(columns.place("ID", &Form::Long).unwrap_err().contains("case"));
        assert!(columns.place("a b", &Form::Long).unwrap_err().contains("rules out"));
        assert_eq!(Columns::of(&columns.schema()), columns);
    }

    #[test]
    fn a_table_is_merged_with_what_is_new() {
        let (mut old, mut new) = (Columns::default(), Columns::default());
        old.place("a", &Form::Long).unwrap();
        new.place("a", &Form::Long).unwrap();
        new.place("b", &Form::Text).unwrap();
        let both = merged(&old.schema(), &new.schema()).unwrap();
        assert_eq!(Columns::of(&both), new);
        let first = merged(&Columns::default().schema(), &new.schema()).unwrap();
        assert_eq!(Columns::of(&first), new);
        let other = Schema::new(vec![Field::new("offset", DataType::Utf8, true)]);
        assert!(merged(&other, &new.schema()).unwrap_err().contains("offset is Utf8, not Int64"));
    }
}
