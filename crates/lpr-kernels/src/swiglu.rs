//! The gated activation of `SwiGLU`: `silu(gate) * up`.

use crate::{
    cpu::{
        Level, swiglu as kernel,
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

/// The `SwiGLU` product `silu(gate) * up`, elementwise, with `silu(z) = z * sigmoid(z)`.
///
/// # Shapes
///
/// - `gate`, `up` and the result: `[..]`, all equal
///
/// # Panics
///
/// If the shapes differ.
pub fn silu_mul<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    let _span = span("silu_mul");
    assert_eq!(
        gate.dims(),
        up.dims(),
        "silu_mul: gate and up must have the same shape"
    );
    if has_cpu_kernel(&gate) {
        let (gate, up) = (gate.into_dispatch(), up.into_dispatch());
        return Tensor::from_dispatch(Dispatch::fused_silu_mul(gate, up));
    }
    portable(gate, up)
}

/// The operation in plain tensor operations.
fn portable<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    activation::silu(gate) * up
}

/// The operation with a kernel of its own.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait SiluMul: Backend {
    fn fused_silu_mul(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl SiluMul for Flex {
    fn fused_silu_mul(gate: FlexTensor, up: FlexTensor) -> FlexTensor {
        forward(&consecutive(gate), &consecutive(up))
    }
}

impl<C: CheckpointStrategy> SiluMul for Autodiff<Flex, C> {
    fn fused_silu_mul(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        let ((gate, gate_node), (up, up_node)) = (gate.into_parts(), up.into_parts());
        let (gate, up) = (consecutive(gate), consecutive(up));
        record::<C, _, 2>(
            "silu_mul",
            [gate_node, up_node],
            |keep| (forward(&gate, &up), keep.then_some((gate, up))),
            |(gate, up), grad| {
                let grad = consecutive(grad);
                let (gate_grad, up_grad) =
                    kernel::backward(Level::current(), floats(&gate), floats(&up), floats(&grad));
                let shape = gate.shape();
                [from_floats(gate_grad, &shape), from_floats(up_grad, &shape)]
            },
        )
    }
}

fn forward(gate: &FlexTensor, up: &FlexTensor) -> FlexTensor {
    let out = kernel::forward(Level::current(), floats(gate), floats(up));
    from_floats(out, &gate.shape())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{Random, check, check_differences, evaluate};
    use burn::tensor::DType;

    fn op(inputs: Vec<Tensor<1>>) -> Tensor<1> {
        let [gate, up] = inputs.try_into().expect("two inputs");
        silu_mul(gate, up)
    }

    fn inputs(len: usize) -> Vec<Vec<f32>> {
        let mut random = Random::new(len as u64);
        let gate = random.floats(len).into_iter().map(|x| 20.0 * x).collect();
        vec![gate, random.floats(len)]
    }

    #[test]
    fn agrees_with_its_twin_on_all_lengths() {
        for len in [1, 7, 8, 15, 16, 17, 31, 40_001] {
            check(op, &inputs(len));
        }
    }

    #[test]
    fn gradients_are_slopes() {
        check_differences(op, &inputs(19));
    }

    #[test]
    fn a_gate_of_zero_closes_and_a_large_one_passes() {
        let inputs = [vec![0.0, 60.0, -60.0], vec![3.0, 3.0, 3.0]];
        let result = evaluate(op, &inputs, DType::F32);
        assert_eq!(result.output[..2], [0.0, 180.0]);
        assert!(result.output[2].abs() < 1e-20, "{}", result.output[2]);
    }

    #[test]
    fn accepts_views_that_are_not_consecutive() {
        let transposed = |inputs: Vec<Tensor<1>>| {
            let [gate, up] = inputs.try_into().expect("two inputs");
            let gate = gate.reshape([3, 5]).transpose();
            let up = up.reshape([15, 1]).narrow(0, 0, 15).reshape([5, 3]);
            silu_mul(gate, up).reshape([15])
        };
        check(transposed, &inputs(15));
    }

    #[test]
    #[should_panic(expected = "same shape")]
    fn refuses_different_shapes() {
        let device = burn::tensor::Device::flex();
        silu_mul(
            Tensor::<1>::zeros([2], &device),
            Tensor::<1>::zeros([3], &device),
        );
    }
}
