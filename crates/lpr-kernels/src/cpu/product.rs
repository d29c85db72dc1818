//! Matrix products on one thread.
//!
//! Both factors are copied piece by piece into panels, in the order in which the innermost loop
//! reads them: a panel of the right factor is as many of its columns as that loop keeps in registers,
//! one of the left factor as many rows. The copy is also where a factor is transposed or its rows are
//! collected. A left factor that meets few columns is read where it is. With `k` the common axis, every element of the product is
//!
//! ```text
//! ((sum over k in block 0) + (sum over k in block 1)) + ..
//! ```
//!
//! each sum in the order of `k` (or of pairs of them, for 16-bit factors), whatever the position of
//! the element. So a product may be cut along its rows and columns at will, and its elements stay the
//! same bits. A factor of several products can be copied once, see [`Packed`].
#![expect(
    clippy::inline_always,
    reason = "vector code must end up in the function that is compiled for its instructions"
)]

#[cfg(target_arch = "x86_64")]
use super::simd::Avx512;
use super::{
    Level,
    buffer::{NewFloat, new_buffer},
    matrix::Elements,
    simd::{Simd, vector_loop},
};
use pack::Panels;
use packed::{Cut, pack_part};
pub(crate) use packed::{Factor, Packed, Side};
use tile::{Tile, write_tile};

mod pack;
mod packed;
mod tile;

/// Steps along the common axis that panels hold.
const BLOCK_DEPTH: usize = 256;
/// Columns of the right factor whose panels exist at the same time, unless it is packed.
pub(super) const BLOCK_COLS: usize = 512;
/// Panels of the left factor that exist at the same time.
const LHS_PANELS: usize = 8;
/// Columns of the right factor up to which the left one is not worth a copy.
const FEW_COLS: usize = 64;

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
    lhs: Factor<'_>,
    rhs: Factor<'_>,
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
    fn f32_product(s: S, target: Target, lhs: Factor<'_>, rhs: Factor<'_>) {
        blocks(s, target, lhs, rhs);
    }
}

/// Writes a product of 16-bit brain floats.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512bf16,avx512bw,avx512f,avx512dq,avx2,fma")]
fn bf16_product(s: Avx512<true>, target: Target, lhs: Factor<'_>, rhs: Factor<'_>) {
    blocks(s, target, lhs, rhs);
}

/// Block after block of the common axis and the columns.
#[inline(always)]
fn blocks<S: Simd>(s: S, target: Target, lhs: Factor<'_>, rhs: Factor<'_>) {
    let left = Cut::new::<S>(Side::Left, lhs.dims());
    let right = Cut::new::<S>(Side::Right, rhs.dims());
    let in_place = match lhs {
        Factor::Matrix(lhs) if !S::PAIRS && rhs.dims()[1] <= FEW_COLS => lhs.elements(),
        _ => None,
    };
    let mut lhs_buffer = new_buffer(if in_place.is_some() {
        0
    } else {
        lhs.room(&left)
    });
    let mut rhs_buffer = new_buffer(rhs.room(&right));
    for block in 0..left.blocks() {
        let target = Target {
            add: target.add || block > 0,
            ..target
        };
        for cols in 0..right.parts {
            let rhs = panels(s, rhs, &right, [block, cols], &mut rhs_buffer);
            let right = right.panels::<S>([block, cols]);
            for rows in 0..left.parts {
                let lhs = if let Some(elements) = in_place {
                    Left::InPlace(elements)
                } else {
                    Left::Panels(panels(s, lhs, &left, [block, rows], &mut lhs_buffer))
                };
                let left = left.panels::<S>([block, rows]);
                write_tiles(s, target, (&left, lhs), (&right, rhs));
            }
        }
    }
}

/// The panels of a part of a factor, which a matrix is copied to `buffer` for.
#[inline(always)]
fn panels<'a, S: Simd>(
    s: S,
    factor: Factor<'a>,
    cut: &Cut,
    part: [usize; 2],
    buffer: &'a mut [NewFloat],
) -> &'a [NewFloat] {
    match factor {
        Factor::Packed(packed) => packed.panels(part),
        Factor::Matrix(matrix) => {
            pack_part(s, cut, matrix, part, buffer);
            buffer
        }
    }
}

/// A left factor.
#[derive(Clone, Copy)]
enum Left<'a> {
    /// The panels of a part.
    Panels(&'a [NewFloat]),
    /// All of it.
    InPlace(Elements),
}

/// Writes the tiles of all panels of both factors.
#[inline(always)]
fn write_tiles<S: Simd>(
    s: S,
    target: Target,
    (left, lhs): (&Panels, Left<'_>),
    (right, rhs): (&Panels, &[NewFloat]),
) {
    for row in 0..left.count() {
        let rows = left.lines(row);
        let (lhs, lhs_strides) = match lhs {
            Left::Panels(lhs) => (lhs[left.offset(row)..].as_ptr().cast(), [rows.len(), 1]),
            Left::InPlace(Elements { data, strides }) => {
                let [of_row, of_col] = strides;
                let offset = rows.start * of_row + left.ks().start * of_col;
                (data.wrapping_add(offset), [of_col, of_row])
            }
        };
        for col in 0..right.count() {
            let cols = right.lines(col);
            let tile = Tile {
                steps: left.steps(),
                lhs,
                lhs_strides,
                rhs: rhs[right.offset(col)..].as_ptr().cast(),
                // SAFETY: the tile lies within the target.
                target: unsafe { target.data.add(rows.start * target.row_stride + cols.start) },
                row_stride: target.row_stride,
                cols: cols.len(),
                add: target.add,
            };
            // SAFETY: `pack` wrote the panels, a matrix has its elements, and the tile lies within the
            // target, which is exclusive and holds values if they are added to.
            unsafe { write_tile(s, rows.len(), tile) };
        }
    }
}

#[cfg(test)]
mod tests;
