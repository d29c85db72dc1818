//! Rows picked by a table, and sums of them.

use crate::rows::RowMap;
use burn::{
    backend::{
        Autodiff, Backend, Dispatch,
        autodiff::{
            checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
            grads::Gradients,
            ops::{Backward, Ops, OpsKind},
        },
        backend_extension,
        cubecl::dtype_to_storage_type,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{DType, Shape, Tensor},
};
use burn_cubecl::{CubeBackend, kernel::into_contiguous, tensor::CubeTensor};
use cubecl::{CubeDim, calculate_cube_count_elemwise};

/// See [`crate::rows::take_rows`].
pub(crate) fn take_rows(source: Tensor<2>, map: RowMap) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::rows_taken(
        source.into_dispatch(),
        map.taken.unsqueeze_dim::<2>(1).into_dispatch(),
        map.went_to.into_dispatch(),
    ))
}

/// The operation with a gradient of its own; `taken` is `[outputs, 1]`.
#[backend_extension(Cube, Autodiff)]
pub(crate) trait TakeRows: Backend {
    fn rows_taken(
        source: FloatTensor<Self>,
        taken: IntTensor<Self>,
        went_to: IntTensor<Self>,
    ) -> FloatTensor<Self>;
}

impl TakeRows for CubeBackend {
    fn rows_taken(source: CubeTensor, taken: CubeTensor, _went_to: CubeTensor) -> CubeTensor {
        sum_of_rows(source, taken)
    }
}

impl<C: CheckpointStrategy> TakeRows for Autodiff<CubeBackend, C> {
    fn rows_taken(
        source: FloatTensor<Self>,
        taken: IntTensor<Self>,
        went_to: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        let node = TakenRows.prepare::<C>([source.node()]);
        let output = sum_of_rows(source.into_primitive(), taken);
        match node.compute_bound().stateful() {
            OpsKind::Tracked(prepared) => prepared.finish(went_to, output),
            OpsKind::UnTracked(prepared) => prepared.finish(output),
        }
    }
}

/// A node of the graph.
#[derive(Debug)]
struct TakenRows;

impl Backward<CubeBackend, 1> for TakenRows {
    type State = CubeTensor;

    fn backward(self, ops: Ops<CubeTensor, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [parent] = ops.parents;
        let grad = grads.consume::<CubeBackend>(&ops.node);
        if let Some(parent) = parent {
            grads.register::<CubeBackend>(parent.id, sum_of_rows(grad, ops.state));
        }
    }
}

/// `out[i] = sum over j of source[picks[i, j]]`, in the order of `j` and added up in `f32`; a negative
/// pick adds nothing.
///
/// # Shapes
///
/// - `source`: `[rows, columns]`
/// - `picks`: `[outputs, any]`, each below `rows`
/// - the result: `[outputs, columns]`
pub(crate) fn sum_of_rows(source: CubeTensor, picks: CubeTensor) -> CubeTensor {
    let (source, picks) = (into_contiguous(source), into_contiguous(picks));
    let [outputs, per_output] = [picks.meta.shape()[0], picks.meta.shape()[1]];
    let columns = source.meta.shape()[1];
    let client = source.client.clone();
    let out = empty(&source, [outputs, columns], source.dtype);
    let elements = outputs * columns;
    if elements == 0 {
        return out;
    }
    let dim = CubeDim::new(&client, elements);
    let count = calculate_cube_count_elemwise(&client, elements, dim);
    let types = [source.dtype, picks.dtype].map(dtype_to_storage_type);
    kernel::sum_of_rows::launch(
        &client,
        count,
        dim,
        source.into_tensor_arg(),
        picks.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        columns,
        per_output,
        types,
    );
    out
}

/// A tensor on the device of `like` whose elements nobody has written.
fn empty(like: &CubeTensor, shape: [usize; 2], dtype: DType) -> CubeTensor {
    let shape = Shape::from(shape.to_vec());
    let handle = like.client.empty(shape.num_elements() * dtype.size());
    let (client, device) = (like.client.clone(), like.device.clone());
    CubeTensor::new_contiguous(client, device, shape, handle, dtype)
}

/// Apart, for the language has a `Tensor` of its own.
#[allow(
    clippy::used_underscore_binding,
    reason = "what `cube` makes of the types reads them"
)]
mod kernel {
    use cubecl::prelude::*;

    /// One unit per element of the result.
    #[cube(launch)]
    pub(super) fn sum_of_rows<F: Float, I: Int>(
        source: &Tensor<F>,
        picks: &Tensor<I>,
        out: &mut Tensor<F>,
        columns: usize,
        per_output: usize,
        #[define(F, I)] _types: [ElemType; 2],
    ) {
        if ABSOLUTE_POS >= out.len() {
            terminate!();
        }
        let row = ABSOLUTE_POS / columns;
        let column = ABSOLUTE_POS % columns;
        let mut sum = 0.0f32;
        for j in 0..per_output {
            let pick = i32::cast_from(picks[row * per_output + j]);
            if pick >= 0 {
                sum += f32::cast_from(source[usize::cast_from(pick) * columns + column]);
            }
        }
        out[ABSOLUTE_POS] = F::cast_from(sum);
    }
}
