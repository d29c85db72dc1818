//! The place in the data after a batch, and what has been counted up to there.

use serde::{Deserialize, Serialize};

use crate::documents::Cursor;

/// Everything needed to continue exactly after a batch, plus running totals since the start of the
/// run.
///
/// The place is that of the next document, or of the document in progress if `token_offset` is not
/// 0. It holds for the same files, tokenizer, `text_column`, `packing` and `on_bad_shard`;
/// [`crate::DataLoader::fingerprint`] tells whether files and tokenizer are the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataPosition {
    /// Passes over all files that are complete.
    pub epoch: u64,
    /// Index in the sorted list of files; the number of files at the very end of the data.
    pub shard: usize,
    /// Parquet row group inside the file; 0 in other formats.
    pub row_group: usize,
    /// Document inside the row group, or line of a JSON file, from 0.
    pub row: u64,
    /// Tokens of that document that are used up, its end mark included.
    pub token_offset: usize,
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
    /// Tokens cut away: beyond `sequence_length` without packing; with packing at most one end
    /// mark, at the end of data.
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
            epoch: 0,
            shard: 0,
            row_group: 0,
            row: 0,
            token_offset: 0,
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
    pub(crate) fn cursor(&self) -> Cursor {
        Cursor {
            epoch: self.epoch,
            shard: self.shard,
            row_group: self.row_group,
            row: self.row,
        }
    }

    pub(crate) fn set_cursor(&mut self, cursor: Cursor) {
        self.epoch = cursor.epoch;
        self.shard = cursor.shard;
        self.row_group = cursor.row_group;
        self.row = cursor.row;
    }

    /// Whether no document of the current epoch has been looked at.
    pub(crate) fn is_epoch_start(&self) -> bool {
        self.token_offset == 0
            && self.cursor()
                == Cursor {
                    epoch: self.epoch,
                    ..Cursor::default()
                }
    }

    pub(crate) fn count_tokens(&mut self, ids: &[u32]) {
        self.tokens += ids.len() as u64;
        for byte in ids.iter().flat_map(|id| id.to_le_bytes()) {
            self.token_hash = (self.token_hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME);
        }
    }
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
}
