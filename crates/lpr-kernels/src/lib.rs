//! Fused, differentiable Burn operations for training Mixture-of-Experts language models.
//!
//! | operation | what it computes |
//! |---|---|
//! | [`experts`] | the expert block: each token through its own few `SwiGLU` networks |
//! | [`linear_cross_entropy`] | output projection and cross-entropy, without all logits at once |
//! | [`linear`] | a linear map of the last axis |
//! | [`causal_attention`] | grouped-query attention over packed documents |
//! | [`rms_norm`], [`layer_norm_silu`], [`rotary`], [`silu_mul`] | the small operations between them |
//! | [`softmax`], [`exp`] | probabilities of experts, deviations of latents |
//! | [`embedding`] | rows of a table by token id |
//! | [`top_k`] | the experts with the largest scores |
//! | [`choices_per_expert`], [`weight_per_expert`] | the load of each expert |
//! | [`AdamW::update`], [`squared_norm`] | one optimizer step, and the norm to clip by |
//!
//! # Where an operation runs
//!
//! Tensors of type `f32` on Burn's CPU backend go to the kernels of this crate, which have
//! hand-written gradients. All other tensors, on other devices or of other types, go to a portable
//! twin of the operation in plain Burn operations. The caller does nothing for it, and autodiff
//! works the same in both cases.
//!
//! # What the CPU kernels promise
//!
//! - Results are the same bits on any number of threads (those of the current rayon pool), and
//!   with and without gradients.
//! - The loops choose the best of AVX-512, AVX2 with FMA and portable code when they first run. The
//!   environment variable `LPR_KERNELS` = `portable`, `avx2` or `avx512`, read once, sets an upper
//!   limit; asking for more than the CPU has gives what it has, and another value is no limit.
//!   [`instruction_set`] tells the choice. Results may differ in the last digits from one
//!   instruction set to another.
//! - [`set_product_precision`] lets matrix products round their factors to 16 bits where the device
//!   multiplies those faster; all else stays `f32`.
//! - A tensor whose elements are not consecutive in memory is copied first.

mod adamw;
mod allocator;
mod attention;
mod blocks;
mod choices;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
pub mod devices;
mod dispatch;
mod embedding;
mod experts;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod gpu;
mod layer_norm;
mod linear;
mod linear_cross_entropy;
mod norm;
mod precision;
pub mod profile;
mod rotary;
mod rows;
mod softmax;
mod squared_norm;
mod swiglu;
#[cfg(test)]
mod test_support;
mod top_k;

pub use adamw::{AdamW, AdamWStep, Moments};
pub use allocator::keep_freed_memory;
pub use attention::{SequenceMask, causal_attention};
pub use blocks::BlockSizes;
pub use choices::{choices_per_expert, weight_per_expert};
pub use cpu::{InstructionSet, instruction_set};
pub use embedding::embedding;
pub use experts::experts;
pub use layer_norm::layer_norm_silu;
pub use linear::{exact_linear, linear};
pub use linear_cross_entropy::{IGNORE_INDEX, cross_entropy_buffers, linear_cross_entropy};
pub use norm::rms_norm;
pub use precision::{ProductPrecision, has_bf16_products, set_product_precision};
pub use rotary::rotary;
pub use softmax::{exp, softmax};
pub use squared_norm::{SquaredNorm, squared_norm};
pub use swiglu::silu_mul;
pub use top_k::top_k;
