//! Matrix products on one thread, by the `gemm` crate, behind views that are checked to lie within
//! their data.
//!
//! Parallel work is cut into products of fixed shapes by the callers, so that results do not depend
//! on the number of threads.

use super::buffer::NewFloat;
use std::marker::PhantomData;

/// A matrix to read.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Consecutive rows: `data` has `rows * cols` elements or more.
    pub(crate) fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// Rows that start `row_stride` elements apart.
    pub(crate) fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(
            rows == 0 || (rows - 1) * row_stride + cols <= data.len(),
            "a matrix within its data"
        );
        Self {
            data,
            rows,
            cols,
            row_stride,
            col_stride: 1,
        }
    }

    /// The transposed matrix.
    pub(crate) fn transposed(self) -> Self {
        Self {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }
}

/// A matrix to write.
pub(crate) struct MatrixMut<'a> {
    data: *mut f32,
    rows: usize,
    cols: usize,
    row_stride: usize,
    buffer: PhantomData<&'a mut [NewFloat]>,
}

impl<'a> MatrixMut<'a> {
    /// Consecutive rows: `data` has `rows * cols` elements.
    pub(crate) fn new(data: &'a mut [NewFloat], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols, "a matrix that fills its data");
        // SAFETY: the elements are exactly those of the exclusively borrowed slice.
        unsafe { Self::from_raw(data.as_mut_ptr().cast(), [rows, cols], cols) }
    }

    /// # Safety
    ///
    /// For `'a`, the elements must be writable, distinct and used by nothing else.
    pub(crate) unsafe fn from_raw(
        data: *mut f32,
        [rows, cols]: [usize; 2],
        row_stride: usize,
    ) -> Self {
        Self {
            data,
            rows,
            cols,
            row_stride,
            buffer: PhantomData,
        }
    }

    /// Writes the product `lhs rhs`.
    pub(crate) fn set_product(&mut self, lhs: Matrix<'_>, rhs: Matrix<'_>) {
        // SAFETY: nothing is read from the target.
        unsafe { self.product(lhs, rhs, false) }
    }

    /// Adds the product `lhs rhs`.
    ///
    /// # Safety
    ///
    /// Every element must have been written before.
    pub(crate) unsafe fn add_product(&mut self, lhs: Matrix<'_>, rhs: Matrix<'_>) {
        // SAFETY: the caller vouches for the elements of the target.
        unsafe { self.product(lhs, rhs, true) }
    }

    /// # Safety
    ///
    /// With `add`, every element must have been written before.
    unsafe fn product(&mut self, lhs: Matrix<'_>, rhs: Matrix<'_>, add: bool) {
        assert!(
            lhs.rows == self.rows && rhs.cols == self.cols && lhs.cols == rhs.rows,
            "[{}, {}] = [{}, {}] x [{}, {}]",
            self.rows,
            self.cols,
            lhs.rows,
            lhs.cols,
            rhs.rows,
            rhs.cols
        );
        if lhs.cols == 0 {
            if !add {
                self.clear();
            }
            return;
        }
        // SAFETY: the views lie within their data and their shapes fit together; the target is
        // exclusive.
        unsafe {
            gemm::gemm(
                self.rows,
                self.cols,
                lhs.cols,
                self.data,
                1,
                self.row_stride as isize,
                add,
                lhs.data.as_ptr(),
                lhs.col_stride as isize,
                lhs.row_stride as isize,
                rhs.data.as_ptr(),
                rhs.col_stride as isize,
                rhs.row_stride as isize,
                1.0,
                1.0,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
    }

    /// Writes zeros.
    pub(crate) fn clear(&mut self) {
        for row in 0..self.rows {
            // SAFETY: the row lies within the exclusively borrowed target.
            unsafe {
                let start = self.data.add(row * self.row_stride);
                start.write_bytes(0, self.cols);
            }
        }
    }
}
