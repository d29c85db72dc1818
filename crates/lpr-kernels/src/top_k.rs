//! The largest scores of each row.

use crate::{
    cpu::{
        tensor::{consecutive, floats},
        top_k as kernel,
    },
    dispatch::has_cpu_kernel,
    profile::span,
};
use burn::{
    backend::Flex,
    tensor::{Int, Tensor, TensorData},
};

/// The `k` largest scores of each row, the largest first, and their columns. Of equal scores the first
/// column comes first. On the CPU a NaN is larger than all numbers (smaller with its sign set);
/// elsewhere its place is not defined.
///
/// # Shapes
///
/// - `scores`: `[rows, columns]`
/// - the results: `[rows, k]` each
///
/// # Panics
///
/// If `k` is zero or above the number of columns.
pub fn top_k(scores: Tensor<2>, k: usize) -> (Tensor<2>, Tensor<2, Int>) {
    let _span = span("top_k");
    let [rows, columns] = scores.dims();
    assert!(
        0 < k && k <= columns,
        "top_k: k = {k} must be 1 to the {columns} columns"
    );
    let plain = scores.clone().inner();
    let indices = if has_cpu_kernel(&scores) {
        let plain = plain.try_into_primitive::<Flex>();
        let plain = consecutive(plain.expect("a tensor of the CPU backend"));
        let indices = kernel::indices(floats(&plain), columns, k);
        Tensor::from_data(TensorData::new(indices, [rows, k]), &scores.device())
    } else {
        Tensor::from_inner(plain.argtopk(k, 1))
    };
    (scores.gather(1, indices.clone()), indices)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{Random, on_threads};
    use burn::tensor::Device;

    fn run(scores: Tensor<2>, k: usize) -> (Vec<f32>, Vec<i64>) {
        let (values, indices) = top_k(scores, k);
        (
            values.try_into_vec_as().expect("readable"),
            indices.try_into_vec_as().expect("readable"),
        )
    }

    /// Scores of which many are equal.
    fn scores(rows: usize, columns: usize, device: &Device) -> Tensor<2> {
        let mut random = Random::new((rows * columns) as u64);
        let values: Vec<f32> = (0..rows * columns)
            .map(|_| random.below(columns) as f32 - 3.0)
            .collect();
        Tensor::from_data(TensorData::new(values, [rows, columns]), device)
    }

    #[test]
    fn agrees_with_a_stable_sort_also_where_scores_are_equal() {
        let device = Device::flex();
        for (rows, columns) in [(1, 1), (3, 2), (70, 7), (300, 33), (2, 1024)] {
            for k in [1, 2, 4, columns] {
                let k = k.min(columns);
                let scores = scores(rows, columns, &device);
                let all: Vec<f32> = scores.clone().try_into_vec_as().expect("readable");
                let (mut values, mut indices) = (Vec::new(), Vec::new());
                for row in all.chunks_exact(columns) {
                    let mut order: Vec<usize> = (0..columns).collect();
                    order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
                    values.extend(order[..k].iter().map(|&column| row[column]));
                    indices.extend(order[..k].iter().map(|&column| column as i64));
                }
                for threads in 1..=3 {
                    let (found, columns_found) = on_threads(threads, || run(scores.clone(), k));
                    assert_eq!(found, values, "{rows} x {columns}, k = {k}");
                    assert!(columns_found == indices, "{rows} x {columns}, k = {k}");
                }
            }
        }
    }

    #[test]
    fn the_gradient_goes_to_the_chosen_scores() {
        let device = Device::flex().autodiff();
        let scores = Tensor::<2>::from_data([[1.0, 5.0, 3.0], [0.0, -1.0, -2.0]], &device);
        let scores = scores.require_grad();
        let (values, _) = top_k(scores.clone(), 2);
        let factors = Tensor::<2>::from_data([[10.0, 20.0], [30.0, 40.0]], &device);
        let grads = (values * factors).sum().backward();
        let grad: Vec<f32> = scores
            .grad(&grads)
            .expect("a gradient")
            .try_into_vec_as()
            .expect("readable");
        assert_eq!(grad, [0.0, 10.0, 20.0, 30.0, 40.0, 0.0]);
    }

    #[test]
    fn nan_is_the_largest() {
        let device = Device::flex();
        let scores = Tensor::<2>::from_data([[1.0, f32::NAN, f32::INFINITY, -0.0, 0.0]], &device);
        assert_eq!(run(scores, 5).1, [1, 2, 0, 4, 3]);
    }

    #[test]
    #[should_panic(expected = "k = 4 must be 1 to the 3 columns")]
    fn refuses_more_than_there_are() {
        top_k(Tensor::zeros([2, 3], &Device::flex()), 4);
    }
}
