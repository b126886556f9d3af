//! Embedding: the product dataflow's model, from the folder where it lies, over the texts that the dataflow's view makes.

use std::time::Instant;

use arrow::array::{Array, StringArray};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::recording::Recording;
use super::report::rounded;
use super::{Error, Report, Sample, Scratch, plain};
use crate::embed::{BatchStats, Embedder};

const MARK_TOKENS_PER_SECOND: f64 = 2_000.0;
const COSINE_MIN: f32 = 0.99999;
/// Texts that are embedded once more alone.
const ALONE: usize = 32;

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Texts to embed.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub texts: u32,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

pub(super) async fn run(options: &Options) -> Result<Report, Error> {
    let scratch = Scratch::new("embed")?;
    // Some products are not on sale, and have no text in the view.
    let products = 8 + options.texts as usize * 5 / 4;
    let recording = Recording::make(&scratch, options.seed, products, products).await?;
    let mut texts = texts(&recording).await?;
    vary(&mut StdRng::seed_from_u64(options.seed), &mut texts);
    texts.truncate(options.texts as usize);
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let config = recording.config.embed.clone();
    let embedder = tokio::task::block_in_place(|| Embedder::load(&config))?;
    tokio::task::block_in_place(|| measure(options, &embedder, &texts))
}

fn measure(options: &Options, embedder: &Embedder, texts: &[&str]) -> Result<Report, Error> {
    let mut report = Report::new("embed", options.seed);
    // The first batch pays for what is made once.
    embedder.embed(&texts[..texts.len().min(16)], &mut |_| ())?;
    let (mut tokens, mut padded, mut batches, mut embedded) = (0, 0, 0, 0);
    let started = Instant::now();
    let vectors = embedder.embed(texts, &mut |batch: BatchStats| {
        tokens += batch.tokens;
        padded += batch.padded_tokens;
        embedded += batch.texts;
        batches += 1;
        if started.elapsed().as_secs() / 5 > (started.elapsed() - batch.took).as_secs() / 5 {
            tell!("{embedded} of {} texts", texts.len());
        }
    })?;
    let took = started.elapsed().as_secs_f64();
    report.figure("texts", texts.len());
    report.figure("tokens", tokens);
    report.figure("batches", batches);
    report.figure("padding_ratio", rounded((padded - tokens) as f64 / padded.max(1) as f64));
    report.figure("texts_per_second", rounded(texts.len() as f64 / took));
    report.figure("tokens_per_second", rounded(tokens as f64 / took));
    let cosine = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
    let (mut lowest, mut alone) = (1.0_f32, Sample::default());
    for n in (0..texts.len()).step_by(texts.len().div_ceil(ALONE)) {
        let started = Instant::now();
        let vector = embedder.embed(&texts[n..=n], &mut |_| ())?.remove(0);
        alone.add(started.elapsed().as_secs_f64() * 1e3);
        lowest = lowest.min(cosine(&vector, &vectors[n]));
    }
    report.percentiles("one_text", &mut alone);
    report.figure("alone_cosine_min", f64::from(lowest));
    report.check(embedded == texts.len(), format!("{embedded} of {} texts were embedded", texts.len()));
    report.check(lowest >= COSINE_MIN, format!("a vector depends on its batch: the cosine to it alone is {lowest}"));
    let unequal = vectors.iter().filter(|v| (cosine(v, v) - 1.0).abs() > 1e-4 || v.len() != embedder.dimension());
    report.check(unequal.count() == 0, "vectors are not of length 1");
    report.figure("mark_tokens_per_second", MARK_TOKENS_PER_SECOND);
    report.figure("mark_met", tokens as f64 / took >= MARK_TOKENS_PER_SECOND);
    Ok(report)
}

/// The texts of the view's rows, in the order of their keys.
async fn texts(recording: &Recording) -> Result<Vec<String>, Error> {
    let view = recording.plan.batch_view(plain::tables(recording)?).await?;
    let text = view.column_by_name(&recording.config.index.text).and_then(|c| c.as_any().downcast_ref::<StringArray>());
    let text = text.ok_or("the view's text is not there")?;
    let mut texts: Vec<String> = text.iter().flatten().map(str::to_string).collect();
    texts.sort();
    Ok(texts)
}

/// Shuffles, and makes lengths as uneven as a shop's: some texts are a name alone, some go on and on.
fn vary(rng: &mut StdRng, texts: &mut [String]) {
    for n in (1..texts.len()).rev() {
        texts.swap(n, rng.random_range(0..=n));
    }
    let longer: Vec<String> = texts.to_vec();
    for text in texts.iter_mut() {
        match rng.random_range(0..10) {
            0 => text.truncate(text.find(". ").unwrap_or(text.len())),
            1..=2 => {
                for _ in 0..rng.random_range(1..4) {
                    text.push(' ');
                    text.push_str(&longer[rng.random_range(0..longer.len())]);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_vary_by_seed_alone() {
        let made = |seed| {
            let mut texts: Vec<String> = (0..200).map(|n| format!("Lamp {n}. Lights up.")).collect();
            vary(&mut StdRng::seed_from_u64(seed), &mut texts);
            texts
        };
        assert_eq!(made(3), made(3));
        assert_ne!(made(3), made(4));
        let lengths: std::collections::BTreeSet<usize> = made(3).iter().map(String::len).collect();
        assert!(lengths.len() > 10, "{lengths:?}");
    }
}
