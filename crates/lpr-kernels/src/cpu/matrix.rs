//! Views of matrices that are checked to lie within their data.

use super::{
    Level,
    buffer::NewFloat,
    product::{self, Factor, Side},
};
use std::{marker::PhantomData, ops::Range};

/// A matrix to read: stored rows, each of consecutive elements, as they are or transposed.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    data: &'a [f32],
    rows: Rows<'a>,
    /// Distance of stored rows.
    stride: usize,
    /// Elements of a stored row.
    width: usize,
    transposed: bool,
}

/// Which rows of the data are stored rows of the matrix.
#[derive(Clone, Copy)]
enum Rows<'a> {
    First(usize),
    Listed(&'a [usize]),
}

impl<'a> Matrix<'a> {
    /// Consecutive rows: `data` has `rows * cols` elements or more.
    pub(crate) fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// Rows that start `stride` elements apart.
    pub(crate) fn strided(data: &'a [f32], rows: usize, cols: usize, stride: usize) -> Self {
        assert!(
            rows == 0 || (rows - 1) * stride + cols <= data.len(),
            "a matrix within its data"
        );
        Self {
            data,
            rows: Rows::First(rows),
            stride,
            width: cols,
            transposed: false,
        }
    }

    /// The `listed` ones of the rows of `data`, which have `cols` elements.
    pub(crate) fn listed(data: &'a [f32], listed: &'a [usize], cols: usize) -> Self {
        assert!(
            listed.iter().all(|row| (row + 1) * cols <= data.len()),
            "rows within the data"
        );
        Self {
            data,
            rows: Rows::Listed(listed),
            stride: cols,
            width: cols,
            transposed: false,
        }
    }

    /// Some rows.
    pub(crate) fn rows(self, rows: Range<usize>) -> Self {
        if self.transposed {
            return self.transposed().cols(rows).transposed();
        }
        match self.rows {
            Rows::First(count) => {
                assert!(rows.end <= count, "rows within the matrix");
                let start = (rows.start * self.stride).min(self.data.len());
                Self {
                    data: &self.data[start..],
                    rows: Rows::First(rows.len()),
                    ..self
                }
            }
            Rows::Listed(listed) => Self {
                rows: Rows::Listed(&listed[rows]),
                ..self
            },
        }
    }

    /// Some columns.
    pub(crate) fn cols(self, cols: Range<usize>) -> Self {
        if self.transposed {
            return self.transposed().rows(cols).transposed();
        }
        assert!(cols.end <= self.width, "columns within the matrix");
        Self {
            data: &self.data[cols.start.min(self.data.len())..],
            width: cols.len(),
            ..self
        }
    }

    /// The transposed matrix.
    pub(crate) fn transposed(self) -> Self {
        Self {
            transposed: !self.transposed,
            ..self
        }
    }

    pub(super) fn is_transposed(self) -> bool {
        self.transposed
    }

    /// The number of elements behind which a stored row starts.
    ///
    /// # Panics
    ///
    /// If there is no such row.
    #[inline]
    pub(super) fn start_of_row(self, index: usize) -> usize {
        match self.rows {
            Rows::First(count) => {
                assert!(index < count, "a row of the matrix");
                index * self.stride
            }
            Rows::Listed(listed) => listed[index] * self.stride,
        }
    }

    /// Distance of stored rows, unless they are listed.
    #[inline]
    pub(super) fn stride(self) -> usize {
        self.stride
    }

    /// The elements, from the first stored row's first to the last of all data: every stored row
    /// lies within them.
    #[inline]
    pub(super) fn data(self) -> &'a [f32] {
        self.data
    }

    /// Where the elements are, unless the rows are listed.
    pub(super) fn elements(self) -> Option<Elements> {
        let Rows::First(rows) = self.rows else {
            return None;
        };
        assert!(
            rows == 0 || (rows - 1) * self.stride + self.width <= self.data.len(),
            "a matrix within its data"
        );
        let mut strides = [self.stride, 1];
        if self.transposed {
            strides.reverse();
        }
        let data = self.data.as_ptr();
        Some(Elements { data, strides })
    }

    /// Rows and columns.
    pub(crate) fn dims(self) -> [usize; 2] {
        let rows = match self.rows {
            Rows::First(count) => count,
            Rows::Listed(listed) => listed.len(),
        };
        if self.transposed {
            [self.width, rows]
        } else {
            [rows, self.width]
        }
    }
}

/// The first element of a matrix, and the distances of its rows and columns.
#[derive(Clone, Copy)]
pub(super) struct Elements {
    pub(super) data: *const f32,
    pub(super) strides: [usize; 2],
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
    pub(crate) fn set_product<'f>(
        &mut self,
        level: Level,
        lhs: impl Into<Factor<'f>>,
        rhs: impl Into<Factor<'f>>,
    ) {
        // SAFETY: nothing is read from the target.
        unsafe { self.product(level, lhs.into(), rhs.into(), false) }
    }

    /// Adds the product `lhs rhs`.
    ///
    /// # Safety
    ///
    /// Every element must have been written before.
    pub(crate) unsafe fn add_product<'f>(
        &mut self,
        level: Level,
        lhs: impl Into<Factor<'f>>,
        rhs: impl Into<Factor<'f>>,
    ) {
        // SAFETY: the caller vouches for the elements of the target.
        unsafe { self.product(level, lhs.into(), rhs.into(), true) }
    }

    /// # Safety
    ///
    /// With `add`, every element must have been written before.
    unsafe fn product(&mut self, level: Level, lhs: Factor<'_>, rhs: Factor<'_>, add: bool) {
        let ([rows, depth], [rhs_rows, cols]) = (lhs.dims(), rhs.dims());
        assert!(
            [rows, cols, depth] == [self.rows, self.cols, rhs_rows],
            "[{}, {}] = [{rows}, {depth}] x [{rhs_rows}, {cols}]",
            self.rows,
            self.cols,
        );
        assert!(
            lhs.fits(level, Side::Left) && rhs.fits(level, Side::Right),
            "factors that were packed for this product"
        );
        if depth == 0 {
            if !add {
                self.clear();
            }
            return;
        }
        // SAFETY: the target is exclusive and has these rows and columns, and the caller vouches for
        // its values.
        unsafe { product::product(level, self.data, self.row_stride, lhs, rhs, add) };
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
