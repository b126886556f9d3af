//! Confluent's wire format: a magic byte (0), the writer schema's id (4 bytes, big-endian), then the Avro body.
//! Nothing here looks into the body.

/// Bytes before the body.
pub(crate) const HEAD: usize = 5;

/// Ids are Java's `int`.
const ID_MAX: u32 = i32::MAX as u32;

/// Splits a message into schema id and body.
pub(crate) fn split(message: &[u8]) -> Result<(u32, &[u8]), String> {
    let Some((head, body)) = message.split_first_chunk::<HEAD>() else {
        return Err(format!("{} bytes are fewer than the {HEAD} of Confluent's head", message.len()));
    };
    if head[0] != 0 {
        return Err(format!("the first byte is 0x{:02x}, not Confluent's magic byte 0x00", head[0]));
    }
    let id = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    // A registry asked for such an id may refuse the question, which is no answer that there is none.
    if id > ID_MAX {
        return Err(format!("the schema id {id} is none that a registry gives: {ID_MAX} is the last"));
    }
    Ok((id, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_head_and_body() {
        assert_eq!(split(&[0, 0, 0, 1, 2, 9, 9]), Ok((258, &[9u8, 9][..])));
        assert_eq!(split(&[0, 0, 0, 0, 7]), Ok((7, &[][..])));
        assert_eq!(split(&[0, 0x7f, 0xff, 0xff, 0xff]), Ok((ID_MAX, &[][..])));
        assert!(split(&[0, 0x80, 0, 0, 0, 1]).unwrap_err().contains("2147483648"));
        assert!(split(&[0, 0, 0, 1]).unwrap_err().contains("4 bytes"));
        assert!(split(b"{\"a\":1}").unwrap_err().contains("0x7b"));
    }
}
