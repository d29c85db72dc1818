//! The dense feed-forward.

use burn::module::Module;
use burn::tensor::Tensor;

use super::Linear;
use crate::random::ParamInit;

/// `y = (silu(x G) * (x U)) D`, without biases. Field names are Hugging Face's.
#[derive(Module, Debug)]
#[allow(clippy::struct_field_names, reason = "checkpoints hold them")]
pub struct SwiGlu {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

impl SwiGlu {
    /// Weights ~ N(0, std^2) of `init`.
    pub fn new(init: &ParamInit<'_>, hidden_size: usize, intermediate_size: usize) -> Self {
        Self {
            gate_proj: Linear::new(&init.at("gate_proj"), hidden_size, intermediate_size),
            up_proj: Linear::new(&init.at("up_proj"), hidden_size, intermediate_size),
            down_proj: Linear::new(&init.at("down_proj"), intermediate_size, hidden_size),
        }
    }

    /// # Shapes
    /// `hidden_states`: `[tokens, hidden_size]`, and so is the result.
    pub fn forward(&self, hidden_states: Tensor<2>) -> Tensor<2> {
        let gate = self.gate_proj.forward(hidden_states.clone());
        let up = self.up_proj.forward(hidden_states);
        self.down_proj.forward(lpr_kernels::silu_mul(gate, up))
    }
}
