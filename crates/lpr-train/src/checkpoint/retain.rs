//! The checkpoints of a run together: which one is the newest valid one, which ones may go.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::manifest::CheckpointError;
use super::open::{Checkpoint, folder_name, step_of};
use super::save::LATEST_FILE;
use crate::atomic_file::{TEMPORARY_PREFIX, remove_any, temporary_name};
use crate::process;

/// What [`find_latest`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The newest valid checkpoint.
    pub checkpoint: Option<Checkpoint>,
    /// One line for each newer folder that had to be passed over, and for a wrong `latest`.
    pub warnings: Vec<String>,
}

/// Finds the newest valid checkpoint below `checkpoints`; a folder that does not exist holds none.
///
/// The folders decide, not the file `latest`: a crash between the rename and its update leaves it
/// one save behind.
///
/// # Errors
/// [`CheckpointError::NewerFormat`] if the newest one needs a later version (falling back would
/// continue from an old state without saying so), [`CheckpointError::Io`] if the folder cannot be
/// listed.
pub fn find_latest(checkpoints: &Path) -> Result<Found, CheckpointError> {
    let mut found = Found::default();
    for (step, path) in step_folders(checkpoints)? {
        match Checkpoint::open(&path) {
            Ok(checkpoint) => {
                found.checkpoint = Some(checkpoint);
                break;
            }
            Err(error @ CheckpointError::NewerFormat { .. }) => return Err(error),
            Err(error) => {
                let name = folder_name(step);
                found
                    .warnings
                    .push(format!("skipped {name}: {}", chain(&error)));
            }
        }
    }
    // After a skipped folder `latest` is wrong for a reason that was already told.
    if let (Some(checkpoint), true) = (&found.checkpoint, found.warnings.is_empty()) {
        found
            .warnings
            .extend(latest_warning(checkpoints, checkpoint.step()));
    }
    Ok(found)
}

/// What is wrong with the file `latest`, if it does not name the folder of `step`.
fn latest_warning(checkpoints: &Path, step: u64) -> Option<String> {
    let (want, path) = (folder_name(step), checkpoints.join(LATEST_FILE));
    let said = fs::read(&path).map(|text| String::from_utf8_lossy(&text).trim_end().to_owned());
    if said.as_ref().is_ok_and(|said| *said == want) {
        return None;
    }
    let said = said.map_or_else(|error| error.to_string(), |said| format!("{said:.40?}"));
    Some(format!(
        "{} does not name {want} ({said}); it is ignored",
        path.display()
    ))
}

/// Removes the temporary files and folders of processes that no longer run, and returns their
/// paths.
///
/// To be called by the owner of the run, before its first save: its own process id, too, can only
/// be that of an earlier process.
///
/// # Errors
/// [`CheckpointError::Io`] if the folder cannot be listed or a leftover cannot be removed.
pub fn clean_leftovers(folder: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let mut removed = Vec::new();
    for (name, path) in entries(folder)? {
        let owner = name
            .strip_prefix(TEMPORARY_PREFIX)
            .and_then(|rest| rest.split('-').next()?.parse().ok());
        if owner.is_some_and(|pid: u32| pid == std::process::id() || !process::is_alive(pid)) {
            remove_any(&path).map_err(|source| CheckpointError::io(&path, source))?;
            removed.push(path);
        }
    }
    removed.sort();
    Ok(removed)
}

/// What [`prune`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// The checkpoints that are gone.
    pub removed: Vec<PathBuf>,
    /// One line for each that could not be removed.
    pub warnings: Vec<String>,
}

/// Keeps the newest `keep_last` complete checkpoints (at least one) and removes the older ones.
///
/// Nothing is removed before the newest one was read back and its hashes compared. Invalid folders
/// newer than the oldest one kept stay for inspection.
///
/// # Errors
/// [`CheckpointError::Io`] if the folder cannot be listed; a removal that fails is a warning.
pub fn prune(checkpoints: &Path, keep_last: usize) -> Result<Pruned, CheckpointError> {
    let mut pruned = Pruned::default();
    let mut kept = 0;
    for (step, path) in step_folders(checkpoints)? {
        if kept < keep_last.max(1) {
            let opened = if kept == 0 {
                Checkpoint::open(&path)
            } else {
                Checkpoint::open_unhashed(&path)
            };
            kept += usize::from(opened.is_ok());
            continue;
        }
        // Renamed first, so that a crash in between does not leave half a checkpoint under a valid
        // name.
        let doomed = checkpoints.join(temporary_name(&format!("removed-{}", folder_name(step))));
        match remove_any(&doomed)
            .and_then(|()| fs::rename(&path, &doomed))
            .and_then(|()| remove_any(&doomed))
        {
            Ok(()) => pruned.removed.push(path),
            Err(error) => pruned
                .warnings
                .push(format!("cannot remove {}: {error}", path.display())),
        }
    }
    Ok(pruned)
}

/// The checkpoint folders, newest first.
fn step_folders(checkpoints: &Path) -> Result<Vec<(u64, PathBuf)>, CheckpointError> {
    let entries = entries(checkpoints)?;
    let mut folders: Vec<_> = entries
        .into_iter()
        .filter_map(|(name, path)| Some((step_of(&name)?, path)))
        .collect();
    folders.sort_by_key(|(step, _)| std::cmp::Reverse(*step));
    Ok(folders)
}

/// Names and paths in a folder; none if it does not exist.
fn entries(folder: &Path) -> Result<Vec<(String, PathBuf)>, CheckpointError> {
    let to_io = |source| CheckpointError::io(folder, source);
    let items = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        items => items.map_err(to_io)?,
    };
    let named = |item: fs::DirEntry| (item.file_name().to_string_lossy().into_owned(), item.path());
    items.map(|item| item.map(named).map_err(to_io)).collect()
}

/// An error with its causes on one line.
fn chain(error: &CheckpointError) -> String {
    let source = std::error::Error::source(error);
    source.map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}
