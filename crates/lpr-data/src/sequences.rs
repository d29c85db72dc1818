//! Documents to rows of at most `sequence_length` tokens, and the position after each.

use crate::config::Packing;
use crate::documents::{Cursor, Event};
use crate::error::{DataError, Warning};
use crate::position::DataPosition;
use crate::prefetch::Prefetch;
use crate::split::Split;

/// The target of a token that has no next token in its document.
pub const IGNORE_INDEX: i32 = -100;

/// The real tokens of one row; padding is added when the batch is complete.
#[derive(Debug, Default)]
pub(crate) struct Row {
    pub(crate) input_ids: Vec<u32>,
    pub(crate) targets: Vec<i32>,
    pub(crate) document_ids: Vec<u32>,
    pub(crate) position_ids: Vec<u32>,
}

impl Row {
    /// Appends `tokens[start..end]` of a document; the last target looks one token ahead if the
    /// document goes on.
    fn push(&mut self, tokens: &[u32], start: usize, end: usize) {
        let document_id = self.document_ids.last().map_or(0, |last| last + 1);
        for (position, index) in (start..end).enumerate() {
            self.input_ids.push(tokens[index]);
            let next = tokens.get(index + 1).map(|&id| id as i32);
            self.targets.push(next.unwrap_or(IGNORE_INDEX));
            self.document_ids.push(document_id);
            self.position_ids.push(position as u32);
        }
    }

    pub(crate) fn num_targets(&self) -> usize {
        let targets = self.targets.iter();
        targets.filter(|&&target| target != IGNORE_INDEX).count()
    }
}

/// What shapes the rows.
#[derive(Debug, Clone)]
pub(crate) struct RowOptions {
    pub(crate) split: Split,
    pub(crate) num_shards: usize,
    pub(crate) sequence_length: usize,
    pub(crate) packing: Packing,
    /// Appended to each document when packing.
    pub(crate) eos_id: Option<u32>,
    pub(crate) repeat: bool,
}

/// A document that has not been used up.
struct OpenDocument {
    tokens: Vec<u32>,
    next: Cursor,
}

/// Turns the document stream into rows and keeps the position.
pub(crate) struct Sequences {
    options: RowOptions,
    source: Prefetch,
    position: DataPosition,
    /// Packing only: the document that `position` is inside of.
    open: Option<OpenDocument>,
    /// Whether the document at `position` is to be continued and has not been read again yet.
    resuming: bool,
    /// Whether this epoch has had a usable document, or started before this loader was opened.
    epoch_is_usable: bool,
    ended: bool,
    warnings: Vec<Warning>,
}

impl Sequences {
    /// Rows from `position` on; `source` must start there as well.
    pub(crate) fn new(options: RowOptions, source: Prefetch, position: DataPosition) -> Self {
        Self {
            options,
            source,
            open: None,
            resuming: position.token_offset > 0,
            epoch_is_usable: !position.is_epoch_start(),
            ended: false,
            warnings: Vec::new(),
            position,
        }
    }

    /// The position after the last row, with everything counted that was passed over since.
    pub(crate) fn position(&self) -> &DataPosition {
        &self.position
    }

    pub(crate) fn count_padding(&mut self, num_tokens: usize) {
        self.position.padding_tokens += num_tokens as u64;
    }

    pub(crate) fn take_warnings(&mut self) -> Vec<Warning> {
        std::mem::take(&mut self.warnings)
    }

    /// The next row, which has at least one target; `None` at the end of the data.
    pub(crate) fn next_row(&mut self) -> Result<Option<Row>, DataError> {
        let row = match self.options.packing {
            Packing::None => self.next_document_row()?,
            Packing::Packed => self.next_packed_row()?,
        };
        if let Some(row) = &row {
            self.position.count_tokens(&row.input_ids);
        }
        Ok(row)
    }

    fn next_document_row(&mut self) -> Result<Option<Row>, DataError> {
        let Some(mut document) = self.next_document()? else {
            return Ok(None);
        };
        let kept = document.tokens.len().min(self.options.sequence_length);
        self.position.cut_tokens += (document.tokens.len() - kept) as u64;
        // What is cut away is no target either, as in the paper's trainer.
        document.tokens.truncate(kept);
        let mut row = Row::default();
        row.push(&document.tokens, 0, kept);
        self.position.set_cursor(document.next);
        Ok(Some(row))
    }

    fn next_packed_row(&mut self) -> Result<Option<Row>, DataError> {
        let mut row = Row::default();
        while row.input_ids.len() < self.options.sequence_length {
            let document = match self.open.take() {
                Some(document) => document,
                None => match self.next_document()? {
                    Some(document) => document,
                    None => break,
                },
            };
            let start = self.position.token_offset;
            let room = self.options.sequence_length - row.input_ids.len();
            let end = document.tokens.len().min(start + room);
            row.push(&document.tokens, start, end);
            if end == document.tokens.len() {
                self.position.token_offset = 0;
                self.position.set_cursor(document.next);
            } else {
                self.position.token_offset = end;
                self.open = Some(document);
            }
        }
        // The end of the data can leave a lone end mark, with nothing to predict.
        if row.num_targets() == 0 {
            self.position.cut_tokens += row.input_ids.len() as u64;
            return Ok(None);
        }
        Ok(Some(row))
    }

    /// Reads on to the next usable document, counting what is passed over; `None` at the end of the
    /// data.
    fn next_document(&mut self) -> Result<Option<OpenDocument>, DataError> {
        while !self.ended {
            let item = self.source.next()?;
            if self.resuming && !(matches!(item.event, Event::Document(_)) && self.is_at(item.at)) {
                return Err(self.mismatch("it is inside a document that is no longer there"));
            }
            self.position.set_cursor(item.at);
            match item.event {
                Event::Document(tokens) => {
                    if let Some(tokens) = self.accept(tokens)? {
                        let next = item.next;
                        return Ok(Some(OpenDocument { tokens, next }));
                    }
                }
                Event::NoText => self.position.skipped_documents += 1,
                Event::BadLine(warning) => {
                    self.position.bad_lines += 1;
                    self.warnings.extend(warning);
                }
                Event::BadShard(warning) => {
                    self.position.bad_shards += 1;
                    self.warnings.push(warning);
                }
                Event::EpochEnd => self.end_epoch()?,
            }
            self.position.set_cursor(item.next);
        }
        Ok(None)
    }

    /// The tokens of a document as the rows need them; `None`, and counted, if there is nothing to
    /// predict in it.
    fn accept(&mut self, mut tokens: Vec<u32>) -> Result<Option<Vec<u32>>, DataError> {
        let is_packed = self.options.packing == Packing::Packed;
        if is_packed && !tokens.is_empty() {
            tokens.extend(self.options.eos_id);
        }
        if self.resuming {
            self.resuming = false;
            if !is_packed || self.position.token_offset >= tokens.len() {
                return Err(self.mismatch(&format!(
                    "it is {} tokens into a document of {}",
                    self.position.token_offset,
                    tokens.len()
                )));
            }
        } else if tokens.len() < 2 {
            self.position.skipped_documents += 1;
            return Ok(None);
        } else {
            self.position.documents += 1;
        }
        self.epoch_is_usable = true;
        Ok(Some(tokens))
    }

    fn end_epoch(&mut self) -> Result<(), DataError> {
        if !self.epoch_is_usable {
            return Err(DataError::NoUsableDocuments {
                split: self.options.split,
                num_shards: self.options.num_shards,
                skipped_documents: self.position.skipped_documents,
                bad_lines: self.position.bad_lines,
                bad_shards: self.position.bad_shards,
            });
        }
        self.epoch_is_usable = false;
        self.ended = !self.options.repeat;
        Ok(())
    }

    fn is_at(&self, cursor: Cursor) -> bool {
        self.position.cursor() == cursor
    }

    fn mismatch(&self, reason: &str) -> DataError {
        let Cursor { shard, row, .. } = self.position.cursor();
        DataError::PositionMismatch {
            reason: format!("{reason} (file {shard}, row {row})"),
        }
    }
}
