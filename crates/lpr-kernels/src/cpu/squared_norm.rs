//! The sum of squares, in `f64`.

use super::{Level, simd::vector_loop};
use rayon::prelude::*;

/// Elements of a task.
const BLOCK: usize = 1 << 16;
/// Sums kept side by side, whatever the instruction set, so that the result is the same bits on all
/// of them.
const SUMS: usize = 16;

/// The sum of squares of all elements.
pub(crate) fn squared_norm(level: Level, x: &[f32]) -> f64 {
    let partial: Vec<f64> = x
        .par_chunks(BLOCK)
        .map(|block| sum_of_squares(level, block))
        .collect();
    partial.into_iter().sum()
}

vector_loop! {
    fn sum_of_squares(_s: S, x: &[f32]) -> f64 {
        let mut sums = [0.0; SUMS];
        let mut blocks = x.chunks_exact(SUMS);
        for block in &mut blocks {
            for (sum, &value) in sums.iter_mut().zip(block) {
                *sum += f64::from(value) * f64::from(value);
            }
        }
        for (sum, &value) in sums.iter_mut().zip(blocks.remainder()) {
            *sum += f64::from(value) * f64::from(value);
        }
        sums.into_iter().sum()
    }
}
