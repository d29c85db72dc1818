//! What matrix products multiply: one choice for the CPU's kernels, one for all other devices.

use crate::{cpu, dispatch::is_cpu};
use burn::tensor::{DType, Device, FloatDType, Tensor};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// The numbers that matrix products multiply. Everything that is not a product is computed with
/// 32-bit floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProductPrecision {
    /// 32-bit floats.
    F32,
    /// Both factors are rounded to 16-bit brain floats, which have 8 bits of precision. The CPU's sums
    /// are 32-bit floats; those of other devices are rounded once more, to 16 bits.
    Bf16,
}

/// What [`set_product_precision`] chose last for devices beside the CPU.
static BF16: AtomicBool = AtomicBool::new(false);

/// Whether `device` multiplies 16-bit brain floats: a CPU with AVX-512 BF16 that the environment
/// variable `LPR_KERNELS` does not rule out, or a GPU with tensors of that type.
pub fn has_bf16_products(device: &Device) -> bool {
    if is_cpu(device) {
        cpu::has_bf16_products()
    } else {
        device.supports_dtype(DType::BF16)
    }
}

/// Chooses what the matrix products of this process multiply from now on, on the CPU or, if `device` is
/// another one, on all others; at first 32-bit floats.
///
/// # Panics
///
/// If the device has no such products, see [`has_bf16_products`].
pub fn set_product_precision(device: &Device, precision: ProductPrecision) {
    let bf16 = precision == ProductPrecision::Bf16;
    assert!(
        !bf16 || has_bf16_products(device),
        "this device has no products of 16-bit brain floats"
    );
    if is_cpu(device) {
        cpu::multiply_bf16(bf16);
    } else {
        BF16.store(bf16, Relaxed);
    }
}

/// The matrix product of portable twins, `[.., n, m]` of `[.., n, k]` and `[.., k, m]`.
pub(crate) fn product<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> Tensor<D> {
    let product = factor(a).matmul(factor(b));
    if product.dtype() == DType::BF16 {
        return product.cast(FloatDType::F32);
    }
    product
}

/// A factor of [`product`], rounded if its factors are to be. For one that is used several times.
pub(crate) fn factor<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    let rounds = BF16.load(Relaxed) && tensor.dtype() == DType::F32;
    if rounds && !is_cpu(&tensor.device()) {
        return tensor.cast(FloatDType::BF16);
    }
    tensor
}
