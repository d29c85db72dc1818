//! Saving while training goes on: the loop hands over a snapshot, a thread writes it.
//!
//! At most one save is in flight. Which thread writes, and when, changes nothing that is computed.

use std::path::{Path, PathBuf};
use std::thread::{Builder, JoinHandle};

use crate::checkpoint::CheckpointError;
use crate::process;
use crate::snapshot::Snapshot;

/// Warnings, or why there is no checkpoint.
type Written = Result<Vec<String>, CheckpointError>;

/// A save that has ended.
#[derive(Debug)]
pub struct Ended {
    /// The step of the snapshot.
    pub step: u64,
    /// What became of it.
    pub written: Written,
}

/// Writes snapshots of one run.
pub struct Saver {
    checkpoints: PathBuf,
    /// The step of the newest snapshot that is a checkpoint or about to become one.
    newest: Option<u64>,
    in_flight: Option<(u64, JoinHandle<Written>)>,
}

impl Saver {
    /// Saves below `checkpoints`, where the step `newest` is saved already.
    pub fn new(checkpoints: PathBuf, newest: Option<u64>) -> Self {
        Self {
            checkpoints,
            newest,
            in_flight: None,
        }
    }

    /// Where checkpoints go.
    pub fn checkpoints(&self) -> &Path {
        &self.checkpoints
    }

    /// The run goes on from the checkpoint of `step`.
    pub fn went_back_to(&mut self, step: u64) {
        self.newest = Some(step);
    }

    /// Whether `step` needs no other save, as far as is known.
    pub fn has(&self, step: u64) -> bool {
        self.newest == Some(step)
    }

    /// Starts to write a snapshot and returns. A save that is still in flight is waited for; its
    /// end, or that of the new one if no thread can be had, is returned.
    pub fn begin(&mut self, snapshot: Snapshot) -> Vec<Ended> {
        let mut ended: Vec<Ended> = self.wait().into_iter().collect();
        let step = snapshot.step();
        self.newest = Some(step);
        let checkpoints = self.checkpoints.clone();
        let write = move || {
            process::yield_to_other_threads();
            snapshot.write(&checkpoints)
        };
        match Builder::new().name("checkpoint".to_owned()).spawn(write) {
            Ok(thread) => self.in_flight = Some((step, thread)),
            Err(error) => {
                let error = CheckpointError::io(&self.checkpoints, error);
                ended.push(self.end(step, Err(error)));
            }
        }
        ended
    }

    /// The save in flight, if it has ended by now.
    pub fn poll(&mut self) -> Option<Ended> {
        let done = |(_, thread): &(u64, JoinHandle<Written>)| thread.is_finished();
        if self.in_flight.as_ref().is_some_and(done) {
            self.wait()
        } else {
            None
        }
    }

    /// Waits for the save in flight.
    pub fn wait(&mut self) -> Option<Ended> {
        let (step, thread) = self.in_flight.take()?;
        let written = thread.join().unwrap_or_else(|_| {
            let error = std::io::Error::other("the thread that saves panicked");
            Err(CheckpointError::io(&self.checkpoints, error))
        });
        Some(self.end(step, written))
    }

    /// Writes a snapshot in the calling thread. No other save may be in flight.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save(&mut self, snapshot: Snapshot) -> Written {
        let step = snapshot.step();
        let written = snapshot.write(&self.checkpoints)?;
        self.newest = Some(step);
        Ok(written)
    }

    fn end(&mut self, step: u64, written: Written) -> Ended {
        if written.is_err() && self.newest == Some(step) {
            self.newest = None;
        }
        Ended { step, written }
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        // Whatever ends the run early, a save that was begun is brought to its end.
        drop(self.wait());
    }
}
