//! DeepSeek-V3's router: sigmoid scores, experts in groups, a correction bias instead of a loss
//! (arXiv 2412.19437, section 2.1.2; method-spec section 3).
//!
//! ```text
//! s = sigmoid(x W)
//! chosen = top-k of s + b, among the experts of the best groups
//! weight of e = scaling * s_e / sum over chosen s
//! ```
//!
//! The bias moves tokens without a share in the output. It is not trained by gradients: after every
//! step it goes up for experts that got fewer tokens than the mean and down for the others.

use burn::module::Module;
use burn::module::Param;
use burn::tensor::{IndexingUpdateOp, Int, Tensor, activation::sigmoid};
use lpr_kernels::{exact_linear, top_k};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    LossContext, Mover, MovingState, RouteContext, Router, RouterKind, RouterLoss, RouterSizes,
    Routing, StepStatistics,
};
use crate::config::{ConfigProblem, DecoderConfig};
use crate::random::ParamInit;

/// Keys of `[router] kind = "sigmoid_topk"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SigmoidTopkConfig {
    /// Rescale the chosen experts' scores to sum to one, before `routed_scaling_factor`.
    pub norm_topk_prob: bool,
    /// Factor on the weights of the chosen experts.
    #[schemars(range(min = 0.0))]
    pub routed_scaling_factor: f64,
    /// Groups of neighbouring experts, equally large.
    #[schemars(range(min = 1, max = 1_024))]
    pub n_group: usize,
    /// Groups that a token may choose from: those with the largest sum of their two best scores.
    #[schemars(range(min = 1, max = 1_024))]
    pub topk_group: usize,
    /// Step of the correction bias after each optimizer step; 0 leaves it at zero, as the released
    /// code does (method-spec table row 21).
    #[schemars(range(min = 0.0, max = 1.0))]
    pub bias_update_rate: f64,
    /// Shift the correction bias to mean zero after each update. It chooses the same experts.
    pub zero_mean_bias: bool,
}

impl Default for SigmoidTopkConfig {
    fn default() -> Self {
        Self {
            norm_topk_prob: true,
            routed_scaling_factor: 1.0,
            n_group: 1,
            topk_group: 1,
            bias_update_rate: 1e-3,
            zero_mean_bias: false,
        }
    }
}

impl SigmoidTopkConfig {
    /// Makes the router; its matrix ~ N(0, std^2) of `init`, its bias 0.
    pub fn init(&self, sizes: &RouterSizes, init: &ParamInit<'_>) -> SigmoidTopkRouter {
        SigmoidTopkRouter {
            weight: init.weight("weight", [sizes.hidden_size, sizes.num_experts]),
            correction_bias: init.state([sizes.num_experts]),
            top_k: sizes.top_k,
            norm_topk_prob: self.norm_topk_prob,
            routed_scaling_factor: self.routed_scaling_factor,
            n_group: self.n_group,
            topk_group: self.topk_group,
            bias_update: BiasUpdate {
                rate: self.bias_update_rate,
                zero_mean: self.zero_mean_bias,
            },
        }
    }
}

/// Sigmoid scores, top-k with a correction bias.
#[derive(Module, Debug)]
pub struct SigmoidTopkRouter {
    /// `[hidden_size, num_experts]`
    pub weight: Param<Tensor<2>>,
    /// b, added to the scores for the choice only: `[num_experts]`, without gradient.
    pub correction_bias: Param<Tensor<1>>,
    #[module(skip)]
    top_k: usize,
    #[module(skip)]
    norm_topk_prob: bool,
    #[module(skip)]
    routed_scaling_factor: f64,
    #[module(skip)]
    n_group: usize,
    #[module(skip)]
    topk_group: usize,
    #[module(skip)]
    bias_update: BiasUpdate,
}

impl Router for SigmoidTopkRouter {
    fn route(&self, hidden_states: Tensor<2>, _context: &RouteContext<'_>) -> Routing {
        let router_logits = exact_linear(hidden_states, self.weight.val(), None);
        let scores = sigmoid(router_logits.clone());
        let expert_indices = self.choose(scores.clone().detach());
        let chosen = scores.gather(1, expert_indices.clone());
        let weights = if self.norm_topk_prob {
            // The epsilon is the reference's: all scores may underflow to zero.
            chosen.clone() / (chosen.sum_dim(1) + 1e-20)
        } else {
            chosen
        };
        Routing {
            router_logits,
            expert_indices,
            routing_weights: weights * self.routed_scaling_factor,
            residual: None,
            terms: Vec::new(),
            prototype_sums: None,
        }
    }

    fn after_step(self, statistics: &StepStatistics) -> Self {
        if self.bias_update.rate == 0.0 {
            return self;
        }
        let counts = statistics.expert_counts.clone().float();
        let update = |bias: Tensor<1>| {
            let bias = self.bias_update.apply(bias.detach(), counts.detach());
            bias.set_require_grad(false)
        };
        Self {
            correction_bias: self.correction_bias.map(update),
            ..self
        }
    }
}

impl SigmoidTopkRouter {
    /// Scores `[tokens, num_experts]` to the chosen experts `[tokens, top_k]`.
    fn choose(&self, scores: Tensor<2>) -> Tensor<2, Int> {
        let choice = scores + self.correction_bias.val().detach().unsqueeze::<2>();
        let choice = if self.topk_group < self.n_group {
            self.without_other_groups(choice)
        } else {
            choice
        };
        top_k(choice, self.top_k).1
    }

    /// Minus infinity for all experts but those of the best groups.
    fn without_other_groups(&self, choice: Tensor<2>) -> Tensor<2> {
        let [tokens, num_experts] = choice.dims();
        let size = num_experts / self.n_group;
        let grouped = choice.reshape([tokens, self.n_group, size]);
        let best_two = grouped.clone().topk(size.min(2), 2).sum_dim(2);
        let best_two = best_two.reshape([tokens, self.n_group]);
        let (values, groups) = top_k(best_two.clone(), self.topk_group);
        let kept =
            best_two
                .zeros_like()
                .scatter(1, groups, values.ones_like(), IndexingUpdateOp::Add);
        let dropped = kept.equal_elem(0.0).reshape([tokens, self.n_group, 1]);
        let dropped = dropped.expand([tokens, self.n_group, size]);
        grouped
            .mask_fill(dropped, f32::NEG_INFINITY)
            .reshape([tokens, num_experts])
    }
}

/// How the correction bias follows the load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BiasUpdate {
    /// Size of one move.
    pub rate: f64,
    /// Take the mean off after the move.
    pub zero_mean: bool,
}

impl BiasUpdate {
    /// `b + rate * sign(mean(counts) - counts)`.
    ///
    /// # Shapes
    /// `bias` and `counts`: `[num_experts]`; the counts are those of a whole step.
    pub fn apply(&self, bias: Tensor<1>, counts: Tensor<1>) -> Tensor<1> {
        let short = counts.clone().mean() - counts;
        let bias = bias + short.sign() * self.rate;
        if self.zero_mean {
            bias.clone() - bias.mean()
        } else {
            bias
        }
    }
}

impl RouterKind for SigmoidTopkConfig {
    fn losses(&self, _layers: &[Routing], _context: &LossContext) -> Vec<RouterLoss> {
        Vec::new()
    }

    fn loss_group_rows(&self) -> usize {
        0
    }

    fn moving_state(&self) -> Option<MovingState> {
        (self.bias_update_rate > 0.0).then_some(MovingState {
            parameter: "correction_bias",
            key: "bias_update_rate",
            mover: Mover::AfterStep,
        })
    }

    fn macs_per_token(&self, sizes: &RouterSizes) -> u64 {
        (sizes.hidden_size * sizes.num_experts) as u64
    }

    fn validate(&self, decoder: &DecoderConfig) -> Vec<ConfigProblem> {
        let mut problems = Vec::new();
        let (num_experts, top_k) = (decoder.moe.num_experts, decoder.moe.top_k);
        let (n_group, topk_group) = (self.n_group, self.topk_group);
        if n_group == 0 || !num_experts.is_multiple_of(n_group) {
            problems.push(ConfigProblem::new(
                "router.n_group",
                format!(
                    "is {n_group}, but model.num_experts = {num_experts} must be a multiple of it; \
                     use 1 for no groups, or a divisor of {num_experts}"
                ),
            ));
        } else if topk_group > n_group {
            problems.push(ConfigProblem::new(
                "router.topk_group",
                format!("is {topk_group}, but router.n_group = {n_group}; use 1 to {n_group}"),
            ));
        } else if topk_group * (num_experts / n_group) < top_k {
            let size = num_experts / n_group;
            problems.push(ConfigProblem::new(
                "router.topk_group",
                format!(
                    "is {topk_group}, and groups of {size} experts leave {} to choose model.top_k \
                     = {top_k} from; use {} to {n_group}",
                    topk_group * size,
                    top_k.div_ceil(size)
                ),
            ));
        }
        if self.zero_mean_bias && self.bias_update_rate == 0.0 {
            problems.push(ConfigProblem::new(
                "router.zero_mean_bias",
                "is true, but router.bias_update_rate = 0 never moves the bias; \
                 use false, or a rate above 0",
            ));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    fn router(config: &SigmoidTopkConfig, device: &Device) -> SigmoidTopkRouter {
        let sizes = RouterSizes {
            hidden_size: 4,
            num_experts: 4,
            top_k: 1,
        };
        config.init(&sizes, &ParamInit::new(3, 0.02, device))
    }

    fn statistics(counts: [i32; 4], device: &Device) -> StepStatistics {
        StepStatistics {
            expert_counts: Tensor::from_ints(counts, device),
            prototype_sums: None,
        }
    }

    fn values(bias: &Param<Tensor<1>>) -> Vec<f32> {
        bias.val().into_data().iter::<f32>().collect()
    }

    #[test]
    fn the_bias_follows_the_load_and_stays_without_gradient() {
        let device = Device::flex().autodiff();
        let config = SigmoidTopkConfig {
            bias_update_rate: 0.25,
            ..SigmoidTopkConfig::default()
        };
        let mut found = router(&config, &device);
        for _ in 0..2 {
            found = found.after_step(&statistics([9, 1, 4, 2], &device));
            assert!(!found.correction_bias.val().is_require_grad());
            assert!(found.weight.val().is_require_grad());
        }
        assert_eq!(values(&found.correction_bias), [-0.5, 0.5, 0.0, 0.5]);
        let recentred = SigmoidTopkConfig {
            zero_mean_bias: true,
            ..config
        };
        let found = router(&recentred, &device).after_step(&statistics([9, 1, 4, 2], &device));
        assert_eq!(
            values(&found.correction_bias),
            [-0.3125, 0.1875, -0.0625, 0.1875]
        );
    }

    #[test]
    fn a_rate_of_zero_keeps_the_bias() {
        let device = Device::flex().autodiff();
        let config = SigmoidTopkConfig {
            bias_update_rate: 0.0,
            ..SigmoidTopkConfig::default()
        };
        let found = router(&config, &device).after_step(&statistics([9, 1, 4, 2], &device));
        assert_eq!(values(&found.correction_bias), [0.0; 4]);
    }

    #[test]
    fn the_bias_chooses_but_does_not_weigh() {
        let device = Device::flex();
        let config = SigmoidTopkConfig {
            norm_topk_prob: false,
            ..SigmoidTopkConfig::default()
        };
        let mut found = router(&config, &device);
        found.weight = Param::from_tensor(Tensor::eye(4, &device));
        found.correction_bias =
            Param::from_tensor(Tensor::from_floats([0.0, 9.0, 0., 0.], &device));
        let x = Tensor::from_floats([[2.0, -1.0, 0.5, 0.0]], &device);
        let context = RouteContext {
            layer: 0,
            losses: None,
        };
        let routing = found.route(x, &context);
        assert_eq!(
            routing.expert_indices.into_data().iter::<i64>().next(),
            Some(1)
        );
        let weight: f32 = routing.routing_weights.into_scalar();
        assert!(
            (weight - 1.0 / (1.0 + 1.0_f32.exp())).abs() < 1e-6,
            "{weight}"
        );
    }
}
