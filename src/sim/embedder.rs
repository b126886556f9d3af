//! The embedder of the simulation: vectors drawn from their texts alone, which mean nothing and cost nothing.

use std::path::PathBuf;

use super::world::{LATENCY_MAX, Shared, lock};
use crate::embed::{self, BatchStats, ModelId, TextEmbedder, TextHash};
use crate::thread;

pub const DIMENSION: usize = 4;

pub struct Drawn {
    id: ModelId,
    world: Shared,
    /// The embedding store's file.
    file: PathBuf,
}

impl Drawn {
    pub fn new(world: Shared, file: PathBuf) -> Drawn {
        Drawn { id: model(), world, file }
    }
}

pub fn model() -> ModelId {
    ModelId("drawn".into())
}

pub fn hash(text: &str) -> TextHash {
    TextHash::of(&model(), text)
}

pub fn draw(text: &str) -> Vec<f32> {
    let numbers: Vec<f32> = hash(text).0[..DIMENSION].iter().map(|b| f32::from(*b) - 127.5).collect();
    let length = numbers.iter().map(|n| n * n).sum::<f32>().sqrt();
    numbers.iter().map(|n| n / length).collect()
}

impl TextEmbedder for Drawn {
    fn model_id(&self) -> &ModelId {
        &self.id
    }

    fn dimension(&self) -> usize {
        DIMENSION
    }

    fn embed(&self, texts: &[&str], _: &mut dyn FnMut(BatchStats)) -> Result<Vec<Vec<f32>>, embed::Error> {
        // Not after it: what is embedded is stored without a pause, so that a write that a process dies in can be torn.
        thread::pause(LATENCY_MAX);
        let bytes = std::fs::metadata(&self.file).map_or(0, |file| file.len());
        lock(&self.world).embed(texts, bytes).map_err(|dead| embed::Error::Tokenize(dead.to_string()))?;
        Ok(texts.iter().map(|text| draw(text)).collect())
    }

    fn embed_query(&self, text: &str) -> Result<Vec<f32>, embed::Error> {
        Ok(draw(text))
    }
}
