//! Root-mean-square normalization, row by row.

use super::{
    Level,
    buffer::{NewFloat, Sums, new_buffer, written},
    simd::vector_loop,
};
use rayon::prelude::*;

/// Elements of a task in the forward pass, about.
const BLOCK_ELEMENTS: usize = 1 << 14;
/// Least rows and most tasks of the backward pass, whose partial weight gradients are then added in
/// order.
const BACKWARD: (usize, usize) = (16, 64);

/// `x / sqrt(mean(x^2) + eps) * weight` per row of `x` `[rows, size]`.
pub(crate) fn forward(level: Level, x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let size = weight.len();
    let block = (BLOCK_ELEMENTS / size).max(1) * size;
    let mut out = new_buffer(x.len());
    out.par_chunks_mut(block)
        .zip(x.par_chunks(block))
        .for_each(|(out, x)| normalize_rows(level, x, weight, eps, out));
    // SAFETY: the chunks cover all rows.
    unsafe { written(out) }
}

/// The gradients of `x` and `weight`.
pub(crate) fn backward(
    level: Level,
    x: &[f32],
    weight: &[f32],
    eps: f32,
    grad: &[f32],
) -> (Vec<f32>, Vec<f32>) {
    let size = weight.len();
    let (least_rows, most_tasks) = BACKWARD;
    let block = (x.len() / size).div_ceil(most_tasks).max(least_rows) * size;
    let mut x_grad = new_buffer(x.len());
    let partial: Vec<Sums> = x_grad
        .par_chunks_mut(block)
        .zip(x.par_chunks(block))
        .zip(grad.par_chunks(block))
        .map(|((x_grad, x), grad)| {
            let mut weight_grad = Sums::zeros(size);
            normalize_rows_backward(level, x, weight, eps, grad, x_grad, &mut weight_grad);
            weight_grad
        })
        .collect();
    let mut weight_grad = vec![0.0; size];
    for part in partial {
        for (sum, term) in weight_grad.iter_mut().zip(part.iter()) {
            *sum += term;
        }
    }
    // SAFETY: the chunks cover all rows.
    (unsafe { written(x_grad) }, weight_grad)
}

vector_loop! {
    fn normalize_rows(s: S, x: &[f32], weight: &[f32], eps: f32, out: &mut [NewFloat]) {
        let size = weight.len();
        for (x, out) in x.chunks_exact(size).zip(out.chunks_exact_mut(size)) {
            let mut squares = s.splat(0.0);
            for i in (0..size).step_by(S::LANES) {
                let v = s.load(&x[i..]);
                squares = s.mul_add(v, v, squares);
            }
            let inverse = s.splat(1.0 / (s.sum(squares) / size as f32 + eps).sqrt());
            for i in (0..size).step_by(S::LANES) {
                let normalized = s.mul(s.load(&x[i..]), inverse);
                s.store_new(&mut out[i..], s.mul(normalized, s.load(&weight[i..])));
            }
        }
    }
}

vector_loop! {
    /// With `r = 1 / sqrt(mean(x^2) + eps)` and `h = grad * weight` per row: `x_grad = r h - x r^3
    /// mean(h x)`, and `grad * x * r` is added to `weight_grad`.
    fn normalize_rows_backward(
        s: S,
        x: &[f32],
        weight: &[f32],
        eps: f32,
        grad: &[f32],
        x_grad: &mut [NewFloat],
        weight_grad: &mut [f32],
    ) {
        let size = weight.len();
        let rows = x.chunks_exact(size).zip(grad.chunks_exact(size));
        for ((x, grad), x_grad) in rows.zip(x_grad.chunks_exact_mut(size)) {
            let (mut squares, mut products) = (s.splat(0.0), s.splat(0.0));
            for i in (0..size).step_by(S::LANES) {
                let v = s.load(&x[i..]);
                let h = s.mul(s.load(&grad[i..]), s.load(&weight[i..]));
                squares = s.mul_add(v, v, squares);
                products = s.mul_add(h, v, products);
            }
            let r = 1.0 / (s.sum(squares) / size as f32 + eps).sqrt();
            let along = s.splat(-s.sum(products) * r * r * r / size as f32);
            let r = s.splat(r);
            for i in (0..size).step_by(S::LANES) {
                let (v, d) = (s.load(&x[i..]), s.load(&grad[i..]));
                let h = s.mul(d, s.load(&weight[i..]));
                s.store_new(&mut x_grad[i..], s.mul_add(v, along, s.mul(h, r)));
                let sum = s.mul_add(d, s.mul(v, r), s.load(&weight_grad[i..]));
                s.store(&mut weight_grad[i..], sum);
            }
        }
    }
}
