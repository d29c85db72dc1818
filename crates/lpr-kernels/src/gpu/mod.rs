//! Kernels for all GPUs, in the language of `cubecl`, where Burn's own operations are slow, wait for the
//! host, or add up in an order that changes from run to run.

pub(crate) mod order;
pub(crate) mod rows;

use burn::tensor::{DType, Int, Shape, Tensor};
use burn_cubecl::{CubeBackend, kernel::into_contiguous, tensor::CubeTensor};

/// What the kernels see of integers.
fn primitive<const D: usize>(tensor: Tensor<D, Int>) -> CubeTensor {
    let tensor = tensor.try_into_primitive::<CubeBackend>();
    into_contiguous(tensor.expect("a tensor of a GPU"))
}

/// A tensor on the device of `like` whose elements nobody has written.
fn empty<const D: usize>(like: &CubeTensor, shape: [usize; D], dtype: DType) -> CubeTensor {
    let shape = Shape::from(shape.to_vec());
    let handle = like.client.empty(shape.num_elements() * dtype.size());
    let (client, device) = (like.client.clone(), like.device.clone());
    CubeTensor::new_contiguous(client, device, shape, handle, dtype)
}
