//! A stream of tokens that any language can make with integers alone.

/// An endless stream over a vocabulary.
///
/// With `x = splitmix64(seed + i * golden)` for `i = 1, 2, ..` and `u` its upper 20 bits, a token is
/// either drawn with a preference for small ids, `((u^3 >> 40) * vocab_size) >> 20`, or, when `x` is
/// odd, follows from the one before it, `(previous * 31 + 7) % vocab_size`, so that there is something
/// to learn.
#[derive(Clone, Debug)]
pub struct TokenStream {
    vocab_size: u64,
    state: u64,
    previous: u64,
}

impl TokenStream {
    /// The stream from its start.
    pub fn new(vocab_size: u32, seed: u64) -> Self {
        Self {
            vocab_size: u64::from(vocab_size),
            state: seed,
            previous: 0,
        }
    }
}

impl Iterator for TokenStream {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let x = (self.state ^ (self.state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let x = x ^ (x >> 31);
        self.previous = if x & 1 == 1 {
            (self.previous * 31 + 7) % self.vocab_size
        } else {
            let u = x >> 44;
            (((u * u * u) >> 40) * self.vocab_size) >> 20
        };
        Some(self.previous as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_the_stream_that_other_languages_make() {
        let start: Vec<u32> = TokenStream::new(8192, 1234).take(12).collect();
        assert_eq!(
            start,
            [
                7, 1707, 67, 2084, 7267, 4100, 995, 6276, 6147, 2148, 1059, 68
            ]
        );
    }
}
