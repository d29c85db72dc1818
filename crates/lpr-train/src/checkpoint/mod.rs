//! Checkpoints on disk: saved all or nothing, used only after every hash was compared. No tensors
//! in here.
//!
//! A save goes through these stages, and a crash after any of them leaves the older checkpoints as
//! they were: temporary folder, files, `state.json`, manifest, rename to `step-NNNNNNNN`, `latest`.

mod manifest;
mod open;
mod retain;
mod save;
#[cfg(test)]
mod tests;

pub use manifest::{CheckpointError, FORMAT_VERSION, MANIFEST_FILE, Manifest, is_plain_name};
pub use open::{Checkpoint, STATE_FILE, folder_name};
pub use retain::{
    Cleaned, Found, LossOf, Pruned, Retention, clean_leftovers, find_latest, prune, remove,
    step_folders, surplus,
};
pub use save::{LATEST_FILE, WriteFile, save};
