//! The vanilla router's metric, in the latent space.

use burn::module::Module;
use burn::tensor::Tensor;
use lpr_kernels::exact_linear;

use super::{Latent, Metric, MetricConfig, PrototypeMatch};
use crate::random::ParamInit;

/// S = mu . K. (The released code returns no mixture here and fails; softmax(S) K is used.)
#[derive(Module, Debug)]
pub struct DotProduct;

impl DotProduct {
    pub fn new(_config: &MetricConfig, _init: &ParamInit<'_>) -> Self {
        Self
    }
}

impl Metric for DotProduct {
    fn compare(&self, latent: &Latent, prototypes: Tensor<2>) -> PrototypeMatch {
        let scores = exact_linear(latent.mean.clone(), prototypes.clone().transpose(), None);
        PrototypeMatch::new(scores, prototypes)
    }
}
