//! The output projection with cross-entropy, in chunks of rows and tiles of the vocabulary.
//!
//! Only the logits of one chunk exist at a time, tile after tile, and without gradients only those
//! of one tile per task. The loss is a sum, so that its gradients are known as soon as the loss is:
//! they are made here and scaled later, both from the logits of a tile while these are near.

use super::{
    Level,
    buffer::{NewFloat, copy_to_new, new_buffer, written, written_slice},
    linear::add,
    matrix::{Matrix, MatrixMut},
    product::Packed,
    simd::vector_loop,
};
use rayon::prelude::*;

/// Columns of a tile of the vocabulary.
const TILE: usize = 256;
/// Most parts of the vocabulary. Each is a task and has a hidden gradient of its own, and these are then
/// added in order.
const MOST_PARTS: usize = 16;
/// Logits of a chunk, about; the rows follow from the vocabulary, within limits.
const CHUNK_LOGITS: usize = 1 << 22;
/// Least and most rows of a chunk.
const CHUNK_ROWS: (usize, usize) = (256, 1024);
/// Rows of a task that adds, copies or normalizes.
const BLOCK_ROWS: usize = 64;

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
        let chunk = Chunk::new(level, operands, targets);
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
        let chunk = Chunk::new(level, operands, targets);
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
        let softmax = Softmax {
            statistics: &statistics,
            normalizers: &normalizers,
        };
        let target = (&mut weight_grad[..], index == 0);
        let grad = chunk.gradients(level, &softmax, logits, target);
        for (grad, &(row, _)) in grad.chunks_exact(hidden).zip(targets) {
            hidden_grad[row * hidden..][..hidden].copy_from_slice(grad);
        }
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
fn chunk_rows(vocab: usize) -> usize {
    (CHUNK_LOGITS / vocab.max(1)).clamp(CHUNK_ROWS.0, CHUNK_ROWS.1)
}

/// The parts of the vocabulary and the tiles of each.
fn parts(vocab: usize) -> (usize, usize) {
    let tiles = vocab.div_ceil(TILE);
    let tiles_of_part = tiles.div_ceil(MOST_PARTS).max(1);
    (tiles.div_ceil(tiles_of_part), tiles_of_part)
}

/// Floats that exist beside operands and gradients for so many rows: the logits of a chunk, its hidden
/// states three times, and a hidden gradient for each part of the vocabulary.
pub(crate) fn buffers(num_rows: usize, hidden: usize, vocab: usize) -> usize {
    let of_row = vocab.saturating_add(hidden.saturating_mul(3 + parts(vocab).0));
    chunk_rows(vocab).min(num_rows).saturating_mul(of_row)
}

/// The rows that are worked on at the same time.
struct Chunk<'a> {
    operands: Operands<'a>,
    targets: &'a [(usize, usize)],
    /// `[targets, hidden]`
    hidden_states: Vec<f32>,
    /// The same as a left factor.
    packed: Packed,
}

/// What turns the exponentials of a chunk into probabilities.
struct Softmax<'a> {
    /// Of every tile.
    statistics: &'a [Vec<TileStatistics>],
    /// The largest logit and the inverse sum of exponentials of each row.
    normalizers: &'a [(f32, f32)],
}

impl<'a> Chunk<'a> {
    fn new(level: Level, operands: Operands<'a>, targets: &'a [(usize, usize)]) -> Self {
        let hidden = operands.hidden;
        let mut hidden_states = new_buffer(targets.len() * hidden);
        let blocks = hidden_states.par_chunks_mut(BLOCK_ROWS * hidden);
        blocks
            .zip(targets.par_chunks(BLOCK_ROWS))
            .for_each(|(block, targets)| {
                for (target, &(row, _)) in block.chunks_exact_mut(hidden).zip(targets) {
                    copy_to_new(target, &operands.hidden_states[row * hidden..][..hidden]);
                }
            });
        // SAFETY: the blocks cover every row.
        let hidden_states = unsafe { written(hidden_states) };
        Self {
            operands,
            targets,
            packed: Packed::lhs(level, Matrix::new(&hidden_states, targets.len(), hidden)),
            hidden_states,
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
            &self.packed,
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
        let of_rows = (0..self.targets.len()).into_par_iter();
        let of_rows = of_rows.with_min_len(BLOCK_ROWS).map(|row| {
            let of_row = || tiles.iter().map(|tile| tile[row]);
            // `f32::max` passes over a NaN, but the sum of its tile is one too.
            let max = of_row().fold(f32::NEG_INFINITY, |max, tile| max.max(tile.max));
            let terms = of_row().map(|t| f64::from(t.sum) * f64::from(t.max - max).exp());
            let sum: f64 = terms.sum();
            let target: f32 = of_row().map(|t| t.target).sum();
            let loss = f64::from(max) + sum.ln() - f64::from(target);
            ((max, (1.0 / sum) as f32), loss)
        });
        let (normalizers, losses): (Vec<_>, Vec<f64>) = of_rows.unzip();
        (normalizers, losses.into_iter().sum())
    }

    /// The gradient of the hidden states of this chunk, `[targets, hidden]`, from the exponentials.
    /// That of the weight, `[vocab, hidden]`, is written to the target the first time, and later added.
    fn gradients(
        &self,
        level: Level,
        softmax: &Softmax<'_>,
        exponentials: &mut [f32],
        (weight_grad, is_first): (&mut [NewFloat], bool),
    ) -> Vec<f32> {
        let Operands { hidden, weight, .. } = self.operands;
        let rows = self.targets.len();
        let hidden_states = Matrix::new(&self.hidden_states, rows, hidden);
        let hidden_states = Packed::rhs(level, hidden_states);
        let (parts, tiles_of_part) = parts(self.operands.vocab);
        let mut partial = new_buffer(parts * rows * hidden);
        let tasks = partial
            .par_chunks_mut(rows * hidden)
            .zip(exponentials.par_chunks_mut(tiles_of_part * TILE * rows))
            .zip(weight_grad.par_chunks_mut(tiles_of_part * TILE * hidden))
            .enumerate();
        tasks.for_each(|(part, ((partial, logits), weight_grad))| {
            let mut partial = MatrixMut::new(partial, rows, hidden);
            let tiles = logits
                .chunks_mut(TILE * rows)
                .zip(weight_grad.chunks_mut(TILE * hidden));
            for (index, (logits, weight_grad)) in tiles.enumerate() {
                let tile = part * tiles_of_part + index;
                self.softmax_gradient(level, tile, softmax, logits);
                let cols = weight_grad.len() / hidden;
                let logits = Matrix::new(logits, rows, cols);
                let weight = Matrix::new(&weight[tile * TILE * hidden..], cols, hidden);
                let mut weight_grad = MatrixMut::new(weight_grad, cols, hidden);
                // SAFETY: the first chunk wrote all gradients of the weight, and the first tile the
                // partial one.
                unsafe {
                    if is_first {
                        weight_grad.set_product(level, logits.transposed(), &hidden_states);
                    } else {
                        weight_grad.add_product(level, logits.transposed(), &hidden_states);
                    }
                    if index == 0 {
                        partial.set_product(level, logits, weight);
                    } else {
                        partial.add_product(level, logits, weight);
                    }
                }
            }
        });
        // SAFETY: each part has a tile, whose product covers all of it.
        let mut partial = unsafe { written(partial) };
        let (sum, terms) = partial.split_at_mut(rows * hidden);
        let sums = sum.par_chunks_mut(BLOCK_ROWS * hidden).enumerate();
        sums.for_each(|(block, sum)| {
            for term in terms.chunks_exact(rows * hidden) {
                add(level, sum, &term[block * BLOCK_ROWS * hidden..]);
            }
        });
        partial.truncate(rows * hidden);
        partial
    }

    /// Turns the exponentials of a tile into the gradient of the logits: softmax, less one at the
    /// target.
    fn softmax_gradient(
        &self,
        level: Level,
        tile: usize,
        softmax: &Softmax<'_>,
        logits: &mut [f32],
    ) {
        let rows = logits.chunks_exact_mut(logits.len() / self.targets.len());
        let of_row = softmax.statistics[tile].iter().zip(softmax.normalizers);
        let of_row = of_row.zip(self.targets);
        for (row, ((tile_of_row, &(max, inverse_sum)), &(_, target))) in rows.zip(of_row) {
            scale(level, row, (tile_of_row.max - max).exp() * inverse_sum);
            let in_tile = target.checked_sub(tile * TILE);
            if let Some(probability) = in_tile.and_then(|t| row.get_mut(t)) {
                *probability -= 1.0;
            }
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
