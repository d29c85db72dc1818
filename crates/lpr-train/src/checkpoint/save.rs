//! Saving a checkpoint in stages, all or nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::manifest::{self, CheckpointError, FORMAT_VERSION, MANIFEST_FILE, Manifest};
use super::open::{Checkpoint, STATE_FILE, folder_name};
use crate::atomic_file::{self, remove_any, temporary_name};
use crate::fault::{self, Point};
use crate::sha256::HashedFile;

/// Name of the text file that tells people and scripts which checkpoint is the newest.
pub const LATEST_FILE: &str = "latest";

/// Writes the content of one file of a checkpoint.
pub type WriteFile<'a> = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()> + 'a>;

/// Saves a checkpoint of `step` below `checkpoints` and returns its folder.
///
/// `files` are written in order, each by its function; `state` becomes `state.json`. A valid
/// checkpoint of the same step with the same content is kept as it is, any other folder of that
/// name is replaced.
///
/// # Errors
/// [`CheckpointError`] naming the file; the temporary folder is then removed and older checkpoints
/// are untouched.
pub fn save(
    checkpoints: &Path,
    step: u64,
    files: Vec<(&str, WriteFile<'_>)>,
    state: &impl Serialize,
    config_hash: &str,
) -> Result<PathBuf, CheckpointError> {
    let mut staged = StagedSave::begin(checkpoints, step, config_hash)?;
    for (name, write) in files {
        staged.write_file(name, write)?;
    }
    staged.write_state(state)?;
    staged.write_manifest()?;
    let path = staged.publish()?;
    update_latest(checkpoints, step)?;
    Ok(path)
}

/// A save that is not visible yet; dropping it removes what was written.
pub(super) struct StagedSave {
    checkpoints: PathBuf,
    folder: PathBuf,
    manifest: Manifest,
    published: bool,
}

impl StagedSave {
    pub(super) fn begin(
        checkpoints: &Path,
        step: u64,
        config_hash: &str,
    ) -> Result<Self, CheckpointError> {
        let folder = checkpoints.join(temporary_name(&folder_name(step)));
        let to_io = |source| CheckpointError::io(&folder, source);
        fs::create_dir_all(checkpoints).map_err(to_io)?;
        // A folder of that name is left from a process that had our id, so nobody else is using it.
        remove_any(&folder).map_err(to_io)?;
        fault::at(Point::SaveBegin)
            .and_then(|()| fs::create_dir(&folder))
            .map_err(to_io)?;
        let manifest = Manifest {
            format_version: FORMAT_VERSION,
            lpr_train_version: env!("CARGO_PKG_VERSION").to_owned(),
            step,
            config_hash: config_hash.to_owned(),
            files: BTreeMap::new(),
        };
        Ok(Self {
            checkpoints: checkpoints.to_path_buf(),
            folder,
            manifest,
            published: false,
        })
    }

    pub(super) fn write_file(
        &mut self,
        name: &str,
        write: WriteFile<'_>,
    ) -> Result<(), CheckpointError> {
        if !manifest::is_plain_name(name)
            || name == MANIFEST_FILE
            || self.manifest.files.contains_key(name)
        {
            return Err(CheckpointError::BadName {
                name: name.to_owned(),
            });
        }
        let path = self.folder.join(name);
        let written = || {
            fault::at(Point::SaveFile)?;
            let mut file = HashedFile::create(&path)?;
            write(&mut file)?;
            fault::at(Point::SaveSync)?;
            file.finish()
        };
        let entry = written().map_err(|source| CheckpointError::io(&path, source))?;
        self.manifest.files.insert(name.to_owned(), entry);
        Ok(())
    }

    pub(super) fn write_state(&mut self, state: &impl Serialize) -> Result<(), CheckpointError> {
        let text = serde_json::to_vec_pretty(state);
        self.write_file(STATE_FILE, Box::new(|out| out.write_all(&text?)))
    }

    pub(super) fn write_manifest(&mut self) -> Result<(), CheckpointError> {
        self.manifest.write(&self.folder)?;
        fault::at(Point::SaveFolderSync)
            .and_then(|()| atomic_file::sync_folder(&self.folder))
            .map_err(|source| CheckpointError::io(&self.folder, source))
    }

    pub(super) fn publish(mut self) -> Result<PathBuf, CheckpointError> {
        let name = folder_name(self.manifest.step);
        let target = self.checkpoints.join(&name);
        let to_io = |source| CheckpointError::io(&target, source);
        let replaced = self
            .checkpoints
            .join(temporary_name(&format!("replaced-{name}")));
        if fs::symlink_metadata(&target).is_ok() {
            match Checkpoint::open(&target) {
                Ok(old) if *old.manifest() == self.manifest => return Ok(target),
                // What a later version wrote is not ours to replace.
                Err(error @ CheckpointError::NewerFormat { .. }) => return Err(error),
                _ => {}
            }
            remove_any(&replaced).map_err(to_io)?;
            fs::rename(&target, &replaced).map_err(to_io)?;
        }
        let renamed = fault::at(Point::SaveRename).and_then(|()| fs::rename(&self.folder, &target));
        if let Err(error) = renamed {
            // Put the old one back, if there was one; the error to report is the first.
            let _ = fs::rename(&replaced, &target);
            return Err(to_io(error));
        }
        self.published = true;
        fault::at(Point::SaveParentSync)
            .and_then(|()| atomic_file::sync_folder(&self.checkpoints))
            .map_err(to_io)?;
        remove_any(&replaced).map_err(to_io)?;
        Ok(target)
    }
}

impl Drop for StagedSave {
    fn drop(&mut self) {
        if !self.published {
            // Whatever stopped the save is reported; a leftover is removed at the next start.
            let _ = remove_any(&self.folder);
        }
    }
}

pub(super) fn update_latest(checkpoints: &Path, step: u64) -> Result<(), CheckpointError> {
    let path = checkpoints.join(LATEST_FILE);
    fault::at(Point::SaveLatest)
        .and_then(|()| atomic_file::replace(&path, |out| writeln!(out, "{}", folder_name(step))))
        .map_err(|source| CheckpointError::io(&path, source))
}
