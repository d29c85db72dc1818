//! Sixteen floats in a register.

use super::Simd;
#[allow(clippy::wildcard_imports, reason = "the vocabulary of this file")]
use std::arch::x86_64::*;

/// The token of the AVX-512 vectors.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// # Safety
    ///
    /// The CPU must have AVX-512 F and DQ.
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

/// Uses intrinsics that touch registers only.
macro_rules! intrinsics {
    ($body:expr) => {
        // SAFETY: whoever made the token `self` has made sure that the CPU has AVX-512 F and DQ.
        unsafe { $body }
    };
}

/// Selects the first `len` of sixteen lanes, `len < 16`.
#[inline(always)]
fn first(len: usize) -> __mmask16 {
    (1 << len) - 1
}

impl Simd for Avx512 {
    type V = __m512;
    const LANES: usize = 16;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        intrinsics!(_mm512_set1_ps(x))
    }

    #[inline(always)]
    unsafe fn read(self, source: *const f32, len: usize, fill: f32) -> __m512 {
        // SAFETY: the caller vouches for `min(LANES, len)` floats; a masked load touches no others.
        unsafe {
            if len >= Self::LANES {
                _mm512_loadu_ps(source)
            } else {
                _mm512_mask_loadu_ps(_mm512_set1_ps(fill), first(len), source)
            }
        }
    }

    #[inline(always)]
    unsafe fn write(self, target: *mut f32, len: usize, v: __m512) {
        // SAFETY: the caller vouches for `min(LANES, len)` floats; a masked store touches no
        // others.
        unsafe {
            if len >= Self::LANES {
                _mm512_storeu_ps(target, v);
            } else {
                _mm512_mask_storeu_ps(target, first(len), v);
            }
        }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        intrinsics!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        intrinsics!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        intrinsics!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        intrinsics!(_mm512_div_ps(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        intrinsics!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        intrinsics!(_mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        intrinsics!(_mm512_min_ps(a, b))
    }

    #[inline(always)]
    fn sqrt(self, a: __m512) -> __m512 {
        intrinsics!(_mm512_sqrt_ps(a))
    }

    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        // Zero bits after the point, to the nearest, halves to even.
        intrinsics!(_mm512_roundscale_ps::<0>(a))
    }

    #[inline(always)]
    fn mul_pow2(self, a: __m512, n: __m512) -> __m512 {
        intrinsics!(_mm512_scalef_ps(a, n))
    }

    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        intrinsics!(_mm512_reduce_add_ps(a))
    }

    #[inline(always)]
    fn largest(self, a: __m512) -> f32 {
        intrinsics!(_mm512_reduce_max_ps(a))
    }
}
