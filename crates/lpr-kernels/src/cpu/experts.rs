//! The expert block: products per expert over the rows of its tokens, then a sum per token.

use super::{
    Level,
    buffer::{NewFloat, Shared, new_buffer, written, written_slice},
    matrix::{Matrix, MatrixMut},
    routes::{ExpertRows, Routes, cut},
    simd::vector_loop,
    swiglu::{weighted_swiglu, weighted_swiglu_backward},
};
use rayon::prelude::*;
use std::ops::Range;

/// Tokens whose sums a task computes.
const BLOCK_TOKENS: usize = 64;
/// Rows of an expert for which its weight gradients are one task.
const ROWS_PER_WEIGHT_TASK: usize = 1024;

/// The sizes of the block, none of them zero.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) hidden: usize,
    pub(crate) intermediate: usize,
    pub(crate) num_experts: usize,
    pub(crate) top_k: usize,
}

/// The operands of the block.
#[derive(Clone, Copy)]
pub(crate) struct Operands<'a> {
    pub(crate) sizes: Sizes,
    /// `[tokens, hidden]`
    pub(crate) hidden_states: &'a [f32],
    /// `[num_experts, hidden, 2 * intermediate]`
    pub(crate) gate_up_proj: &'a [f32],
    /// `[num_experts, intermediate, hidden]`
    pub(crate) down_proj: &'a [f32],
    /// `[tokens, top_k]`
    pub(crate) routing_weights: &'a [f32],
    /// The choices of the tokens.
    pub(crate) routes: &'a Routes,
}

impl Operands<'_> {
    fn gate_up_of(&self, expert: usize) -> Matrix<'_> {
        let (rows, cols) = (self.sizes.hidden, 2 * self.sizes.intermediate);
        Matrix::new(&self.gate_up_proj[expert * rows * cols..], rows, cols)
    }

    fn down_of(&self, expert: usize) -> Matrix<'_> {
        let (rows, cols) = (self.sizes.intermediate, self.sizes.hidden);
        Matrix::new(&self.down_proj[expert * rows * cols..], rows, cols)
    }

    fn routing_weights_of(&self, rows: &Range<usize>) -> Vec<f32> {
        let slots = self.routes.slots(rows).iter();
        slots.map(|&slot| self.routing_weights[slot]).collect()
    }

    /// The token rows of `source` `[tokens, hidden]` that belong to these rows.
    fn of_tokens<'a>(&'a self, rows: &Range<usize>, source: &'a [f32]) -> Matrix<'a> {
        Matrix::listed(source, self.routes.tokens(rows), self.sizes.hidden)
    }
}

/// The output `[tokens, hidden]` and, if `keep`, the gates and ups `[rows, 2 * intermediate]` for
/// [`backward`].
pub(crate) fn forward(
    level: Level,
    operands: Operands<'_>,
    keep: bool,
) -> (Vec<f32>, Option<Vec<f32>>) {
    let (hidden, inner) = (operands.sizes.hidden, operands.sizes.intermediate);
    let num_rows = operands.routes.num_rows();
    let blocks = operands.routes.blocks();
    let mut outputs = new_buffer(num_rows * hidden);
    let output_parts = cut(&mut outputs, &blocks, hidden);
    if !keep {
        let parts = (&blocks, output_parts).into_par_iter();
        parts.with_max_len(1).for_each(|(block, output)| {
            let mut gate_up = new_buffer(block.rows.len() * 2 * inner);
            forward_block(level, &operands, block, &mut gate_up, output);
        });
        // SAFETY: the blocks cover all rows, and each task wrote its part.
        let outputs = unsafe { written(outputs) };
        return (sum_by_token(level, &outputs, &operands), None);
    }
    let mut kept = new_buffer(num_rows * 2 * inner);
    let kept_parts = cut(&mut kept, &blocks, 2 * inner);
    let parts = (&blocks, kept_parts, output_parts).into_par_iter();
    parts.with_max_len(1).for_each(|(block, gate_up, output)| {
        forward_block(level, &operands, block, gate_up, output);
    });
    // SAFETY: the blocks cover all rows, and each task wrote its part of both buffers.
    let (outputs, kept) = unsafe { (written(outputs), written(kept)) };
    (sum_by_token(level, &outputs, &operands), Some(kept))
}

/// One block of rows: writes `gate_up` `[rows, 2 * intermediate]` and the weighted `output`
/// `[rows, hidden]`.
fn forward_block(
    level: Level,
    operands: &Operands<'_>,
    block: &ExpertRows,
    gate_up: &mut [NewFloat],
    output: &mut [NewFloat],
) {
    let (hidden, inner) = (operands.sizes.hidden, operands.sizes.intermediate);
    let rows = block.rows.len();
    MatrixMut::new(gate_up, rows, 2 * inner).set_product(
        level,
        operands.of_tokens(&block.rows, operands.hidden_states),
        operands.gate_up_of(block.expert),
    );
    // SAFETY: the product wrote all of it.
    let gate_up = unsafe { written_slice(gate_up) };
    let weights = operands.routing_weights_of(&block.rows);
    let mut activated = new_buffer(rows * inner);
    weighted_swiglu(level, gate_up, &weights, &mut activated);
    // SAFETY: the loop wrote all rows.
    let activated = unsafe { written(activated) };
    MatrixMut::new(output, rows, hidden).set_product(
        level,
        Matrix::new(&activated, rows, inner),
        operands.down_of(block.expert),
    );
}

/// The sum over the rows `[rows, hidden]` of each token, in the order of its choices:
/// `[tokens, hidden]`.
fn sum_by_token(level: Level, rows: &[f32], operands: &Operands<'_>) -> Vec<f32> {
    let Sizes { hidden, top_k, .. } = operands.sizes;
    let row_of_slot = operands.routes.row_of_slot();
    let mut sums = new_buffer(row_of_slot.len() / top_k * hidden);
    sums.par_chunks_mut(BLOCK_TOKENS * hidden)
        .zip(row_of_slot.par_chunks(BLOCK_TOKENS * top_k))
        .for_each(|(sums, chosen)| {
            let tokens = sums.chunks_exact_mut(hidden);
            for (sum, chosen) in tokens.zip(chosen.chunks_exact(top_k)) {
                sum_rows(level, rows, chosen, sum);
            }
        });
    // SAFETY: every token has a chunk, and the loop wrote each.
    unsafe { written(sums) }
}

/// The gradients of the operands.
pub(crate) struct Gradients {
    pub(crate) hidden_states: Vec<f32>,
    pub(crate) gate_up_proj: Vec<f32>,
    pub(crate) down_proj: Vec<f32>,
    pub(crate) routing_weights: Vec<f32>,
}

/// The gradients of all operands from the gates and ups kept by [`forward`], which are
/// overwritten, and the gradient of the output `[tokens, hidden]`.
pub(crate) fn backward(
    level: Level,
    operands: Operands<'_>,
    gate_up: &mut [f32],
    grad: &[f32],
) -> Gradients {
    let (hidden, inner) = (operands.sizes.hidden, operands.sizes.intermediate);
    let num_rows = operands.routes.num_rows();
    let blocks = operands.routes.blocks();
    let mut activated = new_buffer(num_rows * inner);
    let mut weight_grads = new_buffer(num_rows);
    let mut input_grads = new_buffer(num_rows * hidden);
    let parts = (
        &blocks,
        cut(gate_up, &blocks, 2 * inner),
        cut(&mut activated, &blocks, inner),
        cut(&mut weight_grads, &blocks, 1),
        cut(&mut input_grads, &blocks, hidden),
    );
    parts.into_par_iter().with_max_len(1).for_each(
        |(block, gate_up, activated, weight_grads, input_grads)| {
            let target = BlockGradients {
                gate_up,
                activated,
                weight_grads,
                input_grads,
            };
            backward_block(level, &operands, block, grad, target);
        },
    );
    // SAFETY: the blocks cover all rows, and each task wrote its part of the buffers.
    let (activated, weight_grads, input_grads) = unsafe {
        (
            written(activated),
            written(weight_grads),
            written(input_grads),
        )
    };
    let hidden_states = sum_by_token(level, &input_grads, &operands);
    drop(input_grads);
    let rows = operands.routes.row_of_slot().iter();
    let results = RowGradients {
        gate_up,
        activated: &activated,
        output: grad,
    };
    let (gate_up_proj, down_proj) = projection_grads(level, &operands, results);
    Gradients {
        hidden_states,
        gate_up_proj,
        down_proj,
        routing_weights: rows.map(|&row| weight_grads[row]).collect(),
    }
}

/// What a block of rows writes on the way back.
struct BlockGradients<'a> {
    /// `[rows, 2 * intermediate]`: the gates and ups, then their gradients.
    gate_up: &'a mut [f32],
    /// `[rows, intermediate]`: the weighted activations.
    activated: &'a mut [NewFloat],
    /// `[rows]`: the gradients of the routing weights.
    weight_grads: &'a mut [NewFloat],
    /// `[rows, hidden]`: the gradients of the hidden states.
    input_grads: &'a mut [NewFloat],
}

fn backward_block(
    level: Level,
    operands: &Operands<'_>,
    block: &ExpertRows,
    grad: &[f32],
    target: BlockGradients<'_>,
) {
    let BlockGradients {
        gate_up,
        activated,
        weight_grads,
        input_grads,
    } = target;
    let (hidden, inner) = (operands.sizes.hidden, operands.sizes.intermediate);
    let rows = block.rows.len();
    let mut activated_grad = new_buffer(rows * inner);
    MatrixMut::new(&mut activated_grad, rows, inner).set_product(
        level,
        operands.of_tokens(&block.rows, grad),
        operands.down_of(block.expert).transposed(),
    );
    // SAFETY: the product wrote all of it.
    let activated_grad = unsafe { written(activated_grad) };
    weighted_swiglu_backward(
        level,
        gate_up,
        &activated_grad,
        &operands.routing_weights_of(&block.rows),
        activated,
        weight_grads,
    );
    MatrixMut::new(input_grads, rows, hidden).set_product(
        level,
        Matrix::new(gate_up, rows, 2 * inner),
        operands.gate_up_of(block.expert).transposed(),
    );
}

/// What the gradients of the projections are made of.
#[derive(Clone, Copy)]
struct RowGradients<'a> {
    /// `[rows, 2 * intermediate]`: the gradients of gates and ups.
    gate_up: &'a [f32],
    /// `[rows, intermediate]`: the weighted activations.
    activated: &'a [f32],
    /// `[tokens, hidden]`: the gradient of the output.
    output: &'a [f32],
}

/// The gradients of both projections: per expert, products over all of its rows, cut along the
/// hidden axis where an expert has many rows.
fn projection_grads(
    level: Level,
    operands: &Operands<'_>,
    results: RowGradients<'_>,
) -> (Vec<f32>, Vec<f32>) {
    let sizes = operands.sizes;
    let (hidden, inner) = (sizes.hidden, sizes.intermediate);
    let in_parts = |expert_rows: ExpertRows| {
        let parts = expert_rows.rows.len().div_ceil(ROWS_PER_WEIGHT_TASK).max(1);
        let width = hidden.div_ceil(parts);
        let starts = (0..hidden).step_by(width);
        starts.map(move |start| (expert_rows.clone(), start..(start + width).min(hidden)))
    };
    let tasks: Vec<_> = operands.routes.experts().flat_map(in_parts).collect();
    let mut gate_up_proj = new_buffer(sizes.num_experts * hidden * 2 * inner);
    let mut down_proj = new_buffer(sizes.num_experts * inner * hidden);
    let gate_up_target = Shared::new(&mut gate_up_proj);
    let down_target = Shared::new(&mut down_proj);
    let tasks = tasks.into_par_iter().with_max_len(1);
    tasks.for_each(|(ExpertRows { expert, rows }, cols)| {
        let first_row = expert * hidden + cols.start;
        let first_col = expert * inner * hidden + cols.start;
        let shapes = ([cols.len(), 2 * inner], [inner, cols.len()]);
        // SAFETY: no other task has this expert and these columns of the hidden axis.
        let (mut gate_up_target, mut down_target) = unsafe {
            (
                gate_up_target.matrix(first_row * 2 * inner, shapes.0, 2 * inner),
                down_target.matrix(first_col, shapes.1, hidden),
            )
        };
        let x = operands
            .of_tokens(&rows, operands.hidden_states)
            .cols(cols.clone());
        let output = operands.of_tokens(&rows, results.output).cols(cols);
        let of_rows = |data, width| matrix_of_rows(data, &rows, width);
        let gate_up = of_rows(results.gate_up, 2 * inner);
        let activated = of_rows(results.activated, inner);
        gate_up_target.set_product(level, x.transposed(), gate_up);
        down_target.set_product(level, activated.transposed(), output);
    });
    // SAFETY: the tasks cover every expert and all of the hidden axis; a product over no rows
    // writes zeros.
    unsafe { (written(gate_up_proj), written(down_proj)) }
}

/// Some rows of `data`, which is `width` wide.
fn matrix_of_rows<'a>(data: &'a [f32], rows: &Range<usize>, width: usize) -> Matrix<'a> {
    Matrix::new(&data[rows.start * width..], rows.len(), width)
}

vector_loop! {
    /// The sum of the `chosen` rows of `rows`, each as wide as `out`, in their order.
    fn sum_rows(s: S, rows: &[f32], chosen: &[usize], out: &mut [NewFloat]) {
        let width = out.len();
        for i in (0..width).step_by(S::LANES) {
            let mut sum = s.splat(0.0);
            for &row in chosen {
                sum = s.add(sum, s.load(&rows[row * width + i..(row + 1) * width]));
            }
            s.store_new(&mut out[i..], sum);
        }
    }
}
