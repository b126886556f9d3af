//! The weights of a BERT, by the names that its file gives them: what both encoders are made from.
//!
//! The invariant: names and shapes are known here alone; the positions have the type of the first (and only) sentence added, and queries,
//! keys and values are one matrix.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

/// The part of a model's `config.json` that an encoder follows.
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Activation {
    /// With the error function, as BERT has it.
    Gelu,
    GeluTanh,
    Relu,
}

/// A matrix (or the weight of a norm) and its bias.
pub(super) type Affine = (Tensor, Tensor);

pub(super) struct Weights {
    pub words: Tensor,
    pub positions: Tensor,
    pub norm: Affine,
    pub layers: Vec<LayerWeights>,
    /// Numbers a token between the two products of a layer's feed-forward part.
    pub inner: usize,
    pub heads: usize,
    pub epsilon: f64,
    pub activation: Activation,
}

pub(super) struct LayerWeights {
    pub qkv: Affine,
    pub out: Affine,
    pub attention_norm: Affine,
    pub up: Affine,
    pub down: Affine,
    pub norm: Affine,
}

impl Weights {
    pub fn read(config: &BertConfig, vb: VarBuilder<'_>) -> Result<Weights> {
        let activation = match config.hidden_act.as_str() {
            "gelu" => Activation::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" => Activation::GeluTanh,
            "relu" => Activation::Relu,
            other => candle_core::bail!("hidden_act {other:?} is not known"),
        };
        if config.num_attention_heads == 0 || !config.hidden_size.is_multiple_of(config.num_attention_heads) {
            candle_core::bail!(
                "{} numbers cannot be split into {} heads",
                config.hidden_size,
                config.num_attention_heads
            );
        }
        let vb = if vb.contains_tensor("bert.embeddings.word_embeddings.weight") { vb.pp("bert") } else { vb };
        let (hidden, inner, e) = (config.hidden_size, config.intermediate_size, vb.pp("embeddings"));
        let positions = e.get((config.max_position_embeddings, hidden), "position_embeddings.weight")?;
        let types = e.get((config.type_vocab_size, hidden), "token_type_embeddings.weight")?;
        let layer = |n: usize| {
            let vb = vb.pp(format!("encoder.layer.{n}"));
            let own = vb.pp("attention.self");
            let (q, k, v) = (
                matrix(&own.pp("query"), hidden, hidden)?,
                matrix(&own.pp("key"), hidden, hidden)?,
                matrix(&own.pp("value"), hidden, hidden)?,
            );
            Ok(LayerWeights {
                qkv: (Tensor::cat(&[q.0, k.0, v.0], 0)?, Tensor::cat(&[q.1, k.1, v.1], 0)?),
                out: matrix(&vb.pp("attention.output.dense"), hidden, hidden)?,
                attention_norm: norm(&vb.pp("attention.output.LayerNorm"), hidden)?,
                up: matrix(&vb.pp("intermediate.dense"), inner, hidden)?,
                down: matrix(&vb.pp("output.dense"), hidden, inner)?,
                norm: norm(&vb.pp("output.LayerNorm"), hidden)?,
            })
        };
        Ok(Weights {
            words: e.get((config.vocab_size, hidden), "word_embeddings.weight")?,
            positions: positions.broadcast_add(&types.narrow(0, 0, 1)?)?,
            norm: norm(&e.pp("LayerNorm"), hidden)?,
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?,
            inner,
            heads: config.num_attention_heads,
            epsilon: config.layer_norm_eps,
            activation,
        })
    }
}

/// A layer's matrix as its file has it: outputs x inputs.
fn matrix(vb: &VarBuilder<'_>, outputs: usize, inputs: usize) -> Result<Affine> {
    Ok((vb.get((outputs, inputs), "weight")?, vb.get(outputs, "bias")?))
}

/// Files that TensorFlow's were converted to have the older names.
fn norm(vb: &VarBuilder<'_>, width: usize) -> Result<Affine> {
    let named = |new: &str, old: &str| vb.get(width, new).or_else(|_| vb.get(width, old));
    Ok((named("weight", "gamma")?, named("bias", "beta")?))
}
