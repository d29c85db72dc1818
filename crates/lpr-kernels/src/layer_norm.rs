//! Layer normalization with `SiLU`.

use crate::{
    cpu::{
        Level, layer_norm as kernel,
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
    tensor::{Tensor, activation::silu, module::layer_norm},
};

/// Layer normalization over the last axis and `SiLU`: `y = silu(h)` with
/// `h = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias`, the variance being the biased one.
///
/// # Shapes
///
/// - `x` and the result: `[.., size]`
/// - `weight` and `bias`: `[size]`
///
/// # Panics
///
/// If the last axis of `x`, `weight` and `bias` differ in size or are empty.
pub fn layer_norm_silu<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<1>,
    bias: Tensor<1>,
    eps: f64,
) -> Tensor<D> {
    let _span = span("layer_norm_silu");
    let [size] = weight.dims();
    assert!(
        x.dims().last() == Some(&size) && bias.dims() == [size] && size > 0,
        "layer_norm_silu: the last axis of x {:?} must have the size of weight [{size}] and bias \
         {:?}, and not be empty",
        x.dims(),
        bias.dims()
    );
    if has_cpu_kernel(&x) {
        return Tensor::from_dispatch(Dispatch::fused_layer_norm_silu(
            x.into_dispatch(),
            weight.into_dispatch(),
            bias.into_dispatch(),
            eps as f32,
        ));
    }
    silu(layer_norm(x, weight, Some(bias), eps))
}

/// The operation with a kernel of its own.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait LayerNormSilu: Backend {
    fn fused_layer_norm_silu(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        eps: f32,
    ) -> FloatTensor<Self>;
}

impl LayerNormSilu for Flex {
    fn fused_layer_norm_silu(
        x: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
        eps: f32,
    ) -> FlexTensor {
        forward(&[x, weight, bias].map(consecutive), eps)
    }
}

impl<C: CheckpointStrategy> LayerNormSilu for Autodiff<Flex, C> {
    fn fused_layer_norm_silu(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        eps: f32,
    ) -> FloatTensor<Self> {
        let ((x, x_node), (weight, weight_node)) = (x.into_parts(), weight.into_parts());
        let (bias, bias_node) = bias.into_parts();
        let tensors = [x, weight, bias].map(consecutive);
        record::<C, _, 3>(
            "layer_norm_silu",
            [x_node, weight_node, bias_node],
            |keep| (forward(&tensors, eps), keep.then_some((tensors, eps))),
            |(tensors, eps), grad| {
                let grad = consecutive(grad);
                let operands = operands(&tensors, eps);
                let grads = kernel::backward(Level::current(), operands, floats(&grad));
                let [x, weight, bias] = &tensors;
                [
                    from_floats(grads.x, &x.shape()),
                    from_floats(grads.weight, &weight.shape()),
                    from_floats(grads.bias, &bias.shape()),
                ]
            },
        )
    }
}

fn operands([x, weight, bias]: &[FlexTensor; 3], eps: f32) -> kernel::Operands<'_> {
    kernel::Operands {
        x: floats(x),
        weight: floats(weight),
        bias: floats(bias),
        eps,
    }
}

fn forward(tensors: &[FlexTensor; 3], eps: f32) -> FlexTensor {
    let out = kernel::forward(Level::current(), operands(tensors, eps));
    from_floats(out, &tensors[0].shape())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{Op, Random, assert_close, check, check_differences, evaluate};
    use burn::tensor::DType;

    fn op(rows: [usize; 2], size: usize, eps: f64) -> impl Op {
        move |inputs: Vec<Tensor<1>>| {
            let [x, weight, bias] = inputs.try_into().expect("three inputs");
            let x = x.reshape([rows[0], rows[1], size]);
            layer_norm_silu(x, weight, bias, eps).reshape([rows[0] * rows[1] * size])
        }
    }

    fn inputs(rows: [usize; 2], size: usize) -> Vec<Vec<f32>> {
        let mut random = Random::new(size as u64);
        vec![
            random.floats(rows[0] * rows[1] * size),
            random.floats(size),
            random.floats(size),
        ]
    }

    #[test]
    fn agrees_with_its_twin_on_all_shapes() {
        for (rows, size) in [
            ([1, 5], 2),
            ([5, 1], 7),
            ([2, 17], 64),
            ([3, 37], 301),
            ([41, 53], 33),
        ] {
            check(op(rows, size, 1e-5), &inputs(rows, size));
        }
    }

    #[test]
    fn gradients_are_slopes() {
        check_differences(op([2, 3], 11, 1e-5), &inputs([2, 3], 11));
    }

    #[test]
    fn a_row_loses_its_mean_and_its_scale() {
        let inputs = [vec![1.0, 3.0, -2.0, 6.0], vec![1.0, 2.0], vec![0.0, -2.0]];
        let result = evaluate(op([2, 1], 2, 1e-12), &inputs, DType::F32);
        // Normalized, a row of two is (-1, 1); then h = (-1, 0).
        let silu = -1.0 / (1.0 + 1.0_f64.exp());
        assert_close("output", &result.output, &[silu, 0.0, silu, 0.0], 1e-6);
    }

    #[test]
    #[should_panic(expected = "size of weight [3]")]
    fn refuses_a_weight_of_another_size() {
        let device = burn::tensor::Device::flex();
        let weight = Tensor::<1>::zeros([3], &device);
        layer_norm_silu(
            Tensor::<2>::zeros([2, 4], &device),
            weight.clone(),
            weight,
            1e-5,
        );
    }
}
