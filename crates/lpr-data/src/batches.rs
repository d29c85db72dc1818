//! Rows to batches of plain integers. The public face of the crate.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::config::{DataConfig, Packing};
use crate::corpus::Corpus;
use crate::error::{DataError, Warning};
use crate::fingerprint::DataFingerprint;
use crate::hub::OwnHub;
use crate::mixture::Mixture;
use crate::position::DataPosition;
use crate::prefetch::{Interrupt, Prefetch};
use crate::sequences::{Feed, IGNORE_INDEX, Row, RowOptions, Sequences};
use crate::shuffle::OrderedDocuments;
use crate::split::Split;
use crate::tokenizer::Tokenizer;
use crate::windows::Windows;

/// Most tokenizer threads that [`DataLoader::open`] starts; four feed a fast GPU several times
/// over.
const MAX_DEFAULT_WORKERS: usize = 4;

/// Rows of tokens, padded on the right to one length. All vectors are row-major, `[num_rows,
/// sequence_length]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenBatch {
    /// Rows, at least 1; fewer than asked for only at the end of the data.
    pub num_rows: usize,
    /// Tokens in each row of this batch, padding included: the longest row without packing, else
    /// the configured length.
    pub sequence_length: usize,
    /// Token ids; padding has the tokenizer's padding id.
    pub input_ids: Vec<u32>,
    /// The next token of the same document, [`IGNORE_INDEX`] where there is none and on padding.
    pub targets: Vec<i32>,
    /// False on padding.
    pub is_token: Vec<bool>,
    /// Document inside the row, from 0; padding carries the id of the row's last document. All 0
    /// with `document_mask = false`.
    pub document_ids: Vec<u32>,
    /// Position inside the document, from 0 at the start of each document and of each row; padding
    /// goes on counting. Position inside the row with `document_mask = false`.
    pub position_ids: Vec<u32>,
    /// Targets that are not [`IGNORE_INDEX`], at least 1.
    pub num_targets: usize,
    /// The position after this batch.
    pub position: DataPosition,
}

/// Reads one split as a stream of batches, tokenizing ahead on threads of its own. Dropping it
/// stops them.
pub struct DataLoader {
    /// First, because dropping it ends what the threads of `sequences` wait for.
    _hub: OwnHub,
    sequences: Sequences,
    rows_per_batch: usize,
    tokenizer: Arc<Tokenizer>,
    /// Sequence length of every batch when packing, which never varies.
    fixed_length: Option<usize>,
    warnings: Vec<Warning>,
    fingerprint: DataFingerprint,
    interrupt: Interrupt,
}

impl DataLoader {
    /// Opens a split at a position: [`DataPosition::default`] for the start, or the `position` of a
    /// batch to continue after it. Every file on disk is opened once and its footer and schema are
    /// checked; files on the network are fetched, the next one while one is read.
    ///
    /// # Errors
    /// A source that yields no file, a bad file (unless bad files are skipped), a config value out
    /// of range, packing with a tokenizer without end mark, a position beyond the files.
    pub fn open(
        config: &DataConfig,
        split: Split,
        rows_per_batch: usize,
        tokenizer: Arc<Tokenizer>,
        start: &DataPosition,
    ) -> Result<Self, DataError> {
        let num_workers = Self::default_workers();
        Self::open_with_workers(config, split, rows_per_batch, tokenizer, start, num_workers)
    }

    /// The threads that [`DataLoader::open`] starts: one core is left to whoever uses the batches.
    pub fn default_workers() -> usize {
        let num_cores = std::thread::available_parallelism().map_or(1, usize::from);
        num_cores.saturating_sub(1).clamp(1, MAX_DEFAULT_WORKERS)
    }

    /// Like [`DataLoader::open`] with a given number of tokenizer threads, which changes the speed
    /// and nothing else.
    ///
    /// # Errors
    /// Those of [`DataLoader::open`], or `num_workers` is 0.
    pub fn open_with_workers(
        config: &DataConfig,
        split: Split,
        rows_per_batch: usize,
        tokenizer: Arc<Tokenizer>,
        start: &DataPosition,
        num_workers: usize,
    ) -> Result<Self, DataError> {
        let corpus = open_corpus(config, split, &tokenizer)?;
        Self::start(
            corpus,
            config,
            rows_per_batch,
            tokenizer,
            start,
            num_workers,
        )
    }

    /// Opens the training data at a position that was saved together with a fingerprint. If
    /// `allow_change`, the files may be others than then: a source whose files are the same up to
    /// the one it reads, and which is not shuffled, goes on at its place, and any other one begins
    /// its next epoch.
    ///
    /// # Errors
    /// Those of [`DataLoader::open`]; [`DataError::Changed`] if the data changed and may not, or the
    /// tokenizer did, whose ids the model was trained on.
    pub fn resume(
        config: &DataConfig,
        rows_per_batch: usize,
        tokenizer: Arc<Tokenizer>,
        (position, saved): (&DataPosition, &DataFingerprint),
        allow_change: bool,
    ) -> Result<Self, DataError> {
        let mut corpus = open_corpus(config, Split::Train, &tokenizer)?;
        let now = &corpus.fingerprint;
        let differences = saved.differences(now);
        let mut position = position.clone();
        if !differences.is_empty() {
            if !allow_change || saved.tokenizer != now.tokenizer {
                return Err(DataError::Changed { differences });
            }
            position = saved.moved_position(&position, now, config.shuffle);
            corpus.warnings.push(Warning::DataChanged { differences });
        }
        let num_workers = Self::default_workers();
        Self::start(
            corpus,
            config,
            rows_per_batch,
            tokenizer,
            &position,
            num_workers,
        )
    }

    fn start(
        corpus: Corpus,
        config: &DataConfig,
        rows_per_batch: usize,
        tokenizer: Arc<Tokenizer>,
        start: &DataPosition,
        num_workers: usize,
    ) -> Result<Self, DataError> {
        at_least_one("rows_per_batch", rows_per_batch)?;
        at_least_one("num_workers", num_workers)?;
        let position = corpus.position(start)?;
        let is_train = corpus.mixture.split == Split::Train;
        let rows = RowOptions {
            sequence_length: config.sequence_length,
            packing: config.packing,
            document_mask: config.document_mask,
            max_tokens: config.max_tokens.filter(|_| is_train),
        };
        let places = position.sources.iter().map(|source| source.cursor);
        let streams = corpus.streams.into_iter().zip(places);
        let documents = streams
            .map(|(stream, place)| OrderedDocuments::new(stream, place))
            .collect();
        let stop = Arc::new(AtomicBool::new(false));
        let interrupt = Interrupt::default();
        let prefetch = Prefetch::start(
            documents,
            &tokenizer,
            num_workers,
            Arc::clone(&stop),
            interrupt.clone(),
        )?;
        let mixture = Mixture::new(corpus.mixture, prefetch, position.sources.clone());
        let feed = if config.packing == Packing::BestFit {
            let (window, row_len) = (config.packing_window, config.sequence_length);
            Feed::Windows(Windows::start(
                mixture,
                window,
                row_len,
                stop,
                interrupt.clone(),
            )?)
        } else {
            Feed::Documents(mixture)
        };
        Ok(Self {
            _hub: corpus.hub,
            sequences: Sequences::new(rows, feed, position),
            rows_per_batch,
            tokenizer,
            fixed_length: (config.packing != Packing::None).then_some(config.sequence_length),
            warnings: corpus.warnings,
            fingerprint: corpus.fingerprint,
            interrupt,
        })
    }

    /// The next batch; `None` when the data has ended, which is never with `on_data_end =
    /// "repeat"`.
    ///
    /// # Errors
    /// A file or line that cannot be read (unless bad ones are skipped), an epoch without a usable
    /// document, a text the tokenizer refuses, data that does not fit the start position. The
    /// loader is of no use afterwards.
    pub fn next_batch(&mut self) -> Result<Option<TokenBatch>, DataError> {
        let mut rows = Vec::with_capacity(self.rows_per_batch);
        while rows.len() < self.rows_per_batch {
            match self.sequences.next_row()? {
                Some(row) => rows.push(row),
                None => break,
            }
        }
        let Some(longest) = rows.iter().map(|row| row.input_ids.len()).max() else {
            return Ok(None);
        };
        let sequence_length = self.fixed_length.unwrap_or(longest);
        let num_tokens: usize = rows.iter().map(|row| row.input_ids.len()).sum();
        self.sequences
            .count_padding(rows.len() * sequence_length - num_tokens);
        let position = self.sequences.position().clone();
        Ok(Some(assemble(
            &rows,
            sequence_length,
            self.tokenizer.pad_id(),
            position,
        )))
    }

    /// From now on gives up waiting for data, with [`DataError::Interrupted`], once `flag` is set.
    /// Data that is there is still handed out. Dropping the loader then waits for no thread.
    pub fn interrupt_by(&mut self, flag: Arc<AtomicBool>) {
        self.interrupt.listen_to(flag);
    }

    /// The position after the last batch. After the end of the data it also counts what was passed
    /// over at the very end.
    pub fn position(&self) -> &DataPosition {
        self.sequences.position()
    }

    /// What happened since the last call that a user should know; the caller prints it.
    pub fn warnings(&mut self) -> Vec<Warning> {
        let mut warnings = std::mem::take(&mut self.warnings);
        warnings.extend(self.sequences.take_warnings());
        warnings
    }

    /// What the data is. A saved position means the same place as long as this is the same.
    pub fn fingerprint(&self) -> &DataFingerprint {
        &self.fingerprint
    }
}

/// Checks the config and finds the files.
fn open_corpus(
    config: &DataConfig,
    split: Split,
    tokenizer: &Tokenizer,
) -> Result<Corpus, DataError> {
    config.validate()?;
    let packing = match config.packing {
        Packing::None => None,
        Packing::Packed => Some("packed"),
        Packing::BestFit => Some("best_fit"),
    };
    if let (Some(packing), None) = (packing, tokenizer.eos_id()) {
        return Err(DataError::NoEndOfSequence {
            packing,
            tokenizer: tokenizer.spec().to_owned(),
        });
    }
    Corpus::open(config, split, tokenizer)
}

fn at_least_one(name: &'static str, value: usize) -> Result<(), DataError> {
    if value == 0 {
        let min = 1;
        return Err(DataError::TooSmall { name, value, min });
    }
    Ok(())
}

/// Pads the rows and lays them out one after the other.
fn assemble(
    rows: &[Row],
    sequence_length: usize,
    pad_id: u32,
    position: DataPosition,
) -> TokenBatch {
    let size = rows.len() * sequence_length;
    let mut batch = TokenBatch {
        num_rows: rows.len(),
        sequence_length,
        input_ids: Vec::with_capacity(size),
        targets: Vec::with_capacity(size),
        is_token: Vec::with_capacity(size),
        document_ids: Vec::with_capacity(size),
        position_ids: Vec::with_capacity(size),
        num_targets: rows.iter().map(Row::num_targets).sum(),
        position,
    };
    for (index, row) in rows.iter().enumerate() {
        let end = (index + 1) * sequence_length;
        batch
            .is_token
            .resize(batch.is_token.len() + row.input_ids.len(), true);
        batch.is_token.resize(end, false);
        batch.input_ids.extend_from_slice(&row.input_ids);
        batch.input_ids.resize(end, pad_id);
        batch.targets.extend_from_slice(&row.targets);
        batch.targets.resize(end, IGNORE_INDEX);
        batch.document_ids.extend_from_slice(&row.document_ids);
        let last_document = row.document_ids.last().copied().unwrap_or(0);
        batch.document_ids.resize(end, last_document);
        batch.position_ids.extend_from_slice(&row.position_ids);
        let next_position = row.position_ids.last().map_or(0, |last| last + 1);
        let num_padding = end - batch.position_ids.len();
        batch
            .position_ids
            .extend((next_position..).take(num_padding));
    }
    batch
}
