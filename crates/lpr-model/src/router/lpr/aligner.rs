//! The alignment loss: prototypes are pulled towards the tokens they received (method-spec
//! section 2, "Alignment"), in the released code's form and in the paper's.

use burn::tensor::{IndexingUpdateOp, Int, Tensor};
use lpr_kernels::softmax;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::token_groups::TokenGroups;

/// Form of the alignment loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AlignmentForm {
    /// mean |K - T|, T = R' z summed over tokens, no gradient to the encoder: the released code.
    CodeL1,
    /// |z - softmax(S) K|^2 with z constant: LPR eq. 15 to 17.
    PaperL2,
}

/// How the paper's form is reduced (the paper does not say).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AlignmentReduce {
    /// Sum over tokens and dimensions.
    Sum,
    /// Sum over dimensions, mean over tokens.
    TokenMean,
    /// Mean over tokens and dimensions.
    Mean,
}

/// R: softmax over experts of a row that holds the chosen scores and 0 elsewhere, `[tokens,
/// num_experts]`, without gradient.
///
/// # Shapes
/// `scores`: `[tokens, num_experts]`; `expert_indices`, `chosen` (their scores): `[tokens, top_k]`
pub fn alignment_routing(
    scores: &Tensor<2>,
    expert_indices: &Tensor<2, Int>,
    chosen: Tensor<2>,
) -> Tensor<2> {
    let sparse = scores.clone().detach().zeros_like().scatter(
        1,
        expert_indices.clone(),
        chosen.detach(),
        IndexingUpdateOp::Add,
    );
    softmax(sparse)
}

/// T = R' z, summed (not averaged) over the tokens of each group, without gradient:
/// `[num_groups, num_experts, latent_dim]`.
///
/// # Shapes
/// `routing`: `[tokens, num_experts]`; `sample`: `[tokens, latent_dim]`
pub fn alignment_target(routing: Tensor<2>, sample: Tensor<2>, groups: &TokenGroups) -> Tensor<3> {
    let routing = groups.split(groups.masked(routing));
    routing
        .swap_dims(1, 2)
        .matmul(groups.split(sample.detach()))
}

/// mean |K - T| over groups, experts and dimensions, `[1]`: each element of K is pulled by
/// `sign(K - T) / (num_experts * latent_dim)`, however far T is.
///
/// # Shapes
/// `prototypes`: `[num_experts, latent_dim]`; `target`: `[num_groups, num_experts, latent_dim]`
pub fn alignment_code_loss(prototypes: Tensor<2>, target: Tensor<3>) -> Tensor<1> {
    (prototypes.unsqueeze::<3>() - target).abs().mean()
}

/// |z - M|^2 with z constant and M = softmax(S) K, `[1]`.
///
/// # Shapes
/// `sample` (z), `mixture` (M): `[tokens, latent_dim]`
pub fn alignment_paper_loss(
    sample: Tensor<2>,
    mixture: Tensor<2>,
    reduce: AlignmentReduce,
    groups: &TokenGroups,
) -> Tensor<1> {
    let width = sample.dims()[1] as f64;
    let squares = (sample.detach() - mixture).powi_scalar(2);
    match reduce {
        AlignmentReduce::Sum => groups.sum(squares),
        AlignmentReduce::TokenMean => groups.mean(squares),
        AlignmentReduce::Mean => groups.mean(squares) * width.recip(),
    }
}
