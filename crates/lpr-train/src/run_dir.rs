//! The folder of a run: who may write into it, and where its files are.
//!
//! A folder belongs to a run if it carries the lock file of one. It has one owner at a time: the
//! lock is held by the operating system for as long as the process lives, so a crash never leaves
//! it locked.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};

use thiserror::Error;

use crate::checkpoint::{self, CheckpointError, LATEST_FILE, Manifest};
use crate::environment::Environment;
use crate::fault::{self, Point};
use crate::{atomic_file, clock};
use owner::{Owner, read_owner, seems_alive, takeover_warning, write_owner};

mod owner;

mod names;

pub use names::{
    CHECKPOINTS_FOLDER, CONFIG_FILE, ENVIRONMENT_FILE, EXPERT_TOKENS_FILE, LOCK_FILE, LOG_FILE,
    METRICS_FILE, REPORT_FILE,
};
/// Why a folder cannot be used for a run.
#[derive(Debug, Error)]
pub enum RunDirError {
    /// The path itself is not acceptable.
    #[error("train.run_dir = {path:?} cannot be used: {reason}")]
    BadPath {
        /// The path.
        path: PathBuf,
        /// What is wrong with it and what to do.
        reason: String,
    },
    /// The folder has files in it that no run wrote.
    #[error(
        "{path} is not empty and not the folder of a run (it holds `{found}`); choose another \
         train.run_dir",
        path = path.display()
    )]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// One of the things in it.
        found: String,
    },
    /// Another process writes into the folder.
    #[error(
        "{path} is in use by {owner}; wait for it, stop it, or choose another train.run_dir",
        path = path.display()
    )]
    InUse {
        /// The folder.
        path: PathBuf,
        /// Host, process id and start time of the owner.
        owner: String,
    },
    /// The folder already has checkpoints and nobody asked to continue from them.
    #[error(
        "{path} already holds checkpoints; say --resume to continue that run, --overwrite to remove \
         them, or choose another train.run_dir",
        path = path.display()
    )]
    HasCheckpoints {
        /// The folder.
        path: PathBuf,
    },
    /// `--overwrite` would remove something that no run wrote.
    #[error(
        "{path} is not a checkpoint of lpr-train ({reason}), so --overwrite removes nothing; move it \
         away, or choose another train.run_dir",
        path = path.display()
    )]
    NotOurs {
        /// The folder.
        path: PathBuf,
        /// What is wrong with its manifest.
        reason: CheckpointError,
    },
    /// A checkpoint to be overwritten could not be looked at or removed.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The file system refused.
    #[error("cannot use {path}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl RunDirError {
    fn io(path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io {
            path: path.to_path_buf(),
            source,
        }
    }
}

/// What to do with the checkpoints of an earlier run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Earlier {
    /// Refuse the folder.
    Refuse,
    /// Keep them: one of them is to be continued from.
    Keep,
    /// Remove them, if they carry our manifest.
    Remove,
}

/// The folder of a run, owned by this process until the value is dropped.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    lock: File,
    owner: Owner,
    warnings: Vec<String>,
}

impl RunDir {
    /// Creates or opens the folder at `path` and becomes its owner.
    ///
    /// # Errors
    /// [`RunDirError`]: a path that is not acceptable, a folder of something else, a folder that
    /// another process holds, or one with checkpoints that are neither to be kept nor removable.
    pub fn open(path: &Path, earlier: Earlier) -> Result<Self, RunDirError> {
        check_path(path)?;
        fs::create_dir_all(path).map_err(RunDirError::io(path))?;
        refuse_foreign(path)?;
        let lock_path = path.join(LOCK_FILE);
        let to_io = RunDirError::io(&lock_path);
        let lock = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path);
        let mut lock = lock.map_err(&to_io)?;
        let locked = lock.try_lock();
        let previous = read_owner(&mut lock).map_err(&to_io)?;
        let in_use = |owner: Option<&Owner>| RunDirError::InUse {
            path: path.to_path_buf(),
            owner: owner.map_or_else(|| "another process".to_owned(), Owner::describe),
        };
        match locked {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(in_use(previous.as_ref())),
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                // Without locks the word of the file has to do.
                if let Some(owner) = previous.as_ref().filter(|owner| seems_alive(owner)) {
                    return Err(in_use(Some(owner)));
                }
            }
            Err(TryLockError::Error(error)) => return Err(to_io(error)),
        }
        match earlier {
            Earlier::Refuse if has_checkpoints(path)? => {
                return Err(RunDirError::HasCheckpoints {
                    path: path.to_path_buf(),
                });
            }
            Earlier::Remove => remove_checkpoints(&path.join(CHECKPOINTS_FOLDER))?,
            Earlier::Refuse | Earlier::Keep => {}
        }
        let warnings = previous
            .as_ref()
            .and_then(takeover_warning)
            .into_iter()
            .collect();
        let owner = Owner::this_process();
        fault::at(Point::LockWrite)
            .and_then(|()| write_owner(&mut lock, &owner))
            .map_err(&to_io)?;
        Ok(Self {
            path: path.to_path_buf(),
            lock,
            owner,
            warnings,
        })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder of checkpoints; it exists once one was saved.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join(CHECKPOINTS_FOLDER)
    }

    /// What the user should know about taking over the folder.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Replaces `config.resolved.toml`.
    ///
    /// # Errors
    /// [`RunDirError::Io`].
    pub fn write_config(&self, text: &str) -> Result<(), RunDirError> {
        let path = self.path.join(CONFIG_FILE);
        atomic_file::replace(&path, |out| out.write_all(text.as_bytes()))
            .map_err(RunDirError::io(&path))
    }

    /// Replaces `environment.json`.
    ///
    /// # Errors
    /// [`RunDirError::Io`].
    pub fn write_environment(&self, environment: &Environment) -> Result<(), RunDirError> {
        let path = self.path.join(ENVIRONMENT_FILE);
        let write = |out: &mut dyn Write| Ok(serde_json::to_writer_pretty(out, environment)?);
        atomic_file::replace(&path, write).map_err(RunDirError::io(&path))
    }

    /// Opens `metrics.jsonl` for appending, keeping only the complete lines of steps up to
    /// `last_step`.
    ///
    /// Lines of later steps were logged after the checkpoint that the run continues from; they will
    /// be written again. `None` starts an empty file.
    ///
    /// # Errors
    /// [`RunDirError::Io`].
    pub fn open_metrics(&self, last_step: Option<u64>) -> Result<File, RunDirError> {
        let path = self.metrics();
        fault::at(Point::MetricsOpen)
            .and_then(|()| reopen_metrics(&path, last_step))
            .map_err(RunDirError::io(&path))
    }

    /// The path of `metrics.jsonl`.
    pub fn metrics(&self) -> PathBuf {
        self.path.join(METRICS_FILE)
    }

    /// Opens `log.txt` for appending.
    ///
    /// # Errors
    /// [`RunDirError::Io`].
    pub fn open_log(&self) -> Result<File, RunDirError> {
        let path = self.path.join(LOG_FILE);
        File::options()
            .append(true)
            .create(true)
            .open(&path)
            .map_err(RunDirError::io(&path))
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        self.owner.released = Some(clock::now() as u64);
        // The lock itself goes with the file; that the note could not be written only costs the
        // next start a warning.
        let _ = write_owner(&mut self.lock, &self.owner);
    }
}

/// Refuses paths that cannot be, or had better not be, the folder of a run.
fn check_path(path: &Path) -> Result<(), RunDirError> {
    let bad = |reason: &str| {
        Err(RunDirError::BadPath {
            path: path.to_path_buf(),
            reason: reason.to_owned(),
        })
    };
    if path.as_os_str().is_empty() {
        return bad("it is empty");
    }
    if path.as_os_str().as_encoded_bytes().contains(&0) {
        return bad("it contains a NUL character");
    }
    let mut named = false;
    for component in path.components() {
        match component {
            Component::Normal(name) if name.len() > 255 => {
                return bad("a part of it is longer than 255 bytes");
            }
            Component::Normal(_) => named = true,
            Component::ParentDir if named => return bad("`..` may only stand at its beginning"),
            _ => {}
        }
    }
    if !named {
        return bad("it does not name a folder");
    }
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_symlink() => {
            bad("it is a symbolic link; name the folder it points to")
        }
        Ok(metadata) if !metadata.is_dir() => bad("it is a file"),
        _ => Ok(()),
    }
}

fn refuse_foreign(path: &Path) -> Result<(), RunDirError> {
    let mut names = Vec::new();
    for item in fs::read_dir(path).map_err(RunDirError::io(path))? {
        let item = item.map_err(RunDirError::io(path))?;
        names.push(item.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    let Some(found) = names
        .iter()
        .find(|name| *name != LOCK_FILE)
        .or(names.first())
    else {
        return Ok(());
    };
    let lock_path = path.join(LOCK_FILE);
    let is_file = fs::symlink_metadata(&lock_path).is_ok_and(|metadata| metadata.is_file());
    let read = || File::open(&lock_path).and_then(|mut lock| read_owner(&mut lock));
    // A lone empty lock file is left by a process that was killed between creating and writing it.
    let empty =
        || names.len() == 1 && fs::metadata(&lock_path).is_ok_and(|metadata| metadata.len() == 0);
    if is_file && (read().map_err(RunDirError::io(&lock_path))?.is_some() || empty()) {
        return Ok(());
    }
    Err(RunDirError::Foreign {
        path: path.to_path_buf(),
        found: found.clone(),
    })
}

fn has_checkpoints(path: &Path) -> Result<bool, RunDirError> {
    let folder = path.join(CHECKPOINTS_FOLDER);
    match fs::read_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(RunDirError::io(&folder)(error)),
        Ok(items) => Ok(items
            .flatten()
            .any(|item| item.file_name().to_string_lossy().starts_with("step-"))),
    }
}

/// Removes all checkpoints, or none if one of them is not ours alone.
fn remove_checkpoints(folder: &Path) -> Result<(), RunDirError> {
    let found = checkpoint::step_folders(folder)?;
    for (_, path) in &found {
        Manifest::read(path)
            .and_then(|manifest| manifest.check_no_others(path))
            .map_err(|reason| RunDirError::NotOurs {
                path: path.clone(),
                reason,
            })?;
    }
    for (_, path) in &found {
        checkpoint::remove(folder, path).map_err(RunDirError::io(path))?;
    }
    let latest = folder.join(LATEST_FILE);
    atomic_file::remove_any(&latest).map_err(RunDirError::io(&latest))
}

/// Opens `metrics.jsonl` for appending with its lines of steps up to `last_step`.
///
/// # Errors
/// Those of the file system.
pub fn reopen_metrics(path: &Path, last_step: Option<u64>) -> io::Result<File> {
    let step =
        |line: &[u8]| serde_json::from_slice::<serde_json::Value>(line).ok()?["step"].as_u64();
    atomic_file::open_lines(path, |line| {
        step(line).is_some_and(|step| last_step.is_some_and(|last| step <= last))
    })
}

/// Whether a process writes into the folder of a run; `None` if it is no such folder.
///
/// # Errors
/// Those of the file system.
pub fn is_in_use(path: &Path) -> io::Result<Option<bool>> {
    let mut lock = match File::open(path.join(LOCK_FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        lock => lock?,
    };
    Ok(read_owner(&mut lock)?.map(|owner| seems_alive(&owner)))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::owner::LOCK_BYTES;
    use super::*;
    use crate::process;

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let temporary = tempfile::tempdir().expect("temporary folder");
        let path = temporary.path().join("runs/first");
        (temporary, path)
    }

    fn message(result: Result<RunDir, RunDirError>) -> String {
        result.expect_err("refused").to_string()
    }

    #[test]
    fn a_new_folder_is_created_and_can_be_opened_again_later() {
        let (_temporary, path) = folder();
        for _ in 0..3 {
            let run = RunDir::open(&path, Earlier::Refuse).expect("opened");
            assert_eq!(run.path(), path);
            assert_eq!(run.warnings(), Vec::<String>::new());
            run.write_config("x = 1\n").expect("written");
            assert_eq!(
                fs::metadata(path.join(LOCK_FILE)).expect("exists").len(),
                LOCK_BYTES as u64
            );
        }
        assert_eq!(
            fs::read_to_string(path.join(CONFIG_FILE)).expect("readable"),
            "x = 1\n"
        );
    }

    #[test]
    fn a_second_owner_is_refused_and_told_who_the_first_is() {
        let (_temporary, path) = folder();
        let first = RunDir::open(&path, Earlier::Refuse).expect("opened");
        let text = message(RunDir::open(&path, Earlier::Keep));
        assert!(
            text.contains(&format!("process {}", std::process::id())),
            "{text}"
        );
        assert!(text.contains(&process::host_name()), "{text}");
        drop(first);
        RunDir::open(&path, Earlier::Keep).expect("free again");
    }

    #[test]
    fn the_lock_of_a_killed_process_is_taken_over() {
        let (_temporary, path) = folder();
        drop(RunDir::open(&path, Earlier::Refuse).expect("opened"));
        let lock = path.join(LOCK_FILE);
        let write = |owner: &Owner| {
            fs::write(&lock, serde_json::to_vec(owner).expect("json")).expect("written");
        };
        let killed = Owner {
            pid: 4_194_305,
            ..Owner::this_process()
        };
        write(&killed);
        assert_eq!(
            RunDir::open(&path, Earlier::Refuse)
                .expect("taken over")
                .warnings(),
            Vec::<String>::new()
        );
        write(&Owner {
            host: "another-host".to_owned(),
            ..killed
        });
        let warnings = RunDir::open(&path, Earlier::Refuse)
            .expect("taken over")
            .warnings()
            .join("\n");
        assert!(warnings.contains("another-host"), "{warnings}");
    }

    #[test]
    fn without_locks_the_owner_in_the_file_decides() {
        let other = Owner {
            pid: 4_194_305,
            ..Owner::this_process()
        };
        assert!(!seems_alive(&other));
        assert!(
            !seems_alive(&Owner::this_process()),
            "an earlier process may have had our id"
        );
        assert!(seems_alive(&Owner {
            host: "another-host".to_owned(),
            ..other.clone()
        }));
        assert!(!seems_alive(&Owner {
            host: "another-host".to_owned(),
            released: Some(1),
            ..other
        }));
    }

    #[test]
    fn a_process_killed_before_it_wrote_the_lock_does_not_block_the_folder() {
        let (_temporary, path) = folder();
        fs::create_dir_all(&path).expect("created");
        fs::write(path.join(LOCK_FILE), "").expect("written");
        RunDir::open(&path, Earlier::Refuse).expect("opened");
    }

    #[test]
    fn a_folder_of_something_else_is_refused_and_left_alone() {
        for (name, content) in [
            ("thesis.tex", "words"),
            (LOCK_FILE, "{\"program\": \"dpkg\"}"),
        ] {
            let (_temporary, path) = folder();
            fs::create_dir_all(&path).expect("created");
            fs::write(path.join(name), content).expect("written");
            for earlier in [Earlier::Refuse, Earlier::Keep, Earlier::Remove] {
                let text = message(RunDir::open(&path, earlier));
                assert!(
                    text.contains(name) && text.contains("train.run_dir"),
                    "{text}"
                );
            }
            assert_eq!(fs::read_dir(&path).expect("listed").count(), 1);
            assert_eq!(
                fs::read_to_string(path.join(name)).expect("readable"),
                content
            );
        }
    }

    #[test]
    fn a_folder_with_checkpoints_needs_resume() {
        let (_temporary, path) = folder();
        let run = RunDir::open(&path, Earlier::Refuse).expect("opened");
        fs::create_dir_all(run.checkpoints().join("step-00000010")).expect("created");
        drop(run);
        let text = message(RunDir::open(&path, Earlier::Refuse));
        assert!(
            text.contains("--resume") && text.contains("train.run_dir"),
            "{text}"
        );
        RunDir::open(&path, Earlier::Keep).expect("resumed");
    }

    #[test]
    fn overwriting_removes_checkpoints_with_our_manifest_or_nothing() {
        let (_temporary, path) = folder();
        let run = RunDir::open(&path, Earlier::Refuse).expect("opened");
        let checkpoints = run.checkpoints();
        for step in [10, 20] {
            checkpoint::save(&checkpoints, step, Vec::new(), &step, "hash").expect("saved");
        }
        drop(run);
        let names = || {
            let items = fs::read_dir(&checkpoints).expect("listed");
            let mut names: Vec<_> = items.map(|i| i.expect("entry").file_name()).collect();
            names.sort();
            names
        };
        let all = names();
        for foreign in ["step-00000030/thesis.tex", "step-00000010/thesis.tex"] {
            let file = checkpoints.join(foreign);
            let own = file.parent().expect("a folder");
            let is_new = !own.exists();
            fs::create_dir_all(own).expect("created");
            fs::write(&file, "words").expect("written");
            let text = message(RunDir::open(&path, Earlier::Remove));
            assert!(text.contains("removes nothing"), "{text}");
            assert_eq!(fs::read_to_string(&file).expect("readable"), "words");
            fs::remove_file(&file).expect("removed");
            if is_new {
                fs::remove_dir(own).expect("removed");
            }
            assert_eq!(names(), all);
        }
        fs::write(checkpoints.join("notes.txt"), "words").expect("written");
        RunDir::open(&path, Earlier::Remove).expect("opened");
        assert_eq!(names(), ["notes.txt"]);
    }

    #[test]
    fn paths_that_cannot_be_folders_of_runs_are_refused_with_the_reason() {
        let temporary = tempfile::tempdir().expect("temporary folder");
        let inside = |name: &str| temporary.path().join(name);
        fs::write(inside("file"), "x").expect("written");
        let cases = [
            (PathBuf::new(), "empty"),
            (inside("a\0b"), "NUL"),
            (inside("runs/../../x"), "`..`"),
            (inside(&"x".repeat(300)), "255"),
            (inside("file"), "is a file"),
            (PathBuf::from("/"), "does not name"),
            (PathBuf::from("."), "does not name"),
        ];
        for (path, needle) in cases {
            let error = RunDir::open(&path, Earlier::Refuse).expect_err("refused");
            assert!(matches!(error, RunDirError::BadPath { .. }), "{error:?}");
            assert!(
                error.to_string().contains(needle),
                "{error} should say {needle}"
            );
        }
        assert_eq!(
            check_path(Path::new("../runs/x")).map_err(|error| error.to_string()),
            Ok(())
        );
    }

    #[cfg(unix)]
    #[test]
    fn a_symbolic_link_is_refused() {
        let (temporary, path) = folder();
        std::os::unix::fs::symlink(temporary.path(), temporary.path().join("link"))
            .expect("linked");
        let text = message(RunDir::open(
            &temporary.path().join("link"),
            Earlier::Refuse,
        ));
        assert!(text.contains("symbolic link"), "{text}");
        RunDir::open(&path, Earlier::Refuse).expect("a real folder is fine");
    }

    #[test]
    fn resuming_keeps_the_metrics_up_to_the_checkpoint_and_appends_after_them() {
        let (_temporary, path) = folder();
        let run = RunDir::open(&path, Earlier::Refuse).expect("opened");
        let metrics = path.join(METRICS_FILE);
        let kept =
            "{\"step\":10,\"loss_ce\":5.5}\n{\"step\":20,\"x\":1}\n{\"step\":20,\"eval\":{}}\n";
        let dropped = "not json\n{\"step\":30}\n{\"no\":1}\n{\"step\":19";
        fs::write(&metrics, format!("{kept}{dropped}")).expect("written");
        run.open_metrics(Some(20))
            .expect("opened")
            .write_all(b"{\"step\":21}\n")
            .expect("appended");
        let want = format!("{kept}{{\"step\":21}}\n");
        assert_eq!(fs::read_to_string(&metrics).expect("readable"), want);
        run.open_metrics(None).expect("opened");
        assert_eq!(fs::read_to_string(&metrics).expect("readable"), "");
    }
}
