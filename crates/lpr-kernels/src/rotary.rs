//! Rotary position embedding in the half-split layout of the Hugging Face models.

use crate::{
    cpu::{
        Level, rotary as kernel,
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

/// Rotates each head by its position: the halves `(x1, x2)` become `(x1 cos - x2 sin, x2 cos + x1
/// sin)`.
///
/// `cos` and `sin` are constants: no gradient flows to them.
///
/// # Shapes
///
/// - `x` and the result: `[batch, seq, heads, head_dim]`, `head_dim` even
/// - `cos`, `sin`: `[batch or 1, seq, head_dim / 2]`
///
/// # Panics
///
/// If the shapes do not fit together or `head_dim` is odd.
pub fn rotary(x: Tensor<4>, cos: Tensor<3>, sin: Tensor<3>) -> Tensor<4> {
    let _span = span("rotary");
    let [batch, seq, _, head_dim] = x.dims();
    let [table_batch, table_seq, half] = cos.dims();
    assert_eq!(
        cos.dims(),
        sin.dims(),
        "rotary: cos and sin must have the same shape"
    );
    assert!(
        head_dim == 2 * half && table_seq == seq && (table_batch == batch || table_batch == 1),
        "rotary: cos {:?} must be [{batch} or 1, {seq}, head_dim / 2] for x {:?}",
        cos.dims(),
        x.dims()
    );
    let (cos, sin) = (cos.inner(), sin.inner());
    if has_cpu_kernel(&x) && x.shape().num_elements() > 0 {
        let (cos, sin) = (cos.into_dispatch(), sin.into_dispatch());
        return Tensor::from_dispatch(Dispatch::fused_rotary(x.into_dispatch(), cos, sin));
    }
    portable(x, cos, sin)
}

/// The operation in plain tensor operations.
fn portable(x: Tensor<4>, cos: Tensor<3>, sin: Tensor<3>) -> Tensor<4> {
    let half = cos.dims()[2];
    let (cos, sin) = (cos.unsqueeze_dim::<4>(2), sin.unsqueeze_dim::<4>(2));
    let (x1, x2) = (x.clone().narrow(3, 0, half), x.narrow(3, half, half));
    let first = x1.clone() * cos.clone() - x2.clone() * sin.clone();
    let second = x2 * cos + x1 * sin;
    Tensor::cat(vec![first, second], 3)
}

/// The operation with a kernel of its own.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait Rotary: Backend {
    fn fused_rotary(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
}

impl Rotary for Flex {
    fn fused_rotary(x: FlexTensor, cos: FlexTensor, sin: FlexTensor) -> FlexTensor {
        rotate(x, &consecutive(cos), &consecutive(sin), false)
    }
}

impl<C: CheckpointStrategy> Rotary for Autodiff<Flex, C> {
    fn fused_rotary(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let (x, x_node) = x.into_parts();
        let cos = consecutive(cos.into_primitive());
        let sin = consecutive(sin.into_primitive());
        record::<C, _, 1>(
            "rotary",
            [x_node],
            |keep| (rotate(x, &cos, &sin, false), keep.then_some((cos, sin))),
            |(cos, sin), grad| [rotate(grad, &cos, &sin, true)],
        )
    }
}

fn rotate(x: FlexTensor, cos: &FlexTensor, sin: &FlexTensor, inverse: bool) -> FlexTensor {
    let x = consecutive(x);
    let shape = x.shape();
    let angles = kernel::Angles {
        half: cos.shape()[2],
        cos: floats(cos),
        sin: floats(sin),
    };
    let out = kernel::rotate(Level::current(), floats(&x), shape[2], angles, inverse);
    from_floats(out, &shape)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{Op, Random, assert_close, check, check_differences, evaluate, flat};
    use burn::tensor::DType;

    /// Rotation by random angles, with one table for all rows of the batch or one for each.
    fn op(dims: [usize; 4], table_batch: usize) -> impl Op {
        move |inputs: Vec<Tensor<1>>| {
            let [x] = inputs.try_into().expect("one input");
            let [_, seq, _, head_dim] = dims;
            let len = table_batch * seq * head_dim / 2;
            let angles: Vec<f64> = Random::new(3)
                .floats(len)
                .into_iter()
                .map(f64::from)
                .collect();
            let angles = flat(&angles, x.dtype(), &x.device()) * 3.0;
            let angles = angles.reshape([table_batch, seq, head_dim / 2]);
            let (cos, sin) = (angles.clone().cos(), angles.sin());
            rotary(x.reshape(dims), cos, sin).reshape([dims.iter().product::<usize>()])
        }
    }

    fn inputs(dims: [usize; 4]) -> Vec<Vec<f32>> {
        vec![Random::new(5).floats(dims.iter().product())]
    }

    #[test]
    fn agrees_with_its_twin_on_all_shapes() {
        for (dims, table_batch) in [
            ([1, 1, 1, 2], 1),
            ([2, 3, 5, 6], 1),
            ([3, 7, 2, 32], 3),
            ([2, 131, 3, 62], 1),
            ([2, 131, 3, 62], 2),
        ] {
            check(op(dims, table_batch), &inputs(dims));
        }
    }

    #[test]
    fn gradients_are_slopes() {
        check_differences(op([2, 3, 2, 6], 1), &inputs([2, 3, 2, 6]));
    }

    #[test]
    fn a_quarter_turn_moves_the_first_half_to_the_second() {
        let quarter = |inputs: Vec<Tensor<1>>| {
            let [x] = inputs.try_into().expect("one input");
            let cos = Tensor::<3>::zeros([1, 1, 2], (&x.device(), x.dtype()));
            let sin = cos.ones_like();
            rotary(x.reshape([1, 1, 1, 4]), cos, sin).reshape([4])
        };
        let result = evaluate(quarter, &[vec![1.0, 2.0, 3.0, 4.0]], DType::F32);
        assert_close("output", &result.output, &[-3.0, -4.0, 1.0, 2.0], 0.0);
    }

    #[test]
    #[should_panic(expected = "must be [2 or 1, 3, head_dim / 2]")]
    fn refuses_a_table_of_another_length() {
        let device = burn::tensor::Device::flex();
        let table = Tensor::<3>::zeros([1, 4, 2], &device);
        rotary(
            Tensor::<4>::zeros([2, 3, 1, 4], &device),
            table.clone(),
            table,
        );
    }
}
