//! What the loop does about a step whose update was not applied.

use lpr_data::TokenBatch;
use lpr_model::CausalLm;

use super::Trainer;
use crate::checkpoint;
use crate::error::TrainError;
use crate::liveness::Watch;
use crate::report::Level;
use crate::session::{self, RunState};
use crate::skipped_step::{SkippedBatch, SkippedStep};
use crate::stability::{Consequence, Trouble};
use crate::step::{NotApplied, Reason, StepPlan, StepReport};

impl Trainer<'_> {
    /// Writes the step to a file, unless it was only stopped, and follows `[stability]`: the model to go on with, and the report
    /// if the step counts as one.
    ///
    /// # Errors
    /// If the run has to end, or cannot go back.
    pub(super) fn refuse(
        &mut self,
        refused: NotApplied,
        batches: &[TokenBatch],
        plan: &StepPlan,
    ) -> Result<(CausalLm, Option<StepReport>), TrainError> {
        let NotApplied {
            model,
            report,
            reason,
        } = refused;
        let (trouble, reason) = match &reason {
            Reason::Stopped => return Ok((model, None)),
            Reason::NotFinite { .. } => (Trouble::Nonfinite, reason.to_string()),
            Reason::TooLarge { loss, .. } => (Trouble::Spike, self.spike_in_words(*loss)),
        };
        let config = &self.config.stability;
        let consequence = self.state.stability.refused(config, trouble);
        let file = self.write_skipped(&report, &reason, batches, plan);
        let reason = reason + &file;
        let step = self.state.step + 1;
        match consequence {
            Consequence::Skip => {
                let text = format!("step {step} was skipped: {reason}");
                self.say(Level::Warning, &text);
                self.pass_over(batches);
                self.state.step = step;
                Ok((model, Some(report)))
            }
            Consequence::RollBack => {
                drop(model);
                Ok((self.roll_back(&reason, batches)?, None))
            }
            Consequence::Stop => Err(TrainError::Diverged { step, reason }),
        }
    }

    /// A loss against those before it.
    pub(super) fn spike_in_words(&self, loss: f64) -> String {
        let config = &self.config.stability;
        let score = self.state.stability.z_score(config, loss).unwrap_or(0.0);
        format!(
            "its loss of {loss:.4} is {score:.1} standard deviations above the mean of the last {}",
            config.spike_window
        )
    }

    /// The batches are used up.
    fn pass_over(&mut self, batches: &[TokenBatch]) {
        if let Some(last) = batches.last() {
            self.state.data = last.position.clone();
        }
    }

    /// Goes back to the newest checkpoint, but not in the data.
    fn roll_back(&mut self, reason: &str, batches: &[TokenBatch]) -> Result<CausalLm, TrainError> {
        let step = self.state.step + 1;
        let ended = self.saver.wait();
        self.tell(ended);
        let found = checkpoint::find_latest(self.saver.checkpoints())?;
        for warning in &found.warnings {
            self.say(Level::Warning, warning);
        }
        let Some(checkpoint) = found.checkpoint.filter(|c| c.step() < step) else {
            let reason = format!(
                "{reason}, and there is no checkpoint to go back to (checkpoint.every_steps)"
            );
            return Err(TrainError::Diverged { step, reason });
        };
        let saved: RunState = checkpoint.state()?;
        let autodiff = self.device.clone().autodiff();
        let model = session::load_model(&checkpoint, self.config, &autodiff)?;
        self.optimizer = session::load_optimizer(&checkpoint, self.config, &model, &saved)?;
        self.pass_over(batches);
        self.state.stability.roll_back(saved.stability.clone());
        self.state = RunState {
            data: self.state.data.clone(),
            stability: self.state.stability.clone(),
            ..saved
        };
        self.saver.went_back_to(self.state.step);
        self.watch = Watch::new(self.config);
        self.reporter.rewind(self.state.step);
        let text = format!(
            "step {step} was not taken: {reason}; going back to {} with the data after that step",
            checkpoint.path().display()
        );
        self.say(Level::Warning, &text);
        Ok(model)
    }

    /// Writes the step to a file, and says where it is.
    fn write_skipped(
        &self,
        report: &StepReport,
        reason: &str,
        batches: &[TokenBatch],
        plan: &StepPlan,
    ) -> String {
        let finite = |value: f64| value.is_finite().then_some(value);
        let skipped = SkippedStep {
            step: self.state.step,
            reason: reason.to_owned(),
            loss_ce: finite(report.loss_ce),
            loss_total: finite(report.loss_total),
            grad_norm: finite(report.grad_norm),
            seed: self.config.train.seed,
            learning_rate: plan.learning_rate,
            position: self.state.data.clone(),
            batches: batches.iter().map(SkippedBatch::from).collect(),
        };
        let number = self.state.stability.totals().skipped_total;
        match skipped.write(self.config.run_dir(), number) {
            Ok(Some(path)) => format!(" (its batches are in {})", path.display()),
            Ok(None) => String::new(),
            Err(error) => format!(" (its batches cannot be written: {error})"),
        }
    }
}
