//! Rows picked by a table, and sums of them.

use super::empty;
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
        ops::FloatTensorOps,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{IntDType, Shape, Tensor},
};
use burn_cubecl::{CubeBackend, kernel::into_contiguous, tensor::CubeTensor};
use cubecl::{CubeDim, calculate_cube_count_elemwise};

/// See [`crate::rows::take_rows`].
pub(crate) fn take_rows(source: Tensor<2>, map: RowMap) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::rows_taken(
        source.into_dispatch(),
        map.taken.cast(IntDType::I32).into_dispatch(),
        map.sorted.cast(IntDType::I32).into_dispatch(),
    ))
}

/// The operation with a gradient of its own; the integers have 32 bits.
#[backend_extension(Cube, Autodiff)]
pub(crate) trait TakeRows: Backend {
    fn rows_taken(
        source: FloatTensor<Self>,
        taken: IntTensor<Self>,
        sorted: IntTensor<Self>,
    ) -> FloatTensor<Self>;
}

impl TakeRows for CubeBackend {
    fn rows_taken(source: CubeTensor, taken: CubeTensor, _sorted: CubeTensor) -> CubeTensor {
        picked(source, taken)
    }
}

impl<C: CheckpointStrategy> TakeRows for Autodiff<CubeBackend, C> {
    fn rows_taken(
        source: FloatTensor<Self>,
        taken: IntTensor<Self>,
        sorted: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        let node = TakenRows.prepare::<C>([source.node()]);
        let source = source.into_primitive();
        let rows = source.meta.shape()[0];
        let output = picked(source, taken.clone());
        match node.compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                let kept = Kept {
                    taken: into_contiguous(taken),
                    sorted: into_contiguous(sorted),
                    rows,
                };
                prepared.finish(kept, output)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(output),
        }
    }
}

/// A node of the graph.
#[derive(Debug)]
struct TakenRows;

/// What the backward pass needs.
#[derive(Clone, Debug)]
struct Kept {
    taken: CubeTensor,
    sorted: CubeTensor,
    /// Rows of the source.
    rows: usize,
}

impl Backward<CubeBackend, 1> for TakenRows {
    type State = Kept;

    fn backward(self, ops: Ops<Kept, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [parent] = ops.parents;
        let grad = grads.consume::<CubeBackend>(&ops.node);
        if let Some(parent) = parent {
            grads.register::<CubeBackend>(parent.id, added_up(grad, ops.state));
        }
    }
}

/// `out[i] = source[taken[i]]`, zeros for a negative one.
fn picked(source: CubeTensor, taken: CubeTensor) -> CubeTensor {
    let (source, taken) = (into_contiguous(source), into_contiguous(taken));
    let columns = source.meta.shape()[1];
    let client = source.client.clone();
    let out = empty(&source, [taken.meta.shape()[0], columns], source.dtype);
    let elements = out.meta.num_elements();
    if elements == 0 {
        return out;
    }
    let dim = CubeDim::new(&client, elements);
    let dtype = dtype_to_storage_type(source.dtype);
    kernel::pick_rows::launch(
        &client,
        calculate_cube_count_elemwise(&client, elements, dim),
        dim,
        source.into_tensor_arg(),
        taken.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        columns,
        dtype,
    );
    out
}

/// `out[r] = sum over the i with taken[i] = r of grad[i]`, in the order of `kept.sorted` and added up in
/// `f32`.
fn added_up(grad: CubeTensor, kept: Kept) -> CubeTensor {
    let grad = into_contiguous(grad);
    let columns = grad.meta.shape()[1];
    let client = grad.client.clone();
    let shape = Shape::from(vec![kept.rows, columns]);
    let sums = CubeBackend::float_zeros(shape, &grad.device, grad.dtype.into());
    let units = kept.sorted.meta.num_elements() * columns;
    if units == 0 {
        return sums;
    }
    let dim = CubeDim::new(&client, units);
    let dtype = dtype_to_storage_type(grad.dtype);
    kernel::sum_of_runs::launch(
        &client,
        calculate_cube_count_elemwise(&client, units, dim),
        dim,
        grad.into_tensor_arg(),
        kept.taken.into_tensor_arg(),
        kept.sorted.into_tensor_arg(),
        sums.clone().into_tensor_arg(),
        columns,
        dtype,
    );
    sums
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
    pub(super) fn pick_rows<F: Float>(
        source: &Tensor<F>,
        taken: &Tensor<i32>,
        out: &mut Tensor<F>,
        columns: usize,
        #[define(F)] _type: ElemType,
    ) {
        if ABSOLUTE_POS >= out.len() {
            terminate!();
        }
        let row = taken[ABSOLUTE_POS / columns];
        if row >= 0 {
            let column = ABSOLUTE_POS % columns;
            out[ABSOLUTE_POS] = source[usize::cast_from(row) * columns + column];
        } else {
            out[ABSOLUTE_POS] = F::new(0.0);
        }
    }

    /// One unit per column and entry of `sorted`. The one of the first entry of a row of the result adds
    /// up all of that row.
    #[cube(launch)]
    pub(super) fn sum_of_runs<F: Float>(
        grad: &Tensor<F>,
        taken: &Tensor<i32>,
        sorted: &Tensor<i32>,
        sums: &mut Tensor<F>,
        columns: usize,
        #[define(F)] _type: ElemType,
    ) {
        let entry = ABSOLUTE_POS / columns;
        if entry >= sorted.len() {
            terminate!();
        }
        let row = taken_at(taken, sorted, entry);
        let mut is_first = row >= 0;
        if entry > 0 {
            is_first = is_first && taken_at(taken, sorted, entry - 1) != row;
        }
        if is_first {
            let column = ABSOLUTE_POS % columns;
            let mut sum = 0.0f32;
            let mut next = entry;
            let mut goes_on = true;
            while goes_on {
                let output = usize::cast_from(sorted[next]);
                sum += f32::cast_from(grad[output * columns + column]);
                next += 1;
                goes_on = false;
                if next < sorted.len() {
                    goes_on = taken_at(taken, sorted, next) == row;
                }
            }
            sums[usize::cast_from(row) * columns + column] = F::cast_from(sum);
        }
    }

    /// The row that the row of the result in this entry takes, -1 for none.
    #[cube]
    fn taken_at(taken: &Tensor<i32>, sorted: &Tensor<i32>, entry: usize) -> i32 {
        let output = sorted[entry];
        let mut row = i32::new(-1);
        if output >= 0 {
            row = taken[usize::cast_from(output)];
        }
        row
    }
}
