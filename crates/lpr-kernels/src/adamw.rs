//! One step of `AdamW` (Loshchilov and Hutter, "Decoupled Weight Decay Regularization") on one
//! parameter.

use crate::{
    cpu::{
        Level,
        adamw::{self as kernel, Buffer, Factors},
        tensor::{consecutive, floats, from_floats},
    },
    dispatch::has_cpu_kernel,
    profile::span,
};
use burn::{
    backend::{Flex, flex::FlexTensor},
    tensor::Tensor,
};

/// The constants of `AdamW` that do not change during training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Decay rates of the two running averages.
    pub betas: (f64, f64),
    /// Added to the root of the second average.
    pub eps: f64,
}

/// One step of `AdamW` for one parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWStep {
    /// Counted from 1.
    pub step: u64,
    /// The step's learning rate.
    pub learning_rate: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// What the gradient is multiplied by first, to clip it.
    pub grad_scale: f64,
}

/// The running averages that `AdamW` keeps for one parameter, each of the parameter's shape.
#[derive(Clone, Debug)]
pub struct Moments<const D: usize> {
    /// Running average of the gradient.
    pub exp_avg: Tensor<D>,
    /// Running average of the squared gradient.
    pub exp_avg_sq: Tensor<D>,
}

impl<const D: usize> Moments<D> {
    /// The averages before the first step: zeros of the shape, type and device of `param`.
    pub fn zeros_like(param: &Tensor<D>) -> Self {
        let zeros = || {
            let param = param.clone().inner();
            if has_cpu_kernel(&param) {
                // The system clears this memory where the first step touches it, which is in parallel.
                let values = vec![0.0; param.shape().num_elements()];
                return Tensor::from_primitive::<Flex>(from_floats(values, &param.shape()));
            }
            param.zeros_like()
        };
        Self {
            exp_avg: zeros(),
            exp_avg_sq: zeros(),
        }
    }
}

impl AdamW {
    /// Returns the parameter and its averages after a step.
    ///
    /// With `g` the gradient times `grad_scale`, `m` and `v` the averages, in the order of `torch.optim.AdamW`:
    ///
    /// ```text
    /// param <- param * (1 - learning_rate * weight_decay)
    /// m     <- m + (g - m) * (1 - beta1)
    /// v     <- v * beta2 + g^2 * (1 - beta2)
    /// root  <- sqrt(v) / sqrt(1 - beta2^step) + eps
    /// param <- param - learning_rate / (1 - beta1^step) * m / root
    /// ```
    ///
    /// Buffers that nobody else holds are reused; of others, a checkpoint's for example, the results
    /// are new buffers and the old ones stay as they are. Tensors of an autodiff device are treated as
    /// constants and the results are on the plain device.
    ///
    /// # Shapes
    ///
    /// `param`, `grad`, both averages and the results have the same shape.
    ///
    /// # Panics
    ///
    /// If the shapes differ or `step` is 0.
    pub fn update<const D: usize>(
        &self,
        param: Tensor<D>,
        grad: Tensor<D>,
        moments: Moments<D>,
        step: AdamWStep,
    ) -> (Tensor<D>, Moments<D>) {
        let _span = span("adamw");
        let dims = param.dims();
        assert_eq!(
            grad.dims(),
            dims,
            "AdamW: the gradient must have the parameter's shape"
        );
        assert!(
            moments.exp_avg.dims() == dims && moments.exp_avg_sq.dims() == dims,
            "AdamW: the moments {:?} and {:?} must have the parameter's shape {dims:?}",
            moments.exp_avg.dims(),
            moments.exp_avg_sq.dims()
        );
        assert!(step.step > 0, "AdamW: steps are counted from 1");
        let factors = self.factors(step);
        let (param, grad) = (param.inner(), grad.inner());
        let moments = Moments {
            exp_avg: moments.exp_avg.inner(),
            exp_avg_sq: moments.exp_avg_sq.inner(),
        };
        if has_cpu_kernel(&param) {
            fused(&factors, param, grad, moments)
        } else {
            portable(&factors, param, grad, moments)
        }
    }

    fn factors(&self, step: AdamWStep) -> Factors {
        let (beta1, beta2) = self.betas;
        let correction = |beta: f64| 1.0 - beta.powf(step.step as f64);
        Factors {
            grad_scale: step.grad_scale,
            decay: 1.0 - step.learning_rate * step.weight_decay,
            one_minus_beta1: 1.0 - beta1,
            beta2,
            one_minus_beta2: 1.0 - beta2,
            step_size: step.learning_rate / correction(beta1),
            root_correction2: correction(beta2).sqrt(),
            eps: self.eps,
        }
    }
}

/// The operation in plain tensor operations.
fn portable<const D: usize>(
    f: &Factors,
    param: Tensor<D>,
    grad: Tensor<D>,
    moments: Moments<D>,
) -> (Tensor<D>, Moments<D>) {
    let grad = grad * f.grad_scale;
    let m = moments.exp_avg;
    let m = m.clone() + (grad.clone() - m) * f.one_minus_beta1;
    let v = moments.exp_avg_sq * f.beta2 + grad.square() * f.one_minus_beta2;
    let denominator = v.clone().sqrt() / f.root_correction2 + f.eps;
    let param = param * f.decay - m.clone() / denominator * f.step_size;
    let moments = Moments {
        exp_avg: m,
        exp_avg_sq: v,
    };
    (param, moments)
}

/// The operation with a kernel of its own: one pass, in place where possible.
fn fused<const D: usize>(
    factors: &Factors,
    param: Tensor<D>,
    grad: Tensor<D>,
    moments: Moments<D>,
) -> (Tensor<D>, Moments<D>) {
    let grad = consecutive(on_cpu(grad));
    let mut param = Buffer::new(on_cpu(param));
    let (mut exp_avg, mut exp_avg_sq) = (
        Buffer::new(on_cpu(moments.exp_avg)),
        Buffer::new(on_cpu(moments.exp_avg_sq)),
    );
    kernel::update(
        Level::current(),
        factors,
        param.target(),
        floats(&grad),
        exp_avg.target(),
        exp_avg_sq.target(),
    );
    let moments = Moments {
        exp_avg: Tensor::from_primitive::<Flex>(exp_avg.updated()),
        exp_avg_sq: Tensor::from_primitive::<Flex>(exp_avg_sq.updated()),
    };
    (Tensor::from_primitive::<Flex>(param.updated()), moments)
}

fn on_cpu<const D: usize>(tensor: Tensor<D>) -> FlexTensor {
    let primitive = tensor.try_into_primitive::<Flex>();
    primitive.expect("the parameter, its gradient and its moments are on one device")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cpu::forced,
        test_support::{Random, TOLERANCE, assert_close, flat, on_threads},
    };
    use burn::tensor::{DType, Device};

    const CONSTANTS: AdamW = AdamW {
        betas: (0.9, 0.95),
        eps: 1e-8,
    };
    const LEARNING_RATE: f64 = 1e-2;
    const WEIGHT_DECAY: f64 = 0.1;
    const GRAD_SCALE: f64 = 0.75;
    const STEPS: u64 = 5;

    fn step(step: u64) -> AdamWStep {
        AdamWStep {
            step,
            learning_rate: LEARNING_RATE,
            weight_decay: WEIGHT_DECAY,
            grad_scale: GRAD_SCALE,
        }
    }

    fn random(seed: u64, len: usize) -> Vec<f64> {
        let floats = Random::new(seed).floats(len);
        floats.into_iter().map(f64::from).collect()
    }

    /// Parameter and averages after some steps.
    fn train(len: usize, dtype: DType) -> [Vec<f64>; 3] {
        let device = Device::flex();
        let mut param = flat(&random(0, len), dtype, &device);
        let mut moments = Moments::zeros_like(&param);
        for count in 1..=STEPS {
            let grad = flat(&random(count, len), dtype, &device);
            (param, moments) = CONSTANTS.update(param, grad, moments, step(count));
        }
        [param, moments.exp_avg, moments.exp_avg_sq]
            .map(|tensor| tensor.try_into_vec_as().expect("readable"))
    }

    /// The formula of [`AdamW::update`], number by number.
    fn train_by_formula(len: usize) -> [Vec<f64>; 3] {
        let (beta1, beta2) = CONSTANTS.betas;
        let (mut param, mut m, mut v) = (random(0, len), vec![0.0; len], vec![0.0; len]);
        for step in 1..=STEPS {
            let corrections = (1.0 - beta1.powi(step as i32), 1.0 - beta2.powi(step as i32));
            for (i, g) in random(step, len).into_iter().enumerate() {
                let g = GRAD_SCALE * g;
                param[i] *= 1.0 - LEARNING_RATE * WEIGHT_DECAY;
                m[i] = beta1 * m[i] + (1.0 - beta1) * g;
                v[i] = beta2 * v[i] + (1.0 - beta2) * g * g;
                let denominator = (v[i] / corrections.1).sqrt() + CONSTANTS.eps;
                param[i] -= LEARNING_RATE * m[i] / corrections.0 / denominator;
            }
        }
        [param, m, v]
    }

    fn assert_all_close(actual: &[Vec<f64>; 3], expected: &[Vec<f64>; 3], tolerance: f64) {
        for (i, what) in ["param", "exp_avg", "exp_avg_sq"].into_iter().enumerate() {
            assert_close(what, &actual[i], &expected[i], tolerance);
        }
    }

    #[test]
    fn the_twin_follows_the_formula() {
        assert_all_close(&train(101, DType::F64), &train_by_formula(101), 1e-12);
    }

    #[test]
    fn agrees_with_its_twin_on_all_lengths_and_instruction_sets() {
        for len in [1, 7, 16, 33, 70_001] {
            let twin = train(len, DType::F64);
            for level in Level::available() {
                let kernel = forced::with(level, || train(len, DType::F32));
                assert_all_close(&kernel, &twin, TOLERANCE);
            }
        }
    }

    #[test]
    fn is_the_same_bits_on_all_threads() {
        let result = train(70_001, DType::F32);
        for threads in 1..=3 {
            let same = on_threads(threads, || train(70_001, DType::F32));
            assert_eq!(same, result, "{threads} threads");
        }
    }

    #[test]
    fn without_a_gradient_only_the_decay_remains() {
        let device = Device::flex();
        let param = flat(&[2.0, -4.0], DType::F32, &device);
        let (grad, moments) = (param.zeros_like(), Moments::zeros_like(&param));
        let (param, _) = CONSTANTS.update(param, grad, moments, step(1));
        let param: Vec<f64> = param.try_into_vec_as().expect("readable");
        let kept = 1.0 - LEARNING_RATE * WEIGHT_DECAY;
        assert_close("param", &param, &[2.0 * kept, -4.0 * kept], 1e-7);
    }

    #[test]
    fn works_in_place_and_leaves_shared_memory_alone() {
        let device = Device::flex();
        let address = |tensor: &Tensor<1>| {
            let tensor = on_cpu(tensor.clone());
            floats(&tensor).as_ptr() as usize
        };
        let param = flat(&random(0, 1000), DType::F32, &device);
        let grad = flat(&random(1, 1000), DType::F32, &device);
        let moments = Moments::zeros_like(&param);
        let kept = moments.exp_avg.clone();
        let before = (address(&param), address(&moments.exp_avg_sq));
        let (param, moments) = CONSTANTS.update(param, grad, moments, step(1));
        assert_eq!((address(&param), address(&moments.exp_avg_sq)), before);
        assert_ne!(address(&moments.exp_avg), address(&kept));
        assert_eq!(kept.abs().max().into_scalar::<f32>().to_bits(), 0);
    }

    #[test]
    fn memory_that_is_held_changes_neither_the_result_nor_what_is_held() {
        let device = Device::flex();
        let length = 70_001;
        let run = |hold: [bool; 3]| {
            let param = flat(&random(0, length), DType::F32, &device);
            let grad = flat(&random(1, length), DType::F32, &device);
            let moments = Moments {
                exp_avg: flat(&random(2, length), DType::F32, &device),
                exp_avg_sq: flat(&random(3, length), DType::F32, &device).abs(),
            };
            let held = [&param, &moments.exp_avg, &moments.exp_avg_sq].map(Clone::clone);
            let held: Vec<_> = held
                .into_iter()
                .zip(hold)
                .filter(|(_, hold)| *hold)
                .collect();
            let values = |tensor: Tensor<1>| tensor.try_into_vec_as::<f32>().expect("readable");
            let before: Vec<_> = held
                .iter()
                .map(|(t, _)| values(t.clone().mul_scalar(1.0)))
                .collect();
            let (param, moments) = CONSTANTS.update(param, grad, moments, step(3));
            let after: Vec<_> = held.into_iter().map(|(tensor, _)| values(tensor)).collect();
            assert_eq!(before, after);
            [param, moments.exp_avg, moments.exp_avg_sq].map(values)
        };
        let in_place = run([false; 3]);
        for hold in [
            [true; 3],
            [true, false, false],
            [false, true, false],
            [false, false, true],
        ] {
            assert_eq!(run(hold), in_place, "held: {hold:?}");
        }
    }

    #[test]
    #[should_panic(expected = "counted from 1")]
    fn refuses_step_zero() {
        let param = Tensor::<1>::zeros([1], &Device::flex());
        let moments = Moments::zeros_like(&param);
        CONSTANTS.update(param.clone(), param, moments, step(0));
    }
}
