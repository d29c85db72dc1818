//! Whether the state moves by which a router balances: a correction bias, prototypes.

use std::collections::hash_map::DefaultHasher;
use std::fmt;
use std::hash::Hasher;

use burn::module::Param;
use burn::tensor::Tensor;
use lpr_model::parameters::{HostTensor, ParameterVisitor, visit_parameters};
use lpr_model::router::{Mover, MovingState, RouterKind, StepStatistics};
use lpr_model::{CausalLm, LatentNoise, Routing};
use serde::Serialize;

use super::{DeadBalancer, list_layers};
use crate::balance::LoadCounts;
use crate::batch::MicroBatch;
use crate::load::LayerLoad;
use crate::step::loss_context;

/// Below this learning rate nothing is asked of what gradients move: a weight of size one is not
/// changed by less than 6e-8 in 32 bits, and an optimizer step may be a part of its rate.
const MIN_LEARNING_RATE: f64 = 1e-6;

/// What a step with an uneven load would do to the state of every layer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StateLiveness {
    /// The state.
    #[serde(flatten)]
    pub state: MovingState,
    /// Layers that have it.
    pub layers: usize,
    /// Of these, the ones where it would stand still.
    pub still_layers: Vec<usize>,
}

impl StateLiveness {
    /// What is wrong with the state, if anything.
    ///
    /// # Errors
    /// [`DeadBalancer::State`] if no layer has it, or some would not move it.
    pub fn verdict(&self) -> Result<(), DeadBalancer> {
        let fault = if self.layers == 0 {
            "no router has such a parameter".to_owned()
        } else if self.still_layers.is_empty() {
            return Ok(());
        } else {
            let layers = list_layers(&self.still_layers);
            format!(
                "a step leaves it as it is in {layers} even where the first experts get all tokens"
            )
        };
        Err(dead(self.state, fault))
    }
}

impl fmt::Display for StateLiveness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let moving = self.layers - self.still_layers.len();
        write!(
            f,
            "{:<24} {:<17} a step moves it in {moving} of {} layers",
            self.state.parameter, self.state.key, self.layers
        )
    }
}

fn dead(state: MovingState, fault: String) -> DeadBalancer {
    DeadBalancer::State {
        key: state.key,
        parameter: state.parameter,
        fault,
    }
}

/// Lets a copy of the routers take in a step in which the first experts of every layer get all tokens.
/// `None` if there is no state, or gradients move it (then its losses are probed).
pub fn probe_state(
    model: &CausalLm,
    router: &dyn RouterKind,
    batch: &MicroBatch,
    noise: &LatentNoise,
) -> Option<StateLiveness> {
    let state = router.moving_state()?;
    if state.mover == Mover::Gradient {
        return None;
    }
    let context = loss_context(router, batch, noise);
    let routings = model.forward(&batch.input, Some(&context)).routings;
    let statistics: Vec<_> = routings.iter().map(|r| one_sided(r, batch)).collect();
    let before = fingerprints(model, state.parameter);
    let after = fingerprints(&model.clone().after_step(&statistics), state.parameter);
    Some(StateLiveness {
        state,
        layers: before.len(),
        still_layers: (0..before.len())
            .filter(|&l| before[l] == after[l])
            .collect(),
    })
}

/// What a layer saw, except that the first experts got every token.
fn one_sided(routing: &Routing, batch: &MicroBatch) -> StepStatistics {
    let [tokens, top_k] = routing.expert_indices.dims();
    let num_experts = routing.router_logits.dims()[1];
    let count = |expert| if expert < top_k { tokens as i32 } else { 0 };
    let counts: Vec<i32> = (0..num_experts).map(count).collect();
    let seen = StepStatistics::new(routing, batch.is_token.clone());
    StepStatistics {
        expert_counts: Tensor::from_ints(counts.as_slice(), &seen.expert_counts.device()),
        ..seen
    }
}

/// A hash over the bits of each layer's parameter of this name below its router.
fn fingerprints(model: &CausalLm, parameter: &str) -> Vec<u64> {
    struct Hashes {
        suffix: String,
        found: Vec<u64>,
    }
    impl ParameterVisitor for Hashes {
        fn visit<const D: usize>(&mut self, name: &str, parameter: &Param<Tensor<D>>) {
            if name.ends_with(&self.suffix) {
                let mut hasher = DefaultHasher::new();
                let values = HostTensor::from_tensor(parameter.val()).values;
                for value in values {
                    hasher.write_u32(value.to_bits());
                }
                self.found.push(hasher.finish());
            }
        }
    }
    let mut hashes = Hashes {
        suffix: format!(".mlp.router.{parameter}"),
        found: Vec::new(),
    };
    visit_parameters(model, &mut hashes);
    hashes.found
}

/// Watches the state over a run, one hash per layer.
///
/// The state stands still if it is what it was at the last log line and before the newest step,
/// although that step should have moved it. Both are asked, because a bias that goes up and down may be
/// back where it was.
#[derive(Debug, Clone, PartialEq)]
pub struct Movement {
    state: MovingState,
    /// The last step that was compared, and the state after it.
    compared: (u64, Vec<u64>),
    /// Before the newest step.
    before: Vec<u64>,
}

impl Movement {
    /// Starts to watch `model` after `step` steps; `None` if nothing has to move.
    pub fn start(model: &CausalLm, router: &dyn RouterKind, step: u64) -> Option<Self> {
        let state = router.moving_state()?;
        let found = fingerprints(model, state.parameter);
        Some(Self {
            state,
            compared: (step, found.clone()),
            before: found,
        })
    }

    /// Remembers the state before the step after which [`Self::compare`] is called.
    pub fn remember(&mut self, model: &CausalLm) {
        self.before = fingerprints(model, self.state.parameter);
    }

    /// Compares the state after `step` steps with that before the last of them, which had this
    /// learning rate and these loads, and with that of the last comparison.
    ///
    /// # Errors
    /// [`DeadBalancer::State`] if it stands still, or no layer has it.
    pub fn compare(
        &mut self,
        model: &CausalLm,
        step: u64,
        learning_rate: f64,
        loads: &[Vec<LayerLoad>],
    ) -> Result<(), DeadBalancer> {
        let now = fingerprints(model, self.state.parameter);
        if now.is_empty() {
            let fault = "no router has such a parameter".to_owned();
            return Err(dead(self.state, fault));
        }
        let should_move = |layer: usize| match self.state.mover {
            Mover::Gradient => learning_rate >= MIN_LEARNING_RATE,
            Mover::AfterStep => is_uneven(loads, layer),
        };
        let (since, compared) = &self.compared;
        let stands = |&layer: &usize| {
            let same = now[layer] == compared[layer] && now[layer] == self.before[layer];
            same && should_move(layer)
        };
        let still: Vec<usize> = (0..now.len()).filter(stands).collect();
        if !still.is_empty() {
            let layers = list_layers(&still);
            let fault = format!("it did not move in {layers} from step {since} to step {step}");
            return Err(dead(self.state, fault));
        }
        self.compared = (step, now);
        Ok(())
    }
}

/// Whether some expert of a layer got more tokens of a step than another.
fn is_uneven(micro_batches: &[Vec<LayerLoad>], layer: usize) -> bool {
    let mut loads = micro_batches.iter().map(|layers| &layers[layer].counts);
    let Some(first) = loads.next() else {
        return false;
    };
    let mut sum: LoadCounts = first.clone();
    loads.for_each(|counts| sum.add(counts));
    sum.without_padding
        .windows(2)
        .any(|pair| pair[0] != pair[1])
}
