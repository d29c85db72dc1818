//! A linear map of the last axis.

use crate::{
    cpu::{
        Level, linear as kernel,
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
    tensor::{self, Tensor},
};

/// A linear map of the last axis: `y = x W`.
///
/// # Shapes
///
/// - `x`: `[.., inputs]`
/// - `weight`: W, `[inputs, outputs]`
/// - the result: `[.., outputs]`
///
/// # Panics
///
/// If the last axis of `x` is not the first of `weight`, or one of them is empty.
pub fn linear<const D: usize>(x: Tensor<D>, weight: Tensor<2>) -> Tensor<D> {
    let _span = span("linear");
    let [inputs, outputs] = weight.dims();
    assert!(
        x.dims().last() == Some(&inputs) && inputs * outputs > 0,
        "linear: the last axis of x {:?} must be the first of weight [{inputs}, {outputs}], and \
         neither may be empty",
        x.dims()
    );
    if has_cpu_kernel(&x) {
        let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
        return Tensor::from_dispatch(Dispatch::fused_linear(x, weight));
    }
    tensor::module::linear(x, weight, None)
}

/// The operation with a kernel of its own.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait Linear: Backend {
    fn fused_linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl Linear for Flex {
    fn fused_linear(x: FlexTensor, weight: FlexTensor) -> FlexTensor {
        forward(&consecutive(x), &consecutive(weight))
    }
}

impl<C: CheckpointStrategy> Linear for Autodiff<Flex, C> {
    fn fused_linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        let ((x, x_node), (weight, weight_node)) = (x.into_parts(), weight.into_parts());
        let (x, weight) = (consecutive(x), consecutive(weight));
        record::<C, _, 2>(
            "linear",
            [x_node, weight_node],
            |keep| (forward(&x, &weight), keep.then_some((x, weight))),
            |(x, weight), grad| {
                let grad = consecutive(grad);
                let operands = operands(&x, &weight);
                let (x_grad, weight_grad) =
                    kernel::backward(Level::current(), operands, floats(&grad));
                [
                    from_floats(x_grad, &x.shape()),
                    from_floats(weight_grad, &weight.shape()),
                ]
            },
        )
    }
}

fn operands<'a>(x: &'a FlexTensor, weight: &'a FlexTensor) -> kernel::Operands<'a> {
    let [inputs, outputs] = weight.shape().dims();
    kernel::Operands {
        inputs,
        outputs,
        x: floats(x),
        weight: floats(weight),
    }
}

fn forward(x: &FlexTensor, weight: &FlexTensor) -> FlexTensor {
    let operands = operands(x, weight);
    let mut shape = x.shape().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = operands.outputs;
    }
    from_floats(kernel::forward(Level::current(), operands), &shape)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{Op, Random, assert_close, check, check_differences, evaluate};
    use burn::tensor::DType;

    fn op(rows: [usize; 2], inputs: usize, outputs: usize) -> impl Op {
        move |operands: Vec<Tensor<1>>| {
            let [x, weight] = operands.try_into().expect("two operands");
            let x = x.reshape([rows[0], rows[1], inputs]);
            let y = linear(x, weight.reshape([inputs, outputs]));
            y.reshape([rows[0] * rows[1] * outputs])
        }
    }

    fn random(rows: [usize; 2], inputs: usize, outputs: usize) -> Vec<Vec<f32>> {
        let mut random = Random::new((inputs * 100 + outputs) as u64);
        vec![
            random.floats(rows[0] * rows[1] * inputs),
            random.floats(inputs * outputs),
        ]
    }

    #[test]
    fn agrees_with_its_twin_on_all_shapes() {
        for (rows, inputs, outputs) in [
            ([1, 1], 1, 1),
            ([1, 2], 3, 2),
            ([3, 5], 17, 31),
            ([2, 150], 40, 7),
            ([1, 700], 33, 65),
            ([2, 3], 70, 600),
        ] {
            check(op(rows, inputs, outputs), &random(rows, inputs, outputs));
        }
    }

    #[test]
    fn gradients_are_slopes() {
        check_differences(op([2, 3], 5, 4), &random([2, 3], 5, 4));
    }

    #[test]
    fn a_row_becomes_a_sum_of_the_rows_of_the_weight() {
        let operands = [vec![1.0, 2.0], vec![10.0, 20.0, 30.0, 1.0, 2.0, 3.0]];
        let result = evaluate(op([1, 1], 2, 3), &operands, DType::F32);
        assert_close("output", &result.output, &[12.0, 24.0, 36.0], 1e-6);
    }

    #[test]
    fn no_rows_give_no_rows_and_no_gradient() {
        let device = burn::tensor::Device::flex().autodiff();
        let weight = Tensor::<2>::ones([3, 2], &device).require_grad();
        let y = linear(Tensor::<2>::zeros([0, 3], &device), weight.clone());
        assert_eq!(y.dims(), [0, 2]);
        let grad = weight.grad(&y.sum().backward()).expect("a gradient");
        let grad: Vec<f64> = grad.try_into_vec_as().expect("readable");
        assert_eq!(grad, [0.0; 6]);
    }

    #[test]
    #[should_panic(expected = "must be the first of weight [3, 2]")]
    fn refuses_a_weight_of_another_size() {
        let device = burn::tensor::Device::flex();
        let weight = Tensor::<2>::zeros([3, 2], &device);
        linear(Tensor::<2>::zeros([2, 4], &device), weight);
    }
}
