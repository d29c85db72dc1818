//! The checkpoints of a run together: which one is the newest valid one, which ones may go.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::manifest::CheckpointError;
use super::open::{Checkpoint, folder_name, step_of};
use super::save::LATEST_FILE;
use crate::atomic_file::{TEMPORARY_PREFIX, remove_any, temporary_name};
use crate::fault::{self, Point};
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

/// What [`clean_leftovers`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// What is gone.
    pub removed: Vec<PathBuf>,
    /// One line for each that could not be removed.
    pub warnings: Vec<String>,
}

/// Removes the temporary files and folders of processes that no longer run.
///
/// To be called by the owner of the run, before its first save: its own process id, too, can only
/// be that of an earlier process.
///
/// # Errors
/// [`CheckpointError::Io`] if the folder cannot be listed; a removal that fails is a warning.
pub fn clean_leftovers(folder: &Path) -> Result<Cleaned, CheckpointError> {
    let mut cleaned = Cleaned::default();
    for (name, path) in entries(folder)? {
        let owner = name
            .strip_prefix(TEMPORARY_PREFIX)
            .and_then(|rest| rest.split('-').next()?.parse().ok());
        if owner.is_some_and(|pid: u32| pid == std::process::id() || !process::is_alive(pid)) {
            match fault::at(Point::CleanRemove).and_then(|()| remove_any(&path)) {
                Ok(()) => cleaned.removed.push(path),
                Err(error) => cleaned.warnings.push(cannot_remove(&path, &error)),
            }
        }
    }
    cleaned.removed.sort();
    Ok(cleaned)
}

/// Which checkpoints of a run to keep. What any of the three rules keeps, stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// The newest ones; at least one stays.
    pub keep_last: usize,
    /// Those whose step is a multiple of this; 0 keeps none for that reason.
    pub keep_every: u64,
    /// Those with the lowest validation loss.
    pub keep_best: usize,
}

/// The validation loss of a checkpoint, if it was evaluated when it was saved.
pub type LossOf<'a> = &'a dyn Fn(&Checkpoint) -> Option<f64>;

/// The checkpoints that `retention` does not keep, newest first. Nothing is removed yet.
///
/// The newest valid one is never among them: it is the first whose hashes were read back and
/// compared. A broken folder stays for inspection until `keep_last` complete ones are newer; what a
/// later version wrote stays in any case.
///
/// # Errors
/// [`CheckpointError::Io`] if the folder cannot be listed.
pub fn surplus(
    checkpoints: &Path,
    retention: Retention,
    loss_of: LossOf<'_>,
) -> Result<Vec<PathBuf>, CheckpointError> {
    fault::at(Point::PruneList).map_err(|source| CheckpointError::io(checkpoints, source))?;
    let mut complete: Vec<Checkpoint> = Vec::new();
    let mut doomed: Vec<(u64, PathBuf)> = Vec::new();
    let keep_last = retention.keep_last.max(1);
    for (step, path) in step_folders(checkpoints)? {
        let opened = if complete.is_empty() {
            Checkpoint::open(&path)
        } else {
            Checkpoint::open_unhashed(&path)
        };
        match opened {
            Ok(checkpoint) => complete.push(checkpoint),
            Err(CheckpointError::NewerFormat { .. }) => {}
            Err(_) if complete.len() >= keep_last => doomed.push((step, path)),
            Err(_) => {}
        }
    }
    let mut losses: Vec<(f64, u64)> = match retention.keep_best {
        0 => Vec::new(),
        _ => complete
            .iter()
            .filter_map(|checkpoint| Some((loss_of(checkpoint)?, checkpoint.step())))
            .collect(),
    };
    // Of equal losses the newer one is the better one.
    losses.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
    losses.truncate(retention.keep_best);
    let is_kept = |step: u64| {
        let landmark = retention.keep_every > 0 && step.is_multiple_of(retention.keep_every);
        landmark || losses.iter().any(|(_, best)| *best == step)
    };
    let old = complete.iter().skip(keep_last);
    let old = old.filter(|checkpoint| !is_kept(checkpoint.step()));
    doomed.extend(old.map(|checkpoint| (checkpoint.step(), checkpoint.path().to_path_buf())));
    doomed.sort_by_key(|(step, _)| std::cmp::Reverse(*step));
    Ok(doomed.into_iter().map(|(_, path)| path).collect())
}

/// What [`prune`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// The checkpoints that are gone.
    pub removed: Vec<PathBuf>,
    /// One line for each that could not be removed.
    pub warnings: Vec<String>,
}

/// Removes the [`surplus`].
///
/// # Errors
/// [`CheckpointError::Io`] if the folder cannot be listed; a removal that fails is a warning and
/// does not keep the others from being removed.
pub fn prune(
    checkpoints: &Path,
    retention: Retention,
    loss_of: LossOf<'_>,
) -> Result<Pruned, CheckpointError> {
    let mut pruned = Pruned::default();
    for path in surplus(checkpoints, retention, loss_of)? {
        match remove(checkpoints, &path) {
            Ok(()) => pruned.removed.push(path),
            Err(error) => pruned.warnings.push(cannot_remove(&path, &error)),
        }
    }
    Ok(pruned)
}

/// Removes a checkpoint. It is renamed first, so that a crash in between does not leave half of it
/// under a valid name.
///
/// # Errors
/// Those of the file system.
pub fn remove(checkpoints: &Path, checkpoint: &Path) -> io::Result<()> {
    let name = checkpoint.file_name().unwrap_or_default().to_string_lossy();
    let doomed = checkpoints.join(temporary_name(&format!("removed-{name}")));
    remove_any(&doomed)?;
    fault::at(Point::PruneRename)?;
    fs::rename(checkpoint, &doomed)?;
    fault::at(Point::PruneRemove)?;
    remove_any(&doomed)
}

fn cannot_remove(path: &Path, error: &io::Error) -> String {
    format!("cannot remove {}: {error}", path.display())
}

/// The steps and folders of all checkpoints, valid or not, newest first.
///
/// # Errors
/// [`CheckpointError::Io`] if the folder cannot be listed.
pub fn step_folders(checkpoints: &Path) -> Result<Vec<(u64, PathBuf)>, CheckpointError> {
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
    fault::at(Point::OpenList).map_err(to_io)?;
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
