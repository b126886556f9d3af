//! The GPU's encoder: BERT on candle, over texts that are padded to the longest of their batch.
//!
//! The invariant: padding takes no part: it is masked in the attention and left out of the mean.

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::{Embedding, LayerNorm, Linear, Module, ops};

use super::batch::Footprint;
use super::weights::{Activation, Affine, LayerWeights, Weights};

pub(super) struct Bert {
    words: Embedding,
    positions: Tensor,
    norm: LayerNorm,
    layers: Vec<Layer>,
    footprint: Footprint,
    device: Device,
}

struct Layer {
    /// Queries, keys and values in one product.
    qkv: Linear,
    out: Linear,
    attention_norm: LayerNorm,
    up: Linear,
    down: Linear,
    norm: LayerNorm,
    heads: usize,
    activation: Activation,
}

impl Bert {
    pub fn new(weights: &Weights) -> Result<Bert> {
        let hidden = weights.words.dim(1)?;
        Ok(Bert {
            words: Embedding::new(weights.words.clone(), hidden),
            positions: weights.positions.clone(),
            norm: norm(&weights.norm, weights.epsilon),
            layers: weights.layers.iter().map(|layer| Layer::new(layer, weights)).collect(),
            footprint: Footprint { hidden, inner: weights.inner, heads: weights.heads },
            device: weights.words.device().clone(),
        })
    }

    pub fn footprint(&self) -> Footprint {
        self.footprint
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The vectors of texts, given as token ids.
    pub fn embed(&self, texts: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        let longest = texts.iter().map(|t| t.len()).max().unwrap_or(0).max(1);
        let mut ids = Vec::with_capacity(texts.len() * longest);
        let mut mask = Vec::with_capacity(texts.len() * longest);
        for text in texts {
            ids.extend_from_slice(text);
            mask.resize(ids.len(), 1_f32);
            ids.resize(ids.len() + longest - text.len(), 0);
            mask.resize(ids.len(), 0.0);
        }
        let ids = Tensor::from_vec(ids, (texts.len(), longest), &self.device)?;
        let mask = Tensor::from_vec(mask, (texts.len(), longest), &self.device)?;
        self.forward(&ids, &mask)?.to_vec2()
    }

    /// Token ids and mask, both texts x tokens, to normalised vectors, texts x dimension.
    fn forward(&self, ids: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let (_, tokens) = ids.dims2()?;
        let x = self.words.forward(ids)?.broadcast_add(&self.positions.narrow(0, 0, tokens)?)?;
        let mut x = self.norm.forward(&x)?;
        // 0 where a token is, far below every score where there is none.
        let bias = ((mask - 1.0)? * 1e9)?.unsqueeze(1)?.unsqueeze(1)?;
        for layer in &self.layers {
            x = layer.forward(&x, &bias)?;
        }
        // Normalised, a sum is as good as a mean.
        let sum = x.broadcast_mul(&mask.unsqueeze(2)?)?.sum(1)?;
        let length = sum.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?.clamp(1e-12, f64::MAX)?;
        sum.broadcast_div(&length)?.to_dtype(DType::F32)
    }
}

impl Layer {
    fn new(layer: &LayerWeights, weights: &Weights) -> Layer {
        Layer {
            qkv: linear(&layer.qkv),
            out: linear(&layer.out),
            attention_norm: norm(&layer.attention_norm, weights.epsilon),
            up: linear(&layer.up),
            down: linear(&layer.down),
            norm: norm(&layer.norm, weights.epsilon),
            heads: weights.heads,
            activation: weights.activation,
        }
    }

    fn forward(&self, x: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let (texts, tokens, hidden) = x.dims3()?;
        let width = hidden / self.heads;
        // texts x tokens x 3 x heads x width, then one of the three as texts x heads x tokens x width.
        let qkv = self.qkv.forward(x)?.reshape((texts, tokens, 3, self.heads, width))?;
        let part = |n: usize| qkv.narrow(2, n, 1)?.squeeze(2)?.transpose(1, 2)?.contiguous();
        let q = (part(0)? * (1.0 / (width as f64).sqrt()))?;
        let scores = q.matmul(&part(1)?.t()?)?.broadcast_add(bias)?;
        let context = ops::softmax_last_dim(&scores)?.matmul(&part(2)?)?;
        let context = context.transpose(1, 2)?.contiguous()?.reshape((texts, tokens, hidden))?;
        let x = self.attention_norm.forward(&(self.out.forward(&context)? + x)?)?;
        let up = self.up.forward(&x)?;
        let up = match self.activation {
            Activation::Gelu => up.gelu_erf()?,
            Activation::GeluTanh => up.gelu()?,
            Activation::Relu => up.relu()?,
        };
        self.norm.forward(&(self.down.forward(&up)? + x)?)
    }
}

fn linear((weight, bias): &Affine) -> Linear {
    Linear::new(weight.clone(), Some(bias.clone()))
}

fn norm((weight, bias): &Affine, epsilon: f64) -> LayerNorm {
    LayerNorm::new(weight.clone(), bias.clone(), epsilon)
}
