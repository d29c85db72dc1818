//! Documents to rows of at most `sequence_length` tokens, and the position after each.

use std::ops::Range;

use crate::config::Packing;
use crate::error::{DataError, Warning};
use crate::mixture::{Document, Mixture, PassedOver};
use crate::position::{DataPosition, SourcePosition};
use crate::windows::{Window, Windows};

/// The target of a token that has no next token in its document.
pub const IGNORE_INDEX: i32 = -100;

/// The real tokens of one row; padding is added when the batch is complete.
#[derive(Debug, Default)]
pub(crate) struct Row {
    pub(crate) input_ids: Vec<u32>,
    pub(crate) targets: Vec<i32>,
    pub(crate) document_ids: Vec<u32>,
    pub(crate) position_ids: Vec<u32>,
    /// (source, tokens) of each piece of a document.
    source_tokens: Vec<(usize, usize)>,
}

impl Row {
    /// Appends some tokens of a document; the last target looks one token ahead if the document
    /// goes on. Without `document_mask` the row counts as one document.
    fn push(&mut self, document: &Document, range: Range<usize>, document_mask: bool) {
        let tokens = &document.tokens;
        let (document_id, first_position) = match self.document_ids.last() {
            Some(last) if document_mask => (last + 1, 0),
            _ => (0, self.position_ids.len()),
        };
        self.source_tokens.push((document.source, range.len()));
        for (offset, index) in range.enumerate() {
            self.input_ids.push(tokens[index]);
            let next = tokens.get(index + 1).map(|&id| id as i32);
            self.targets.push(next.unwrap_or(IGNORE_INDEX));
            self.document_ids.push(document_id);
            self.position_ids.push((first_position + offset) as u32);
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
    pub(crate) sequence_length: usize,
    pub(crate) packing: Packing,
    pub(crate) document_mask: bool,
    /// No row begins after so many tokens.
    pub(crate) max_tokens: Option<u64>,
}

/// Where documents come from: one by one, or packed in windows.
pub(crate) enum Feed {
    Documents(Mixture),
    Windows(Windows),
}

/// Turns documents into rows and keeps the position.
pub(crate) struct Sequences {
    options: RowOptions,
    feed: Feed,
    position: DataPosition,
    /// `packed`: the document that `position` is inside of.
    open: Option<Document>,
    /// `best_fit`: the window that `position` is inside of.
    window: Option<Window>,
    /// Whether what `position` is inside of has not been read again yet.
    resuming: bool,
    ended: bool,
    warnings: Vec<Warning>,
}

impl Sequences {
    /// Rows from `position` on; `feed` must start there as well.
    pub(crate) fn new(options: RowOptions, feed: Feed, position: DataPosition) -> Self {
        Self {
            options,
            feed,
            open: None,
            window: None,
            resuming: position.token_offset > 0 || position.window_rows > 0,
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
        let limit = self.options.max_tokens;
        if limit.is_some_and(|limit| self.position.tokens >= limit) {
            return Ok(None);
        }
        let row = match self.options.packing {
            Packing::None => self.next_document_row()?,
            Packing::Packed => self.next_packed_row()?,
            Packing::BestFit => self.next_window_row()?,
        };
        if let Some(row) = &row {
            self.position.count_tokens(&row.input_ids);
            for &(source, num_tokens) in &row.source_tokens {
                self.position.sources[source].tokens += num_tokens as u64;
            }
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
        row.push(&document, 0..kept, true);
        self.finish(&document);
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
            row.push(&document, start..end, self.options.document_mask);
            if end == document.tokens.len() {
                self.position.token_offset = 0;
                self.finish(&document);
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

    fn next_window_row(&mut self) -> Result<Option<Row>, DataError> {
        loop {
            let Some(window) = self.take_window()? else {
                return Ok(None);
            };
            let index = self.position.window_rows;
            let row = window.rows.rows.get(index).map(|pieces| {
                let mut row = Row::default();
                for piece in pieces {
                    let document = &window.documents[piece.document];
                    row.push(document, piece.tokens.clone(), self.options.document_mask);
                    self.position.documents += u64::from(piece.tokens.start == 0);
                }
                row
            });
            if index + 1 < window.rows.rows.len() {
                self.position.window_rows = index + 1;
                self.window = Some(window);
            } else {
                self.position.window_rows = 0;
                self.ended = window.is_last;
                set_places(&mut self.position.sources, &window.places);
            }
            if row.is_some() {
                return Ok(row);
            }
        }
    }

    /// The window in progress or the next one; `None` at the end of the data.
    fn take_window(&mut self) -> Result<Option<Window>, DataError> {
        if let Some(window) = self.window.take() {
            return Ok(Some(window));
        }
        let Feed::Windows(windows) = &mut self.feed else {
            return Ok(None);
        };
        if self.ended {
            return Ok(None);
        }
        let mut window = windows.next()?;
        self.warnings.append(&mut window.warnings);
        if std::mem::take(&mut self.resuming) {
            // What it passed over was counted with its first row.
            let (row, num_rows) = (self.position.window_rows, window.rows.rows.len());
            if row >= num_rows {
                return Err(mismatch(&format!(
                    "it is {row} rows into a window of {num_rows}"
                )));
            }
        } else {
            self.count_passed_over(&std::mem::take(&mut window.passed));
            self.position.cut_tokens += window.rows.cut_tokens;
        }
        Ok(Some(window))
    }

    /// Reads on to the next document, counting what is passed over; `None` at the end of the data.
    fn next_document(&mut self) -> Result<Option<Document>, DataError> {
        let Feed::Documents(mixture) = &mut self.feed else {
            return Ok(None);
        };
        if self.ended {
            return Ok(None);
        }
        let document = mixture.next()?;
        let (passed, warnings) = (mixture.take_passed_over(), mixture.take_warnings());
        let places = mixture.places();
        if std::mem::take(&mut self.resuming) {
            let is_there = places == self.position.sources;
            let len = document
                .as_ref()
                .map_or(0, |document| document.tokens.len());
            let offset = self.position.token_offset;
            if !is_there || offset >= len {
                return Err(mismatch(&format!(
                    "it is {offset} tokens into a document that is not there any more"
                )));
            }
        } else {
            self.position.documents += u64::from(document.is_some());
        }
        set_places(&mut self.position.sources, places);
        self.ended = document.is_none();
        self.count_passed_over(&passed);
        self.warnings.extend(warnings);
        Ok(document)
    }

    /// Moves on behind a document that is used up.
    fn finish(&mut self, document: &Document) {
        if let Feed::Documents(mixture) = &mut self.feed {
            mixture.finish(document);
            set_places(&mut self.position.sources, mixture.places());
        }
    }

    fn count_passed_over(&mut self, passed: &PassedOver) {
        self.position.skipped_documents += passed.skipped_documents;
        self.position.bad_lines += passed.bad_lines;
        self.position.bad_shards += passed.bad_shards;
    }
}

/// Takes over where the sources stand; what they gave is counted row by row.
fn set_places(sources: &mut [SourcePosition], places: &[SourcePosition]) {
    for (source, place) in sources.iter_mut().zip(places) {
        source.cursor = place.cursor;
        source.tokens_before = place.tokens_before;
    }
}

fn mismatch(reason: &str) -> DataError {
    let reason = reason.to_owned();
    DataError::PositionMismatch { reason }
}
