//! Factors, and copies of them that several products share.

#[cfg(target_arch = "x86_64")]
use super::Avx512;
use super::{
    BLOCK_COLS, BLOCK_DEPTH, LHS_PANELS,
    pack::{Panels, pack_lhs, pack_rhs},
};
use crate::cpu::{
    Level,
    buffer::{NewFloat, new_buffer},
    matrix::Matrix,
    simd::{Simd, vector_loop},
};
use rayon::prelude::*;
use std::ops::Range;

/// A factor of a product.
#[derive(Clone, Copy)]
pub(crate) enum Factor<'a> {
    /// Copied into panels by every product.
    Matrix(Matrix<'a>),
    /// Copied before.
    Packed(Part<'a>),
}

impl<'a> From<Matrix<'a>> for Factor<'a> {
    fn from(matrix: Matrix<'a>) -> Self {
        Self::Matrix(matrix)
    }
}

impl<'a> From<Part<'a>> for Factor<'a> {
    fn from(part: Part<'a>) -> Self {
        Self::Packed(part)
    }
}

impl<'a> From<&'a Packed> for Factor<'a> {
    fn from(packed: &'a Packed) -> Self {
        Self::Packed(packed.lines(0..packed.cut.lines))
    }
}

impl Factor<'_> {
    /// Rows and columns.
    pub(crate) fn dims(self) -> [usize; 2] {
        match self {
            Self::Matrix(matrix) => matrix.dims(),
            Self::Packed(Part { packed, lines, .. }) => {
                packed.cut.side.dims(lines, packed.cut.depth)
            }
        }
    }

    /// Floats of the buffer that a part is copied to.
    pub(super) fn room(self, cut: &Cut) -> usize {
        match self {
            Self::Matrix(_) => cut.room,
            Self::Packed(_) => 0,
        }
    }

    /// Whether a product of this level may have it there.
    pub(crate) fn fits(self, level: Level, side: Side) -> bool {
        match self {
            Self::Matrix(_) => true,
            Self::Packed(Part { packed, .. }) => packed.level == level && packed.cut.side == side,
        }
    }
}

/// Where a factor stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Left,
    Right,
}

impl Side {
    /// Rows and columns of a factor of so many lines, which are its axis that is not summed over.
    fn dims(self, lines: usize, depth: usize) -> [usize; 2] {
        match self {
            Self::Left => [lines, depth],
            Self::Right => [depth, lines],
        }
    }

    /// Lines and length of the common axis.
    fn lines_and_depth(self, [rows, cols]: [usize; 2]) -> [usize; 2] {
        match self {
            Self::Left => [rows, cols],
            Self::Right => [cols, rows],
        }
    }
}

/// How a factor is cut: its lines into parts, the common axis into blocks.
#[derive(Clone, Copy)]
pub(super) struct Cut {
    side: Side,
    lines: usize,
    depth: usize,
    pub(super) parts: usize,
    /// Floats that the panels of a part take at most.
    pub(super) room: usize,
}

impl Cut {
    pub(super) fn new<S: Simd>(side: Side, dims: [usize; 2]) -> Self {
        let [lines, depth] = side.lines_and_depth(dims);
        let lines_of_part = match side {
            Side::Left => S::TILE_ROWS * LHS_PANELS,
            Side::Right => BLOCK_COLS,
        };
        let mut cut = Self {
            side,
            lines,
            depth,
            parts: lines.div_ceil(lines_of_part),
            room: 0,
        };
        let sizes = (0..cut.parts).map(|part| cut.panels::<S>([0, part]).size());
        cut.room = sizes.max().unwrap_or(0);
        cut
    }

    pub(super) fn blocks(&self) -> usize {
        self.depth.div_ceil(BLOCK_DEPTH)
    }

    #[inline]
    pub(super) fn panels<S: Simd>(&self, [block, part]: [usize; 2]) -> Panels {
        let ks = block * BLOCK_DEPTH..((block + 1) * BLOCK_DEPTH).min(self.depth);
        match self.side {
            // Rows are shared out evenly: a remainder of few rows would keep few registers busy.
            Side::Left => {
                let line = |part| part * self.lines / self.parts;
                Panels::of_lhs::<S>(line(part)..line(part + 1), ks)
            }
            Side::Right => {
                let start = part * BLOCK_COLS;
                Panels::of_rhs::<S>(start..(start + BLOCK_COLS).min(self.lines), ks)
            }
        }
    }
}

/// The panels of a whole factor, for products of one level and one side.
pub(crate) struct Packed {
    level: Level,
    cut: Cut,
    /// Part after part of the first block of the common axis, then those of the next, each with the
    /// same room.
    panels: Vec<NewFloat>,
}

/// Some consecutive parts of a factor.
#[derive(Clone, Copy)]
pub(crate) struct Part<'a> {
    packed: &'a Packed,
    first: usize,
    lines: usize,
}

impl Packed {
    /// The left factor of products.
    pub(crate) fn lhs(level: Level, matrix: Matrix<'_>) -> Self {
        Self::new(level, Side::Left, matrix)
    }

    /// The right factor of products.
    pub(crate) fn rhs(level: Level, matrix: Matrix<'_>) -> Self {
        Self::new(level, Side::Right, matrix)
    }

    fn new(level: Level, side: Side, matrix: Matrix<'_>) -> Self {
        let cut = cut(level, side, matrix.dims());
        let mut panels = new_buffer(cut.blocks() * cut.parts * cut.room);
        let parts = panels.par_chunks_mut(cut.room.max(1)).enumerate();
        parts.for_each(|(index, target)| {
            pack(
                level,
                &cut,
                matrix,
                [index / cut.parts, index % cut.parts],
                target,
            );
        });
        Self { level, cut, panels }
    }

    /// Some columns of a right factor.
    ///
    /// # Panics
    ///
    /// If they do not start with a block of [`BLOCK_COLS`] columns, or end within one.
    pub(crate) fn cols(&self, cols: Range<usize>) -> Part<'_> {
        assert!(
            self.cut.side == Side::Right
                && cols.start.is_multiple_of(BLOCK_COLS)
                && (cols.end.is_multiple_of(BLOCK_COLS) || cols.end == self.cut.lines),
            "whole blocks of columns"
        );
        self.lines(cols)
    }

    fn lines(&self, lines: Range<usize>) -> Part<'_> {
        Part {
            packed: self,
            first: lines.start / BLOCK_COLS,
            lines: lines.len(),
        }
    }
}

impl<'a> Part<'a> {
    /// The panels of a block of the common axis and a part, which `Packed::new` wrote.
    #[inline]
    pub(super) fn panels(self, [block, part]: [usize; 2]) -> &'a [NewFloat] {
        let Cut { parts, room, .. } = self.packed.cut;
        &self.packed.panels[(block * parts + self.first + part) * room..][..room]
    }
}

fn cut(level: Level, side: Side, dims: [usize; 2]) -> Cut {
    #[cfg(target_arch = "x86_64")]
    if level.multiplies_bf16() {
        return Cut::new::<Avx512<true>>(side, dims);
    }
    f32_cut(level, side, dims)
}

vector_loop! {
    fn f32_cut(s: S, side: Side, dims: [usize; 2]) -> Cut {
        let _ = s;
        Cut::new::<S>(side, dims)
    }
}

/// Writes the panels of a block of the common axis and a part.
fn pack(level: Level, cut: &Cut, matrix: Matrix<'_>, part: [usize; 2], target: &mut [NewFloat]) {
    #[cfg(target_arch = "x86_64")]
    if level.multiplies_bf16() {
        // SAFETY: such a level exists only if the CPU has AVX-512 BF16, and with it BW.
        return unsafe { bf16_pack(Avx512::new(), cut, matrix, part, target) };
    }
    f32_pack(level, cut, matrix, part, target);
}

vector_loop! {
    fn f32_pack(
        s: S,
        cut: &Cut,
        matrix: Matrix<'_>,
        part: [usize; 2],
        target: &mut [NewFloat],
    ) {
        pack_part(s, cut, matrix, part, target);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512bf16,avx512bw,avx512f,avx512dq,avx2,fma")]
fn bf16_pack(
    s: Avx512<true>,
    cut: &Cut,
    matrix: Matrix<'_>,
    part: [usize; 2],
    target: &mut [NewFloat],
) {
    pack_part(s, cut, matrix, part, target);
}

#[inline(always)]
pub(super) fn pack_part<S: Simd>(
    s: S,
    cut: &Cut,
    matrix: Matrix<'_>,
    part: [usize; 2],
    target: &mut [NewFloat],
) {
    let panels = cut.panels::<S>(part);
    match cut.side {
        Side::Left => pack_lhs(s, matrix, &panels, target),
        Side::Right => pack_rhs(s, matrix, &panels, target),
    }
}
