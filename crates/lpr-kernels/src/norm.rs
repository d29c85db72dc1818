//! Root-mean-square normalization.

use crate::{
    cpu::{
        Level, norm as kernel,
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
    tensor::Tensor,
};

/// Root-mean-square normalization over the last axis: `y = x / sqrt(mean(x^2) + eps) * weight`.
///
/// # Shapes
///
/// - `x` and the result: `[.., size]`
/// - `weight`: `[size]`
///
/// # Panics
///
/// If the last axis of `x` and `weight` differ in size or are empty.
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, eps: f64) -> Tensor<D> {
    let _span = span("rms_norm");
    let [size] = weight.dims();
    assert_eq!(
        x.dims().last(),
        Some(&size),
        "rms_norm: the last axis of x {:?} must have the size of weight [{size}]",
        x.dims()
    );
    assert!(size > 0, "rms_norm: the last axis is empty");
    if has_cpu_kernel(&x) {
        let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
        return Tensor::from_dispatch(Dispatch::fused_rms_norm(x, weight, eps as f32));
    }
    portable(x, weight, eps)
}

/// The operation in plain tensor operations.
fn portable<const D: usize>(x: Tensor<D>, weight: Tensor<1>, eps: f64) -> Tensor<D> {
    let mean_square = x.clone().square().mean_dim(D - 1);
    x / (mean_square + eps).sqrt() * weight.unsqueeze()
}

/// The operation with a kernel of its own.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait RmsNorm: Backend {
    fn fused_rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f32,
    ) -> FloatTensor<Self>;
}

impl RmsNorm for Flex {
    fn fused_rms_norm(x: FlexTensor, weight: FlexTensor, eps: f32) -> FlexTensor {
        forward(&consecutive(x), &consecutive(weight), eps)
    }
}

impl<C: CheckpointStrategy> RmsNorm for Autodiff<Flex, C> {
    fn fused_rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f32,
    ) -> FloatTensor<Self> {
        let ((x, x_node), (weight, weight_node)) = (x.into_parts(), weight.into_parts());
        let (x, weight) = (consecutive(x), consecutive(weight));
        record::<C, _, 2>(
            "rms_norm",
            [x_node, weight_node],
            |keep| (forward(&x, &weight, eps), keep.then_some((x, weight, eps))),
            |(x, weight, eps), grad| {
                let grad = consecutive(grad);
                let (x_grad, weight_grad) = kernel::backward(
                    Level::current(),
                    floats(&x),
                    floats(&weight),
                    eps,
                    floats(&grad),
                );
                [
                    from_floats(x_grad, &x.shape()),
                    from_floats(weight_grad, &weight.shape()),
                ]
            },
        )
    }
}

fn forward(x: &FlexTensor, weight: &FlexTensor, eps: f32) -> FlexTensor {
    let out = kernel::forward(Level::current(), floats(x), floats(weight), eps);
    from_floats(out, &x.shape())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{Op, Random, assert_close, check, check_differences, evaluate};
    use burn::tensor::DType;

    fn op(rows: [usize; 2], size: usize, eps: f64) -> impl Op {
        move |inputs: Vec<Tensor<1>>| {
            let [x, weight] = inputs.try_into().expect("two inputs");
            let x = x.reshape([rows[0], rows[1], size]);
            rms_norm(x, weight, eps).reshape([rows[0] * rows[1] * size])
        }
    }

    fn inputs(rows: [usize; 2], size: usize) -> Vec<Vec<f32>> {
        let mut random = Random::new(size as u64);
        let len = rows[0] * rows[1] * size;
        vec![random.floats(len), random.floats(size)]
    }

    #[test]
    fn agrees_with_its_twin_on_all_shapes() {
        // A row of one element is its own norm: with a small eps nothing of its gradient remains.
        check(op([1, 5], 1, 0.5), &inputs([1, 5], 1));
        for (rows, size) in [
            ([1, 3], 2),
            ([5, 1], 7),
            ([2, 17], 64),
            ([3, 37], 301),
            ([41, 53], 33),
        ] {
            check(op(rows, size, 1e-6), &inputs(rows, size));
        }
    }

    #[test]
    fn gradients_are_slopes() {
        check_differences(op([2, 3], 11, 1e-6), &inputs([2, 3], 11));
    }

    #[test]
    fn a_row_is_divided_by_its_root_mean_square() {
        let inputs = [vec![1.0, 7.0, 3.0, 4.0], vec![1.0, 2.0]];
        let result = evaluate(op([2, 1], 2, 1e-6), &inputs, DType::F32);
        let root = 12.5_f64.sqrt();
        let expected = [0.2, 2.8, 3.0 / root, 8.0 / root];
        assert_close("output", &result.output, &expected, 1e-6);
    }

    #[test]
    #[should_panic(expected = "size of weight [3]")]
    fn refuses_a_weight_of_another_size() {
        let device = burn::tensor::Device::flex();
        let weight = Tensor::<1>::zeros([3], &device);
        rms_norm(Tensor::<2>::zeros([2, 4], &device), weight, 1e-6);
    }
}
