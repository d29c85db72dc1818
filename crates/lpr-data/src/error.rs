//! What can go wrong between a source in the config and a batch, said so that the reader knows what
//! to do.
//!
//! [`DataError`] is fatal to the loader. [`Warning`] is not: the loader went on, and the caller
//! decides where to print it.

use std::path::PathBuf;

use thiserror::Error;

use crate::format::KNOWN_EXTENSIONS;
use crate::hub::HubError;
use crate::prepared::PreparedProblem;
use crate::split::Split;

/// A fatal data error. The binary maps all of them to one exit code.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DataError {
    /// The split has no source at all.
    #[error(
        "[data] {split} lists no source; give a file, a glob, a folder or \"builtin:synthetic\""
    )]
    NoSources {
        /// The split that was asked for.
        split: Split,
    },
    /// A path, glob or folder yields no data file.
    #[error(
        "no data file matches {pattern:?}; known extensions: {}",
        KNOWN_EXTENSIONS
    )]
    NoMatch {
        /// The source as written in the config.
        pattern: String,
    },
    /// The glob cannot be parsed.
    #[error("{pattern:?} is not a valid glob: {reason}")]
    BadGlob {
        /// The source as written in the config.
        pattern: String,
        /// What the glob parser says.
        reason: String,
    },
    /// A file on the network cannot be fetched.
    #[error(transparent)]
    Hub(HubError),
    /// `builtin:` followed by an unknown name.
    #[error("{name:?} is not a built-in source; the only one is \"builtin:synthetic\"")]
    UnknownBuiltin {
        /// The source as written in the config.
        name: String,
    },
    /// A file given by its path has an extension nothing here reads.
    #[error(
        "{}: unknown extension; known are {}",
        path.display(),
        KNOWN_EXTENSIONS
    )]
    UnknownExtension {
        /// The file.
        path: PathBuf,
    },
    /// The operating system refused to list or open something.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        #[source]
        error: std::io::Error,
    },
    /// A data file is bad, in whole or from some place on.
    #[error(transparent)]
    Shard(ShardError),
    /// A whole epoch went by without one document that can be trained on.
    #[error(
        "no usable document in {num_shards} file(s) of [data] {split}{} \
         ({skipped_documents} empty, null or too short, {bad_lines} bad lines, \
         {bad_shards} bad files); check the files with `data check`",
        entry.as_ref().map_or_else(String::new, |entry| format!(", entry {entry:?}"))
    )]
    NoUsableDocuments {
        /// The split that was asked for.
        split: Split,
        /// The weighted source, as written in the config.
        entry: Option<String>,
        /// Number of data files after duplicates were dropped.
        num_shards: usize,
        /// Documents without enough text.
        skipped_documents: u64,
        /// Lines or rows that could not be read.
        bad_lines: u64,
        /// Files given up on.
        bad_shards: u64,
    },
    /// The tokenizer cannot be loaded, or refuses a text.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// Packing with a tokenizer that has no end-of-sequence token.
    #[error(
        "packing = \"{packing}\" needs an end-of-sequence token, and the tokenizer {tokenizer:?} has \
         none; add eos_token to a tokenizer_config.json beside it or use packing = \"none\""
    )]
    NoEndOfSequence {
        /// The packing of the config.
        packing: &'static str,
        /// The tokenizer as written in the config.
        tokenizer: String,
    },
    /// A size in the config or an argument is out of range.
    #[error("{name} is {value}, it must be at least {min}")]
    TooSmall {
        /// The key or argument.
        name: &'static str,
        /// The value found.
        value: usize,
        /// The smallest allowed value.
        min: usize,
    },
    /// The weights of the sources are not one positive number for each.
    #[error("weights is {weights:?}: {reason}")]
    Weights {
        /// The value of the config.
        weights: Vec<f64>,
        /// The rule that does not hold.
        reason: String,
    },
    /// The data is not what it was when the position was saved.
    #[error("the training data changed:{}", list(differences))]
    Changed {
        /// What is different, one sentence each.
        differences: Vec<String>,
    },
    /// The position does not fit the files or the tokenizer: they have changed since it was saved.
    #[error(
        "the data position does not fit the data: {reason}; the files or the tokenizer changed"
    )]
    PositionMismatch {
        /// Both sides of the mismatch.
        reason: String,
    },
    /// The system refused to start a thread.
    #[error("cannot start a data thread: {0}")]
    Spawn(#[source] std::io::Error),
    /// Waiting for data was given up, because the loader was told to.
    #[error("reading was interrupted")]
    Interrupted,
    /// A worker thread ended without saying why (a bug in this program or in a decoder).
    #[error("a data thread stopped unexpectedly; please report this with the data that caused it")]
    ThreadStopped,
}

fn list(lines: &[String]) -> String {
    let line = |text: String, line: &String| text + "\n  " + line;
    lines.iter().fold(String::new(), line)
}

impl From<ShardError> for DataError {
    fn from(error: ShardError) -> Self {
        match error.problem {
            // Says nothing about the file.
            Problem::Remote(error) => (*error).into(),
            problem => Self::Shard(ShardError { problem, ..error }),
        }
    }
}

/// A data file that cannot be read from some place on.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}{place}: {problem}", path.display())]
pub struct ShardError {
    /// The file.
    pub path: PathBuf,
    /// Where in the file.
    pub place: Place,
    /// What was found, and what to do.
    pub problem: Problem,
}

/// A place inside a data file; displayed as a suffix of the file name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The file as a whole.
    File,
    /// A parquet row group, counted from 0.
    RowGroup(usize),
    /// A row of a parquet row group, both counted from 0.
    Row {
        /// The row group.
        row_group: usize,
        /// The row inside it.
        row: u64,
    },
    /// A line of a JSON file, counted from 1.
    Line(u64),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File => Ok(()),
            Self::RowGroup(row_group) => write!(f, ", row group {row_group}"),
            Self::Row { row_group, row } => write!(f, ", row group {row_group}, row {row}"),
            Self::Line(line) => write!(f, ", line {line}"),
        }
    }
}

/// What is wrong with a data file or with one of its documents.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Problem {
    /// The system could not open or read the file.
    #[error("cannot be read: {0}")]
    Io(String),
    /// The network failed; the file may be good.
    #[error(transparent)]
    Remote(Box<HubError>),
    /// The bytes are not those of the format.
    #[error("not a {expected} file: {found}; replace it with an intact copy or remove it")]
    WrongFormat {
        /// The format the name promises.
        expected: &'static str,
        /// What the bytes look like.
        found: String,
    },
    /// The parquet footer cannot be decoded.
    #[error("the parquet footer cannot be read ({0}); download the file again")]
    Footer(String),
    /// The text column is not in the schema.
    #[error("has no column {column:?}; its columns are {found:?}; set text_column")]
    MissingColumn {
        /// The column of the config.
        column: String,
        /// The top-level columns of the file.
        found: Vec<String>,
    },
    /// The text column has another type.
    #[error("column {column:?} is {found}, not text; set text_column to a string column")]
    NotText {
        /// The column of the config.
        column: String,
        /// Its type.
        found: String,
    },
    /// A page or a compressed stream cannot be decoded.
    #[error("cannot be decoded ({0}); download the file again or set on_bad_shard = \"skip\"")]
    Decode(String),
    /// A JSON array in place of one object a line.
    #[error("is a JSON array, not JSON lines; write one object a line (jq -c '.[]' does it)")]
    JsonArray,
    /// A line is no JSON.
    #[error("is not valid JSON ({0}); repair it or set on_bad_shard = \"skip\"")]
    Json(String),
    /// A line is JSON but no object.
    #[error("is not a JSON object; repair it or set on_bad_shard = \"skip\"")]
    NotAnObject,
    /// An object lacks the text key.
    #[error("has no key {column:?}; set text_column or on_bad_shard = \"skip\"")]
    MissingKey {
        /// The key of the config.
        column: String,
    },
    /// The value of the text key is neither a string nor null.
    #[error("key {column:?} is {found}, not a string; set text_column or on_bad_shard = \"skip\"")]
    ValueNotText {
        /// The key of the config.
        column: String,
        /// The JSON type found.
        found: &'static str,
    },
    /// Bytes that are no UTF-8.
    #[error("is not valid UTF-8; convert it or set on_bad_shard = \"skip\"")]
    NotUtf8,
    /// A file of prepared tokens cannot be used.
    #[error(transparent)]
    Prepared(PreparedProblem),
    /// A line longer than any document; most likely not JSON lines at all.
    #[error("is longer than {max_bytes} bytes; this does not look like JSON lines")]
    LineTooLong {
        /// The limit.
        max_bytes: usize,
    },
}

/// The tokenizer cannot be loaded or used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// Neither `bytes`, nor a file, nor a folder.
    #[error(
        "tokenizer {spec:?} not found: give \"bytes\", a tokenizer.json, a folder that holds one, or \
         hf://OWNER/NAME"
    )]
    NotFound {
        /// The tokenizer as written in the config.
        spec: String,
    },
    /// A file cannot be read.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        error: std::io::Error,
    },
    /// A file is not what its name says.
    #[error("{}: not a usable tokenizer: {reason}; download it again", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        reason: String,
    },
    /// `eos_token` names a token the vocabulary does not have.
    #[error("{}: eos_token is {token:?}, which is not in the vocabulary", path.display())]
    UnknownEos {
        /// The `tokenizer_config.json`.
        path: PathBuf,
        /// The token it names.
        token: String,
    },
    /// The tokenizer refuses a text.
    #[error("the tokenizer cannot encode a text: {reason}")]
    Encode {
        /// What the tokenizer says.
        reason: String,
    },
    /// A sample from which no tokenizer can be learned.
    #[error("no tokenizer can be trained on this sample: {reason}")]
    Train {
        /// What the trainer says.
        reason: String,
    },
    /// Ids that do not decode.
    #[error("token ids cannot be decoded: {reason}")]
    Decode {
        /// What the tokenizer says.
        reason: String,
    },
}

/// Something worth telling the user that did not stop the loader.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Warning {
    /// The same file was listed twice, perhaps through a symlink.
    #[error("{} is the same file as {}; it is read once", dropped.display(), kept.display())]
    DuplicateSource {
        /// The entry that was dropped.
        dropped: PathBuf,
        /// The entry that stays.
        kept: PathBuf,
    },
    /// A file without any document.
    #[error("{} holds no document", path.display())]
    EmptyShard {
        /// The file.
        path: PathBuf,
    },
    /// `on_bad_shard = "skip"`: the file, or the rest of it, is skipped.
    #[error("skipped from here on: {0}")]
    ShardSkipped(ShardError),
    /// `on_bad_shard = "skip"`: a line or row is skipped. Given once a file and pass; the position
    /// counts them all.
    #[error("skipped (and so are further bad lines of this file): {0}")]
    LineSkipped(ShardError),
    /// `on_data_end = "stop"`: one of several weighted sources has been read to its end.
    #[error("source {entry:?} has ended; the other sources share its part")]
    SourceEnded {
        /// The source as written in the config.
        entry: String,
    },
    /// The data is not what it was when the position was saved, and that was allowed.
    #[error(
        "the training data changed since the checkpoint, as was allowed:{}",
        list(differences)
    )]
    DataChanged {
        /// What is different, one sentence each.
        differences: Vec<String>,
    },
    /// A file belongs to two weighted sources.
    #[error("{} belongs to two entries of train; it is read for both", path.display())]
    SharedFile {
        /// The file.
        path: PathBuf,
    },
}
