//! The vectors of tokens.

use crate::{
    cpu::{
        Level, embedding as kernel,
        tensor::{consecutive, floats, from_floats, integers},
    },
    dispatch::{has_cpu_kernel, record},
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
    tensor::{Int, Tensor, module},
};

/// The row of `table` for each id. Gradients flow to the table.
///
/// The gradient adds up the positions of each id in their order, on GPUs after the device sorted them;
/// Burn's own has one thread for all of it or, there, for a column.
///
/// # Shapes
///
/// - `table`: `[vocab_size, hidden]`, neither of them zero
/// - `ids`: `[batch, sequence]`, each in `0..vocab_size`
/// - the result: `[batch, sequence, hidden]`
///
/// # Panics
///
/// On the CPU, if the table has no row for an id.
pub fn embedding(table: Tensor<2>, ids: Tensor<2, Int>) -> Tensor<3> {
    let _span = span("embedding");
    if has_cpu_kernel(&table) {
        let (table, ids) = (table.into_dispatch(), ids.into_dispatch());
        return Tensor::from_dispatch(Dispatch::fused_embedding(table, ids));
    }
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    if !crate::dispatch::is_cpu(&table.device()) {
        return on_gpu(table, ids);
    }
    module::embedding(table, ids)
}

/// The operation with a kernel of its own.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait Embedding: Backend {
    fn fused_embedding(table: FloatTensor<Self>, ids: IntTensor<Self>) -> FloatTensor<Self>;
}

impl Embedding for Flex {
    fn fused_embedding(table: FlexTensor, ids: FlexTensor) -> FlexTensor {
        let shape = ids.shape();
        forward(&consecutive(table), &integers(ids), shape.dims())
    }
}

impl<C: CheckpointStrategy> Embedding for Autodiff<Flex, C> {
    fn fused_embedding(table: FloatTensor<Self>, ids: IntTensor<Self>) -> FloatTensor<Self> {
        let (table, node) = table.into_parts();
        let (table, shape) = (consecutive(table), ids.shape());
        let ids = integers(ids);
        record::<C, _, 1>(
            "embedding",
            [node],
            |keep| {
                let rows = forward(&table, &ids, shape.dims());
                (rows, keep.then(|| (ids, table.shape())))
            },
            |(ids, shape), grad| {
                let (grad, [rows, width]) = (consecutive(grad), shape.dims());
                let sums = kernel::backward(Level::current(), rows, width, &ids, floats(&grad));
                [from_floats(sums, &shape)]
            },
        )
    }
}

fn forward(table: &FlexTensor, ids: &[i64], [batch, sequence]: [usize; 2]) -> FlexTensor {
    let [_, width] = table.shape().dims();
    let rows = kernel::forward(floats(table), width, ids);
    from_floats(rows, &[batch, sequence, width])
}

#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn on_gpu(table: Tensor<2>, ids: Tensor<2, Int>) -> Tensor<3> {
    use crate::{
        gpu::order::stable_order,
        rows::{RowMap, take_rows},
    };
    let ([vocab_size, hidden], [batch, sequence]) = (table.dims(), ids.dims());
    let ids = ids.inner().reshape([batch * sequence]);
    let map = RowMap {
        sorted: stable_order(&ids, vocab_size),
        taken: ids,
    };
    take_rows(table, map).reshape([batch, sequence, hidden])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{Op, Random, assert_close, check, evaluate};
    use burn::tensor::{DType, TensorData};

    fn op([rows, width]: [usize; 2], ids: Vec<i32>) -> impl Op {
        move |inputs: Vec<Tensor<1>>| {
            let [table] = inputs.try_into().expect("one input");
            let data = TensorData::new(ids.clone(), [1, ids.len()]);
            let found = Tensor::from_data(data, &table.device().inner());
            embedding(table.reshape([rows, width]), found).reshape([ids.len() * width])
        }
    }

    #[test]
    fn agrees_with_its_twin_on_all_shapes() {
        for (rows, width, count) in [(1, 1, 3), (5, 7, 1), (301, 33, 517), (64, 16, 200)] {
            let mut random = Random::new(rows as u64);
            let ids = (0..count).map(|_| random.below(rows) as i32).collect();
            check(op([rows, width], ids), &[random.floats(rows * width)]);
        }
    }

    #[test]
    fn rows_that_no_id_takes_have_no_gradient() {
        let table = [vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]];
        let result = evaluate(op([3, 2], vec![2, 0, 2]), &table, DType::F32);
        assert_close("rows", &result.output, &[5.0, 6.0, 1.0, 2.0, 5.0, 6.0], 0.0);
        assert_eq!(result.grads[0][2..4], [0.0, 0.0]);
    }

    #[test]
    #[should_panic(expected = "id 3 of 3 rows")]
    fn refuses_an_id_that_the_table_does_not_have() {
        evaluate(op([3, 1], vec![3]), &[vec![1.0, 2.0, 3.0]], DType::F32);
    }
}
