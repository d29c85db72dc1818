//! From the sources in the config to a sorted list of data files without duplicates.
//!
//! Does not read a file: what is inside is the business of `parquet.rs` and `json_lines.rs`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{DataError, Problem, Warning};
use crate::format::Format;
use crate::hub::{Hub, RemoteBytes, RemoteFile, is_remote};
use crate::input::Input;

/// The name of the built-in corpus.
pub(crate) const SYNTHETIC: &str = "builtin:synthetic";

/// One entry of the sorted list that a data position counts in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Shard {
    /// A file on disk. Sorted by path, component by component, so alike on every system.
    File(PathBuf, Format),
    /// A file on the network, after those on disk; sorted by address.
    Remote(RemoteShard),
    /// The built-in corpus, after all files.
    Synthetic,
}

/// A file on the network and the way to it.
#[derive(Clone)]
pub(crate) struct RemoteShard {
    file: Arc<RemoteFile>,
    format: Format,
    hub: Hub,
}

impl RemoteShard {
    fn open(&self) -> Result<Input, Problem> {
        if self.hub.stores(&self.file).map_err(Problem::from)? {
            Input::cached(self.hub.local(&self.file).map_err(Problem::from)?)
        } else {
            Ok(Input::Remote(RemoteBytes::new(&self.hub, &self.file)))
        }
    }
}

impl RemoteShard {
    fn look(&self) -> Result<Input, Problem> {
        if self.hub.is_cached(&self.file)? {
            return self.open();
        }
        let bytes = RemoteBytes::new(&self.hub, &self.file);
        bytes.set_useful_end(0);
        Ok(Input::Remote(bytes))
    }
}

impl std::fmt::Debug for RemoteShard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.file.fmt(f)
    }
}

impl PartialEq for RemoteShard {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for RemoteShard {}

impl PartialOrd for RemoteShard {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for RemoteShard {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.file.name.cmp(&other.file.name)
    }
}

impl Shard {
    /// The path, or the name of the built-in corpus, for messages.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::File(path, _) => path,
            Self::Remote(remote) => &remote.file.name,
            Self::Synthetic => Path::new(SYNTHETIC),
        }
    }

    /// How its documents are written; `None` for the built-in corpus.
    pub(crate) fn format(&self) -> Option<Format> {
        match self {
            Self::File(_, format) => Some(*format),
            Self::Remote(remote) => Some(remote.format),
            Self::Synthetic => None,
        }
    }

    /// Its bytes, fetched if need be, which may take long.
    pub(crate) fn open(&self) -> Result<Input, Problem> {
        match self {
            Self::Remote(remote) => remote.open(),
            _ => Input::open(self.path()),
        }
    }

    /// Its bytes for a look at a small part, without fetching all of it.
    pub(crate) fn look(&self) -> Result<Input, Problem> {
        match self {
            Self::Remote(remote) => remote.look(),
            _ => self.open(),
        }
    }

    /// Whether opening it may take long.
    pub(crate) fn is_remote(&self) -> bool {
        matches!(self, Self::Remote(_))
    }

    /// Starts to fetch it, so that opening it will not take long. To be called for the file after
    /// the one that is being read.
    pub(crate) fn fetch_ahead(&self) {
        if let Self::Remote(remote) = self
            && remote.hub.stores(&remote.file).unwrap_or(false)
        {
            remote.hub.fetch_ahead(&remote.file);
        }
    }

    /// Bytes on disk or on the network; 0 for the built-in corpus.
    pub(crate) fn size(&self) -> Result<u64, DataError> {
        match self {
            Self::File(path, _) => match std::fs::metadata(path) {
                Ok(metadata) => Ok(metadata.len()),
                Err(error) => Err(io(path, error)),
            },
            Self::Remote(remote) => Ok(remote.file.size),
            Self::Synthetic => Ok(0),
        }
    }

    /// The hash or entity tag of its content, where it is known without reading it.
    pub(crate) fn content_hash(&self) -> Option<&str> {
        match self {
            Self::Remote(remote) => Some(remote.file.hash.text()).filter(|text| !text.is_empty()),
            Self::File(..) | Self::Synthetic => None,
        }
    }
}

/// Expands every source, sorts by path and drops files that are listed twice.
pub(crate) fn resolve(
    sources: &[String],
    hub: &Hub,
) -> Result<(Vec<Shard>, Vec<Warning>), DataError> {
    let mut shards = Vec::new();
    for source in sources {
        expand(source, hub, &mut shards)?;
    }
    shards.sort();
    drop_duplicates(shards)
}

fn expand(source: &str, hub: &Hub, shards: &mut Vec<Shard>) -> Result<(), DataError> {
    if is_remote(source) {
        return expand_remote(source, hub, shards);
    }
    if source.starts_with("builtin:") {
        if source != SYNTHETIC {
            return Err(DataError::UnknownBuiltin {
                name: source.to_owned(),
            });
        }
        shards.push(Shard::Synthetic);
        return Ok(());
    }
    let path = Path::new(source);
    let found_before = shards.len();
    // A file whose own name holds a bracket is taken literally.
    if path.is_dir() {
        expand_folder(path, shards)?;
    } else if path.exists() {
        let format = Format::of(path).ok_or_else(|| DataError::UnknownExtension {
            path: path.to_owned(),
        })?;
        shards.push(Shard::File(path.to_owned(), format));
    } else if source.contains(['*', '?', '[']) {
        expand_glob(source, shards)?;
    }
    if shards.len() == found_before {
        return Err(DataError::NoMatch {
            pattern: source.to_owned(),
        });
    }
    Ok(())
}

fn expand_remote(source: &str, hub: &Hub, shards: &mut Vec<Shard>) -> Result<(), DataError> {
    let files = hub.files(source)?;
    if files.is_empty() {
        return Err(DataError::NoMatch {
            pattern: source.to_owned(),
        });
    }
    for file in files {
        let format = Format::of(&file.name).ok_or_else(|| DataError::UnknownExtension {
            path: file.name.clone(),
        })?;
        shards.push(Shard::Remote(RemoteShard {
            file: Arc::new(file),
            format,
            hub: hub.clone(),
        }));
    }
    Ok(())
}

fn expand_folder(folder: &Path, shards: &mut Vec<Shard>) -> Result<(), DataError> {
    let entries = std::fs::read_dir(folder).map_err(|error| io(folder, error))?;
    for entry in entries {
        let path = entry.map_err(|error| io(folder, error))?.path();
        push_listed(path, shards)?;
    }
    Ok(())
}

fn expand_glob(pattern: &str, shards: &mut Vec<Shard>) -> Result<(), DataError> {
    let paths = glob::glob(pattern).map_err(|error| DataError::BadGlob {
        pattern: pattern.to_owned(),
        reason: error.to_string(),
    })?;
    for path in paths {
        let path = path.map_err(|error| {
            let path = error.path().to_owned();
            io(&path, error.into())
        })?;
        push_listed(path, shards)?;
    }
    Ok(())
}

/// Takes a file found by listing if its extension is known. A dangling symlink is an error, not a
/// gap in the data.
fn push_listed(path: PathBuf, shards: &mut Vec<Shard>) -> Result<(), DataError> {
    let Some(format) = Format::of(&path) else {
        return Ok(());
    };
    let metadata = std::fs::metadata(&path).map_err(|error| io(&path, error))?;
    if metadata.is_file() {
        shards.push(Shard::File(path, format));
    }
    Ok(())
}

fn drop_duplicates(shards: Vec<Shard>) -> Result<(Vec<Shard>, Vec<Warning>), DataError> {
    let mut kept = HashMap::new();
    let mut unique = Vec::with_capacity(shards.len());
    let mut warnings = Vec::new();
    for shard in shards {
        let target = match &shard {
            Shard::File(path, _) => path.canonicalize().map_err(|error| io(path, error))?,
            Shard::Remote(_) | Shard::Synthetic => shard.path().to_owned(),
        };
        if let Some(kept) = kept.get(&target) {
            warnings.push(Warning::DuplicateSource {
                dropped: shard.path().to_owned(),
                kept: PathBuf::clone(kept),
            });
        } else {
            kept.insert(target, shard.path().to_owned());
            unique.push(shard);
        }
    }
    Ok((unique, warnings))
}

fn io(path: &Path, error: std::io::Error) -> DataError {
    DataError::Io {
        path: path.to_owned(),
        error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(folder: &Path, names: &[&str]) {
        for name in names {
            std::fs::write(folder.join(name), b"").unwrap();
        }
    }

    fn names(sources: &[String]) -> Vec<String> {
        let (shards, _) = resolve(sources, &Hub::default()).unwrap();
        let name = |shard: &Shard| {
            shard
                .path()
                .file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        };
        shards.iter().map(name).collect()
    }

    fn text(path: &Path) -> String {
        path.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_folder_yields_its_known_files_in_order_and_nothing_below() {
        let folder = tempfile::tempdir().unwrap();
        touch(
            folder.path(),
            &[
                "b.jsonl",
                "a.parquet",
                "notes.md",
                ".hidden.jsonl",
                "C.JSON.GZ",
            ],
        );
        std::fs::create_dir(folder.path().join("deeper.parquet")).unwrap();
        assert_eq!(
            names(&[text(folder.path())]),
            ["C.JSON.GZ", "a.parquet", "b.jsonl"]
        );
    }

    #[test]
    fn order_does_not_depend_on_the_order_of_the_sources() {
        let folder = tempfile::tempdir().unwrap();
        touch(folder.path(), &["1.jsonl", "2.jsonl", "10.jsonl"]);
        let listed = ["2.jsonl", "10.jsonl", "1.jsonl"];
        let listed = listed.map(|name| text(&folder.path().join(name)));
        let globbed = text(&folder.path().join("*.jsonl"));
        assert_eq!(names(&listed), ["1.jsonl", "10.jsonl", "2.jsonl"]);
        assert_eq!(names(&[globbed]), names(&listed));
    }

    #[cfg(unix)]
    #[test]
    fn a_file_listed_twice_or_through_a_symlink_is_read_once_with_a_warning() {
        let folder = tempfile::tempdir().unwrap();
        touch(folder.path(), &["a.jsonl"]);
        let link = folder.path().join("b.jsonl");
        std::os::unix::fs::symlink(folder.path().join("a.jsonl"), &link).unwrap();
        let sources = [text(folder.path()), text(&folder.path().join("a.jsonl"))];
        let (shards, warnings) = resolve(&sources, &Hub::default()).unwrap();
        assert_eq!(shards.len(), 1);
        assert_eq!(warnings.len(), 2);
        assert!(
            warnings[1].to_string().contains("b.jsonl"),
            "{}",
            warnings[1]
        );
    }

    #[cfg(unix)]
    #[test]
    fn a_dangling_symlink_is_an_error_and_not_a_gap() {
        let folder = tempfile::tempdir().unwrap();
        touch(folder.path(), &["a.jsonl"]);
        std::os::unix::fs::symlink("/nowhere/x", folder.path().join("b.jsonl")).unwrap();
        let error = resolve(&[text(folder.path())], &Hub::default()).unwrap_err();
        assert!(matches!(error, DataError::Io { .. }), "{error}");
    }

    #[test]
    fn every_source_that_yields_nothing_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let missing = text(&folder.path().join("*.parquet"));
        for source in [
            missing,
            text(folder.path()),
            "no-such-file.jsonl".to_owned(),
        ] {
            let error = resolve(std::slice::from_ref(&source), &Hub::default()).unwrap_err();
            assert!(matches!(&error, DataError::NoMatch { pattern } if *pattern == source));
        }
    }

    #[test]
    fn other_wrong_sources_have_their_own_error() {
        let folder = tempfile::tempdir().unwrap();
        touch(folder.path(), &["a.csv"]);
        let error = |source: String| resolve(&[source], &Hub::default()).unwrap_err();
        assert!(matches!(
            error(text(&folder.path().join("a.csv"))),
            DataError::UnknownExtension { .. }
        ));
        assert!(matches!(
            error("hf://datasets/a".into()),
            DataError::Hub(crate::HubError::BadAddress { .. })
        ));
        assert!(matches!(
            error("builtin:nothing".into()),
            DataError::UnknownBuiltin { .. }
        ));
        assert!(matches!(error("a/***/b".into()), DataError::BadGlob { .. }));
    }
}
