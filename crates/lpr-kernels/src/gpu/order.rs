//! Sorting on the device: Burn sorts on the host.

use super::{empty, primitive};
use burn::tensor::{Int, IntDType, Tensor};
use burn_cubecl::CubeBackend;
use cubecl::{CubeDim, calculate_cube_count_elemwise};

/// Values of a digit in [`stable_order`].
const BASE: usize = 512;

/// A digit of many keys. One unit goes over a chunk of them for each value of the digit; there are
/// about as many chunks as keys in each.
pub(crate) struct Digits {
    /// 32 bits, `[keys]`.
    keys: Tensor<1, Int>,
    divisor: usize,
    base: usize,
    chunk: usize,
}

impl Digits {
    /// The digit is `key / divisor % base`, of the bits of a negative key some other number.
    pub(crate) fn new(keys: Tensor<1, Int>, divisor: usize, base: usize) -> Self {
        let chunk = (keys.dims()[0] as f64).sqrt().ceil().max(1.0);
        Self {
            keys: keys.cast(IntDType::I32),
            divisor,
            base,
            chunk: chunk as usize,
        }
    }

    /// How often a chunk has each value, `[chunks, base]`.
    pub(crate) fn counts(&self) -> Tensor<2, Int> {
        let keys = primitive(self.keys.clone());
        let client = keys.client.clone();
        let chunks = self.keys.dims()[0].div_ceil(self.chunk);
        let counts = empty(&keys, [chunks, self.base], keys.dtype);
        let dim = CubeDim::new(&client, chunks * self.base);
        kernel::count::launch(
            &client,
            calculate_cube_count_elemwise(&client, chunks * self.base, dim),
            dim,
            keys.into_tensor_arg(),
            counts.clone().into_tensor_arg(),
            self.divisor as u32,
            self.base as u32,
            self.chunk,
        );
        Tensor::from_primitive::<CubeBackend>(counts)
    }

    /// The place of each key, `[keys]`, and the key at each of so many places or -1: keys with the
    /// same digit, in their order, are one after the other from its `first` place on, `[1, base]`.
    pub(crate) fn places(
        &self,
        counts: Tensor<2, Int>,
        first: Tensor<2, Int>,
        places: usize,
    ) -> (Tensor<1, Int>, Tensor<1, Int>) {
        let next = counts.clone().cumsum(0) - counts + first;
        let none = Tensor::<1, Int>::full([places], -1, &self.keys.device());
        let key_of_place = primitive(none.cast(IntDType::I32));
        let (keys, next) = (primitive(self.keys.clone()), primitive(next));
        let client = keys.client.clone();
        let place_of_key = empty(&keys, self.keys.dims(), keys.dtype);
        let units = next.meta.num_elements();
        let dim = CubeDim::new(&client, units);
        kernel::place::launch(
            &client,
            calculate_cube_count_elemwise(&client, units, dim),
            dim,
            keys.into_tensor_arg(),
            next.into_tensor_arg(),
            place_of_key.clone().into_tensor_arg(),
            key_of_place.clone().into_tensor_arg(),
            self.divisor as u32,
            self.base as u32,
            self.chunk,
        );
        (
            Tensor::from_primitive::<CubeBackend>(place_of_key),
            Tensor::from_primitive::<CubeBackend>(key_of_place),
        )
    }
}

/// The indices of `keys`, each in `0..bound`, with the smallest key first; equal keys stay in order.
pub(crate) fn stable_order(keys: &Tensor<1, Int>, bound: usize) -> Tensor<1, Int> {
    let [len] = keys.dims();
    let mut order = Tensor::<1, Int>::arange(0..len as i64, &keys.device());
    let mut divisor = 1;
    while divisor < bound {
        let digits = Digits::new(keys.clone().select(0, order.clone()), divisor, BASE);
        let counts = digits.counts();
        let total = counts.clone().sum_dim(0);
        let first = total.clone().cumsum(1) - total;
        let (_, key_of_place) = digits.places(counts, first, len);
        order = order.select(0, key_of_place);
        divisor *= BASE;
    }
    order
}

/// Apart, for the language has a `Tensor` of its own.
mod kernel {
    use cubecl::prelude::*;

    /// One unit per chunk and value of the digit.
    #[cube(launch)]
    pub(super) fn count(
        keys: &Tensor<i32>,
        counts: &mut Tensor<i32>,
        divisor: u32,
        base: u32,
        chunk: usize,
    ) {
        if ABSOLUTE_POS >= counts.len() {
            terminate!();
        }
        let digit = u32::cast_from(ABSOLUTE_POS) % base;
        let start = ABSOLUTE_POS / usize::cast_from(base) * chunk;
        let end = (start + chunk).min(keys.len());
        let mut count = 0i32;
        for i in start..end {
            if u32::cast_from(keys[i]) / divisor % base == digit {
                count += 1;
            }
        }
        counts[ABSOLUTE_POS] = count;
    }

    /// One unit per chunk and value of the digit, the first of which goes to `next`.
    #[cube(launch)]
    pub(super) fn place(
        keys: &Tensor<i32>,
        next: &Tensor<i32>,
        place_of_key: &mut Tensor<i32>,
        key_of_place: &mut Tensor<i32>,
        divisor: u32,
        base: u32,
        chunk: usize,
    ) {
        if ABSOLUTE_POS >= next.len() {
            terminate!();
        }
        let digit = u32::cast_from(ABSOLUTE_POS) % base;
        let start = ABSOLUTE_POS / usize::cast_from(base) * chunk;
        let end = (start + chunk).min(keys.len());
        let mut place = next[ABSOLUTE_POS];
        for i in start..end {
            if u32::cast_from(keys[i]) / divisor % base == digit {
                place_of_key[i] = place;
                key_of_place[usize::cast_from(place)] = i32::cast_from(i);
                place += 1;
            }
        }
    }
}
