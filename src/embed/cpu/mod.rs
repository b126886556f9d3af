//! The CPU's encoder: BERT over texts of unequal length laid end to end, so that nothing is padded, with the products of `kernel`.
//!
//! The invariant: a text's vector is the same to the last bit whatever texts are beside it. Threads share nothing but the weights: each takes
//! some texts through all layers.

mod kernel;
mod lanes;
#[cfg(test)]
mod tests;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use candle_core::{Result, Tensor};

use self::kernel::Packed;
use self::lanes::Isa;
use super::batch;
use super::precedence::Precedence;
use super::weights::{Activation, Affine, LayerWeights, Weights};

/// Tokens that one thread takes through the layers at once: enough to be worth reading the weights for, and few enough that what lives between
/// two products stays in a second-level cache.
const MAX_TOKENS: usize = 192;
/// Below, reading the weights costs more than a second thread brings.
const MIN_TOKENS: usize = 48;

pub(super) struct Encoder {
    isa: Isa,
    threads: usize,
    scratch: Mutex<Vec<Scratch>>,
    hidden: usize,
    heads: usize,
    epsilon: f32,
    activation: Activation,
    words: Vec<f32>,
    positions: Vec<f32>,
    norm: Norm,
    layers: Vec<Layer>,
}

struct Norm {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

struct Layer {
    /// Queries (divided by the root of a head's width), keys and values.
    qkv: Packed,
    out: Packed,
    attention_norm: Norm,
    up: Packed,
    down: Packed,
    norm: Norm,
}

/// The memory of one thread's calls, kept from one to the next.
#[derive(Default)]
struct Scratch {
    x: Vec<f32>,
    /// What is added to `x` next.
    y: Vec<f32>,
    /// Queries, keys and values of the tokens; then the inner numbers of the feed-forward part.
    wide: Vec<f32>,
    context: Vec<f32>,
    scores: Vec<f32>,
    panels: Option<(Packed, Packed)>,
}

impl Encoder {
    pub fn new(weights: &Weights) -> Result<Encoder> {
        Self::with_isa(weights, Isa::available()[0])
    }

    fn with_isa(weights: &Weights, isa: Isa) -> Result<Encoder> {
        let hidden = weights.words.dim(1)?;
        let layers = weights.layers.iter().map(|l| Layer::new(l, hidden, hidden / weights.heads, isa));
        Ok(Encoder {
            isa,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            scratch: Mutex::default(),
            hidden,
            heads: weights.heads,
            epsilon: weights.epsilon as f32,
            activation: weights.activation,
            words: numbers(&weights.words)?,
            positions: numbers(&weights.positions)?,
            norm: Norm::new(&weights.norm)?,
            layers: layers.collect::<Result<_>>()?,
        })
    }

    /// The vectors of texts, given as token ids, on all processors; gives way to queries.
    pub fn embed(&self, texts: &[&[u32]], precedence: &Precedence) -> Vec<Vec<f32>> {
        let tokens: usize = texts.iter().map(|t| t.len()).sum();
        let share = tokens.div_ceil(self.threads).clamp(MIN_TOKENS, MAX_TOKENS);
        let runs = batch::cut(texts.iter().map(|t| t.len()), share);
        let done: Vec<Mutex<Vec<Vec<f32>>>> = runs.iter().map(|_| Mutex::default()).collect();
        let next = AtomicUsize::new(0);
        let work = || {
            let mut since = Instant::now();
            let mut between = || {
                precedence.give_way(since.elapsed());
                since = Instant::now();
            };
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                let Some(run) = runs.get(n) else { break };
                let vectors = self.run(&texts[run.clone()], &mut between);
                *done[n].lock().expect("no holder of this lock panics") = vectors;
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..self.threads.min(runs.len()) {
                // Without it there is a thread fewer, and the work is done all the same.
                let _ = std::thread::Builder::new().name("embed".into()).spawn_scoped(scope, work);
            }
            work();
        });
        done.into_iter().flat_map(|run| run.into_inner().expect("no holder of this lock panics")).collect()
    }

    /// The vector of one text, on the calling thread, at once.
    pub fn embed_one(&self, text: &[u32]) -> Vec<f32> {
        self.run(&[text], &mut || ()).swap_remove(0)
    }

    /// Takes texts through the layers, on the calling thread; `between` is called before each of them.
    fn run(&self, texts: &[&[u32]], between: &mut dyn FnMut()) -> Vec<Vec<f32>> {
        let kept = self.scratch.lock().expect("no holder of this lock panics").pop();
        let mut scratch = kept.unwrap_or_default();
        let vectors = self.run_in(&mut scratch, texts, between);
        self.scratch.lock().expect("no holder of this lock panics").push(scratch);
        vectors
    }

    fn run_in(&self, scratch: &mut Scratch, texts: &[&[u32]], between: &mut dyn FnMut()) -> Vec<Vec<f32>> {
        let tokens: usize = texts.iter().map(|t| t.len()).sum();
        let Scratch { x, y, .. } = scratch;
        x.clear();
        y.clear();
        for text in texts {
            for (position, id) in text.iter().enumerate() {
                x.extend_from_slice(&self.words[*id as usize * self.hidden..][..self.hidden]);
                y.extend_from_slice(&self.positions[position * self.hidden..][..self.hidden]);
            }
        }
        self.norm.add(self.isa, x, y, self.epsilon);
        for layer in &self.layers {
            between();
            self.layer(layer, texts, tokens, scratch);
        }
        let mut rest = scratch.x.as_slice();
        let vector = |text: &&[u32]| {
            let (own, later) = rest.split_at(text.len() * self.hidden);
            rest = later;
            self.mean(own)
        };
        texts.iter().map(vector).collect()
    }

    fn layer(&self, layer: &Layer, texts: &[&[u32]], tokens: usize, scratch: &mut Scratch) {
        let (isa, hidden) = (self.isa, self.hidden);
        let qkv = space(&mut scratch.wide, tokens * 3 * hidden);
        kernel::product(isa, tokens, &scratch.x, hidden, &layer.qkv, qkv, 3 * hidden);
        let context = space(&mut scratch.context, tokens * hidden);
        let panels = scratch.panels.get_or_insert_with(|| (Packed::new(isa), Packed::new(isa)));
        let mut first = 0;
        // A tokenizer that adds nothing makes nothing of an empty text; its vector is zero.
        for text in texts.iter().filter(|t| !t.is_empty()) {
            let end = first + text.len();
            let (qkv, context) =
                (&qkv[first * 3 * hidden..end * 3 * hidden], &mut context[first * hidden..end * hidden]);
            self.attention(text.len(), qkv, panels, &mut scratch.scores, context);
            first = end;
        }
        let y = space(&mut scratch.y, tokens * hidden);
        kernel::product(isa, tokens, context, hidden, &layer.out, y, hidden);
        layer.attention_norm.add(isa, &mut scratch.x, y, self.epsilon);
        let inner = layer.up.columns();
        let up = space(&mut scratch.wide, tokens * inner);
        kernel::product(isa, tokens, &scratch.x, hidden, &layer.up, up, inner);
        match self.activation {
            Activation::Gelu => kernel::gelu(isa, up),
            Activation::GeluTanh => kernel::gelu_tanh(isa, up),
            Activation::Relu => up.iter_mut().for_each(|x| *x = x.max(0.0)),
        }
        kernel::product(isa, tokens, up, inner, &layer.down, y, hidden);
        layer.norm.add(isa, &mut scratch.x, y, self.epsilon);
    }

    /// One text's attention, head by head.
    fn attention(
        &self,
        tokens: usize,
        qkv: &[f32],
        (keys, values): &mut (Packed, Packed),
        scores: &mut Vec<f32>,
        context: &mut [f32],
    ) {
        let (hidden, width) = (self.hidden, self.hidden / self.heads);
        let scores = space(scores, tokens * tokens);
        for head in (0..hidden).step_by(width) {
            keys.fill(width, tokens, |row, token| qkv[token * 3 * hidden + hidden + head + row]);
            values.fill(tokens, width, |token, column| qkv[token * 3 * hidden + 2 * hidden + head + column]);
            kernel::product(self.isa, tokens, &qkv[head..], 3 * hidden, keys, scores, tokens);
            kernel::softmax(self.isa, scores, tokens);
            kernel::product(self.isa, tokens, scores, tokens, values, &mut context[head..], hidden);
        }
    }

    /// The mean over a text's tokens, of length 1.
    fn mean(&self, rows: &[f32]) -> Vec<f32> {
        let mut mean = vec![0.0; self.hidden];
        for row in rows.chunks_exact(self.hidden) {
            for (sum, x) in mean.iter_mut().zip(row) {
                *sum += x;
            }
        }
        // Whatever the number of tokens is: it is gone with the length.
        let length = mean.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-12);
        for x in &mut mean {
            *x /= length;
        }
        mean
    }
}

impl Layer {
    fn new(weights: &LayerWeights, hidden: usize, width: usize, isa: Isa) -> Result<Layer> {
        let scale = 1.0 / (width as f32).sqrt();
        Ok(Layer {
            qkv: packed(&weights.qkv, isa, |output| if output < hidden { scale } else { 1.0 })?,
            out: packed(&weights.out, isa, |_| 1.0)?,
            attention_norm: Norm::new(&weights.attention_norm)?,
            up: packed(&weights.up, isa, |_| 1.0)?,
            down: packed(&weights.down, isa, |_| 1.0)?,
            norm: Norm::new(&weights.norm)?,
        })
    }
}

impl Norm {
    fn new((weight, bias): &Affine) -> Result<Norm> {
        Ok(Norm { weight: numbers(weight)?, bias: numbers(bias)? })
    }

    fn add(&self, isa: Isa, x: &mut [f32], y: &[f32], epsilon: f32) {
        kernel::add_norm(isa, x, y, &self.weight, &self.bias, epsilon);
    }
}

/// The first `length` numbers of a buffer that only grows.
fn space(buffer: &mut Vec<f32>, length: usize) -> &mut [f32] {
    if buffer.len() < length {
        buffer.resize(length, 0.0);
    }
    &mut buffer[..length]
}

/// A matrix of outputs x inputs, each output scaled.
fn packed((matrix, bias): &Affine, isa: Isa, scale: impl Fn(usize) -> f32) -> Result<Packed> {
    let (outputs, inputs) = matrix.dims2()?;
    let (matrix, bias) = (numbers(matrix)?, numbers(bias)?);
    let mut packed = Packed::new(isa);
    packed.fill(inputs, outputs, |input, output| matrix[output * inputs + input] * scale(output));
    let bias: Vec<f32> = bias.iter().enumerate().map(|(output, b)| b * scale(output)).collect();
    packed.set_bias(&bias);
    Ok(packed)
}

fn numbers(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}
