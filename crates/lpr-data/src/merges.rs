//! The merges of a byte-level BPE tokenizer, for words that no cache knows.
//!
//! Gives the ids that the `tokenizers` crate gives: the pair of the lowest rank is merged first, the
//! leftmost of equals. Short words need no heap and no list for that.

use std::borrow::Cow;
use std::collections::HashMap;

use ahash::RandomState;
use serde::Deserialize;

/// Longer words are left to the crate, whose time does not grow with their square.
pub(crate) const MAX_WORD_BYTES: usize = 48;

/// A pair of ids that has no merge.
const NONE: Merge = Merge {
    rank: u32::MAX,
    id: 0,
};

/// What a pair of ids becomes, and how early.
#[derive(Debug, Clone, Copy)]
struct Merge {
    rank: u32,
    id: u32,
}

/// All merges of a tokenizer.
pub(crate) struct Merges {
    /// The ids of the single bytes.
    bytes: [u32; 256],
    pairs: HashMap<(u32, u32), Merge, RandomState>,
}

/// The parts of a model that decide whether it can be treated here.
#[derive(Deserialize)]
struct Model<'a> {
    #[serde(borrow)]
    merges: Vec<Pair<'a>>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    ignore_merges: bool,
}

/// A merge as files write it: in one text with a space, or as two.
#[derive(Deserialize)]
#[serde(untagged)]
enum Pair<'a> {
    Text(#[serde(borrow)] Cow<'a, str>),
    Texts(#[serde(borrow)] [Cow<'a, str>; 2]),
}

impl Merges {
    /// The merges of a model in JSON; `None` if it is more than bytes and merges.
    pub(crate) fn of(
        model: &str,
        byte_chars: &[char; 256],
        id_of: impl Fn(&str) -> Option<u32>,
    ) -> Option<Self> {
        let model: Model = serde_json::from_str(model).ok()?;
        let is_set = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        let is_plain = !is_set(&model.continuing_subword_prefix)
            && !is_set(&model.end_of_word_suffix)
            && !model.ignore_merges;
        if !is_plain {
            return None;
        }
        let mut bytes = [0; 256];
        for (byte, character) in bytes.iter_mut().zip(byte_chars) {
            *byte = id_of(character.encode_utf8(&mut [0; 4]))?;
        }
        let mut pairs = HashMap::with_capacity_and_hasher(model.merges.len(), RandomState::new());
        for (rank, pair) in model.merges.iter().enumerate() {
            let (left, right) = match pair {
                Pair::Text(text) => text.split_once(' ')?,
                Pair::Texts([left, right]) => (left.as_ref(), right.as_ref()),
            };
            let merge = Merge {
                rank: u32::try_from(rank).ok()?,
                id: id_of(&[left, right].concat())?,
            };
            pairs.insert((id_of(left)?, id_of(right)?), merge);
        }
        Some(Self { bytes, pairs })
    }

    /// Appends the ids of a word of at most [`MAX_WORD_BYTES`].
    pub(crate) fn encode(&self, word: &[u8], ids: &mut Vec<u32>) {
        let mut symbols = [0; MAX_WORD_BYTES];
        let mut merges = [NONE; MAX_WORD_BYTES];
        let mut len = word.len();
        for (symbol, &byte) in symbols.iter_mut().zip(word) {
            *symbol = self.bytes[usize::from(byte)];
        }
        // `merges[at]` is that of the symbols `at` and `at + 1`.
        for at in 1..len {
            merges[at - 1] = self.find(symbols[at - 1], symbols[at]);
        }
        while let Some(at) = first_lowest(&merges[..len.saturating_sub(1)]) {
            symbols[at] = merges[at].id;
            symbols.copy_within(at + 2..len, at + 1);
            merges.copy_within(at + 1..len, at);
            len -= 1;
            if at > 0 {
                merges[at - 1] = self.find(symbols[at - 1], symbols[at]);
            }
            if at + 1 < len {
                merges[at] = self.find(symbols[at], symbols[at + 1]);
            }
        }
        ids.extend_from_slice(&symbols[..len]);
    }

    fn find(&self, left: u32, right: u32) -> Merge {
        self.pairs.get(&(left, right)).copied().unwrap_or(NONE)
    }
}

/// The place of the merge with the lowest rank; `None` if there is none at all.
fn first_lowest(merges: &[Merge]) -> Option<usize> {
    let ranks = merges.iter().map(|merge| merge.rank).enumerate();
    let (place, rank) = ranks.min_by_key(|&(_, rank)| rank)?;
    (rank != NONE.rank).then_some(place)
}
