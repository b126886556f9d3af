//! Batches: how many texts go through the model at once, by their tokens, by the memory that is free, and by what has failed for want of it.
//!
//! The invariant: every text is in exactly one batch that went through; a batch that ran out of memory is tried again at half its size, and what
//! is left of the texts comes in batches no larger.

use std::ops::Range;

use candle_core::Error;

/// Tokens from which a larger batch makes a GPU no faster, and only keeps a query waiting.
const GPU_MAX_TOKENS: usize = 16_384;

/// The part of the free memory that a batch may take; the rest is for what the driver keeps for itself, and for pieces that do not fit.
const USABLE: f64 = 0.8;

/// What the memory that one batch takes depends on. The weights are not in it: they are loaded before the free memory is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Footprint {
    pub hidden: usize,
    /// Numbers a token between the two products of a layer's feed-forward part.
    pub inner: usize,
    pub heads: usize,
}

impl Footprint {
    /// Bytes that a batch takes at its worst moment, padding included. Layers come one after the other and each leaves only its output, so
    /// their number does not count; what lives at once within one of them does.
    pub fn bytes(&self, texts: usize, longest: usize) -> usize {
        // Input, queries-keys-values, each of the three once more by head, the context twice; two copies of the scores.
        let attention = 9 * self.hidden + 2 * self.heads * longest;
        // Input, output and the sum of both; the inner numbers before and after the bias or the activation.
        let feed_forward = 3 * self.hidden + 2 * self.inner;
        texts * longest * attention.max(feed_forward) * size_of::<f32>()
    }

    /// Texts of a batch whose longest has so many tokens, on a GPU with so much memory free.
    pub fn max_texts(&self, longest: usize, free_bytes: usize) -> usize {
        let fit = (free_bytes as f64 * USABLE) as usize / self.bytes(1, longest).max(1);
        fit.min(GPU_MAX_TOKENS / longest.max(1)).max(1)
    }
}

/// Texts of these lengths, cut into runs of at most `max_tokens` (one text may have more).
pub(super) fn cut(lengths: impl Iterator<Item = usize>, max_tokens: usize) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut tokens = 0;
    for (text, length) in lengths.enumerate() {
        match runs.last_mut() {
            Some(run) if tokens + length <= max_tokens => run.end = text + 1,
            _ => {
                runs.push(text..text + 1);
                tokens = 0;
            }
        }
        tokens += length;
    }
    runs
}

/// Puts texts, the longest first, through `run` in batches of at most `max_texts(tokens of the longest)`.
pub(super) fn in_batches(
    texts: &[usize],
    tokens: impl Fn(usize) -> usize,
    max_texts: impl Fn(usize) -> usize,
    mut run: impl FnMut(&[usize]) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut rest = texts;
    // Padded tokens that did not yet run out of memory.
    let mut possible = usize::MAX;
    while let Some(first) = rest.first() {
        let longest = tokens(*first).max(1);
        let fit = max_texts(longest).min(possible / longest).clamp(1, rest.len());
        let (batch, later) = rest.split_at(fit);
        match run(batch) {
            Ok(()) => rest = later,
            Err(e) if fit > 1 && is_out_of_memory(&e) => {
                tracing::warn!(texts = fit, longest, "the device is out of memory; batches are halved");
                possible = fit / 2 * longest;
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// The driver's and the libraries' codes come as text, wrapped by candle in one way or another.
fn is_out_of_memory(error: &Error) -> bool {
    let text = error.to_string().to_ascii_lowercase();
    ["out of memory", "out_of_memory", "alloc_failed"].iter().any(|code| text.contains(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINILM: Footprint = Footprint { hidden: 384, inner: 1536, heads: 12 };

    fn out_of_memory() -> Error {
        // As candle hands on what the driver says.
        Error::Cuda("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")".into()).bt()
    }

    /// Runs texts of these lengths on a device that holds so many padded tokens; the sizes of the batches that were tried, failed ones negative.
    fn run(lengths: &[usize], holds: usize, max_texts: usize) -> (Result<(), Error>, Vec<i64>, Vec<usize>) {
        let texts: Vec<usize> = (0..lengths.len()).collect();
        let (mut tried, mut done) = (Vec::new(), Vec::new());
        let result = in_batches(
            &texts,
            |t| lengths[t],
            |_| max_texts,
            |batch| {
                let fits = batch.len() * lengths[batch[0]] <= holds;
                tried.push(if fits { batch.len() as i64 } else { -(batch.len() as i64) });
                if !fits {
                    return Err(out_of_memory());
                }
                done.extend_from_slice(batch);
                Ok(())
            },
        );
        (result, tried, done)
    }

    #[test]
    fn out_of_memory_halves_the_batch_and_all_later_ones() {
        let (result, tried, done) = run(&[10; 20], 30, 8);
        assert!(result.is_ok());
        assert_eq!(tried, [-8, -4, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]);
        assert_eq!(done, (0..20).collect::<Vec<_>>());
    }

    #[test]
    fn shorter_texts_come_in_larger_batches_within_what_is_possible() {
        let (result, tried, done) = run(&[100, 100, 10, 10, 10, 10, 10], 100, 64);
        assert!(result.is_ok());
        assert_eq!(tried, [-7, -3, 1, 1, 5]);
        assert_eq!(done, (0..7).collect::<Vec<_>>());
    }

    #[test]
    fn one_text_that_does_not_fit_fails_and_so_does_another_error() {
        let (result, tried, _) = run(&[10, 10], 5, 8);
        assert!(is_out_of_memory(&result.unwrap_err()));
        assert_eq!(tried, [-2, -1]);
        let mut tries = 0;
        let result = in_batches(
            &[0, 1, 2, 3],
            |_| 1,
            |_| 4,
            |_| {
                tries += 1;
                Err(Error::Cuda("DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, \"illegal\")".into()))
            },
        );
        assert!(result.is_err() && tries == 1);
    }

    #[test]
    fn runs_hold_what_fits_and_a_text_that_does_not_is_alone() {
        let check = |lengths: &[usize], expect: &[Range<usize>]| assert_eq!(cut(lengths.iter().copied(), 10), expect);
        check(&[], &[]);
        check(&[11, 4, 6, 1, 10], &[0..1, 1..3, 3..4, 4..5]);
        check(&[0, 0, 10, 0, 1], &[0..4, 4..5]);
    }

    #[test]
    fn the_estimate_grows_with_what_it_depends_on() {
        // By hand: 9 * 384 + 2 * 12 * 256 = 9,600 numbers a token, more than the 4,224 of the feed-forward part.
        assert_eq!(MINILM.bytes(1, 256), 256 * 9_600 * 4);
        // Short texts: 3,456 + 2 * 12 * 8 = 3,648 numbers of the attention are fewer than 4,224.
        assert_eq!(MINILM.bytes(10, 8), 10 * 8 * 4_224 * 4);
        assert!(MINILM.bytes(2, 64) > MINILM.bytes(1, 64) && MINILM.bytes(1, 128) > 2 * MINILM.bytes(1, 64));
    }

    #[test]
    fn batches_are_sized_by_free_memory() {
        const GIB: usize = 1 << 30;
        for longest in [8, 64, 256, 512] {
            let texts = MINILM.max_texts(longest, GIB / 4);
            assert!(MINILM.bytes(texts, longest) <= GIB / 5, "{longest}");
            assert!(texts == GPU_MAX_TOKENS / longest || MINILM.bytes(texts + 1, longest) > GIB / 5, "{longest}");
        }
        // A quarter of a GiB is what limits long texts, 16 GiB limit nothing, and no memory at all still tries one text.
        assert!(MINILM.max_texts(512, GIB / 4) < GPU_MAX_TOKENS / 512);
        assert_eq!(MINILM.max_texts(512, 16 * GIB), GPU_MAX_TOKENS / 512);
        assert_eq!(MINILM.max_texts(512, 0), 1);
    }
}
