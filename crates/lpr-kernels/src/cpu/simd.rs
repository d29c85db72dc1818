//! Vectors of `f32` behind one trait, so that a loop is written once and compiled for every
//! instruction set.
//!
//! Each implementation is a zero-sized token. A token of an x86 extension can only be made by
//! unsafe code that has made sure of the extension; therefore all methods are safe.
//!
//! Everything here is inlined by force: a vector intrinsic is only cheap inside a function compiled
//! for its instruction set, and these functions end up in one (see `vector_loop!`).
#![expect(
    clippy::inline_always,
    reason = "an intrinsic must end up in a function compiled for it"
)]

use std::mem::MaybeUninit;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

pub(crate) use portable::Portable;
#[cfg(target_arch = "x86_64")]
pub(crate) use {avx2::Avx2, avx512::Avx512};

/// Operations on a vector of `LANES` floats.
pub(crate) trait Simd: Copy {
    /// The vector.
    type V: Copy;
    /// Floats in a vector, at most 16.
    const LANES: usize;
    /// Rows of two vectors each, at most 14, whose sums fit into the registers beside what is added
    /// to them.
    const TILE_ROWS: usize;
    /// Whether products multiply pairs of 16-bit brain floats, which take the place of a float each.
    const PAIRS: bool;

    /// In each lane `a` and `b` as a pair.
    fn pair(self, a: Self::V, b: Self::V) -> Self::V;

    /// `c` plus the products of both members of the pairs `a` and `b`, summed in 32 bits.
    fn mul_add_pairs(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::V;

    /// Reads the first `min(LANES, len)` floats at `source`, other lanes are `fill`.
    ///
    /// # Safety
    ///
    /// `source` must be readable for `min(LANES, len)` floats.
    unsafe fn read(self, source: *const f32, len: usize, fill: f32) -> Self::V;

    /// Writes the first `min(LANES, len)` lanes to `target`.
    ///
    /// # Safety
    ///
    /// `target` must be writable for `min(LANES, len)` floats.
    unsafe fn write(self, target: *mut f32, len: usize, v: Self::V);

    /// Asks for the cache line of `address`, to read or to write, wherever that is.
    fn prefetch<const WRITE: bool>(self, address: *const f32);

    /// `a + b`.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`.
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a / b`.
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once where the CPU can.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger one; `b` if either is not a number.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The smaller one; `b` if either is not a number.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// The square root.
    fn sqrt(self, a: Self::V) -> Self::V;
    /// The nearest integer, halves to even.
    fn round(self, a: Self::V) -> Self::V;
    /// `a * 2^n` for integers `n` in `-252..=254`.
    fn mul_pow2(self, a: Self::V, n: Self::V) -> Self::V;
    /// The sum of all lanes, in an order of its own.
    fn sum(self, a: Self::V) -> f32;
    /// The largest lane.
    fn largest(self, a: Self::V) -> f32;

    /// Writes `columns` vectors, at most `LANES`: lane `i` of vector `j` is element `j` of row `i`.
    /// The vectors are `stride` apart and written in their order, so that they may overlap. With
    /// `PAIRS`, there is a vector for every two elements, the last of which may be paired with zero.
    ///
    /// # Safety
    ///
    /// The first `LANES` of the `rows` must be readable for `columns` floats, and `target` writable
    /// for the vectors.
    unsafe fn transpose(
        self,
        rows: [*const f32; 16],
        columns: usize,
        target: *mut f32,
        stride: usize,
    );

    /// The first lanes of `source`; lanes beyond its end are zero.
    #[inline(always)]
    fn load(self, source: &[f32]) -> Self::V {
        self.load_or(source, 0.0)
    }

    /// The first lanes of `source`; lanes beyond its end are `fill`.
    #[inline(always)]
    fn load_or(self, source: &[f32], fill: f32) -> Self::V {
        // SAFETY: the slice is readable over its whole length.
        unsafe { self.read(source.as_ptr(), source.len(), fill) }
    }

    /// Writes as many lanes as `target` has room for.
    #[inline(always)]
    fn store(self, target: &mut [f32], v: Self::V) {
        // SAFETY: the slice is writable over its whole length.
        unsafe { self.write(target.as_mut_ptr(), target.len(), v) }
    }

    /// Like [`Simd::store`], into memory that holds nothing yet.
    #[inline(always)]
    fn store_new(self, target: &mut [MaybeUninit<f32>], v: Self::V) {
        // SAFETY: the slice is writable over its whole length.
        unsafe { self.write(target.as_mut_ptr().cast(), target.len(), v) }
    }

    /// `exp(x)` within about two units in the last place; 0 below -104, infinite above 89.
    ///
    /// `exp(x) = 2^n exp(r)` with `n = round(x / ln 2)` and `r = x - n ln 2` in two parts; the
    /// polynomial for `exp(r)` is that of Cephes `expf`.
    #[inline(always)]
    fn exp(self, x: Self::V) -> Self::V {
        let c = |value: f32| self.splat(value);
        // In this order a NaN stays one.
        let x = self.max(c(-104.0), self.min(c(89.0), x));
        let n = self.round(self.mul(x, c(std::f32::consts::LOG2_E)));
        let r = self.mul_add(n, c(-0.693_359_4), x);
        let r = self.mul_add(n, c(2.121_944_4e-4), r);
        let p = self.mul_add(c(1.987_569_1e-4), r, c(1.398_2e-3));
        let p = self.mul_add(p, r, c(8.333_452e-3));
        let p = self.mul_add(p, r, c(4.166_579_6e-2));
        let p = self.mul_add(p, r, c(0.166_666_65));
        let p = self.mul_add(p, r, c(0.5));
        let p = self.mul_add(p, self.mul(r, r), self.add(r, c(1.0)));
        self.mul_pow2(p, n)
    }

    /// `1 / (1 + exp(-x))`.
    #[inline(always)]
    fn sigmoid(self, x: Self::V) -> Self::V {
        let e = self.exp(self.sub(self.splat(0.0), x));
        self.div(self.splat(1.0), self.add(self.splat(1.0), e))
    }
}

/// Defines a function over slices whose body, written once against [`Simd`], is compiled for every
/// instruction set; its first argument says which of them runs.
macro_rules! vector_loop {
    (
        $(#[$meta:meta])*
        fn $name:ident($simd:ident: $S:ident $(, $arg:ident: $ty:ty)* $(,)?) $(-> $ret:ty)?
        $body:block
    ) => {
        $(#[$meta])*
        pub(crate) fn $name(level: $crate::cpu::Level $(, $arg: $ty)*) $(-> $ret)? {
            #[inline(always)]
            fn body<$S: $crate::cpu::simd::Simd>($simd: $S $(, $arg: $ty)*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                use $crate::cpu::{InstructionSet, simd::{Avx2, Avx512}};

                #[target_feature(enable = "avx2,fma")]
                fn avx2(simd: Avx2 $(, $arg: $ty)*) $(-> $ret)? {
                    body(simd $(, $arg)*)
                }
                #[target_feature(enable = "avx512f,avx512dq,avx2,fma")]
                fn avx512(simd: Avx512 $(, $arg: $ty)*) $(-> $ret)? {
                    body(simd $(, $arg)*)
                }
                match level.instruction_set() {
                    InstructionSet::Portable => {}
                    // SAFETY: a `Level` exists only for an instruction set that this CPU has.
                    InstructionSet::Avx2 => return unsafe { avx2(Avx2::new() $(, $arg)*) },
                    // SAFETY: as above.
                    InstructionSet::Avx512 => return unsafe { avx512(Avx512::new() $(, $arg)*) },
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = level;
            body($crate::cpu::simd::Portable $(, $arg)*)
        }
    };
}
pub(crate) use vector_loop;

#[cfg(test)]
mod tests {
    use crate::cpu::Level;

    vector_loop! {
        fn exp_of_each(s: S, x: &[f32], out: &mut [f32]) {
            for start in (0..x.len()).step_by(S::LANES) {
                s.store(&mut out[start..], s.exp(s.load(&x[start..])));
            }
        }
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place_on_every_level() {
        let x: Vec<f32> = (-17_400..17_720).map(|i| i as f32 * 0.005).collect();
        for level in Level::available() {
            let mut out = vec![0.0; x.len()];
            exp_of_each(level, &x, &mut out);
            for (&x, &y) in x.iter().zip(&out) {
                let exact = f64::from(x).exp();
                let error = (f64::from(y) - exact).abs() / exact;
                assert!(error < 2.4e-7, "{level:?}: exp({x}) = {y}, not {exact}");
            }
        }
    }

    #[test]
    fn exp_keeps_its_limits_on_every_level() {
        let x = [
            f32::NEG_INFINITY,
            f32::MIN,
            -104.5,
            0.0,
            -0.0,
            89.5,
            f32::INFINITY,
            f32::NAN,
        ];
        for level in Level::available() {
            let mut out = [7.0; 8];
            exp_of_each(level, &x, &mut out);
            let expected = [0.0, 0.0, 0.0, 1.0, 1.0, f32::INFINITY, f32::INFINITY];
            assert_eq!(out[..7], expected, "{level:?}");
            assert!(out[7].is_nan(), "{level:?}: exp(NaN) = {}", out[7]);
        }
    }
}
