//! Matrix products on one thread.
//!
//! Both factors are copied piece by piece into panels, in the order in which the innermost loop
//! reads them: a panel of the right factor is as many of its columns as that loop keeps in registers,
//! one of the left factor as many rows. The copy is also where a factor is transposed or its rows are
//! collected. With `k` the common axis, every element of the product is
//!
//! ```text
//! ((sum over k in block 0) + (sum over k in block 1)) + ..
//! ```
//!
//! each sum in the order of `k` (or of pairs of them, for 16-bit factors), whatever the position of
//! the element. So a product may be cut along its rows and columns at will, and its elements stay the
//! same bits.
#![expect(
    clippy::inline_always,
    reason = "vector code must end up in the function that is compiled for its instructions"
)]

#[cfg(target_arch = "x86_64")]
use super::simd::Avx512;
use super::{
    Level,
    buffer::{NewFloat, new_buffer},
    matrix::Matrix,
    simd::{Simd, vector_loop},
};
use pack::{Panels, pack_lhs, pack_rhs};
use tile::{Tile, write_tile};

mod pack;
mod tile;

/// Steps along the common axis that panels hold.
const BLOCK_DEPTH: usize = 256;
/// Columns of the right factor whose panels exist at the same time.
const BLOCK_COLS: usize = 512;
/// Panels of the left factor that exist at the same time.
const LHS_PANELS: usize = 8;

/// Where a product goes.
#[derive(Clone, Copy)]
pub(super) struct Target {
    data: *mut f32,
    row_stride: usize,
    /// Whether the product is added to what is there.
    add: bool,
}

/// Writes the product of `lhs` and `rhs`, or adds it.
///
/// # Safety
///
/// `data` must be exclusive and writable for all elements of the product, whose rows are
/// `row_stride` apart. With `add`, these must hold values.
pub(super) unsafe fn product(
    level: Level,
    data: *mut f32,
    row_stride: usize,
    lhs: Matrix<'_>,
    rhs: Matrix<'_>,
    add: bool,
) {
    let target = Target {
        data,
        row_stride,
        add,
    };
    #[cfg(target_arch = "x86_64")]
    if level.multiplies_bf16() {
        // SAFETY: such a level exists only if the CPU has AVX-512 BF16, and with it BW.
        return unsafe { bf16_product(Avx512::new(), target, lhs, rhs) };
    }
    f32_product(level, target, lhs, rhs);
}

vector_loop! {
    fn f32_product(s: S, target: Target, lhs: Matrix<'_>, rhs: Matrix<'_>) {
        blocks(s, target, lhs, rhs);
    }
}

/// Writes a product of 16-bit brain floats.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512bf16,avx512bw,avx512f,avx512dq,avx2,fma")]
fn bf16_product(s: Avx512<true>, target: Target, lhs: Matrix<'_>, rhs: Matrix<'_>) {
    blocks(s, target, lhs, rhs);
}

/// Block after block of the common axis and the columns.
#[inline(always)]
fn blocks<S: Simd>(s: S, target: Target, lhs: Matrix<'_>, rhs: Matrix<'_>) {
    let ([rows, depth], [_, cols]) = (lhs.dims(), rhs.dims());
    // Rows are shared out evenly: a remainder of few rows would keep few registers busy.
    let groups = rows.div_ceil(S::TILE_ROWS * LHS_PANELS);
    let left_of = |group: usize, ks| {
        Panels::of_lhs::<S>(group * rows / groups..(group + 1) * rows / groups, ks)
    };
    let right_of = |col: usize, ks| Panels::of_rhs::<S>(col..(col + BLOCK_COLS).min(cols), ks);
    let first = 0..depth.min(BLOCK_DEPTH);
    let lhs_size = (0..groups)
        .map(|group| left_of(group, first.clone()).size())
        .max();
    let mut lhs_panels = new_buffer(lhs_size.unwrap_or(0));
    let mut rhs_panels = new_buffer(right_of(0, first).size());
    for k in (0..depth).step_by(BLOCK_DEPTH) {
        let ks = k..(k + BLOCK_DEPTH).min(depth);
        let target = Target {
            add: target.add || k > 0,
            ..target
        };
        for col in (0..cols).step_by(BLOCK_COLS) {
            let right = right_of(col, ks.clone());
            pack_rhs(s, rhs, &right, &mut rhs_panels);
            for group in 0..groups {
                let left = left_of(group, ks.clone());
                pack_lhs(s, lhs, &left, &mut lhs_panels);
                write_tiles(s, target, (&left, &lhs_panels), (&right, &rhs_panels));
            }
        }
    }
}

/// Writes the tiles of all panels of both factors.
#[inline(always)]
fn write_tiles<S: Simd>(
    s: S,
    target: Target,
    (left, lhs): (&Panels, &[NewFloat]),
    (right, rhs): (&Panels, &[NewFloat]),
) {
    for row in 0..left.count() {
        let rows = left.lines(row);
        for col in 0..right.count() {
            let cols = right.lines(col);
            let tile = Tile {
                steps: left.steps(),
                lhs: lhs[left.offset(row)..].as_ptr().cast(),
                rhs: rhs[right.offset(col)..].as_ptr().cast(),
                // SAFETY: the tile lies within the target.
                target: unsafe { target.data.add(rows.start * target.row_stride + cols.start) },
                row_stride: target.row_stride,
                cols: cols.len(),
                add: target.add,
            };
            // SAFETY: `pack` wrote both panels, and the tile lies within the target, which is
            // exclusive and holds values if they are added to.
            unsafe { write_tile(s, rows.len(), tile) };
        }
    }
}

#[cfg(test)]
mod tests;
