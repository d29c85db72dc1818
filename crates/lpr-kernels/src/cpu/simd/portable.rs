//! Eight floats in an array: what the compiler makes of it depends on the target.

use super::Simd;

/// Floats in a vector.
const LANES: usize = 8;

/// The token of the portable vectors.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

/// Applies a function to corresponding lanes.
#[inline(always)]
fn each(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Simd for Portable {
    type V = [f32; LANES];
    const LANES: usize = LANES;
    const TILE_ROWS: usize = 4;
    const PAIRS: bool = false;

    fn pair(self, _a: Self::V, _b: Self::V) -> Self::V {
        unreachable!("no pairs here")
    }

    fn mul_add_pairs(self, _a: Self::V, _b: Self::V, _c: Self::V) -> Self::V {
        unreachable!("no pairs here")
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; LANES]
    }

    #[inline(always)]
    unsafe fn read(self, source: *const f32, len: usize, fill: f32) -> Self::V {
        let mut v = [fill; LANES];
        // SAFETY: `v` has room for LANES floats and the caller vouches for `source`.
        unsafe { source.copy_to_nonoverlapping(v.as_mut_ptr(), len.min(LANES)) };
        v
    }

    #[inline(always)]
    unsafe fn write(self, target: *mut f32, len: usize, v: Self::V) {
        // SAFETY: `v` holds LANES floats and the caller vouches for `target`.
        unsafe { target.copy_from_nonoverlapping(v.as_ptr(), len.min(LANES)) };
    }

    #[inline(always)]
    fn prefetch<const WRITE: bool>(self, _address: *const f32) {}

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        each(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        each(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        each(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        each(a, b, |a, b| a / b)
    }

    // Two roundings: `f32::mul_add` would call a library function where the target has no such
    // instruction.
    #[inline(always)]
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        self.add(self.mul(a, b), c)
    }

    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        each(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        each(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn sqrt(self, a: Self::V) -> Self::V {
        a.map(f32::sqrt)
    }

    // Adding and taking away 1.5 * 2^23 leaves no bits after the point, for numbers below 2^22.
    #[inline(always)]
    fn round(self, a: Self::V) -> Self::V {
        const SHIFT: f32 = 12_582_912.0;
        a.map(|a| (a + SHIFT) - SHIFT)
    }

    #[inline(always)]
    fn mul_pow2(self, a: Self::V, n: Self::V) -> Self::V {
        // In two factors, because 2^n itself may lie outside the range of normal numbers.
        each(a, n, |a, n| {
            let n = n as i32;
            let power = |n: i32| f32::from_bits(((n + 127) as u32) << 23);
            a * power(n >> 1) * power(n - (n >> 1))
        })
    }

    #[inline(always)]
    fn sum(self, a: Self::V) -> f32 {
        ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]))
    }

    #[inline(always)]
    fn largest(self, a: Self::V) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    #[inline(always)]
    unsafe fn transpose(
        self,
        rows: [*const f32; 16],
        columns: usize,
        target: *mut f32,
        stride: usize,
    ) {
        for column in 0..columns {
            // SAFETY: the caller vouches for it.
            unsafe {
                let v: Self::V = std::array::from_fn(|i| *rows[i].add(column));
                self.write(target.add(column * stride), LANES, v);
            }
        }
    }
}
