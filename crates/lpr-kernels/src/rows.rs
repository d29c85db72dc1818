//! Rows of a matrix in another order, with a gradient that every device adds up in a fixed order.

use burn::tensor::{Int, Tensor};

/// Which rows to take.
#[derive(Clone, Debug)]
pub(crate) struct RowMap {
    /// The row of the source for each row of the result, -1 for none, `[outputs]`.
    pub(crate) taken: Tensor<1, Int>,
    /// All rows of the result that take one, once each, those with the smallest `taken` first. Others,
    /// and -1, may be before and after all that take the same. Only GPUs ask for it.
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    pub(crate) sorted: Tensor<1, Int>,
}

/// `out[i] = source[map.taken[i]]` or zeros where there is none, `[outputs, columns]` of `[rows,
/// columns]`.
///
/// On GPUs the gradient is a kernel of this crate that goes through `map.sorted`, so that nothing
/// waits for the host and each sum has one order; Burn's own for a selection has one thread for a
/// column.
pub(crate) fn take_rows(source: Tensor<2>, map: RowMap) -> Tensor<2> {
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    if !crate::dispatch::is_cpu(&source.device()) {
        return crate::gpu::rows::take_rows(source, map);
    }
    let shape = [map.taken.dims()[0], source.dims()[1]];
    let is_none = map.taken.clone().lower_elem(0).unsqueeze_dim::<2>(1);
    let rows = source.select(0, map.taken.clamp_min(0));
    rows.mask_fill(is_none.expand(shape), 0)
}
