//! Messages that were taken apart before: raw's rows, read back to the changes that their bytes would have given.
//!
//! The invariant: values go through the writer's own plan, as if they came off the wire; nothing here decides what a value means.

use super::assembly::Assembly;
use super::cell::Cell;
use super::decoder::{Decoder, parse_json};
use super::envelope::{Kind, Values};
use super::plan::Bad;
use super::registry::Error;
use super::{Decoded, Origin, Reject, wire};
use crate::config::Format;
use crate::time::{Offset, Partition};

/// One message.
pub(crate) struct Taken<'a> {
    pub offset: Offset,
    pub timestamp_ms: i64,
    /// As it came.
    pub key: Option<&'a [u8]>,
    pub value: TakenValue<'a>,
}

pub(crate) enum TakenValue<'a> {
    /// As it came.
    Bytes(Option<&'a [u8]>),
    Event(Box<TakenEvent<'a>>),
}

pub(crate) struct TakenEvent<'a> {
    pub schema: WriterSchema<'a>,
    pub kind: Kind,
    pub before: Option<Box<Values<'a, 'a>>>,
    pub after: Option<Box<Values<'a, 'a>>>,
    pub origin: Origin,
}

/// The schema that a value was written by.
#[derive(Clone, Copy)]
pub(crate) enum WriterSchema<'a> {
    /// Its id in the registry.
    Registered(u32),
    /// The schema part of a JSON message.
    Connect(&'a serde_json::Value),
}

impl Decoder {
    /// Decodes messages of one partition, in the order of their offsets. An error is infrastructure's; the same may be given again. A reject
    /// has a value only where there were bytes.
    pub(crate) async fn decode_taken(
        &mut self,
        partition: &Partition,
        messages: &[Taken<'_>],
    ) -> Result<Decoded, Error> {
        if self.source.format == Format::Avro {
            let mut ids: Vec<u32> = messages.iter().flat_map(Taken::schema_ids).collect();
            ids.sort_unstable();
            ids.dedup();
            self.fetch(&ids).await?;
        }
        let mut assembly = Assembly::new(&self.row_type, messages.len());
        let mut rejects = Vec::new();
        for message in messages {
            let (done, value) = match &message.value {
                TakenValue::Bytes(value) => {
                    (self.message(message.offset, message.key, *value, &mut assembly), value.map(Into::into))
                }
                TakenValue::Event(event) => (self.event(message, event, &mut assembly), None),
            };
            if let Err(Bad { rule, reason }) = done {
                rejects.push(Reject {
                    partition: partition.clone(),
                    offset: message.offset,
                    timestamp_ms: message.timestamp_ms,
                    rule,
                    reason,
                    schema_id: message.value_schema_id().filter(|_| self.source.format == Format::Avro),
                    key: message.key.map(Into::into),
                    value,
                    value_in_raw: matches!(message.value, TakenValue::Event(_)),
                });
            }
        }
        let end = messages.last().map_or(Offset(0), |m| Offset(m.offset.0 + 1));
        let (changes, counts) = self.assemble(assembly);
        Ok(Decoded { source: self.index, partition: partition.clone(), end, changes, rejects, counts })
    }

    fn event(&mut self, message: &Taken<'_>, event: &TakenEvent<'_>, to: &mut Assembly) -> Result<(), Bad> {
        let plan = match event.schema {
            WriterSchema::Registered(id) => self.value_plan(id)?,
            WriterSchema::Connect(part) => self.connect_plan(part),
        };
        let (_, plan) = plan.as_ref().as_ref().map_err(Clone::clone)?;
        let (before, after) = (event.before.as_deref(), event.after.as_deref());
        let (row_type, unavailable) = (self.row_type.clone(), self.source.unavailable.clone());
        let Some(read) = plan.read_values(event.kind, before, after, event.origin.clone(), &row_type, &unavailable)?
        else {
            return Ok(());
        };
        match self.source.format {
            Format::Avro => {
                let key = self.avro_key(message.key)?;
                to.add(message.offset, key, Some(read), &row_type)
            }
            Format::Json => {
                let parsed = message.key.map(parse_json).transpose()?;
                let key: Option<Vec<Cell<'_>>> = self.json_key(parsed.as_ref())?;
                to.add(message.offset, key, Some(read), &row_type)
            }
        }
    }
}

impl Taken<'_> {
    fn value_schema_id(&self) -> Option<u32> {
        match &self.value {
            TakenValue::Bytes(value) => value.and_then(|v| wire::split(v).ok()).map(|(id, _)| id),
            TakenValue::Event(event) => match event.schema {
                WriterSchema::Registered(id) => Some(id),
                WriterSchema::Connect(_) => None,
            },
        }
    }

    fn schema_ids(&self) -> impl Iterator<Item = u32> {
        let key = self.key.and_then(|key| wire::split(key).ok()).map(|(id, _)| id);
        key.into_iter().chain(self.value_schema_id())
    }
}
