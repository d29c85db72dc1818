//! Who owns the folder of a run: what the lock file says.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use serde::{Deserialize, Serialize};

use crate::{clock, process};

/// What the lock file says about the program that wrote it.
const PROGRAM: &str = "lpr-train";
/// The lock file always has this size, so that one small write replaces its content.
pub(super) const LOCK_BYTES: usize = 512;

/// Who holds, or held, the folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Owner {
    pub(super) program: String,
    pub(super) host: String,
    pub(super) pid: u32,
    /// Seconds since 1970.
    pub(super) started: u64,
    /// Seconds since 1970; absent while the owner runs, or if it was killed.
    pub(super) released: Option<u64>,
}

impl Owner {
    pub(super) fn this_process() -> Self {
        Self {
            program: PROGRAM.to_owned(),
            host: process::host_name(),
            pid: std::process::id(),
            started: clock::now() as u64,
            released: None,
        }
    }

    pub(super) fn describe(&self) -> String {
        format!(
            "process {} on host {} since {}",
            self.pid,
            self.host,
            clock::utc(self.started)
        )
    }
}

/// Whether the owner still runs, as far as the file and this host tell.
pub(super) fn seems_alive(owner: &Owner) -> bool {
    let elsewhere = owner.host != process::host_name();
    owner.released.is_none()
        && owner.pid != std::process::id()
        && (elsewhere || process::is_alive(owner.pid))
}

/// What to say when the folder of an owner who never released it is taken over.
pub(super) fn takeover_warning(previous: &Owner) -> Option<String> {
    let elsewhere = previous.released.is_none() && previous.host != process::host_name();
    elsewhere.then(|| {
        format!(
            "the folder was last held by {}, which never released it; taken over",
            previous.describe()
        )
    })
}

/// The owner that the lock file names, if it is one of ours.
pub(super) fn read_owner(lock: &mut File) -> io::Result<Option<Owner>> {
    let mut bytes = Vec::new();
    lock.seek(SeekFrom::Start(0))?;
    lock.take(LOCK_BYTES as u64).read_to_end(&mut bytes)?;
    let owner: Option<Owner> = serde_json::from_slice(&bytes).ok();
    Ok(owner.filter(|owner| owner.program == PROGRAM))
}

/// Replaces the content of the lock file.
pub(super) fn write_owner(lock: &mut File, owner: &Owner) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(owner)?;
    bytes.resize(LOCK_BYTES - 1, b' ');
    bytes.push(b'\n');
    lock.seek(SeekFrom::Start(0))?;
    lock.write_all(&bytes)
}
