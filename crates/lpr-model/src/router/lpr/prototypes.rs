//! Where the prototypes start.

use burn::module::Param;
use burn::tensor::Tensor;

use super::similarity::normalized_rows;
use crate::random::ParamInit;

/// One prototype per expert: r ~ N(0, I), or r / max(|r|, 1e-12) on the unit sphere ("w/ init" in
/// the paper's tables). Nothing keeps them there afterwards.
///
/// # Shapes
/// `[num_experts, latent_dim]`
pub fn init(
    init: &ParamInit<'_>,
    num_experts: usize,
    latent_dim: usize,
    unit_ball: bool,
) -> Param<Tensor<2>> {
    let normal = init.standard_normal([num_experts, latent_dim]);
    Param::from_tensor(if unit_ball {
        normalized_rows(normal, 1e-12)
    } else {
        normal
    })
}
