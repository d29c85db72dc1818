//! Documents to token batches.
//!
//! Reads parquet and JSON lines, tokenizes on threads of its own, and hands out rows of plain
//! integers together with the position after each batch, from which a later loader continues bit
//! for bit. Knows neither Burn nor the model.
//!
//! The modules in the order of the data: sources, files on the network (`hub`), the file formats,
//! the stream over the files of a source, its shuffled windows, tokens, the mixture of sources, rows, batches.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod batches;
mod best_fit;
mod check;
mod config;
mod corpus;
mod documents;
mod encoder;
mod error;
mod fingerprint;
mod format;
mod hub;
mod input;
mod json_lines;
mod merges;
mod mixture;
mod parquet;
mod parquet_footer;
mod position;
mod prefetch;
mod prepare;
mod prepared;
mod random;
mod record;
mod sequences;
mod shuffle;
mod source;
mod split;
pub mod synthetic;
mod tokenizer;
mod tokenizer_training;
mod windows;
mod words;

pub use batches::{DataLoader, TokenBatch};
pub use check::{FileReport, check_files};
pub use config::{DataConfig, OnBadShard, OnDataEnd, Packing};
pub use error::{DataError, Place, Problem, ShardError, TokenizerError, Warning};
pub use fingerprint::{DataFingerprint, FileFingerprint};
pub use hub::{Hub, HubError, HubEvent, HubEvents, HubSettings, Retry, StopCheck, Token};
pub use position::{Cursor, DataPosition, SourcePosition};
pub use prepare::{Prepared, prepare};
pub use prepared::PreparedProblem;
pub use sequences::IGNORE_INDEX;
pub use shuffle::MAX_WINDOW_BYTES as SHUFFLE_WINDOW_BYTES;
pub use split::Split;
pub use tokenizer::Tokenizer;
pub use tokenizer_training::{TrainedTokenizer, train_tokenizer};
