//! The variational encoder: a token's mean and log-variance in the latent.

use burn::module::Module;
use burn::tensor::Tensor;
use lpr_kernels::exp;

use super::token_groups::TokenGroups;
use crate::layers::{LayerNorm, Linear};
use crate::random::ParamInit;

/// Epsilon of the LayerNorm, as released.
const LAYER_NORM_EPS: f64 = 1e-5;

/// LayerNorm, SiLU, Linear (LPR eq. 10 and 11; "Norm" is a LayerNorm in the released code).
#[derive(Module, Debug)]
pub struct LatentEncoder {
    norm: LayerNorm,
    projection: Linear,
}

/// A diagonal normal distribution per token, `[tokens, latent_dim]` each.
#[derive(Debug, Clone)]
pub struct Latent {
    /// mu
    pub mean: Tensor<2>,
    /// log sigma^2, not clamped
    pub log_var: Tensor<2>,
}

impl LatentEncoder {
    /// Weights ~ N(0, std^2) of `init`, biases 0.
    pub fn new(init: &ParamInit<'_>, hidden_size: usize, latent_dim: usize) -> Self {
        Self {
            norm: LayerNorm::new(&init.at("norm"), hidden_size, LAYER_NORM_EPS),
            projection: Linear::with_bias(&init.at("projection"), hidden_size, 2 * latent_dim),
        }
    }

    /// # Shapes
    /// `hidden_states`: `[tokens, hidden_size]`
    pub fn forward(&self, hidden_states: Tensor<2>) -> Latent {
        let both = self
            .projection
            .forward_exact(self.norm.forward_silu(hidden_states));
        let [_, width] = both.dims();
        let mut halves = both.split(width / 2, 1).into_iter();
        let mut half = || halves.next().expect("the projection has two halves");
        Latent {
            mean: half(),
            log_var: half(),
        }
    }
}

impl Latent {
    /// z = mu + sigma * noise (LPR eq. 12).
    pub fn sample(&self, noise: Tensor<2>) -> Tensor<2> {
        self.mean.clone() + exp(self.log_var.clone() * 0.5) * noise
    }
}

/// KL(N(mu, sigma^2) || N(0, 1)): mean over tokens of
/// `1/2 sum_j (mu^2 + sigma^2 - log sigma^2 - 1)`.
///
/// # Shapes
/// `mean`, `log_var`: `[tokens, latent_dim]`; the result is `[1]`.
pub fn kl_loss(mean: Tensor<2>, log_var: Tensor<2>, groups: &TokenGroups) -> Tensor<1> {
    let per_dimension = mean.powi_scalar(2) + exp(log_var.clone()) - log_var - 1.0;
    groups.mean(per_dimension) * 0.5
}
