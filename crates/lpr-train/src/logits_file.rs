//! What a model makes of one batch, as a file for comparison with other programs.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Device, Int, Tensor};
use lpr_data::TokenBatch;
use lpr_model::CausalLm;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use crate::atomic_file;
use crate::batch::MicroBatch;
use crate::error::TrainError;

/// An array on its way to the file.
struct Array {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// Writes `batch` and what `model` (without autodiff) makes of it to a safetensors file:
/// `input_ids`, `is_token`, `document_ids` and `position_ids`, 64-bit integers `[rows, sequence]`;
/// `logits`, 32-bit floats `[rows, sequence, vocab_size]`; and for every layer with experts
/// `experts.<index>`, 64-bit integers `[rows, sequence, top_k]`, the best first.
///
/// # Errors
/// If the file cannot be written.
pub fn write(
    path: &Path,
    model: &CausalLm,
    batch: &TokenBatch,
    device: &Device,
) -> Result<(), TrainError> {
    let shape = |last: Option<usize>| -> Vec<usize> {
        let rows = [batch.num_rows, batch.sequence_length];
        rows.into_iter().chain(last).collect()
    };
    let integers = |values: &mut dyn Iterator<Item = i64>, last: Option<usize>| Array {
        dtype: Dtype::I64,
        shape: shape(last),
        bytes: values.flat_map(i64::to_le_bytes).collect(),
    };
    let mut arrays = BTreeMap::new();
    for (name, values) in [
        ("input_ids", &batch.input_ids),
        ("document_ids", &batch.document_ids),
        ("position_ids", &batch.position_ids),
    ] {
        let mut values = values.iter().map(|&value| i64::from(value));
        arrays.insert(name.to_owned(), integers(&mut values, None));
    }
    let mut is_token = batch.is_token.iter().map(|&is| i64::from(is));
    arrays.insert("is_token".to_owned(), integers(&mut is_token, None));
    let output = model.forward(&MicroBatch::new(batch, device).input, None);
    for (layer, routing) in output.routings.into_iter().enumerate() {
        let chosen: Tensor<2, Int> = routing.expert_indices;
        let top_k = chosen.dims()[1];
        let data = chosen.into_data();
        let array = integers(&mut data.iter::<i64>(), Some(top_k));
        arrays.insert(format!("experts.{layer}"), array);
    }
    let logits = model.logits(output.hidden_states);
    let vocab_size = logits.dims()[1];
    let array = Array {
        dtype: Dtype::F32,
        shape: shape(Some(vocab_size)),
        bytes: logits
            .into_data()
            .iter::<f32>()
            .flat_map(f32::to_le_bytes)
            .collect(),
    };
    arrays.insert("logits".to_owned(), array);

    let view = |array| {
        let Array {
            dtype,
            shape,
            bytes,
        }: &Array = array;
        TensorView::new(*dtype, shape.clone(), bytes).expect("as many bytes as the shape says")
    };
    let views = arrays.iter().map(|(name, array)| (name, view(array)));
    safetensors::serialize(views, None)
        .map_err(std::io::Error::other)
        .and_then(|bytes| atomic_file::replace(path, |out| out.write_all(&bytes)))
        .map_err(|error| TrainError::io(path, error))
}
