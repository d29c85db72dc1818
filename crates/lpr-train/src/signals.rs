//! SIGINT and SIGTERM: the first asks the run to save and stop, the second ends the process at
//! once. SIGUSR1 asks it to save and go on; SIGHUP, that the terminal is gone, changes nothing.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// Exit code of a process that a signal ended: 128 and the number of the signal.
const SIGNAL_EXIT_BASE: i32 = 128;

/// Whether somebody asked the run to stop.
#[derive(Clone, Debug, Default)]
pub struct StopRequest {
    requested: Arc<AtomicBool>,
}

impl StopRequest {
    /// Installs the handlers. Until the first signal, `is_set` is false; a second one exits with
    /// 130 or 143.
    ///
    /// # Errors
    /// If the system refuses the handlers.
    pub fn on_signals() -> io::Result<Self> {
        let request = Self::default();
        for signal in [SIGINT, SIGTERM] {
            // Order matters: the exit is only armed by an earlier signal, not by the one being
            // handled.
            flag::register_conditional_shutdown(
                signal,
                SIGNAL_EXIT_BASE + signal,
                request.requested.clone(),
            )?;
            flag::register(signal, request.requested.clone())?;
        }
        Ok(request)
    }

    /// Asks for a stop as a signal would.
    pub fn set(&self) {
        self.requested.store(true, Ordering::SeqCst);
    }

    /// What a signal sets, for those who only wait for it.
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.requested)
    }

    /// Whether a stop was asked for.
    pub fn is_set(&self) -> bool {
        self.requested.load(Ordering::SeqCst)
    }
}

/// The file in the run folder that asks for a checkpoint by being there.
pub const SAVE_FILE: &str = "save-now";

/// Whether somebody asked for a checkpoint.
#[derive(Clone, Debug, Default)]
pub struct SaveRequest {
    requested: Arc<AtomicBool>,
    file: PathBuf,
}

impl SaveRequest {
    /// Listens to SIGUSR1, where there is such a thing, and from now on survives SIGHUP.
    ///
    /// # Errors
    /// If the system refuses the handlers.
    pub fn on_signal() -> io::Result<Self> {
        let request = Self::default();
        #[cfg(unix)]
        {
            flag::register(signal_hook::consts::SIGUSR1, request.requested.clone())?;
            flag::register(signal_hook::consts::SIGHUP, Arc::default())?;
        }
        Ok(request)
    }

    /// Also looks for the file [`SAVE_FILE`] in the folder of the run.
    #[must_use]
    pub fn or_file_in(self, run_dir: &std::path::Path) -> Self {
        Self {
            file: run_dir.join(SAVE_FILE),
            ..self
        }
    }

    /// Whether it was asked for since the last call. The file is removed.
    ///
    /// # Errors
    /// If the file is there and cannot be removed; then nothing was asked for.
    pub fn take(&self) -> io::Result<bool> {
        let signalled = self.requested.swap(false, Ordering::SeqCst);
        match fs::remove_file(&self.file) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(signalled),
            Err(_) if signalled => Ok(true),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_can_be_asked_for_by_a_file_once() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let request = SaveRequest::default().or_file_in(folder.path());
        assert!(!request.take().expect("nothing there"));
        fs::write(folder.path().join(SAVE_FILE), "").expect("written");
        assert!(request.take().expect("removed"));
        assert!(!request.take().expect("nothing there"));
    }

    #[test]
    fn a_signal_asks_for_a_stop_without_ending_the_process() {
        let request = StopRequest::on_signals().expect("installed");
        assert!(!request.is_set());
        signal_hook::low_level::raise(SIGTERM).expect("raised");
        assert!(request.is_set());
    }

    #[test]
    fn a_stop_can_be_asked_for_without_a_signal_and_is_seen_by_every_copy() {
        let request = StopRequest::default();
        let copy = request.clone();
        request.set();
        assert!(copy.is_set());
    }
}
