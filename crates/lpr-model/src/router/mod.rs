//! Routers: which experts see a token, with what weight, and which losses shape that choice.
//!
//! A new router is one file here and one entry in the list below, which declares the file as a module
//! and re-exports its config and its router.

mod aux_loss;

pub use aux_loss::{
    AuxLossForm, LayerBalance, global_batch_loss, load_balancing_loss, switch_loss, z_loss,
};
pub use lpr::{
    AlignmentForm, AlignmentReduce, AnySimilarity, Compares, Diversity, DiversityKind, DiversityOn,
    DiversityReduce, Latent, Metric, MetricConfig, MetricForm, PRESET_KEY, Padding, Preset,
    PrototypeEma, PrototypeFit, PrototypeInit, PrototypeMatch, Score, Similarity, TokenGroups,
    alignment_code_loss, alignment_paper_loss, alignment_routing, alignment_target, kl_loss,
    official_update, paper_update,
};
pub use sigmoid_topk::BiasUpdate;

use burn::tensor::{Device, Int, Tensor, TensorData};
use lpr_kernels::choices_per_expert;
use serde::Serialize;

use crate::config::{ConfigProblem, DecoderConfig};
use crate::random::{ParamInit, Stream};
use crate::registry::registry;

registry! {
    /// The `[router]` section: `kind` selects the router, the other keys are its own.
    config RouterConfig: RouterKind by "kind";
    /// A router of any kind.
    module AnyRouter: Router, init(sizes: &RouterSizes, init: &ParamInit<'_>), after_step(StepStatistics);
    /// Linear logits, softmax, top-k: the vanilla router.
    mod softmax_topk => SoftmaxTopk("softmax_topk"): SoftmaxTopkConfig => SoftmaxTopkRouter,
    /// Latent Prototype Routing, the paper's router.
    mod lpr => Lpr("lpr"): LprConfig => LprRouter,
    /// Sigmoid scores, top-k within the best groups, a bias that follows the load.
    mod sigmoid_topk => SigmoidTopk("sigmoid_topk"): SigmoidTopkConfig => SigmoidTopkRouter,
    /// Experts by lot: a floor.
    mod random => Random("random"): RandomConfig => RandomRouter,
    /// Experts by turns: a floor.
    mod forced_balanced => ForcedBalanced("forced_balanced"): ForcedBalancedConfig => ForcedBalancedRouter,
}

/// Sizes that every router is built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouterSizes {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Routed experts.
    pub num_experts: usize,
    /// Experts per token.
    pub top_k: usize,
}

/// What a router does with the tokens of one layer.
///
/// `route` computes and returns; whatever must outlive the call is part of what it returns.
pub trait Router {
    /// Chooses experts for every token. Terms of the router's losses are computed only when
    /// `context.losses` is given.
    ///
    /// # Shapes
    /// `hidden_states`: `[tokens, hidden_size]`
    fn route(&self, hidden_states: Tensor<2>, context: &RouteContext<'_>) -> Routing;

    /// The router after an optimizer step, given what its layer saw in all micro-batches of it.
    /// State that is not trained by gradients changes here and nowhere else.
    #[must_use]
    fn after_step(self, _statistics: &StepStatistics) -> Self
    where
        Self: Sized,
    {
        self
    }
}

/// What a kind of router says about all layers together.
pub trait RouterKind {
    /// Reduces the layers' terms to named losses with their weights in the objective.
    fn losses(&self, layers: &[Routing], context: &LossContext) -> Vec<RouterLoss>;

    /// Rows of the micro-batch that share one evaluation of the losses; 0 means all of them.
    fn loss_group_rows(&self) -> usize;

    /// Whether the losses of a micro-batch depend on where the others of its step send their tokens.
    fn needs_step_load(&self) -> bool {
        false
    }

    /// The state by which the router balances, if the configuration asks for it to move.
    fn moving_state(&self) -> Option<MovingState> {
        None
    }

    /// Multiply-adds of the matrix products in [`Router::route`] for one token of one layer; work that
    /// is the same for all tokens of a batch, and the losses, do not count.
    fn macs_per_token(&self, sizes: &RouterSizes) -> u64;

    /// About how many numbers a token of one layer leaves for the backward pass, apart from the hidden
    /// states that the experts keep anyway. For linear logits: scores, two softmaxes, the choices.
    fn kept_per_token(&self, sizes: &RouterSizes) -> u64 {
        (6 * sizes.num_experts + 4 * sizes.top_k) as u64
    }

    /// Every rule between the router's keys and the decoder's sizes that does not hold.
    fn validate(&self, decoder: &DecoderConfig) -> Vec<ConfigProblem>;
}

/// A parameter of every layer's router that has to move for the router to balance the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MovingState {
    /// Its name below the router, for example `correction_bias`.
    pub parameter: &'static str,
    /// The key of `[router]` that asks for it.
    pub key: &'static str,
    /// What moves it.
    pub mover: Mover,
}

/// What moves a [`MovingState`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mover {
    /// The optimizer.
    Gradient,
    /// [`Router::after_step`], whenever the load of a layer is not exactly even.
    AfterStep,
}

/// Where a router is called.
#[derive(Debug, Clone, Copy)]
pub struct RouteContext<'a> {
    /// Index among the layers with experts.
    pub layer: usize,
    /// Present in training.
    pub losses: Option<&'a LossContext>,
}

/// What the losses of a micro-batch need besides the hidden states.
#[derive(Debug, Clone)]
pub struct LossContext {
    /// `[tokens]`, 1 for a token and 0 for padding; `None` when there is no padding.
    pub is_token: Option<Tensor<1>>,
    /// Groups of consecutive rows with losses of their own, averaged; losses that are not linear in
    /// the tokens depend on it, so a fixed group size makes them independent of how a batch is split.
    pub num_groups: usize,
    /// Noise of the variational encoder.
    pub noise: LatentNoise,
    /// What the whole step sends where, for routers that ask for it
    /// ([`RouterKind::needs_step_load`]); `None` when this micro-batch is the whole step.
    pub step_load: Option<StepLoad>,
}

/// The load of all micro-batches of a step, known before the first backward pass.
#[derive(Debug, Clone)]
pub struct StepLoad {
    /// Tokens per expert and layer, padding left out, `[num_experts]` each.
    pub expert_counts: Vec<Tensor<1, Int>>,
    /// Tokens of this micro-batch over the mean of all micro-batches of the step.
    pub relative_tokens: f64,
}

/// Standard normal noise, given as a value so that every step can be replayed.
#[derive(Debug, Clone)]
pub enum LatentNoise {
    /// Drawn from a stream per layer below this one.
    Stream(Stream),
    /// One `[tokens, latent_dim]` tensor per layer.
    Given(Vec<Tensor<2>>),
}

impl LatentNoise {
    /// The noise of one layer.
    pub fn layer(&self, layer: usize, shape: [usize; 2], device: &Device) -> Tensor<2> {
        match self {
            Self::Stream(stream) => {
                let values = stream
                    .index(layer as u64)
                    .standard_normal(shape[0] * shape[1]);
                Tensor::from_data(TensorData::new(values, shape), device)
            }
            Self::Given(layers) => layers[layer].clone(),
        }
    }
}

/// The decision of one router on one micro-batch.
#[derive(Debug, Clone)]
pub struct Routing {
    /// `[tokens, num_experts]`, what the choice was made from.
    pub router_logits: Tensor<2>,
    /// `[tokens, top_k]`, distinct in each row.
    pub expert_indices: Tensor<2, Int>,
    /// `[tokens, top_k]`, the factor of each chosen expert's output.
    pub routing_weights: Tensor<2>,
    /// `[tokens, hidden_size]`, added to what the routed experts see. The layer takes it out: losses
    /// over layers see none.
    pub residual: Option<Tensor<2>>,
    /// The layer's own loss terms, unweighted, `[1]` each.
    pub terms: Vec<RouterTerm>,
    /// Sums over tokens for the update of prototypes after the step, without gradient; only in
    /// training and only from routers that have such an update.
    pub prototype_sums: Option<PrototypeSums>,
}

/// What the tokens of a layer add up to, for prototypes that follow their tokens.
#[derive(Debug, Clone)]
pub struct PrototypeSums {
    /// Latents times their share in each expert, `[num_experts, latent_dim]`.
    pub latents: Tensor<2>,
    /// The shares, `[num_experts]`.
    pub shares: Tensor<1>,
}

impl PrototypeSums {
    /// Of this and other tokens of the same layer.
    #[must_use]
    pub fn merged(self, other: Self) -> Self {
        Self {
            latents: self.latents + other.latents,
            shares: self.shares + other.shares,
        }
    }
}

/// What one layer's router saw in all micro-batches of a step, without gradient.
#[derive(Debug, Clone)]
pub struct StepStatistics {
    /// Tokens per expert, padding left out, `[num_experts]`.
    pub expert_counts: Tensor<1, Int>,
    /// See [`Routing::prototype_sums`].
    pub prototype_sums: Option<PrototypeSums>,
}

impl StepStatistics {
    /// Of one micro-batch; `is_token` as in [`Routing::expert_counts`].
    pub fn new(routing: &Routing, is_token: Option<Tensor<1, Int>>) -> Self {
        Self {
            expert_counts: routing.expert_counts(is_token),
            prototype_sums: routing.prototype_sums.clone(),
        }
    }

    /// Of this and another micro-batch of the same layer.
    #[must_use]
    pub fn merged(self, other: Self) -> Self {
        let sums = self.prototype_sums.zip(other.prototype_sums);
        Self {
            expert_counts: self.expert_counts + other.expert_counts,
            prototype_sums: sums.map(|(a, b)| a.merged(b)),
        }
    }
}

/// One unweighted loss term of one layer.
#[derive(Debug, Clone)]
pub struct RouterTerm {
    /// Its name in the logs.
    pub name: &'static str,
    /// `[1]`
    pub value: Tensor<1>,
}

impl RouterTerm {
    fn new(name: &'static str, value: Tensor<1>) -> Self {
        Self { name, value }
    }
}

/// One loss term over all layers.
#[derive(Debug, Clone)]
pub struct RouterLoss {
    /// Its name in the logs.
    pub name: &'static str,
    /// `[1]`, unweighted.
    pub value: Tensor<1>,
    /// Its factor in the objective, accumulation included. Zero means no gradient at all.
    pub weight: f64,
}

impl Routing {
    /// How many tokens each expert got: `[num_experts]`, over all positions, or only over those
    /// where `is_token` (`[tokens]`, 0 or 1) is set. Sums to positions times k.
    pub fn expert_counts(&self, is_token: Option<Tensor<1, Int>>) -> Tensor<1, Int> {
        let num_experts = self.router_logits.dims()[1];
        choices_per_expert(self.expert_indices.clone(), is_token, num_experts)
    }
}
