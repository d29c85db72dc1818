//! The columns of the largest scores, row by row.

use rayon::prelude::*;

/// Scores of a task, about.
const BLOCK: usize = 1 << 13;

/// The columns of the `k` largest scores of each row, the largest first, the first of equals first.
pub(crate) fn indices(scores: &[f32], columns: usize, k: usize) -> Vec<i64> {
    let rows = (BLOCK / columns).max(1);
    let mut indices = vec![0; scores.len() / columns * k];
    indices
        .par_chunks_mut(rows * k)
        .zip(scores.par_chunks(rows * columns))
        .for_each(|(indices, scores)| {
            let mut largest = vec![0; k];
            let rows = scores.chunks_exact(columns);
            for (indices, row) in indices.chunks_exact_mut(k).zip(rows) {
                choose(row, &mut largest, indices);
            }
        });
    indices
}

/// Goes through a row and keeps the largest scores so far, in order.
fn choose(row: &[f32], largest: &mut [i32], indices: &mut [i64]) {
    let last = largest.len() - 1;
    let mut count = 0;
    for (column, &score) in row.iter().enumerate() {
        let key = key(score);
        if count > last && key <= largest[last] {
            continue;
        }
        let mut place = count.min(last);
        while place > 0 && key > largest[place - 1] {
            largest[place] = largest[place - 1];
            indices[place] = indices[place - 1];
            place -= 1;
        }
        largest[place] = key;
        indices[place] = column as i64;
        count += 1;
    }
}

/// An integer in the order of [`f32::total_cmp`].
fn key(score: f32) -> i32 {
    let bits = score.to_bits() as i32;
    bits ^ (((bits >> 31) as u32) >> 1) as i32
}
