//! Which tokens start a text, end it, or end a generation.
//!
//! Files name few of these tokens by key, so the rest are found by their well-known spellings, as
//! the reference implementation does. The first spelling in a list wins.

use super::error::TokenizerError;
use super::vocab::{Attributes, Vocab};
use crate::gguf::Metadata;

const BOS_KEY: &str = "tokenizer.ggml.bos_token_id";
const EOS_KEY: &str = "tokenizer.ggml.eos_token_id";
const UNKNOWN_KEY: &str = "tokenizer.ggml.unknown_token_id";
const ADD_BOS_KEY: &str = "tokenizer.ggml.add_bos_token";
const ADD_EOS_KEY: &str = "tokenizer.ggml.add_eos_token";

/// A part that a token plays: the key that names it, how it is spelled where no key does, and
/// whether it ends a generation.
struct Part {
    keys: &'static [&'static str],
    spellings: &'static [&'static str],
    ends_generation: bool,
}

/// The end of a turn: the first part in [`PARTS`].
const END_OF_TURN: usize = 0;

const PARTS: [Part; 8] = [
    Part {
        keys: &["tokenizer.ggml.eot_token_id"],
        spellings: &[
            "<|eot_id|>",
            "<|im_end|>",
            "<|end|>",
            "<end_of_turn>",
            "<|endoftext|>",
            "<|end_of_text|>",
            "<EOT>",
            "_<EOT>",
            "[EOT]",
            "<｜end▁of▁sentence｜>",
            "<end_of_utterance>",
        ],
        ends_generation: true,
    },
    Part {
        keys: &["tokenizer.ggml.eom_token_id"],
        spellings: &["<|eom_id|>"],
        ends_generation: true,
    },
    Part {
        keys: &["tokenizer.ggml.fim_pre_token_id", "tokenizer.ggml.prefix_token_id"],
        spellings: &[
            "<|fim_prefix|>",
            "<fim-prefix>",
            "<fim_prefix>",
            "<｜fim▁begin｜>",
            "<PRE>",
            "▁<PRE>",
            "<|code_prefix|>",
            "<|prefix|>",
        ],
        ends_generation: false,
    },
    Part {
        keys: &["tokenizer.ggml.fim_suf_token_id", "tokenizer.ggml.suffix_token_id"],
        spellings: &[
            "<|fim_suffix|>",
            "<fim-suffix>",
            "<fim_suffix>",
            "<｜fim▁hole｜>",
            "<SUF>",
            "▁<SUF>",
            "<|code_suffix|>",
            "<|suffix|>",
        ],
        ends_generation: false,
    },
    Part {
        keys: &["tokenizer.ggml.fim_mid_token_id", "tokenizer.ggml.middle_token_id"],
        spellings: &[
            "<|fim_middle|>",
            "<fim-middle>",
            "<fim_middle>",
            "<｜fim▁end｜>",
            "<MID>",
            "▁<MID>",
            "<|code_middle|>",
            "<|middle|>",
        ],
        ends_generation: false,
    },
    Part {
        keys: &["tokenizer.ggml.fim_pad_token_id"],
        spellings: &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"],
        ends_generation: true,
    },
    Part {
        keys: &["tokenizer.ggml.fim_rep_token_id"],
        spellings: &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"],
        ends_generation: true,
    },
    Part {
        keys: &["tokenizer.ggml.fim_sep_token_id"],
        spellings: &["<|file_sep|>"],
        ends_generation: true,
    },
];

/// Spellings that end a generation wherever a vocabulary has them.
const ENDS: [&str; 22] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

/// The tokens with a part to play, and whether BOS and EOS frame every text.
pub(super) struct SpecialIds {
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) eot: Option<u32>,
    pub(super) unknown: Option<u32>,
    pub(super) add_bos: bool,
    pub(super) add_eos: bool,
    /// The tokens that end a generation, ascending.
    pub(super) ends: Vec<u32>,
}

impl SpecialIds {
    /// Finds the tokens, and marks those found by their spelling as control tokens: they are not
    /// text, whatever type the file gives them. `add_bos` holds if the file does not say.
    pub(super) fn find(
        metadata: &Metadata,
        vocab: &mut Vocab,
        add_bos: bool,
    ) -> Result<Self, TokenizerError> {
        let mut ids = Self {
            bos: id_under(metadata, vocab, BOS_KEY)?,
            eos: id_under(metadata, vocab, EOS_KEY)?,
            eot: None,
            unknown: id_under(metadata, vocab, UNKNOWN_KEY)?,
            add_bos: metadata.bool(ADD_BOS_KEY)?.unwrap_or(add_bos),
            add_eos: metadata.bool(ADD_EOS_KEY)?.unwrap_or(false),
            ends: Vec::new(),
        };
        for (index, part) in PARTS.iter().enumerate() {
            let id = part.find(metadata, vocab)?;
            if index == END_OF_TURN {
                ids.eot = id;
            }
            ids.ends.extend(id.filter(|_| part.ends_generation));
        }
        for spelling in ENDS {
            if let Some(id) = vocab.find(spelling) {
                vocab.mark_control(id);
                ids.ends.push(id);
            }
        }
        ids.ends.extend(ids.eos);
        ids.ends.sort_unstable();
        ids.ends.dedup();
        ids.check()?;
        Ok(ids)
    }

    fn check(&self) -> Result<(), TokenizerError> {
        for (needed, id, flag, key) in [
            (self.add_bos, self.bos, ADD_BOS_KEY, BOS_KEY),
            (self.add_eos, self.eos, ADD_EOS_KEY, EOS_KEY),
        ] {
            if needed && id.is_none() {
                return Err(TokenizerError::NoSpecialId { flag, key });
            }
        }
        Ok(())
    }
}

impl Part {
    /// The token that plays this part. A later key, being the older one, overrides an earlier one.
    fn find(&self, metadata: &Metadata, vocab: &mut Vocab) -> Result<Option<u32>, TokenizerError> {
        let mut named = None;
        for key in self.keys {
            named = id_under(metadata, vocab, key)?.or(named);
        }
        if named.is_some() {
            return Ok(named);
        }
        let found = self.spellings.iter().find_map(|spelling| vocab.find(spelling));
        if let Some(id) = found {
            vocab.mark_control(id);
        }
        Ok(found)
    }
}

/// The token id under `key`, if the file has the key.
fn id_under(
    metadata: &Metadata,
    vocab: &Vocab,
    key: &'static str,
) -> Result<Option<u32>, TokenizerError> {
    let Some(id) = metadata.u64(key)? else { return Ok(None) };
    match u32::try_from(id) {
        Ok(small) if (small as usize) < vocab.len() => Ok(Some(small)),
        _ => Err(TokenizerError::SpecialId { key, id, len: vocab.len() }),
    }
}

/// Whether white space after special tokens is dropped: Phi-3's tokens were added that way, and
/// files say so by nothing but the model's name.
pub(super) fn strips_space_after_special(metadata: &Metadata) -> Result<bool, TokenizerError> {
    let name = metadata.str("general.name")?.unwrap_or_default().to_ascii_lowercase();
    Ok(name.contains("phi-3") || name.contains("phi3"))
}

/// The special tokens of Phi-3 that keep the white space after them all the same.
pub(super) const KEEPS_SPACE_AFTER: [&str; 3] = ["<unk>", "<s>", "<|endoftext|>"];

/// The tokens that are parsed from text only where the text's author may write them.
pub(super) const RESTRICTED: Attributes = Attributes::CONTROL.or(Attributes::UNKNOWN);
