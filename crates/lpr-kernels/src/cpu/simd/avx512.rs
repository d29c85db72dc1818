//! Sixteen floats in a register, or sixteen pairs of 16-bit brain floats.

use super::Simd;
#[allow(clippy::wildcard_imports, reason = "the vocabulary of this file")]
use std::arch::x86_64::*;

/// The token of the AVX-512 vectors; with `BF16` their products multiply pairs.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const BF16: bool = false>(());

impl<const BF16: bool> Avx512<BF16> {
    /// # Safety
    ///
    /// The CPU must have AVX-512 F and DQ, with `BF16` that, too.
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

/// Takes lanes from both halves of a vector in turn.
static ZIPPER: [u16; 32] = [
    0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28,
    13, 29, 14, 30, 15, 31,
];

/// Uses intrinsics that touch registers only.
macro_rules! intrinsics {
    ($body:expr) => {
        // SAFETY: whoever made the token `self` has made sure that the CPU has AVX-512 F and DQ, and
        // BF16 if its methods use that.
        unsafe { $body }
    };
}

/// Selects the first `len` of sixteen lanes, `len < 16`.
#[inline(always)]
fn first(len: usize) -> __mmask16 {
    (1 << len) - 1
}

impl<const BF16: bool> Simd for Avx512<BF16> {
    type V = __m512;
    const LANES: usize = 16;
    // 28 of 32 registers.
    const TILE_ROWS: usize = 14;
    const PAIRS: bool = BF16;

    #[inline(always)]
    fn pair(self, a: __m512, b: __m512) -> __m512 {
        assert!(BF16, "pairs need their instructions");
        // The lanes of `a`, rounded, in the lower half, those of `b` in the upper one; then a zipper.
        intrinsics!({
            let halves: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(b, a));
            let zipper = _mm512_loadu_si512(ZIPPER.as_ptr().cast());
            _mm512_castsi512_ps(_mm512_permutexvar_epi16(zipper, halves))
        })
    }

    #[inline(always)]
    fn mul_add_pairs(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        assert!(BF16, "pairs need their instructions");
        intrinsics!({
            let [a, b]: [__m512bh; 2] = std::mem::transmute([a, b]);
            _mm512_dpbf16_ps(c, a, b)
        })
    }

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
    fn prefetch<const WRITE: bool>(self, address: *const f32) {
        intrinsics!(if WRITE {
            _mm_prefetch::<_MM_HINT_ET0>(address.cast());
        } else {
            _mm_prefetch::<_MM_HINT_T0>(address.cast());
        });
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

    #[inline(always)]
    unsafe fn transpose(
        self,
        rows: [*const f32; 16],
        columns: usize,
        target: *mut f32,
        stride: usize,
    ) {
        let mut v = [self.splat(0.0); 16];
        for (v, row) in v.iter_mut().zip(rows) {
            // SAFETY: the caller vouches for it.
            *v = unsafe { self.read(row, columns, 0.0) };
        }
        // Pairs of rows, then fours of rows, within each quarter of a vector.
        intrinsics!({
            for i in (0..16).step_by(2) {
                let (a, b) = (v[i], v[i + 1]);
                (v[i], v[i + 1]) = (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
            }
            for i in (0..16).step_by(4) {
                let [a, b, c, d] =
                    [v[i], v[i + 1], v[i + 2], v[i + 3]].map(|v| _mm512_castps_pd(v));
                let fours = [
                    _mm512_unpacklo_pd(a, c),
                    _mm512_unpackhi_pd(a, c),
                    _mm512_unpacklo_pd(b, d),
                    _mm512_unpackhi_pd(b, d),
                ];
                for (v, four) in v[i..].iter_mut().zip(fours) {
                    *v = _mm512_castpd_ps(four);
                }
            }
            // Quarter `q` of `v[4 * g + j]` now holds column `4 * q + j` of rows `4 * g..4 * g + 4`.
            for j in 0..4 {
                let (a, b, c, d) = (v[j], v[j + 4], v[j + 8], v[j + 12]);
                let (ab_even, ab_odd) = (
                    _mm512_shuffle_f32x4::<0x88>(a, b),
                    _mm512_shuffle_f32x4::<0xdd>(a, b),
                );
                let (cd_even, cd_odd) = (
                    _mm512_shuffle_f32x4::<0x88>(c, d),
                    _mm512_shuffle_f32x4::<0xdd>(c, d),
                );
                v[j] = _mm512_shuffle_f32x4::<0x88>(ab_even, cd_even);
                v[j + 4] = _mm512_shuffle_f32x4::<0x88>(ab_odd, cd_odd);
                v[j + 8] = _mm512_shuffle_f32x4::<0xdd>(ab_even, cd_even);
                v[j + 12] = _mm512_shuffle_f32x4::<0xdd>(ab_odd, cd_odd);
            }
        });
        // SAFETY: the caller vouches for the target.
        unsafe {
            if BF16 {
                for index in 0..columns.div_ceil(2) {
                    let pair = self.pair(v[2 * index], v[2 * index + 1]);
                    _mm512_storeu_ps(target.add(index * stride), pair);
                }
            } else {
                for (index, v) in v.into_iter().take(columns).enumerate() {
                    _mm512_storeu_ps(target.add(index * stride), v);
                }
            }
        }
    }
}
