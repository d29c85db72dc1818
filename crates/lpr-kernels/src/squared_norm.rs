//! The sum of squares of a gradient, for clipping by the global norm.

use crate::{
    cpu::{
        Level, squared_norm as kernel,
        tensor::{consecutive, floats},
    },
    dispatch::has_cpu_kernel,
    profile::span,
};
use burn::{
    backend::Flex,
    tensor::{Tensor, TensorData, Transaction},
};

/// Elements summed on the device before the partial sums are read back.
const CHUNK: usize = 4096;

/// The sum of squares of gradients, of which a part may still be on a device.
#[derive(Debug)]
pub struct SquaredNorm {
    on_host: f64,
    /// Sums of chunks.
    on_device: Option<Tensor<1>>,
}

/// The sum of squares of all elements of all `grads`, added up in `f64` in an order that does not
/// depend on the number of threads.
///
/// On backends without a kernel of their own, chunks of 4,096 elements are summed in the type of the
/// gradients and only the sums of chunks in `f64`, when they are read.
///
/// # Panics
///
/// Never: what has a kernel is a tensor of the CPU backend.
pub fn squared_norm<'a>(grads: impl IntoIterator<Item = &'a Tensor<1>>) -> SquaredNorm {
    let _span = span("squared_norm");
    let mut on_host = 0.0;
    let mut sums = Vec::new();
    for grad in grads {
        let grad = grad.clone().inner();
        if has_cpu_kernel(&grad) {
            let grad = grad.try_into_primitive::<Flex>();
            let grad = consecutive(grad.expect("a tensor of the CPU backend"));
            on_host += kernel::squared_norm(Level::current(), floats(&grad));
        } else {
            sums.extend(sums_of_chunks(grad));
        }
    }
    SquaredNorm {
        on_host,
        on_device: (!sums.is_empty()).then(|| Tensor::cat(sums, 0)),
    }
}

impl SquaredNorm {
    /// Adds what there is to read to `reads`.
    pub fn register(&self, reads: Transaction) -> Transaction {
        match &self.on_device {
            Some(sums) => reads.register(sums.clone()),
            None => reads,
        }
    }

    /// Takes from `data` what [`register`](Self::register) added.
    ///
    /// # Panics
    ///
    /// If it is not there.
    pub fn take(&self, data: &mut impl Iterator<Item = TensorData>) -> f64 {
        let on_device = self.on_device.as_ref().map_or(0.0, |_| {
            let sums = data.next().expect("what was registered was read");
            sums.iter::<f64>().sum()
        });
        self.on_host + on_device
    }

    /// Waits for the device.
    ///
    /// # Panics
    ///
    /// If it cannot be read.
    pub fn read(&self) -> f64 {
        let reads = self.register(Transaction::default());
        self.take(&mut reads.execute().into_iter())
    }
}

/// The sums of squares of the chunks of `grad`, in plain tensor operations.
fn sums_of_chunks(grad: Tensor<1>) -> Vec<Tensor<1>> {
    let [size] = grad.dims();
    let squares = grad.square();
    let whole = size - size % CHUNK;
    let mut sums = Vec::new();
    if whole > 0 {
        let rows = squares.clone().narrow(0, 0, whole);
        let rows = rows.reshape([whole / CHUNK, CHUNK]).sum_dim(1);
        sums.push(rows.reshape([whole / CHUNK]));
    }
    if whole < size {
        sums.push(squares.narrow(0, whole, size - whole).sum());
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cpu::forced,
        test_support::{Random, flat, on_threads},
    };
    use burn::tensor::{DType, Device};

    fn random(len: usize, dtype: DType) -> (Tensor<1>, f64) {
        let values = Random::new(len as u64).floats(len);
        let values: Vec<_> = values.into_iter().map(f64::from).collect();
        let exact = values.iter().map(|v| v * v).sum();
        (flat(&values, dtype, &Device::flex()), exact)
    }

    #[test]
    fn adds_up_the_squares_of_any_number_of_elements() {
        for len in [1, 15, 17, 4096, 4099, 65_536, 200_003] {
            for dtype in [DType::F32, DType::F64] {
                let (grad, exact) = random(len, dtype);
                let sum = squared_norm([&grad]).read();
                let error = (sum - exact).abs();
                assert!(
                    error <= 1e-12 * exact,
                    "{len} {dtype:?}: {sum}, not {exact}"
                );
            }
        }
    }

    #[test]
    fn the_twin_agrees_in_single_precision() {
        let (grad, exact) = random(10_007, DType::F32);
        let sums = Tensor::cat(sums_of_chunks(grad), 0);
        let sums: Vec<f64> = sums.try_into_vec_as().expect("readable");
        let sum: f64 = sums.iter().sum();
        // Each chunk is a sum of 4,096 terms in single precision.
        assert!((sum - exact).abs() <= 1e-5 * exact, "{sum}, not {exact}");
    }

    #[test]
    fn adds_over_all_gradients() {
        let ((a, a_exact), (b, b_exact)) = (random(5000, DType::F64), random(7, DType::F64));
        let sum = squared_norm([&a, &b]).read();
        assert!((sum - a_exact - b_exact).abs() <= 1e-12 * sum, "{sum}");
        assert!(squared_norm([]).read().abs() < f64::MIN_POSITIVE);
    }

    #[test]
    fn is_the_same_bits_on_all_threads_and_instruction_sets() {
        let (grad, _) = random(300_007, DType::F32);
        let sum = squared_norm([&grad]).read();
        for threads in 1..=3 {
            let same = on_threads(threads, || squared_norm([&grad]).read());
            assert_eq!(same.to_bits(), sum.to_bits(), "{threads} threads");
        }
        for level in Level::available() {
            let same = forced::with(level, || squared_norm([&grad]).read());
            assert_eq!(same.to_bits(), sum.to_bits(), "{level:?}");
        }
    }

    #[test]
    fn sees_through_views_and_gradients_that_are_not_numbers() {
        let (grad, exact) = random(12, DType::F32);
        let view = grad.flip([0]);
        assert!((squared_norm([&view]).read() - exact).abs() < 1e-12);
        let broken = flat(&[1.0, f64::NAN], DType::F32, &Device::flex());
        assert!(squared_norm([&broken]).read().is_nan());
    }
}
