//! Random numbers as a pure function of (seed, name, index).
//!
//! Weights and noise do not come from a generator with a hidden state: every tensor has a stream of
//! its own, keyed by its name. So a layer's initial weights do not depend on what else the model
//! holds (two routers start from the same experts), any step can be replayed, and neither threads
//! nor the order of initialization matter.

use std::convert::Infallible;

use burn::module::{Param, ParamId};
use burn::tensor::{Device, Shape, Tensor, TensorData};
use rand_core::TryRng;
use rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;

/// One independent stream of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream(u64);

/// Numbers made by one rayon task.
const BLOCK: usize = 1 << 15;

impl Stream {
    /// The root stream of a run.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(mix(seed ^ 0x6c70_7220_7365_6564))
    }

    /// The stream called `name` below this one.
    #[must_use]
    pub fn child(self, name: &str) -> Self {
        // FNV-1a, then mixed with the parent.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
            (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
        });
        Self(mix(self.0 ^ mix(hash)))
    }

    /// The `index`-th stream below this one.
    #[must_use]
    pub fn index(self, index: u64) -> Self {
        Self(mix(self.0 ^ mix(index.wrapping_add(0x9e37_79b9_7f4a_7c15))))
    }

    /// The first `len` standard normal numbers of the stream.
    pub fn standard_normal(self, len: usize) -> Vec<f32> {
        let mut values = vec![0.0_f32; len];
        values
            .par_chunks_mut(BLOCK)
            .enumerate()
            .for_each(|(block, values)| {
                for (index, value) in values.iter_mut().enumerate() {
                    let mut words = self.words((block * BLOCK + index) as u64);
                    *value = StandardNormal.sample(&mut words);
                }
            });
        values
    }

    /// The random words of one number; nearly always the first is enough.
    fn words(self, index: u64) -> Words {
        Words(mix(self.0.wrapping_add(index)))
    }

    /// The first number of the stream when it is read as uniform in `[0, 1)`.
    pub fn uniform(self) -> f64 {
        (mix(self.0) >> 11) as f64 / 2_f64.powi(53)
    }

    fn tensor<const D: usize>(self, shape: [usize; D], device: &Device) -> Tensor<D> {
        let values = self.standard_normal(shape.iter().product());
        Tensor::from_data(TensorData::new(values, shape), device)
    }
}

/// Words of which each follows from the one before it.
struct Words(u64);

impl TryRng for Words {
    type Error = Infallible;

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let word = self.0;
        self.0 = mix(word ^ 0x776f_7264);
        Ok(word)
    }

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        self.try_next_u64().map(|word| (word >> 32) as u32)
    }

    fn try_fill_bytes(&mut self, target: &mut [u8]) -> Result<(), Infallible> {
        for chunk in target.chunks_mut(8) {
            let word = self.try_next_u64()?.to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
        Ok(())
    }
}

/// The finalizer of splitmix64, applied to the golden-ratio sequence.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Makes the parameters of a module, each from the stream of its own path.
///
/// Values are made at their first use, so a model that only shows its shapes needs no memory.
#[derive(Debug, Clone)]
pub struct ParamInit<'a> {
    stream: Stream,
    std: f64,
    device: &'a Device,
}

impl<'a> ParamInit<'a> {
    /// Weights ~ N(0, `std`^2), drawn from `seed`, on `device`.
    pub fn new(seed: u64, std: f64, device: &'a Device) -> Self {
        Self {
            stream: Stream::new(seed).child("weights"),
            std,
            device,
        }
    }

    /// The source for the part called `name`.
    #[must_use]
    pub fn at(&self, name: &str) -> Self {
        Self {
            stream: self.stream.child(name),
            ..self.clone()
        }
    }

    /// The device on which the parameters are made.
    pub fn device(&self) -> &'a Device {
        self.device
    }

    /// A weight called `name` ~ N(0, std^2).
    pub fn weight<const D: usize>(&self, name: &str, shape: [usize; D]) -> Param<Tensor<D>> {
        let (stream, std) = (self.at(name).stream, self.std as f32);
        self.lazy(shape, move |device| stream.tensor(shape, device) * std)
    }

    /// Standard normal numbers of this part, as a tensor.
    pub fn standard_normal<const D: usize>(&self, shape: [usize; D]) -> Tensor<D> {
        self.stream.tensor(shape, self.device)
    }

    /// A parameter of zeros.
    pub fn zeros<const D: usize>(&self, shape: [usize; D]) -> Param<Tensor<D>> {
        self.lazy(shape, move |device| Tensor::zeros(shape, device))
    }

    /// A parameter of ones.
    pub fn ones<const D: usize>(&self, shape: [usize; D]) -> Param<Tensor<D>> {
        self.lazy(shape, move |device| Tensor::ones(shape, device))
    }

    /// State that gradients do not train but checkpoints keep; zeros at first.
    pub fn state<const D: usize>(&self, shape: [usize; D]) -> Param<Tensor<D>> {
        Param::from_tensor(Tensor::zeros(shape, self.device)).set_require_grad(false)
    }

    fn lazy<const D: usize>(
        &self,
        shape: [usize; D],
        value: impl FnOnce(&Device) -> Tensor<D> + Send + Sync + 'static,
    ) -> Param<Tensor<D>> {
        Param::uninitialized(
            ParamId::new(),
            move |device, requires_grad| value(device).set_require_grad(requires_grad),
            self.device.clone(),
            true,
            Shape::from(shape),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_have_the_moments_of_a_standard_normal() {
        let values = Stream::new(7).child("a").standard_normal(200_001);
        let n = values.len() as f64;
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let moment = |p: i32| values.iter().map(|&v| f64::from(v).powi(p)).sum::<f64>() / n;
        assert!(mean.abs() < 0.01, "mean {mean}");
        assert!((moment(2) - 1.0).abs() < 0.02, "variance {}", moment(2));
        assert!((moment(4) - 3.0).abs() < 0.15, "kurtosis {}", moment(4));
        // Neighbours are uncorrelated.
        let lag: f64 = values
            .windows(2)
            .map(|w| f64::from(w[0]) * f64::from(w[1]))
            .sum();
        assert!((lag / n).abs() < 0.01, "lag one {}", lag / n);
    }

    #[test]
    fn a_longer_draw_begins_with_the_shorter_one() {
        let stream = Stream::new(1).child("x").index(3);
        assert_eq!(
            stream.standard_normal(100_000)[..77],
            stream.standard_normal(77)
        );
    }

    #[test]
    fn names_seeds_and_indices_give_different_streams() {
        let root = Stream::new(1);
        let streams = [
            root,
            Stream::new(2),
            root.child("a"),
            root.child("b"),
            root.child("a").child("b"),
            root.child("b").child("a"),
            root.index(0),
            root.index(1),
        ];
        for (i, a) in streams.iter().enumerate() {
            for b in &streams[i + 1..] {
                assert_ne!(a, b);
            }
        }
    }
}
