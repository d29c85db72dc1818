//! Normalization over the last axis.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use crate::random::ParamInit;

/// `y = x / sqrt(mean(x^2) + eps) * weight`.
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// `[width]`, ones at first.
    pub weight: Param<Tensor<1>>,
    #[module(skip)]
    eps: f64,
}

impl RmsNorm {
    /// Over `width` values.
    pub fn new(init: &ParamInit<'_>, width: usize, eps: f64) -> Self {
        Self {
            weight: init.ones([width]),
            eps,
        }
    }

    /// # Shapes
    /// `[.., width]` to the same.
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        lpr_kernels::rms_norm(input, self.weight.val(), self.eps)
    }
}

/// `y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias`, with the biased variance.
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// `[width]`, ones at first.
    pub weight: Param<Tensor<1>>,
    /// `[width]`, zeros at first.
    pub bias: Param<Tensor<1>>,
    #[module(skip)]
    eps: f64,
}

impl LayerNorm {
    /// Over `width` values.
    pub fn new(init: &ParamInit<'_>, width: usize, eps: f64) -> Self {
        Self {
            weight: init.ones([width]),
            bias: init.zeros([width]),
            eps,
        }
    }

    /// `silu(y)`.
    ///
    /// # Shapes
    /// `[.., width]` to the same.
    pub fn forward_silu<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        lpr_kernels::layer_norm_silu(input, self.weight.val(), self.bias.val(), self.eps)
    }
}
