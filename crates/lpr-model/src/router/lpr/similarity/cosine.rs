//! The paper's default metric.

use burn::module::Module;
use burn::tensor::Tensor;
use lpr_kernels::exact_linear;

use super::{Latent, Metric, MetricConfig, PrototypeMatch, normalized_rows};
use crate::random::ParamInit;

/// Below this norm a vector counts as this long, as in the released code.
const EPS: f64 = 1e-8;

/// S = mu . K / (|mu| |K|).
#[derive(Module, Debug)]
pub struct Cosine;

impl Cosine {
    pub fn new(_config: &MetricConfig, _init: &ParamInit<'_>) -> Self {
        Self
    }
}

impl Metric for Cosine {
    fn compare(&self, latent: &Latent, prototypes: Tensor<2>) -> PrototypeMatch {
        let directions = normalized_rows(prototypes.clone(), EPS).transpose();
        let scores = exact_linear(normalized_rows(latent.mean.clone(), EPS), directions, None);
        PrototypeMatch::new(scores, prototypes)
    }
}
