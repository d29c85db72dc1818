//! Sizes of a decoder, and how a wrong one is reported.

/// One thing wrong in a config file, worded for its author.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigProblem {
    /// The dotted key, for example `model.head_dim`.
    pub key: String,
    /// The value found, what is allowed, and what to type instead.
    pub message: String,
}

impl ConfigProblem {
    /// A problem with `key`.
    pub fn new(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            message: message.into(),
        }
    }
}

/// What every family resolves to: the sizes from which a decoder is built.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of decoder blocks.
    pub num_hidden_layers: usize,
    /// The attention of every block.
    pub attention: AttentionConfig,
    /// The feed-forward of every block.
    pub moe: MoeConfig,
    /// Epsilon of every RMSNorm outside the attention.
    pub rms_norm_eps: f64,
    /// Standard deviation of the initial weights.
    pub initializer_range: f64,
    /// The head shares the embedding matrix.
    pub tie_word_embeddings: bool,
}

/// Grouped-query attention with rotary positions.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionConfig {
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; each serves `num_attention_heads / num_key_value_heads` query heads.
    pub num_key_value_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Normalize each query and key head with an RMSNorm of this epsilon.
    pub qk_norm_eps: Option<f64>,
}

/// Experts of one block.
#[derive(Debug, Clone, PartialEq)]
pub struct MoeConfig {
    /// Routed experts.
    pub num_experts: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Inner width of one expert.
    pub moe_intermediate_size: usize,
}

impl DecoderConfig {
    /// Every rule that relates sizes to each other. Empty when the sizes fit.
    pub fn validate(&self) -> Vec<ConfigProblem> {
        let mut problems = Vec::new();
        let attention = &self.attention;
        let (heads, kv_heads) = (attention.num_attention_heads, attention.num_key_value_heads);
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            problems.push(ConfigProblem::new(
                "model.num_key_value_heads",
                format!(
                    "is {kv_heads}, but model.num_attention_heads = {heads} must be a multiple of it; \
                     use one of {}",
                    divisors(heads)
                ),
            ));
        }
        if !attention.head_dim.is_multiple_of(2) {
            problems.push(ConfigProblem::new(
                "model.head_dim",
                format!(
                    "is {}, but rotary positions rotate pairs; use an even number",
                    attention.head_dim
                ),
            ));
        }
        let MoeConfig {
            num_experts, top_k, ..
        } = self.moe;
        if top_k > num_experts {
            problems.push(ConfigProblem::new(
                "model.top_k",
                format!(
                    "is {top_k}, but there are only model.num_experts = {num_experts}; \
                     use 1 to {num_experts}"
                ),
            ));
        }
        problems
    }
}

fn divisors(n: usize) -> String {
    let list: Vec<String> = (1..=n)
        .filter(|d| n.is_multiple_of(*d))
        .map(|d| d.to_string())
        .collect();
    list.join(", ")
}
