//! A floor: every token goes to k experts drawn by lot, with equal weights.
//!
//! In training the lots are drawn anew in every micro-batch, from the same stream as the noise of the
//! other routers, so a run can be replayed. In evaluation they depend on layer and position alone.

use burn::module::Module;
use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    LatentNoise, LossContext, RouteContext, Router, RouterKind, RouterLoss, RouterSizes, Routing,
};
use crate::config::{ConfigProblem, DecoderConfig};
use crate::random::{ParamInit, Stream};

/// `[router] kind = "random"` has no other key.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RandomConfig {}

impl RandomConfig {
    /// Makes the router; it has no parameters.
    pub fn init(&self, sizes: &RouterSizes, _init: &ParamInit<'_>) -> RandomRouter {
        RandomRouter {
            num_experts: sizes.num_experts,
            top_k: sizes.top_k,
        }
    }
}

/// k experts by lot.
#[derive(Module, Debug)]
pub struct RandomRouter {
    #[module(skip)]
    num_experts: usize,
    #[module(skip)]
    top_k: usize,
}

impl Router for RandomRouter {
    fn route(&self, hidden_states: Tensor<2>, context: &RouteContext<'_>) -> Routing {
        let (tokens, device) = (hidden_states.dims()[0], hidden_states.device());
        let evaluation = LatentNoise::Stream(Stream::new(0).child("random router"));
        let noise = context.losses.map_or(&evaluation, |losses| &losses.noise);
        let lots = noise.layer(context.layer, [tokens, self.num_experts], &device);
        let (chosen, expert_indices) = lpr_kernels::top_k(lots.clone(), self.top_k);
        Routing {
            router_logits: lots,
            expert_indices,
            routing_weights: chosen.ones_like() * (self.top_k as f64).recip(),
            residual: None,
            terms: Vec::new(),
            prototype_sums: None,
        }
    }
}

impl RouterKind for RandomConfig {
    fn losses(&self, _layers: &[Routing], _context: &LossContext) -> Vec<RouterLoss> {
        Vec::new()
    }

    fn loss_group_rows(&self) -> usize {
        0
    }

    fn macs_per_token(&self, _sizes: &RouterSizes) -> u64 {
        0
    }

    fn validate(&self, _decoder: &DecoderConfig) -> Vec<ConfigProblem> {
        Vec::new()
    }
}
