//! Random numbers and orders as pure functions of their seeds.

/// `SplitMix64` (Steele, Lea and Flood, 2014), started from a hash of a seed and a stream number.
pub(crate) struct Random {
    state: u64,
}

impl Random {
    pub(crate) fn new(seed: u64, stream: u64) -> Self {
        let mut start = Self {
            state: seed ^ stream.wrapping_mul(0xd134_2543_de82_ef95),
        };
        Self {
            state: start.next(),
        }
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `0..bound`, by multiplication (the bias is below `bound / 2^64`).
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    pub(crate) fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }
}

/// The numbers below `len` in an order that depends on nothing but `key` (Fisher and Yates).
pub(crate) fn permutation(len: usize, key: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..len).collect();
    let mut random = Random::new(key, len as u64);
    for last in (1..len).rev() {
        order.swap(last, random.below(last as u64 + 1) as usize);
    }
    order
}

/// One key from several numbers, whose order matters.
pub(crate) fn key(parts: &[u64]) -> u64 {
    let mix = |key, &part: &u64| Random::new(key, part).next();
    parts.iter().fold(0, mix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permutation_holds_every_number_once_and_follows_its_key() {
        for len in [0, 1, 2, 100] {
            let mut order = permutation(len, 7);
            assert_eq!(order, permutation(len, 7));
            order.sort_unstable();
            assert!(order.into_iter().eq(0..len));
        }
        assert_ne!(permutation(100, 7), permutation(100, 8));
        // All six orders of three come about equally often: 1,000 each, give or take 5 sigma.
        let mut counts = std::collections::HashMap::new();
        for key in 0..6000 {
            *counts.entry(permutation(3, key)).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 6);
        assert!(
            counts.values().all(|&n: &i32| (n - 1000).abs() < 145),
            "{counts:?}"
        );
    }

    #[test]
    fn a_key_depends_on_every_part_and_their_order() {
        let keys = [key(&[1, 2]), key(&[2, 1]), key(&[1, 2, 0]), key(&[1, 3])];
        for (i, a) in keys.iter().enumerate() {
            assert!(keys[i + 1..].iter().all(|b| a != b), "{keys:?}");
        }
    }
}
