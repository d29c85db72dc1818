//! Files of prepared tokens: documents that were tokenized before, as `data prepare` writes them.
//!
//! A file is a safetensors file with two vectors of 32-bit integers: `tokens`, the documents one
//! after the other without end marks, and `ends`, where each of them ends. So they serve any packing
//! and row length, and any document is found in one step. Its metadata tell the tokenizer and the
//! sources.
//!
//! Files are read at given places, through a buffer, and not mapped into memory: mapping is unsafe
//! code, a file that is cut off while it is mapped kills the process, and a reader that goes from
//! front to back gains nothing from it.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::documents::shard_error;
use crate::error::{Place, Problem, ShardError};
use crate::format::Format;
use crate::input::{Input, reason};
use crate::record::{Content, Failure, Record};
use crate::source::Shard;
use crate::tokenizer::Tokenizer;

/// The value of `format` in the metadata.
pub(crate) const FORMAT: &str = "lpr-train prepared tokens 1";
/// Length of the header, padded with spaces, so that it can be written last.
pub(crate) const HEADER_BYTES: usize = 1016;
/// Where the tokens start: behind the header and its own length.
pub(crate) const DATA_START: u64 = 8 + HEADER_BYTES as u64;
/// Bytes of a token and of an end.
pub(crate) const WIDTH: u64 = 4;

/// Bytes read at a time.
const BUFFER_BYTES: u64 = 1 << 18;

/// What is wrong with a file of prepared tokens.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PreparedProblem {
    /// Not such a file, or a damaged one.
    #[error("is no intact file of prepared tokens ({0}); make it anew with `data prepare`")]
    Damaged(String),
    /// Made with another tokenizer.
    #[error(
        "was prepared with the tokenizer {prepared}, and the configured one is {configured}; set \
         data.tokenizer or prepare the sources again"
    )]
    OtherTokenizer {
        /// Fingerprint of the tokenizer that made the file.
        prepared: String,
        /// Fingerprint of the tokenizer in use.
        configured: String,
    },
    /// Made from other sources than its neighbours.
    #[error(
        "was prepared from the sources {this}, and {} from {other}; keep them in folders of their \
         own",
        neighbour.display()
    )]
    OtherSources {
        /// Fingerprint of the sources of the file.
        this: String,
        /// An earlier file in the same folder.
        neighbour: PathBuf,
        /// Fingerprint of the neighbour's sources.
        other: String,
    },
}

/// The header of a file, in the layout of safetensors.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Header {
    #[serde(rename = "__metadata__")]
    pub(crate) about: About,
    tokens: Vector,
    ends: Vector,
}

/// What the documents are; all values are text, as safetensors wants it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct About {
    pub(crate) format: String,
    /// Fingerprint of the tokenizer.
    pub(crate) tokenizer: String,
    /// Largest id of the tokenizer plus one.
    pub(crate) vocab_size: String,
    /// Fingerprint of the sources, text column and tokenizer.
    pub(crate) sources: String,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Vector {
    dtype: String,
    shape: [u64; 1],
    data_offsets: [u64; 2],
}

impl Vector {
    /// A vector of so many integers from a place of the data on; `None` if there is no such place.
    fn new(start: u64, len: u64) -> Option<Self> {
        Some(Self {
            dtype: "U32".to_owned(),
            shape: [len],
            data_offsets: [start, start.checked_add(len.checked_mul(WIDTH)?)?],
        })
    }
}

impl Header {
    /// The header of a file with so many tokens and documents; `None` if no file is that large.
    pub(crate) fn new(about: About, num_tokens: u64, num_documents: u64) -> Option<Self> {
        let tokens = Vector::new(0, num_tokens)?;
        let ends = Vector::new(tokens.data_offsets[1], num_documents)?;
        Some(Self {
            about,
            tokens,
            ends,
        })
    }

    /// Reads and checks the header against the length of the file.
    fn read(file: &Input) -> Result<Self, String> {
        let wanted = DATA_START.min(file.len()) as usize;
        let start = file.get_bytes(0, wanted);
        let start = start.map_err(|error| error.to_string())?;
        let len = start.first_chunk().map(|len| u64::from_le_bytes(*len));
        if start.len() as u64 != DATA_START || len != Some(HEADER_BYTES as u64) {
            return Err("it does not start like one".to_owned());
        }
        let header: Self =
            serde_json::from_slice(&start[8..]).map_err(|error| format!("header: {error}"))?;
        if header.about.format != FORMAT {
            return Err(format!("its format is {:?}", header.about.format));
        }
        let [num_tokens] = header.tokens.shape;
        let [num_documents] = header.ends.shape;
        let expected = Self::new(header.about.clone(), num_tokens, num_documents);
        let is_sound = expected.is_some_and(|expected| {
            (&expected.tokens, &expected.ends) == (&header.tokens, &header.ends)
        });
        if !is_sound {
            return Err("the places of its vectors contradict each other".to_owned());
        }
        let data_bytes = file.len() - DATA_START;
        if data_bytes != header.ends.data_offsets[1] {
            return Err(format!(
                "it has {data_bytes} bytes of data in place of {}",
                header.ends.data_offsets[1]
            ));
        }
        Ok(header)
    }
}

/// Part of a file in memory.
struct Buffer {
    file: Arc<Input>,
    start: u64,
    bytes: Bytes,
}

impl Buffer {
    fn new(file: &Arc<Input>) -> Self {
        Self {
            file: Arc::clone(file),
            start: 0,
            bytes: Bytes::new(),
        }
    }

    /// The integers at the given bytes of the file.
    fn integers(&mut self, range: Range<u64>) -> Result<impl Iterator<Item = u32>, ParquetError> {
        if range.start < self.start || range.end > self.start + self.bytes.len() as u64 {
            let len = (range.end - range.start).max(BUFFER_BYTES);
            let len = len.min(self.file.len().saturating_sub(range.start));
            self.bytes = self.file.get_bytes(range.start, len as usize)?;
            self.start = range.start;
        }
        let bytes = (range.start - self.start) as usize..(range.end - self.start) as usize;
        let bytes = self.bytes.get(bytes);
        let bytes = bytes.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        let (integers, _) = bytes.as_chunks();
        Ok(integers.iter().map(|bytes| u32::from_le_bytes(*bytes)))
    }
}

/// Reads one file of prepared tokens from a given document on.
pub(crate) struct PreparedReader {
    about: About,
    vocab_size: u32,
    num_tokens: u64,
    num_documents: u64,
    tokens: Buffer,
    ends: Buffer,
    /// The document that `next` yields.
    row: u64,
}

impl PreparedReader {
    /// Opens a file and checks its header; reading starts at document `row`.
    pub(crate) fn open(file: Input, row: u64) -> Result<Self, Failure> {
        let file = Arc::new(file);
        let damaged = |found| {
            let problem = Problem::Prepared(PreparedProblem::Damaged(found));
            (Place::File, reason(file.remote().as_ref(), problem))
        };
        let header = Header::read(&file).map_err(damaged)?;
        let vocab_size = header.about.vocab_size.parse();
        Ok(Self {
            vocab_size: vocab_size.map_err(|error| damaged(format!("vocab_size: {error}")))?,
            about: header.about,
            num_tokens: header.tokens.shape[0],
            num_documents: header.ends.shape[0],
            tokens: Buffer::new(&file),
            ends: Buffer::new(&file),
            row,
        })
    }

    pub(crate) fn num_documents(&self) -> u64 {
        self.num_documents
    }

    /// The next document, `None` at the end of the file.
    pub(crate) fn next(&mut self) -> Result<Option<Record>, Failure> {
        if self.row >= self.num_documents {
            return Ok(None);
        }
        let row = self.row;
        let content = self.document().map_err(|found| {
            let place = Place::Row { row_group: 0, row };
            let problem = Problem::Prepared(PreparedProblem::Damaged(found));
            (place, reason(self.tokens.file.remote().as_ref(), problem))
        })?;
        self.row += 1;
        Ok(Some(Record {
            row_group: 0,
            row,
            byte: 0,
            next_byte: 0,
            content,
        }))
    }

    fn document(&mut self) -> Result<Content, String> {
        let io = |error: ParquetError| error.to_string();
        let ends = DATA_START + self.num_tokens * WIDTH;
        let first = self.row.saturating_sub(1);
        let mut found = self
            .ends
            .integers(ends + first * WIDTH..ends + (self.row + 1) * WIDTH)
            .map_err(io)?
            .map(u64::from);
        let start = if self.row == 0 {
            0
        } else {
            found.next().unwrap_or(0)
        };
        let end = found.next().unwrap_or(0);
        if start >= end || end > self.num_tokens {
            return Err(format!(
                "the document is said to be the tokens {start} to {end} of {}",
                self.num_tokens
            ));
        }
        let place = DATA_START + start * WIDTH..DATA_START + end * WIDTH;
        let tokens: Vec<u32> = self.tokens.integers(place).map_err(io)?.collect();
        match tokens.iter().find(|&&id| id >= self.vocab_size) {
            Some(id) => Err(format!("id {id} in a vocabulary of {}", self.vocab_size)),
            None => Ok(Content::Tokens(tokens)),
        }
    }
}

/// Checks that the files of prepared tokens among `shards` were made with this tokenizer, and those
/// of one folder from the same sources. Files that cannot be opened are met again while reading.
pub(crate) fn check_prepared(shards: &[Shard], tokenizer: &Tokenizer) -> Result<(), ShardError> {
    let mut last: Option<(&Path, About)> = None;
    for shard in shards {
        if shard.format() != Some(Format::Prepared) {
            continue;
        }
        let path = shard.path();
        let opened = shard.look().map_err(|problem| (Place::File, problem));
        let about = match opened.and_then(|input| PreparedReader::open(input, 0)) {
            Ok(PreparedReader { about, .. }) => about,
            Err(failure @ (_, Problem::Remote(_))) => return Err(shard_error(shard, failure)),
            Err(_) => continue,
        };
        let problem = match &last {
            _ if about.tokenizer != tokenizer.fingerprint() => PreparedProblem::OtherTokenizer {
                prepared: about.tokenizer,
                configured: tokenizer.fingerprint().to_owned(),
            },
            Some((neighbour, other))
                if neighbour.parent() == path.parent() && other.sources != about.sources =>
            {
                PreparedProblem::OtherSources {
                    this: about.sources,
                    neighbour: neighbour.to_path_buf(),
                    other: other.sources.clone(),
                }
            }
            _ => {
                last = Some((path, about));
                continue;
            }
        };
        return Err(ShardError {
            path: path.to_owned(),
            place: Place::File,
            problem: Problem::Prepared(problem),
        });
    }
    Ok(())
}
