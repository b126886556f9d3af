//! The kernels against plain loops, and the encoder on made-up weights against candle's.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;

use super::super::bert::Bert;
use super::super::weights::{BertConfig, Weights};
use super::*;

/// Numbers from -1 to 1 that a seed gives.
fn numbers_of(seed: u32, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).max(1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / u32::MAX as f32 * 2.0 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn near(found: f32, expect: f64, tolerance: f64) -> bool {
    (f64::from(found) - expect).abs() <= tolerance
}

#[test]
fn a_product_is_that_of_plain_loops() {
    for isa in Isa::available() {
        // Every size of tile, more than one block, and panels that are not full.
        for (rows, depth, columns) in
            [(1, 1, 1), (2, 7, 33), (3, 32, 32), (5, 128, 8), (11, 129, 40), (25, 300, 70), (0, 3, 3), (4, 3, 0)]
        {
            let (x_stride, out_stride) = (depth + 3, columns + 2);
            let x = numbers_of(1, rows * x_stride);
            let (matrix, bias) = (numbers_of(2, depth * columns), numbers_of(3, columns));
            let mut packed = Packed::new(isa);
            packed.fill(depth, columns, |row, column| matrix[row * columns + column]);
            packed.set_bias(&bias);
            let mut out = vec![7.0; rows * out_stride];
            kernel::product(isa, rows, &x, x_stride, &packed, &mut out, out_stride);
            for row in 0..rows {
                for column in 0..columns {
                    let term = |k: usize| f64::from(x[row * x_stride + k]) * f64::from(matrix[k * columns + column]);
                    let expect = f64::from(bias[column]) + (0..depth).map(term).sum::<f64>();
                    let found = out[row * out_stride + column];
                    assert!(near(found, expect, 1e-5), "{isa:?} {rows}x{depth}x{columns}: {found} {expect}");
                }
                let beside = &out[row * out_stride + columns..][..2];
                assert_eq!(beside, [7.0, 7.0], "{isa:?}: a column that is not its own");
            }
        }
    }
}

#[test]
fn a_row_of_a_product_does_not_depend_on_the_rows_beside_it() {
    for isa in Isa::available() {
        let (depth, columns) = (150, 50);
        let (x, matrix) = (numbers_of(1, 40 * depth), numbers_of(2, depth * columns));
        let mut packed = Packed::new(isa);
        packed.fill(depth, columns, |row, column| matrix[row * columns + column]);
        let mut all = vec![0.0; 40 * columns];
        kernel::product(isa, 40, &x, depth, &packed, &mut all, columns);
        for rows in 1..40 {
            let mut some = vec![0.0; rows * columns];
            kernel::product(isa, rows, &x[(40 - rows) * depth..], depth, &packed, &mut some, columns);
            assert_eq!(some, all[(40 - rows) * columns..], "{isa:?} {rows}");
        }
    }
}

/// The error function by its series, or beyond by its continued fraction.
fn erf(x: f64) -> f64 {
    if x < 0.0 {
        return -erf(-x);
    }
    if x < 3.0 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        return sum * 2.0 / std::f64::consts::PI.sqrt();
    }
    let fraction = (1..100).rev().fold(x, |below, n| x + f64::from(n) / 2.0 / below);
    1.0 - (-x * x).exp() / fraction / std::f64::consts::PI.sqrt()
}

#[test]
fn gelu_is_exact_to_what_f32_holds() {
    assert!((erf(1.0) - 0.842_700_792_949_714_9).abs() < 1e-15 && (erf(3.5) - 0.999_999_256_901_627_7).abs() < 1e-15);
    let x: Vec<f32> = (-90_000..=90_000).map(|n| n as f32 / 10_000.0).collect();
    for isa in Isa::available() {
        let (mut exact, mut by_tanh) = (x.clone(), x.clone());
        kernel::gelu(isa, &mut exact);
        kernel::gelu_tanh(isa, &mut by_tanh);
        for ((x, exact), by_tanh) in x.iter().zip(exact).zip(by_tanh) {
            let wide = f64::from(*x);
            let expect = wide * 0.5 * (1.0 + erf(wide / std::f64::consts::SQRT_2));
            // Two units in the last place of x, and next to nothing.
            assert!(near(exact, expect, 1e-7 + 2.4e-7 * wide.abs()), "{isa:?} {x}: {exact} {expect}");
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (wide + 0.044_715 * wide.powi(3));
            let expect = wide * 0.5 * (1.0 + inner.tanh());
            assert!(near(by_tanh, expect, 2e-7 + 3e-7 * wide.abs()), "{isa:?} {x}: {by_tanh} {expect}");
        }
    }
}

#[test]
fn softmax_and_norm_are_those_of_plain_loops() {
    for isa in Isa::available() {
        for columns in [1, 2, 15, 16, 17, 256] {
            let x: Vec<f32> = numbers_of(5, 3 * columns).iter().map(|x| x * 40.0).collect();
            let mut found = x.clone();
            kernel::softmax(isa, &mut found, columns);
            for (row, found) in x.chunks(columns).zip(found.chunks(columns)) {
                let total: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
                for (x, found) in row.iter().zip(found) {
                    assert!(near(*found, f64::from(*x).exp() / total, 1e-6), "{isa:?} {columns}");
                }
            }
            let (y, weight, bias) = (numbers_of(6, 3 * columns), numbers_of(7, columns), numbers_of(8, columns));
            let mut found = x.clone();
            kernel::add_norm(isa, &mut found, &y, &weight, &bias, 1e-5);
            for ((x, y), found) in x.chunks(columns).zip(y.chunks(columns)).zip(found.chunks(columns)) {
                let sum: Vec<f64> = x.iter().zip(y).map(|(x, y)| f64::from(*x) + f64::from(*y)).collect();
                let mean = sum.iter().sum::<f64>() / columns as f64;
                let variance = sum.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / columns as f64;
                for (n, s) in sum.iter().enumerate() {
                    let expect = (s - mean) / (variance + 1e-5).sqrt() * f64::from(weight[n]) + f64::from(bias[n]);
                    assert!(near(found[n], expect, 1e-4), "{isa:?} {columns}: {} {expect}", found[n]);
                }
            }
        }
    }
}

/// A model of odd measures: no width is a multiple of a register's.
fn odd_weights(activation: &str) -> Weights {
    let (vocabulary, hidden, inner, layers) = (50, 30, 50, 2);
    let config = BertConfig {
        model_type: "bert".into(),
        vocab_size: vocabulary,
        hidden_size: hidden,
        num_hidden_layers: layers,
        num_attention_heads: 3,
        intermediate_size: inner,
        hidden_act: activation.into(),
        max_position_embeddings: 64,
        type_vocab_size: 2,
        layer_norm_eps: 1e-12,
        position_embedding_type: None,
    };
    let mut tensors = HashMap::new();
    let mut add = |name: String, shape: &[usize]| {
        let numbers = numbers_of(tensors.len() as u32 + 1, shape.iter().product());
        tensors.insert(name, Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap());
    };
    for (name, rows) in [("word", vocabulary), ("position", 64), ("token_type", 2)] {
        add(format!("embeddings.{name}_embeddings.weight"), &[rows, hidden]);
    }
    add("embeddings.LayerNorm.gamma".into(), &[hidden]);
    add("embeddings.LayerNorm.beta".into(), &[hidden]);
    for layer in 0..layers {
        for (name, outputs, inputs) in [
            ("attention.self.query", hidden, hidden),
            ("attention.self.key", hidden, hidden),
            ("attention.self.value", hidden, hidden),
            ("attention.output.dense", hidden, hidden),
            ("intermediate.dense", inner, hidden),
            ("output.dense", hidden, inner),
        ] {
            add(format!("encoder.layer.{layer}.{name}.weight"), &[outputs, inputs]);
            add(format!("encoder.layer.{layer}.{name}.bias"), &[outputs]);
        }
        for name in ["attention.output", "output"] {
            add(format!("encoder.layer.{layer}.{name}.LayerNorm.weight"), &[hidden]);
            add(format!("encoder.layer.{layer}.{name}.LayerNorm.bias"), &[hidden]);
        }
    }
    Weights::read(&config, VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu)).unwrap()
}

#[test]
fn both_encoders_agree_for_every_activation_and_instruction_set() {
    let texts: Vec<Vec<u32>> = (0..40).map(|n| (0..n).map(|t| (t * 7 + n) % 50).collect()).collect();
    let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    for activation in ["gelu", "gelu_new", "relu"] {
        let weights = odd_weights(activation);
        let expect = Bert::new(&weights).unwrap().embed(&texts).unwrap();
        for isa in Isa::available() {
            let found = Encoder::with_isa(&weights, isa).unwrap().embed(&texts, &Precedence::default());
            assert_eq!(found.len(), expect.len());
            for (found, expect) in found.iter().zip(&expect) {
                let furthest = found.iter().zip(expect).map(|(f, e)| (f - e).abs()).fold(0.0, f32::max);
                assert!(furthest < 1e-4, "{activation} {isa:?}: {furthest}");
            }
        }
    }
}

#[test]
fn a_vector_is_the_same_to_the_last_bit_alone_and_beside_others() {
    let weights = odd_weights("gelu");
    let encoder = Encoder::new(&weights).unwrap();
    let texts: Vec<Vec<u32>> = (0..60).map(|n| (0..n % 30 + 1).map(|t| (t * 3 + n) % 50).collect()).collect();
    let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    let together = encoder.embed(&texts, &Precedence::default());
    for (text, vector) in texts.iter().zip(together) {
        assert_eq!(encoder.embed_one(text), vector);
    }
    assert_eq!(encoder.embed(&[], &Precedence::default()), Vec::<Vec<f32>>::new());
}
