//! The vectors of the query texts asked last, so that a query that comes again is not embedded again.
//!
//! The invariant: at most `capacity` texts of at most [`TEXT_MAX_BYTES`] each; the one that was unused the longest makes room. A vector is a
//! function of its text alone, so nothing here ever goes stale.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

/// Longer texts are rarely asked twice, and would let the cache grow beyond what its capacity suggests.
const TEXT_MAX_BYTES: usize = 1024;

#[derive(Debug)]
pub(super) struct QueryVectors {
    capacity: usize,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    /// Counts uses; the higher, the later.
    clock: u64,
    by_text: HashMap<Arc<str>, (u64, Arc<[f32]>)>,
    by_use: BTreeMap<u64, Arc<str>>,
}

impl QueryVectors {
    pub fn new(capacity: usize) -> QueryVectors {
        QueryVectors { capacity, kept: Mutex::default() }
    }

    pub fn get(&self, text: &str) -> Option<Arc<[f32]>> {
        let mut kept = self.kept.lock().expect("no holder of this lock panics");
        let kept = &mut *kept;
        let (used, vector) = kept.by_text.get_mut(text)?;
        let text = kept.by_use.remove(used).expect("each kept text has one use");
        kept.clock += 1;
        *used = kept.clock;
        kept.by_use.insert(kept.clock, text);
        Some(vector.clone())
    }

    pub fn put(&self, text: &str, vector: Arc<[f32]>) {
        if text.len() > TEXT_MAX_BYTES || self.capacity == 0 {
            return;
        }
        let mut kept = self.kept.lock().expect("no holder of this lock panics");
        kept.clock += 1;
        let (text, clock): (Arc<str>, u64) = (text.into(), kept.clock);
        if let Some((used, _)) = kept.by_text.insert(text.clone(), (clock, vector)) {
            kept.by_use.remove(&used);
        }
        kept.by_use.insert(clock, text);
        if kept.by_text.len() > self.capacity
            && let Some((_, oldest)) = kept.by_use.pop_first()
        {
            kept.by_text.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(x: f32) -> Arc<[f32]> {
        vec![x].into()
    }

    #[test]
    fn the_text_unused_the_longest_makes_room() {
        let vectors = QueryVectors::new(2);
        vectors.put("a", vector(1.0));
        vectors.put("b", vector(2.0));
        assert_eq!(vectors.get("a"), Some(vector(1.0)));
        vectors.put("c", vector(3.0));
        assert_eq!(vectors.get("b"), None);
        assert_eq!((vectors.get("a"), vectors.get("c")), (Some(vector(1.0)), Some(vector(3.0))));
    }

    #[test]
    fn putting_again_replaces_and_takes_no_room() {
        let vectors = QueryVectors::new(2);
        for n in 0..5 {
            vectors.put("a", vector(n as f32));
        }
        vectors.put("b", vector(9.0));
        assert_eq!((vectors.get("a"), vectors.get("b")), (Some(vector(4.0)), Some(vector(9.0))));
    }

    #[test]
    fn long_texts_are_not_kept() {
        let vectors = QueryVectors::new(2);
        let long = "x".repeat(TEXT_MAX_BYTES + 1);
        vectors.put(&long, vector(1.0));
        assert_eq!(vectors.get(&long), None);
        vectors.put(&long[1..], vector(1.0));
        assert!(vectors.get(&long[1..]).is_some());
    }
}
