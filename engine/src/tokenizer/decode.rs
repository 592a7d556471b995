//! From ids back to text, one token at a time.

use super::error::TokenizerError;
use super::{RenderSpecial, Tokenizer};

/// Turns ids into text as they come, and never emits part of a character: the bytes of one that is
/// not complete yet are held back.
///
/// What the calls return is, put together, the lossy UTF-8 decoding of the tokens' bytes: an
/// invalid sequence becomes U+FFFD once it is certain that nothing can complete it.
pub struct Decoder<'t> {
    tokenizer: &'t Tokenizer,
    special: RenderSpecial,
    /// Whether the next token is the first one of a text.
    at_start: bool,
    /// The bytes of an incomplete character, at most 3 between calls.
    held: Vec<u8>,
}

impl<'t> Decoder<'t> {
    /// A decoder for tokens that continue a text, as generated ones continue the prompt.
    pub fn new(tokenizer: &'t Tokenizer, special: RenderSpecial) -> Self {
        Self { tokenizer, special, at_start: false, held: Vec::new() }
    }

    /// A decoder for tokens from the start of a text, which drops the space that the tokenizer put
    /// in front of it.
    pub fn at_start(tokenizer: &'t Tokenizer, special: RenderSpecial) -> Self {
        Self { at_start: true, ..Self::new(tokenizer, special) }
    }

    /// Takes the next token and returns the characters that are complete with it, often none.
    ///
    /// # Errors
    /// [`TokenizerError::TokenId`]; the decoder is then as it was before.
    pub fn push(&mut self, id: u32) -> Result<String, TokenizerError> {
        self.tokenizer.render(id, self.special, self.at_start, &mut self.held)?;
        self.at_start = false;
        Ok(self.take_complete())
    }

    /// Whether bytes of an incomplete character are being held back.
    pub fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    /// Ends the text: returns U+FFFD if an incomplete character is held back, else nothing. The
    /// decoder can go on with another text that continues this one.
    pub fn finish(&mut self) -> String {
        let rest = String::from_utf8_lossy(&self.held).into_owned();
        self.held.clear();
        rest
    }

    /// Removes from `held` what more bytes cannot change.
    fn take_complete(&mut self) -> String {
        let mut text = String::with_capacity(self.held.len());
        let mut kept = 0;
        for chunk in self.held.utf8_chunks() {
            text.push_str(chunk.valid());
            let end_of_chunk = chunk.valid().len() + chunk.invalid().len();
            if kept + end_of_chunk == self.held.len() && is_incomplete(chunk.invalid()) {
                kept += chunk.valid().len();
                break;
            }
            if !chunk.invalid().is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
            kept += end_of_chunk;
        }
        self.held.drain(..kept);
        text
    }
}

/// Whether `bytes` are the start of a character and lack only its end.
fn is_incomplete(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}
