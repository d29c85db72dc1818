//! Eight floats in a register, with FMA.

use super::Simd;
#[allow(clippy::wildcard_imports, reason = "the vocabulary of this file")]
use std::arch::x86_64::*;

/// The token of the AVX2 vectors.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// # Safety
    ///
    /// The CPU must have AVX2 and FMA.
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

/// Uses intrinsics that touch registers only.
macro_rules! intrinsics {
    ($body:expr) => {
        // SAFETY: whoever made the token `self` has made sure that the CPU has AVX2 and FMA.
        unsafe { $body }
    };
}

/// Eight set lanes and eight clear ones; a window of it selects the first lanes.
static WINDOW: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

/// Selects the first `len` of eight lanes, `len <= 8`.
///
/// # Safety
///
/// The CPU must have AVX2.
#[inline(always)]
unsafe fn first(len: usize) -> __m256i {
    let window = &WINDOW[8 - len..16 - len];
    // SAFETY: the window has eight integers, and the caller vouches for AVX2.
    unsafe { _mm256_loadu_si256(window.as_ptr().cast()) }
}

impl Simd for Avx2 {
    type V = __m256;
    const LANES: usize = 8;
    // 12 of 16 registers.
    const TILE_ROWS: usize = 6;
    const PAIRS: bool = false;

    fn pair(self, _a: __m256, _b: __m256) -> __m256 {
        unreachable!("no pairs here")
    }

    fn mul_add_pairs(self, _a: __m256, _b: __m256, _c: __m256) -> __m256 {
        unreachable!("no pairs here")
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        intrinsics!(_mm256_set1_ps(x))
    }

    #[inline(always)]
    unsafe fn read(self, source: *const f32, len: usize, fill: f32) -> __m256 {
        // SAFETY: the caller vouches for `min(LANES, len)` floats; a masked load touches no others.
        unsafe {
            if len >= Self::LANES {
                return _mm256_loadu_ps(source);
            }
            let first = first(len);
            let loaded = _mm256_maskload_ps(source, first);
            _mm256_blendv_ps(_mm256_set1_ps(fill), loaded, _mm256_castsi256_ps(first))
        }
    }

    #[inline(always)]
    unsafe fn write(self, target: *mut f32, len: usize, v: __m256) {
        // SAFETY: the caller vouches for `min(LANES, len)` floats; a masked store touches no
        // others.
        unsafe {
            if len >= Self::LANES {
                _mm256_storeu_ps(target, v);
            } else {
                _mm256_maskstore_ps(target, first(len), v);
            }
        }
    }

    #[inline(always)]
    fn prefetch<const WRITE: bool>(self, address: *const f32) {
        intrinsics!(if WRITE {
            _mm_prefetch::<_MM_HINT_ET0>(address.cast());
        } else {
            _mm_prefetch::<_MM_HINT_T0>(address.cast());
        });
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        intrinsics!(_mm256_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        intrinsics!(_mm256_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        intrinsics!(_mm256_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        intrinsics!(_mm256_div_ps(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        intrinsics!(_mm256_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        intrinsics!(_mm256_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        intrinsics!(_mm256_min_ps(a, b))
    }

    #[inline(always)]
    fn sqrt(self, a: __m256) -> __m256 {
        intrinsics!(_mm256_sqrt_ps(a))
    }

    #[inline(always)]
    fn round(self, a: __m256) -> __m256 {
        intrinsics!(_mm256_round_ps::<
            { _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC },
        >(a))
    }

    #[inline(always)]
    fn mul_pow2(self, a: __m256, n: __m256) -> __m256 {
        // In two factors, because 2^n itself may lie outside the range of normal numbers.
        intrinsics!({
            let n = _mm256_cvtps_epi32(n);
            let half = _mm256_srai_epi32::<1>(n);
            let bias = _mm256_set1_epi32(127);
            let first = _mm256_slli_epi32::<23>(_mm256_add_epi32(half, bias));
            let rest = _mm256_add_epi32(_mm256_sub_epi32(n, half), bias);
            let second = _mm256_slli_epi32::<23>(rest);
            let a = _mm256_mul_ps(a, _mm256_castsi256_ps(first));
            _mm256_mul_ps(a, _mm256_castsi256_ps(second))
        })
    }

    #[inline(always)]
    fn sum(self, a: __m256) -> f32 {
        intrinsics!({
            let a = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let a = _mm_add_ps(a, _mm_movehl_ps(a, a));
            _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a)))
        })
    }

    #[inline(always)]
    fn largest(self, a: __m256) -> f32 {
        intrinsics!({
            let a = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let a = _mm_max_ps(a, _mm_movehl_ps(a, a));
            _mm_cvtss_f32(_mm_max_ss(a, _mm_movehdup_ps(a)))
        })
    }

    #[inline(always)]
    unsafe fn transpose(
        self,
        rows: [*const f32; 16],
        columns: usize,
        target: *mut f32,
        stride: usize,
    ) {
        let mut v = [self.splat(0.0); 8];
        for (v, row) in v.iter_mut().zip(rows) {
            // SAFETY: the caller vouches for it.
            *v = unsafe { self.read(row, columns, 0.0) };
        }
        // Pairs of rows, then fours of rows, within each half of a vector.
        intrinsics!({
            for i in (0..8).step_by(2) {
                let (a, b) = (v[i], v[i + 1]);
                (v[i], v[i + 1]) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            }
            for i in (0..8).step_by(4) {
                let [a, b, c, d] =
                    [v[i], v[i + 1], v[i + 2], v[i + 3]].map(|v| _mm256_castps_pd(v));
                let fours = [
                    _mm256_unpacklo_pd(a, c),
                    _mm256_unpackhi_pd(a, c),
                    _mm256_unpacklo_pd(b, d),
                    _mm256_unpackhi_pd(b, d),
                ];
                for (v, four) in v[i..].iter_mut().zip(fours) {
                    *v = _mm256_castpd_ps(four);
                }
            }
            // Half `h` of `v[4 * g + j]` now holds column `4 * h + j` of rows `4 * g..4 * g + 4`.
            for j in 0..4 {
                let (a, b) = (v[j], v[j + 4]);
                v[j] = _mm256_permute2f128_ps::<0x20>(a, b);
                v[j + 4] = _mm256_permute2f128_ps::<0x31>(a, b);
            }
        });
        for (index, v) in v.into_iter().take(columns).enumerate() {
            // SAFETY: the caller vouches for it.
            unsafe { _mm256_storeu_ps(target.add(index * stride), v) };
        }
    }
}
