//! DeepSeek-V3 (method-spec section 3): multi-head latent attention with its own rotated channels,
//! experts that see every token beside the routed ones, dense feed-forwards in the first blocks, head
//! not tied.
//!
//! Its own router is `sigmoid_topk`, which holds the expert groups, the scaling of the routed experts
//! and the correction bias: other routers do without them (method-spec table row 30).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Family;
use crate::config::{AttentionConfig, DecoderConfig, LatentAttentionConfig, MoeConfig};

/// Sizes of a DeepSeek-V3 decoder, named as in Hugging Face's `DeepseekV3Config` except
/// `num_experts`, `num_shared_experts` and `top_k` (`n_routed_experts`, `n_shared_experts` and
/// `num_experts_per_tok` there).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeepseekV3Config {
    /// Rows of the embedding and of the head; must cover the tokenizer.
    #[schemars(range(min = 1, max = 4_194_304))]
    pub vocab_size: usize,
    /// Width of the residual stream.
    #[schemars(range(min = 1, max = 65_536))]
    pub hidden_size: usize,
    /// Number of decoder blocks.
    #[schemars(range(min = 1, max = 1_024))]
    pub num_hidden_layers: usize,
    /// Attention heads.
    #[schemars(range(min = 1, max = 1_024))]
    pub num_attention_heads: usize,
    /// Width of the latent of the queries; without this key they are projected without a latent.
    #[schemars(range(min = 1, max = 65_536))]
    pub q_lora_rank: Option<usize>,
    /// Width of the latent of keys and values.
    #[schemars(range(min = 1, max = 65_536))]
    pub kv_lora_rank: usize,
    /// Width of the part of a query and key head that carries no position.
    #[schemars(range(min = 1, max = 1_024))]
    pub qk_nope_head_dim: usize,
    /// Width of the part of a query and key head that carries the position; even.
    #[schemars(range(min = 2, max = 1_024))]
    pub qk_rope_head_dim: usize,
    /// Width of one value head.
    #[schemars(range(min = 1, max = 1_024))]
    pub v_head_dim: usize,
    /// Inner width of one expert.
    #[schemars(range(min = 1, max = 65_536))]
    pub moe_intermediate_size: usize,
    /// Routed experts per block.
    #[schemars(range(min = 1, max = 1_024))]
    pub num_experts: usize,
    /// Experts that each token is sent to.
    #[schemars(range(min = 1, max = 1_024))]
    pub top_k: usize,
    /// Experts that see every token; together one feed-forward of their summed width.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1_024))]
    pub num_shared_experts: usize,
    /// Blocks at the start that have a dense feed-forward instead of experts.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1_023))]
    pub first_k_dense_replace: usize,
    /// Inner width of the dense feed-forwards; only with `first_k_dense_replace` above 0.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1_048_576))]
    pub intermediate_size: usize,
    /// Epsilon of every RMSNorm outside the attention.
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
    1e-6
}

fn default_rope_theta() -> f64 {
    1e4
}

fn default_initializer_range() -> f64 {
    0.02
}

impl Family for DeepseekV3Config {
    fn decoder(&self) -> DecoderConfig {
        DecoderConfig {
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            num_hidden_layers: self.num_hidden_layers,
            attention: AttentionConfig::Latent(LatentAttentionConfig {
                num_attention_heads: self.num_attention_heads,
                q_lora_rank: self.q_lora_rank,
                kv_lora_rank: self.kv_lora_rank,
                qk_nope_head_dim: self.qk_nope_head_dim,
                qk_rope_head_dim: self.qk_rope_head_dim,
                v_head_dim: self.v_head_dim,
                rope_theta: self.rope_theta,
            }),
            moe: MoeConfig {
                num_experts: self.num_experts,
                top_k: self.top_k,
                moe_intermediate_size: self.moe_intermediate_size,
                shared_intermediate_size: self.num_shared_experts * self.moe_intermediate_size,
            },
            first_k_dense_replace: self.first_k_dense_replace,
            dense_intermediate_size: self.intermediate_size,
            rms_norm_eps: self.rms_norm_eps,
            initializer_range: self.initializer_range,
            tie_word_embeddings: self.tie_word_embeddings,
        }
    }
}
