//! Sums over the tokens that chose each expert.

use crate::dispatch::is_cpu;
use burn::tensor::{IndexingUpdateOp, Int, Tensor};

/// How often each expert was chosen, `[num_experts]`; with `is_token`, by tokens alone and not by
/// padding.
///
/// # Shapes
///
/// - `expert_indices`: `[tokens, top_k]`, each in `0..num_experts`
/// - `is_token`: `[tokens]`, 1 for a token and 0 for padding
///
/// # Panics
///
/// If the shapes do not fit together.
pub fn choices_per_expert(
    expert_indices: Tensor<2, Int>,
    is_token: Option<Tensor<1, Int>>,
    num_experts: usize,
) -> Tensor<1, Int> {
    let [tokens, top_k] = expert_indices.dims();
    let counted = match is_token {
        Some(is_token) => is_token.reshape([tokens, 1]).repeat_dim(1, top_k),
        None => expert_indices.ones_like(),
    };
    let choices = tokens * top_k;
    if is_cpu(&expert_indices.device()) {
        let (indices, counted) = (
            expert_indices.reshape([choices]),
            counted.reshape([choices]),
        );
        let zeros = Tensor::<1, Int>::zeros([num_experts], &indices.device());
        return zeros.select_assign(0, indices, counted, IndexingUpdateOp::Add);
    }
    let chosen = is_chosen(expert_indices, num_experts).int();
    let counted = chosen * counted.reshape([choices, 1]);
    counted.sum_dim(0).reshape([num_experts])
}

/// The sum of the routing weights of the tokens that chose each expert, `[num_experts]`, without
/// gradients.
///
/// # Shapes
///
/// - `expert_indices`, `routing_weights`: `[tokens, top_k]`, indices in `0..num_experts`
///
/// # Panics
///
/// If the shapes do not fit together.
pub fn weight_per_expert(
    expert_indices: Tensor<2, Int>,
    routing_weights: Tensor<2>,
    num_experts: usize,
) -> Tensor<1> {
    let choices = expert_indices.shape().num_elements();
    let weights = routing_weights.inner();
    if is_cpu(&weights.device()) {
        let zeros = Tensor::<1>::zeros([num_experts], &weights.device());
        let (indices, weights) = (
            expert_indices.reshape([choices]),
            weights.reshape([choices]),
        );
        return zeros.select_assign(0, indices.inner(), weights, IndexingUpdateOp::Add);
    }
    let chosen = is_chosen(expert_indices.inner(), num_experts);
    let weights = weights.reshape([choices, 1]).expand([choices, num_experts]);
    let weights = weights.mask_fill(chosen.bool_not(), 0.0);
    weights.sum_dim(0).reshape([num_experts])
}

/// Whether a choice is an expert, `[choices, num_experts]`. On GPUs, where adding at indices is
/// done by one thread, sums go over this.
fn is_chosen(expert_indices: Tensor<2, Int>, num_experts: usize) -> Tensor<2, burn::tensor::Bool> {
    let choices = expert_indices.shape().num_elements();
    let experts = Tensor::<1, Int>::arange(0..num_experts as i64, &expert_indices.device());
    let all = [choices, num_experts];
    let experts = experts.reshape([1, num_experts]).expand(all);
    expert_indices
        .reshape([choices, 1])
        .expand(all)
        .equal(experts)
}
