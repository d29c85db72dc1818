//! SIGINT and SIGTERM: the first asks the run to save and stop, the second ends the process at
//! once.

use std::io;
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

    /// Whether a stop was asked for.
    pub fn is_set(&self) -> bool {
        self.requested.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
