//! End to end: files on disk to batches.
#![allow(clippy::unwrap_used)]

mod files;
mod mutations;
mod streams;
mod support;
