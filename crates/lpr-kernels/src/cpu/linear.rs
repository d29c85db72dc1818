//! A linear map: products over blocks of rows, and of inputs for the gradient of the weight.

use super::{
    Level,
    buffer::{Shared, new_buffer, written},
    matrix::Matrix,
    simd::vector_loop,
};
use rayon::prelude::*;

/// Rows of `x` of a task.
const BLOCK_ROWS: usize = 256;
/// Inputs, thus rows of the weight's gradient, of a task.
const BLOCK_INPUTS: usize = 70;
/// Columns of a result of a task.
const BLOCK_COLS: usize = 512;

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
    let mut product = parallel_product(level, operands.x(), operands.weight(), BLOCK_ROWS);
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
    /// Adds `other`, which is as long.
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
    let weight = operands.weight().transposed();
    let x = operands.x().transposed();
    (
        parallel_product(level, grad, weight, BLOCK_ROWS),
        parallel_product(level, x, grad, BLOCK_INPUTS),
    )
}

/// The product of two matrices, in parallel over blocks of `block_rows` rows and of columns.
pub(crate) fn parallel_product(
    level: Level,
    lhs: Matrix<'_>,
    rhs: Matrix<'_>,
    block_rows: usize,
) -> Vec<f32> {
    let ([rows, _], [_, cols]) = (lhs.dims(), rhs.dims());
    let mut product = new_buffer(rows * cols);
    let target = Shared::new(&mut product);
    let across = cols.div_ceil(BLOCK_COLS);
    let tasks = (0..rows.div_ceil(block_rows) * across).into_par_iter();
    tasks.with_max_len(1).for_each(|task| {
        let (row, col) = (task / across * block_rows, task % across * BLOCK_COLS);
        let block_rows = row..(row + block_rows).min(rows);
        let block_cols = col..(col + BLOCK_COLS).min(cols);
        let shape = [block_rows.len(), block_cols.len()];
        // SAFETY: no other task has this block.
        let mut target = unsafe { target.matrix(row * cols + col, shape, cols) };
        target.set_product(level, lhs.rows(block_rows), rhs.cols(block_cols));
    });
    // SAFETY: the blocks cover the product, and each was written.
    unsafe { written(product) }
}
