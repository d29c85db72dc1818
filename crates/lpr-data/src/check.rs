//! Reads every document of some files and says per file what is there and what is wrong.

use serde::Serialize;

use crate::documents::{ShardReader, shard_error};
use crate::error::{DataError, Problem, ShardError};
use crate::hub::Hub;
use crate::position::Cursor;
use crate::prepared::check_prepared;
use crate::record::Content;
use crate::source::{Shard, resolve};
use crate::split::Split;
use crate::tokenizer::Tokenizer;

/// What one file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileReport {
    /// The file as found, or `builtin:synthetic`.
    pub path: String,
    /// Documents with text; if the file breaks off, those before the break.
    pub documents: u64,
    /// Null or empty texts.
    pub skipped: u64,
    /// Lines or rows that cannot be read.
    pub bad_lines: u64,
    /// Size of all texts, in bytes of UTF-8; four for each prepared token.
    pub bytes: u64,
    /// Tokens of all texts without end marks, if a tokenizer was given.
    pub tokens: Option<u64>,
    /// The first thing that is wrong, with its place, and what to do.
    pub error: Option<String>,
}

/// Reads every document of the sources. A bad file is reported and does not stop the others; a file
/// without a single document is an error in its report. `builtin:synthetic` stands for its training
/// split. Of a file on the network that is not in the cache only the text is fetched, and not kept.
///
/// # Errors
/// A source that yields no file, a text the tokenizer refuses, a network that fails.
pub fn check_files(
    sources: &[String],
    text_column: &str,
    tokenizer: Option<&Tokenizer>,
    hub: &Hub,
) -> Result<Vec<FileReport>, DataError> {
    let hub = hub.separate(Some(0));
    let (shards, _) = resolve(sources, &hub)?;
    let check = |shard| check_shard(shard, text_column, tokenizer);
    shards.iter().map(check).collect()
}

fn check_shard(
    shard: &Shard,
    text_column: &str,
    tokenizer: Option<&Tokenizer>,
) -> Result<FileReport, DataError> {
    let mut report = FileReport {
        path: shard.path().to_string_lossy().into_owned(),
        documents: 0,
        skipped: 0,
        bad_lines: 0,
        bytes: 0,
        tokens: tokenizer.map(|_| 0),
        error: None,
    };
    let mut reader =
        match ShardReader::open(shard, Split::Train, text_column, None, Cursor::default()) {
            Ok(reader) => reader,
            Err(failure @ (_, Problem::Remote(_))) => {
                return Err(shard_error(shard, failure).into());
            }
            Err(failure) => {
                report.error = Some(shard_error(shard, failure).to_string());
                return Ok(report);
            }
        };
    let mut first_error: Option<ShardError> = tokenizer
        .and_then(|tokenizer| check_prepared(std::slice::from_ref(shard), tokenizer).err());
    loop {
        match reader.next() {
            Ok(None) => break,
            Ok(Some(record)) => match record.content {
                Content::Text(text) => {
                    report.documents += 1;
                    report.bytes += text.len() as u64;
                    if let (Some(tokens), Some(tokenizer)) = (&mut report.tokens, tokenizer) {
                        *tokens += tokenizer.encode(&text)?.len() as u64;
                    }
                }
                Content::Tokens(ids) => {
                    report.documents += 1;
                    report.bytes += size_of_val(ids.as_slice()) as u64;
                    report.tokens = report.tokens.map(|tokens| tokens + ids.len() as u64);
                }
                Content::NoText => report.skipped += 1,
                Content::Bad(place, problem) => {
                    report.bad_lines += 1;
                    first_error.get_or_insert_with(|| shard_error(shard, (place, problem)));
                }
            },
            Err(failure @ (_, Problem::Remote(_))) => {
                return Err(shard_error(shard, failure).into());
            }
            Err(failure) => {
                first_error.get_or_insert_with(|| shard_error(shard, failure));
                break;
            }
        }
    }
    report.error = match first_error {
        Some(error) => Some(error.to_string()),
        None if report.documents == 0 => Some(format!("{}: holds no document", report.path)),
        None => None,
    };
    Ok(report)
}
