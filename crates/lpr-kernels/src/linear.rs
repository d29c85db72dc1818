//! A linear map of the last axis.

use crate::{
    cpu::{
        Level, linear as kernel,
        tensor::{consecutive, floats, from_floats},
    },
    dispatch::{has_cpu_kernel, record},
    precision::product,
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

/// A linear map of the last axis: `y = x W + b`.
///
/// # Shapes
///
/// - `x`: `[.., inputs]`
/// - `weight`: W, `[inputs, outputs]`
/// - `bias`: b, `[outputs]`; none is zero
/// - the result: `[.., outputs]`
///
/// # Panics
///
/// If the last axis of `x` is not the first of `weight`, or one of them is empty.
pub fn linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    map(x, weight, bias, false)
}

/// [`linear`] whose products always multiply 32-bit floats, whatever
/// [`set_product_precision`](crate::set_product_precision) says: for scores that are compared with
/// each other.
///
/// # Panics
///
/// As [`linear`].
pub fn exact_linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    map(x, weight, bias, true)
}

fn map<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    exact: bool,
) -> Tensor<D> {
    let _span = span("linear");
    let [inputs, outputs] = weight.dims();
    assert!(
        x.dims().last() == Some(&inputs) && inputs * outputs > 0,
        "linear: the last axis of x {:?} must be the first of weight [{inputs}, {outputs}], and \
         neither may be empty",
        x.dims()
    );
    assert!(
        bias.as_ref().is_none_or(|bias| bias.dims() == [outputs]),
        "linear: the bias must be [{outputs}]"
    );
    if has_cpu_kernel(&x) {
        let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
        return Tensor::from_dispatch(match bias {
            Some(bias) => Dispatch::fused_affine(x, weight, bias.into_dispatch(), exact),
            None => Dispatch::fused_linear(x, weight, exact),
        });
    }
    if exact {
        return tensor::module::linear(x, weight, bias);
    }
    portable(x, weight, bias)
}

/// The operation in plain tensor operations.
fn portable<const D: usize>(x: Tensor<D>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<D> {
    let [inputs, outputs] = weight.dims();
    let mut shape = x.dims();
    let rows = shape[..D - 1].iter().product();
    shape[D - 1] = outputs;
    let y = product::<2>(x.reshape([rows, inputs]), weight);
    let y = match bias {
        Some(bias) => y + bias.unsqueeze(),
        None => y,
    };
    y.reshape(shape)
}

/// The operation with a kernel of its own.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait Linear: Backend {
    fn fused_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        exact: bool,
    ) -> FloatTensor<Self>;

    fn fused_affine(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        exact: bool,
    ) -> FloatTensor<Self>;
}

impl Linear for Flex {
    fn fused_linear(x: FlexTensor, weight: FlexTensor, exact: bool) -> FlexTensor {
        forward(level(exact), &consecutive(x), &consecutive(weight), None)
    }

    fn fused_affine(
        x: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
        exact: bool,
    ) -> FlexTensor {
        let (x, weight, bias) = (consecutive(x), consecutive(weight), consecutive(bias));
        forward(level(exact), &x, &weight, Some(&bias))
    }
}

impl<C: CheckpointStrategy> Linear for Autodiff<Flex, C> {
    fn fused_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        exact: bool,
    ) -> FloatTensor<Self> {
        let level = level(exact);
        let ((x, x_node), (weight, weight_node)) = (x.into_parts(), weight.into_parts());
        let (x, weight) = (consecutive(x), consecutive(weight));
        record::<C, _, 2>(
            "linear",
            [x_node, weight_node],
            |keep| {
                let output = forward(level, &x, &weight, None);
                (output, keep.then_some((level, x, weight)))
            },
            |(level, x, weight), grad| backward(level, &x, &weight, &consecutive(grad)),
        )
    }

    fn fused_affine(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        exact: bool,
    ) -> FloatTensor<Self> {
        let level = level(exact);
        let ((x, x_node), (weight, weight_node)) = (x.into_parts(), weight.into_parts());
        let (bias, bias_node) = bias.into_parts();
        let (x, weight, bias) = (consecutive(x), consecutive(weight), consecutive(bias));
        record::<C, _, 3>(
            "linear",
            [x_node, weight_node, bias_node],
            |keep| {
                let output = forward(level, &x, &weight, Some(&bias));
                (output, keep.then_some((level, x, weight)))
            },
            |(level, x, weight), grad| {
                let grad = consecutive(grad);
                let outputs = weight.shape()[1];
                let bias_grad = kernel::sum_of_rows(level, floats(&grad), outputs);
                let [x_grad, weight_grad] = backward(level, &x, &weight, &grad);
                [x_grad, weight_grad, from_floats(bias_grad, &[outputs])]
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

fn level(exact: bool) -> Level {
    if exact {
        Level::current().exact()
    } else {
        Level::current()
    }
}

fn forward(
    level: Level,
    x: &FlexTensor,
    weight: &FlexTensor,
    bias: Option<&FlexTensor>,
) -> FlexTensor {
    let operands = operands(x, weight);
    let mut shape = x.shape().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = operands.outputs;
    }
    let output = kernel::forward(level, operands, bias.map(floats));
    from_floats(output, &shape)
}

fn backward(
    level: Level,
    x: &FlexTensor,
    weight: &FlexTensor,
    grad: &FlexTensor,
) -> [FlexTensor; 2] {
    let grads = kernel::backward(level, operands(x, weight), floats(grad));
    [
        from_floats(grads.0, &x.shape()),
        from_floats(grads.1, &weight.shape()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{Op, Random, assert_close, check, check_differences, evaluate};
    use burn::tensor::DType;

    /// With a bias if there is a third operand.
    fn op(rows: [usize; 2], inputs: usize, outputs: usize) -> impl Op {
        move |operands: Vec<Tensor<1>>| {
            let mut operands = operands.into_iter();
            let mut next = || operands.next();
            let (x, weight, bias) = (next().expect("x"), next().expect("weight"), next());
            let x = x.reshape([rows[0], rows[1], inputs]);
            let y = linear(x, weight.reshape([inputs, outputs]), bias);
            y.reshape([rows[0] * rows[1] * outputs])
        }
    }

    fn random(rows: [usize; 2], inputs: usize, outputs: usize) -> Vec<Vec<f32>> {
        let mut random = Random::new((inputs * 100 + outputs) as u64);
        vec![
            random.floats(rows[0] * rows[1] * inputs),
            random.floats(inputs * outputs),
            random.floats(outputs),
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
            // The gradient of the weight is a sum of parts.
            ([2, 1100], 5, 9),
            ([1, 1025], 260, 7),
        ] {
            let operands = random(rows, inputs, outputs);
            check(op(rows, inputs, outputs), &operands);
            check(op(rows, inputs, outputs), &operands[..2]);
        }
    }

    #[test]
    fn agrees_with_its_twin_on_random_shapes() {
        let mut draw = Random::new(3);
        for _ in 0..40 {
            let mut up_to = |most: usize| 1 + draw.below(most);
            let (rows, inputs, outputs) = ([up_to(3), up_to(120)], up_to(90), up_to(90));
            check(op(rows, inputs, outputs), &random(rows, inputs, outputs));
        }
    }

    #[test]
    fn gradients_are_slopes() {
        check_differences(op([2, 3], 5, 4), &random([2, 3], 5, 4));
    }

    #[test]
    fn a_row_becomes_a_sum_of_the_rows_of_the_weight() {
        let weight = vec![10.0, 20.0, 30.0, 1.0, 2.0, 3.0];
        let operands = [vec![1.0, 2.0], weight, vec![0.5, 0.0, -1.0]];
        let result = evaluate(op([1, 1], 2, 3), &operands, DType::F32);
        assert_close("output", &result.output, &[12.5, 24.0, 35.0], 1e-6);
    }

    #[test]
    fn no_rows_give_no_rows_and_no_gradient() {
        let device = burn::tensor::Device::flex().autodiff();
        let weight = Tensor::<2>::ones([3, 2], &device).require_grad();
        let y = linear(Tensor::<2>::zeros([0, 3], &device), weight.clone(), None);
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
        linear(Tensor::<2>::zeros([2, 4], &device), weight, None);
    }
}
