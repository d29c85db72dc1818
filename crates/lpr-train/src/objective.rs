//! The training objective: the only place where cross-entropy and router losses are added.

use burn::tensor::Tensor;
use lpr_model::RouterLoss;

/// What one micro-batch contributes to the loss of a step.
///
/// ```text
/// step loss = sum over micro-batches of
///     CE_sum / step_targets + sum_i w_i * term_i / num_micro_batches
/// ```
///
/// `CE_sum` is the summed cross-entropy of the micro-batch, so every target of the step counts alike
/// however the step is split; `w_i` are the router losses' weights, their `equiv_accum` included
/// (method-spec 0.1). A term of weight zero is not part of the graph.
///
/// The cross-entropy is the last summand. Burn walks a graph from the last one on and adds up gradients
/// in the order in which it comes to them, so it comes to every block by its output first, which is
/// also the order in `step/recompute.rs`.
///
/// # Shapes
/// `cross_entropy_sum` and the result are `[1]`.
pub fn objective(
    cross_entropy_sum: Tensor<1>,
    router_losses: &[RouterLoss],
    step_targets: usize,
    num_micro_batches: usize,
) -> Tensor<1> {
    let cross_entropy = cross_entropy_sum / step_targets.max(1) as f64;
    let weighted =
        |loss: &RouterLoss| loss.value.clone() * (loss.weight / num_micro_batches as f64);
    let router_losses = router_losses.iter().filter(|loss| loss.weight != 0.0);
    match router_losses.map(weighted).reduce(|sum, loss| sum + loss) {
        Some(router_losses) => router_losses + cross_entropy,
        None => cross_entropy,
    }
}
