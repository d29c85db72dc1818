//! Layers that every family is built from.

mod attention;
mod key_values;
mod latent_attention;
mod linear;
mod norm;
mod rope;
mod swiglu;

pub use attention::GroupedQueryAttention;
pub use key_values::KeyValues;
pub use latent_attention::LatentAttention;
pub use linear::Linear;
pub use norm::{LayerNorm, RmsNorm};
pub use rope::RotaryEmbedding;
pub use swiglu::SwiGlu;

use burn::module::Module;
use burn::tensor::Tensor;
use lpr_kernels::SequenceMask;

use crate::config::AttentionConfig;
use crate::random::ParamInit;

/// The self-attention of any family.
#[derive(Module, Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "one per layer, never moved around in bulk"
)]
pub enum Attention {
    /// See [`GroupedQueryAttention`].
    GroupedQuery(GroupedQueryAttention),
    /// See [`LatentAttention`].
    Latent(LatentAttention),
}

impl Attention {
    /// Makes the attention that `config` describes.
    pub fn new(init: &ParamInit<'_>, hidden_size: usize, config: &AttentionConfig) -> Self {
        match config {
            AttentionConfig::GroupedQuery(config) => {
                Self::GroupedQuery(GroupedQueryAttention::new(init, hidden_size, config))
            }
            AttentionConfig::Latent(config) => {
                Self::Latent(LatentAttention::new(init, hidden_size, config))
            }
        }
    }

    /// With a `past`, the tokens are those that follow it; it then has them, too.
    ///
    /// # Shapes
    /// `hidden_states`: `[batch, sequence, hidden_size]`, and so is the result.
    pub fn forward(
        &self,
        hidden_states: Tensor<3>,
        rotary: &RotaryEmbedding,
        mask: Option<&SequenceMask>,
        past: Option<&mut KeyValues>,
    ) -> Tensor<3> {
        match self {
            Self::GroupedQuery(attention) => attention.forward(hidden_states, rotary, mask, past),
            Self::Latent(attention) => attention.forward(hidden_states, rotary, mask, past),
        }
    }
}
