//! A layout finds the columns of a row in its bytes, so that what is only moved need not be read and written again.
//!
//! The invariant: a piece that is found is exactly what the row format writes for that column alone. The widths are those of arrow-row's
//! encoding of ascending columns; the tests hold them against it.

use arrow::datatypes::{DataType, Schema};
use arrow_row::{RowConverter, SortField};

/// How one column is written.
#[derive(Clone, Copy, Debug)]
enum Width {
    /// A byte that says null or not, and this many bytes in all.
    Fixed(usize),
    /// Blocks: four of 8 bytes, then of 32, each followed by a byte that says how much of it counts, or that more follows.
    Blocks,
}

#[derive(Clone, Debug)]
pub(super) struct Layout(Vec<Width>);

impl Layout {
    /// The layout of a schema's rows; `None` if it has a type whose width is not known.
    pub fn of(schema: &Schema) -> Option<Layout> {
        schema.fields().iter().map(|f| width(f.data_type())).collect::<Option<Vec<_>>>().map(Layout)
    }

    /// Writes the end of each of the first `columns` columns into `ends`.
    pub fn ends(&self, row: &[u8], columns: usize, ends: &mut Vec<u32>) {
        let mut at = 0;
        for width in &self.0[..columns] {
            at += match width {
                Width::Fixed(width) => *width,
                Width::Blocks => blocks(&row[at..]),
            };
            ends.push(at as u32);
        }
    }
}

fn width(ty: &DataType) -> Option<Width> {
    if ty.is_primitive() || *ty == DataType::Boolean {
        let bytes = if *ty == DataType::Boolean { 1 } else { ty.primitive_width()? };
        return Some(Width::Fixed(1 + bytes));
    }
    match ty {
        DataType::Utf8
        | DataType::LargeUtf8
        | DataType::Utf8View
        | DataType::Binary
        | DataType::LargeBinary
        | DataType::BinaryView => Some(Width::Blocks),
        _ => None,
    }
}

/// The bytes of a text or binary value.
fn blocks(bytes: &[u8]) -> usize {
    const MORE: u8 = 0xff;
    if bytes[0] != 2 {
        // Null, or empty.
        return 1;
    }
    let mut at = 1;
    for _ in 0..4 {
        at += 9;
        if bytes[at - 1] != MORE {
            return at;
        }
    }
    loop {
        at += 33;
        if bytes[at - 1] != MORE {
            return at;
        }
    }
}

/// Whether a column's bytes stand for null.
pub(super) fn is_null(bytes: &[u8]) -> bool {
    bytes[0] == 0
}

/// A converter for columns of one schema, chosen by index.
pub(super) fn part(schema: &Schema, columns: &[usize]) -> RowConverter {
    let fields = columns.iter().map(|c| SortField::new(schema.field(*c).data_type().clone())).collect();
    RowConverter::new(fields).expect("planning has refused types without a row format")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::*;
    use arrow::datatypes::{Field, i256};

    use super::*;

    #[test]
    fn pieces_are_what_the_row_format_writes_for_a_column() {
        let texts: Vec<Option<String>> = [0, 1, 7, 8, 9, 16, 31, 32, 33, 63, 64, 65, 97, 300]
            .iter()
            .map(|n| Some("\u{ff}".repeat(n / 2) + &"x".repeat(n % 2)))
            .chain([None])
            .collect();
        let n = texts.len();
        let longs = |n: usize| (0..n).map(|i| (i % 3 > 0).then_some(i as i64 - 4));
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from(texts.clone())),
            Arc::new(Int64Array::from_iter(longs(n))),
            Arc::new(BooleanArray::from_iter((0..n).map(|i| (i % 3 > 0).then_some(i % 2 == 0)))),
            Arc::new(LargeStringArray::from(texts.clone())),
            Arc::new(StringViewArray::from(texts.clone())),
            Arc::new(BinaryArray::from_iter(texts.iter().map(|t| t.as_ref().map(|t| t.as_bytes())))),
            Arc::new(Int8Array::from_iter((0..n).map(|i| (i % 2 > 0).then_some(i as i8)))),
            Arc::new(Float64Array::from_iter(longs(n).map(|v| v.map(|v| v as f64)))),
            Arc::new(Decimal128Array::from_iter(longs(n).map(|v| v.map(i128::from)))),
            Arc::new(Decimal256Array::from_iter(longs(n).map(|v| v.map(|v| i256::from_i128(v.into()))))),
            Arc::new(Date32Array::from_iter((0..n).map(|i| Some(i as i32)))),
            Arc::new(TimestampMicrosecondArray::from_iter(longs(n)).with_timezone("UTC")),
            Arc::new(Time64MicrosecondArray::from_iter(longs(n))),
            Arc::new(UInt16Array::from_iter((0..n).map(|i| Some(i as u16)))),
        ];
        let schema = Schema::new(
            columns
                .iter()
                .enumerate()
                .map(|(i, c)| Field::new(i.to_string(), c.data_type().clone(), true))
                .collect::<Vec<_>>(),
        );
        let every: Vec<usize> = (0..columns.len()).collect();
        let rows = part(&schema, &every).convert_columns(&columns).unwrap();
        let layout = Layout::of(&schema).unwrap();
        for (c, column) in columns.iter().enumerate() {
            let alone = part(&schema, &[c]).convert_columns(std::slice::from_ref(column)).unwrap();
            for i in 0..n {
                let mut ends = vec![0];
                layout.ends(rows.row(i).data(), columns.len(), &mut ends);
                let piece = &rows.row(i).data()[ends[c] as usize..ends[c + 1] as usize];
                assert_eq!(piece, alone.row(i).data(), "column {c} row {i}");
                assert_eq!(is_null(piece), column.is_null(i));
                assert_eq!(*ends.last().unwrap() as usize, rows.row(i).data().len());
            }
        }
        assert!(
            Layout::of(&Schema::new(vec![Field::new_list("l", Field::new("i", DataType::Int64, true), true)]))
                .is_none()
        );
    }
}
