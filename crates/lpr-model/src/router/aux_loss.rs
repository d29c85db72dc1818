//! Load-balancing losses of the vanilla router.
//!
//! With `f_e` the share of tokens that chose expert `e` (each token counted k times, so that `f`
//! sums to k) and `P_e` the mean probability of expert `e`, both over tokens without padding:
//!
//! ```text
//! pooled       = E * sum_e mean_l(f_e) * mean_l(P_e)     (Hugging Face; k when balanced)
//! switch       = mean_l( E * sum_e (f_e / k) * P_e )     (Switch Transformer; 1 when balanced)
//! per_sequence = mean over rows of switch, each row alone
//! global_batch = switch with f and P over all micro-batches of the step
//! ```
//!
//! The pooled form lets an imbalance of one layer cancel against another layer's.
//!
//! `f` carries no gradient, so the global form is a sum over micro-batches, each linear in its own
//! `P`, once `f` is known. It is exact: a pass without gradients over all micro-batches counts `f`
//! before the first backward pass, which costs about a third of the step's time when there is more
//! than one micro-batch.

use burn::tensor::{IndexingUpdateOp, Int, Tensor};
use lpr_kernels::{exp, softmax};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{LossContext, StepLoad};

/// Which load-balancing loss is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AuxLossForm {
    /// No load-balancing loss.
    None,
    /// Shares and probabilities are averaged over all layers before they are multiplied, as in
    /// Hugging Face transformers.
    Pooled,
    /// One product per layer, as in the Switch Transformer.
    Switch,
    /// One product per layer and row, as in DeepSeek-V3: every sequence is to be balanced.
    PerSequence,
    /// One product per layer over all micro-batches of a step (arXiv 2501.11873): only the whole is
    /// to be balanced, and the loss does not depend on how the step is split.
    GlobalBatch,
}

/// Assigned share and mean probability of every expert in one layer.
#[derive(Debug, Clone)]
pub struct LayerBalance {
    /// f, `[groups, num_experts]`, sums to k; no gradient.
    pub assigned_share: Tensor<2>,
    /// P, `[groups, num_experts]`, sums to one.
    pub mean_probability: Tensor<2>,
    top_k: usize,
}

impl LayerBalance {
    /// # Shapes
    /// `router_logits`: `[tokens, num_experts]`; `expert_indices`: `[tokens, top_k]`
    pub fn new(
        router_logits: &Tensor<2>,
        expert_indices: &Tensor<2, Int>,
        context: &LossContext,
    ) -> Self {
        let tokens = router_logits.dims()[0];
        let top_k = expert_indices.dims()[1];
        let probabilities = softmax(router_logits.clone());
        let ones = probabilities
            .clone()
            .detach()
            .slice([0..tokens, 0..top_k])
            .ones_like();
        let assigned = probabilities.clone().detach().zeros_like().scatter(
            1,
            expert_indices.clone(),
            ones,
            IndexingUpdateOp::Add,
        );
        Self {
            assigned_share: group_mean(assigned, context),
            mean_probability: group_mean(probabilities, context),
            top_k,
        }
    }
}

/// Mean over the real tokens of each group: `[tokens, width]` to `[groups, width]`.
fn group_mean(values: Tensor<2>, context: &LossContext) -> Tensor<2> {
    let [tokens, width] = values.dims();
    let groups = context.num_groups;
    let split = |t: Tensor<2>| {
        let width = t.dims()[1];
        t.reshape([groups, tokens / groups, width])
    };
    let mean = match &context.is_token {
        None => split(values).mean_dim(1),
        Some(mask) => {
            let mask = mask.clone().reshape([tokens, 1]);
            let count = split(mask.clone()).sum_dim(1).clamp_min(1.0);
            split(values * mask).sum_dim(1) / count
        }
    };
    mean.reshape([groups, width])
}

/// The pooled form over all layers, mean over groups: `[1]`.
///
/// # Panics
/// If there is no layer.
pub fn load_balancing_loss(layers: &[LayerBalance]) -> Tensor<1> {
    let share = mean_over_layers(layers, |l| l.assigned_share.clone());
    let probability = mean_over_layers(layers, |l| l.mean_probability.clone());
    let num_experts = share.dims()[1] as f64;
    (share * probability).sum_dim(1).mean() * num_experts
}

/// The Switch form, mean over layers and groups: `[1]`.
///
/// # Panics
/// If there is no layer.
pub fn switch_loss(layers: &[LayerBalance]) -> Tensor<1> {
    let num_experts = layers[0].assigned_share.dims()[1] as f64;
    let top_k = layers[0].top_k as f64;
    let product = mean_over_layers(layers, |l| {
        l.assigned_share.clone() * l.mean_probability.clone()
    });
    product.sum_dim(1).mean() * (num_experts / top_k)
}

/// The part of one micro-batch in the global form, `[1]`; the mean of all parts is the loss of the
/// step.
///
/// # Panics
/// If there is no layer, or not one count per layer.
pub fn global_batch_loss(layers: &[LayerBalance], step: &StepLoad) -> Tensor<1> {
    assert_eq!(
        layers.len(),
        step.expert_counts.len(),
        "counts of every layer"
    );
    let layers: Vec<_> = layers
        .iter()
        .zip(&step.expert_counts)
        .map(|(layer, counts)| {
            let like = &layer.assigned_share;
            let counts = counts.clone().float().cast(like.dtype());
            let share = counts.clone() / counts.sum() * layer.top_k as f64;
            LayerBalance {
                assigned_share: share.unsqueeze::<2>().expand(like.dims()),
                ..layer.clone()
            }
        })
        .collect();
    switch_loss(&layers) * step.relative_tokens
}

// Not a division below: Burn 0.22.1 rounds the gradient of one by a scalar to 32 bits.
fn mean_over_layers(
    layers: &[LayerBalance],
    value: impl Fn(&LayerBalance) -> Tensor<2>,
) -> Tensor<2> {
    let sum = layers[1..]
        .iter()
        .fold(value(&layers[0]), |sum, layer| sum + value(layer));
    sum * (layers.len() as f64).recip()
}

/// Router z-loss: mean over layers and tokens (without padding) of logsumexp(logits)^2, `[1]`.
///
/// # Panics
/// If there is no layer.
pub fn z_loss(router_logits: &[Tensor<2>], context: &LossContext) -> Tensor<1> {
    let layer = |logits: &Tensor<2>| {
        let max = logits.clone().detach().max_dim(1);
        let log_sum_exp = exp(logits.clone() - max.clone()).sum_dim(1).log() + max;
        group_mean(log_sum_exp.powi_scalar(2), context).mean()
    };
    let sum = router_logits[1..]
        .iter()
        .fold(layer(&router_logits[0]), |sum, logits| sum + layer(logits));
    sum * (router_logits.len() as f64).recip()
}
