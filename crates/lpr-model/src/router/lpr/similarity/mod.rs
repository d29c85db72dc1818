//! How a token's latent is compared with the prototypes (method-spec section 1.3).
//!
//! A new metric is one file here and one line in the list below.

mod cosine;
mod cross_attention;
mod distribution;
mod divergence;
mod dot_product;
mod gaussian;
mod mahalanobis;

use burn::module::Module;
use burn::tensor::Tensor;
use lpr_kernels::{exact_linear, softmax};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::cosine::Cosine;
use self::cross_attention::CrossAttention;
use self::distribution::Distribution;
use self::dot_product::DotProduct;
use self::gaussian::GaussianKernel;
use self::mahalanobis::Mahalanobis;
use super::encoder::Latent;
use crate::random::ParamInit;

/// One list of metrics -> the enum of names that a config selects from, the enum of modules (the
/// registry's idiom, see `registry.rs`), and `init` from one to the other.
macro_rules! similarities {
    ($($(#[$doc:meta])* $Variant:ident($name:literal, $compares:ident): $Module:ty = $init:expr,)+) => {
        /// A similarity metric; larger is closer.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        pub enum Similarity { $($(#[$doc])* #[serde(rename = $name)] $Variant,)+ }

        impl Similarity {
            /// Every registered metric, in the order of the list.
            pub const ALL: &'static [Self] = &[$(Self::$Variant),+];

            /// The name that selects this metric.
            pub fn name(self) -> &'static str {
                match self { $(Self::$Variant => $name,)+ }
            }

            /// What this metric compares.
            pub fn compares(self) -> Compares {
                match self { $(Self::$Variant => Compares::$compares,)+ }
            }

            /// Makes the metric.
            pub fn init(self, config: &MetricConfig, init: &ParamInit<'_>) -> AnySimilarity {
                match self { $(Self::$Variant => AnySimilarity::$Variant($init(config, init)),)+ }
            }
        }

        /// A metric of any kind.
        #[derive(Module, Debug)]
        #[allow(clippy::large_enum_variant, reason = "one per layer, never moved around in bulk")]
        pub enum AnySimilarity { $($(#[$doc])* $Variant($Module),)+ }

        impl std::ops::Deref for AnySimilarity {
            type Target = dyn Metric;
            fn deref(&self) -> &Self::Target {
                match self { $(Self::$Variant(module) => module,)+ }
            }
        }
    };
}

similarities! {
    /// Cosine of the angle.
    Cosine("cosine", Vectors): Cosine = Cosine::new,
    /// Inner product.
    DotProduct("dot_product", Vectors): DotProduct = DotProduct::new,
    /// exp(-distance^2 / (2 sigma^2)).
    Gaussian("gaussian", Vectors): GaussianKernel = GaussianKernel::new,
    /// 1 / (1 + distance^2), every dimension with a learned scale.
    Mahalanobis("mahalanobis", Vectors): Mahalanobis = Mahalanobis::new,
    /// Scaled inner products of queries and keys, mean over heads.
    CrossAttention("cross_attention", Vectors): CrossAttention = CrossAttention::new,
    /// Negative KL divergence of the token's distribution from the prototype's.
    Kl("kl", Distributions): Distribution = Distribution::kl,
    /// Negative Jensen-Shannon divergence, by the Gaussian midpoint.
    Js("js", Distributions): Distribution = Distribution::js,
    /// Negative Hellinger distance.
    Hellinger("hellinger", Distributions): Distribution = Distribution::hellinger,
    /// Negative 2-Wasserstein distance.
    Wasserstein("wasserstein", Distributions): Distribution = Distribution::wasserstein,
}

/// What a metric compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compares {
    /// A vector per token with a vector per expert.
    Vectors,
    /// A normal distribution per token with one per expert; the prototypes are the means.
    Distributions,
}

/// Which formula is meant where the paper and its code differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MetricForm {
    /// The released code's.
    Code,
    /// The paper's: LPR eq. 20 (squared) and 23.
    Paper,
}

/// What metrics are built from; each reads its part.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MetricConfig {
    /// Width of latents and prototypes.
    pub latent_dim: usize,
    /// Number of prototypes.
    pub num_experts: usize,
    /// The paper's or the code's formula.
    pub form: MetricForm,
    /// Width of the Gaussian kernel.
    pub sigma: f64,
    /// Heads of the cross-attention.
    pub num_heads: usize,
    /// Projections and norms of the cross-attention.
    pub projections: bool,
}

/// A comparison of tokens with prototypes.
pub trait Metric {
    /// Metrics of vectors look at the mean of `latent` alone.
    ///
    /// # Shapes
    /// `latent`: `[tokens, latent_dim]` each; `prototypes`: `[num_experts, latent_dim]`
    fn compare(&self, latent: &Latent, prototypes: Tensor<2>) -> PrototypeMatch;
}

/// The outcome of a comparison.
#[derive(Debug, Clone)]
pub struct PrototypeMatch {
    /// S, `[tokens, num_experts]`
    pub scores: Tensor<2>,
    /// V, `[tokens, latent_dim]`: what the token resembles, softmax(S) K unless the metric says
    /// otherwise.
    pub mixture: Tensor<2>,
}

impl PrototypeMatch {
    /// With softmax(S) K as the mixture.
    fn new(scores: Tensor<2>, prototypes: Tensor<2>) -> Self {
        let mixture = exact_linear(softmax(scores.clone()), prototypes, None);
        Self { scores, mixture }
    }
}

/// x / max(|x|, eps) for every vector of the last axis; the clamp is inside the root, so that the
/// gradient at zero is finite.
pub fn normalized_rows<const D: usize>(x: Tensor<D>, eps: f64) -> Tensor<D> {
    let norm = x
        .clone()
        .powi_scalar(2)
        .sum_dim(D - 1)
        .clamp_min(eps * eps)
        .sqrt();
    x / norm
}

/// `|a_i - b_j|^2` as `|a_i|^2 + |b_j|^2 - 2 a_i . b_j`, never below zero: no pair is ever expanded to
/// its dimensions.
///
/// # Shapes
/// `a`: `[tokens, width]`; `b`: `[num_experts, width]`; the result is `[tokens, num_experts]`.
fn squared_distances(a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    let squares = |t: &Tensor<2>| t.clone().powi_scalar(2).sum_dim(1);
    let norms = squares(&a) + squares(&b).transpose();
    (norms - exact_linear(a, b.transpose(), None) * 2.0).clamp_min(0.0)
}

#[cfg(test)]
mod tests;
