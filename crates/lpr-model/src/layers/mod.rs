//! Layers that every family is built from.

mod attention;
mod linear;
mod norm;
mod rope;

pub use attention::GroupedQueryAttention;
pub use linear::Linear;
pub use norm::{LayerNorm, RmsNorm};
pub use rope::RotaryEmbedding;
