//! The place in the data after a batch, and what has been counted up to there.

use serde::{Deserialize, Serialize};

/// A place in one source: the document that comes next.
///
/// Files and row groups are counted in the order in which the epoch visits them, so the same numbers
/// follow each other in any order. All of it is known without reading what comes before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// Passes over all files of the source that are complete.
    pub epoch: u64,
    /// File, from 0; the number of files at the end of the last epoch.
    pub shard: usize,
    /// Parquet row group inside the file, from 0; 0 in other formats.
    pub row_group: usize,
    /// Document inside the row group, or line of a JSON file, from 0.
    pub row: u64,
    /// Where that line starts in a JSON file that is not compressed; else 0.
    pub byte: u64,
    /// Documents used up of the shuffle window that begins at this place; 0 in file order.
    pub index: usize,
}

impl Cursor {
    /// The start of an epoch.
    pub(crate) fn epoch_start(epoch: u64) -> Self {
        Self {
            epoch,
            ..Self::default()
        }
    }
}

/// Where one source goes on, and what it gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourcePosition {
    /// Its next document. If a document or a window of documents is in progress: where that begins.
    pub cursor: Cursor,
    /// Tokens of all documents before `cursor`, whose shares follow `weights`.
    pub tokens_before: u64,
    /// Tokens handed out (end marks included, padding not).
    pub tokens: u64,
}

/// Everything needed to continue exactly after a batch, plus running totals since the start of the
/// run.
///
/// It holds for the same data, as [`crate::DataFingerprint`] tells, and for the same keys of `[data]`
/// that shape and order rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataPosition {
    /// The sources in the order of the config, one if they have no weights; empty at the start of
    /// the run.
    pub sources: Vec<SourcePosition>,
    /// `packing = "packed"`: tokens used of the document in progress, its end mark included.
    pub token_offset: usize,
    /// `packing = "best_fit"`: rows handed out of the window in progress.
    pub window_rows: usize,
    /// Documents handed out, in whole or in part.
    pub documents: u64,
    /// Real tokens handed out (end marks included, padding not).
    pub tokens: u64,
    /// Documents passed over because they are null, empty or too short to predict anything.
    pub skipped_documents: u64,
    /// Lines or rows passed over because they cannot be read (`on_bad_shard = "skip"`).
    pub bad_lines: u64,
    /// Files given up on (`on_bad_shard = "skip"`), once an epoch.
    pub bad_shards: u64,
    /// Tokens cut away: beyond `sequence_length` without packing; with packing lone end marks, which
    /// have nothing to predict: at most one at the end of data, with best fit one of a document.
    pub cut_tokens: u64,
    /// Padding handed out.
    pub padding_tokens: u64,
    /// FNV-1a (64 bit) over the four little-endian bytes of every real token handed out, in order.
    pub token_hash: u64,
}

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

impl Default for DataPosition {
    /// The start of the first epoch.
    fn default() -> Self {
        Self {
            sources: Vec::new(),
            token_offset: 0,
            window_rows: 0,
            documents: 0,
            tokens: 0,
            skipped_documents: 0,
            bad_lines: 0,
            bad_shards: 0,
            cut_tokens: 0,
            padding_tokens: 0,
            token_hash: FNV_OFFSET,
        }
    }
}

impl DataPosition {
    /// Complete passes over every source.
    pub fn epoch(&self) -> u64 {
        let epochs = self.sources.iter().map(|source| source.cursor.epoch);
        epochs.min().unwrap_or(0)
    }

    /// Padding among all positions handed out; 0 before the first.
    pub fn padding_ratio(&self) -> f64 {
        ratio(self.padding_tokens, self.tokens)
    }

    /// Cut tokens among all tokens of the documents passed; 0 before the first.
    pub fn cut_ratio(&self) -> f64 {
        ratio(self.cut_tokens, self.tokens)
    }

    /// Counts tokens that a row hands out.
    pub(crate) fn count_tokens(&mut self, ids: &[u32]) {
        self.tokens += ids.len() as u64;
        for byte in ids.iter().flat_map(|id| id.to_le_bytes()) {
            self.token_hash = (self.token_hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME);
        }
    }
}

fn ratio(lost: u64, kept: u64) -> f64 {
    lost as f64 / (lost + kept).max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_fnv_1a() {
        let mut position = DataPosition::default();
        // The published FNV-1a value of "foobar", of which 4 + 2 bytes are given as "foob" and, one
        // by one, "ar".
        position.count_tokens(&[u32::from_le_bytes(*b"foob")]);
        let hash_of_ar = b"ar".iter().fold(position.token_hash, |hash, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME)
        });
        assert_eq!(hash_of_ar, 0x8594_4171_f739_67e8);
        assert_eq!(position.tokens, 1);
    }

    #[test]
    fn survives_a_round_trip_through_json() {
        let position = DataPosition {
            sources: vec![SourcePosition::default(); 2],
            token_offset: 7,
            token_hash: u64::MAX - 1,
            ..DataPosition::default()
        };
        let json = serde_json::to_string(&position).unwrap();
        assert_eq!(
            serde_json::from_str::<DataPosition>(&json).unwrap(),
            position
        );
    }

    #[test]
    fn shares_are_of_what_was_there() {
        let position = DataPosition {
            tokens: 75,
            padding_tokens: 25,
            ..DataPosition::default()
        };
        let shares = |position: &DataPosition| (position.padding_ratio(), position.cut_ratio());
        assert_eq!(shares(&position), (0.25, 0.0));
        assert_eq!(shares(&DataPosition::default()), (0.0, 0.0));
    }
}
