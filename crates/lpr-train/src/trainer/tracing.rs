//! Traces of what the routers choose, if they are asked for.

use lpr_data::{Split, TokenBatch};

use super::Trainer;
use crate::routing::trace::{Recording, Trace, is_traced};
use crate::step::StepReport;

impl Trainer<'_> {
    /// The positions to trace of the step that ends with `step` steps done.
    pub(super) fn traced_positions(&self, step: u64) -> Option<usize> {
        let (every, total) = (self.config.log.every_steps, self.config.total_steps());
        let traced = self.is_logged(step) && is_traced(step, every, total);
        self.trace_routing.filter(|_| traced)
    }

    /// An empty recording for the evaluation that is due, if it is traced.
    pub(super) fn evaluation_recording(&self) -> Option<Recording> {
        let (every, total) = (self.config.eval.every_steps, self.config.total_steps());
        let traced = is_traced(self.state.step, every, total);
        Some(self.recording(self.trace_routing.filter(|_| traced)?))
    }

    /// Passes on the choices of the step just done, if it is traced.
    pub(super) fn trace_step(&mut self, batches: &[TokenBatch], report: &StepReport) {
        let Some(positions) = self.traced_positions(self.state.step) else {
            return;
        };
        let mut recording = self.recording(positions);
        let chosen = report.choices.iter().zip(&report.loads);
        for (batch, (choices, loads)) in batches.iter().zip(chosen) {
            recording.add(batch, choices.clone(), loads);
        }
        self.report_trace(Split::Train, Some(recording));
    }

    /// Passes on a recording that was made with the state as it is.
    pub(super) fn report_trace(&mut self, split: Split, recording: Option<Recording>) {
        if let Some(recording) = recording {
            let step = self.state.step;
            self.reporter.routing(&Trace {
                step,
                split,
                recording,
            });
        }
    }

    fn recording(&self, positions: usize) -> Recording {
        Recording::new(positions, &self.config.model.decoder())
    }
}
