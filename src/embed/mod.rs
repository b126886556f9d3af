//! Embedding turns texts into vectors, in batches packed by tokens, and remembers every vector that it ever computed.
//!
//! The invariant: a vector depends on its text and the model alone, not on the batch that it was computed in; a text that has a vector is
//! never computed again; and a query does not wait for a batch.

mod batch;
mod bert;
mod cpu;
pub mod device;
mod load;
mod precedence;
mod store;
#[cfg(test)]
pub(crate) mod tests;
mod text_embedder;
mod weights;

use std::time::{Duration, Instant};

use candle_core::Device;
use tokenizers::{Encoding, Tokenizer};

pub use load::Error;
pub use store::{EmbeddingStore, StoreError, TextHash};
pub use text_embedder::TextEmbedder;

use self::bert::Bert;
use self::precedence::Precedence;
use crate::config;

/// What a vector's identity is drawn from: the weights, the tokenizer and how many tokens count; sha256, in hex.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelId(pub String);

/// One batch that went through the model.
#[derive(Clone, Copy, Debug)]
pub struct BatchStats {
    pub texts: usize,
    pub tokens: usize,
    /// Tokens with the padding, of which a CPU needs none.
    pub padded_tokens: usize,
    /// Tokens, with padding, that the batch could have held.
    pub max_tokens: usize,
    pub took: Duration,
}

pub struct Embedder {
    encoder: Encoder,
    precedence: Precedence,
    tokenizer: Tokenizer,
    id: ModelId,
    licence: Option<String>,
    dimension: usize,
    batch_max_tokens: usize,
}

enum Encoder {
    Cpu(cpu::Encoder),
    Gpu(Bert),
}

/// What is wrong with a model's files, where they lie on this machine. The hub is not asked.
pub fn problems(config: &config::Embed) -> Vec<config::Problem> {
    let problem = |key: &str, e: Error| vec![config::Problem { key: key.into(), reason: e.to_string() }];
    match load::local(config) {
        Err(e) => problem("embed.path", e),
        Ok(Err(_)) => Vec::new(),
        Ok(Ok(files)) => match load::verify(&files, config) {
            Ok(_) => Vec::new(),
            Err(e @ Error::Checksum { .. }) => problem("embed.sha256", e),
            Err(e) => problem("embed.model", e),
        },
    }
}

/// Whether a start has to fetch the model first, and where it was looked for.
pub fn is_elsewhere(config: &config::Embed) -> Option<String> {
    load::local(config).ok()?.err().map(|tried| tried.join(", "))
}

/// Bytes of a text that are looked at for each token that counts.
const TOKEN_BYTES: usize = 64;

/// The first words of a text, of about so many bytes. Words are told apart before they become tokens, so these have the same tokens as in the whole.
fn head(text: &str, bytes: usize) -> &str {
    if text.len() <= bytes {
        return text;
    }
    let end = text.floor_char_boundary(bytes);
    text[..end].rfind([' ', '\n', '\t']).map_or(text, |end| &text[..end])
}

impl Embedder {
    /// Loads the model where the configuration says, or from its usual places.
    pub fn load(config: &config::Embed) -> Result<Embedder, Error> {
        let files = load::find(config)?;
        let (device, _) = device::pick(config.device)?;
        let (weights, tokenizer, id) = load::open(&files, config, &device)?;
        let encoder = match device {
            Device::Cpu => Encoder::Cpu(cpu::Encoder::new(&weights)?),
            _ => Encoder::Gpu(Bert::new(&weights)?),
        };
        Ok(Embedder {
            encoder,
            precedence: Precedence::default(),
            tokenizer,
            id,
            licence: load::licence(&files),
            dimension: weights.words.dim(1)?,
            batch_max_tokens: config.batch_max_tokens,
        })
    }

    /// Numbers of a vector.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    pub fn model_id(&self) -> &ModelId {
        &self.id
    }

    /// The licence that the model's card states.
    pub fn licence(&self) -> Option<&str> {
        self.licence.as_deref()
    }

    /// Embeds texts; the vectors come in their order. `progress` hears of each batch. Gives way to [`Embedder::embed_query`].
    pub fn embed(&self, texts: &[&str], progress: &mut dyn FnMut(BatchStats)) -> Result<Vec<Vec<f32>>, Error> {
        let encodings = self.encoded(texts)?;
        let ids: Vec<&[u32]> = encodings.iter().map(|e| e.get_ids()).collect();
        let mut order: Vec<usize> = (0..ids.len()).collect();
        // Neighbours in length share a batch, so that little of it is padding.
        order.sort_by_key(|i| std::cmp::Reverse(ids[*i].len()));
        let mut vectors = vec![Vec::new(); ids.len()];
        let mut done = |batch: &[usize], computed: Vec<Vec<f32>>, stats: BatchStats| {
            for (text, vector) in batch.iter().zip(computed) {
                vectors[*text] = vector;
            }
            progress(stats);
        };
        match &self.encoder {
            Encoder::Cpu(encoder) => {
                for batch in batch::cut(order.iter().map(|i| ids[*i].len()), self.batch_max_tokens) {
                    let (started, batch) = (Instant::now(), &order[batch]);
                    let texts: Vec<&[u32]> = batch.iter().map(|i| ids[*i]).collect();
                    let computed = encoder.embed(&texts, &self.precedence);
                    let tokens = texts.iter().map(|t| t.len()).sum();
                    let (padded_tokens, max_tokens) = (tokens, self.batch_max_tokens);
                    let took = started.elapsed();
                    done(batch, computed, BatchStats { texts: batch.len(), tokens, padded_tokens, max_tokens, took });
                }
            }
            Encoder::Gpu(bert) => {
                let free_bytes = device::free_bytes(bert.device())?;
                let max_texts = |longest| bert.footprint().max_texts(longest, free_bytes);
                let mut since = Instant::now();
                batch::in_batches(
                    &order,
                    |i| ids[i].len(),
                    max_texts,
                    |batch| {
                        self.precedence.give_way(since.elapsed());
                        since = Instant::now();
                        let texts: Vec<&[u32]> = batch.iter().map(|i| ids[*i]).collect();
                        let computed = bert.embed(&texts)?;
                        let tokens = texts.iter().map(|t| t.len()).sum();
                        let longest = texts[0].len();
                        let (padded_tokens, max_tokens) = (texts.len() * longest, max_texts(longest) * longest);
                        let took = since.elapsed();
                        done(
                            batch,
                            computed,
                            BatchStats { texts: batch.len(), tokens, padded_tokens, max_tokens, took },
                        );
                        Ok(())
                    },
                )?;
            }
        }
        Ok(vectors)
    }

    /// The tokens that count. Of a long text no more than its head is looked at, or more of it where that has too few of them.
    fn encoded(&self, texts: &[&str]) -> Result<Vec<Encoding>, Error> {
        let counting = self.tokenizer.get_truncation().map_or(usize::MAX, |truncation| truncation.max_length);
        let mut bytes = counting.saturating_mul(TOKEN_BYTES);
        let encode = |heads: Vec<&str>| {
            self.tokenizer.encode_batch_fast(heads, true).map_err(|e| Error::Tokenize(e.to_string()))
        };
        let mut encodings = encode(texts.iter().map(|text| head(text, bytes)).collect())?;
        let is_short = |n: &usize, encodings: &[Encoding], bytes| {
            encodings[*n].len() < counting && head(texts[*n], bytes).len() < texts[*n].len()
        };
        let mut short: Vec<usize> = (0..texts.len()).filter(|n| is_short(n, &encodings, bytes)).collect();
        while !short.is_empty() {
            bytes = bytes.saturating_mul(4);
            let longer = encode(short.iter().map(|n| head(texts[*n], bytes)).collect())?;
            short.iter().zip(longer).for_each(|(n, encoding)| encodings[*n] = encoding);
            short.retain(|n| is_short(n, &encodings, bytes));
        }
        Ok(encodings)
    }

    /// Embeds one text now: before whatever [`Embedder::embed`] is doing.
    pub fn embed_query(&self, text: &str) -> Result<Vec<f32>, Error> {
        let encoding = self.encoded(&[text])?.swap_remove(0);
        let _running = self.precedence.query();
        match &self.encoder {
            Encoder::Cpu(encoder) => Ok(encoder.embed_one(encoding.get_ids())),
            Encoder::Gpu(bert) => Ok(bert.embed(&[encoding.get_ids()])?.swap_remove(0)),
        }
    }
}
