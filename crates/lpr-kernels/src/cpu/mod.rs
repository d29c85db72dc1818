//! The CPU kernels, on plain slices of `f32`.
//!
//! Two rules hold throughout. The work is cut into parts that depend on the shapes only, and sums
//! over parts run in a fixed order, so that results are the same bits on any number of threads. And
//! nothing here knows of tensors or gradients, except `tensor.rs`.
#![expect(unsafe_code, reason = "the one place of the workspace for it")]

pub(crate) mod adamw;
pub(crate) mod attention;
pub(crate) mod buffer;
pub(crate) mod embedding;
pub(crate) mod experts;
mod heads;
mod instruction_set;
pub(crate) mod layer_norm;
pub(crate) mod linear;
pub(crate) mod linear_cross_entropy;
mod matrix;
pub(crate) mod norm;
mod product;
pub(crate) mod rotary;
pub(crate) mod routes;
mod simd;
pub(crate) mod softmax;
pub(crate) mod squared_norm;
pub(crate) mod swiglu;
pub(crate) mod tensor;
pub(crate) mod top_k;
pub(crate) mod visibility;

pub(crate) use instruction_set::Level;
#[cfg(test)]
pub(crate) use instruction_set::forced;
pub use instruction_set::{InstructionSet, instruction_set};
pub(crate) use instruction_set::{has_bf16_products, multiply_bf16};
