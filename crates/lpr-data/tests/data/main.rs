//! End to end: files on disk to batches.
#![allow(clippy::unwrap_used)]

mod fake_hub;
mod files;
mod hub;
mod mixes;
mod mutations;
mod prepared;
mod streams;
mod support;
