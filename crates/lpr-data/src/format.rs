//! Which files are read, by their names.

use std::path::Path;

/// The extensions that are read, for messages.
pub(crate) const KNOWN_EXTENSIONS: &str =
    ".parquet .json .jsonl .json.gz .jsonl.gz .json.zst .jsonl.zst .safetensors";

/// The three families of formats. Compression of JSON lines is found from the content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Format {
    Parquet,
    JsonLines,
    /// Tokens, see `prepared.rs`.
    Prepared,
}

impl Format {
    /// The format a file name promises; `None` for unknown extensions and hidden files.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_string_lossy().to_ascii_lowercase();
        if name.starts_with('.') {
            return None;
        }
        KNOWN_EXTENSIONS
            .split(' ')
            .find(|extension| name.ends_with(extension))
            .map(|extension| match extension {
                ".parquet" => Self::Parquet,
                ".safetensors" => Self::Prepared,
                _ => Self::JsonLines,
            })
    }
}
