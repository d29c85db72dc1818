//! A folder as the result of a command: complete, or not there at all.

use std::fs;
use std::path::{Path, PathBuf};

use crate::atomic_file::{parent, remove_any, sync_file, sync_folder, temporary_name};
use crate::error::TrainError;

/// Refuses a path at which there is something already; an empty folder is nothing.
///
/// # Errors
/// A file, or a folder with something in it.
pub fn check(path: &Path) -> Result<(), TrainError> {
    let refuse = |what: &str| {
        let path = path.display();
        Err(TrainError::Usage(format!(
            "{path} {what}; name another one with --out"
        )))
    };
    if path.file_name().is_none() {
        return refuse("does not name a new folder");
    }
    match fs::symlink_metadata(path) {
        Err(_) => Ok(()),
        Ok(metadata) if !metadata.is_dir() => refuse("exists and is not a folder"),
        Ok(_) => match fs::read_dir(path)
            .map_err(|error| TrainError::io(path, error))?
            .next()
        {
            None => Ok(()),
            Some(_) => refuse("exists and is not empty"),
        },
    }
}

/// Makes the folder `path`: `fill` gets a temporary folder beside it and returns the folder in there
/// that becomes the result.
///
/// # Errors
/// Those of [`check`], of `fill` and of the file system; nothing is left behind then.
pub fn create(
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<PathBuf, TrainError>,
) -> Result<(), TrainError> {
    check(path)?;
    let to_io = |error| TrainError::io(path, error);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = parent(path).join(temporary_name(&name));
    // A folder of that name is left from a process that had our id, so nobody else is using it.
    remove_any(&temporary).map_err(to_io)?;
    fs::create_dir_all(&temporary).map_err(to_io)?;
    let publish = |filled: &Path| {
        for entry in fs::read_dir(filled)? {
            sync_file(&entry?.path())?;
        }
        sync_folder(filled)?;
        if path.is_dir() {
            fs::remove_dir(path)?;
        }
        fs::rename(filled, path)?;
        sync_folder(&parent(path))
    };
    let done = fill(&temporary).and_then(|filled| publish(&filled).map_err(to_io));
    // The first error is the one to report.
    let _ = remove_any(&temporary);
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_appears_whole_or_not_at_all() {
        let root = tempfile::tempdir().expect("a folder");
        let path = root.path().join("out");
        let fill = |result: Result<(), TrainError>| {
            create(&path, |temporary| {
                fs::write(temporary.join("a"), "x").expect("written");
                result.map(|()| temporary.to_path_buf())
            })
        };
        let failed = fill(Err(TrainError::Usage("no".to_owned())));
        assert_eq!(failed.expect_err("refused").to_string(), "no");
        assert_eq!(fs::read_dir(root.path()).expect("listed").count(), 0);
        fs::create_dir(&path).expect("an empty folder is nothing");
        fill(Ok(())).expect("made");
        assert_eq!(fs::read_to_string(path.join("a")).expect("readable"), "x");
        assert_eq!(fs::read_dir(root.path()).expect("listed").count(), 1);
        let again = fill(Ok(())).expect_err("refused");
        assert_eq!(again.exit_code(), 2);
        assert!(again.to_string().contains("not empty"), "{again}");
        let file = check(&path.join("a")).expect_err("refused").to_string();
        assert!(file.contains("not a folder"), "{file}");
    }
}
