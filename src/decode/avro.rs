//! Avro's binary encoding, read by the writer's schema: a cursor that either takes a value or says why it is none.
//!
//! The invariant: nothing is read past the message's end, nothing is allocated by a length that the message itself does not back, and
//! every byte is checked on the way, also of what is only skipped: general decoders let a wrong union index or a byte too many pass.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::cell::Raw;
use super::schema::{Field, NodeId, Record, Schema, Shape};

/// Deepest nesting of values; a record may hold itself.
const DEPTH_MAX: u32 = 64;

pub(crate) struct Cursor<'a> {
    rest: &'a [u8],
}

type Read<T> = Result<T, String>;

impl<'a> Cursor<'a> {
    pub fn new(body: &'a [u8]) -> Self {
        Cursor { rest: body }
    }

    /// To be called at the end: a byte that is left over belongs to something else than this schema.
    pub fn finish(&self) -> Read<()> {
        match self.rest.len() {
            0 => Ok(()),
            n => Err(format!("{n} bytes are left over after the last field")),
        }
    }

    #[inline]
    fn take(&mut self, length: usize) -> Read<&'a [u8]> {
        match self.rest.split_at_checked(length) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => Err(format!("the message ends {} bytes early", length - self.rest.len())),
        }
    }

    /// A zigzag varint.
    #[inline]
    pub fn long(&mut self) -> Read<i64> {
        // Lengths, indexes of unions and small numbers are one byte.
        if let Some((byte, rest)) = self.rest.split_first()
            && *byte < 0x80
        {
            self.rest = rest;
            return Ok(i64::from(byte >> 1) ^ -i64::from(byte & 1));
        }
        if let Some((value, length)) = self.rest.first_chunk().and_then(|chunk| short_varint(*chunk)) {
            self.rest = &self.rest[length..];
            return Ok((value >> 1) as i64 ^ -((value & 1) as i64));
        }
        let mut value = 0_u64;
        for (n, byte) in self.rest.iter().take(10).enumerate() {
            // The tenth byte has room for one bit.
            if n == 9 && *byte > 1 {
                return Err("a number is longer than 64 bits".into());
            }
            value |= u64::from(byte & 0x7f) << (7 * n);
            if byte & 0x80 == 0 {
                self.rest = &self.rest[n + 1..];
                return Ok((value >> 1) as i64 ^ -((value & 1) as i64));
            }
        }
        Err("the message ends within a number".into())
    }

    pub fn int(&mut self) -> Read<i64> {
        let value = self.long()?;
        i32::try_from(value).map(i64::from).map_err(|_| format!("the int {value} is longer than 32 bits"))
    }

    fn bytes(&mut self) -> Read<&'a [u8]> {
        let length = self.long()?;
        let length = usize::try_from(length).map_err(|_| format!("a length is {length}"))?;
        self.take(length)
    }

    pub fn string(&mut self) -> Read<&'a str> {
        std::str::from_utf8(self.bytes()?).map_err(|e| format!("a string is not UTF-8: {e}"))
    }

    pub fn boolean(&mut self) -> Read<bool> {
        match self.take(1)?[0] {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(format!("a boolean is 0x{other:02x}")),
        }
    }

    /// The branch of the union at `id`, or `id` itself.
    pub fn branch(&mut self, schema: &Schema, id: NodeId) -> Read<NodeId> {
        let Shape::Union(branches) = &schema.node(id).shape else { return Ok(id) };
        let index = self.long()?;
        usize::try_from(index)
            .ok()
            .and_then(|i| branches.get(i))
            .copied()
            .ok_or_else(|| format!("a union of {} types has no type {index}", branches.len()))
    }

    /// The value at `id`.
    pub fn read(&mut self, schema: &Schema, id: NodeId) -> Read<Raw<'a>> {
        let id = self.branch(schema, id)?;
        Ok(match &schema.node(id).shape {
            Shape::Null => Raw::Null,
            Shape::Boolean => Raw::Bool(self.boolean()?),
            Shape::Int => Raw::Int(self.int()?),
            Shape::Long => Raw::Int(self.long()?),
            Shape::Float => Raw::Float(f32::from_le_bytes(self.array()?)),
            Shape::Double => Raw::Double(f64::from_le_bytes(self.array()?)),
            Shape::Bytes => Raw::Bytes(Cow::Borrowed(self.bytes()?)),
            Shape::String => Raw::Str(Cow::Borrowed(self.string()?)),
            Shape::Fixed(size) => Raw::Bytes(Cow::Borrowed(self.take(*size)?)),
            Shape::Enum(symbols) => Raw::Str(Cow::Owned(self.symbol(symbols)?.to_string())),
            Shape::Array(items) => {
                let mut list = Vec::new();
                self.blocks(|cursor| {
                    list.push(cursor.read(schema, *items)?);
                    Ok(())
                })?;
                Raw::List(list)
            }
            // The one record that is a value; any other is refused when the plan is made.
            Shape::Record(Record { fields, .. }) => {
                let [scale, value] = fields.as_slice() else {
                    return Err("a record stands where a value should".into());
                };
                match (self.read(schema, scale.node)?, self.read(schema, value.node)?) {
                    (Raw::Int(scale), Raw::Bytes(value)) => Raw::Scaled(scale, value),
                    _ => return Err("a record stands where a value should".into()),
                }
            }
            Shape::Map(_) | Shape::Union(_) => return Err("a map stands where a value should".into()),
        })
    }

    /// Checks the value at `id` and passes over it.
    pub fn skip(&mut self, schema: &Schema, id: NodeId) -> Read<()> {
        self.skip_at(schema, id, 0)
    }

    fn skip_at(&mut self, schema: &Schema, id: NodeId, depth: u32) -> Read<()> {
        if depth > DEPTH_MAX {
            return Err(format!("the message is nested deeper than {DEPTH_MAX}"));
        }
        let id = self.branch(schema, id)?;
        match &schema.node(id).shape {
            Shape::Null => Ok(()),
            Shape::Boolean => self.boolean().map(drop),
            Shape::Int => self.int().map(drop),
            Shape::Long => self.long().map(drop),
            Shape::Float => self.take(4).map(drop),
            Shape::Double => self.take(8).map(drop),
            Shape::Bytes => self.bytes().map(drop),
            Shape::String => self.string().map(drop),
            Shape::Fixed(size) => self.take(*size).map(drop),
            Shape::Enum(symbols) => self.symbol(symbols).map(drop),
            Shape::Array(items) => self.blocks(|cursor| cursor.skip_at(schema, *items, depth + 1)),
            Shape::Map(values) => self.blocks(|cursor| {
                cursor.string()?;
                cursor.skip_at(schema, *values, depth + 1)
            }),
            Shape::Record(record) => {
                record.fields.iter().try_for_each(|field| self.skip_at(schema, field.node, depth + 1))
            }
            Shape::Union(_) => Err("a union lies directly in a union".into()),
        }
    }

    /// The value at `id`, of whatever shape, as JSON: bytes in base64, numbers that JSON lacks as text.
    pub fn json(&mut self, schema: &Schema, id: NodeId) -> Read<Value> {
        self.json_at(schema, id, 0)
    }

    fn json_at(&mut self, schema: &Schema, id: NodeId, depth: u32) -> Read<Value> {
        if depth > DEPTH_MAX {
            return Err(format!("the message is nested deeper than {DEPTH_MAX}"));
        }
        let id = self.branch(schema, id)?;
        Ok(match &schema.node(id).shape {
            Shape::Array(items) => {
                let mut list = Vec::new();
                self.blocks(|cursor| {
                    list.push(cursor.json_at(schema, *items, depth + 1)?);
                    Ok(())
                })?;
                Value::Array(list)
            }
            Shape::Map(values) => {
                let mut map = Map::new();
                self.blocks(|cursor| {
                    let key = cursor.string()?.to_string();
                    map.insert(key, cursor.json_at(schema, *values, depth + 1)?);
                    Ok(())
                })?;
                Value::Object(map)
            }
            Shape::Record(record) => {
                let field = |f: &Field| Ok((f.name.to_string(), self.json_at(schema, f.node, depth + 1)?));
                Value::Object(record.fields.iter().map(field).collect::<Read<_>>()?)
            }
            Shape::Union(_) => return Err("a union lies directly in a union".into()),
            _ => match self.read(schema, id)? {
                Raw::Bool(v) => v.into(),
                Raw::Int(v) => v.into(),
                Raw::Float(v) => float(v.into()),
                Raw::Double(v) => float(v),
                Raw::Str(v) => v.into_owned().into(),
                Raw::Bytes(v) => STANDARD.encode(v).into(),
                Raw::Null | Raw::Scaled(..) | Raw::List(_) => Value::Null,
            },
        })
    }

    fn array<const N: usize>(&mut self) -> Read<[u8; N]> {
        Ok(self.take(N)?.try_into().expect("as many bytes as were asked for"))
    }

    fn symbol<'s>(&mut self, symbols: &'s [Box<str>]) -> Read<&'s str> {
        let index = self.int()?;
        let symbol = usize::try_from(index).ok().and_then(|i| symbols.get(i));
        symbol.map(|s| &**s).ok_or_else(|| format!("an enum of {} symbols has no symbol {index}", symbols.len()))
    }

    /// The items of an array or a map, block by block. A count may not exceed the bytes that are left: no item that we read is empty.
    fn blocks(&mut self, mut item: impl FnMut(&mut Self) -> Read<()>) -> Read<()> {
        loop {
            let count = self.long()?;
            if count == 0 {
                return Ok(());
            }
            let size = if count < 0 {
                let size = self.long()?;
                Some(usize::try_from(size).map_err(|_| format!("a block's size is {size}"))?)
            } else {
                None
            };
            let count = count.unsigned_abs();
            let before = self.rest.len();
            if count > before as u64 {
                return Err(format!("a block of {count} items has {before} bytes"));
            }
            for _ in 0..count {
                item(self)?;
            }
            let used = before - self.rest.len();
            if size.is_some_and(|size| size != used) {
                return Err(format!("a block says {} bytes and has {used}", size.unwrap_or(0)));
            }
        }
    }
}

fn float(value: f64) -> Value {
    serde_json::Number::from_f64(value).map_or_else(|| value.to_string().into(), Value::Number)
}

/// A varint that ends within 8 bytes, and its length: its groups of 7 bits are moved together by twos, fours and eights, without a loop over
/// bytes. Times in micro- and nanoseconds are that long, and every event has some.
#[inline]
fn short_varint(bytes: [u8; 8]) -> Option<(u64, usize)> {
    let word = u64::from_le_bytes(bytes);
    let ends = !word & 0x8080_8080_8080_8080;
    if ends == 0 {
        return None;
    }
    let groups = word & (ends ^ (ends - 1)) & 0x7f7f_7f7f_7f7f_7f7f;
    let pairs = (groups & 0x007f_007f_007f_007f) | ((groups & 0x7f00_7f00_7f00_7f00) >> 1);
    let fours = (pairs & 0x0000_3fff_0000_3fff) | ((pairs & 0x3fff_0000_3fff_0000) >> 2);
    let value = (fours & 0x0fff_ffff) | ((fours & 0x0fff_ffff_0000_0000) >> 4);
    Some((value, ends.trailing_zeros() as usize / 8 + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<'a>(avro: &str, body: &'a [u8]) -> Read<Raw<'a>> {
        let schema = Schema::from_avro(avro).unwrap();
        let mut cursor = Cursor::new(body);
        let raw = cursor.read(&schema, schema.root)?;
        cursor.finish()?;
        let mut skipping = Cursor::new(body);
        skipping.skip(&schema, schema.root).and_then(|()| skipping.finish()).expect("what can be read can be skipped");
        Ok(raw)
    }

    #[test]
    fn numbers_are_zigzag_varints() {
        assert_eq!(read(r#""long""#, &[1]), Ok(Raw::Int(-1)));
        assert_eq!(
            read(r#""long""#, &[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]),
            Ok(Raw::Int(i64::MAX))
        );
        assert!(read(r#""int""#, &[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]).is_err());
        assert!(read(r#""long""#, &[0x80; 11]).unwrap_err().contains("64 bits"));
        assert!(read(r#""long""#, &[0x80]).unwrap_err().contains("ends within"));
    }

    #[test]
    fn numbers_of_every_length_are_read_to_their_last_byte() {
        let numbers = (0..64).flat_map(|bits| {
            let power = 1_i64 << bits;
            [power, power.wrapping_sub(1), power.wrapping_neg(), i64::MAX >> bits, i64::MIN >> bits]
        });
        for number in numbers {
            let mut rest = (number as u64) << 1 ^ (number >> 63) as u64;
            let mut bytes = Vec::new();
            while rest >= 0x80 {
                bytes.push(rest as u8 | 0x80);
                rest >>= 7;
            }
            bytes.push(rest as u8);
            // At the message's end, and with anything behind it.
            for behind in [&[][..], &[0; 12], &[0xff; 12]] {
                let message = [&bytes, behind].concat();
                let mut cursor = Cursor::new(&message);
                assert_eq!(cursor.long(), Ok(number), "{bytes:x?}");
                assert_eq!(cursor.rest, behind, "{bytes:x?}");
            }
        }
    }

    #[test]
    fn what_general_decoders_let_pass_is_refused() {
        let check = |avro: &str, body: &[u8], expect: &str| {
            let error = read(avro, body).unwrap_err();
            assert!(error.contains(expect), "{error}");
        };
        check(r#"["null","int"]"#, &[4], "no type 2");
        check(r#""int""#, &[2, 0], "1 bytes are left over");
        check(r#""boolean""#, &[2], "0x02");
        check(r#""string""#, &[2, 0xff], "not UTF-8");
        check(r#""string""#, &[200, 1, b'x'], "ends 99 bytes early");
        check(r#""bytes""#, &[1], "a length is -1");
        check(r#"{"type":"array","items":"int"}"#, &[3, 6, 2, 4, 0], "says 3 bytes");
        check(r#"{"type":"array","items":"int"}"#, &[0xfe, 0xff, 0xff, 0xff, 0xf, 2], "has 1 bytes");
        check(r#"{"type":"enum","name":"E","symbols":["a"]}"#, &[2], "no symbol 1");
    }

    #[test]
    fn whatever_is_nested_is_json() {
        let avro = r#"{"type":"record","name":"P","fields":[{"name":"x","type":"double"},{"name":"wkb","type":["null","bytes"]},{"name":"tags","type":{"type":"map","values":{"type":"array","items":"int"}}}]}"#;
        let schema = Schema::from_avro(avro).unwrap();
        let body = [0, 0, 0, 0, 0, 0, 0xf8, 0x7f, 2, 4, 0xff, 1, 2, 2, b'a', 2, 6, 0, 0];
        let mut cursor = Cursor::new(&body);
        let value = cursor.json(&schema, schema.root).unwrap();
        cursor.finish().unwrap();
        assert_eq!(value.to_string(), r#"{"x":"NaN","wkb":"/wE=","tags":{"a":[3]}}"#);
    }

    #[test]
    fn arrays_come_in_blocks() {
        let list = Raw::List(vec![Raw::Int(1), Raw::Int(2), Raw::Int(3)]);
        assert_eq!(read(r#"{"type":"array","items":"int"}"#, &[2, 2, 3, 4, 4, 6, 0]), Ok(list));
    }
}
