//! The vanilla router: linear logits, softmax over all experts, the k largest.
//!
//! Qwen3-MoE keeps the probabilities of the chosen experts as they are (`norm_topk_prob = false`,
//! method-spec section 0.7), Mixtral and the released Qwen3 checkpoints rescale them to sum to one.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use lpr_kernels::{exact_linear, softmax, top_k};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::aux_loss::{self, AuxLossForm, LayerBalance};
use super::{LossContext, RouteContext, Router, RouterKind, RouterLoss, RouterSizes, Routing};
use crate::config::{ConfigProblem, DecoderConfig};
use crate::random::ParamInit;

/// Keys of `[router] kind = "softmax_topk"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SoftmaxTopkConfig {
    /// Rescale the chosen experts' probabilities to sum to one.
    pub norm_topk_prob: bool,
    /// Form of the load-balancing loss.
    pub aux_loss: AuxLossForm,
    /// Weight of the load-balancing loss.
    #[schemars(range(min = 0.0))]
    pub aux_loss_weight: f64,
    /// Weight of the router z-loss, the mean square of the log-sum-exp of the logits.
    #[schemars(range(min = 0.0))]
    pub z_loss_weight: f64,
    /// Extra factor on the router's losses. The released trainer adds them once per micro-batch
    /// without dividing by the number of accumulation steps, so its effective factor is 18.
    #[schemars(range(min = 0.0))]
    pub equiv_accum: f64,
    /// Rows that share one evaluation of the router's losses; 0 means the whole micro-batch.
    pub loss_group_rows: usize,
}

impl Default for SoftmaxTopkConfig {
    fn default() -> Self {
        Self {
            norm_topk_prob: false,
            aux_loss: AuxLossForm::Pooled,
            aux_loss_weight: 1e-3,
            z_loss_weight: 0.0,
            equiv_accum: 18.0,
            loss_group_rows: 0,
        }
    }
}

impl SoftmaxTopkConfig {
    /// Makes the router; its matrix ~ N(0, std^2) of `init`.
    pub fn init(&self, sizes: &RouterSizes, init: &ParamInit<'_>) -> SoftmaxTopkRouter {
        SoftmaxTopkRouter {
            weight: init.weight("weight", [sizes.hidden_size, sizes.num_experts]),
            top_k: sizes.top_k,
            norm_topk_prob: self.norm_topk_prob,
        }
    }
}

/// Linear logits, softmax, top-k.
#[derive(Module, Debug)]
pub struct SoftmaxTopkRouter {
    /// `[hidden_size, num_experts]`
    pub weight: Param<Tensor<2>>,
    #[module(skip)]
    top_k: usize,
    #[module(skip)]
    norm_topk_prob: bool,
}

impl Router for SoftmaxTopkRouter {
    fn route(&self, hidden_states: Tensor<2>, _context: &RouteContext<'_>) -> Routing {
        let router_logits = exact_linear(hidden_states, self.weight.val(), None);
        let probabilities = softmax(router_logits.clone());
        let (chosen, expert_indices) = top_k(probabilities, self.top_k);
        let routing_weights = if self.norm_topk_prob {
            chosen.clone() / chosen.sum_dim(1)
        } else {
            chosen
        };
        Routing {
            router_logits,
            expert_indices,
            routing_weights,
            residual: None,
            terms: Vec::new(),
            prototype_sums: None,
        }
    }
}

impl RouterKind for SoftmaxTopkConfig {
    fn losses(&self, layers: &[Routing], context: &LossContext) -> Vec<RouterLoss> {
        let balances = || -> Vec<LayerBalance> {
            layers
                .iter()
                .map(|l| LayerBalance::new(&l.router_logits, &l.expert_indices, context))
                .collect()
        };
        let mut losses = Vec::new();
        let aux = match self.aux_loss {
            AuxLossForm::None => None,
            AuxLossForm::Pooled => Some(aux_loss::load_balancing_loss(&balances())),
            AuxLossForm::Switch | AuxLossForm::PerSequence => {
                Some(aux_loss::switch_loss(&balances()))
            }
            AuxLossForm::GlobalBatch => Some(match &context.step_load {
                Some(step) => aux_loss::global_batch_loss(&balances(), step),
                None => aux_loss::switch_loss(&balances()),
            }),
        };
        if let Some(value) = aux {
            losses.push(RouterLoss {
                name: "load_balancing",
                value,
                weight: self.aux_loss_weight * self.equiv_accum,
            });
        }
        if self.z_loss_weight > 0.0 {
            let logits: Vec<_> = layers.iter().map(|l| l.router_logits.clone()).collect();
            losses.push(RouterLoss {
                name: "z",
                value: aux_loss::z_loss(&logits, context),
                weight: self.z_loss_weight * self.equiv_accum,
            });
        }
        losses
    }

    fn loss_group_rows(&self) -> usize {
        match self.aux_loss {
            AuxLossForm::PerSequence => 1,
            _ => self.loss_group_rows,
        }
    }

    fn needs_step_load(&self) -> bool {
        self.aux_loss == AuxLossForm::GlobalBatch
    }

    fn macs_per_token(&self, sizes: &RouterSizes) -> u64 {
        (sizes.hidden_size * sizes.num_experts) as u64
    }

    fn validate(&self, _decoder: &DecoderConfig) -> Vec<ConfigProblem> {
        let mut problems = Vec::new();
        if self.aux_loss == AuxLossForm::None && self.aux_loss_weight != 0.0 {
            problems.push(ConfigProblem::new(
                "router.aux_loss_weight",
                format!(
                    "is {}, but router.aux_loss = \"none\" has nothing to weigh; \
                     use 0, or one of the other forms, for example router.aux_loss = \"switch\"",
                    self.aux_loss_weight
                ),
            ));
        }
        let rows = self.loss_group_rows;
        let form = match self.aux_loss {
            AuxLossForm::PerSequence => "\"per_sequence\" takes each row alone",
            AuxLossForm::GlobalBatch => "\"global_batch\" takes all rows of a step",
            _ => return problems,
        };
        if rows != 0 {
            problems.push(ConfigProblem::new(
                "router.loss_group_rows",
                format!("is {rows}, but router.aux_loss = {form}; use 0"),
            ));
        }
        problems
    }
}
