//! Rotary position embedding, half-split: channel `i` rotates with channel `i + head_dim / 2`.

use burn::tensor::{Device, Int, Tensor};

/// Cosines and sines of every position of a batch, shared by all layers.
///
/// `angle(position, i) = position * theta^(-2 i / head_dim)` for `i` in `0..head_dim / 2`
#[derive(Debug, Clone)]
pub struct RotaryEmbedding {
    cos: Tensor<3>,
    sin: Tensor<3>,
}

impl RotaryEmbedding {
    /// # Shapes
    /// `position_ids`: `[batch, sequence]`, or `[1, sequence]` when all rows count alike.
    pub fn new(position_ids: Tensor<2, Int>, head_dim: usize, theta: f64, device: &Device) -> Self {
        let frequencies: Vec<f32> = (0..head_dim / 2)
            .map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64) as f32)
            .collect();
        let frequencies = Tensor::<1>::from_floats(frequencies.as_slice(), device);
        let angles =
            position_ids.float().unsqueeze_dim::<3>(2) * frequencies.reshape([1, 1, head_dim / 2]);
        Self {
            cos: angles.clone().cos(),
            sin: angles.sin(),
        }
    }

    /// Rotates every head.
    ///
    /// # Shapes
    /// `[batch, sequence, heads, head_dim]` to the same.
    pub fn rotate(&self, heads: Tensor<4>) -> Tensor<4> {
        lpr_kernels::rotary(heads, self.cos.clone(), self.sin.clone())
    }
}
