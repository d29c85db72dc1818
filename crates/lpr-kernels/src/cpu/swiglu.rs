//! The gated activation of `SwiGLU`.

use super::{
    Level,
    buffer::{NewFloat, new_buffer, written},
    simd::vector_loop,
};
use rayon::prelude::*;

/// Elements of a task.
const BLOCK: usize = 1 << 14;

/// `silu(gate) * up`, elementwise.
pub(crate) fn forward(level: Level, gate: &[f32], up: &[f32]) -> Vec<f32> {
    let mut out = new_buffer(gate.len());
    out.par_chunks_mut(BLOCK)
        .zip(gate.par_chunks(BLOCK))
        .zip(up.par_chunks(BLOCK))
        .for_each(|((out, gate), up)| silu_mul(level, gate, up, out));
    // SAFETY: the chunks cover all elements.
    unsafe { written(out) }
}

/// The gradients of `gate` and `up`.
pub(crate) fn backward(
    level: Level,
    gate: &[f32],
    up: &[f32],
    grad: &[f32],
) -> (Vec<f32>, Vec<f32>) {
    let (mut gate_grad, mut up_grad) = (new_buffer(gate.len()), new_buffer(up.len()));
    gate_grad
        .par_chunks_mut(BLOCK)
        .zip(up_grad.par_chunks_mut(BLOCK))
        .zip(gate.par_chunks(BLOCK).zip(up.par_chunks(BLOCK)))
        .zip(grad.par_chunks(BLOCK))
        .for_each(|(((gate_grad, up_grad), (gate, up)), grad)| {
            silu_mul_backward(level, gate, up, grad, gate_grad, up_grad);
        });
    // SAFETY: the chunks cover all elements.
    unsafe { (written(gate_grad), written(up_grad)) }
}

vector_loop! {
    fn silu_mul(s: S, gate: &[f32], up: &[f32], out: &mut [NewFloat]) {
        for i in (0..gate.len()).step_by(S::LANES) {
            let (g, u) = (s.load(&gate[i..]), s.load(&up[i..]));
            s.store_new(&mut out[i..], s.mul(s.mul(g, s.sigmoid(g)), u));
        }
    }
}

vector_loop! {
    fn silu_mul_backward(
        s: S,
        gate: &[f32],
        up: &[f32],
        grad: &[f32],
        gate_grad: &mut [NewFloat],
        up_grad: &mut [NewFloat],
    ) {
        let one = s.splat(1.0);
        for i in (0..gate.len()).step_by(S::LANES) {
            let (g, u, d) = (s.load(&gate[i..]), s.load(&up[i..]), s.load(&grad[i..]));
            let sigmoid = s.sigmoid(g);
            let silu = s.mul(g, sigmoid);
            // silu'(g) = sigmoid + silu * (1 - sigmoid)
            let slope = s.mul_add(silu, s.sub(one, sigmoid), sigmoid);
            s.store_new(&mut gate_grad[i..], s.mul(s.mul(d, u), slope));
            s.store_new(&mut up_grad[i..], s.mul(d, silu));
        }
    }
}

vector_loop! {
    /// Per row of `gate_up` `[rows, 2 * width]`: `out = weight * silu(gate) * up`.
    fn weighted_swiglu(s: S, gate_up: &[f32], weights: &[f32], out: &mut [NewFloat]) {
        let width = out.len() / weights.len();
        let rows = gate_up.chunks_exact(2 * width).zip(out.chunks_exact_mut(width));
        for ((gate_up, out), &weight) in rows.zip(weights) {
            let (gate, up) = gate_up.split_at(width);
            let weight = s.splat(weight);
            for i in (0..width).step_by(S::LANES) {
                let (g, u) = (s.load(&gate[i..]), s.load(&up[i..]));
                let silu = s.mul(g, s.sigmoid(g));
                s.store_new(&mut out[i..], s.mul(s.mul(silu, u), weight));
            }
        }
    }
}

vector_loop! {
    /// Backward of [`weighted_swiglu`] per row, given the gradient `grad` `[rows, width]` of its
    /// result: `gate_up` becomes its own gradient, `out` the result itself and `weight_grads` the
    /// gradient of the weights.
    fn weighted_swiglu_backward(
        s: S,
        gate_up: &mut [f32],
        grad: &[f32],
        weights: &[f32],
        out: &mut [NewFloat],
        weight_grads: &mut [NewFloat],
    ) {
        let width = grad.len() / weights.len();
        let one = s.splat(1.0);
        let inputs = gate_up.chunks_exact_mut(2 * width).zip(grad.chunks_exact(width)).zip(weights);
        let outputs = out.chunks_exact_mut(width).zip(weight_grads);
        for (((gate_up, grad), &weight), (out, weight_grad)) in inputs.zip(outputs) {
            let (gate, up) = gate_up.split_at_mut(width);
            let weight = s.splat(weight);
            let mut sum = s.splat(0.0);
            for i in (0..width).step_by(S::LANES) {
                let (g, u, d) = (s.load(&gate[i..]), s.load(&up[i..]), s.load(&grad[i..]));
                let sigmoid = s.sigmoid(g);
                let silu = s.mul(g, sigmoid);
                let activated = s.mul(silu, u);
                sum = s.mul_add(activated, d, sum);
                s.store_new(&mut out[i..], s.mul(activated, weight));
                let d = s.mul(d, weight);
                // silu'(g) = sigmoid + silu * (1 - sigmoid)
                let slope = s.mul_add(silu, s.sub(one, sigmoid), sigmoid);
                s.store(&mut gate[i..], s.mul(s.mul(d, u), slope));
                s.store(&mut up[i..], s.mul(d, silu));
            }
            weight_grad.write(s.sum(sum));
        }
    }
}
