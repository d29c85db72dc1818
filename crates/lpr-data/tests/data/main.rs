//! End to end: files on disk to batches.
#![allow(clippy::unwrap_used)]

mod files;
mod mixes;
mod mutations;
mod prepared;
mod streams;
mod support;
