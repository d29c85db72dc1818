//! Layer normalization and `SiLU`, row by row.

use super::{
    Level,
    buffer::{NewFloat, Sums, new_buffer, written, written_slice},
    simd::{Simd, vector_loop},
};
use rayon::prelude::*;

/// Elements of a task in the forward pass, about.
const BLOCK_ELEMENTS: usize = 1 << 14;
/// Least rows and most tasks of the backward pass, whose partial gradients of weight and bias are then
/// added in order.
const BACKWARD: (usize, usize) = (16, 64);

/// The operands: rows as wide as weight and bias.
#[derive(Clone, Copy)]
pub(crate) struct Operands<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) weight: &'a [f32],
    pub(crate) bias: &'a [f32],
    pub(crate) eps: f32,
}

/// The gradients of the operands.
pub(crate) struct Gradients {
    pub(crate) x: Vec<f32>,
    pub(crate) weight: Vec<f32>,
    pub(crate) bias: Vec<f32>,
}

/// `silu(h)` with `h = (x - mean) / sqrt(variance + eps) * weight + bias` per row.
pub(crate) fn forward(level: Level, operands: Operands<'_>) -> Vec<f32> {
    let Operands { x, weight, .. } = operands;
    let block = (BLOCK_ELEMENTS / weight.len()).max(1) * weight.len();
    let mut out = new_buffer(x.len());
    out.par_chunks_mut(block)
        .zip(x.par_chunks(block))
        .for_each(|(out, x)| rows_forward(level, Operands { x, ..operands }, out));
    // SAFETY: the chunks cover all rows.
    unsafe { written(out) }
}

/// The gradients from that of the result.
pub(crate) fn backward(level: Level, operands: Operands<'_>, grad: &[f32]) -> Gradients {
    let Operands { x, weight, .. } = operands;
    let size = weight.len();
    let (least_rows, most_tasks) = BACKWARD;
    let block = (x.len() / size).div_ceil(most_tasks).max(least_rows) * size;
    let mut x_grad = new_buffer(x.len());
    let partial: Vec<[Sums; 2]> = x_grad
        .par_chunks_mut(block)
        .zip(x.par_chunks(block))
        .zip(grad.par_chunks(block))
        .map(|((x_grad, x), grad)| {
            let mut sums = [size, size].map(Sums::zeros);
            let [weight_grad, bias_grad] = &mut sums;
            let operands = Operands { x, ..operands };
            rows_backward(level, operands, grad, x_grad, weight_grad, bias_grad);
            sums
        })
        .collect();
    let mut sums = [vec![0.0; size], vec![0.0; size]];
    for part in partial {
        for (sum, part) in sums.iter_mut().zip(part) {
            for (sum, term) in sum.iter_mut().zip(part.iter()) {
                *sum += term;
            }
        }
    }
    let [weight, bias] = sums;
    Gradients {
        // SAFETY: the chunks cover all rows.
        x: unsafe { written(x_grad) },
        weight,
        bias,
    }
}

/// Mean and `1 / sqrt(variance + eps)` of a row.
#[expect(
    clippy::inline_always,
    reason = "vector code must end up in the function that is compiled for its instructions"
)]
#[inline(always)]
fn moments<S: Simd>(s: S, x: &[f32], eps: f32) -> (f32, f32) {
    let size = x.len() as f32;
    let mut sum = s.splat(0.0);
    for i in (0..x.len()).step_by(S::LANES) {
        sum = s.add(sum, s.load(&x[i..]));
    }
    let mean = s.sum(sum) / size;
    let mut squares = s.splat(0.0);
    for i in (0..x.len()).step_by(S::LANES) {
        // Lanes behind the row are its mean, so that they add nothing.
        let deviation = s.sub(s.load_or(&x[i..], mean), s.splat(mean));
        squares = s.mul_add(deviation, deviation, squares);
    }
    (mean, 1.0 / (s.sum(squares) / size + eps).sqrt())
}

vector_loop! {
    fn rows_forward(s: S, operands: Operands<'_>, out: &mut [NewFloat]) {
        let Operands { x, weight, bias, eps } = operands;
        let size = weight.len();
        for (x, out) in x.chunks_exact(size).zip(out.chunks_exact_mut(size)) {
            let (mean, r) = moments(s, x, eps);
            let (mean, r) = (s.splat(mean), s.splat(r));
            for i in (0..size).step_by(S::LANES) {
                let n = s.mul(s.sub(s.load(&x[i..]), mean), r);
                let h = s.mul_add(n, s.load(&weight[i..]), s.load(&bias[i..]));
                s.store_new(&mut out[i..], s.mul(h, s.sigmoid(h)));
            }
        }
    }
}

vector_loop! {
    /// With `n` the normalized row, `h` as above and `g` the gradient of `h`: `g * n` is added to
    /// `weight_grad`, `g` to `bias_grad`, and with `d = g * weight` the row of `x_grad` is
    /// `r * (d - mean(d) - n * mean(d * n))`.
    fn rows_backward(
        s: S,
        operands: Operands<'_>,
        grad: &[f32],
        x_grad: &mut [NewFloat],
        weight_grad: &mut [f32],
        bias_grad: &mut [f32],
    ) {
        let Operands { x, weight, bias, eps } = operands;
        let size = weight.len();
        let one = s.splat(1.0);
        let rows = x.chunks_exact(size).zip(grad.chunks_exact(size));
        for ((x, grad), x_grad) in rows.zip(x_grad.chunks_exact_mut(size)) {
            let (mean, r) = moments(s, x, eps);
            let (mean, r) = (s.splat(mean), s.splat(r));
            let (mut sum, mut along) = (s.splat(0.0), s.splat(0.0));
            for i in (0..size).step_by(S::LANES) {
                let n = s.mul(s.sub(s.load(&x[i..]), mean), r);
                let h = s.mul_add(n, s.load(&weight[i..]), s.load(&bias[i..]));
                let sigmoid = s.sigmoid(h);
                let slope = s.mul_add(h, s.sub(one, sigmoid), one);
                let g = s.mul(s.load(&grad[i..]), s.mul(sigmoid, slope));
                let products = s.mul_add(g, n, s.load(&weight_grad[i..]));
                s.store(&mut weight_grad[i..], products);
                let sums = s.add(g, s.load(&bias_grad[i..]));
                s.store(&mut bias_grad[i..], sums);
                // Both factors are zero behind the row.
                let d = s.mul(g, s.load(&weight[i..]));
                sum = s.add(sum, d);
                along = s.mul_add(d, n, along);
                s.store_new(&mut x_grad[i..], d);
            }
            // SAFETY: the loop wrote the whole row.
            let x_grad = unsafe { written_slice(x_grad) };
            let inverse = 1.0 / size as f32;
            let sum = s.splat(s.sum(sum) * inverse);
            let along = s.splat(-(s.sum(along) * inverse));
            for i in (0..size).step_by(S::LANES) {
                let n = s.mul(s.sub(s.load(&x[i..]), mean), r);
                let d = s.sub(s.load(&x_grad[i..]), sum);
                s.store(&mut x_grad[i..], s.mul(r, s.mul_add(n, along, d)));
            }
        }
    }
}
