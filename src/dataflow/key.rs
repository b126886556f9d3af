//! A key is the row bytes that records are brought together by: equal keys are equal bytes. A value is the row that stands under it.
//!
//! The invariant: keys order as their bytes do, whether they are held inline or not; two values of a key never have the same bytes, since
//! the row format is injective.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Row;

/// Keys of up to this many bytes cost no allocation: two integers, or a short text.
const INLINE: usize = 22;

#[derive(Clone)]
pub(super) enum Key {
    Inline(u8, [u8; INLINE]),
    Shared(Arc<[u8]>),
}

impl From<&[u8]> for Key {
    fn from(bytes: &[u8]) -> Key {
        if bytes.len() <= INLINE {
            let mut inline = [0; INLINE];
            inline[..bytes.len()].copy_from_slice(bytes);
            Key::Inline(bytes.len() as u8, inline)
        } else {
            Key::Shared(bytes.into())
        }
    }
}

impl Deref for Key {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Key::Inline(length, bytes) => &bytes[..usize::from(*length)],
            Key::Shared(bytes) => bytes,
        }
    }
}

impl Default for Key {
    fn default() -> Key {
        Key::Inline(0, [0; INLINE])
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Key) -> bool {
        **self == **other
    }
}

impl Eq for Key {}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Key) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Key) -> Ordering {
        (**self).cmp(&**other)
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (**self).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Key, D::Error> {
        Ok(Key::from(&*Box::<[u8]>::deserialize(deserializer)?))
    }
}

/// A row under a key. It orders by a hash of its bytes first, so that sorting and merging rows, which is most of what arrangements do, seldom
/// has to look at the bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Value {
    hash: u64,
    pub row: Row,
}

impl Value {
    pub fn new(row: Row, hasher: &ahash::RandomState) -> Value {
        Value { hash: hasher.hash_one(&row), row }
    }
}

/// The one hasher of keys and values: equal bytes hash alike on every worker.
pub(super) fn hasher() -> ahash::RandomState {
    ahash::RandomState::with_seeds(1, 2, 3, 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_their_bytes() {
        let keys: Vec<Key> = (0..40).map(|n| Key::from(&vec![7; n][..])).collect();
        assert!(keys.is_sorted());
        assert_eq!(keys[22], Key::Shared(vec![7; 22].into()), "inline or not");
        assert_eq!(std::mem::size_of::<Key>(), 24);
    }
}
