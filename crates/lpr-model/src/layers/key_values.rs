//! What attention keeps of the tokens so far, so that the next one needs no second pass over them.

use burn::tensor::Tensor;
use lpr_kernels::{SequenceMask, causal_attention, softmax};

/// Keys and values of all tokens so far, of one attention.
#[derive(Debug, Clone, Default)]
pub struct KeyValues(Option<[Tensor<4>; 2]>);

impl KeyValues {
    /// Adds the keys and values of new tokens and attends to all there are.
    ///
    /// # Shapes
    /// As [`attend`].
    fn attend(
        &mut self,
        query: Tensor<4>,
        key: Tensor<4>,
        value: Tensor<4>,
        scale: f64,
    ) -> Tensor<4> {
        let Some([keys, values]) = self.0.take() else {
            self.0 = Some([key.clone(), value.clone()]);
            return causal_attention(query, key, value, None, scale);
        };
        let keys = Tensor::cat(vec![keys, key], 1);
        let values = Tensor::cat(vec![values, value], 1);
        self.0 = Some([keys.clone(), values.clone()]);
        attend_to_all(query, keys, values, scale)
    }
}

/// Causal attention within a row, or, with the `past`, of the tokens that follow it. The first tokens
/// may be many, then they come one by one.
///
/// # Shapes
/// - `query`: `[batch, sequence, heads, head_dim]`
/// - `key`: `[batch, sequence, kv_heads, head_dim]`
/// - `value`: `[batch, sequence, kv_heads, v_head_dim]`
/// - result: `[batch, sequence, heads, v_head_dim]`
pub fn attend(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    mask: Option<&SequenceMask>,
    past: Option<&mut KeyValues>,
    scale: f64,
) -> Tensor<4> {
    match past {
        None => causal_attention(query, key, value, mask, scale),
        Some(past) => past.attend(query, key, value, scale),
    }
}

/// `softmax(scale * query . keys) values` of one token that sees all keys; query head `h` uses key
/// head `h / (heads / kv_heads)`.
fn attend_to_all(query: Tensor<4>, keys: Tensor<4>, values: Tensor<4>, scale: f64) -> Tensor<4> {
    let [batch, sequence, heads, width] = query.dims();
    let kv_heads = keys.dims()[2];
    assert_eq!(sequence, 1, "after the first tokens they come one by one");
    // Heads that share keys are rows of one product.
    let query = query.reshape([batch, kv_heads, heads / kv_heads, width]);
    let scores = query.matmul(keys.permute([0, 2, 3, 1])) * scale;
    let attended = softmax(scores).matmul(values.swap_dims(1, 2));
    let width = attended.dims()[3];
    attended.reshape([batch, 1, heads, width])
}
