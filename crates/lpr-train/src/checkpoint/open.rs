//! Opening a checkpoint: nothing is used before every size and hash was compared.

use std::fs;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::manifest::{CheckpointError, Manifest};
use crate::fault::{self, Point};

/// Name of the file with the state of the run that is not tensors.
pub const STATE_FILE: &str = "state.json";

/// A checkpoint whose files were all compared with its manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    path: PathBuf,
    manifest: Manifest,
}

impl Checkpoint {
    /// Opens the checkpoint in the folder `path` and verifies every size and hash.
    ///
    /// # Errors
    /// [`CheckpointError`] naming the first file that is wrong, with what was found and expected.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let checkpoint = Self::open_unhashed(path)?;
        checkpoint.manifest.check_hashes(path)?;
        Ok(checkpoint)
    }

    /// Like [`Self::open`] without reading the content of the files.
    ///
    /// # Errors
    /// [`CheckpointError`] naming the first file that is missing, extra or of another size.
    pub fn open_unhashed(path: &Path) -> Result<Self, CheckpointError> {
        let invalid = |reason| {
            Err(CheckpointError::Invalid {
                path: path.to_path_buf(),
                reason,
            })
        };
        let metadata = fs::metadata(path).map_err(|source| CheckpointError::io(path, source))?;
        if !metadata.is_dir() {
            return invalid("it is not a folder; name the folder step-NNNNNNNN itself".to_owned());
        }
        let manifest = Manifest::read(path)?;
        manifest.check_sizes(path)?;
        if !manifest.files.contains_key(STATE_FILE) {
            return invalid(format!("its manifest does not list {STATE_FILE}"));
        }
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        match name.as_deref().and_then(step_of) {
            Some(step) if step != manifest.step => invalid(format!(
                "the folder is named for step {step}, the manifest says {}",
                manifest.step
            )),
            _ => Ok(Self {
                path: path.to_path_buf(),
                manifest,
            }),
        }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Optimizer steps done when it was saved.
    pub fn step(&self) -> u64 {
        self.manifest.step
    }

    /// What the manifest says.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The path of one of its files.
    ///
    /// # Errors
    /// [`CheckpointError::NoSuchFile`] if the manifest does not list `name`.
    pub fn file(&self, name: &str) -> Result<PathBuf, CheckpointError> {
        if self.manifest.files.contains_key(name) {
            Ok(self.path.join(name))
        } else {
            Err(CheckpointError::NoSuchFile {
                path: self.path.clone(),
                name: name.to_owned(),
            })
        }
    }

    /// The state it was saved with.
    ///
    /// # Errors
    /// [`CheckpointError`] if the file cannot be read or holds another kind of state.
    pub fn state<T: DeserializeOwned>(&self) -> Result<T, CheckpointError> {
        let path = self.file(STATE_FILE)?;
        let text = fault::at(Point::ReadState)
            .and_then(|()| fs::read(&path))
            .map_err(|source| CheckpointError::io(&path, source))?;
        serde_json::from_slice(&text).map_err(|error| CheckpointError::Invalid {
            path,
            reason: format!(
                "it holds another state than this lpr-train {}, it was written by {}: {error}",
                env!("CARGO_PKG_VERSION"),
                self.manifest.lpr_train_version
            ),
        })
    }
}

/// The name of the folder of a step.
pub fn folder_name(step: u64) -> String {
    format!("step-{step:08}")
}

pub(super) fn step_of(name: &str) -> Option<u64> {
    let step = name.strip_prefix("step-")?.parse().ok()?;
    (folder_name(step) == name).then_some(step)
}
