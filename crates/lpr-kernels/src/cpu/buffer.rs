//! Memory that is written before it is read, alone or by several tasks at once.

use super::matrix::MatrixMut;
use std::{marker::PhantomData, mem::MaybeUninit, ops::Range};

/// A float that may not have been written yet.
pub(crate) type NewFloat = MaybeUninit<f32>;

/// A buffer of `len` floats without a value. Saves the pass over memory that clearing it would
/// cost.
pub(crate) fn new_buffer(len: usize) -> Vec<NewFloat> {
    let mut buffer = Vec::with_capacity(len);
    // SAFETY: the capacity is `len` and `MaybeUninit` needs no value.
    unsafe { buffer.set_len(len) };
    buffer
}

/// Takes a buffer as written.
///
/// # Safety
///
/// Every float of it must have been written.
pub(crate) unsafe fn written(buffer: Vec<NewFloat>) -> Vec<f32> {
    let mut buffer = std::mem::ManuallyDrop::new(buffer);
    let (data, len, capacity) = (buffer.as_mut_ptr(), buffer.len(), buffer.capacity());
    // SAFETY: the parts come from a vector whose destructor does not run, the element types have
    // the same layout, and the caller vouches for the values.
    unsafe { Vec::from_raw_parts(data.cast(), len, capacity) }
}

/// Takes a slice as written.
///
/// # Safety
///
/// Every float of it must have been written.
pub(crate) unsafe fn written_slice(slice: &mut [NewFloat]) -> &mut [f32] {
    // SAFETY: same layout, and the caller vouches for the values.
    unsafe { &mut *(std::ptr::from_mut(slice) as *mut [f32]) }
}

/// Copies `source` to `target`, which has the same length.
pub(crate) fn copy_to_new(target: &mut [NewFloat], source: &[f32]) {
    // SAFETY: `MaybeUninit<f32>` has the layout of `f32`.
    let source = unsafe { &*(std::ptr::from_ref(source) as *const [NewFloat]) };
    target.copy_from_slice(source);
}

/// Zeros for sums that one task adds to often.
///
/// Around them there is room that nobody uses. Where small allocations of two tasks meet in a cache
/// line, each addition of one would take the line from the other.
pub(crate) struct Sums {
    data: Vec<f32>,
}

/// Floats of two cache lines: CPUs fetch lines in pairs.
const LINE_PAIR: usize = 32;

impl Sums {
    pub(crate) fn zeros(len: usize) -> Self {
        Self {
            data: vec![0.0; len + 2 * LINE_PAIR],
        }
    }
}

impl std::ops::Deref for Sums {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.data[LINE_PAIR..self.data.len() - LINE_PAIR]
    }
}

impl std::ops::DerefMut for Sums {
    fn deref_mut(&mut self) -> &mut [f32] {
        let end = self.data.len() - LINE_PAIR;
        &mut self.data[LINE_PAIR..end]
    }
}

/// A buffer that several tasks fill, each its own places.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a> {
    data: *mut f32,
    len: usize,
    buffer: PhantomData<&'a mut [NewFloat]>,
}

// SAFETY: it is a pointer to plain floats; whoever turns it into a reference vouches that no other
// task uses the place.
unsafe impl Send for Shared<'_> {}
// SAFETY: as above.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    /// Shares `buffer` for its lifetime.
    pub(crate) fn new(buffer: &'a mut [NewFloat]) -> Self {
        Self {
            data: buffer.as_mut_ptr().cast(),
            len: buffer.len(),
            buffer: PhantomData,
        }
    }

    /// A part of the buffer.
    ///
    /// # Safety
    ///
    /// While the slice lives, nothing else may use this part.
    pub(crate) unsafe fn slice(self, range: Range<usize>) -> &'a mut [NewFloat] {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "a part within the buffer"
        );
        // SAFETY: the part lies within the buffer, and the caller vouches that it is not used
        // elsewhere.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(range.start).cast(), range.len()) }
    }

    /// A matrix within the buffer whose rows are `row_stride` floats apart.
    ///
    /// # Safety
    ///
    /// While the matrix lives, nothing else may use its elements.
    pub(crate) unsafe fn matrix(
        self,
        offset: usize,
        [rows, cols]: [usize; 2],
        row_stride: usize,
    ) -> MatrixMut<'a> {
        let last_row = rows.checked_sub(1);
        let end = last_row.map_or(offset, |last| offset + last * row_stride + cols);
        assert!(
            cols <= row_stride && end <= self.len,
            "a matrix within the buffer"
        );
        // SAFETY: all elements lie within the buffer and no two coincide; the caller vouches for
        // the rest.
        unsafe { MatrixMut::from_raw(self.data.add(offset), [rows, cols], row_stride) }
    }
}
