//! Where the heads of attention are in memory.

use super::{
    buffer::{Shared, copy_to_new},
    matrix::{Matrix, MatrixMut},
};
use std::ops::Range;

/// Some consecutive heads of a tensor `[batch, seq, heads, dim]`: where they are.
#[derive(Clone, Copy)]
pub(crate) struct Heads {
    pub(crate) row: usize,
    pub(crate) seq: usize,
    /// Heads of the tensor.
    pub(crate) of: usize,
    pub(crate) first: usize,
    pub(crate) count: usize,
    pub(crate) dim: usize,
}

impl Heads {
    /// Where they are at a position, one after the other.
    fn at(self, position: usize) -> Range<usize> {
        let start = ((self.row * self.seq + position) * self.of + self.first) * self.dim;
        start..start + self.count * self.dim
    }

    /// The rows of a single head at these positions.
    pub(crate) fn matrix(self, data: &[f32], positions: Range<usize>) -> Matrix<'_> {
        let data = &data[self.at(positions.start).start..];
        Matrix::strided(data, positions.len(), self.dim, self.of * self.dim)
    }

    /// The rows of a single head at these positions, to write.
    ///
    /// # Safety
    ///
    /// While the matrix lives, nothing else may use these rows.
    pub(crate) unsafe fn matrix_mut(
        self,
        data: Shared<'_>,
        positions: Range<usize>,
    ) -> MatrixMut<'_> {
        let shape = [positions.len(), self.dim];
        let start = self.at(positions.start).start;
        // SAFETY: the caller vouches for it.
        unsafe { data.matrix(start, shape, self.of * self.dim) }
    }

    /// A copy, `[positions, count, dim]`.
    pub(crate) fn collect(self, data: &[f32], positions: Range<usize>) -> Vec<f32> {
        let mut copy = Vec::with_capacity(positions.len() * self.count * self.dim);
        for position in positions {
            copy.extend_from_slice(&data[self.at(position)]);
        }
        copy
    }

    /// Writes what [`Heads::collect`] would read.
    ///
    /// # Safety
    ///
    /// Nothing else may use these heads at these positions.
    pub(crate) unsafe fn spread(self, copy: &[f32], data: Shared<'_>, positions: Range<usize>) {
        let copy = copy.chunks_exact(self.count * self.dim);
        for (position, copy) in positions.zip(copy) {
            // SAFETY: the caller vouches for it.
            copy_to_new(unsafe { data.slice(self.at(position)) }, copy);
        }
    }
}
