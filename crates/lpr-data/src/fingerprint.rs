//! What the data is, so that a saved position is not used with other data.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::config::DataConfig;
use crate::error::DataError;
use crate::position::{Cursor, DataPosition, SourcePosition};
use crate::source::Shard;
use crate::tokenizer::{Tokenizer, hex};

/// How much of either end of a file goes into its hash. The end of a parquet file is its footer, the
/// end of a gzip file a checksum of all of it.
const HASHED_BYTES: u64 = 1 << 16;

/// Most differences that are listed one by one.
const MAX_LISTED: usize = 20;

/// One data file.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileFingerprint {
    /// Its name without folders, which may move.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 in hexadecimal of its size and its first and last 64 KiB; of a file on the network,
    /// the hash that its server lists.
    pub hash: String,
}

/// Everything that decides what a position means, apart from keys that must not change; empty
/// by default, before there is data.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataFingerprint {
    /// SHA-256 of the tokenizer, or `bytes`, and its padding id.
    pub tokenizer: String,
    /// The column or key that holds the text.
    pub text_column: String,
    /// The shares of the sources, as in the config.
    pub weights: Vec<f64>,
    /// The files of each source in order.
    pub sources: Vec<Vec<FileFingerprint>>,
}

impl DataFingerprint {
    /// Reads both ends of every file.
    pub(crate) fn new<'a>(
        config: &DataConfig,
        tokenizer: &Tokenizer,
        sources: impl Iterator<Item = &'a [Shard]>,
    ) -> Result<Self, DataError> {
        let files = |shards: &[Shard]| shards.iter().map(file_fingerprint).collect();
        Ok(Self {
            tokenizer: format!(
                "{}, padding {}",
                tokenizer.fingerprint(),
                tokenizer.pad_id()
            ),
            text_column: config.text_column.clone(),
            weights: config.weights.clone(),
            sources: sources.map(files).collect::<Result<_, _>>()?,
        })
    }

    /// SHA-256 in hexadecimal of the files with their column and the tokenizer.
    pub fn digest(&self) -> String {
        let mut hasher = Sha256::new();
        let mut add = |part: &str| {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        };
        add(&self.tokenizer);
        add(&self.text_column);
        for file in self.sources.iter().flatten() {
            add(&file.name);
            add(&file.hash);
        }
        hex(&hasher.finalize())
    }

    /// What is different now, one sentence each; nothing if a position of `self` holds for `now`.
    pub fn differences(&self, now: &Self) -> Vec<String> {
        let mut found = Vec::new();
        if self.tokenizer != now.tokenizer {
            found.push(format!(
                "the tokenizer: {} -> {}",
                self.tokenizer, now.tokenizer
            ));
        }
        if self.text_column != now.text_column {
            found.push(format!(
                "text_column: {:?} -> {:?}",
                self.text_column, now.text_column
            ));
        }
        if self.weights != now.weights {
            found.push(format!("weights: {:?} -> {:?}", self.weights, now.weights));
        }
        let (old, new) = (self.sources.concat(), now.sources.concat());
        let files = file_differences(&old, &new);
        if files.is_empty() && found.is_empty() && self != now {
            found.push("the order of the files".to_owned());
        }
        let num_hidden = files.len().saturating_sub(MAX_LISTED);
        found.extend(files.into_iter().take(MAX_LISTED));
        if num_hidden > 0 {
            found.push(format!("and {num_hidden} more"));
        }
        found
    }

    /// Where a run with the data of `self` at `position` goes on with the data of `now`.
    ///
    /// A source whose files are the same, or that has only other files after the one it reads and is
    /// not shuffled, goes on at its place. Any other one begins its next epoch. With another number
    /// of sources all begin anew. What is in progress, a document or a window of `best_fit`, is read
    /// again from its start, so tokens may come twice. All counts go on.
    pub(crate) fn moved_position(
        &self,
        position: &DataPosition,
        now: &Self,
        is_shuffled: bool,
    ) -> DataPosition {
        let mut moved = DataPosition {
            token_offset: 0,
            window_rows: 0,
            ..position.clone()
        };
        if self.sources.len() != now.sources.len() {
            moved.sources = Vec::new();
            return moved;
        }
        let sources = moved.sources.iter_mut();
        for (source, (old, new)) in sources.zip(self.sources.iter().zip(&now.sources)) {
            let num_read = old.len().min(source.cursor.shard + 1);
            let same_so_far = !is_shuffled && new.get(..num_read) == Some(&old[..num_read]);
            if old != new && !same_so_far {
                *source = SourcePosition {
                    cursor: Cursor::epoch_start(source.cursor.epoch + 1),
                    ..*source
                };
            }
        }
        moved
    }
}

fn file_fingerprint(shard: &Shard) -> Result<FileFingerprint, DataError> {
    let path = shard.path();
    let name = path.file_name().unwrap_or(path.as_os_str());
    let (bytes, hash) = match shard {
        Shard::File(path, _) => hash_ends(path).map_err(|error| DataError::Io {
            path: path.clone(),
            error,
        })?,
        Shard::Remote(_) | Shard::Synthetic => {
            let hash = shard.content_hash().unwrap_or_default();
            (shard.size()?, hash.to_owned())
        }
    };
    Ok(FileFingerprint {
        name: name.to_string_lossy().into_owned(),
        bytes,
        hash,
    })
}

/// Size of a file and hash of size and ends.
fn hash_ends(path: &Path) -> std::io::Result<(u64, String)> {
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    let mut hasher = Sha256::new();
    hasher.update(len.to_le_bytes());
    let mut bytes = Vec::new();
    file.by_ref().take(HASHED_BYTES).read_to_end(&mut bytes)?;
    let rest = len.saturating_sub(HASHED_BYTES);
    file.seek(SeekFrom::Start(len - rest.min(HASHED_BYTES)))?;
    file.take(HASHED_BYTES).read_to_end(&mut bytes)?;
    hasher.update(&bytes);
    Ok((len, hex(&hasher.finalize())))
}

/// What happened to the files, by name; of equal names the first stands for the first, and so on.
fn file_differences(old: &[FileFingerprint], new: &[FileFingerprint]) -> Vec<String> {
    let mut by_name: HashMap<&str, Vec<&FileFingerprint>> = HashMap::new();
    for file in new.iter().rev() {
        by_name.entry(&file.name).or_default().push(file);
    }
    let mut found = Vec::new();
    for file in old {
        let name = &file.name;
        match by_name.get_mut(name.as_str()).and_then(Vec::pop) {
            None => found.push(format!("{name} was removed")),
            Some(now) if now.bytes != file.bytes => {
                found.push(format!("{name}: {} bytes -> {}", file.bytes, now.bytes));
            }
            Some(now) if now.hash != file.hash => {
                found.push(format!("{name} has other content of the same size"));
            }
            Some(_) => {}
        }
    }
    for file in new {
        let rest = by_name.get_mut(file.name.as_str());
        if rest.is_some_and(|rest| rest.pop().is_some()) {
            found.push(format!("{} was added", file.name));
        }
    }
    found
}
