//! Causal multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

use burn::module::Module;
use burn::tensor::Tensor;
use lpr_kernels::SequenceMask;

use super::key_values::attend;
use super::{KeyValues, Linear, RmsNorm, RotaryEmbedding};
use crate::config::LatentAttentionConfig;
use crate::random::ParamInit;

/// Epsilon of the norms on the latents, whatever that of the others is, as in Hugging Face's code.
const LATENT_NORM_EPS: f64 = 1e-6;

/// Self-attention whose queries, and whose keys and values, come from small latents.
///
/// ```text
/// query  = q_b(norm(q_a(x))), or q(x)             per head: [without position | rotated]
/// c, r   = kv_a(x)                                r: the rotated part of the keys of all heads
/// key, value = kv_b(norm(c))                      per head: [key without position | value]
/// ```
///
/// Field names are Hugging Face's.
#[derive(Module, Debug)]
pub struct LatentAttention {
    q_proj: Option<Linear>,
    q_a_proj: Option<Linear>,
    q_a_layernorm: Option<RmsNorm>,
    q_b_proj: Option<Linear>,
    kv_a_proj_with_mqa: Linear,
    kv_a_layernorm: RmsNorm,
    kv_b_proj: Linear,
    o_proj: Linear,
    #[module(skip)]
    num_heads: usize,
    #[module(skip)]
    nope_dim: usize,
    #[module(skip)]
    rope_dim: usize,
}

impl LatentAttention {
    /// Projections ~ N(0, std^2) of `init`, without biases.
    pub fn new(init: &ParamInit<'_>, hidden_size: usize, config: &LatentAttentionConfig) -> Self {
        let &LatentAttentionConfig {
            num_attention_heads: num_heads,
            q_lora_rank,
            kv_lora_rank,
            qk_nope_head_dim: nope_dim,
            qk_rope_head_dim: rope_dim,
            v_head_dim,
            rope_theta: _,
        } = config;
        let linear = |name: &str, inputs, outputs| Linear::new(&init.at(name), inputs, outputs);
        let norm = |name: &str, width| RmsNorm::new(&init.at(name), width, LATENT_NORM_EPS);
        let queries = num_heads * (nope_dim + rope_dim);
        let keys_and_values = num_heads * (nope_dim + v_head_dim);
        Self {
            q_proj: q_lora_rank
                .is_none()
                .then(|| linear("q_proj", hidden_size, queries)),
            q_a_proj: q_lora_rank.map(|rank| linear("q_a_proj", hidden_size, rank)),
            q_a_layernorm: q_lora_rank.map(|rank| norm("q_a_layernorm", rank)),
            q_b_proj: q_lora_rank.map(|rank| linear("q_b_proj", rank, queries)),
            kv_a_proj_with_mqa: linear("kv_a_proj_with_mqa", hidden_size, kv_lora_rank + rope_dim),
            kv_a_layernorm: norm("kv_a_layernorm", kv_lora_rank),
            kv_b_proj: linear("kv_b_proj", kv_lora_rank, keys_and_values),
            o_proj: linear("o_proj", num_heads * v_head_dim, hidden_size),
            num_heads,
            nope_dim,
            rope_dim,
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
        let heads = |projected: Tensor<3>| {
            let width = projected.dims()[2] / self.num_heads;
            projected.reshape([batch, sequence, self.num_heads, width])
        };
        let query = heads(self.queries(hidden_states.clone()));
        let [query_nope, query_rope] = split(query, self.nope_dim);

        let compressed = self.kv_a_proj_with_mqa.forward(hidden_states);
        let [latent, key_rope] = split(compressed, self.kv_a_layernorm.weight.dims()[0]);
        let key_rope = key_rope.reshape([batch, sequence, 1, self.rope_dim]);
        let latent = self.kv_a_layernorm.forward(latent);
        let [key_nope, value] = split(heads(self.kv_b_proj.forward(latent)), self.nope_dim);

        let query_rope = rotary.rotate(halves(query_rope));
        let key_rope = rotary.rotate(halves(key_rope));
        let query = Tensor::cat(vec![query_nope, query_rope], 3);
        let shared = [batch, sequence, self.num_heads, self.rope_dim];
        let key = Tensor::cat(vec![key_nope, key_rope.expand(shared)], 3);
        let scale = ((self.nope_dim + self.rope_dim) as f64).powf(-0.5);
        let attended = attend(query, key, value, mask, past, scale);
        let [_, _, count, width] = attended.dims();
        self.o_proj
            .forward(attended.reshape([batch, sequence, count * width]))
    }

    /// `[batch, sequence, hidden_size]` to `[batch, sequence, heads * head width]`
    fn queries(&self, hidden_states: Tensor<3>) -> Tensor<3> {
        let (input, projection) = match (&self.q_a_proj, &self.q_a_layernorm) {
            (Some(latent), Some(norm)) => {
                (norm.forward(latent.forward(hidden_states)), &self.q_b_proj)
            }
            _ => (hidden_states, &self.q_proj),
        };
        let projection = projection.as_ref();
        projection
            .expect("made with or without a latent")
            .forward(input)
    }
}

/// The first `at` channels and the others.
fn split<const D: usize>(tensor: Tensor<D>, at: usize) -> [Tensor<D>; 2] {
    let width = tensor.dims()[D - 1];
    [
        tensor.clone().narrow(D - 1, 0, at),
        tensor.narrow(D - 1, at, width - at),
    ]
}

/// Stored pairs `(x_0, x_1), (x_2, x_3), ..` to `x_0, x_2, .. | x_1, x_3, ..`, the half-split order
/// of [`RotaryEmbedding`]. Queries and keys alike, so their products do not change.
fn halves(heads: Tensor<4>) -> Tensor<4> {
    let [batch, sequence, count, width] = heads.dims();
    heads
        .reshape([batch, sequence, count, width / 2, 2])
        .swap_dims(3, 4)
        .reshape([batch, sequence, count, width])
}
