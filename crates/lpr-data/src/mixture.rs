//! The documents of all sources as one stream, in proportion to their weights.
//!
//! The next document comes from the source whose tokens, divided by its weight, are fewest: a
//! function of the counts alone, so counts and places are all there is to remember.

use crate::documents::Event;
use crate::error::{DataError, Warning};
use crate::position::{Cursor, SourcePosition};
use crate::prefetch::Prefetch;
use crate::split::Split;

/// A document with something to predict in it.
#[derive(Debug)]
pub(crate) struct Document {
    /// Index of its source.
    pub(crate) source: usize,
    /// Its tokens, the end mark included when packing.
    pub(crate) tokens: Vec<u32>,
    /// Where the source goes on after it.
    next: Cursor,
}

/// What was passed over on the way to documents.
#[derive(Debug, Default)]
pub(crate) struct PassedOver {
    pub(crate) skipped_documents: u64,
    pub(crate) bad_lines: u64,
    pub(crate) bad_shards: u64,
}

/// One source, and what it is mixed by.
#[derive(Debug, Clone)]
pub(crate) struct SourceOptions {
    /// As in the config if it has a weight, for messages.
    pub(crate) entry: Option<String>,
    pub(crate) weight: f64,
    pub(crate) num_shards: usize,
}

/// What makes documents of texts.
#[derive(Debug, Clone)]
pub(crate) struct MixtureOptions {
    pub(crate) split: Split,
    pub(crate) sources: Vec<SourceOptions>,
    /// Appended to each document.
    pub(crate) eos_id: Option<u32>,
    pub(crate) repeat: bool,
}

/// Takes documents from the sources in turn and keeps their places.
pub(crate) struct Mixture {
    options: MixtureOptions,
    prefetch: Prefetch,
    places: Vec<SourcePosition>,
    states: Vec<State>,
    passed: PassedOver,
    warnings: Vec<Warning>,
}

struct State {
    /// Whether this epoch has had a usable document, or started before this loader was opened.
    epoch_is_usable: bool,
    /// What this epoch, or the part of it that was read here, passed over.
    passed: PassedOver,
    ended: bool,
}

impl Mixture {
    /// The documents from `places` on, where the sources of `prefetch` must start as well.
    pub(crate) fn new(
        options: MixtureOptions,
        prefetch: Prefetch,
        places: Vec<SourcePosition>,
    ) -> Self {
        let state = |place: &SourcePosition| State {
            epoch_is_usable: place.cursor != Cursor::epoch_start(place.cursor.epoch),
            passed: PassedOver::default(),
            ended: false,
        };
        Self {
            states: places.iter().map(state).collect(),
            options,
            prefetch,
            places,
            passed: PassedOver::default(),
            warnings: Vec::new(),
        }
    }

    /// Where each source stands: on the document it gave last until [`Self::finish`] is told so.
    pub(crate) fn places(&self) -> &[SourcePosition] {
        &self.places
    }

    /// What was passed over since the last call.
    pub(crate) fn take_passed_over(&mut self) -> PassedOver {
        std::mem::take(&mut self.passed)
    }

    /// What the user should know since the last call.
    pub(crate) fn take_warnings(&mut self) -> Vec<Warning> {
        std::mem::take(&mut self.warnings)
    }

    /// The next document, on which its source's place then stands; `None` when all sources have
    /// ended.
    pub(crate) fn next(&mut self) -> Result<Option<Document>, DataError> {
        while let Some(source) = self.next_source() {
            let item = self.prefetch.next(source)?;
            self.places[source].cursor = item.at;
            match item.event {
                Event::Document(mut tokens) => {
                    if !tokens.is_empty() {
                        tokens.extend(self.options.eos_id);
                    }
                    if tokens.len() >= 2 {
                        self.states[source].epoch_is_usable = true;
                        let next = item.next;
                        return Ok(Some(Document {
                            source,
                            tokens,
                            next,
                        }));
                    }
                    self.pass_over(source, |passed| &mut passed.skipped_documents);
                }
                Event::NoText => self.pass_over(source, |passed| &mut passed.skipped_documents),
                Event::BadLine(warning) => {
                    self.pass_over(source, |passed| &mut passed.bad_lines);
                    self.warnings.extend(warning);
                }
                Event::BadShard(warning) => {
                    self.pass_over(source, |passed| &mut passed.bad_shards);
                    self.warnings.push(warning);
                }
                Event::EpochEnd => self.end_epoch(source)?,
            }
            self.places[source].cursor = item.next;
        }
        Ok(None)
    }

    /// Moves on behind a document. Its tokens, as many as it has by now, count for its source.
    pub(crate) fn finish(&mut self, document: &Document) {
        let place = &mut self.places[document.source];
        place.cursor = document.next;
        place.tokens_before += document.tokens.len() as u64;
    }

    /// The source that is furthest behind its share; the first one of equals.
    fn next_source(&self) -> Option<usize> {
        let sources = 0..self.places.len();
        let progress = |&source: &usize| {
            self.places[source].tokens_before as f64 / self.options.sources[source].weight
        };
        sources
            .filter(|&source| !self.states[source].ended)
            .min_by(|a, b| progress(a).total_cmp(&progress(b)))
    }

    fn pass_over(&mut self, source: usize, count: fn(&mut PassedOver) -> &mut u64) {
        *count(&mut self.passed) += 1;
        *count(&mut self.states[source].passed) += 1;
    }

    fn end_epoch(&mut self, source: usize) -> Result<(), DataError> {
        let options = &self.options.sources[source];
        let state = &mut self.states[source];
        let passed = std::mem::take(&mut state.passed);
        if !state.epoch_is_usable {
            return Err(DataError::NoUsableDocuments {
                split: self.options.split,
                entry: options.entry.clone(),
                num_shards: options.num_shards,
                skipped_documents: passed.skipped_documents,
                bad_lines: passed.bad_lines,
                bad_shards: passed.bad_shards,
            });
        }
        state.epoch_is_usable = false;
        if self.options.repeat {
            return Ok(());
        }
        state.ended = true;
        let others_go_on = self.states.iter().any(|state| !state.ended);
        if others_go_on && let Some(entry) = &options.entry {
            let entry = entry.clone();
            self.warnings.push(Warning::SourceEnded { entry });
        }
        Ok(())
    }
}
