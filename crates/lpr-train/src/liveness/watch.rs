//! What a run checks while it trains.

use burn::tensor::Device;
use lpr_data::TokenBatch;
use lpr_model::CausalLm;

use super::{DeadBalancer, Liveness, Movement, Strictness, probe_rows};
use crate::balance::{BalanceError, LoadCounts};
use crate::batch::MicroBatch;
use crate::config::RunConfig;
use crate::step::{StepPlan, StepReport};

/// The probes cost about as much as one or two small micro-batches, so a run repeats them every so many
/// steps: below a hundredth of its time.
const PROBE_EVERY_STEPS: u64 = 500;

/// Checks a run as it goes.
#[derive(Debug)]
pub struct Watch<'a> {
    config: &'a RunConfig,
    started: bool,
    movement: Option<Movement>,
    /// Whether the step that is being made is compared.
    compares: bool,
}

impl<'a> Watch<'a> {
    /// A watch over a run that has made no step since the program started.
    pub fn new(config: &'a RunConfig) -> Self {
        Self {
            config,
            started: false,
            movement: None,
            compares: false,
        }
    }

    /// Before the step after `step` steps: probes the balancers if it is the first one here, or due.
    /// Returns what the probes found, in words. `is_logged`: whether a log line follows the step.
    ///
    /// # Errors
    /// The first balancer that does nothing.
    pub fn before_step(
        &mut self,
        model: &CausalLm,
        step: u64,
        batches: &[TokenBatch],
        device: &Device,
        is_logged: bool,
    ) -> Result<Vec<String>, DeadBalancer> {
        let router = &self.config.router;
        let is_first = !std::mem::replace(&mut self.started, true);
        self.compares = is_logged;
        if is_first {
            self.movement = Movement::start(model, &**router, step);
        } else if let Some(movement) = self.movement.as_mut().filter(|_| is_logged) {
            movement.remember(model);
        }
        if !(is_first || step.is_multiple_of(PROBE_EVERY_STEPS)) {
            return Ok(Vec::new());
        }
        let strictness = match step {
            0 => Strictness::Initial,
            _ => Strictness::Trained,
        };
        let noise = StepPlan::noise(self.config.train.seed, step, 1);
        let mut words = Vec::new();
        for (batch, noise) in batches.iter().zip(&noise) {
            let batch = MicroBatch::new(&probe_rows(batch, router), device);
            let found = Liveness::probe(model, router, &batch, noise);
            for (text, verdict) in found.verdicts(strictness) {
                verdict?;
                words.push(text);
            }
        }
        Ok(words)
    }

    /// After a step, `step` with it: if a log line follows, the state that balances must have moved.
    ///
    /// # Errors
    /// If it stood still although it should not have.
    pub fn after_step(
        &mut self,
        model: &CausalLm,
        step: u64,
        learning_rate: f64,
        report: &StepReport,
    ) -> Result<(), DeadBalancer> {
        match self.movement.as_mut().filter(|_| self.compares) {
            Some(movement) => movement.compare(model, step, learning_rate, &report.loads),
            None => Ok(()),
        }
    }
}

/// Every position and slot of a step must have been counted exactly once.
///
/// # Errors
/// [`BalanceError::WrongTotal`] for the first layer of which this is not true.
pub fn check_counts(
    micro_batches: &[MicroBatch],
    report: &StepReport,
    top_k: usize,
) -> Result<(), BalanceError> {
    let sum = |figure: fn(&MicroBatch) -> usize| -> u64 {
        micro_batches.iter().map(|batch| figure(batch) as u64).sum()
    };
    let (positions, tokens) = (sum(|b| b.num_positions), sum(|b| b.num_tokens));
    let mut totals: Vec<LoadCounts> = Vec::new();
    for layers in &report.loads {
        for (layer, load) in layers.iter().enumerate() {
            match totals.get_mut(layer) {
                Some(total) => total.add(&load.counts),
                None => totals.push(load.counts.clone()),
            }
        }
    }
    for (layer, total) in totals.iter().enumerate() {
        total.check_totals(layer, positions, tokens, top_k as u64)?;
    }
    Ok(())
}
