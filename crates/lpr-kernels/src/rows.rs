//! Rows of a matrix in another order, with a gradient that every device adds up in a fixed order.

use burn::tensor::{Int, Tensor};

/// Which rows to take, and where each went.
#[derive(Clone, Debug)]
pub(crate) struct RowMap {
    /// The row of the source for each row of the result, `[outputs]`.
    pub(crate) taken: Tensor<1, Int>,
    /// The rows of the result that a row of the source went to, `[rows, any]`, -1 for none.
    pub(crate) went_to: Tensor<2, Int>,
}

/// `out[i] = source[map.taken[i]]`, `[outputs, columns]` of `[rows, columns]`.
///
/// A row of the result that `map.went_to` leaves out must have a gradient of zero. On GPUs the
/// gradient is a kernel of this crate; Burn's own for a selection has one thread for a column.
pub(crate) fn take_rows(source: Tensor<2>, map: RowMap) -> Tensor<2> {
    assert_eq!(
        map.went_to.dims()[0],
        source.dims()[0],
        "take_rows: a list for each row"
    );
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    if !crate::dispatch::is_cpu(&source.device()) {
        return crate::gpu::rows::take_rows(source, map);
    }
    source.select(0, map.taken)
}
