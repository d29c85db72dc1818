//! Files that are either the old or the new content after a crash, never something between.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use crate::fault::{self, Point};

/// Names of temporary files and folders start with this, followed by the process id and a dash.
pub const TEMPORARY_PREFIX: &str = ".tmp-";

/// The temporary name that this process uses beside `name`.
pub fn temporary_name(name: &str) -> String {
    format!("{TEMPORARY_PREFIX}{}-{name}", std::process::id())
}

/// Replaces the file at `path` by what `write` produces: temporary sibling, fsync, rename, fsync of
/// the folder.
///
/// # Errors
/// Those of the file system and of `write`; the old file is then untouched and the temporary one
/// removed.
pub fn replace<F>(path: &Path, write: F) -> io::Result<()>
where
    F: FnOnce(&mut dyn Write) -> io::Result<()>,
{
    let no_name = || io::Error::new(io::ErrorKind::InvalidInput, "the path has no file name");
    let name = path.file_name().ok_or_else(no_name)?.to_string_lossy();
    let folder = parent(path);
    let temporary = folder.join(temporary_name(&name));
    let written = File::create(&temporary).and_then(|file| {
        let mut writer = io::BufWriter::new(file);
        fault::at(Point::ReplaceWrite)?;
        write(&mut writer)?;
        let file = writer
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        fault::at(Point::ReplaceSync)?;
        file.sync_all()?;
        fault::at(Point::ReplaceRename)?;
        fs::rename(&temporary, path)
    });
    if written.is_err() {
        // The first error is the one to report; a leftover is removed at the next start.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    fault::at(Point::ReplaceFolderSync)?;
    sync_folder(&folder)
}

/// Opens a file of lines for appending, after dropping half a line at its end and those that are
/// not to be kept.
///
/// # Errors
/// Those of the file system; the old file is then untouched.
pub fn open_lines(path: &Path, keep: impl Fn(&[u8]) -> bool) -> io::Result<File> {
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        file => {
            let mut reader = BufReader::new(file?);
            replace(path, |out| {
                let mut line = Vec::new();
                while reader.read_until(b'\n', &mut line)? > 0 {
                    if line.ends_with(b"\n") && keep(&line) {
                        out.write_all(&line)?;
                    }
                    line.clear();
                }
                Ok(())
            })?;
        }
    }
    File::options().append(true).create(true).open(path)
}

/// The folder that holds `path`, `.` for a bare name.
pub fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// Makes the names in a folder durable. Does nothing where folders cannot be opened (Windows).
///
/// # Errors
/// Those of the file system.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) {
        File::open(folder)?.sync_all()
    } else {
        Ok(())
    }
}

/// Makes the content of a file durable.
///
/// # Errors
/// Those of the file system.
pub fn sync_file(path: &Path) -> io::Result<()> {
    File::options().write(true).open(path)?.sync_all()
}

/// Removes a file, a link (not what it points to) or a folder with its content; nothing there is
/// fine.
///
/// # Errors
/// Those of the file system.
pub fn remove_any(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_content_and_no_leftover() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("state");
        replace(&path, |out| out.write_all(b"old")).expect("first write");
        let error = replace(&path, |out| {
            out.write_all(b"half of the new")?;
            Err(io::Error::other("disk full"))
        });
        assert_eq!(error.expect_err("fails").to_string(), "disk full");
        assert_eq!(fs::read(&path).expect("readable"), b"old");
        assert_eq!(fs::read_dir(folder.path()).expect("listed").count(), 1);
    }

    #[test]
    fn a_successful_write_replaces_the_content() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("state");
        for content in ["first", "second and longer", "3"] {
            replace(&path, |out| out.write_all(content.as_bytes())).expect("written");
            assert_eq!(fs::read_to_string(&path).expect("readable"), content);
        }
        assert_eq!(fs::read_dir(folder.path()).expect("listed").count(), 1);
    }

    #[test]
    fn the_parent_of_a_bare_name_is_the_current_folder() {
        assert_eq!(parent(Path::new("x.toml")), Path::new("."));
        assert_eq!(parent(Path::new("a/x.toml")), Path::new("a"));
    }
}
