//! What turns texts into vectors, as the stages after it see it: the model, or a stand-in whose vectors cost nothing.
//!
//! The invariant: a vector depends on its text and on `model_id` alone.

use super::{BatchStats, Embedder, Error, ModelId};

pub trait TextEmbedder: Send + Sync {
    /// What the vectors' identity is drawn from.
    fn model_id(&self) -> &ModelId;

    /// Numbers of a vector.
    fn dimension(&self) -> usize;

    /// Embeds texts; the vectors come in their order, of length 1. `progress` hears of each batch.
    fn embed(&self, texts: &[&str], progress: &mut dyn FnMut(BatchStats)) -> Result<Vec<Vec<f32>>, Error>;

    /// Embeds the text of a search, ahead of whatever is embedded for the index.
    fn embed_query(&self, text: &str) -> Result<Vec<f32>, Error>;
}

impl TextEmbedder for Embedder {
    fn model_id(&self) -> &ModelId {
        self.model_id()
    }

    fn dimension(&self) -> usize {
        self.dimension()
    }

    fn embed(&self, texts: &[&str], progress: &mut dyn FnMut(BatchStats)) -> Result<Vec<Vec<f32>>, Error> {
        self.embed(texts, progress)
    }

    fn embed_query(&self, text: &str) -> Result<Vec<f32>, Error> {
        self.embed_query(text)
    }
}
