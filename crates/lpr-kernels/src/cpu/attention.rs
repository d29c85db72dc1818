//! Causal grouped-query attention, one head and one block of queries at a time.
//!
//! A block's scores reach from the first to the last key that one of its queries sees; nothing
//! above the diagonal block is computed, and no more than one block of scores per task exists.

use super::{
    Level,
    buffer::{NewFloat, Shared, new_buffer, written},
    matrix::{Matrix, MatrixMut},
    simd::vector_loop,
    visibility::Visibility,
};
use rayon::prelude::*;
use std::ops::Range;

/// Queries of a block.
const BLOCK: usize = 64;

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

/// A head of a tensor `[batch, seq, heads, dim]`: where its rows are.
#[derive(Clone, Copy)]
struct Head {
    row: usize,
    seq: usize,
    heads: usize,
    index: usize,
    dim: usize,
}

impl Head {
    fn offset(self, position: usize) -> usize {
        ((self.row * self.seq + position) * self.heads + self.index) * self.dim
    }

    fn stride(self) -> usize {
        self.heads * self.dim
    }

    /// The rows at these positions.
    fn matrix(self, data: &[f32], positions: Range<usize>) -> Matrix<'_> {
        let data = &data[self.offset(positions.start)..];
        Matrix::strided(data, positions.len(), self.dim, self.stride())
    }

    /// The rows at these positions, to write.
    ///
    /// # Safety
    ///
    /// While the matrix lives, nothing else may use these rows.
    unsafe fn matrix_mut(self, data: Shared<'_>, positions: Range<usize>) -> MatrixMut<'_> {
        let shape = [positions.len(), self.dim];
        // SAFETY: the caller vouches for it.
        unsafe { data.matrix(self.offset(positions.start), shape, self.stride()) }
    }
}

impl Sizes {
    fn query(self, row: usize, head: usize) -> Head {
        self.head(row, head, self.heads, self.head_dim)
    }

    fn key(self, row: usize, head: usize) -> Head {
        self.head(row, head, self.kv_heads, self.head_dim)
    }

    fn value(self, row: usize, head: usize) -> Head {
        self.head(row, head, self.kv_heads, self.v_head_dim)
    }

    fn output(self, row: usize, head: usize) -> Head {
        self.head(row, head, self.heads, self.v_head_dim)
    }

    fn head(self, row: usize, index: usize, heads: usize, dim: usize) -> Head {
        Head {
            row,
            seq: self.seq,
            heads,
            index,
            dim,
        }
    }

    fn group(self) -> usize {
        self.heads / self.kv_heads
    }
}

/// The output `[batch, seq, heads, v_head_dim]` and, for [`backward`], the logarithm of each
/// softmax's denominator `[batch, heads, seq]`.
pub(crate) fn forward(level: Level, operands: Operands<'_>) -> (Vec<f32>, Vec<f32>) {
    let sizes = operands.sizes;
    let positions = sizes.batch * sizes.heads * sizes.seq;
    let mut output = new_buffer(positions * sizes.v_head_dim);
    let mut log_sums = new_buffer(positions);
    let (shared_output, shared_sums) = (Shared::new(&mut output), Shared::new(&mut log_sums));
    let blocks = sizes.seq.div_ceil(BLOCK);
    let tasks = sizes.batch * sizes.heads * blocks;
    (0..tasks).into_par_iter().for_each(|task| {
        let (head, index) = (task / blocks, task % blocks);
        let block = Block::new(&operands, head / sizes.heads, head % sizes.heads, index);
        let sums = block.log_sums();
        let target = sizes.output(block.row, block.head);
        let shape = [block.queries.len(), target.dim];
        let offset = target.offset(block.queries.start);
        // SAFETY: no other task has these queries of this head.
        let (sums, output) = unsafe {
            let output = shared_output.matrix(offset, shape, target.stride());
            (shared_sums.slice(sums), output)
        };
        block.forward(level, sums, output);
    });
    // SAFETY: the tasks cover every query of every head, and each wrote its outputs and sums.
    unsafe { (written(output), written(log_sums)) }
}

/// What [`forward`] produced, and the gradient of its output.
#[derive(Clone, Copy)]
pub(crate) struct Results<'a> {
    /// `[batch, seq, heads, v_head_dim]`
    pub(crate) output: &'a [f32],
    /// `[batch, heads, seq]`
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
    (0..sizes.batch * sizes.kv_heads)
        .into_par_iter()
        .for_each(|task| {
            let (row, kv_head) = (task / sizes.kv_heads, task % sizes.kv_heads);
            let whole = [sizes.key(row, kv_head), sizes.value(row, kv_head)];
            for (shared, head) in shared[1..].iter().zip(whole) {
                // SAFETY: no other task has this key and value head.
                unsafe { head.matrix_mut(*shared, 0..sizes.seq) }.clear();
            }
            for head in kv_head * sizes.group()..(kv_head + 1) * sizes.group() {
                for index in 0..sizes.seq.div_ceil(BLOCK) {
                    let block = Block::new(&operands, row, head, index);
                    let query = sizes.query(row, head);
                    // SAFETY: no other task has a query head of this group or its key and value
                    // head; the gradients of keys and values were cleared above.
                    unsafe {
                        block.backward(
                            level,
                            results,
                            query.matrix_mut(shared[0], block.queries.clone()),
                            whole[0].matrix_mut(shared[1], block.keys.clone()),
                            whole[1].matrix_mut(shared[2], block.keys.clone()),
                        );
                    }
                }
            }
        });
    // SAFETY: the tasks cover all heads, and each wrote the gradients of all positions.
    grads.map(|grad| unsafe { written(grad) })
}

/// Some queries of a head with all keys that one of them sees.
struct Block<'a> {
    operands: &'a Operands<'a>,
    row: usize,
    head: usize,
    kv_head: usize,
    queries: Range<usize>,
    keys: Range<usize>,
}

impl<'a> Block<'a> {
    fn new(operands: &'a Operands<'a>, row: usize, head: usize, index: usize) -> Self {
        let sizes = operands.sizes;
        let queries = index * BLOCK..((index + 1) * BLOCK).min(sizes.seq);
        Self {
            operands,
            row,
            head,
            kv_head: head / sizes.group(),
            keys: operands.visibility.joint_range(row, queries.clone()),
            queries,
        }
    }

    /// The place of the queries in `[batch, heads, seq]`.
    fn log_sums(&self) -> Range<usize> {
        let sizes = self.operands.sizes;
        let start = (self.row * sizes.heads + self.head) * sizes.seq;
        start + self.queries.start..start + self.queries.end
    }

    fn query(&self) -> Matrix<'a> {
        let head = self.operands.sizes.query(self.row, self.head);
        head.matrix(self.operands.query, self.queries.clone())
    }

    fn key(&self) -> Matrix<'a> {
        let head = self.operands.sizes.key(self.row, self.kv_head);
        head.matrix(self.operands.key, self.keys.clone())
    }

    fn value(&self) -> Matrix<'a> {
        let head = self.operands.sizes.value(self.row, self.kv_head);
        head.matrix(self.operands.value, self.keys.clone())
    }

    /// The products of each row of `lhs` (of a query) with each row of `rhs` (of a key), `[queries,
    /// keys]`.
    fn by_key(&self, level: Level, lhs: Matrix<'_>, rhs: Matrix<'_>) -> Vec<f32> {
        let (queries, keys) = (self.queries.len(), self.keys.len());
        let mut products = new_buffer(queries * keys);
        MatrixMut::new(&mut products, queries, keys).set_product(level, lhs, rhs.transposed());
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

    fn forward(&self, level: Level, log_sums: &mut [NewFloat], mut output: MatrixMut<'_>) {
        if self.keys.is_empty() {
            log_sums.fill(NewFloat::new(f32::INFINITY));
            output.clear();
            return;
        }
        let keys = self.keys.len();
        let mut scores = self.by_key(level, self.query(), self.key());
        let rows = self.queries.clone().zip(scores.chunks_exact_mut(keys));
        for ((query, scores), log_sum) in rows.zip(log_sums) {
            let seen = self.seen(query, scores);
            scores[..seen.start].fill(0.0);
            scores[seen.end..].fill(0.0);
            log_sum.write(if seen.is_empty() {
                f32::INFINITY
            } else {
                softmax(level, &mut scores[seen], self.operands.scale)
            });
        }
        let probs = Matrix::new(&scores, self.queries.len(), keys);
        output.set_product(level, probs, self.value());
    }

    /// Writes the gradient of the queries and adds to those of the keys and values.
    ///
    /// # Safety
    ///
    /// The gradients of keys and values must have been written before.
    unsafe fn backward(
        &self,
        level: Level,
        results: Results<'_>,
        mut query_grad: MatrixMut<'_>,
        mut key_grad: MatrixMut<'_>,
        mut value_grad: MatrixMut<'_>,
    ) {
        if self.keys.is_empty() {
            query_grad.clear();
            return;
        }
        let Operands { sizes, scale, .. } = *self.operands;
        let (queries, keys) = (self.queries.len(), self.keys.len());
        let out_head = sizes.output(self.row, self.head);
        let grad = out_head.matrix(results.grad, self.queries.clone());
        let mut probs = self.by_key(level, self.query(), self.key());
        let mut score_grads = self.by_key(level, grad, self.value());
        let rows = probs
            .chunks_exact_mut(keys)
            .zip(score_grads.chunks_exact_mut(keys));
        let log_sums = &results.log_sums[self.log_sums()];
        for ((query, (probs, score_grads)), &log_sum) in
            self.queries.clone().zip(rows).zip(log_sums)
        {
            let seen = self.seen(query, probs);
            for outside in [0..seen.start, seen.end..keys] {
                probs[outside.clone()].fill(0.0);
                score_grads[outside].fill(0.0);
            }
            let (probs, score_grads) = (&mut probs[seen.clone()], &mut score_grads[seen]);
            let at = out_head.offset(query)..out_head.offset(query) + out_head.dim;
            let mean = dot(level, &results.grad[at.clone()], &results.output[at]);
            softmax_backward(level, probs, score_grads, scale, log_sum, mean);
        }
        let probs = Matrix::new(&probs, queries, keys);
        let score_grads = Matrix::new(&score_grads, queries, keys);
        query_grad.set_product(level, score_grads, self.key());
        // SAFETY: the caller vouches that these gradients were written.
        unsafe {
            value_grad.add_product(level, probs.transposed(), grad);
            key_grad.add_product(level, score_grads.transposed(), self.query());
        }
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
