//! Softmax, row by row, and the exponential function.

use super::{
    Level,
    buffer::{NewFloat, new_buffer, written},
    simd::vector_loop,
};
use rayon::prelude::*;

/// Elements of a task, about.
const BLOCK_ELEMENTS: usize = 1 << 13;

/// The softmax of each row of `x` `[rows, width]`.
pub(crate) fn softmax(level: Level, x: &[f32], width: usize) -> Vec<f32> {
    let block = (BLOCK_ELEMENTS / width).max(1) * width;
    let mut out = new_buffer(x.len());
    out.par_chunks_mut(block)
        .zip(x.par_chunks(block))
        .for_each(|(out, x)| softmax_of_rows(level, x, width, out));
    // SAFETY: the chunks cover all rows.
    unsafe { written(out) }
}

/// The gradient of `x` from the results `probs` and their gradient, `[rows, width]` each.
pub(crate) fn softmax_backward(
    level: Level,
    probs: &[f32],
    width: usize,
    grad: &[f32],
) -> Vec<f32> {
    let block = (BLOCK_ELEMENTS / width).max(1) * width;
    let mut x_grad = new_buffer(probs.len());
    x_grad
        .par_chunks_mut(block)
        .zip(probs.par_chunks(block))
        .zip(grad.par_chunks(block))
        .for_each(|((x_grad, probs), grad)| gradient_of_rows(level, probs, width, grad, x_grad));
    // SAFETY: the chunks cover all rows.
    unsafe { written(x_grad) }
}

/// `exp(x)` of each element.
pub(crate) fn exp(level: Level, x: &[f32]) -> Vec<f32> {
    let mut out = new_buffer(x.len());
    out.par_chunks_mut(BLOCK_ELEMENTS)
        .zip(x.par_chunks(BLOCK_ELEMENTS))
        .for_each(|(out, x)| exp_of_each(level, x, out));
    // SAFETY: the chunks cover all elements.
    unsafe { written(out) }
}

/// The products of the elements of `a` and `b`, which have the same length.
pub(crate) fn product(level: Level, a: &[f32], b: &[f32]) -> Vec<f32> {
    let mut out = new_buffer(a.len());
    out.par_chunks_mut(BLOCK_ELEMENTS)
        .zip(a.par_chunks(BLOCK_ELEMENTS))
        .zip(b.par_chunks(BLOCK_ELEMENTS))
        .for_each(|((out, a), b)| product_of_each(level, a, b, out));
    // SAFETY: the chunks cover all elements.
    unsafe { written(out) }
}

vector_loop! {
    fn softmax_of_rows(s: S, x: &[f32], width: usize, out: &mut [NewFloat]) {
        for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            let mut largest = s.splat(f32::NEG_INFINITY);
            for i in (0..width).step_by(S::LANES) {
                largest = s.max(largest, s.load_or(&x[i..], f32::NEG_INFINITY));
            }
            let largest = s.splat(s.largest(largest));
            let mut sum = s.splat(0.0);
            for i in (0..width).step_by(S::LANES) {
                let e = s.exp(s.sub(s.load_or(&x[i..], f32::NEG_INFINITY), largest));
                sum = s.add(sum, e);
                s.store_new(&mut out[i..], e);
            }
            let inverse = s.splat(1.0 / s.sum(sum));
            // SAFETY: the loop above wrote the whole row.
            let out = unsafe { super::buffer::written_slice(out) };
            for i in (0..width).step_by(S::LANES) {
                let p = s.mul(s.load(&out[i..]), inverse);
                s.store(&mut out[i..], p);
            }
        }
    }
}

vector_loop! {
    /// `p * (d - sum(p * d))` per row of results `p` and their gradients `d`.
    fn gradient_of_rows(
        s: S,
        probs: &[f32],
        width: usize,
        grad: &[f32],
        x_grad: &mut [NewFloat],
    ) {
        let rows = probs.chunks_exact(width).zip(grad.chunks_exact(width));
        for ((probs, grad), x_grad) in rows.zip(x_grad.chunks_exact_mut(width)) {
            let mut mean = s.splat(0.0);
            for i in (0..width).step_by(S::LANES) {
                mean = s.mul_add(s.load(&probs[i..]), s.load(&grad[i..]), mean);
            }
            let mean = s.splat(s.sum(mean));
            for i in (0..width).step_by(S::LANES) {
                let d = s.sub(s.load(&grad[i..]), mean);
                s.store_new(&mut x_grad[i..], s.mul(s.load(&probs[i..]), d));
            }
        }
    }
}

vector_loop! {
    fn exp_of_each(s: S, x: &[f32], out: &mut [NewFloat]) {
        for i in (0..x.len()).step_by(S::LANES) {
            s.store_new(&mut out[i..], s.exp(s.load(&x[i..])));
        }
    }
}

vector_loop! {
    fn product_of_each(s: S, a: &[f32], b: &[f32], out: &mut [NewFloat]) {
        for i in (0..a.len()).step_by(S::LANES) {
            s.store_new(&mut out[i..], s.mul(s.load(&a[i..]), s.load(&b[i..])));
        }
    }
}
