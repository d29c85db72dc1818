//! Metrics between the token's normal distribution and one per expert.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use lpr_kernels::softmax;

use super::divergence::{self, Divergence};
use super::{Latent, Metric, MetricConfig, MetricForm, PrototypeMatch};
use crate::layers::Linear;
use crate::random::ParamInit;

/// S = -divergence(token, expert), V = (softmax(S) K) W + b.
#[derive(Module, Debug)]
pub struct Distribution {
    /// log-variances of the experts, `[num_experts, latent_dim]`, zeros at first. The means are the
    /// prototypes.
    prototype_log_var: Param<Tensor<2>>,
    /// W and b, `[latent_dim, latent_dim]`
    projection: Linear,
    #[module(skip)]
    divergence: Divergence,
}

impl Distribution {
    pub fn kl(config: &MetricConfig, init: &ParamInit<'_>) -> Self {
        Self::new(config, init, divergence::kl)
    }

    pub fn js(config: &MetricConfig, init: &ParamInit<'_>) -> Self {
        Self::new(config, init, divergence::js)
    }

    pub fn hellinger(config: &MetricConfig, init: &ParamInit<'_>) -> Self {
        let divergence = match config.form {
            MetricForm::Code => divergence::hellinger,
            MetricForm::Paper => divergence::hellinger_paper,
        };
        Self::new(config, init, divergence)
    }

    pub fn wasserstein(config: &MetricConfig, init: &ParamInit<'_>) -> Self {
        let divergence = match config.form {
            MetricForm::Code => divergence::wasserstein,
            MetricForm::Paper => divergence::wasserstein_paper,
        };
        Self::new(config, init, divergence)
    }

    fn new(config: &MetricConfig, init: &ParamInit<'_>, divergence: Divergence) -> Self {
        let width = config.latent_dim;
        Self {
            prototype_log_var: init.zeros([config.num_experts, width]),
            projection: Linear::with_bias(&init.at("projection"), width, width),
            divergence,
        }
    }
}

impl Metric for Distribution {
    fn compare(&self, latent: &Latent, prototypes: Tensor<2>) -> PrototypeMatch {
        let experts = Latent {
            mean: prototypes.clone(),
            log_var: self.prototype_log_var.val(),
        };
        let scores = -(self.divergence)(latent, &experts);
        let mixture = softmax(scores.clone()).matmul(prototypes);
        PrototypeMatch {
            scores,
            mixture: self.projection.forward(mixture),
        }
    }
}
