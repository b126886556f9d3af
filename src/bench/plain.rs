//! The plain way to the same values: apache-avro, one record at a time, and a map of the latest rows. It is what the benchmarks compare
//! with, so it shares nothing with the decoder or the dataflow but the contract's column types.

use std::collections::HashMap;
use std::sync::Arc;

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::types::Value;
use arrow::array::{
    ArrayRef, BooleanArray, Decimal128Array, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, SchemaRef, TimeUnit};

use super::Error;
use super::recording::Recording;
use crate::source::MessageBatch;

/// The parsed schemas by id.
pub(super) struct Schemas(HashMap<u32, Schema>);

impl Schemas {
    pub fn parse(texts: &HashMap<u32, Arc<str>>) -> Result<Schemas, Error> {
        let parsed = texts.iter().map(|(id, text)| Ok((*id, Schema::parse_str(text)?)));
        Ok(Schemas(parsed.collect::<Result<_, apache_avro::Error>>()?))
    }

    /// A reader for each schema, made once.
    pub fn readers(&self) -> Result<Readers<'_>, Error> {
        let made = self.0.iter().map(|(id, schema)| Ok((*id, GenericDatumReader::builder(schema).build()?)));
        Ok(Readers(made.collect::<Result<_, apache_avro::Error>>()?))
    }
}

pub(super) struct Readers<'s>(HashMap<u32, GenericDatumReader<'s>>);

impl Readers<'_> {
    /// Reads a key or a value in Confluent's wire format.
    pub fn read(&self, message: &[u8]) -> Result<Value, Error> {
        let (head, mut body) = message.split_first_chunk::<5>().ok_or("a message of fewer than 5 bytes")?;
        let id = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        let reader = self.0.get(&id).ok_or("a schema id that nobody wrote")?;
        Ok(reader.read_value(&mut body)?)
    }
}

/// A field of a record, looked up through unions.
pub(super) fn field<'a>(record: &'a Value, name: &str) -> Option<&'a Value> {
    match inner(record) {
        Value::Record(fields) => fields.iter().find(|(n, _)| n == name).map(|(_, value)| inner(value)),
        _ => None,
    }
}

fn inner(value: &Value) -> &Value {
    match value {
        Value::Union(_, value) => inner(value),
        value => value,
    }
}

/// The row that an envelope leaves behind; `None` when it is gone.
pub(super) fn row(envelope: &Value) -> Option<&Value> {
    field(envelope, "after").filter(|after| **after != Value::Null)
}

/// Rows as columns of these types; a field that a row lacks is null.
pub(super) fn columns(schema: &SchemaRef, rows: &[&Value]) -> Result<Vec<ArrayRef>, Error> {
    schema.fields().iter().map(|f| column(f.data_type(), rows.iter().map(|row| field(row, f.name())))).collect()
}

fn column<'a>(data_type: &DataType, values: impl Iterator<Item = Option<&'a Value>>) -> Result<ArrayRef, Error> {
    let values: Vec<Option<&Value>> = values.map(|v| v.filter(|v| **v != Value::Null)).collect();
    let number = |value: &Value| match value {
        Value::Long(v) => Ok(*v),
        Value::Int(v) => Ok(i64::from(*v)),
        Value::String(text) => Ok(chrono::DateTime::parse_from_rfc3339(text)?.timestamp_micros()),
        other => Err(Error::from(format!("{other:?} is no {data_type}"))),
    };
    let numbers = || values.iter().map(|v| v.map(number).transpose()).collect::<Result<Vec<_>, _>>();
    Ok(match data_type {
        DataType::Int64 => Arc::new(Int64Array::from(numbers()?)),
        DataType::Int32 => Arc::new(numbers()?.into_iter().map(|v| v.map(|v| v as i32)).collect::<Int32Array>()),
        DataType::Timestamp(TimeUnit::Microsecond, zone) => {
            Arc::new(TimestampMicrosecondArray::from(numbers()?).with_timezone_opt(zone.clone()))
        }
        DataType::Boolean => {
            let bools = values.iter().map(|v| v.map(|v| *v == Value::Boolean(true)));
            Arc::new(bools.collect::<BooleanArray>())
        }
        DataType::Utf8 => {
            let texts = values.iter().map(|v| match v {
                Some(Value::String(text)) => Some(text.as_str()),
                _ => None,
            });
            Arc::new(texts.collect::<StringArray>())
        }
        DataType::Decimal128(precision, scale) => {
            let unscaled = values.iter().map(|v| v.map(unscaled).transpose()).collect::<Result<Vec<_>, _>>()?;
            Arc::new(Decimal128Array::from(unscaled).with_precision_and_scale(*precision, *scale)?)
        }
        other => return Err(format!("the shop's table has no column of type {other}").into()),
    })
}

/// Big-endian two's complement, of at most 16 bytes.
fn unscaled(value: &Value) -> Result<i128, Error> {
    let Value::Decimal(decimal) = value else { return Err(format!("{value:?} is no decimal").into()) };
    let bytes: Vec<u8> = decimal.try_into()?;
    let sign = if bytes.first().is_some_and(|b| b & 0x80 != 0) { u8::MAX } else { 0 };
    let missing = 16_usize.checked_sub(bytes.len()).ok_or("a decimal of more than 16 bytes")?;
    let mut all = [sign; 16];
    all[missing..].copy_from_slice(&bytes);
    Ok(i128::from_be_bytes(all))
}

/// The latest rows of every source's table, by walking all messages.
pub(super) fn tables(recording: &Recording) -> Result<Vec<RecordBatch>, Error> {
    let schemas = Schemas::parse(&recording.schemas)?;
    let readers = schemas.readers()?;
    let mut latest: Vec<HashMap<&[u8], Value>> = vec![HashMap::new(); recording.row_types.len()];
    for batch in &recording.batches {
        let table = &mut latest[recording.source_of(batch)];
        for message in &batch.messages {
            let key = batch.key(message).ok_or("the shop writes keys")?;
            let envelope = batch.value(message).map(|v| readers.read(v)).transpose()?;
            match envelope.as_ref().and_then(row) {
                Some(row) => table.insert(key, row.clone()),
                None => table.remove(key),
            };
        }
    }
    let table = |(rows, table): (&HashMap<&[u8], Value>, &crate::dataflow::Table)| {
        let rows: Vec<&Value> = rows.values().collect();
        Ok(RecordBatch::try_new(table.columns.clone(), columns(&table.columns, &rows)?)?)
    };
    latest.iter().zip(recording.plan.tables()).map(table).collect()
}

/// Reads every key and value of a batch and looks at nothing; what is measured against the decoder.
pub(super) fn read_all(readers: &Readers<'_>, batch: &MessageBatch) -> Result<usize, Error> {
    let mut read = 0;
    for message in &batch.messages {
        for part in [batch.key(message), batch.value(message)].into_iter().flatten() {
            std::hint::black_box(readers.read(part)?);
            read += 1;
        }
    }
    Ok(read)
}
