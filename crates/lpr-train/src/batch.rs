//! From integer batches to tensors on a device: the one place where both crates meet.

use burn::tensor::{Device, Int, Tensor, TensorData};
use lpr_data::TokenBatch;
use lpr_kernels::SequenceMask;
use lpr_model::ModelInput;

// The data loader marks what the loss skips.
const _: () = assert!(lpr_data::IGNORE_INDEX as i64 == lpr_kernels::IGNORE_INDEX);

/// One micro-batch on the device.
#[derive(Debug, Clone)]
pub struct MicroBatch {
    /// What the model reads.
    pub input: ModelInput,
    /// `[tokens]`, the token that follows each position, or `IGNORE_INDEX`.
    pub targets: Tensor<1, Int>,
    /// `[tokens]`, 1 for a token and 0 for padding; `None` when there is no padding.
    pub is_token: Option<Tensor<1, Int>>,
    /// Rows, each a sequence.
    pub num_rows: usize,
    /// Positions, padding included.
    pub num_positions: usize,
    /// Positions that hold a token.
    pub num_tokens: usize,
    /// Targets that count.
    pub num_targets: usize,
}

impl MicroBatch {
    /// Copies `batch` to `device` (the plain one, without autodiff: token ids carry no gradient).
    pub fn new(batch: &TokenBatch, device: &Device) -> Self {
        let shape = [batch.num_rows, batch.sequence_length];
        let num_positions = shape[0] * shape[1];
        let num_tokens = batch.is_token.iter().filter(|&&is| is).count();
        let ints = |values: Vec<i32>| -> Tensor<2, Int> {
            Tensor::from_data(TensorData::new(values, shape), device)
        };
        let is_token = || ints(batch.is_token.iter().map(|&is| i32::from(is)).collect());
        let has_padding = num_tokens < num_positions;
        let many_documents = batch.document_ids.iter().any(|&id| id != 0);
        Self {
            input: ModelInput {
                input_ids: ints(batch.input_ids.iter().map(|&id| id as i32).collect()),
                position_ids: ints(batch.position_ids.iter().map(|&p| p as i32).collect()),
                mask: (has_padding || many_documents).then(|| SequenceMask {
                    document_ids: ints(batch.document_ids.iter().map(|&d| d as i32).collect()),
                    is_token: is_token(),
                }),
            },
            targets: ints(batch.targets.clone()).reshape([num_positions]),
            is_token: has_padding.then(|| is_token().reshape([num_positions])),
            num_rows: batch.num_rows,
            num_positions,
            num_tokens,
            num_targets: batch.num_targets,
        }
    }
}
