//! Perplexity as llama-perplexity defines it.
//!
//! The whole text is tokenised once and cut into windows. Where the model begins a text with BOS,
//! each window's first token is replaced by it. Of a window of c tokens the positions c/2 to
//! c − 2 are scored, each by how well it predicts the token after it; the first half is context.

use crate::base::BaseError;
use crate::logits::log_sum_exp;
use aios_engine::tokenizer::{ParseSpecial, Tokenizer};
use aios_engine::{EngineError, Executor, Want};
use aios_residency::Phase;
use sha2::{Digest, Sha256};

/// Tokens of the smallest window.
pub const WINDOW_MIN: usize = 8;

/// Why a text could not be scored.
#[derive(Debug, thiserror::Error)]
pub enum PerplexityError {
    /// There are too few tokens.
    #[error(
        "the text has {tokens} tokens, too few for a window of {window}; \
         give a longer text or a smaller -c"
    )]
    TextTooShort {
        /// Tokens of the text, BOS counted.
        tokens: usize,
        /// Tokens of a window.
        window: usize,
    },
    /// The window leaves too little to score.
    #[error("a window of {0} tokens is too small; give {WINDOW_MIN} or more with -c")]
    WindowTooSmall(usize),
    /// The model could not be run.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Saved logits could not be written or used.
    #[error(transparent)]
    Base(#[from] BaseError),
}

/// A text cut into windows.
#[derive(Clone, Debug)]
pub struct Windows {
    /// \[windows\]\[window\]
    tokens: Vec<u32>,
    window: usize,
}

impl Windows {
    /// The windows of `window` tokens of `text`; what is left over at its end is not scored.
    /// Spellings of control tokens in the text are plain text.
    ///
    /// # Errors
    /// [`PerplexityError::TextTooShort`], [`PerplexityError::WindowTooSmall`].
    pub fn of_text(
        tokenizer: &Tokenizer,
        text: &str,
        window: usize,
    ) -> Result<Self, PerplexityError> {
        let bos = tokenizer.bos().filter(|_| tokenizer.add_bos());
        let mut tokens: Vec<u32> = bos.into_iter().collect();
        tokens.extend(tokenizer.encode(text, ParseSpecial::No));
        Self::of_tokens(tokens, bos, window)
    }

    /// The windows of `tokens`, the first token of each replaced by `bos` if there is one.
    ///
    /// # Errors
    /// As [`Windows::of_text`].
    pub fn of_tokens(
        mut tokens: Vec<u32>,
        bos: Option<u32>,
        window: usize,
    ) -> Result<Self, PerplexityError> {
        if window < WINDOW_MIN {
            return Err(PerplexityError::WindowTooSmall(window));
        }
        if tokens.len() < window {
            return Err(PerplexityError::TextTooShort { tokens: tokens.len(), window });
        }
        tokens.truncate(tokens.len() / window * window);
        if let Some(bos) = bos {
            tokens.iter_mut().step_by(window).for_each(|first| *first = bos);
        }
        Ok(Self { tokens, window })
    }

    /// Tokens of a window.
    pub const fn window(&self) -> usize {
        self.window
    }

    /// Windows.
    pub const fn count(&self) -> usize {
        self.tokens.len() / self.window
    }

    /// Positions that are scored, in all windows.
    pub const fn scored(&self) -> usize {
        self.count() * (self.window - 1 - self.window / 2)
    }

    /// SHA-256 over the tokens of all windows as little-endian u32.
    pub fn sha256(&self) -> [u8; 32] {
        let mut digest = Sha256::new();
        self.tokens.iter().for_each(|id| digest.update(id.to_le_bytes()));
        digest.finalize().into()
    }
}

/// A position that is scored.
#[derive(Clone, Copy, Debug)]
pub struct Scored<'a> {
    /// The number of its window.
    pub window: usize,
    /// The token that does follow.
    pub target: u32,
    /// The logits, \[vocab\].
    pub logits: &'a [f32],
    /// ln Σ exp(logit).
    pub lse: f64,
}

impl Scored<'_> {
    /// −ln of the probability of the token that does follow.
    pub fn loss(&self) -> f64 {
        self.lse - f64::from(self.logits[self.target as usize])
    }
}

/// Runs every window and hands each scored position to `sink`, in order. The context of
/// `executor` must hold a window. Only a few positions' logits are in memory at a time.
///
/// # Errors
/// Those of [`Executor::forward`], and what `sink` returns.
pub fn evaluate(
    executor: &mut Executor,
    windows: &Windows,
    sink: &mut dyn FnMut(Scored<'_>) -> Result<(), PerplexityError>,
) -> Result<(), PerplexityError> {
    for (window, tokens) in windows.tokens.chunks_exact(windows.window).enumerate() {
        let first = tokens.len() / 2;
        executor.truncate(0);
        executor.forward(&tokens[..first], Phase::Prefill, Want::None, &mut |_, _| Ok(()))?;
        // The engine's sink knows the engine's errors only; another one is kept beside it.
        let mut failure = None;
        let scored = &tokens[first..tokens.len() - 1];
        let run = executor.forward(scored, Phase::Prefill, Want::All, &mut |position, logits| {
            let (target, lse) = (tokens[position + 1], log_sum_exp(logits));
            sink(Scored { window, target, logits, lse }).map_err(|error| {
                failure = Some(error);
                EngineError::Cancelled
            })
        });
        if let Some(error) = failure {
            return Err(error);
        }
        run?;
    }
    Ok(())
}

/// The losses of scored positions, summed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Losses {
    sum: f64,
    squares: f64,
    count: usize,
}

impl Losses {
    /// Adds the loss of a position.
    pub fn add(&mut self, loss: f64) {
        self.sum += loss;
        self.squares += loss * loss;
        self.count += 1;
    }

    /// Positions added.
    pub const fn count(&self) -> usize {
        self.count
    }

    /// exp of the mean loss; NaN if there is none.
    pub fn perplexity(&self) -> f64 {
        libm::exp(self.sum / self.count as f64)
    }

    /// The standard error of the perplexity: that of the mean loss times the perplexity, as the
    /// losses' errors propagate to first order. 0 if there are fewer than two positions.
    pub fn standard_error(&self) -> f64 {
        let n = self.count as f64;
        let mean = self.sum / n;
        let variance = (self.squares / n - mean * mean).max(0.0);
        if self.count < 2 { 0.0 } else { (variance / (n - 1.0)).sqrt() * self.perplexity() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_begin_with_bos_and_drop_the_rest() {
        let tokens: Vec<u32> = (100..127).collect();
        let plain = Windows::of_tokens(tokens.clone(), None, 8).expect("windows");
        assert_eq!((plain.count(), plain.window(), plain.scored()), (3, 8, 9));
        assert_eq!(plain.tokens, tokens[..24]);
        let framed = Windows::of_tokens(tokens, Some(1), 8).expect("windows");
        let begins: Vec<u32> = framed.tokens.iter().copied().step_by(8).collect();
        assert_eq!(begins, [1, 1, 1]);
        assert_eq!(framed.tokens[1..8], plain.tokens[1..8]);
        assert_ne!(framed.sha256(), plain.sha256());
    }

    #[test]
    fn what_leaves_nothing_to_score_is_refused() {
        let short = Windows::of_tokens(vec![1; 8], None, 9).expect_err("too short");
        assert!(short.to_string().contains("8 tokens, too few for a window of 9"), "{short}");
        let small = Windows::of_tokens(vec![1; 99], None, 7).expect_err("too small");
        assert!(small.to_string().contains("8 or more with -c"), "{small}");
    }

    #[test]
    fn perplexity_and_its_error_of_known_losses() {
        let mut losses = Losses::default();
        [1.0, 2.0, 3.0, 6.0].into_iter().for_each(|loss| losses.add(loss));
        // Mean 3, mean of squares 12.5, variance 3.5; 3.5 / 3 below the root.
        let perplexity = libm::exp(3.0);
        assert!((losses.perplexity() / perplexity - 1.0).abs() < 1e-12);
        let error = (3.5f64 / 3.0).sqrt() * perplexity;
        assert!((losses.standard_error() / error - 1.0).abs() < 1e-12);
        let mut same = Losses::default();
        (0..5).for_each(|_| same.add(0.7));
        assert!(same.standard_error() < 1e-7);
    }
}
