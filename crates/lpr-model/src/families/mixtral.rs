//! Mixtral (method-spec section 3): grouped-query attention, half-split rotary positions, every
//! feed-forward a Mixture of Experts, head not tied.
//!
//! Its own router is `softmax_topk` with `norm_topk_prob = true`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Family;
use crate::config::{AttentionConfig, DecoderConfig, GroupedQueryConfig, MoeConfig};
use crate::hugging_face::Naming;

/// Sizes of a Mixtral decoder, named as in the other families. Hugging Face's `MixtralConfig` calls
/// `num_experts`, `top_k` and `moe_intermediate_size` `num_local_experts`, `num_experts_per_tok` and
/// `intermediate_size`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MixtralConfig {
    /// Rows of the embedding and of the head; must cover the tokenizer.
    #[schemars(range(min = 1, max = 4_194_304))]
    pub vocab_size: usize,
    /// Width of the residual stream.
    #[schemars(range(min = 1, max = 65_536))]
    pub hidden_size: usize,
    /// Number of decoder blocks.
    #[schemars(range(min = 1, max = 1_024))]
    pub num_hidden_layers: usize,
    /// Query heads.
    #[schemars(range(min = 1, max = 1_024))]
    pub num_attention_heads: usize,
    /// Key and value heads; must divide `num_attention_heads`.
    #[schemars(range(min = 1, max = 1_024))]
    pub num_key_value_heads: usize,
    /// Width of one attention head; even.
    #[schemars(range(min = 2, max = 1_024))]
    pub head_dim: usize,
    /// Inner width of one expert.
    #[schemars(range(min = 1, max = 65_536))]
    pub moe_intermediate_size: usize,
    /// Routed experts per block.
    #[schemars(range(min = 1, max = 1_024))]
    pub num_experts: usize,
    /// Experts that each token is sent to.
    #[schemars(range(min = 1, max = 1_024))]
    pub top_k: usize,
    /// Epsilon of every RMSNorm.
    #[serde(default = "default_rms_norm_eps")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    #[serde(default = "default_rope_theta")]
    #[schemars(range(min = 1.0))]
    pub rope_theta: f64,
    /// Standard deviation of the initial weights.
    #[serde(default = "default_initializer_range")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub initializer_range: f64,
    /// The head shares the embedding matrix.
    #[serde(default)]
    pub tie_word_embeddings: bool,
}

fn default_rms_norm_eps() -> f64 {
    1e-5
}

fn default_rope_theta() -> f64 {
    1e6
}

fn default_initializer_range() -> f64 {
    0.02
}

impl Family for MixtralConfig {
    fn decoder(&self) -> DecoderConfig {
        DecoderConfig {
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            num_hidden_layers: self.num_hidden_layers,
            attention: AttentionConfig::GroupedQuery(GroupedQueryConfig {
                num_attention_heads: self.num_attention_heads,
                num_key_value_heads: self.num_key_value_heads,
                head_dim: self.head_dim,
                rope_theta: self.rope_theta,
                qk_norm_eps: None,
            }),
            moe: MoeConfig {
                num_experts: self.num_experts,
                top_k: self.top_k,
                moe_intermediate_size: self.moe_intermediate_size,
                shared_intermediate_size: 0,
            },
            first_k_dense_replace: 0,
            dense_intermediate_size: 0,
            rms_norm_eps: self.rms_norm_eps,
            initializer_range: self.initializer_range,
            tie_word_embeddings: self.tie_word_embeddings,
        }
    }

    fn naming(&self) -> Naming {
        Naming::BlockSparseMoe
    }
}
