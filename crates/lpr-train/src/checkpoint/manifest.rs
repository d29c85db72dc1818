//! The manifest of a checkpoint: which files belong to it, how large they are and their SHA-256.
//!
//! It is written last, so a folder without a complete manifest is not a checkpoint; and it is read
//! first, so nothing in the folder is used before its hash was compared.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::atomic_file;
use crate::fault::{self, Point};
use crate::sha256::{self, FileEntry};

/// Name of the manifest inside a checkpoint folder.
pub const MANIFEST_FILE: &str = "manifest.json";
/// The layout that this version writes, and the newest one it reads.
pub const FORMAT_VERSION: u64 = 1;
/// The oldest layout that this version reads.
const OLDEST_VERSION: u64 = 1;
/// A manifest larger than this is not ours.
const MAX_MANIFEST_BYTES: u64 = 1 << 20;

/// Why a checkpoint could not be written or may not be used.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// The file system refused.
    #[error("cannot use {path}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is missing, extra, of another size or of another content than the manifest says.
    #[error("unusable checkpoint: {path}: {reason}", path = path.display())]
    Invalid {
        /// The file or folder.
        path: PathBuf,
        /// What was found and what was expected.
        reason: String,
    },
    /// The checkpoint was written by a later version.
    #[error(
        "{path} has format version {found}, this lpr-train reads up to {supported}; use lpr-train \
         {writer} or newer",
        path = path.display()
    )]
    NewerFormat {
        /// The manifest.
        path: PathBuf,
        /// Its format version.
        found: u64,
        /// The newest format version known here.
        supported: u64,
        /// The version of `lpr-train` that wrote it.
        writer: String,
    },
    /// A file of the checkpoint was asked for under a name that is not in the manifest.
    #[error("{path} holds no file `{name}`", path = path.display())]
    NoSuchFile {
        /// The checkpoint folder.
        path: PathBuf,
        /// The name asked for.
        name: String,
    },
    /// A file of a save has a name that is reserved or not a plain file name.
    #[error("`{name}` cannot be the name of a file in a checkpoint")]
    BadName {
        /// The name.
        name: String,
    },
}

impl CheckpointError {
    /// An input or output error at `path`.
    pub fn io(path: &Path, source: io::Error) -> Self {
        Self::Io {
            path: path.to_path_buf(),
            source,
        }
    }
}

/// The content of `manifest.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the layout of the folder.
    pub format_version: u64,
    /// The version of `lpr-train` that wrote it.
    pub lpr_train_version: String,
    /// Optimizer steps done.
    pub step: u64,
    /// Hash of the resolved configuration of the run.
    pub config_hash: String,
    /// Every other file of the folder, by plain name.
    pub files: BTreeMap<String, FileEntry>,
}

impl Manifest {
    /// Reads the manifest of a folder; the files it lists are not looked at yet.
    ///
    /// # Errors
    /// [`CheckpointError::NewerFormat`] for a layout this version does not know, and
    /// [`CheckpointError::Invalid`] for a manifest that is missing, incomplete or names files
    /// outside the folder.
    pub fn read(folder: &Path) -> Result<Self, CheckpointError> {
        let path = folder.join(MANIFEST_FILE);
        let invalid = |reason: String| CheckpointError::Invalid {
            path: path.clone(),
            reason,
        };
        let size = regular_file_size(&path).map_err(&invalid)?;
        if size > MAX_MANIFEST_BYTES {
            return Err(invalid(format!(
                "it has {size} bytes, more than {MAX_MANIFEST_BYTES}"
            )));
        }
        let text = fault::at(Point::OpenManifest)
            .and_then(|()| fs::read(&path))
            .map_err(|error| invalid(error.to_string()))?;
        let value: serde_json::Value = serde_json::from_slice(&text)
            .map_err(|error| invalid(format!("it is incomplete or damaged ({error})")))?;
        let version = value["format_version"].as_u64();
        if version.is_some_and(|version| version < OLDEST_VERSION) {
            return Err(invalid(format!(
                "its format version is below {OLDEST_VERSION}, which no lpr-train has written"
            )));
        }
        if let Some(found) = version.filter(|&version| version > FORMAT_VERSION) {
            let writer = value["lpr_train_version"]
                .as_str()
                .unwrap_or("unknown")
                .to_owned();
            return Err(CheckpointError::NewerFormat {
                path,
                found,
                supported: FORMAT_VERSION,
                writer,
            });
        }
        let manifest: Self = serde_json::from_value(value)
            .map_err(|error| invalid(format!("it is incomplete or damaged ({error})")))?;
        match manifest.files.keys().find(|name| !is_plain_name(name)) {
            Some(name) => Err(invalid(format!(
                "it lists `{name}`, which is not a plain file name"
            ))),
            None => Ok(manifest),
        }
    }

    /// Compares the folder with the manifest: the same files, all regular, of the listed sizes.
    ///
    /// # Errors
    /// [`CheckpointError::Invalid`] naming the first file that is missing, extra or of another
    /// size.
    pub fn check_sizes(&self, folder: &Path) -> Result<(), CheckpointError> {
        for (name, entry) in &self.files {
            let path = folder.join(name);
            let invalid = |reason| CheckpointError::Invalid {
                path: path.clone(),
                reason,
            };
            let found = regular_file_size(&path).map_err(invalid)?;
            if found != entry.bytes {
                return Err(invalid(format!(
                    "it has {found} bytes, the manifest says {}",
                    entry.bytes
                )));
            }
        }
        self.check_no_others(folder)
    }

    /// Compares the names in the folder with the manifest.
    ///
    /// # Errors
    /// [`CheckpointError::Invalid`] naming a file that is not listed.
    pub fn check_no_others(&self, folder: &Path) -> Result<(), CheckpointError> {
        let mut extra = BTreeSet::new();
        for item in fs::read_dir(folder).map_err(|source| CheckpointError::io(folder, source))? {
            let item = item.map_err(|source| CheckpointError::io(folder, source))?;
            let name = item.file_name().to_string_lossy().into_owned();
            if name != MANIFEST_FILE && !self.files.contains_key(&name) {
                extra.insert(name);
            }
        }
        extra.first().map_or(Ok(()), |name| {
            let reason = "it is not listed in the manifest".to_owned();
            Err(CheckpointError::Invalid {
                path: folder.join(name),
                reason,
            })
        })
    }

    /// Compares the content of every file with its hash.
    ///
    /// # Errors
    /// [`CheckpointError::Invalid`] naming the first file whose content changed.
    pub fn check_hashes(&self, folder: &Path) -> Result<(), CheckpointError> {
        for (name, entry) in &self.files {
            let path = folder.join(name);
            let found = fault::at(Point::OpenHash)
                .and_then(|()| sha256::of_file(&path))
                .map_err(|source| CheckpointError::io(&path, source))?;
            if found != *entry {
                let reason = format!(
                    "its SHA-256 is {}, the manifest says {}",
                    found.sha256, entry.sha256
                );
                return Err(CheckpointError::Invalid { path, reason });
            }
        }
        Ok(())
    }

    /// Writes the manifest durably as the last file of `folder`.
    ///
    /// # Errors
    /// [`CheckpointError::Io`] if the file system refuses.
    pub fn write(&self, folder: &Path) -> Result<(), CheckpointError> {
        let path = folder.join(MANIFEST_FILE);
        let to_io = |source| CheckpointError::io(&path, source);
        let text = serde_json::to_vec_pretty(self).map_err(|error| to_io(error.into()))?;
        fault::at(Point::SaveManifest)
            .and_then(|()| fs::write(&path, text))
            .and_then(|()| fault::at(Point::SaveManifestSync))
            .and_then(|()| atomic_file::sync_file(&path))
            .map_err(to_io)
    }
}

/// Whether a name stays inside its folder on every system: no separators, no `..`, not hidden, no
/// control characters.
pub fn is_plain_name(name: &str) -> bool {
    let forbidden = |c: char| matches!(c, '/' | '\\' | ':') || c.is_control();
    !name.is_empty() && !name.starts_with('.') && name.len() <= 255 && !name.chars().any(forbidden)
}

/// The size of a regular file, or why it is not one. Links are not followed: they lead out of the
/// folder.
fn regular_file_size(path: &PathBuf) -> Result<u64, String> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => Ok(metadata.len()),
        Ok(metadata) if metadata.is_symlink() => Err("it is a symbolic link".to_owned()),
        Ok(_) => Err("it is not a regular file".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err("it is missing".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_stay_in_the_folder_are_plain() {
        for name in [
            "model.safetensors",
            "state.json",
            "a b",
            "..a".trim_start_matches('.'),
        ] {
            assert!(is_plain_name(name), "{name}");
        }
        let long = "x".repeat(256);
        for name in [
            "", ".", "..", "../x", "/etc/x", "a/b", "a\\b", "C:x", "a\0b", ".hidden", &long,
        ] {
            assert!(!is_plain_name(name), "{name:?}");
        }
    }
}
