//! A floor: experts take turns. Position `t` of a micro-batch goes to the experts
//! `t k, .., t k + k - 1` (modulo their number) with equal weights, so every expert gets the same
//! number of positions, up to one, whatever they hold.

use burn::module::Module;
use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{LossContext, RouteContext, Router, RouterKind, RouterLoss, RouterSizes, Routing};
use crate::config::{ConfigProblem, DecoderConfig};
use crate::random::ParamInit;

/// `[router] kind = "forced_balanced"` has no other key.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ForcedBalancedConfig {}

impl ForcedBalancedConfig {
    /// Makes the router; it has no parameters.
    pub fn init(&self, sizes: &RouterSizes, _init: &ParamInit<'_>) -> ForcedBalancedRouter {
        ForcedBalancedRouter {
            num_experts: sizes.num_experts,
            top_k: sizes.top_k,
        }
    }
}

/// Experts by turns.
#[derive(Module, Debug)]
pub struct ForcedBalancedRouter {
    #[module(skip)]
    num_experts: usize,
    #[module(skip)]
    top_k: usize,
}

impl Router for ForcedBalancedRouter {
    fn route(&self, hidden_states: Tensor<2>, _context: &RouteContext<'_>) -> Routing {
        let (tokens, device) = (hidden_states.dims()[0], hidden_states.device());
        let shape = [tokens, self.top_k];
        let turns: Vec<i32> = (0..tokens * self.top_k)
            .map(|slot| (slot % self.num_experts) as i32)
            .collect();
        let expert_indices: Tensor<2, Int> =
            Tensor::from_data(TensorData::new(turns, shape), &device);
        let chosen = Tensor::<2>::ones(shape, &device);
        Routing {
            router_logits: Tensor::<2>::zeros([tokens, self.num_experts], &device).scatter(
                1,
                expert_indices.clone(),
                chosen.clone(),
                IndexingUpdateOp::Add,
            ),
            expert_indices,
            routing_weights: chosen * (self.top_k as f64).recip(),
            residual: None,
            terms: Vec::new(),
            prototype_sums: None,
        }
    }
}

impl RouterKind for ForcedBalancedConfig {
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
