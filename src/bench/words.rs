//! Texts from words, and vectors from the words of texts: an embedder that costs nothing beside the model.
//!
//! The invariant: a word has one direction, and a text the sum of its words' directions, so that texts that share words are near each other.

use std::hash::{DefaultHasher, Hash, Hasher};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::embed::{BatchStats, Error, ModelId, TextEmbedder};

const QUALITIES: &[&str] = &[
    "amber",
    "brittle",
    "crooked",
    "drowsy",
    "eager",
    "feathered",
    "gilded",
    "hollow",
    "icy",
    "jagged",
    "knotted",
    "lunar",
    "mossy",
    "nimble",
    "ornate",
    "pickled",
    "quilted",
    "rusty",
    "smoky",
    "tangled",
    "velvet",
    "woven",
];
const THINGS: &[&str] = &[
    "accordion",
    "barometer",
    "canoe",
    "dulcimer",
    "easel",
    "fiddle",
    "gramophone",
    "harpoon",
    "inkwell",
    "jigsaw",
    "kaleidoscope",
    "loom",
    "metronome",
    "nutcracker",
    "orrery",
    "periscope",
    "quiver",
    "rudder",
    "sextant",
    "telescope",
    "umbrella",
    "violin",
    "weathervane",
    "xylophone",
];
const DEEDS: &[&str] = &[
    "charms",
    "drives away",
    "follows",
    "guards",
    "hides from",
    "imitates",
    "listens to",
    "measures",
    "paints",
    "remembers",
    "sings to",
    "startles",
    "teaches",
    "wakes",
    "waits for",
    "weighs",
];
const BEINGS: &[&str] = &[
    "badgers",
    "cartographers",
    "divers",
    "elephants",
    "foresters",
    "glaziers",
    "herons",
    "islanders",
    "jugglers",
    "kingfishers",
    "lighthouse keepers",
    "moles",
    "night watchmen",
    "otters",
    "pilgrims",
    "rooks",
    "sailors",
    "tailors",
];

/// A sentence like no other of the same run: `number` is in it.
pub(super) fn sentence(rng: &mut StdRng, number: usize) -> String {
    let mut pick = |words: &[&'static str]| *words.choose(rng).expect("no list is empty");
    let (quality, thing) = (pick(QUALITIES), pick(THINGS));
    let (deed, being, other) = (pick(DEEDS), pick(BEINGS), pick(BEINGS));
    format!("The {quality} {thing} {deed} {being} and {other}, edition {number}.")
}

/// Makes vectors from words.
pub(super) struct WordEmbedder {
    id: ModelId,
    dimension: usize,
}

impl WordEmbedder {
    pub fn new(dimension: usize) -> WordEmbedder {
        WordEmbedder { id: ModelId(format!("words-{dimension}")), dimension }
    }

    pub fn vector(&self, text: &str) -> Vec<f32> {
        let mut sum = vec![0_f32; self.dimension];
        // A text without words has a direction, too.
        for word in std::iter::once("").chain(text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty())) {
            let mut hasher = DefaultHasher::new();
            word.to_lowercase().hash(&mut hasher);
            let mut rng = StdRng::seed_from_u64(hasher.finish());
            sum.iter_mut().for_each(|x| *x += rng.random_range(-1.0..1.0));
        }
        let length = sum.iter().map(|x| x * x).sum::<f32>().sqrt();
        sum.iter_mut().for_each(|x| *x /= length);
        sum
    }
}

impl TextEmbedder for WordEmbedder {
    fn model_id(&self) -> &ModelId {
        &self.id
    }

    fn dimension(&self) -> usize {
        self.dimension
    }

    fn embed(&self, texts: &[&str], _: &mut dyn FnMut(BatchStats)) -> Result<Vec<Vec<f32>>, Error> {
        Ok(texts.iter().map(|text| self.vector(text)).collect())
    }

    fn embed_query(&self, text: &str) -> Result<Vec<f32>, Error> {
        Ok(self.vector(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_share_words_are_near() {
        let words = WordEmbedder::new(64);
        let cosine = |a: &str, b: &str| words.vector(a).iter().zip(words.vector(b)).map(|(x, y)| x * y).sum::<f32>();
        let near = cosine("a sturdy oak chair, No. 1", "A sturdy oak chair, No. 2");
        assert!(near > 0.7 && near < 0.999, "{near}");
        assert!(cosine("a sturdy oak chair", "rubber boots for rain") < 0.4);
        assert!((cosine("", "") - 1.0).abs() < 1e-5);
    }
}
