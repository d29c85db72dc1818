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
    /// The feed-forward of every block but the first ones.
    pub moe: MoeConfig,
    /// Blocks at the start whose feed-forward is dense.
    pub first_k_dense_replace: usize,
    /// Inner width of the dense feed-forwards.
    pub dense_intermediate_size: usize,
    /// Epsilon of every RMSNorm outside the attention.
    pub rms_norm_eps: f64,
    /// Standard deviation of the initial weights.
    pub initializer_range: f64,
    /// The head shares the embedding matrix.
    pub tie_word_embeddings: bool,
}

/// The attention of a family.
#[derive(Debug, Clone, PartialEq)]
pub enum AttentionConfig {
    /// Queries in groups that share a key and value head.
    GroupedQuery(GroupedQueryConfig),
    /// Keys and values from one small latent per token.
    Latent(LatentAttentionConfig),
}

/// Grouped-query attention with rotary positions.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupedQueryConfig {
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

/// Multi-head latent attention: queries and key-value pairs are decoded from latents; only a part
/// of each head carries positions, and the keys' part is shared by all heads.
#[derive(Debug, Clone, PartialEq)]
pub struct LatentAttentionConfig {
    /// Heads.
    pub num_attention_heads: usize,
    /// Width of the latent of the queries; `None` projects them without one.
    pub q_lora_rank: Option<usize>,
    /// Width of the latent of keys and values.
    pub kv_lora_rank: usize,
    /// Width of the part of a query and key head without positions.
    pub qk_nope_head_dim: usize,
    /// Width of the part of a query and key head that is rotated.
    pub qk_rope_head_dim: usize,
    /// Width of a value head.
    pub v_head_dim: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
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
    /// Inner width of the experts that see every token, all of them together; 0 for none.
    pub shared_intermediate_size: usize,
}

impl DecoderConfig {
    /// Blocks that have experts and a router.
    pub fn num_moe_layers(&self) -> usize {
        self.num_hidden_layers
            .saturating_sub(self.first_k_dense_replace)
    }

    /// Every rule that relates sizes to each other. Empty when the sizes fit.
    pub fn validate(&self) -> Vec<ConfigProblem> {
        let mut problems = self.attention.validate();
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
        problems.extend(self.validate_dense());
        problems
    }

    fn validate_dense(&self) -> Option<ConfigProblem> {
        let (first, layers) = (self.first_k_dense_replace, self.num_hidden_layers);
        if first >= layers {
            return Some(ConfigProblem::new(
                "model.first_k_dense_replace",
                format!(
                    "is {first}, which leaves no block with experts; with \
                     model.num_hidden_layers = {layers} use 0 to {}",
                    layers.saturating_sub(1)
                ),
            ));
        }
        let width = self.dense_intermediate_size;
        let message = match (first, width) {
            (0, 1..) => format!(
                "is {width}, but model.first_k_dense_replace = 0 leaves no dense block of that \
                 width; remove it, or set model.first_k_dense_replace to 1 or more"
            ),
            (1.., 0) => format!(
                "is 0, but model.first_k_dense_replace = {first} blocks are dense; \
                 use the width of their feed-forward, 1 or more"
            ),
            _ => return None,
        };
        Some(ConfigProblem::new("model.intermediate_size", message))
    }
}

impl AttentionConfig {
    /// Channels of a head that are rotated, and the base of their frequencies.
    pub fn rotary(&self) -> (usize, f64) {
        match self {
            Self::GroupedQuery(config) => (config.head_dim, config.rope_theta),
            Self::Latent(config) => (config.qk_rope_head_dim, config.rope_theta),
        }
    }

    /// Multiply-adds for one query position that looks at one key position, all heads together.
    pub fn macs_per_pair(&self) -> usize {
        match self {
            Self::GroupedQuery(config) => config.num_attention_heads * 2 * config.head_dim,
            Self::Latent(config) => {
                let query_dim = config.qk_nope_head_dim + config.qk_rope_head_dim;
                config.num_attention_heads * (query_dim + config.v_head_dim)
            }
        }
    }

    /// How many numbers the attention of a layer keeps of each position for the backward pass on the
    /// CPU, beside the hidden state it is given: what its norms and projections read; queries, keys,
    /// values; its result and a log-sum per head.
    pub fn kept_per_token(&self) -> usize {
        match self {
            Self::GroupedQuery(config) => {
                let queries = config.num_attention_heads * config.head_dim;
                let keys = config.num_key_value_heads * config.head_dim;
                let normed = config.qk_norm_eps.map_or(0, |_| queries + keys);
                normed + 2 * queries + 2 * keys + config.num_attention_heads
            }
            Self::Latent(config) => {
                let latents = 2 * (config.q_lora_rank.unwrap_or(0) + config.kv_lora_rank);
                let query_dim = config.qk_nope_head_dim + config.qk_rope_head_dim;
                let head = 2 * query_dim + 2 * config.v_head_dim + 1;
                latents + config.num_attention_heads * head
            }
        }
    }

    fn validate(&self) -> Vec<ConfigProblem> {
        let mut problems = Vec::new();
        let width_key = match self {
            Self::GroupedQuery(config) => {
                let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
                if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
                    problems.push(ConfigProblem::new(
                        "model.num_key_value_heads",
                        format!(
                            "is {kv_heads}, but model.num_attention_heads = {heads} must be a \
                             multiple of it; use one of {}",
                            divisors(heads)
                        ),
                    ));
                }
                "model.head_dim"
            }
            Self::Latent(_) => "model.qk_rope_head_dim",
        };
        let (width, _) = self.rotary();
        if !width.is_multiple_of(2) {
            let message =
                format!("is {width}, but rotary positions rotate pairs; use an even number");
            problems.push(ConfigProblem::new(width_key, message));
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
