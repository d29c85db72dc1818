//! `AdamW` in one pass over a parameter.

use super::{Level, simd::vector_loop};
use rayon::prelude::*;

/// Elements of a task.
const BLOCK: usize = 1 << 15;

/// The scalars of one step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Factors {
    /// Of the gradient.
    pub(crate) grad_scale: f64,
    /// `1 - learning_rate * weight_decay`
    pub(crate) decay: f64,
    /// `1 - beta1`
    pub(crate) one_minus_beta1: f64,
    /// `beta2`
    pub(crate) beta2: f64,
    /// `1 - beta2`
    pub(crate) one_minus_beta2: f64,
    /// `learning_rate / (1 - beta1^step)`
    pub(crate) step_size: f64,
    /// `sqrt(1 - beta2^step)`
    pub(crate) root_correction2: f64,
    /// Added to the root of the second average.
    pub(crate) eps: f64,
}

/// Updates a parameter and its averages in place.
pub(crate) fn update(
    level: Level,
    factors: &Factors,
    param: &mut [f32],
    grad: &[f32],
    exp_avg: &mut [f32],
    exp_avg_sq: &mut [f32],
) {
    param
        .par_chunks_mut(BLOCK)
        .zip(grad.par_chunks(BLOCK))
        .zip(exp_avg.par_chunks_mut(BLOCK))
        .zip(exp_avg_sq.par_chunks_mut(BLOCK))
        .for_each(|(((param, grad), exp_avg), exp_avg_sq)| {
            update_block(level, factors, param, grad, exp_avg, exp_avg_sq);
        });
}

vector_loop! {
    fn update_block(
        s: S,
        factors: &Factors,
        param: &mut [f32],
        grad: &[f32],
        exp_avg: &mut [f32],
        exp_avg_sq: &mut [f32],
    ) {
        let c = |factor: f64| s.splat(factor as f32);
        let grad_scale = c(factors.grad_scale);
        let (decay, eps) = (c(factors.decay), c(factors.eps));
        let (one_minus_beta1, beta2) = (c(factors.one_minus_beta1), c(factors.beta2));
        let (one_minus_beta2, step_size) = (c(factors.one_minus_beta2), c(factors.step_size));
        let root_correction2 = c(factors.root_correction2);
        for i in (0..param.len()).step_by(S::LANES) {
            let (p, g) = (s.load(&param[i..]), s.mul(s.load(&grad[i..]), grad_scale));
            let (m, v) = (s.load(&exp_avg[i..]), s.load(&exp_avg_sq[i..]));
            let m = s.mul_add(s.sub(g, m), one_minus_beta1, m);
            let v = s.mul_add(s.mul(g, g), one_minus_beta2, s.mul(v, beta2));
            let denominator = s.add(s.div(s.sqrt(v), root_correction2), eps);
            let step = s.mul(step_size, s.div(m, denominator));
            s.store(&mut exp_avg[i..], m);
            s.store(&mut exp_avg_sq[i..], v);
            s.store(&mut param[i..], s.sub(s.mul(p, decay), step));
        }
    }
}
