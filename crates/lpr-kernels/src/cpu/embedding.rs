//! Rows of a table by number.

use super::{
    Level,
    buffer::{copy_to_new, new_buffer, written, written_slice},
    linear::add,
};
use rayon::prelude::*;

/// Rows of a task in the forward pass.
const BLOCK_ROWS: usize = 64;
/// Tasks of the backward pass, each with its part of the table.
const BACKWARD_TASKS: usize = 64;

/// The row of `table` `[rows, width]` for each id.
///
/// # Panics
///
/// If there is no such row.
pub(crate) fn forward(table: &[f32], width: usize, ids: &[i64]) -> Vec<f32> {
    let rows = table.len() / width;
    let mut out = new_buffer(ids.len() * width);
    out.par_chunks_mut(BLOCK_ROWS * width)
        .zip(ids.par_chunks(BLOCK_ROWS))
        .for_each(|(out, ids)| {
            for (out, &id) in out.chunks_exact_mut(width).zip(ids) {
                let row = usize::try_from(id).ok().filter(|&row| row < rows);
                let row = row.unwrap_or_else(|| panic!("embedding: id {id} of {rows} rows"));
                copy_to_new(out, &table[row * width..][..width]);
            }
        });
    // SAFETY: the chunks cover all ids.
    unsafe { written(out) }
}

/// The gradient of a table of so many rows, from that of the result `[ids, width]`: per row the sum
/// over its places in their order.
pub(crate) fn backward(
    level: Level,
    rows: usize,
    width: usize,
    ids: &[i64],
    grad: &[f32],
) -> Vec<f32> {
    let mut sums = new_buffer(rows * width);
    let rows_per_task = rows.div_ceil(BACKWARD_TASKS).max(1);
    let tasks = sums.par_chunks_mut(rows_per_task * width).enumerate();
    tasks.for_each(|(task, sums)| {
        sums.fill(std::mem::MaybeUninit::new(0.0));
        // SAFETY: all of it was just written.
        let sums = unsafe { written_slice(sums) };
        let first = task * rows_per_task;
        let mine = first as i64..(first + sums.len() / width) as i64;
        for (id, grad) in ids.iter().zip(grad.chunks_exact(width)) {
            if mine.contains(id) {
                let start = (*id as usize - first) * width;
                add(level, &mut sums[start..start + width], grad);
            }
        }
    });
    // SAFETY: the chunks cover the table.
    unsafe { written(sums) }
}
