//! Causal grouped-query attention.

use burn::module::Module;
use burn::tensor::Tensor;
use lpr_kernels::SequenceMask;

use super::key_values::attend;
use super::{KeyValues, Linear, RmsNorm, RotaryEmbedding};
use crate::config::GroupedQueryConfig;
use crate::random::ParamInit;

/// Self-attention whose key and value heads each serve a group of query heads.
///
/// Field names are Hugging Face's. `q_norm` and `k_norm` act on single heads, before the rotation.
#[derive(Module, Debug)]
pub struct GroupedQueryAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    q_norm: Option<RmsNorm>,
    k_norm: Option<RmsNorm>,
    #[module(skip)]
    head_dim: usize,
}

impl GroupedQueryAttention {
    /// Projections ~ N(0, std^2) of `init`, without biases.
    pub fn new(init: &ParamInit<'_>, hidden_size: usize, config: &GroupedQueryConfig) -> Self {
        let head_dim = config.head_dim;
        let queries = config.num_attention_heads * head_dim;
        let keys = config.num_key_value_heads * head_dim;
        let norm = |name: &str| {
            config
                .qk_norm_eps
                .map(|eps| RmsNorm::new(&init.at(name), head_dim, eps))
        };
        Self {
            q_proj: Linear::new(&init.at("q_proj"), hidden_size, queries),
            k_proj: Linear::new(&init.at("k_proj"), hidden_size, keys),
            v_proj: Linear::new(&init.at("v_proj"), hidden_size, keys),
            o_proj: Linear::new(&init.at("o_proj"), queries, hidden_size),
            q_norm: norm("q_norm"),
            k_norm: norm("k_norm"),
            head_dim,
        }
    }

    /// # Shapes
    /// `hidden_states`: `[batch, sequence, hidden_size]`, and so is the result.
    pub fn forward(
        &self,
        hidden_states: Tensor<3>,
        rotary: &RotaryEmbedding,
        mask: Option<&SequenceMask>,
        past: Option<&mut KeyValues>,
    ) -> Tensor<3> {
        let [batch, sequence, _] = hidden_states.dims();
        let heads = |projection: &Linear, norm: Option<&RmsNorm>| {
            let projected = projection.forward(hidden_states.clone());
            let count = projected.dims()[2] / self.head_dim;
            let split = projected.reshape([batch, sequence, count, self.head_dim]);
            match norm {
                Some(norm) => norm.forward(split),
                None => split,
            }
        };
        let query = rotary.rotate(heads(&self.q_proj, self.q_norm.as_ref()));
        let key = rotary.rotate(heads(&self.k_proj, self.k_norm.as_ref()));
        let value = heads(&self.v_proj, None);
        let scale = (self.head_dim as f64).powf(-0.5);
        let attended = attend(query, key, value, mask, past, scale);
        let [_, _, count, width] = attended.dims();
        self.o_proj
            .forward(attended.reshape([batch, sequence, count * width]))
    }
}
