//! Rotary position embedding, position by position.

use super::{
    Level,
    buffer::{NewFloat, new_buffer, written},
    simd::vector_loop,
};
use rayon::prelude::*;

/// Elements of a task, about.
const BLOCK_ELEMENTS: usize = 1 << 14;

/// The angles of all positions.
#[derive(Clone, Copy)]
pub(crate) struct Angles<'a> {
    pub(crate) half: usize,
    /// `[batch or 1, seq, half]`
    pub(crate) cos: &'a [f32],
    /// `[batch or 1, seq, half]`
    pub(crate) sin: &'a [f32],
}

/// Rotates the heads of `x` `[batch, seq, heads, 2 * half]`; backwards if `inverse`.
pub(crate) fn rotate(
    level: Level,
    x: &[f32],
    heads: usize,
    angles: Angles<'_>,
    inverse: bool,
) -> Vec<f32> {
    let width = heads * 2 * angles.half;
    let block = (BLOCK_ELEMENTS / width).max(1);
    let mut out = new_buffer(x.len());
    out.par_chunks_mut(block * width)
        .zip(x.par_chunks(block * width))
        .enumerate()
        .for_each(|(index, (out, x))| {
            let positions = x.chunks_exact(width).zip(out.chunks_exact_mut(width));
            for (position, (x, out)) in positions.enumerate() {
                // A table without a batch axis repeats for every row of the batch.
                let start = (index * block + position) * angles.half % angles.cos.len();
                let at = start..start + angles.half;
                let (cos, sin) = (&angles.cos[at.clone()], &angles.sin[at]);
                rotate_heads(level, x, cos, sin, inverse, out);
            }
        });
    // SAFETY: the chunks cover all positions.
    unsafe { written(out) }
}

vector_loop! {
    /// Rotates the consecutive heads of one position.
    fn rotate_heads(
        s: S,
        x: &[f32],
        cos: &[f32],
        sin: &[f32],
        inverse: bool,
        out: &mut [NewFloat],
    ) {
        let half = cos.len();
        let sign = s.splat(if inverse { -1.0 } else { 1.0 });
        for (x, out) in x.chunks_exact(2 * half).zip(out.chunks_exact_mut(2 * half)) {
            let (x1, x2) = x.split_at(half);
            let (out1, out2) = out.split_at_mut(half);
            for i in (0..half).step_by(S::LANES) {
                let (a, b) = (s.load(&x1[i..]), s.load(&x2[i..]));
                let (cos, sin) = (s.load(&cos[i..]), s.mul(s.load(&sin[i..]), sign));
                s.store_new(&mut out1[i..], s.sub(s.mul(a, cos), s.mul(b, sin)));
                s.store_new(&mut out2[i..], s.mul_add(b, cos, s.mul(a, sin)));
            }
        }
    }
}
