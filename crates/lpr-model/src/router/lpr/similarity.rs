//! How a token's latent is compared with the prototypes (method-spec section 1.3).

use burn::tensor::{Tensor, activation::softmax};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A similarity metric; larger is closer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Similarity {
    /// Cosine of the angle.
    Cosine,
    /// Inner product.
    DotProduct,
}

/// The outcome of a comparison.
#[derive(Debug, Clone)]
pub struct PrototypeMatch {
    /// S, `[tokens, num_experts]`
    pub scores: Tensor<2>,
    /// softmax(S) K, `[tokens, latent_dim]`: the prototype that the token resembles.
    pub mixture: Tensor<2>,
}

/// Below this norm a vector counts as this long, as in the released code.
const COSINE_EPS: f64 = 1e-8;

impl Similarity {
    /// # Shapes
    /// `latent`: `[tokens, latent_dim]`; `prototypes`: `[num_experts, latent_dim]`
    pub fn compare(self, latent: Tensor<2>, prototypes: Tensor<2>) -> PrototypeMatch {
        let scores = match self {
            Self::Cosine => normalized_rows(latent, COSINE_EPS)
                .matmul(normalized_rows(prototypes.clone(), COSINE_EPS).transpose()),
            Self::DotProduct => latent.matmul(prototypes.clone().transpose()),
        };
        let mixture = softmax(scores.clone(), 1).matmul(prototypes);
        PrototypeMatch { scores, mixture }
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
