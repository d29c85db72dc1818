//! All files of a source as one stream of documents that can start anywhere.
//!
//! Applies `on_bad_shard`, the order of files and row groups, and the end of an epoch; knows nothing
//! of tokens.

use std::sync::Arc;

use crate::config::OnBadShard;
use crate::error::{DataError, Place, Problem, ShardError, Warning};
use crate::format::Format;
use crate::json_lines::JsonLinesReader;
use crate::parquet::ParquetReader;
use crate::position::Cursor;
use crate::prepared::PreparedReader;
use crate::random::{key, permutation};
use crate::record::{Content, Failure, Record};
use crate::source::Shard;
use crate::split::Split;
use crate::synthetic;

/// A document as its file holds it.
#[derive(Debug)]
pub(crate) enum Body {
    Text(String),
    /// Tokenized before.
    Tokens(Vec<u32>),
}

impl Body {
    /// Size in memory, in bytes.
    pub(crate) fn size(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Tokens(tokens) => size_of_val(tokens.as_slice()),
        }
    }
}

/// What the stream yields; `T` is the [`Body`], later its tokens.
#[derive(Debug)]
pub(crate) enum Event<T> {
    Document(T),
    /// A null or empty text.
    NoText,
    /// `on_bad_shard = "skip"`: a line or row that cannot be read. The warning comes with the first
    /// of a file.
    BadLine(Option<Warning>),
    /// `on_bad_shard = "skip"`: a file that cannot be read from here on.
    BadShard(Warning),
    EpochEnd,
}

/// An event and where the stream goes on after it.
#[derive(Debug)]
pub(crate) struct Item<T> {
    /// Place of the document itself.
    pub(crate) at: Cursor,
    /// Place of whatever comes next.
    pub(crate) next: Cursor,
    pub(crate) event: Event<T>,
}

/// Everything about a stream that does not change while it is read.
#[derive(Debug, Clone)]
pub(crate) struct StreamOptions {
    pub(crate) shards: Arc<[Shard]>,
    pub(crate) split: Split,
    pub(crate) text_column: String,
    pub(crate) on_bad_shard: OnBadShard,
    pub(crate) repeat: bool,
    pub(crate) shuffle: Option<Shuffle>,
}

/// How the order of the documents changes from epoch to epoch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shuffle {
    /// From the seed and the source.
    pub(crate) key: u64,
    /// Documents among which the order is drawn.
    pub(crate) window: usize,
}

impl StreamOptions {
    /// The files in the order in which an epoch visits them.
    fn shard_order(&self, epoch: u64) -> Vec<usize> {
        let num_shards = self.shards.len();
        match self.shuffle {
            Some(shuffle) => permutation(num_shards, key(&[shuffle.key, epoch])),
            None => (0..num_shards).collect(),
        }
    }
}

/// One file of any format, open for reading.
pub(crate) enum ShardReader {
    Parquet(Box<ParquetReader>),
    JsonLines(Box<JsonLinesReader>),
    Prepared(Box<PreparedReader>),
    Synthetic { split: Split, index: u64 },
}

impl ShardReader {
    /// Opens a file and checks its schema; reading starts at the place of `start` in it, row groups
    /// in the order of the file, or in the one that `shuffle_key` gives.
    pub(crate) fn open(
        shard: &Shard,
        split: Split,
        text_column: &str,
        shuffle_key: Option<u64>,
        start: Cursor,
    ) -> Result<Self, Failure> {
        let Some(format) = shard.format() else {
            let index = start.row;
            return Ok(Self::Synthetic { split, index });
        };
        let input = shard.open().map_err(|problem| (Place::File, problem))?;
        Ok(match format {
            Format::Parquet => Self::Parquet(Box::new(ParquetReader::open(
                input,
                text_column,
                shuffle_key,
                start.row_group,
                start.row,
            )?)),
            Format::JsonLines => Self::JsonLines(Box::new(JsonLinesReader::open(
                input,
                text_column,
                start.row,
                start.byte,
            )?)),
            Format::Prepared => Self::Prepared(Box::new(PreparedReader::open(input, start.row)?)),
        })
    }

    /// Whether the file certainly has no document, as far as its start or footer tells.
    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::Parquet(reader) => reader.num_rows() == 0,
            Self::JsonLines(reader) => reader.is_empty(),
            Self::Prepared(reader) => reader.num_documents() == 0,
            Self::Synthetic { .. } => false,
        }
    }

    /// The next record, `None` at the end of the file.
    pub(crate) fn next(&mut self) -> Result<Option<Record>, Failure> {
        match self {
            Self::Parquet(reader) => reader.next(),
            Self::JsonLines(reader) => reader.next(),
            Self::Prepared(reader) => reader.next(),
            Self::Synthetic { split, index } => {
                let row = *index;
                *index += 1;
                Ok((row < synthetic::num_documents(*split)).then(|| Record {
                    row_group: 0,
                    row,
                    byte: 0,
                    next_byte: 0,
                    content: Content::Text(synthetic::document(*split, row).text),
                }))
            }
        }
    }
}

/// Opens every file on disk once, so that a bad footer or schema is found before training starts.
/// Files on the network would have to be fetched; they are checked when their turn comes.
///
/// # Errors
/// The first file that cannot be opened, unless bad files are to be skipped; those are met again
/// while reading.
pub(crate) fn check_openable(options: &StreamOptions) -> Result<Vec<Warning>, DataError> {
    let mut warnings = Vec::new();
    for shard in options.shards.iter().filter(|shard| !shard.is_remote()) {
        let start = Cursor::default();
        match ShardReader::open(shard, options.split, &options.text_column, None, start) {
            Ok(reader) if reader.is_empty() => warnings.push(Warning::EmptyShard {
                path: shard.path().to_owned(),
            }),
            Err(failure) if options.on_bad_shard == OnBadShard::Fail => {
                return Err(shard_error(shard, failure).into());
            }
            Ok(_) | Err(_) => {}
        }
    }
    Ok(warnings)
}

/// Names the file of a failure.
pub(crate) fn shard_error(shard: &Shard, (place, problem): (Place, Problem)) -> ShardError {
    ShardError {
        path: shard.path().to_owned(),
        place,
        problem,
    }
}

/// The stream of all documents of a source.
pub(crate) struct Documents {
    options: StreamOptions,
    /// Place of the next item.
    cursor: Cursor,
    /// The files in the order of the epoch of `cursor`.
    order: Vec<usize>,
    reader: Option<ShardReader>,
    /// Whether the current file has already had a warning about a bad line.
    warned: bool,
    ended: bool,
}

impl Documents {
    /// A stream whose first item is the one at `start`.
    pub(crate) fn new(options: StreamOptions, start: Cursor) -> Self {
        Self {
            order: options.shard_order(start.epoch),
            options,
            cursor: start,
            reader: None,
            warned: false,
            ended: false,
        }
    }

    /// The place of the next item.
    pub(crate) fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// The next item; `None` after the end of the last epoch.
    ///
    /// # Errors
    /// `on_bad_shard = "fail"`: a file or record that cannot be read.
    pub(crate) fn next(&mut self) -> Result<Option<Item<Body>>, DataError> {
        if self.ended {
            return Ok(None);
        }
        while self.cursor.shard < self.order.len() {
            match self.read_record() {
                Ok(Some(record)) => return self.record_item(record).map(Some),
                Ok(None) => self.next_shard(),
                Err(failure) => {
                    let error = shard_error(self.shard(), failure);
                    // What the network does says nothing about the file, so it is never skipped.
                    let is_network = matches!(error.problem, Problem::Remote(_));
                    if is_network || self.options.on_bad_shard == OnBadShard::Fail {
                        return Err(error.into());
                    }
                    let at = self.cursor;
                    self.next_shard();
                    return Ok(Some(
                        self.item(at, Event::BadShard(Warning::ShardSkipped(error))),
                    ));
                }
            }
        }
        let at = self.cursor;
        if self.options.repeat {
            self.cursor = Cursor::epoch_start(at.epoch + 1);
            self.order = self.options.shard_order(self.cursor.epoch);
        } else {
            self.ended = true;
        }
        Ok(Some(self.item(at, Event::EpochEnd)))
    }

    /// The file that `cursor` is in.
    fn shard(&self) -> &Shard {
        &self.options.shards[self.order[self.cursor.shard]]
    }

    fn read_record(&mut self) -> Result<Option<Record>, Failure> {
        if self.reader.is_none() {
            let cursor = self.cursor;
            let shard_key =
                |shuffle: Shuffle| key(&[shuffle.key, cursor.epoch, cursor.shard as u64]);
            self.reader = Some(ShardReader::open(
                self.shard(),
                self.options.split,
                &self.options.text_column,
                self.options.shuffle.map(shard_key),
                cursor,
            )?);
            self.fetch_ahead();
        }
        self.reader.as_mut().expect("opened above").next()
    }

    /// Starts to fetch the file after the one that is read.
    fn fetch_ahead(&self) {
        let next = self.cursor.shard + 1;
        let (shards, repeat) = (&self.options.shards, self.options.repeat);
        let next = match self.order.get(next) {
            Some(&index) => Some(index),
            None if repeat => self
                .options
                .shard_order(self.cursor.epoch + 1)
                .first()
                .copied(),
            None => None,
        };
        if let Some(index) = next {
            shards[index].fetch_ahead();
        }
    }

    fn record_item(&mut self, record: Record) -> Result<Item<Body>, DataError> {
        let at = Cursor {
            row_group: record.row_group,
            row: record.row,
            byte: record.byte,
            ..self.cursor
        };
        self.cursor = Cursor {
            row: at.row + 1,
            byte: record.next_byte,
            ..at
        };
        let event = match record.content {
            Content::Text(text) => Event::Document(Body::Text(text)),
            Content::Tokens(tokens) => Event::Document(Body::Tokens(tokens)),
            Content::NoText => Event::NoText,
            Content::Bad(place, problem) => {
                let error = shard_error(self.shard(), (place, problem));
                if self.options.on_bad_shard == OnBadShard::Fail {
                    return Err(error.into());
                }
                let is_first = !std::mem::replace(&mut self.warned, true);
                Event::BadLine(is_first.then_some(Warning::LineSkipped(error)))
            }
        };
        Ok(self.item(at, event))
    }

    fn next_shard(&mut self) {
        self.cursor = Cursor {
            shard: self.cursor.shard + 1,
            ..Cursor::epoch_start(self.cursor.epoch)
        };
        self.reader = None;
        self.warned = false;
    }

    fn item(&self, at: Cursor, event: Event<Body>) -> Item<Body> {
        let next = self.cursor;
        Item { at, next, event }
    }
}
