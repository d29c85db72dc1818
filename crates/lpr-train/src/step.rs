//! One optimizer step: the paper's update on one screen.

mod recompute;
mod result;

use burn::module::Module;
use burn::tensor::{Int, Tensor};
use lpr_kernels::profile::span;
use lpr_model::random::Stream;
use lpr_model::router::{RouterKind, StepLoad, StepStatistics};
use lpr_model::{CausalLm, LatentNoise, LossContext, RouterConfig, RouterLoss, Routing};
use thiserror::Error;

use self::result::MicroBatchResult;
use crate::batch::MicroBatch;
use crate::fault::{self, Point};
use crate::load::LayerLoad;
use crate::objective::objective;
use crate::optimizer::{GradientSum, Optimizer};
use crate::routing::trace::Choices;
use crate::signals::StopRequest;
use crate::spoil;

/// What a step needs besides the model, the optimizer and the data.
#[derive(Debug, Clone)]
pub struct StepPlan {
    /// This step's learning rate.
    pub learning_rate: f64,
    /// Largest global gradient norm; 0 turns clipping off.
    pub max_grad_norm: f64,
    /// Noise of every micro-batch's router.
    pub noise: Vec<LatentNoise>,
    /// The update is applied unless the cross-entropy exceeds this.
    pub max_loss: f64,
    /// Gives up between two micro-batches when set.
    pub stop: StopRequest,
    /// The routers' choices for so many of the first positions are part of the report.
    pub traced_positions: usize,
    /// Keep only the inputs of the blocks for the backward pass (`step/recompute.rs`).
    pub gradient_checkpointing: bool,
}

impl StepPlan {
    /// The noise of `num_micro_batches` micro-batches at `step`: a function of its arguments alone,
    /// so that any step can be replayed.
    pub fn noise(seed: u64, step: u64, num_micro_batches: usize) -> Vec<LatentNoise> {
        let step = Stream::new(seed).child("noise").index(step);
        (0..num_micro_batches as u64)
            .map(|micro_batch| LatentNoise::Stream(step.index(micro_batch)))
            .collect()
    }
}

/// What a step did.
#[derive(Debug, Clone)]
pub struct StepReport {
    /// Mean cross-entropy per target, in nats.
    pub loss_ce: f64,
    /// The objective: cross-entropy plus weighted router losses.
    pub loss_total: f64,
    /// Router losses, unweighted, mean over micro-batches, with their weight in the objective.
    pub router_losses: Vec<(&'static str, f64, f64)>,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Positions that held a token.
    pub num_tokens: usize,
    /// Per micro-batch and layer.
    pub loads: Vec<Vec<LayerLoad>>,
    /// Per micro-batch and layer: the choices for the traced positions; no layers without any.
    pub choices: Vec<Vec<Choices>>,
}

/// A step whose update was not applied.
#[derive(Debug)]
pub struct NotApplied {
    /// The weights as they were before.
    pub model: CausalLm,
    /// What the step would have been; of the micro-batches that were done, if it was stopped.
    pub report: StepReport,
    /// Why.
    pub reason: Reason,
}

/// Why an update was not applied.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum Reason {
    /// Something that must be a number is none.
    #[error(
        "it is not finite: loss {loss}, gradient norm {grad_norm}{}",
        list(gradients)
    )]
    NotFinite {
        /// The objective.
        loss: f64,
        /// The global gradient norm.
        grad_norm: f64,
        /// Parameters with such a gradient.
        gradients: Vec<String>,
    },
    /// The loss is larger than the plan allows.
    #[error("its loss of {loss:.4} is more than {max_loss:.4}")]
    TooLarge {
        /// Cross-entropy.
        loss: f64,
        /// See [`StepPlan::max_loss`].
        max_loss: f64,
    },
    /// The run was asked to stop before all micro-batches were done.
    #[error("the run was asked to stop in the middle of the step")]
    Stopped,
}

fn list(gradients: &[String]) -> String {
    match gradients {
        [] => String::new(),
        [first] => format!(" (gradient of {first})"),
        [first, rest @ ..] => format!(" (gradients of {first} and {} more)", rest.len()),
    }
}

/// Forward and backward over all micro-batches, clip, AdamW.
///
/// # Errors
/// If the loss or the gradient norm is not finite, the loss exceeds `plan.max_loss`, or `plan.stop` is
/// set between two micro-batches; the update is then not applied.
pub fn train_step(
    model: CausalLm,
    optimizer: &mut Optimizer,
    router: &RouterConfig,
    micro_batches: &[MicroBatch],
    plan: &StepPlan,
) -> Result<(CausalLm, StepReport), Box<NotApplied>> {
    let step_targets = micro_batches.iter().map(|b| b.num_targets).sum();
    let mut gradients = GradientSum::default();
    let mut results = Vec::with_capacity(micro_batches.len());
    let mut statistics = Vec::new();
    let mut step_loads = step_loads(&model, router, micro_batches).into_iter();
    let mut untraced = plan.traced_positions;
    for (batch, noise) in micro_batches.iter().zip(&plan.noise) {
        fault::reached(Point::StepMicroBatch);
        // Before the first one the caller has looked.
        let done = results.len();
        if done > 0 && plan.stop.is_set() {
            return Err(Box::new(NotApplied {
                model,
                report: StepReport::read(&results, &micro_batches[..done], step_targets, None),
                reason: Reason::Stopped,
            }));
        }
        let context = LossContext {
            step_load: step_loads.next(),
            ..loss_context(&**router, batch, noise)
        };
        let pass = Pass {
            model: &model,
            router,
            batch,
            context: &context,
            step_targets,
            num_micro_batches: micro_batches.len(),
        };
        let (losses, routings) = if plan.gradient_checkpointing {
            recompute::forward_backward(&pass, &mut gradients)
        } else {
            forward_backward(&pass, &mut gradients)
        };
        add_statistics(&mut statistics, &routings, batch);
        results.push(MicroBatchResult::new(batch, losses, &routings, untraced));
        untraced = untraced.saturating_sub(batch.num_positions);
    }
    let after = span("clip and update");
    spoil::gradients(&mut gradients, &model);
    let norm = gradients.global_norm();
    let report = StepReport::read(&results, micro_batches, step_targets, Some(&norm));
    if let Some(reason) = refusal(&report, plan, || gradients.not_finite(&model)) {
        return Err(Box::new(NotApplied {
            model,
            report,
            reason,
        }));
    }
    fault::reached(Point::StepUpdate);
    gradients.clip(report.grad_norm, plan.max_grad_norm);
    let model = optimizer
        .update(model, gradients, plan.learning_rate)
        .after_step(&statistics);
    drop(after);
    Ok((spoil::weights(model), report))
}

/// A micro-batch of a step and what its loss depends on.
struct Pass<'a> {
    model: &'a CausalLm,
    router: &'a RouterConfig,
    batch: &'a MicroBatch,
    context: &'a LossContext,
    step_targets: usize,
    num_micro_batches: usize,
}

/// What a micro-batch adds to the loss of its step, `[1]` each, without gradients.
struct Losses {
    /// The sum over its targets.
    cross_entropy: Tensor<1>,
    router_losses: Vec<RouterLoss>,
}

impl Pass<'_> {
    /// The objective, of which the gradients are, and its parts.
    fn objective(&self, hidden_states: Tensor<2>, routings: &[Routing]) -> (Tensor<1>, Losses) {
        let targets = self.batch.targets.clone();
        let cross_entropy = self.model.cross_entropy_sum(hidden_states, targets);
        let cross_entropy = spoil::loss(cross_entropy);
        // One node between the scores and all losses: the losses' gradients are added up before they
        // meet those of the block, as they are when the block is recomputed.
        let at_losses = |routing: &Routing| Routing {
            router_logits: routing
                .router_logits
                .clone()
                .reshape(routing.router_logits.dims()),
            ..routing.clone()
        };
        let routings: Vec<_> = routings.iter().map(at_losses).collect();
        let router_losses = self.router.losses(&routings, self.context);
        let loss = objective(
            cross_entropy.clone(),
            &router_losses,
            self.step_targets,
            self.num_micro_batches,
        );
        let detached = |loss: RouterLoss| RouterLoss {
            value: loss.value.inner(),
            ..loss
        };
        let losses = Losses {
            cross_entropy: cross_entropy.inner(),
            router_losses: router_losses.into_iter().map(detached).collect(),
        };
        (loss, losses)
    }
}

/// The losses and routings of a micro-batch; adds its gradients to `gradients`.
fn forward_backward(pass: &Pass<'_>, gradients: &mut GradientSum) -> (Losses, Vec<Routing>) {
    let forward = span("forward");
    let output = pass.model.forward(&pass.batch.input, Some(pass.context));
    let (objective, losses) = pass.objective(output.hidden_states, &output.routings);
    drop(forward);
    let _backward = span("backward");
    gradients.add(pass.model, objective.backward());
    (losses, output.routings)
}

/// Why an update must not be applied, if so.
fn refusal(
    report: &StepReport,
    plan: &StepPlan,
    nonfinite_gradients: impl FnOnce() -> Vec<String>,
) -> Option<Reason> {
    let (loss, grad_norm) = (report.loss_total, report.grad_norm);
    if !(loss.is_finite() && grad_norm.is_finite()) {
        return Some(Reason::NotFinite {
            loss,
            grad_norm,
            gradients: nonfinite_gradients(),
        });
    }
    (report.loss_ce > plan.max_loss).then_some(Reason::TooLarge {
        loss: report.loss_ce,
        max_loss: plan.max_loss,
    })
}

/// Where the whole step sends its tokens, for the losses of each micro-batch; empty when the router
/// does not ask or there is only one. A pass without gradients: routing does not depend on noise.
fn step_loads(
    model: &CausalLm,
    router: &RouterConfig,
    micro_batches: &[MicroBatch],
) -> Vec<StepLoad> {
    if !router.needs_step_load() || micro_batches.len() < 2 {
        return Vec::new();
    }
    let model = model.valid();
    let mut statistics = Vec::new();
    for batch in micro_batches {
        let output = model.forward(&batch.input, None);
        add_statistics(&mut statistics, &output.routings, batch);
    }
    let counts: Vec<_> = statistics.into_iter().map(|s| s.expert_counts).collect();
    let tokens: usize = micro_batches.iter().map(|b| b.num_tokens).sum();
    let mean = tokens.max(1) as f64 / micro_batches.len() as f64;
    micro_batches
        .iter()
        .map(|batch| StepLoad {
            expert_counts: counts.clone(),
            relative_tokens: batch.num_tokens as f64 / mean,
        })
        .collect()
}

/// Adds what every layer's router saw in a micro-batch.
fn add_statistics(sums: &mut Vec<StepStatistics>, routings: &[Routing], batch: &MicroBatch) {
    let new = routings
        .iter()
        .map(|routing| StepStatistics::new(routing, batch.is_token.clone()));
    *sums = if sums.is_empty() {
        new.collect()
    } else {
        std::mem::take(sums)
            .into_iter()
            .zip(new)
            .map(|(sum, new)| sum.merged(new))
            .collect()
    };
}

/// What the routers' losses of one micro-batch depend on, apart from the other micro-batches.
///
/// # Panics
/// If the rows do not divide into groups of `loss_group_rows` (the config is checked before).
pub fn loss_context(
    router: &dyn RouterKind,
    batch: &MicroBatch,
    noise: &LatentNoise,
) -> LossContext {
    let num_groups = match router.loss_group_rows() {
        0 => 1,
        rows => {
            assert!(
                batch.num_rows.is_multiple_of(rows),
                "{} rows do not divide into groups of {rows}",
                batch.num_rows
            );
            batch.num_rows / rows
        }
    };
    LossContext {
        is_token: batch.is_token.clone().map(Tensor::<1, Int>::float),
        num_groups,
        noise: noise.clone(),
        step_load: None,
    }
}
