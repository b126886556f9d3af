//! A codec turns Arrow columns of known types into row bytes and back.
//!
//! The invariant: the bytes of a row are the concatenation of the bytes of its columns, so rows can be joined by appending one to the other.
//! Columns are taken to be nullable, whatever a schema promises: a database may not have sent a value.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow_row::{RowConverter, SortField};

use super::Row;

pub(super) struct Codec {
    converter: RowConverter,
    schema: SchemaRef,
}

/// A converter of columns of these types, each in its natural order.
pub(super) fn converter<'a>(types: impl IntoIterator<Item = &'a DataType>) -> RowConverter {
    let fields = types.into_iter().map(|t| SortField::new(t.clone())).collect();
    RowConverter::new(fields).expect("planning has refused types without a row format")
}

/// The schema with every column nullable.
pub(super) fn nullable(schema: &Schema) -> SchemaRef {
    let fields: Vec<Field> = schema.fields().iter().map(|f| f.as_ref().clone().with_nullable(true)).collect();
    Arc::new(Schema::new(fields))
}

/// A batch of `rows` rows, also when it has no columns.
pub(super) fn batch(schema: SchemaRef, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch, ArrowError> {
    RecordBatch::try_new_with_options(schema, columns, &RecordBatchOptions::new().with_row_count(Some(rows)))
}

impl Codec {
    pub fn new(schema: &Schema) -> Codec {
        let schema = nullable(schema);
        Codec { converter: converter(schema.fields().iter().map(|f| f.data_type())), schema }
    }

    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    pub fn decode<'a>(&self, rows: impl ExactSizeIterator<Item = &'a [u8]>) -> Result<RecordBatch, ArrowError> {
        let count = rows.len();
        let columns = if self.schema.fields().is_empty() {
            Vec::new()
        } else {
            let parser = self.converter.parser();
            self.converter.convert_rows(rows.map(|row| parser.parse(row)))?
        };
        batch(self.schema.clone(), columns, count)
    }

    /// The bytes of each of `rows` rows.
    pub fn encode(&self, columns: &[ArrayRef], rows: usize, mut each: impl FnMut(&[u8])) -> Result<(), ArrowError> {
        if columns.is_empty() {
            (0..rows).for_each(|_| each(&[]));
            return Ok(());
        }
        let encoded = self.converter.convert_columns(columns)?;
        encoded.iter().for_each(|row| each(row.data()));
        Ok(())
    }

    /// The row whose columns are all null.
    pub fn nulls(&self) -> Row {
        let columns: Vec<ArrayRef> = self.schema.fields().iter().map(|f| new_null_array(f.data_type(), 1)).collect();
        let mut row = Row::from([]);
        self.encode(&columns, 1, |bytes| row = bytes.into()).expect("nulls have the columns' types");
        row
    }
}

/// One row after the other: the row of a join.
pub(super) fn concat(left: &[u8], right: &[u8]) -> Row {
    // Zeroed first, so that the row is allocated once and not copied out of a vector.
    let mut row: Row = std::iter::repeat_n(0, left.len() + right.len()).collect();
    let bytes = Arc::get_mut(&mut row).expect("nobody else has the new row");
    bytes[..left.len()].copy_from_slice(left);
    bytes[left.len()..].copy_from_slice(right);
    row
}
