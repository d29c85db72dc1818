//! Softmax of the last axis, and the exponential function.
//!
//! Burn's CPU backend computes both on one thread with the C library's `expf`, and the latter's
//! gradient by computing it again.

use crate::{
    cpu::{
        Level, softmax as kernel,
        tensor::{consecutive, floats, from_floats},
    },
    dispatch::{has_cpu_kernel, record},
    profile::span,
};
use burn::{
    backend::{
        Autodiff, Backend, Dispatch, Flex, TensorMetadata,
        autodiff::checkpoint::strategy::CheckpointStrategy, backend_extension, flex::FlexTensor,
        tensor::FloatTensor,
    },
    tensor::{Tensor, activation},
};

/// `exp(x_i) / sum_j exp(x_j)` over the last axis.
///
/// # Shapes
///
/// `x` and the result: `[.., size]`
pub fn softmax<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let _span = span("softmax");
    if has_cpu_kernel(&x) && x.shape().num_elements() > 0 {
        return Tensor::from_dispatch(Dispatch::fused_softmax(x.into_dispatch()));
    }
    activation::softmax(x, D - 1)
}

/// `exp(x)` of each element.
pub fn exp<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let _span = span("exp");
    if has_cpu_kernel(&x) {
        return Tensor::from_dispatch(Dispatch::fused_exp(x.into_dispatch()));
    }
    x.exp()
}

/// The operations with kernels of their own.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait Exponential: Backend {
    /// Of an `x` that is not empty.
    fn fused_softmax(x: FloatTensor<Self>) -> FloatTensor<Self>;

    fn fused_exp(x: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl Exponential for Flex {
    fn fused_softmax(x: FlexTensor) -> FlexTensor {
        let x = consecutive(x);
        let probs = kernel::softmax(Level::current(), floats(&x), width(&x));
        from_floats(probs, &x.shape())
    }

    fn fused_exp(x: FlexTensor) -> FlexTensor {
        let x = consecutive(x);
        from_floats(kernel::exp(Level::current(), floats(&x)), &x.shape())
    }
}

impl<C: CheckpointStrategy> Exponential for Autodiff<Flex, C> {
    fn fused_softmax(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let (x, node) = x.into_parts();
        record::<C, _, 1>(
            "softmax",
            [node],
            |keep| {
                let probs = Flex::fused_softmax(x);
                (probs.clone(), keep.then_some(probs))
            },
            |probs, grad| {
                let (grad, level) = (consecutive(grad), Level::current());
                let grad =
                    kernel::softmax_backward(level, floats(&probs), width(&probs), floats(&grad));
                [from_floats(grad, &probs.shape())]
            },
        )
    }

    fn fused_exp(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let (x, node) = x.into_parts();
        record::<C, _, 1>(
            "exp",
            [node],
            |keep| {
                let powers = Flex::fused_exp(x);
                (powers.clone(), keep.then_some(powers))
            },
            |powers, grad| {
                let grad = consecutive(grad);
                let grad = kernel::product(Level::current(), floats(&powers), floats(&grad));
                [from_floats(grad, &powers.shape())]
            },
        )
    }
}

/// The size of the last axis.
fn width(x: &FlexTensor) -> usize {
    x.shape()[x.shape().num_dims() - 1]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{Op, Random, assert_close, check, check_differences, evaluate};
    use burn::tensor::DType;

    fn softmax_op([rows, width]: [usize; 2]) -> impl Op {
        move |inputs: Vec<Tensor<1>>| {
            let [x] = inputs.try_into().expect("one input");
            softmax(x.reshape([rows, width])).reshape([rows * width])
        }
    }

    fn exp_op() -> impl Op {
        |inputs: Vec<Tensor<1>>| {
            let [x] = inputs.try_into().expect("one input");
            exp(x)
        }
    }

    fn floats_up_to(largest: f32, len: usize) -> Vec<Vec<f32>> {
        let floats = Random::new(len as u64).floats(len).into_iter();
        vec![floats.map(|x| x * largest).collect()]
    }

    #[test]
    fn softmax_agrees_with_its_twin_on_all_shapes() {
        for [rows, width] in [[1, 2], [3, 7], [37, 16], [301, 33], [17, 1031]] {
            check(softmax_op([rows, width]), &floats_up_to(5.0, rows * width));
        }
    }

    #[test]
    fn exp_agrees_with_its_twin_on_all_sizes() {
        for len in [1, 15, 33, 10_007] {
            check(exp_op(), &floats_up_to(5.0, len));
        }
    }

    #[test]
    fn gradients_are_slopes() {
        check_differences(softmax_op([3, 5]), &floats_up_to(2.0, 15));
        check_differences(exp_op(), &floats_up_to(2.0, 7));
    }

    #[test]
    fn the_largest_score_may_be_large_and_others_infinitely_small() {
        let inputs = [vec![1e30, 0.0, f64::NEG_INFINITY, 1.0, 1.0, 1.0]];
        let result = evaluate(softmax_op([2, 3]), &inputs, DType::F32);
        let third = 1.0 / 3.0;
        let expected = [1.0, 0.0, 0.0, third, third, third];
        assert_close("softmax", &result.output, &expected, 1e-6);
        let one = evaluate(softmax_op([2, 1]), &[vec![7.0, -7.0]], DType::F32);
        assert_eq!(one.output, [1.0, 1.0]);
        assert_eq!(one.grads[0], [0.0, 0.0]);
    }
}
