//! What every file reader yields: a document, or why there is none, and where.

use crate::error::{Place, Problem};

/// One row, line or document of a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// Parquet row group from 0, in the order they are read; 0 in other formats.
    pub(crate) row_group: usize,
    /// Row inside the row group, line of a JSON file, or index of a synthetic document; from 0.
    pub(crate) row: u64,
    /// Where this record and the next one start in a file that can be opened there; else 0.
    pub(crate) byte: u64,
    pub(crate) next_byte: u64,
    pub(crate) content: Content,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Text(String),
    /// The ids of a text that was tokenized before.
    Tokens(Vec<u32>),
    /// Null or empty.
    NoText,
    /// This record alone cannot be read; the next one can.
    Bad(Place, Problem),
}

/// The file cannot be read from this place on.
pub(crate) type Failure = (Place, Problem);

/// Says in words what a file starts with, for messages about a wrong format.
pub(crate) fn describe_bytes(start: &[u8]) -> String {
    let text = start.trim_ascii_start();
    let lower = text.to_ascii_lowercase();
    if start.is_empty() {
        "the file is empty".to_owned()
    } else if start.starts_with(b"PAR1") {
        "it is parquet".to_owned()
    } else if start.starts_with(&[0x1f, 0x8b]) {
        "it is gzip".to_owned()
    } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        "it is zstd".to_owned()
    } else if lower.starts_with(b"<!doctype") || lower.starts_with(b"<html") {
        "it is an HTML page (perhaps the error page of a failed download)".to_owned()
    } else if text.starts_with(b"{") || text.starts_with(b"[") {
        "it is JSON".to_owned()
    } else {
        format!(
            "it starts with the bytes {:02x?}",
            &start[..start.len().min(8)]
        )
    }
}
