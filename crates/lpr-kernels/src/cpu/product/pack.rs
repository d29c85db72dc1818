//! Copies of parts of a factor in the order in which they are read.

use crate::cpu::{buffer::NewFloat, matrix::Matrix, simd::Simd};
use std::ops::Range;

/// Some lines of a factor, which are its axis that is not summed over, in as few panels as hold them,
/// and a part of the common axis.
pub(super) struct Panels {
    lines: Range<usize>,
    ks: Range<usize>,
    /// The most lines of a panel.
    width: usize,
    /// Whether every panel but the last has that many; else the lines are shared out evenly.
    full: bool,
    /// Steps of a panel: of the common axis, or of pairs of it.
    steps: usize,
    /// Distance of panels: room for one, and for a vector that starts in it and ends behind it.
    length: usize,
}

impl Panels {
    /// Rows of the left factor. A panel is `[steps, lines]`.
    pub(super) fn of_lhs<S: Simd>(rows: Range<usize>, ks: Range<usize>) -> Self {
        let steps = steps::<S>(&ks);
        Self {
            steps,
            length: S::TILE_ROWS * steps + S::LANES,
            width: S::TILE_ROWS,
            full: false,
            lines: rows,
            ks,
        }
    }

    /// Columns of the right factor. A panel is `[steps, 2 * LANES]`.
    pub(super) fn of_rhs<S: Simd>(cols: Range<usize>, ks: Range<usize>) -> Self {
        let steps = steps::<S>(&ks);
        Self {
            steps,
            length: 2 * S::LANES * steps + S::LANES,
            width: 2 * S::LANES,
            full: true,
            lines: cols,
            ks,
        }
    }

    pub(super) fn count(&self) -> usize {
        self.lines.len().div_ceil(self.width)
    }

    pub(super) fn steps(&self) -> usize {
        self.steps
    }

    /// The part of the common axis.
    pub(super) fn ks(&self) -> Range<usize> {
        self.ks.clone()
    }

    /// The lines of a panel.
    #[inline(always)]
    pub(super) fn lines(&self, panel: usize) -> Range<usize> {
        let (len, count) = (self.lines.len(), self.count());
        let at = |panel: usize| {
            let line = if self.full {
                (panel * self.width).min(len)
            } else {
                panel * len / count
            };
            self.lines.start + line
        };
        at(panel)..at(panel + 1)
    }

    /// Where a panel starts.
    pub(super) fn offset(&self, panel: usize) -> usize {
        panel * self.length
    }

    /// Floats that all panels take.
    pub(super) fn size(&self) -> usize {
        self.offset(self.count())
    }

    /// Distance of the steps in a panel of so many lines.
    fn stride(&self, lines: usize) -> usize {
        if self.full { self.width } else { lines }
    }
}

/// Steps of a panel over this part of the common axis.
fn steps<S: Simd>(ks: &Range<usize>) -> usize {
    if S::PAIRS {
        ks.len().div_ceil(2)
    } else {
        ks.len()
    }
}

/// Writes the panels of the left factor.
#[inline(always)]
pub(super) fn pack_lhs<S: Simd>(s: S, lhs: Matrix<'_>, panels: &Panels, target: &mut [NewFloat]) {
    if lhs.is_transposed() {
        pack_cols(s, lhs, panels, target);
    } else {
        pack_rows(s, lhs, panels, target);
    }
}

/// Writes the panels of the right factor.
#[inline(always)]
pub(super) fn pack_rhs<S: Simd>(s: S, rhs: Matrix<'_>, panels: &Panels, target: &mut [NewFloat]) {
    if rhs.is_transposed() {
        pack_rows(s, rhs, panels, target);
    } else {
        pack_cols(s, rhs, panels, target);
    }
}

/// Steps that are shared out to all panels before the next ones: so few that their stored rows stay
/// in the nearest cache.
const SHARED_STEPS: usize = 16;

/// The lines are columns of the stored rows: some rows after the others are shared out to the panels.
///
/// A last vector may hold what follows the lines. That lands in columns that no tile keeps, in the
/// place of the next step, which is written later, or behind the panel.
#[inline(always)]
fn pack_cols<S: Simd>(s: S, matrix: Matrix<'_>, panels: &Panels, target: &mut [NewFloat]) {
    assert!(target.len() >= panels.size(), "room for all panels");
    let target: *mut f32 = target.as_mut_ptr().cast();
    let rows_per_step = if S::PAIRS { 2 } else { 1 };
    let ahead = SHARED_STEPS * rows_per_step * matrix.stride();
    for step in (0..panels.steps()).step_by(SHARED_STEPS) {
        let steps = step..(step + SHARED_STEPS).min(panels.steps());
        for panel in 0..panels.count() {
            let lines = panels.lines(panel);
            let stride = panels.stride(lines.len());
            for step in steps.clone() {
                let row = panels.ks.start + step * rows_per_step;
                let at = panels.offset(panel) + step * stride;
                for part in (0..stride).step_by(S::LANES) {
                    let col = lines.start + part;
                    let v = load(s, matrix, row, col, ahead);
                    let v = if !S::PAIRS {
                        v
                    } else if row + 1 < panels.ks.end {
                        s.pair(v, load(s, matrix, row + 1, col, ahead))
                    } else {
                        s.pair(v, s.splat(0.0))
                    };
                    // SAFETY: the vector starts within the panel.
                    unsafe { s.write(target.add(at + part), S::LANES, v) };
                }
            }
        }
    }
}

/// A vector of a stored row from column `col` on, or of what follows it; asks for the elements `ahead`
/// of it.
#[inline(always)]
fn load<S: Simd>(s: S, matrix: Matrix<'_>, row: usize, col: usize, ahead: usize) -> S::V {
    let data = matrix.data();
    let start = (matrix.start_of_row(row) + col).min(data.len());
    s.prefetch::<false>(data.as_ptr().wrapping_add(start + ahead));
    // SAFETY: no more is read than the data have.
    unsafe { s.read(data.as_ptr().add(start), data.len() - start, 0.0) }
}

/// The lines are stored rows, so that every panel is a transposed part of the matrix.
///
/// Columns of a panel behind the last line repeat it.
#[inline(always)]
fn pack_rows<S: Simd>(s: S, matrix: Matrix<'_>, panels: &Panels, target: &mut [NewFloat]) {
    assert!(target.len() >= panels.size(), "room for all panels");
    let target: *mut f32 = target.as_mut_ptr().cast();
    let data = matrix.data();
    for panel in 0..panels.count() {
        let lines = panels.lines(panel);
        let stride = panels.stride(lines.len());
        for part in (0..stride).step_by(S::LANES) {
            let mut rows = [data.as_ptr(); 16];
            for (index, row) in rows.iter_mut().enumerate() {
                let line = (lines.start + part + index).min(lines.end - 1);
                *row = data[matrix.start_of_row(line)..][panels.ks.clone()].as_ptr();
            }
            let at = panels.offset(panel) + part;
            for k in (0..panels.ks.len()).step_by(S::LANES) {
                let len = (panels.ks.len() - k).min(S::LANES);
                let step = if S::PAIRS { k / 2 } else { k };
                // SAFETY: the rows have these elements, and the vectors start within the panel.
                unsafe {
                    let mut rows = rows;
                    for row in rows.iter_mut().take(S::LANES) {
                        *row = row.add(k);
                        s.prefetch::<false>(row.wrapping_add(4 * S::LANES));
                    }
                    s.transpose(rows, len, target.add(at + step * stride), stride);
                }
            }
        }
    }
}
