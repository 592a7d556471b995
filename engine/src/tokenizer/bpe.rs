//! Byte-pair encoding: words are spelled in bytes, and ranked merges join them.

use std::cmp::Reverse;

use hashbrown::HashMap;

use super::byte_alphabet::{byte_of, char_of};
use super::error::TokenizerError;
use super::merge::Merger;
use super::pretokenize::PreTokenizer;
use super::special_ids::RESTRICTED;
use super::vocab::Vocab;
use crate::gguf::Metadata;

const PRE_KEY: &str = "tokenizer.ggml.pre";
const MERGES_KEY: &str = "tokenizer.ggml.merges";

/// What a pair of tokens becomes, and how early.
#[derive(Clone, Copy)]
struct Merge {
    rank: u32,
    id: u32,
}

/// A BPE tokenizer without its special tokens.
pub(super) struct Bpe {
    pre: &'static PreTokenizer,
    /// The token of each byte. Real vocabularies lack some that their training text did not have.
    byte_ids: [Option<u32>; 256],
    merges: HashMap<(u32, u32), Merge>,
}

impl Bpe {
    pub(super) fn from_metadata(
        metadata: &Metadata,
        vocab: &Vocab,
    ) -> Result<Self, TokenizerError> {
        let name = metadata.require_str(PRE_KEY)?;
        let pre = PreTokenizer::by_name(name)
            .ok_or_else(|| TokenizerError::UnknownPre { pre: name.to_owned() })?;
        let mut byte_ids = [None; 256];
        for (byte, id) in (0..=u8::MAX).zip(&mut byte_ids) {
            *id = vocab.find(char_of(byte).encode_utf8(&mut [0; 4]));
        }
        let merges = read_merges(metadata.require_strings(MERGES_KEY)?, vocab)?;
        Ok(Self { pre, byte_ids, merges })
    }

    /// Whether texts start with the BOS token if the file does not say.
    pub(super) fn add_bos(&self) -> bool {
        self.pre.add_bos
    }

    /// Appends the ids of `text`, in which special tokens are not looked for.
    pub(super) fn encode(&self, vocab: &Vocab, text: &str, ids: &mut Vec<u32>) {
        let mut merger = Merger::new();
        let mut spelling = String::new();
        for word in self.pre.split(text) {
            if self.pre.ignore_merges {
                spelling.clear();
                spelling.extend(word.bytes().map(char_of));
                let whole = vocab.find(&spelling);
                if let Some(id) = whole.filter(|&id| !vocab.attributes(id).has_any(RESTRICTED)) {
                    ids.push(id);
                    continue;
                }
            }
            for (at, byte) in word.bytes().enumerate() {
                merger.push(at + 1, self.byte_ids[byte as usize]);
            }
            merger.run(
                |left, right| {
                    let merge = self.merges.get(&(left.id()?, right.id()?))?;
                    Some((Reverse(merge.rank), merge.id))
                },
                |symbol| ids.extend(symbol.id()),
            );
        }
    }
}

/// Appends the bytes that `spelling` stands for. A character outside the alphabet, which only a
/// token that no text encodes to can have, stands for itself.
pub(super) fn render(spelling: &str, bytes: &mut Vec<u8>) {
    for c in spelling.chars() {
        match byte_of(c) {
            Some(byte) => bytes.push(byte),
            None => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

/// Reads the merges; of two for one pair the first counts.
fn read_merges(
    entries: &[String],
    vocab: &Vocab,
) -> Result<HashMap<(u32, u32), Merge>, TokenizerError> {
    let mut merges = HashMap::with_capacity(entries.len());
    let mut joined = String::new();
    for (index, entry) in entries.iter().enumerate() {
        // A piece is at least one byte long and may itself be a space.
        let space = entry.bytes().skip(1).position(|byte| byte == b' ');
        let pieces = space.map(|before| (&entry[..before + 1], &entry[before + 2..]));
        let Some((left, right)) = pieces.filter(|(_, right)| !right.is_empty()) else {
            return Err(TokenizerError::Merge { index, merge: entry.clone() });
        };
        joined.clear();
        joined.push_str(left);
        joined.push_str(right);
        let id_of = |piece: &str| {
            vocab
                .find(piece)
                .ok_or_else(|| TokenizerError::MergePiece { index, piece: piece.to_owned() })
        };
        let merge = Merge { rank: index as u32, id: id_of(&joined)? };
        merges.entry((id_of(left)?, id_of(right)?)).or_insert(merge);
    }
    Ok(merges)
}
