//! Checks that hold for every operation: a kernel (`f32`) against its portable twin (`f64`),
//! against differences of the twin, on every instruction set, on several numbers of threads, with
//! and without gradients.

use crate::cpu::{Level, forced};
use burn::tensor::{DType, Device, Tensor, TensorData};

/// Largest difference allowed, relative to the largest value: about 80 roundings of `f32`.
pub(crate) const TOLERANCE: f64 = 1.0e-5;

/// A small generator of reproducible numbers (splitmix64).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A whole number below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// `len` floats in `-1..1`.
    pub(crate) fn floats(&mut self, len: usize) -> Vec<f32> {
        let float = |_| (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0;
        (0..len).map(float).collect()
    }
}

/// The values of an operation's output and of the gradients of its inputs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Evaluation {
    pub(crate) output: Vec<f64>,
    pub(crate) grads: Vec<Vec<f64>>,
}

/// An operation on flat inputs, which it brings into shape itself, to a flat output.
pub(crate) trait Op: Fn(Vec<Tensor<1>>) -> Tensor<1> + Sync {}

impl<F: Fn(Vec<Tensor<1>>) -> Tensor<1> + Sync> Op for F {}

/// A flat tensor of this type.
pub(crate) fn flat(values: &[f64], dtype: DType, device: &Device) -> Tensor<1> {
    let data = TensorData::new(values.to_vec(), [values.len()]);
    Tensor::from_data(data, (device, dtype))
}

fn values(tensor: Tensor<1>) -> Vec<f64> {
    tensor
        .try_into_vec_as()
        .expect("a tensor of the CPU is readable")
}

/// The same numbers in double precision.
pub(crate) fn widened(inputs: &[Vec<f32>]) -> Vec<Vec<f64>> {
    let widen = |x: &Vec<f32>| x.iter().map(|&v| f64::from(v)).collect();
    inputs.iter().map(widen).collect()
}

/// Weights that turn the output into one number whose gradient is taken.
fn cotangent(len: usize) -> Vec<f64> {
    let floats = Random::new(99).floats(len);
    floats.into_iter().map(f64::from).collect()
}

/// Runs the operation with gradients.
pub(crate) fn evaluate(op: impl Op, inputs: &[Vec<f64>], dtype: DType) -> Evaluation {
    let device = Device::flex().autodiff();
    let leaf = |x: &Vec<f64>| flat(x, dtype, &device).require_grad();
    let leaves: Vec<_> = inputs.iter().map(leaf).collect();
    let output = op(leaves.clone());
    let weights = flat(&cotangent(output.dims()[0]), dtype, &device);
    let grads = (output.clone() * weights).sum().backward();
    let grad = |leaf: &Tensor<1>| values(leaf.grad(&grads).expect("a gradient for every input"));
    Evaluation {
        grads: leaves.iter().map(grad).collect(),
        output: values(output.inner()),
    }
}

/// Runs the operation without gradients.
fn evaluate_untracked(op: impl Op, inputs: &[Vec<f64>]) -> Vec<f64> {
    let device = Device::flex();
    let inputs = inputs.iter().map(|x| flat(x, DType::F32, &device));
    values(op(inputs.collect()))
}

/// Panics unless the values agree within `tolerance` of the largest expected one.
pub(crate) fn assert_close(what: &str, actual: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(actual.len(), expected.len(), "{what}: number of values");
    let largest = expected.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    for (i, (&a, &e)) in actual.iter().zip(expected).enumerate() {
        let difference = (a - e).abs();
        assert!(
            difference <= tolerance * largest,
            "{what}[{i}]: {a}, expected {e}, largest {largest}"
        );
    }
}

impl Evaluation {
    fn assert_close(&self, what: &str, expected: &Self, tolerance: f64) {
        let output = format!("{what}: output");
        assert_close(&output, &self.output, &expected.output, tolerance);
        assert_eq!(self.grads.len(), expected.grads.len());
        for (i, (actual, expected)) in self.grads.iter().zip(&expected.grads).enumerate() {
            let grad = format!("{what}: gradient of input {i}");
            assert_close(&grad, actual, expected, tolerance);
        }
    }
}

/// Runs all checks except differences on inputs of `f32`.
pub(crate) fn check(op: impl Op, inputs: &[Vec<f32>]) {
    let inputs = widened(inputs);
    let twin = evaluate(&op, &inputs, DType::F64);
    for level in Level::available() {
        let kernel = forced::with(level, || evaluate(&op, &inputs, DType::F32));
        kernel.assert_close(&format!("{level:?}"), &twin, TOLERANCE);
    }
    let kernel = evaluate(&op, &inputs, DType::F32);
    let untracked = evaluate_untracked(&op, &inputs);
    assert_eq!(untracked, kernel.output, "without gradients");
    for threads in 1..=3 {
        let same = on_threads(threads, || evaluate(&op, &inputs, DType::F32));
        assert_eq!(same, kernel, "on {threads} threads");
    }
}

/// Runs `action` on a pool of its own.
pub(crate) fn on_threads<T: Send>(threads: usize, action: impl FnOnce() -> T + Send) -> T {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.expect("a pool of a few threads").install(action)
}

/// Compares all gradients of the kernel with central differences of the twin.
pub(crate) fn check_differences(op: impl Op, inputs: &[Vec<f32>]) {
    const STEP: f64 = 1.0e-5;
    let inputs = widened(inputs);
    let kernel = evaluate(&op, &inputs, DType::F32);
    let device = Device::flex();
    let weighted = |inputs: &[Vec<f64>]| {
        let inputs = inputs.iter().map(|x| flat(x, DType::F64, &device));
        let output = values(op(inputs.collect()));
        let weights = cotangent(output.len());
        output.iter().zip(weights).map(|(o, w)| o * w).sum::<f64>()
    };
    for (input, grad) in kernel.grads.iter().enumerate() {
        let difference = |element| {
            let at = |offset: f64| {
                let mut moved = inputs.clone();
                moved[input][element] += offset;
                weighted(&moved)
            };
            (at(STEP) - at(-STEP)) / (2.0 * STEP)
        };
        let differences: Vec<_> = (0..grad.len()).map(difference).collect();
        assert_close(
            &format!("gradient of input {input} against differences"),
            grad,
            &differences,
            TOLERANCE,
        );
    }
}
