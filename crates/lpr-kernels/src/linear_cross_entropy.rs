//! The output projection and the cross-entropy behind it, in one operation.

use crate::{
    cpu::{
        Level,
        linear_cross_entropy::{self as kernel, Operands},
        tensor::{consecutive, floats, from_floats, integers, scale},
    },
    dispatch::{has_cpu_kernel, record},
    precision::{factor, product},
    profile::span,
};
use burn::{
    backend::{
        Autodiff, Backend, Dispatch, Flex, TensorMetadata,
        autodiff::checkpoint::strategy::CheckpointStrategy,
        backend_extension,
        flex::FlexTensor,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{IndexingUpdateOp, Int, Tensor, activation},
};

/// A target with this value is left out of the loss.
pub const IGNORE_INDEX: i64 = -100;

/// Rows whose logits exist at the same time.
const CHUNK_ROWS: usize = 1024;

/// The sum over rows of `-log softmax(hidden_states weight^T)[target]`, leaving out rows whose
/// target is [`IGNORE_INDEX`].
///
/// A sum and not a mean, so that micro-batches with different numbers of targets add up; divide by
/// the number of targets.
///
/// # Shapes
///
/// - `hidden_states`: `[rows, hidden]`
/// - `weight`: `[vocab, hidden]`
/// - `targets`: `[rows]`, each in `0..vocab` or [`IGNORE_INDEX`]
/// - result: `[1]`
///
/// # Panics
///
/// If the shapes do not fit together, `hidden` or `vocab` is zero, or (where the CPU kernel runs) a
/// target is out of range.
pub fn linear_cross_entropy(
    hidden_states: Tensor<2>,
    weight: Tensor<2>,
    targets: Tensor<1, Int>,
) -> Tensor<1> {
    let _span = span("linear_cross_entropy");
    let ([rows, hidden], [_, weight_hidden], [num_targets]) =
        (hidden_states.dims(), weight.dims(), targets.dims());
    assert!(
        hidden == weight_hidden && rows == num_targets,
        "linear_cross_entropy: hidden_states {:?}, weight {:?} and targets {:?} do not fit",
        hidden_states.dims(),
        weight.dims(),
        targets.dims()
    );
    assert!(
        weight.shape().num_elements() > 0,
        "linear_cross_entropy: weight {:?} is empty",
        weight.dims()
    );
    let targets = targets.inner();
    if has_cpu_kernel(&hidden_states) {
        return Tensor::from_dispatch(Dispatch::fused_linear_cross_entropy(
            hidden_states.into_dispatch(),
            weight.into_dispatch(),
            targets.into_dispatch(),
        ));
    }
    portable(&hidden_states, &weight, &targets)
}

/// Floats that the CPU's kernel has beside its operands and results while it makes gradients of so many
/// rows: the logits of some of them, and a few copies of their hidden states.
pub fn cross_entropy_buffers(num_rows: usize, hidden: usize, vocab: usize) -> usize {
    kernel::buffers(num_rows, hidden, vocab)
}

/// The operation in plain tensor operations, a chunk of rows at a time.
///
/// The gradients are made with the loss, so that the logits of a chunk can go before those of the
/// next one come. They reach the operands through a sum of which only the gradient is used.
fn portable(hidden_states: &Tensor<2>, weight: &Tensor<2>, targets: &Tensor<1, Int>) -> Tensor<1> {
    let tracked = hidden_states.is_tracked() || weight.is_tracked();
    let plain_weight = weight.clone().inner();
    let factor_weight = factor(plain_weight.clone());
    let mut loss = Tensor::<1>::zeros([1], (&plain_weight.device(), plain_weight.dtype()));
    let mut hidden_grads = Vec::new();
    let mut weight_grad = plain_weight.zeros_like();
    let rows = targets.dims()[0];
    for start in (0..rows).step_by(CHUNK_ROWS) {
        let len = CHUNK_ROWS.min(rows - start);
        let chunk = hidden_states.clone().inner().narrow(0, start, len);
        let logits = product(chunk.clone(), factor_weight.clone().transpose());
        let log_probs = activation::log_softmax(logits, 1);
        let targets = targets.clone().narrow(0, start, len).unsqueeze_dim(1);
        let ignored = targets.clone().equal_scalar(IGNORE_INDEX);
        let targets = targets.mask_fill(ignored.clone(), 0);
        let of_target = log_probs.clone().gather(1, targets.clone());
        loss = loss - of_target.clone().mask_fill(ignored.clone(), 0.0).sum();
        if tracked {
            let minus_one = of_target.zeros_like() - 1.0;
            let grad = log_probs.exp();
            let grad = grad.scatter(1, targets, minus_one, IndexingUpdateOp::Add);
            let ignored = ignored.expand(grad.dims());
            let grad = grad.mask_fill(ignored, 0.0);
            let grad = factor(grad);
            hidden_grads.push(product(grad.clone(), factor_weight.clone()));
            weight_grad = weight_grad + product(grad.transpose(), chunk);
        }
    }
    if !tracked || hidden_grads.is_empty() {
        return loss;
    }
    let hidden_grad = Tensor::from_inner(Tensor::cat(hidden_grads, 0));
    let carrier = (hidden_states.clone() * hidden_grad).sum()
        + (weight.clone() * Tensor::from_inner(weight_grad)).sum();
    let nothing = carrier.clone() - Tensor::from_inner(carrier.inner());
    nothing + Tensor::from_inner(loss)
}

/// The operation with a kernel of its own.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait LinearCrossEntropy: Backend {
    fn fused_linear_cross_entropy(
        hidden_states: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
    ) -> FloatTensor<Self>;
}

impl LinearCrossEntropy for Flex {
    fn fused_linear_cross_entropy(
        hidden_states: FlexTensor,
        weight: FlexTensor,
        targets: FlexTensor,
    ) -> FlexTensor {
        forward(hidden_states, weight, targets, false).0
    }
}

impl<C: CheckpointStrategy> LinearCrossEntropy for Autodiff<Flex, C> {
    fn fused_linear_cross_entropy(
        hidden_states: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        let (hidden_states, hidden_node) = hidden_states.into_parts();
        let (weight, weight_node) = weight.into_parts();
        record::<C, _, 2>(
            "linear_cross_entropy",
            [hidden_node, weight_node],
            |keep| forward(hidden_states, weight, targets, keep),
            |gradients, grad| {
                let factor = floats(&consecutive(grad))[0];
                gradients.map(|gradient| scale(Level::current(), gradient, factor))
            },
        )
    }
}

/// The loss and, if `keep`, its gradients.
fn forward(
    hidden_states: FlexTensor,
    weight: FlexTensor,
    targets: FlexTensor,
    keep: bool,
) -> (FlexTensor, Option<[FlexTensor; 2]>) {
    let (hidden_states, weight) = (consecutive(hidden_states), consecutive(weight));
    let ([rows, hidden], [vocab, _]) = (hidden_states.shape().dims(), weight.shape().dims());
    let targets = counted_targets(&integers(targets), vocab);
    let operands = Operands {
        hidden,
        vocab,
        hidden_states: floats(&hidden_states),
        weight: floats(&weight),
        targets: &targets,
    };
    let level = Level::current();
    if !keep {
        let loss = kernel::loss(level, operands);
        return (from_floats(vec![loss as f32], &[1]), None);
    }
    let (loss, gradients) = kernel::loss_and_gradients(level, operands, rows);
    let gradients = [
        from_floats(gradients.hidden_states, &[rows, hidden]),
        from_floats(gradients.weight, &[vocab, hidden]),
    ];
    (from_floats(vec![loss as f32], &[1]), Some(gradients))
}

/// The rows that count, with their targets.
fn counted_targets(targets: &[i64], vocab: usize) -> Vec<(usize, usize)> {
    let counted = targets
        .iter()
        .enumerate()
        .filter(|&(_, &t)| t != IGNORE_INDEX);
    let checked = counted.map(|(row, &target)| {
        let index = usize::try_from(target).ok().filter(|&t| t < vocab);
        let index = index.unwrap_or_else(|| {
            panic!("linear_cross_entropy: target {target} is not below vocab {vocab}")
        });
        (row, index)
    });
    checked.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{
        Op, Random, TOLERANCE, assert_close, check, check_differences, evaluate, widened,
    };
    use burn::tensor::{DType, Device, TensorData};

    fn op(hidden: usize, targets: Vec<i64>) -> impl Op {
        move |inputs: Vec<Tensor<1>>| {
            let [x, weight] = inputs.try_into().expect("two inputs");
            let vocab = weight.dims()[0] / hidden;
            let data = TensorData::new(targets.clone(), [targets.len()]);
            linear_cross_entropy(
                x.reshape([targets.len(), hidden]),
                weight.reshape([vocab, hidden]),
                Tensor::from_data(data, &Device::flex()),
            )
        }
    }

    /// Targets of which about every fifth is left out.
    fn targets(rows: usize, vocab: usize) -> Vec<i64> {
        let mut random = Random::new((rows + vocab) as u64);
        let target = |_| {
            let left_out = rows > 1 && random.below(5) == 0;
            let target = random.below(vocab) as i64;
            if left_out { IGNORE_INDEX } else { target }
        };
        (0..rows).map(target).collect()
    }

    fn inputs([rows, hidden, vocab]: [usize; 3], scale: f32) -> Vec<Vec<f32>> {
        let mut random = Random::new(11);
        let x = random.floats(rows * hidden);
        let x = x.into_iter().map(|x| scale * x).collect();
        vec![x, random.floats(vocab * hidden)]
    }

    #[test]
    fn agrees_with_its_twin_on_all_shapes() {
        for shape in [
            [1, 1, 2],
            [1, 5, 1031],
            [5, 3, 7],
            [301, 13, 1031],
            [1301, 4, 11],
            [530, 3, 8209],
            [150, 300, 17],
        ] {
            let [rows, hidden, vocab] = shape;
            check(op(hidden, targets(rows, vocab)), &inputs(shape, 1.0));
        }
    }

    #[test]
    fn agrees_with_its_twin_on_random_shapes() {
        let mut random = Random::new(7);
        for _ in 0..30 {
            let mut up_to = |most: usize| 1 + random.below(most);
            let [rows, hidden, vocab] = [up_to(80), up_to(50), 1 + up_to(1200)];
            let op = op(hidden, targets(rows, vocab));
            check(op, &inputs([rows, hidden, vocab], 1.0));
        }
    }

    #[test]
    fn gradients_are_slopes() {
        check_differences(op(4, targets(9, 6)), &inputs([9, 4, 6], 1.0));
    }

    #[test]
    fn the_twin_follows_the_formula() {
        let [rows, hidden, vocab] = [1301, 3, 5];
        let targets = targets(rows, vocab);
        let inputs = widened(&inputs([rows, hidden, vocab], 1.0));
        let twin = evaluate(op(hidden, targets.clone()), &inputs, DType::F64);
        let loss = |(row, &target): (usize, &i64)| {
            let x = &inputs[0][row * hidden..][..hidden];
            let logit = |weight: &[f64]| x.iter().zip(weight).map(|(x, w)| x * w).sum::<f64>();
            let logits: Vec<_> = inputs[1].chunks(hidden).map(logit).collect();
            let sum: f64 = logits.iter().map(|z| z.exp()).sum();
            let target = usize::try_from(target).ok();
            target.map_or(0.0, |target| sum.ln() - logits[target])
        };
        let expected: f64 = targets.iter().enumerate().map(loss).sum();
        assert_close("loss", &twin.output, &[expected], 1e-12);
    }

    #[test]
    fn large_logits_do_not_overflow() {
        check(op(3, targets(20, 700)), &inputs([20, 3, 700], 300.0));
    }

    #[test]
    fn equal_logits_cost_the_logarithm_of_the_vocabulary() {
        let inputs = [vec![1.0; 6], vec![0.5; 10]];
        let result = evaluate(op(2, vec![0, IGNORE_INDEX, 4]), &inputs, DType::F32);
        let expected = 2.0 * 5.0_f64.ln();
        assert_close("loss", &result.output, &[expected], TOLERANCE);
        assert_eq!(result.grads[0][2..4], [0.0, 0.0]);
    }

    #[test]
    fn without_targets_loss_and_gradients_are_zero() {
        for rows in [0, 3] {
            let inputs = [vec![1.0; 2 * rows], vec![0.5; 10]];
            let result = evaluate(op(2, vec![IGNORE_INDEX; rows]), &inputs, DType::F32);
            assert_eq!(result.output, [0.0]);
            assert!(result.grads.iter().flatten().all(|&g| g == 0.0));
        }
    }

    #[test]
    fn a_hidden_state_that_is_not_a_number_shows_in_the_loss() {
        let inputs = [vec![1.0, f64::NAN], vec![0.5; 3]];
        let result = evaluate(op(1, vec![0, 1]), &inputs, DType::F32);
        assert!(result.output[0].is_nan(), "{}", result.output[0]);
    }

    #[test]
    #[should_panic(expected = "target 3 is not below vocab 3")]
    fn refuses_a_target_outside_of_the_vocabulary() {
        evaluate(op(1, vec![3]), &[vec![1.0], vec![1.0; 3]], DType::F32);
    }
}
