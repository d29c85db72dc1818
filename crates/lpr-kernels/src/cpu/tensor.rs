//! Between the tensors of Burn's CPU backend and slices.

use super::{Level, linear_cross_entropy::scale as multiply};
use burn::{
    backend::flex::{FlexTensor, Layout},
    tensor::{Bytes, DType, Shape},
};
use rayon::prelude::*;

/// Elements of a task of [`scale`].
const SCALE_BLOCK: usize = 1 << 16;

/// The tensor itself if its elements are consecutive in memory, else a copy in which they are.
pub(crate) fn consecutive(tensor: FlexTensor) -> FlexTensor {
    if tensor.layout().contiguous_offsets().is_some() {
        tensor
    } else {
        tensor.to_contiguous()
    }
}

/// The elements of a tensor that went through [`consecutive`].
///
/// # Panics
///
/// If the tensor is not of type `f32`.
pub(crate) fn floats(tensor: &FlexTensor) -> &[f32] {
    let found = tensor.dtype();
    let floats = tensor.as_slice::<f32>();
    floats.unwrap_or_else(|| panic!("all float tensors must be of type F32, found {found:?}"))
}

/// The elements of a tensor for writing, in place if nobody else holds its memory.
pub(crate) fn floats_mut(tensor: &mut FlexTensor) -> &mut [f32] {
    if tensor.bytes().len() != tensor.layout().num_elements() * size_of::<f32>() {
        *tensor = tensor.to_contiguous();
    }
    tensor.storage_mut()
}

/// A tensor of these elements.
pub(crate) fn from_floats(values: Vec<f32>, shape: &[usize]) -> FlexTensor {
    let layout = Layout::contiguous(Shape::from(shape.to_vec()));
    FlexTensor::new(Bytes::from_elems(values), layout, DType::F32)
}

/// The elements of an integer tensor of any integer type.
pub(crate) fn integers(tensor: FlexTensor) -> Vec<i64> {
    tensor.into_data().iter::<i64>().collect()
}

/// The tensor times `factor`, in place if nobody else holds its memory.
pub(crate) fn scale(level: Level, mut tensor: FlexTensor, factor: f32) -> FlexTensor {
    if factor.to_bits() != 1.0_f32.to_bits() {
        let chunks = floats_mut(&mut tensor).par_chunks_mut(SCALE_BLOCK);
        chunks.for_each(|chunk| multiply(level, chunk, factor));
    }
    tensor
}
