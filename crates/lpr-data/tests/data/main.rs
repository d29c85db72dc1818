//! End to end: files on disk to batches.
#![allow(clippy::unwrap_used)]

mod files;
mod streams;
mod support;
