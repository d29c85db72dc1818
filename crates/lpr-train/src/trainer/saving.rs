//! When the loop saves, and what it does if that fails.

use lpr_model::CausalLm;

use super::{Trainer, is_due};
use crate::error::{Outcome, TrainError};
use crate::report::Level;
use crate::saver::Ended;
use crate::snapshot::Snapshot;

impl Trainer<'_> {
    /// Hands a snapshot to the saver if a checkpoint is due or asked for. `is_new` says that the
    /// step was evaluated after it was saved.
    pub(super) fn save_if_due(&mut self, model: &CausalLm, is_new: bool) {
        let ended = self.saver.poll();
        self.tell(ended);
        let step = self.state.step;
        let asked = self.save.take().unwrap_or_else(|error| {
            let text = format!("cannot remove the file that asks for a checkpoint: {error}");
            self.say(Level::Warning, &text);
            false
        });
        // Weights that steps are being skipped with are nothing to go back to.
        let due =
            is_due(step, self.config.checkpoint.every_steps) && self.state.stability.is_sound();
        if asked {
            let text = format!("saving a checkpoint of step {step} on request");
            self.say(Level::Info, &text);
        }
        if (due || asked) && (is_new || !self.saver.has(step)) {
            let snapshot = self.snapshot(model);
            let ended = self.saver.begin(snapshot);
            self.tell(ended);
        }
    }

    /// Sees to it that the step is saved, and waits for it.
    ///
    /// # Errors
    /// If it cannot be saved.
    pub(super) fn save_last(&mut self, model: &CausalLm, is_new: bool) -> Result<(), TrainError> {
        let ended = self.saver.wait();
        self.tell(ended);
        if is_new || !self.saver.has(self.state.step) {
            let snapshot = self.snapshot(model);
            for warning in self.saver.save(snapshot)? {
                self.say(Level::Warning, &warning);
            }
        }
        Ok(())
    }

    /// Saves what can be saved before another error is reported.
    pub(super) fn rescue(&mut self, model: &CausalLm) {
        if let Err(error) = self.save_last(model, false) {
            let text = format!("cannot save step {}: {}", self.state.step, error.chain());
            self.say(Level::Warning, &text);
        }
    }

    /// Saves and stops.
    ///
    /// # Errors
    /// If the step cannot be saved.
    pub(super) fn stop_early(&mut self, model: &CausalLm) -> Result<Outcome, TrainError> {
        self.save_last(model, false)?;
        let text = format!(
            "stopped on request after step {}; --resume continues",
            self.state.step
        );
        self.say(Level::Info, &text);
        Ok(Outcome::StoppedEarly)
    }

    fn snapshot(&self, model: &CausalLm) -> Snapshot {
        Snapshot::take(self.config, model, &self.optimizer, &self.state)
    }

    /// Passes on how saves ended. One that failed is no reason to stop training.
    pub(super) fn tell(&mut self, ended: impl IntoIterator<Item = Ended>) {
        for Ended { step, written } in ended {
            match written {
                Ok(warnings) => {
                    for warning in warnings {
                        self.say(Level::Warning, &warning);
                    }
                }
                Err(error) => {
                    let text = format!(
                        "cannot save step {step}: {}; training goes on, older checkpoints are \
                         untouched, the next save tries again",
                        TrainError::from(error).chain()
                    );
                    self.say(Level::Warning, &text);
                }
            }
        }
    }
}
