//! Names and files of the cache: what a file is called there, and whether it is what its name says.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use hf_hub::{Cache, Repo, RepoType};
use serde::{Deserialize, Serialize};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::address::{RepoAddress, is_commit, is_hex, shown};
use super::error::HubError;
use super::listing::Entry;
use crate::tokenizer::hex;

/// Ends the names of files that are not complete, as in Python.
const INCOMPLETE: &str = ".incomplete";
/// Ends the name of the file that holds the hash of a file from a server that gives none.
const SHA256: &str = ".sha256";

/// What is known about the content of a file before it is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ContentHash {
    /// Files in the large-file store of the hub.
    Sha256(String),
    /// Other files of the hub: SHA-1 of a header and the content.
    Git(String),
    /// What another server says; equal as long as the file is, if the server is right.
    Etag(String),
    Unknown,
}

impl ContentHash {
    /// The hash that a file of the hub is named by.
    pub(crate) fn of_name(name: &str) -> Option<Self> {
        match name.len() {
            64 if is_hex(name) => Some(Self::Sha256(name.to_owned())),
            40 if is_hex(name) => Some(Self::Git(name.to_owned())),
            _ => None,
        }
    }

    /// For comparisons and messages.
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Sha256(text) | Self::Git(text) | Self::Etag(text) => text,
            Self::Unknown => "",
        }
    }
}

/// A file on the network: what it is, and where it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RemoteFile {
    /// Its address without secrets, for people and for the order of files.
    pub(crate) name: PathBuf,
    pub(crate) url: String,
    /// Where access can be asked for.
    pub(crate) page: String,
    /// Bytes.
    pub(crate) size: u64,
    pub(crate) hash: ContentHash,
    pub(crate) place: Place,
}

impl RemoteFile {
    pub(crate) fn address(&self) -> String {
        self.name.to_string_lossy().into_owned()
    }
}

/// Where a file is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// The content.
    pub(crate) blob: PathBuf,
    /// A link to it under its own name.
    pub(crate) link: PathBuf,
    /// Held by the program that fetches it.
    pub(crate) lock: PathBuf,
}

impl Place {
    pub(crate) fn incomplete(&self) -> PathBuf {
        with_ending(&self.blob, INCOMPLETE)
    }

    fn sha256(&self) -> PathBuf {
        with_ending(&self.blob, SHA256)
    }

    /// Takes the file out of the cache, as far as it is there.
    pub(crate) fn remove(&self) -> Result<(), HubError> {
        for path in [&self.link, &self.blob, &self.sha256()] {
            if path.symlink_metadata().is_ok() {
                std::fs::remove_file(path).map_err(|error| io(path, &error))?;
            }
        }
        Ok(())
    }

    /// Makes the file visible under its own name.
    pub(crate) fn link(&self) -> Result<(), HubError> {
        if self.link.exists() {
            return Ok(());
        }
        create_parent(&self.link)?;
        // Left over from a file that is gone.
        let _ = std::fs::remove_file(&self.link);
        link(&self.blob, &self.link).or_else(|error| {
            // Another program may have been faster.
            if self.link.exists() {
                Ok(())
            } else {
                Err(io(&self.link, &error))
            }
        })
    }
}

#[cfg(unix)]
fn link(blob: &Path, link: &Path) -> std::io::Result<()> {
    let up = |from: &Path, root: &Path| -> Option<PathBuf> {
        let below = from.parent()?.strip_prefix(root).ok()?;
        Some(below.components().map(|_| "..").collect())
    };
    // Relative, so that the cache can be moved.
    let root = blob.parent().and_then(Path::parent);
    let target = root.and_then(|root| Some(up(link, root)?.join(blob.strip_prefix(root).ok()?)));
    std::os::unix::fs::symlink(target.as_deref().unwrap_or(blob), link)
}

#[cfg(not(unix))]
fn link(blob: &Path, link: &Path) -> std::io::Result<()> {
    std::fs::hard_link(blob, link)
}

/// The folder of a repository in the cache.
pub(crate) struct RepoFolder {
    repo: Repo,
    cache: Cache,
}

impl RepoFolder {
    pub(crate) fn new(cache: &Path, address: &RepoAddress) -> Self {
        let kind = if address.is_dataset {
            RepoType::Dataset
        } else {
            RepoType::Model
        };
        let revision = address.revision().to_owned();
        Self {
            repo: Repo::with_revision(address.name.clone(), kind, revision),
            cache: Cache::new(cache.to_owned()),
        }
    }

    fn root(&self) -> PathBuf {
        self.cache.path().join(self.repo.folder_name())
    }

    /// The folder of the files of a commit.
    fn snapshot(&self, commit: &str) -> PathBuf {
        self.cache.repo(self.repo.clone()).pointer_path(commit)
    }

    pub(crate) fn ref_path(&self, revision: &str) -> PathBuf {
        self.root().join("refs").join(revision)
    }

    /// The commit that a revision meant when it was last asked.
    pub(crate) fn read_ref(&self, revision: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.ref_path(revision)).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    pub(crate) fn write_ref(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        if self.read_ref(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let created = self.cache.repo(self.repo.clone()).create_ref(commit);
        created.map_err(|error| io(&self.ref_path(revision), &error))
    }

    pub(crate) fn place(&self, address: &RepoAddress, hash: &ContentHash) -> Place {
        let locks = self
            .cache
            .path()
            .join(".locks")
            .join(self.repo.folder_name());
        Place {
            blob: self.root().join("blobs").join(hash.text()),
            link: self.snapshot(address.revision()).join(&address.path),
            lock: locks.join(format!("{}.lock", hash.text())),
        }
    }

    /// The files of a folder that are in the cache; their names in `blobs` tell their hashes.
    pub(crate) fn list(&self, folder: &RepoAddress, is_deep: bool) -> Result<Vec<Entry>, HubError> {
        let snapshot = self.snapshot(folder.revision());
        let mut entries = Vec::new();
        let mut folders = vec![folder.path.clone()];
        while let Some(below) = folders.pop() {
            let path = snapshot.join(&below);
            // A folder nothing of which is there.
            let Ok(found) = std::fs::read_dir(&path) else {
                continue;
            };
            for item in found {
                let item = item.map_err(|error| io(&path, &error))?;
                let Ok(name) = item.file_name().into_string() else {
                    continue;
                };
                let below = [below.as_str(), &name]
                    .join("/")
                    .trim_start_matches('/')
                    .to_owned();
                let metadata = std::fs::metadata(item.path());
                if metadata.as_ref().is_ok_and(std::fs::Metadata::is_dir) {
                    folders.extend(is_deep.then_some(below));
                    continue;
                }
                let target = item.path().canonicalize().ok();
                let hash = target
                    .as_deref()
                    .and_then(Path::file_name)
                    .and_then(|name| ContentHash::of_name(name.to_str()?));
                if let (Ok(metadata), Some(hash)) = (metadata, hash) {
                    let (path, size) = (below, metadata.len());
                    entries.push(Entry { path, size, hash });
                }
            }
        }
        Ok(entries)
    }
}

/// What is remembered about a file of another server.
#[derive(Serialize, Deserialize)]
struct WebFile {
    size: u64,
    etag: Option<String>,
}

/// The description of a file of another server.
pub(crate) fn web_file(cache: &Path, url: &str, size: u64, etag: Option<String>) -> RemoteFile {
    let name = shown(url);
    let key = format!("{url}\n{size}\n{}", etag.as_deref().unwrap_or_default());
    let key = hex(&Sha256::digest(key));
    let file_name = name.rsplit('/').next().unwrap_or_default().to_owned();
    RemoteFile {
        name: name.clone().into(),
        url: url.to_owned(),
        page: name,
        size,
        hash: etag.map_or(ContentHash::Unknown, ContentHash::Etag),
        place: Place {
            blob: cache.join("blobs").join(&key),
            link: cache.join("snapshots").join(&key).join(file_name),
            lock: cache.join("locks").join(&key),
        },
    }
}

fn web_ref(cache: &Path, url: &str) -> PathBuf {
    cache.join("refs").join(hex(&Sha256::digest(url)))
}

/// Writes down what a server said, for times without network.
pub(crate) fn remember_web_file(
    cache: &Path,
    url: &str,
    file: &RemoteFile,
) -> Result<(), HubError> {
    let path = web_ref(cache, url);
    let etag = match &file.hash {
        ContentHash::Etag(etag) => Some(etag.clone()),
        _ => None,
    };
    let text = serde_json::json!(WebFile {
        size: file.size,
        etag
    });
    create_parent(&path)?;
    std::fs::write(&path, text.to_string()).map_err(|error| io(&path, &error))
}

/// What a server said last.
pub(crate) fn known_web_file(cache: &Path, url: &str) -> Option<RemoteFile> {
    let text = std::fs::read_to_string(web_ref(cache, url)).ok()?;
    let WebFile { size, etag } = serde_json::from_str(&text).ok()?;
    Some(web_file(cache, url, size, etag))
}

/// Compares a complete file with what is known about it. `Err` holds what was found instead.
pub(crate) fn check_content(
    file: &RemoteFile,
    path: &Path,
) -> Result<Result<(), String>, HubError> {
    let (found, expected) = match &file.hash {
        ContentHash::Sha256(expected) => (sha256_of(path)?, expected.clone()),
        ContentHash::Git(expected) => (git_hash_of(path)?, expected.clone()),
        ContentHash::Etag(_) | ContentHash::Unknown => {
            // Only once it is in the cache can it be compared with what it was then.
            match std::fs::read_to_string(file.place.sha256()) {
                Ok(expected) if path == file.place.blob => (sha256_of(path)?, expected),
                _ => return Ok(Ok(())),
            }
        }
    };
    Ok(if found == expected {
        Ok(())
    } else {
        Err(found)
    })
}

/// Remembers the hash of a file from a server that gives none.
pub(crate) fn note_content(file: &RemoteFile, path: &Path) -> Result<(), HubError> {
    if matches!(file.hash, ContentHash::Etag(_) | ContentHash::Unknown) {
        let note = file.place.sha256();
        std::fs::write(&note, sha256_of(path)?).map_err(|error| io(&note, &error))?;
    }
    Ok(())
}

fn sha256_of(path: &Path) -> Result<String, HubError> {
    digest(path, Sha256::new())
}

fn git_hash_of(path: &Path) -> Result<String, HubError> {
    let len = std::fs::metadata(path)
        .map_err(|error| io(path, &error))?
        .len();
    digest(path, Sha1::new().chain_update(format!("blob {len}\0")))
}

fn digest(path: &Path, mut hasher: impl Digest) -> Result<String, HubError> {
    let mut file = File::open(path).map_err(|error| io(path, &error))?;
    let mut buffer = vec![0; 1 << 17];
    loop {
        match file.read(&mut buffer).map_err(|error| io(path, &error))? {
            0 => return Ok(hex(&hasher.finalize())),
            read => hasher.update(&buffer[..read]),
        }
    }
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

pub(crate) fn create_parent(path: &Path) -> Result<(), HubError> {
    let parent = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(|error| io(parent, &error))
}

pub(crate) fn io(path: &Path, error: &std::io::Error) -> HubError {
    HubError::Io {
        path: path.to_owned(),
        reason: error.to_string(),
    }
}
