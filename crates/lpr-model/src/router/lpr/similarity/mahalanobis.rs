//! A distance whose scale per dimension is learned.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use lpr_kernels::exp;

use super::{Latent, Metric, MetricConfig, PrototypeMatch, squared_distances};
use crate::random::ParamInit;

/// `S = 1 / (1 + sum_j (mu_j - K_j)^2 exp(-s_j))`
#[derive(Module, Debug)]
pub struct Mahalanobis {
    /// s, `[latent_dim]`, zeros at first. It acts as a log-variance; the name is the released code's.
    log_sigma: Param<Tensor<1>>,
}

impl Mahalanobis {
    pub fn new(config: &MetricConfig, init: &ParamInit<'_>) -> Self {
        Self {
            log_sigma: init.zeros([config.latent_dim]),
        }
    }
}

impl Metric for Mahalanobis {
    fn compare(&self, latent: &Latent, prototypes: Tensor<2>) -> PrototypeMatch {
        let scale = exp(self.log_sigma.val() * -0.5).unsqueeze::<2>();
        let squares = squared_distances(
            latent.mean.clone() * scale.clone(),
            prototypes.clone() * scale,
        );
        PrototypeMatch::new((squares + 1.0).recip(), prototypes)
    }
}
