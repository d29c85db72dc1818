//! Kernels for all GPUs, in the language of `cubecl`, where Burn's own operations are slow or add up
//! in an order that changes from run to run.

pub(crate) mod rows;
