//! The Gaussian kernel.

use burn::module::Module;
use burn::tensor::Tensor;
use lpr_kernels::exp;

use super::{Latent, Metric, MetricConfig, PrototypeMatch, squared_distances};
use crate::random::ParamInit;

/// S = exp(-|mu - K|^2 / (2 sigma^2)) with a fixed sigma (1 in the released code; the paper names
/// no value).
#[derive(Module, Debug)]
pub struct GaussianKernel {
    #[module(skip)]
    sigma: f64,
}

impl GaussianKernel {
    pub fn new(config: &MetricConfig, _init: &ParamInit<'_>) -> Self {
        Self {
            sigma: config.sigma,
        }
    }
}

impl Metric for GaussianKernel {
    fn compare(&self, latent: &Latent, prototypes: Tensor<2>) -> PrototypeMatch {
        let squares = squared_distances(latent.mean.clone(), prototypes.clone());
        let scores = exp(squares * (-0.5 / self.sigma.powi(2)));
        PrototypeMatch::new(scores, prototypes)
    }
}
