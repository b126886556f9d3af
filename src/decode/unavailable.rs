//! The placeholder is what a connector writes for a value that its database did not send: a long text that an update has left alone.

use md5::{Digest, Md5};

use super::cell::Raw;

impl Raw<'_> {
    /// Whether this is what Debezium writes for a value that the database did not send: the placeholder's text, its bytes, or a list of
    /// either, in the forms of `UnchangedToastedPlaceholder` in Debezium's PostgreSQL connector.
    pub fn is_unavailable(&self, placeholder: &str) -> bool {
        match self {
            _ if placeholder.is_empty() => false,
            Raw::Str(text) => is_placeholder(text, placeholder),
            Raw::Bytes(bytes) => **bytes == *placeholder.as_bytes(),
            Raw::List(items) => match items.as_slice() {
                [Raw::Str(text)] => text == placeholder || *text == named_uuid(placeholder),
                [Raw::Bytes(bytes)] => **bytes == *placeholder.as_bytes(),
                items => {
                    items.len() == placeholder.len()
                        && items.iter().zip(placeholder.bytes()).all(|(i, b)| *i == Raw::Int(i64::from(b)))
                }
            },
            _ => false,
        }
    }
}

/// Whether a text is the placeholder, or the map from it to itself that `hstore` has as JSON; an empty placeholder stands for none.
pub(crate) fn is_placeholder(text: &str, placeholder: &str) -> bool {
    let is_map = || {
        let inside = text.strip_prefix("{\"")?.strip_suffix("\"}")?;
        inside.strip_prefix(placeholder)?.strip_suffix(placeholder)
    };
    !placeholder.is_empty() && (text == placeholder || is_map() == Some("\":\""))
}

/// Java's `UUID.nameUUIDFromBytes`, of which a list of UUIDs that was not sent has one.
fn named_uuid(name: &str) -> String {
    let mut bytes: [u8; 16] = Md5::digest(name).into();
    bytes[6] = bytes[6] & 0x0f | 0x30;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = format!("{:032x}", u128::from_be_bytes(bytes));
    [20, 16, 12, 8].iter().for_each(|place| text.insert(*place, '-'));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_the_placeholder_is_known() {
        let is = |raw: Raw<'_>| raw.is_unavailable("__u");
        assert!(
            is(Raw::Str("__u".into()))
                && is(Raw::Bytes(b"__u".as_slice().into()))
                && is(Raw::List(vec![Raw::Str("__u".into())]))
        );
        assert!(is(Raw::List(b"__u".iter().map(|b| Raw::Int(i64::from(*b))).collect())));
        let list = |item: Raw<'static>| is(Raw::List(vec![item]));
        assert!(list(Raw::Bytes(b"__u".as_slice().into())) && !list(Raw::Bytes(b"__".as_slice().into())));
        assert!(is(Raw::Str(r#"{"__u":"__u"}"#.into())), "hstore");
        for text in [r#"{"__u":"x"}"#, r#"{"__u":""}"#, r#"{"__u"}"#, r#"{"__u":"__u","a":"b"}"#] {
            assert!(!is(Raw::Str(text.into())), "{text}");
        }
        // By Java: UUID.nameUUIDFromBytes("__debezium_unavailable_value".getBytes()).
        let uuid = Raw::List(vec![Raw::Str("b68a35a7-17ad-35b3-af2a-ae46edb4545a".into())]);
        assert!(uuid.is_unavailable("__debezium_unavailable_value") && !uuid.is_unavailable("__u"));
        assert!(!Raw::Str("".into()).is_unavailable(""), "an empty key is a key");
        assert!(!is(Raw::Str("__u ".into())) && !is(Raw::Null) && !is(Raw::List(vec![])));
    }
}
