//! Documents to files of prepared tokens (`prepared.rs` reads them).

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::Serialize;

use crate::config::{DataConfig, OnDataEnd};
use crate::corpus::Corpus;
use crate::documents::Event;
use crate::error::{DataError, Warning};
use crate::position::Cursor;
use crate::prefetch::{Interrupt, Prefetch};
use crate::prepared::{About, DATA_START, FORMAT, HEADER_BYTES, Header};
use crate::shuffle::OrderedDocuments;
use crate::split::Split;
use crate::tokenizer::Tokenizer;

/// A file is complete when it has this many tokens; 256 MiB.
const FILE_TOKENS: u64 = 1 << 26;

/// What was prepared so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Prepared {
    /// Documents written.
    pub documents: u64,
    /// Documents left out because they are null or empty.
    pub skipped_documents: u64,
    /// Lines or rows passed over because they cannot be read (`on_bad_shard = "skip"`).
    pub bad_lines: u64,
    /// Files given up on (`on_bad_shard = "skip"`).
    pub bad_shards: u64,
    /// Tokens of all documents, without end marks.
    pub tokens: u64,
    /// Files written, the one in progress included.
    pub files: u64,
}

/// Tokenizes the training sources of `config`, in their order, into the existing folder `folder`.
///
/// `go_on` gets the figures and the warnings after every document and may end the work, which
/// leaves files without a valid header. `None` if it did.
///
/// # Errors
/// Those of [`crate::DataLoader`] on the same sources, or a file that cannot be written.
pub fn prepare(
    config: &DataConfig,
    tokenizer: &Arc<Tokenizer>,
    folder: &Path,
    num_workers: usize,
    go_on: &mut dyn FnMut(&Prepared, &[Warning]) -> bool,
) -> Result<Option<Prepared>, DataError> {
    // One stream in file order, whatever the config says of mixing and shuffling.
    let plain = DataConfig {
        weights: Vec::new(),
        shuffle: false,
        on_data_end: OnDataEnd::Stop,
        ..config.clone()
    };
    plain.validate()?;
    let corpus = Corpus::open(&plain, Split::Train, tokenizer)?;
    let mut warnings = corpus.warnings;
    let num_shards = corpus.streams.iter().map(|s| s.shards.len()).sum();
    let mut writer = Writer {
        folder: folder.to_owned(),
        about: About {
            format: FORMAT.to_owned(),
            tokenizer: tokenizer.fingerprint().to_owned(),
            vocab_size: tokenizer.vocab_size().to_string(),
            sources: corpus.fingerprint.digest(),
        },
        open: None,
    };
    let documents = corpus.streams.into_iter();
    let documents = documents
        .map(|stream| OrderedDocuments::new(stream, Cursor::default()))
        .collect();
    let stop = Arc::new(AtomicBool::new(false));
    let mut source = Prefetch::start(
        documents,
        tokenizer,
        num_workers,
        stop,
        Interrupt::default(),
    )?;
    // Dropped before the source, whose threads may wait for it.
    let _hub = corpus.hub;
    let mut found = Prepared::default();
    loop {
        match source.next(0)?.event {
            Event::Document(tokens) if !tokens.is_empty() => {
                found.files += u64::from(writer.write(&tokens, found.files)?);
                found.documents += 1;
                found.tokens += tokens.len() as u64;
            }
            Event::Document(_) | Event::NoText => found.skipped_documents += 1,
            Event::BadLine(warning) => {
                found.bad_lines += 1;
                warnings.extend(warning);
            }
            Event::BadShard(warning) => {
                found.bad_shards += 1;
                warnings.push(warning);
            }
            Event::EpochEnd => break,
        }
        if !go_on(&found, &std::mem::take(&mut warnings)) {
            return Ok(None);
        }
    }
    writer.finish_file()?;
    if found.documents == 0 {
        return Err(DataError::NoUsableDocuments {
            split: Split::Train,
            entry: None,
            num_shards,
            skipped_documents: found.skipped_documents,
            bad_lines: found.bad_lines,
            bad_shards: found.bad_shards,
        });
    }
    Ok(Some(found))
}

/// Writes one file after the other.
struct Writer {
    folder: PathBuf,
    about: About,
    open: Option<OpenFile>,
}

/// A file without its header and its ends.
struct OpenFile {
    path: PathBuf,
    output: BufWriter<File>,
    num_tokens: u64,
    ends: Vec<u32>,
}

impl Writer {
    /// Appends a document; whether that began a file, which is the one with number `next_file`.
    fn write(&mut self, tokens: &[u32], next_file: u64) -> Result<bool, DataError> {
        let begins = self.open.is_none();
        if begins {
            let path = self
                .folder
                .join(format!("prepared-{next_file:05}.safetensors"));
            self.open = Some(OpenFile::create(path)?);
        }
        let file = self.open.as_mut().expect("created above");
        file.append(tokens)
            .map_err(|error| io_error(&file.path, error))?;
        if file.num_tokens >= FILE_TOKENS {
            self.finish_file()?;
        }
        Ok(begins)
    }

    fn finish_file(&mut self) -> Result<(), DataError> {
        let Some(file) = self.open.take() else {
            return Ok(());
        };
        let path = file.path.clone();
        file.finish(self.about.clone())
            .map_err(|error| io_error(&path, error))
    }
}

impl OpenFile {
    fn create(path: PathBuf) -> Result<Self, DataError> {
        let create = || {
            let mut file = File::create_new(&path)?;
            file.seek(SeekFrom::Start(DATA_START))?;
            Ok(file)
        };
        let file = create().map_err(|error| io_error(&path, error))?;
        Ok(Self {
            path,
            output: BufWriter::with_capacity(1 << 18, file),
            num_tokens: 0,
            ends: Vec::new(),
        })
    }

    fn append(&mut self, tokens: &[u32]) -> io::Result<()> {
        for id in tokens {
            self.output.write_all(&id.to_le_bytes())?;
        }
        self.num_tokens += tokens.len() as u64;
        // A document has at most as many tokens as a line may have bytes, so this always fits.
        let end = u32::try_from(self.num_tokens).map_err(io::Error::other)?;
        self.ends.push(end);
        Ok(())
    }

    /// Writes the ends, then the header, which makes the file valid.
    fn finish(mut self, about: About) -> io::Result<()> {
        for end in &self.ends {
            self.output.write_all(&end.to_le_bytes())?;
        }
        let header = Header::new(about, self.num_tokens, self.ends.len() as u64);
        let mut header = serde_json::to_vec(&header.ok_or(io::ErrorKind::FileTooLarge)?)?;
        assert!(
            header.len() <= HEADER_BYTES,
            "the header has a bounded size"
        );
        header.resize(HEADER_BYTES, b' ');
        self.output.seek(SeekFrom::Start(0))?;
        self.output
            .write_all(&(HEADER_BYTES as u64).to_le_bytes())?;
        self.output.write_all(&header)?;
        self.output.flush()
    }
}

fn io_error(path: &Path, error: io::Error) -> DataError {
    DataError::Io {
        path: path.to_owned(),
        error,
    }
}
