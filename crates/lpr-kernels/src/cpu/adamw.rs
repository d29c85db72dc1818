//! `AdamW` in one pass over a parameter.

use super::{
    Level,
    simd::vector_loop,
    tensor::{consecutive, floats, floats_mut, from_floats},
};
use burn::backend::flex::FlexTensor;
use rayon::prelude::*;
use std::mem::MaybeUninit;

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

/// A parameter or an average: where its new values go, and its old ones unless they are there.
pub(crate) struct Target<'a> {
    new: &'a mut [MaybeUninit<f32>],
    old: Option<&'a [f32]>,
}

impl<'a> Target<'a> {
    /// The old values are overwritten.
    pub(crate) fn in_place(values: &'a mut [f32]) -> Self {
        let new = std::ptr::from_mut(values) as *mut [MaybeUninit<f32>];
        Self {
            // SAFETY: the layout is the same, and nothing uninitialized is ever written.
            new: unsafe { &mut *new },
            old: None,
        }
    }

    /// The old values stay as they are.
    pub(crate) fn copy(old: &'a [f32], new: &'a mut [MaybeUninit<f32>]) -> Self {
        assert_eq!(new.len(), old.len(), "AdamW: room for as many values");
        Self {
            new,
            old: Some(old),
        }
    }

    fn parts(self) -> (&'a mut [MaybeUninit<f32>], Option<&'a [f32]>) {
        (self.new, self.old)
    }
}

/// A tensor to update: in place if nobody else holds its memory, else into new memory.
pub(crate) struct Buffer {
    tensor: FlexTensor,
    new: Option<Vec<f32>>,
}

impl Buffer {
    pub(crate) fn new(tensor: FlexTensor) -> Self {
        let tensor = consecutive(tensor);
        let length = tensor.layout().num_elements();
        let new = (!tensor.is_unique()).then(|| Vec::with_capacity(length));
        Self { tensor, new }
    }

    pub(crate) fn target(&mut self) -> Target<'_> {
        match &mut self.new {
            None => Target::in_place(floats_mut(&mut self.tensor)),
            Some(new) => {
                let old = floats(&self.tensor);
                Target::copy(old, &mut new.spare_capacity_mut()[..old.len()])
            }
        }
    }

    /// To be called after the kernel wrote every value.
    pub(crate) fn updated(self) -> FlexTensor {
        match self.new {
            None => self.tensor,
            Some(mut new) => {
                let shape = self.tensor.layout().shape();
                // SAFETY: the kernel initializes as many values as the old tensor has, for which
                // there is room.
                unsafe { new.set_len(self.tensor.layout().num_elements()) };
                from_floats(new, shape)
            }
        }
    }
}

/// Updates a parameter and its averages; afterwards all of their new values are initialized.
///
/// Old values are copied block by block, so that the update finds them in the cache.
pub(crate) fn update(
    level: Level,
    factors: &Factors,
    param: Target<'_>,
    grad: &[f32],
    exp_avg: Target<'_>,
    exp_avg_sq: Target<'_>,
) {
    let (param, old_param) = param.parts();
    let (exp_avg, old_avg) = exp_avg.parts();
    let (exp_avg_sq, old_avg_sq) = exp_avg_sq.parts();
    param
        .par_chunks_mut(BLOCK)
        .zip(grad.par_chunks(BLOCK))
        .zip(exp_avg.par_chunks_mut(BLOCK))
        .zip(exp_avg_sq.par_chunks_mut(BLOCK))
        .enumerate()
        .for_each(|(index, (((param, grad), exp_avg), exp_avg_sq))| {
            let param = with_old(param, old_param, index);
            let exp_avg = with_old(exp_avg, old_avg, index);
            let exp_avg_sq = with_old(exp_avg_sq, old_avg_sq, index);
            update_block(level, factors, param, grad, exp_avg, exp_avg_sq);
        });
}

/// A block of a [`Target`] with its old values in it.
fn with_old<'a>(
    block: &'a mut [MaybeUninit<f32>],
    old: Option<&[f32]>,
    index: usize,
) -> &'a mut [f32] {
    if let Some(old) = old {
        let start = index * BLOCK;
        block.write_copy_of_slice(&old[start..start + block.len()])
    } else {
        // SAFETY: made from initialized values by `Target::in_place`.
        unsafe { block.assume_init_mut() }
    }
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
