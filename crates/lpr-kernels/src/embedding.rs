//! The vectors of tokens.

use burn::tensor::{Int, Tensor, module};

/// The row of `table` for each id. Gradients flow to the table.
///
/// On GPUs the gradient adds up the positions of each id in their order, which are sorted on the device;
/// Burn's own has one thread for a column.
///
/// # Shapes
///
/// - `table`: `[vocab_size, hidden]`
/// - `ids`: `[batch, sequence]`, each in `0..vocab_size`
/// - the result: `[batch, sequence, hidden]`
pub fn embedding(table: Tensor<2>, ids: Tensor<2, Int>) -> Tensor<3> {
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    if !crate::dispatch::is_cpu(&table.device()) {
        return on_gpu(table, ids);
    }
    module::embedding(table, ids)
}

#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn on_gpu(table: Tensor<2>, ids: Tensor<2, Int>) -> Tensor<3> {
    use crate::{
        gpu::order::stable_order,
        rows::{RowMap, take_rows},
    };
    let ([vocab_size, hidden], [batch, sequence]) = (table.dims(), ids.dims());
    let ids = ids.inner().reshape([batch * sequence]);
    let map = RowMap {
        sorted: stable_order(&ids, vocab_size),
        taken: ids,
    };
    take_rows(table, map).reshape([batch, sequence, hidden])
}
