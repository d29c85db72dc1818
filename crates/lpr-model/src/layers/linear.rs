//! A linear map with an optional bias.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use crate::random::ParamInit;

/// `y = x W + b`.
#[derive(Module, Debug)]
pub struct Linear {
    /// W, `[in, out]` (the transpose of Hugging Face's layout).
    pub weight: Param<Tensor<2>>,
    /// b, `[out]`.
    pub bias: Option<Param<Tensor<1>>>,
}

impl Linear {
    /// W ~ N(0, std^2) of `init`, no bias.
    pub fn new(init: &ParamInit<'_>, inputs: usize, outputs: usize) -> Self {
        Self {
            weight: init.weight("weight", [inputs, outputs]),
            bias: None,
        }
    }

    /// W ~ N(0, std^2) of `init`, b = 0.
    pub fn with_bias(init: &ParamInit<'_>, inputs: usize, outputs: usize) -> Self {
        Self {
            bias: Some(init.zeros([outputs])),
            ..Self::new(init, inputs, outputs)
        }
    }

    /// # Shapes
    /// `[.., in]` to `[.., out]`.
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        lpr_kernels::linear(input, self.weight.val(), self.bias())
    }

    /// The same in 32-bit floats, whatever other products multiply: on the way to a router's scores.
    ///
    /// # Shapes
    /// `[.., in]` to `[.., out]`.
    pub fn forward_exact<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        lpr_kernels::exact_linear(input, self.weight.val(), self.bias())
    }

    fn bias(&self) -> Option<Tensor<1>> {
        self.bias.as_ref().map(Param::val)
    }
}
