//! A linear map: products over blocks of rows and columns, and sums of rows for the gradient of the
//! weight.

use super::{
    Level,
    buffer::{Shared, new_buffer, written},
    matrix::Matrix,
    product::{BLOCK_COLS, Packed},
    simd::vector_loop,
};
use rayon::prelude::*;
use std::ops::Range;

/// Rows of a result of a task.
const BLOCK_ROWS: usize = 256;
/// Elements of a weight's gradient whose parts a task adds.
const BLOCK_SUMS: usize = 1 << 13;
/// Least rows whose part of the weight's gradient is a product of its own, and the number of tasks for
/// which there are such parts.
const SPLIT: (usize, usize) = (512, 4);

/// The operands of the map, neither axis of the weight empty.
#[derive(Clone, Copy)]
pub(crate) struct Operands<'a> {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    /// `[rows, inputs]`
    pub(crate) x: &'a [f32],
    /// `[inputs, outputs]`
    pub(crate) weight: &'a [f32],
}

impl<'a> Operands<'a> {
    fn x(self) -> Matrix<'a> {
        Matrix::new(self.x, self.x.len() / self.inputs, self.inputs)
    }

    fn weight(self) -> Matrix<'a> {
        Matrix::new(self.weight, self.inputs, self.outputs)
    }
}

/// `x W + b`, `[rows, outputs]`; no bias is zero.
pub(crate) fn forward(level: Level, operands: Operands<'_>, bias: Option<&[f32]>) -> Vec<f32> {
    let mut product = by_rows(level, operands.x(), operands.weight());
    if let Some(bias) = bias {
        let blocks = product.par_chunks_mut(BLOCK_ROWS * operands.outputs);
        blocks.for_each(|rows| {
            for row in rows.chunks_exact_mut(operands.outputs) {
                add(level, row, bias);
            }
        });
    }
    product
}

/// The sum of the rows, each `width` wide: of blocks of rows, then of these in order.
pub(crate) fn sum_of_rows(level: Level, rows: &[f32], width: usize) -> Vec<f32> {
    let sum = |rows: &[f32]| {
        let mut sum = vec![0.0; width];
        for row in rows.chunks_exact(width) {
            add(level, &mut sum, row);
        }
        sum
    };
    let blocks: Vec<_> = rows.par_chunks(BLOCK_ROWS * width).map(sum).collect();
    sum(&blocks.concat())
}

vector_loop! {
    /// Adds the first elements of `other`, which is as long or longer.
    fn add(s: S, sum: &mut [f32], other: &[f32]) {
        for i in (0..sum.len()).step_by(S::LANES) {
            let sums = s.add(s.load(&sum[i..]), s.load(&other[i..]));
            s.store(&mut sum[i..], sums);
        }
    }
}

/// The gradients of `x` and the weight from that of the result `[rows, outputs]`.
pub(crate) fn backward(level: Level, operands: Operands<'_>, grad: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let grad = Matrix::new(grad, grad.len() / operands.outputs, operands.outputs);
    (
        by_rows(level, grad, operands.weight().transposed()),
        sum_over_rows(level, operands.x(), grad),
    )
}

/// The product of two matrices, in parallel over blocks of rows and columns.
fn by_rows(level: Level, lhs: Matrix<'_>, rhs: Matrix<'_>) -> Vec<f32> {
    let ([rows, _], [_, cols]) = (lhs.dims(), rhs.dims());
    let rhs = Packed::rhs(level, rhs);
    let mut product = new_buffer(rows * cols);
    let target = Shared::new(&mut product);
    let across = cols.div_ceil(BLOCK_COLS);
    let tasks = (0..rows.div_ceil(BLOCK_ROWS) * across).into_par_iter();
    tasks.with_max_len(1).for_each(|task| {
        let (block_rows, block_cols) = block(task, [rows, cols]);
        let shape = [block_rows.len(), block_cols.len()];
        let offset = block_rows.start * cols + block_cols.start;
        // SAFETY: no other task has this block.
        let mut target = unsafe { target.matrix(offset, shape, cols) };
        target.set_product(level, lhs.rows(block_rows), rhs.cols(block_cols));
    });
    // SAFETY: the blocks cover the product, and each was written.
    unsafe { written(product) }
}

/// The rows and columns of a block of a result.
fn block(index: usize, [rows, cols]: [usize; 2]) -> (Range<usize>, Range<usize>) {
    let across = cols.div_ceil(BLOCK_COLS);
    let (row, col) = (index / across * BLOCK_ROWS, index % across * BLOCK_COLS);
    (
        row..(row + BLOCK_ROWS).min(rows),
        col..(col + BLOCK_COLS).min(cols),
    )
}

/// The sum over rows of the products of each element of `x` with each of `grad`, in parallel over
/// blocks of the result and, if these are few, parts of the rows, which are then added in order.
fn sum_over_rows(level: Level, x: Matrix<'_>, grad: Matrix<'_>) -> Vec<f32> {
    let ([rows, inputs], [_, outputs]) = (x.dims(), grad.dims());
    let size = inputs * outputs;
    let blocks = inputs.div_ceil(BLOCK_ROWS) * outputs.div_ceil(BLOCK_COLS);
    let (least_rows, tasks) = SPLIT;
    let parts = tasks.div_ceil(blocks).min(rows / least_rows).max(1);
    let mut sums = new_buffer(parts * size);
    let target = Shared::new(&mut sums);
    let tasks = (0..parts * blocks).into_par_iter();
    tasks.with_max_len(1).for_each(|task| {
        let (part, index) = (task / blocks, task % blocks);
        let rows = part * rows / parts..(part + 1) * rows / parts;
        let (block_inputs, block_outputs) = block(index, [inputs, outputs]);
        let shape = [block_inputs.len(), block_outputs.len()];
        let offset = part * size + block_inputs.start * outputs + block_outputs.start;
        // SAFETY: no other task has this block of this part.
        let mut target = unsafe { target.matrix(offset, shape, outputs) };
        let x = x.rows(rows.clone()).cols(block_inputs).transposed();
        target.set_product(level, x, grad.rows(rows).cols(block_outputs));
    });
    // SAFETY: the blocks cover each part, and each was written.
    let mut sums = unsafe { written(sums) };
    let (sum, terms) = sums.split_at_mut(size);
    let parts = sum.par_chunks_mut(BLOCK_SUMS).enumerate();
    parts.for_each(|(index, sum)| {
        for term in terms.chunks_exact(size) {
            add(level, sum, &term[index * BLOCK_SUMS..]);
        }
    });
    sums.truncate(size);
    sums.shrink_to_fit();
    sums
}
