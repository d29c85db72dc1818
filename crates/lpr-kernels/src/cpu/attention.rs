//! Causal grouped-query attention, the heads of one group and a block of queries at a time.
//!
//! All heads of a group share their keys and values, so that each query has as many rows in a block's
//! scores. These reach from the first to the last key that one of its queries sees; nothing above the
//! diagonal block is computed, and no more than one block of scores per task exists.

use super::{
    Level,
    buffer::{NewFloat, Shared, new_buffer, written},
    heads::Heads,
    matrix::{Matrix, MatrixMut},
    simd::vector_loop,
    visibility::Visibility,
};
use rayon::prelude::*;
use std::ops::Range;

/// Rows of a block's scores, within limits of its queries.
const BLOCK_ROWS: usize = 128;
/// Least and most queries of a block.
const BLOCK_QUERIES: (usize, usize) = (16, 64);

/// The sizes of an attention.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) batch: usize,
    pub(crate) seq: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) v_head_dim: usize,
}

/// The operands of an attention.
#[derive(Clone, Copy)]
pub(crate) struct Operands<'a> {
    pub(crate) sizes: Sizes,
    /// `[batch, seq, heads, head_dim]`
    pub(crate) query: &'a [f32],
    /// `[batch, seq, kv_heads, head_dim]`
    pub(crate) key: &'a [f32],
    /// `[batch, seq, kv_heads, v_head_dim]`
    pub(crate) value: &'a [f32],
    pub(crate) visibility: &'a Visibility,
    pub(crate) scale: f32,
}

impl Sizes {
    /// The query heads of a group, each `dim` wide.
    fn group_of(self, row: usize, kv_head: usize, dim: usize) -> Heads {
        let count = self.heads / self.kv_heads;
        self.heads_of(row, self.heads, kv_head * count, count, dim)
    }

    fn key(self, row: usize, kv_head: usize) -> Heads {
        self.heads_of(row, self.kv_heads, kv_head, 1, self.head_dim)
    }

    fn value(self, row: usize, kv_head: usize) -> Heads {
        self.heads_of(row, self.kv_heads, kv_head, 1, self.v_head_dim)
    }

    fn heads_of(self, row: usize, heads: usize, first: usize, count: usize, dim: usize) -> Heads {
        Heads {
            row,
            seq: self.seq,
            of: heads,
            first,
            count,
            dim,
        }
    }

    /// Query heads of a key's head.
    fn group(self) -> usize {
        self.heads / self.kv_heads
    }

    /// Queries of a block.
    fn block(self) -> usize {
        let (least, most) = BLOCK_QUERIES;
        (BLOCK_ROWS / self.group()).clamp(least, most)
    }
}

/// The output `[batch, seq, heads, v_head_dim]` and, for [`backward`], the logarithm of each
/// softmax's denominator `[batch, kv_heads, seq, heads / kv_heads]`.
pub(crate) fn forward(level: Level, operands: Operands<'_>) -> (Vec<f32>, Vec<f32>) {
    let sizes = operands.sizes;
    let positions = sizes.batch * sizes.heads * sizes.seq;
    let mut output = new_buffer(positions * sizes.v_head_dim);
    let mut log_sums = new_buffer(positions);
    let (shared_output, shared_sums) = (Shared::new(&mut output), Shared::new(&mut log_sums));
    let blocks = sizes.seq.div_ceil(sizes.block());
    let tasks = (0..sizes.batch * sizes.kv_heads * blocks).into_par_iter();
    tasks.with_max_len(1).for_each(|task| {
        let (head, index) = (task / blocks, task % blocks);
        let block = Block::new(
            &operands,
            head / sizes.kv_heads,
            head % sizes.kv_heads,
            index,
        );
        // SAFETY: no other task has these queries of this group.
        unsafe {
            let output = block.forward(level, shared_sums.slice(block.log_sums()));
            block
                .group(sizes.v_head_dim)
                .spread(&output, shared_output, block.queries.clone());
        }
    });
    // SAFETY: the tasks cover every query of every head, and each wrote its outputs and sums.
    unsafe { (written(output), written(log_sums)) }
}

/// What [`forward`] produced, and the gradient of its output.
#[derive(Clone, Copy)]
pub(crate) struct Results<'a> {
    /// `[batch, seq, heads, v_head_dim]`
    pub(crate) output: &'a [f32],
    /// `[batch, kv_heads, seq, heads / kv_heads]`
    pub(crate) log_sums: &'a [f32],
    /// `[batch, seq, heads, v_head_dim]`
    pub(crate) grad: &'a [f32],
}

/// The gradients of query, key and value.
pub(crate) fn backward(
    level: Level,
    operands: Operands<'_>,
    results: Results<'_>,
) -> [Vec<f32>; 3] {
    let sizes = operands.sizes;
    let mut grads = [operands.query, operands.key, operands.value].map(|x| new_buffer(x.len()));
    let [query, key, value] = &mut grads;
    let shared = [Shared::new(query), Shared::new(key), Shared::new(value)];
    let tasks = (0..sizes.batch * sizes.kv_heads).into_par_iter();
    tasks.with_max_len(1).for_each(|task| {
        let (row, kv_head) = (task / sizes.kv_heads, task % sizes.kv_heads);
        let whole = [sizes.key(row, kv_head), sizes.value(row, kv_head)];
        for (shared, head) in shared[1..].iter().zip(whole) {
            // SAFETY: no other task has this key and value head.
            unsafe { head.matrix_mut(*shared, 0..sizes.seq) }.clear();
        }
        for index in 0..sizes.seq.div_ceil(sizes.block()) {
            let block = Block::new(&operands, row, kv_head, index);
            // SAFETY: no other task has a query head of this group or its key and value head; the
            // gradients of keys and values were cleared above.
            unsafe {
                let query_grad = block.backward(
                    level,
                    results,
                    whole[0].matrix_mut(shared[1], block.keys.clone()),
                    whole[1].matrix_mut(shared[2], block.keys.clone()),
                );
                block
                    .group(sizes.head_dim)
                    .spread(&query_grad, shared[0], block.queries.clone());
            }
        }
    });
    // SAFETY: the tasks cover all heads, and each wrote the gradients of all positions.
    grads.map(|grad| unsafe { written(grad) })
}

/// Some queries of the heads of a group with all keys that one of them sees. A row is a query of a
/// head, the heads of a query one after the other.
struct Block<'a> {
    operands: &'a Operands<'a>,
    row: usize,
    kv_head: usize,
    queries: Range<usize>,
    keys: Range<usize>,
}

impl<'a> Block<'a> {
    fn new(operands: &'a Operands<'a>, row: usize, kv_head: usize, index: usize) -> Self {
        let sizes = operands.sizes;
        let queries = index * sizes.block()..((index + 1) * sizes.block()).min(sizes.seq);
        Self {
            operands,
            row,
            kv_head,
            keys: operands.visibility.joint_range(row, queries.clone()),
            queries,
        }
    }

    /// The place of the rows in `[batch, kv_heads, seq, heads / kv_heads]`.
    fn log_sums(&self) -> Range<usize> {
        let sizes = self.operands.sizes;
        let start = (self.row * sizes.kv_heads + self.kv_head) * sizes.seq;
        (start + self.queries.start) * sizes.group()..(start + self.queries.end) * sizes.group()
    }

    /// The query heads of the group in a tensor that is `dim` wide.
    fn group(&self, dim: usize) -> Heads {
        let sizes = self.operands.sizes;
        sizes.group_of(self.row, self.kv_head, dim)
    }

    /// What belongs to the rows, `[rows, dim]`.
    fn of_rows(&self, data: &[f32], dim: usize) -> Vec<f32> {
        self.group(dim).collect(data, self.queries.clone())
    }

    fn num_rows(&self) -> usize {
        self.queries.len() * self.operands.sizes.group()
    }

    /// The queries of the rows.
    fn query_of_rows(&self) -> impl Iterator<Item = usize> {
        let group = self.operands.sizes.group();
        let queries = self.queries.clone();
        queries.flat_map(move |query| std::iter::repeat_n(query, group))
    }

    fn key(&self) -> Matrix<'a> {
        let head = self.operands.sizes.key(self.row, self.kv_head);
        head.matrix(self.operands.key, self.keys.clone())
    }

    fn value(&self) -> Matrix<'a> {
        let head = self.operands.sizes.value(self.row, self.kv_head);
        head.matrix(self.operands.value, self.keys.clone())
    }

    /// The products of each of the rows with each row of `rhs` (of a key), `[rows, keys]`.
    fn by_key(&self, level: Level, lhs: Matrix<'_>, rhs: Matrix<'_>) -> Vec<f32> {
        let (rows, keys) = (self.num_rows(), self.keys.len());
        let mut products = new_buffer(rows * keys);
        MatrixMut::new(&mut products, rows, keys).set_product(level, lhs, rhs.transposed());
        // SAFETY: the product wrote all of it.
        unsafe { written(products) }
    }

    /// Hides what a query does not see among its scores; the places of the others, if there are
    /// any.
    fn seen(&self, query: usize, scores: &mut [f32]) -> Range<usize> {
        let visibility = self.operands.visibility;
        let range = visibility.range(self.row, query);
        if range.is_empty() {
            return 0..0;
        }
        let seen = range.start - self.keys.start..range.end - self.keys.start;
        if visibility.hide(self.row, query, range, &mut scores[seen.clone()]) {
            seen
        } else {
            0..0
        }
    }

    /// The output of the rows, `[rows, v_head_dim]`; writes the logarithms of their denominators.
    fn forward(&self, level: Level, log_sums: &mut [NewFloat]) -> Vec<f32> {
        let (head_dim, v_head_dim) = (self.operands.sizes.head_dim, self.operands.sizes.v_head_dim);
        let (rows, keys) = (self.num_rows(), self.keys.len());
        if keys == 0 {
            log_sums.fill(NewFloat::new(f32::INFINITY));
            return vec![0.0; rows * v_head_dim];
        }
        let query = self.of_rows(self.operands.query, head_dim);
        let query = Matrix::new(&query, rows, head_dim);
        let mut scores = self.by_key(level, query, self.key());
        let of_row = self.query_of_rows().zip(scores.chunks_exact_mut(keys));
        for ((query, scores), log_sum) in of_row.zip(log_sums) {
            let seen = self.seen(query, scores);
            scores[..seen.start].fill(0.0);
            scores[seen.end..].fill(0.0);
            log_sum.write(if seen.is_empty() {
                f32::INFINITY
            } else {
                softmax(level, &mut scores[seen], self.operands.scale)
            });
        }
        let mut output = new_buffer(rows * v_head_dim);
        let probs = Matrix::new(&scores, rows, keys);
        MatrixMut::new(&mut output, rows, v_head_dim).set_product(level, probs, self.value());
        // SAFETY: the product wrote all of it.
        unsafe { written(output) }
    }

    /// The gradient of the queries of the rows, `[rows, head_dim]`; adds to those of the keys and values.
    ///
    /// # Safety
    ///
    /// The gradients of keys and values must have been written before.
    unsafe fn backward(
        &self,
        level: Level,
        results: Results<'_>,
        mut key_grad: MatrixMut<'_>,
        mut value_grad: MatrixMut<'_>,
    ) -> Vec<f32> {
        let Operands { sizes, scale, .. } = *self.operands;
        let (rows, keys) = (self.num_rows(), self.keys.len());
        if keys == 0 {
            return vec![0.0; rows * sizes.head_dim];
        }
        let query = self.of_rows(self.operands.query, sizes.head_dim);
        let query = Matrix::new(&query, rows, sizes.head_dim);
        let grad_of_rows = self.of_rows(results.grad, sizes.v_head_dim);
        let grad = Matrix::new(&grad_of_rows, rows, sizes.v_head_dim);
        let output_of_rows = self.of_rows(results.output, sizes.v_head_dim);
        let mut probs = self.by_key(level, query, self.key());
        let mut score_grads = self.by_key(level, grad, self.value());
        let of_row = probs
            .chunks_exact_mut(keys)
            .zip(score_grads.chunks_exact_mut(keys))
            .zip(grad_of_rows.chunks_exact(sizes.v_head_dim))
            .zip(output_of_rows.chunks_exact(sizes.v_head_dim))
            .zip(&results.log_sums[self.log_sums()]);
        for (query, ((((probs, score_grads), grad), output), &log_sum)) in
            self.query_of_rows().zip(of_row)
        {
            let seen = self.seen(query, probs);
            for outside in [0..seen.start, seen.end..keys] {
                probs[outside.clone()].fill(0.0);
                score_grads[outside].fill(0.0);
            }
            let (probs, score_grads) = (&mut probs[seen.clone()], &mut score_grads[seen]);
            let mean = dot(level, grad, output);
            softmax_backward(level, probs, score_grads, scale, log_sum, mean);
        }
        let probs = Matrix::new(&probs, rows, keys);
        let score_grads = Matrix::new(&score_grads, rows, keys);
        // SAFETY: the caller vouches that these gradients were written.
        unsafe {
            value_grad.add_product(level, probs.transposed(), grad);
            key_grad.add_product(level, score_grads.transposed(), query);
        }
        let mut query_grad = new_buffer(rows * sizes.head_dim);
        let mut target = MatrixMut::new(&mut query_grad, rows, sizes.head_dim);
        target.set_product(level, score_grads, self.key());
        // SAFETY: the product wrote all of it.
        unsafe { written(query_grad) }
    }
}

vector_loop! {
    /// The scalar product.
    fn dot(s: S, a: &[f32], b: &[f32]) -> f32 {
        let mut sum = s.splat(0.0);
        for i in (0..a.len()).step_by(S::LANES) {
            sum = s.mul_add(s.load(&a[i..]), s.load(&b[i..]), sum);
        }
        s.sum(sum)
    }
}

vector_loop! {
    /// Replaces scores `z` by `softmax(scale * z)`; the logarithm of its denominator.
    fn softmax(s: S, scores: &mut [f32], scale: f32) -> f32 {
        let factor = s.splat(scale);
        let mut largest = s.splat(f32::NEG_INFINITY);
        for i in (0..scores.len()).step_by(S::LANES) {
            let z = s.mul(s.load_or(&scores[i..], f32::NEG_INFINITY), factor);
            largest = s.max(largest, z);
        }
        let largest = s.largest(largest);
        let shift = s.splat(-largest);
        let mut sum = s.splat(0.0);
        for i in (0..scores.len()).step_by(S::LANES) {
            let z = s.load_or(&scores[i..], f32::NEG_INFINITY);
            let e = s.exp(s.mul_add(z, factor, shift));
            sum = s.add(sum, e);
            s.store(&mut scores[i..], e);
        }
        let sum = s.sum(sum);
        let inverse = s.splat(1.0 / sum);
        for i in (0..scores.len()).step_by(S::LANES) {
            let p = s.mul(s.load(&scores[i..]), inverse);
            s.store(&mut scores[i..], p);
        }
        largest + sum.ln()
    }
}

vector_loop! {
    /// Replaces scores `z` by `p = exp(scale * z - log_sum)` and the gradients `d` of `p` by those
    /// of `z`: `scale * p * (d - mean)`, where `mean` is the sum of `p * d`.
    fn softmax_backward(
        s: S,
        scores: &mut [f32],
        grads: &mut [f32],
        scale: f32,
        log_sum: f32,
        mean: f32,
    ) {
        let (factor, shift, mean) = (s.splat(scale), s.splat(-log_sum), s.splat(mean));
        for i in (0..scores.len()).step_by(S::LANES) {
            let p = s.exp(s.mul_add(s.load(&scores[i..]), factor, shift));
            let d = s.sub(s.load(&grads[i..]), mean);
            s.store(&mut scores[i..], p);
            s.store(&mut grads[i..], s.mul(s.mul(p, factor), d));
        }
    }
}
