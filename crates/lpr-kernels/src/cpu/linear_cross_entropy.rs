//! The output projection with cross-entropy, in chunks of rows and tiles of the vocabulary.
//!
//! Only the logits of one chunk exist at a time, tile after tile, and without gradients only those
//! of one tile per task. The loss is a sum, so that its gradients are known as soon as the loss is:
//! they are made here and scaled later.

use super::{
    Level,
    buffer::{NewFloat, Shared, copy_to_new, new_buffer, written, written_slice},
    matrix::{Matrix, MatrixMut},
    simd::vector_loop,
};
use rayon::prelude::*;

/// Columns of a tile of the vocabulary.
const TILE: usize = 512;
/// Logits of a chunk, about; the rows follow from the vocabulary, within limits.
const CHUNK_LOGITS: usize = 1 << 22;
/// Least and most rows of a chunk.
const CHUNK_ROWS: (usize, usize) = (256, 1024);
/// Rows and columns of the hidden gradient that a task computes.
const GRAD_BLOCK: (usize, usize) = (128, 256);

/// The operands: `rows` pairs of a hidden state and a target, and the projection.
#[derive(Clone, Copy)]
pub(crate) struct Operands<'a> {
    pub(crate) hidden: usize,
    pub(crate) vocab: usize,
    /// `[rows, hidden]`
    pub(crate) hidden_states: &'a [f32],
    /// `[vocab, hidden]`
    pub(crate) weight: &'a [f32],
    /// The rows that count with their targets, all below `vocab`.
    pub(crate) targets: &'a [(usize, usize)],
}

/// The gradients of the loss.
pub(crate) struct Gradients {
    /// `[rows, hidden]`
    pub(crate) hidden_states: Vec<f32>,
    /// `[vocab, hidden]`
    pub(crate) weight: Vec<f32>,
}

/// What a tile knows of each row of a chunk.
#[derive(Clone, Copy)]
struct TileStatistics {
    /// The largest logit.
    max: f32,
    /// The sum of `exp(logit - max)`.
    sum: f32,
    /// The logit of the target if it is in the tile, else zero.
    target: f32,
}

/// The summed loss.
pub(crate) fn loss(level: Level, operands: Operands<'_>) -> f64 {
    let mut total = 0.0;
    for targets in operands.targets.chunks(chunk_rows(operands.vocab)) {
        let chunk = Chunk::new(operands, targets);
        let tiles = operands.weight.par_chunks(TILE * operands.hidden);
        let statistics: Vec<_> = tiles
            .enumerate()
            .map(|(tile, weight)| {
                let cols = weight.len() / operands.hidden;
                let mut logits = new_buffer(targets.len() * cols);
                chunk.exponentials(level, tile, weight, &mut logits)
            })
            .collect();
        total += chunk.normalizers(&statistics).1;
    }
    total
}

/// The summed loss and its gradients.
pub(crate) fn loss_and_gradients(
    level: Level,
    operands: Operands<'_>,
    num_rows: usize,
) -> (f64, Gradients) {
    let Operands { hidden, vocab, .. } = operands;
    let rows = chunk_rows(vocab).min(operands.targets.len());
    let mut logits = new_buffer(rows * vocab);
    let mut hidden_grad = vec![0.0; num_rows * hidden];
    let mut weight_grad = new_buffer(vocab * hidden);
    if operands.targets.is_empty() {
        weight_grad.fill(NewFloat::new(0.0));
    }
    let mut total = 0.0;
    for (index, targets) in operands.targets.chunks(rows.max(1)).enumerate() {
        let chunk = Chunk::new(operands, targets);
        let logits = &mut logits[..targets.len() * vocab];
        let statistics: Vec<_> = logits
            .par_chunks_mut(TILE * targets.len())
            .zip(operands.weight.par_chunks(TILE * hidden))
            .enumerate()
            .map(|(tile, (logits, weight))| chunk.exponentials(level, tile, weight, logits))
            .collect();
        let (normalizers, loss) = chunk.normalizers(&statistics);
        total += loss;
        // SAFETY: each tile was written by its task.
        let logits = unsafe { written_slice(logits) };
        logits
            .par_chunks_mut(TILE * targets.len())
            .zip(weight_grad.par_chunks_mut(TILE * hidden))
            .enumerate()
            .for_each(|(tile, (logits, weight_grad))| {
                chunk.softmax_gradient(level, tile, &statistics[tile], &normalizers, logits);
                let cols = weight_grad.len() / hidden;
                let lhs = Matrix::new(logits, targets.len(), cols).transposed();
                let rhs = Matrix::new(&chunk.hidden_states, targets.len(), hidden);
                let mut target = MatrixMut::new(weight_grad, cols, hidden);
                if index == 0 {
                    target.set_product(level, lhs, rhs);
                } else {
                    // SAFETY: the first chunk wrote all of it.
                    unsafe { target.add_product(level, lhs, rhs) };
                }
            });
        chunk.hidden_gradient(level, logits, &mut hidden_grad);
    }
    // SAFETY: the first chunk wrote every tile; without a chunk it was filled with zeros.
    let weight = unsafe { written(weight_grad) };
    let gradients = Gradients {
        hidden_states: hidden_grad,
        weight,
    };
    (total, gradients)
}

/// Rows of a chunk.
pub(crate) fn chunk_rows(vocab: usize) -> usize {
    (CHUNK_LOGITS / vocab.max(1)).clamp(CHUNK_ROWS.0, CHUNK_ROWS.1)
}

/// The rows that are worked on at the same time.
struct Chunk<'a> {
    operands: Operands<'a>,
    targets: &'a [(usize, usize)],
    /// `[targets, hidden]`
    hidden_states: Vec<f32>,
}

impl<'a> Chunk<'a> {
    fn new(operands: Operands<'a>, targets: &'a [(usize, usize)]) -> Self {
        let hidden = operands.hidden;
        let mut hidden_states = new_buffer(targets.len() * hidden);
        for (target, &(row, _)) in hidden_states.chunks_exact_mut(hidden).zip(targets) {
            copy_to_new(target, &operands.hidden_states[row * hidden..][..hidden]);
        }
        Self {
            operands,
            targets,
            // SAFETY: the loop wrote every row.
            hidden_states: unsafe { written(hidden_states) },
        }
    }

    /// Writes `exp(logit - max)` of a tile `[targets, cols]`, with the largest logit of each row in
    /// it.
    fn exponentials(
        &self,
        level: Level,
        tile: usize,
        weight: &[f32],
        logits: &mut [NewFloat],
    ) -> Vec<TileStatistics> {
        let (rows, hidden) = (self.targets.len(), self.operands.hidden);
        let cols = weight.len() / hidden;
        MatrixMut::new(logits, rows, cols).set_product(
            level,
            Matrix::new(&self.hidden_states, rows, hidden),
            Matrix::new(weight, cols, hidden).transposed(),
        );
        // SAFETY: the product wrote all of it.
        let logits = unsafe { written_slice(logits) };
        let rows = logits.chunks_exact_mut(cols).zip(self.targets);
        rows.map(|(row, &(_, target))| {
            let in_tile = target.checked_sub(tile * TILE);
            let target = in_tile.and_then(|t| row.get(t)).copied().unwrap_or(0.0);
            let max = largest(level, row);
            let sum = exp_and_sum(level, row, max);
            TileStatistics { max, sum, target }
        })
        .collect()
    }

    /// The largest logit and the inverse sum of exponentials of each row over all tiles, and the
    /// summed loss.
    fn normalizers(&self, tiles: &[Vec<TileStatistics>]) -> (Vec<(f32, f32)>, f64) {
        let mut loss = 0.0;
        let normalizers = (0..self.targets.len()).map(|row| {
            let of_row = || tiles.iter().map(|tile| tile[row]);
            // `f32::max` passes over a NaN, but the sum of its tile is one too.
            let max = of_row().fold(f32::NEG_INFINITY, |max, tile| max.max(tile.max));
            let terms = of_row().map(|t| f64::from(t.sum) * f64::from(t.max - max).exp());
            let sum: f64 = terms.sum();
            let target: f32 = of_row().map(|t| t.target).sum();
            loss += f64::from(max) + sum.ln() - f64::from(target);
            (max, (1.0 / sum) as f32)
        });
        (normalizers.collect(), loss)
    }

    /// Turns the exponentials of a tile into the gradient of the logits: softmax, less one at the
    /// target.
    fn softmax_gradient(
        &self,
        level: Level,
        tile: usize,
        statistics: &[TileStatistics],
        normalizers: &[(f32, f32)],
        logits: &mut [f32],
    ) {
        let rows = self.targets.len();
        let rows = logits.chunks_exact_mut(logits.len() / rows);
        let of_row = statistics.iter().zip(normalizers).zip(self.targets);
        for (row, ((tile_of_row, &(max, inverse_sum)), &(_, target))) in rows.zip(of_row) {
            scale(level, row, (tile_of_row.max - max).exp() * inverse_sum);
            let in_tile = target.checked_sub(tile * TILE);
            if let Some(probability) = in_tile.and_then(|t| row.get_mut(t)) {
                *probability -= 1.0;
            }
        }
    }

    /// Writes the rows of the hidden gradient that belong to this chunk, from the gradient of its
    /// logits.
    fn hidden_gradient(&self, level: Level, logit_grad: &[f32], hidden_grad: &mut [f32]) {
        let Operands { hidden, weight, .. } = self.operands;
        let rows = self.targets.len();
        let mut grad = new_buffer(rows * hidden);
        let shared = Shared::new(&mut grad);
        let (block_rows, block_cols) = GRAD_BLOCK;
        let (down, across) = (rows.div_ceil(block_rows), hidden.div_ceil(block_cols));
        (0..down * across).into_par_iter().for_each(|block| {
            let (row, col) = (block / across * block_rows, block % across * block_cols);
            let (num_rows, num_cols) = (block_rows.min(rows - row), block_cols.min(hidden - col));
            // SAFETY: no other task has this block.
            let mut target =
                unsafe { shared.matrix(row * hidden + col, [num_rows, num_cols], hidden) };
            target.clear();
            let tiles = logit_grad.chunks(TILE * rows);
            for (logit_grad, weight) in tiles.zip(weight.chunks(TILE * hidden)) {
                let cols = weight.len() / hidden;
                let lhs = Matrix::new(&logit_grad[row * cols..], num_rows, cols);
                let rhs = Matrix::strided(&weight[col..], cols, num_cols, hidden);
                // SAFETY: it was cleared above.
                unsafe { target.add_product(level, lhs, rhs) };
            }
        });
        // SAFETY: the blocks cover the matrix, and each was cleared at least.
        let grad = unsafe { written(grad) };
        for (grad, &(row, _)) in grad.chunks_exact(hidden).zip(self.targets) {
            hidden_grad[row * hidden..][..hidden].copy_from_slice(grad);
        }
    }
}

vector_loop! {
    /// The largest element.
    fn largest(s: S, row: &[f32]) -> f32 {
        let mut largest = s.splat(f32::NEG_INFINITY);
        for i in (0..row.len()).step_by(S::LANES) {
            largest = s.max(largest, s.load_or(&row[i..], f32::NEG_INFINITY));
        }
        s.largest(largest)
    }
}

vector_loop! {
    /// Replaces each element by `exp(element - max)`; the sum of these.
    fn exp_and_sum(s: S, row: &mut [f32], max: f32) -> f32 {
        let max = s.splat(max);
        let mut sum = s.splat(0.0);
        for i in (0..row.len()).step_by(S::LANES) {
            let e = s.exp(s.sub(s.load_or(&row[i..], f32::NEG_INFINITY), max));
            sum = s.add(sum, e);
            s.store(&mut row[i..], e);
        }
        s.sum(sum)
    }
}

vector_loop! {
    /// Multiplies each element by `factor`.
    fn scale(s: S, row: &mut [f32], factor: f32) {
        let factor = s.splat(factor);
        for i in (0..row.len()).step_by(S::LANES) {
            let scaled = s.mul(s.load(&row[i..]), factor);
            s.store(&mut row[i..], scaled);
        }
    }
}
