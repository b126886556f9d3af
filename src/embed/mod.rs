//! Embedding turns texts into vectors, in batches packed by tokens, and remembers every vector that it ever computed.
//!
//! The invariant: a vector depends on its text and the model alone, not on the batch that it was computed in; and a text that has a vector is
//! never computed again.

mod bert;
pub mod device;
mod load;
mod store;
#[cfg(test)]
pub(crate) mod tests;
mod text_embedder;

use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use tokenizers::Tokenizer;

pub use load::Error;
pub use store::{EmbeddingStore, StoreError, TextHash};
pub use text_embedder::TextEmbedder;

use crate::config;

/// What a vector's identity is drawn from: the weights, the tokenizer and how many tokens count; sha256, in hex.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelId(pub String);

/// One batch that went through the model.
#[derive(Clone, Copy, Debug)]
pub struct BatchStats {
    pub texts: usize,
    pub tokens: usize,
    /// Tokens with the padding.
    pub padded_tokens: usize,
    pub took: Duration,
}

pub struct Embedder {
    model: bert::Bert,
    tokenizer: Tokenizer,
    id: ModelId,
    licence: Option<String>,
    device: Device,
    batch_max_tokens: usize,
}

impl Embedder {
    /// Loads the model where the configuration says, or from its usual places.
    pub fn load(config: &config::Embed) -> Result<Embedder, Error> {
        let files = load::find(config)?;
        let (device, _) = device::pick(config.device)?;
        let (model, tokenizer, id) = load::open(&files, config, &device)?;
        Ok(Embedder {
            model,
            tokenizer,
            id,
            licence: load::licence(&files),
            device,
            batch_max_tokens: config.batch_max_tokens,
        })
    }

    /// Numbers of a vector.
    pub fn dimension(&self) -> usize {
        self.model.dimension()
    }

    pub fn model_id(&self) -> &ModelId {
        &self.id
    }

    /// The licence that the model's card states.
    pub fn licence(&self) -> Option<&str> {
        self.licence.as_deref()
    }

    /// Embeds texts; the vectors come in their order. `progress` hears of each batch.
    pub fn embed(&self, texts: &[&str], progress: &mut dyn FnMut(BatchStats)) -> Result<Vec<Vec<f32>>, Error> {
        let encodings =
            self.tokenizer.encode_batch(texts.to_vec(), true).map_err(|e| Error::Tokenize(e.to_string()))?;
        let ids: Vec<&[u32]> = encodings.iter().map(|e| e.get_ids()).collect();
        let mut order: Vec<usize> = (0..ids.len()).collect();
        // Neighbours in length share a batch, so that little of it is padding.
        order.sort_by_key(|i| std::cmp::Reverse(ids[*i].len()));
        let mut vectors = vec![Vec::new(); ids.len()];
        let mut rest = order.as_slice();
        while let Some(longest) = rest.first() {
            let fit = (self.batch_max_tokens / ids[*longest].len().max(1)).clamp(1, rest.len());
            let (batch, later) = rest.split_at(fit);
            self.batch(batch, &ids, &mut vectors, progress)?;
            rest = later;
        }
        Ok(vectors)
    }

    /// A batch that does not fit into the device's memory is halved.
    fn batch(
        &self,
        batch: &[usize],
        ids: &[&[u32]],
        to: &mut [Vec<f32>],
        progress: &mut dyn FnMut(BatchStats),
    ) -> Result<(), Error> {
        let started = Instant::now();
        match self.forward(batch, ids) {
            Ok(vectors) => {
                let tokens = batch.iter().map(|i| ids[*i].len()).sum();
                let padded_tokens = batch.len() * batch.iter().map(|i| ids[*i].len()).max().unwrap_or(0);
                for (i, vector) in batch.iter().zip(vectors) {
                    to[*i] = vector;
                }
                progress(BatchStats { texts: batch.len(), tokens, padded_tokens, took: started.elapsed() });
                Ok(())
            }
            Err(e) if batch.len() > 1 && is_out_of_memory(&e) => {
                tracing::warn!(texts = batch.len(), "the device is out of memory; the batch is halved");
                let (left, right) = batch.split_at(batch.len() / 2);
                self.batch(left, ids, to, progress)?;
                self.batch(right, ids, to, progress)
            }
            Err(e) => Err(e.into()),
        }
    }

    fn forward(&self, batch: &[usize], ids: &[&[u32]]) -> candle_core::Result<Vec<Vec<f32>>> {
        let longest = batch.iter().map(|i| ids[*i].len()).max().unwrap_or(1).max(1);
        let mut padded = Vec::with_capacity(batch.len() * longest);
        let mut mask = Vec::with_capacity(batch.len() * longest);
        for i in batch {
            padded.extend_from_slice(ids[*i]);
            padded.resize(padded.len() + longest - ids[*i].len(), 0);
            mask.extend(std::iter::repeat_n(1_f32, ids[*i].len()));
            mask.resize(padded.len(), 0.0);
        }
        let padded = Tensor::from_vec(padded, (batch.len(), longest), &self.device)?;
        let mask = Tensor::from_vec(mask, (batch.len(), longest), &self.device)?;
        self.model.embed(&padded, &mask)?.to_vec2()
    }
}

fn is_out_of_memory(error: &candle_core::Error) -> bool {
    let text = error.to_string().to_ascii_lowercase();
    text.contains("out of memory") || text.contains("out_of_memory")
}
