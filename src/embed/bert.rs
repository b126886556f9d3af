//! BERT's encoder on candle, with the pooling of sentence-transformers: the mean over a text's tokens, normalised.
//!
//! The invariant: padding takes no part: it is masked in the attention and left out of the mean.

use candle_core::{D, DType, Result, Tensor};
use candle_nn::{Embedding, LayerNorm, Linear, Module, VarBuilder, ops};

/// The part of a model's `config.json` that the encoder follows.
#[derive(Clone, Debug, serde::Deserialize)]
pub(super) struct BertConfig {
    pub model_type: String,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub intermediate_size: usize,
    pub hidden_act: String,
    pub max_position_embeddings: usize,
    pub type_vocab_size: usize,
    pub layer_norm_eps: f64,
    #[serde(default)]
    pub position_embedding_type: Option<String>,
}

#[derive(Clone, Copy)]
enum Activation {
    /// With the error function, as BERT has it.
    Gelu,
    GeluTanh,
    Relu,
}

pub(super) struct Bert {
    words: Embedding,
    /// Positions, with the type of the first (and only) sentence added.
    positions: Tensor,
    norm: LayerNorm,
    layers: Vec<Layer>,
    dimension: usize,
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
    pub fn new(config: &BertConfig, vb: VarBuilder<'_>) -> Result<Bert> {
        let vb = if vb.contains_tensor("bert.embeddings.word_embeddings.weight") { vb.pp("bert") } else { vb };
        let (hidden, e) = (config.hidden_size, vb.pp("embeddings"));
        let words = Embedding::new(e.get((config.vocab_size, hidden), "word_embeddings.weight")?, hidden);
        let positions = e.get((config.max_position_embeddings, hidden), "position_embeddings.weight")?;
        let types = e.get((config.type_vocab_size, hidden), "token_type_embeddings.weight")?;
        let positions = positions.broadcast_add(&types.narrow(0, 0, 1)?)?;
        let norm = norm(config, &e.pp("LayerNorm"))?;
        let layers = (0..config.num_hidden_layers)
            .map(|n| Layer::new(config, &vb.pp(format!("encoder.layer.{n}"))))
            .collect::<Result<_>>()?;
        Ok(Bert { words, positions, norm, layers, dimension: hidden })
    }

    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// Token ids and mask, both texts x tokens, to normalised vectors, texts x dimension.
    pub fn embed(&self, ids: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let (_, tokens) = ids.dims2()?;
        let x = self.words.forward(ids)?.broadcast_add(&self.positions.narrow(0, 0, tokens)?)?;
        let mut x = self.norm.forward(&x)?;
        // 0 where a token is, far below every score where there is none.
        let bias = ((mask - 1.0)? * 1e9)?.unsqueeze(1)?.unsqueeze(1)?;
        for layer in &self.layers {
            x = layer.forward(&x, &bias)?;
        }
        let weights = mask.unsqueeze(2)?;
        let sum = x.broadcast_mul(&weights)?.sum(1)?;
        let mean = sum.broadcast_div(&weights.sum(1)?)?;
        let length = mean.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?.clamp(1e-12, f64::MAX)?;
        mean.broadcast_div(&length)?.to_dtype(DType::F32)
    }
}

impl Layer {
    fn new(config: &BertConfig, vb: &VarBuilder<'_>) -> Result<Layer> {
        let hidden = config.hidden_size;
        let own = vb.pp("attention.self");
        let part = |name: &str| {
            Ok::<_, candle_core::Error>((
                own.get((hidden, hidden), &format!("{name}.weight"))?,
                own.get(hidden, &format!("{name}.bias"))?,
            ))
        };
        let (q, k, v) = (part("query")?, part("key")?, part("value")?);
        let qkv = Linear::new(Tensor::cat(&[q.0, k.0, v.0], 0)?, Some(Tensor::cat(&[q.1, k.1, v.1], 0)?));
        let activation = match config.hidden_act.as_str() {
            "gelu" => Activation::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" => Activation::GeluTanh,
            "relu" => Activation::Relu,
            other => candle_core::bail!("hidden_act {other:?} is not known"),
        };
        Ok(Layer {
            qkv,
            out: candle_nn::linear(hidden, hidden, vb.pp("attention.output.dense"))?,
            attention_norm: norm(config, &vb.pp("attention.output.LayerNorm"))?,
            up: candle_nn::linear(hidden, config.intermediate_size, vb.pp("intermediate.dense"))?,
            down: candle_nn::linear(config.intermediate_size, hidden, vb.pp("output.dense"))?,
            norm: norm(config, &vb.pp("output.LayerNorm"))?,
            heads: config.num_attention_heads,
            activation,
        })
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

fn norm(config: &BertConfig, vb: &VarBuilder<'_>) -> Result<LayerNorm> {
    let named = |new: &str, old: &str| vb.get(config.hidden_size, new).or_else(|_| vb.get(config.hidden_size, old));
    Ok(LayerNorm::new(named("weight", "gamma")?, named("bias", "beta")?, config.layer_norm_eps))
}
