//! Cross-attention: tokens are queries, prototypes are keys.

use burn::module::Module;
use burn::tensor::Tensor;
use lpr_kernels::softmax;

use super::{Latent, Metric, MetricConfig, PrototypeMatch};
use crate::layers::{Linear, RmsNorm};
use crate::random::ParamInit;

/// Epsilon of the norms, as released.
const RMS_NORM_EPS: f64 = 1e-6;

/// With q and k the projected mu and K, RMS-normalized over all heads together, or plain q = mu and
/// k = K without projections (LPR eq. 18 and 19):
///
/// ```text
/// A_h = q_h . k_h / sqrt(latent_dim / heads),   S = mean_h A_h,   V = concat_h softmax(A_h) v_h
/// ```
///
/// v is K, projected if there are projections and more than one head.
#[derive(Module, Debug)]
pub struct CrossAttention {
    projections: Option<Projections>,
    v_proj: Option<Linear>,
    #[module(skip)]
    num_heads: usize,
}

/// The released code's projections of queries and keys.
#[derive(Module, Debug)]
struct Projections {
    q_proj: Linear,
    k_proj: Linear,
    q_norm: RmsNorm,
    k_norm: RmsNorm,
}

impl CrossAttention {
    pub fn new(config: &MetricConfig, init: &ParamInit<'_>) -> Self {
        let width = config.latent_dim;
        let linear = |name: &str| Linear::with_bias(&init.at(name), width, width);
        let norm = |name: &str| RmsNorm::new(&init.at(name), width, RMS_NORM_EPS);
        Self {
            projections: config.projections.then(|| Projections {
                q_proj: linear("q_proj"),
                k_proj: linear("k_proj"),
                q_norm: norm("q_norm"),
                k_norm: norm("k_norm"),
            }),
            v_proj: (config.projections && config.num_heads > 1).then(|| linear("v_proj")),
            num_heads: config.num_heads,
        }
    }

    /// `[rows, latent_dim]` to `[heads, rows, latent_dim / heads]`
    fn heads(&self, x: Tensor<2>) -> Tensor<3> {
        let [rows, width] = x.dims();
        x.reshape([rows, self.num_heads, width / self.num_heads])
            .swap_dims(0, 1)
    }
}

impl Metric for CrossAttention {
    fn compare(&self, latent: &Latent, prototypes: Tensor<2>) -> PrototypeMatch {
        let mean = latent.mean.clone();
        let [tokens, width] = mean.dims();
        let (queries, keys) = match &self.projections {
            Some(p) => (
                p.q_norm.forward(p.q_proj.forward_exact(mean)),
                p.k_norm.forward(p.k_proj.forward_exact(prototypes.clone())),
            ),
            None => (mean, prototypes.clone()),
        };
        let values = match &self.v_proj {
            Some(projection) => projection.forward(prototypes),
            None => prototypes,
        };
        let heads = self.num_heads as f64;
        let scale = (width as f64 / heads).sqrt().recip();
        let attention = self.heads(queries).matmul(self.heads(keys).swap_dims(1, 2)) * scale;
        let mixture = softmax(attention.clone()).matmul(self.heads(values));
        PrototypeMatch {
            scores: attention.sum_dim(0).squeeze_dim(0) * heads.recip(),
            mixture: mixture.swap_dims(0, 1).reshape([tokens, width]),
        }
    }
}
