//! Prototypes fitted to given latents by k-means, for a router that joins a model which is already
//! trained.
//!
//! k-means++ (Arthur and Vassilvitskii 2007) draws the first centers, Lloyd's iterations move them.
//! The outcome is a function of latents and stream, whatever the number of threads.

use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;

use super::similarity::{Similarity, normalized_rows};
use super::{LprRouter, RunningSums, ema};
use crate::parameters::HostTensor;
use crate::random::Stream;

/// Lloyd's iterations at most.
const MAX_ITERATIONS: usize = 100;
/// Points that one rayon task compares with all centers.
const POINTS_PER_TASK: usize = 256;

/// What fitting the prototypes of a router changed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PrototypeFit {
    /// Mean squared distance of a latent from the nearest of the old prototypes.
    pub inertia_before: f64,
    /// The same with the fitted ones.
    pub inertia_after: f64,
    /// Lloyd's iterations that were done.
    pub iterations: usize,
}

impl LprRouter {
    /// The router with its prototypes at the centers of `means`, the means of tokens' latents.
    /// Directions are clustered if the metric compares directions alone, points otherwise.
    ///
    /// # Shapes
    /// `means`: `[tokens, latent_dim]`, at least one token per expert
    ///
    /// # Panics
    /// If there are fewer tokens than experts.
    #[must_use]
    pub fn fitted(self, means: Tensor<2>, stream: Stream) -> (Self, PrototypeFit) {
        let in_space = |vectors: Tensor<2>| match self.config.similarity {
            Similarity::Cosine => normalized_rows(vectors, 1e-12),
            _ => vectors,
        };
        let old = ema::plain(self.prototypes.val());
        let points = HostTensor::from_tensor(in_space(means));
        let before = HostTensor::from_tensor(in_space(old.clone()));
        let [num_experts, width] = old.dims();
        let points = Points {
            values: &points.values,
            width,
        };
        let clusters = points.clusters(num_experts, stream);
        let fit = PrototypeFit {
            inertia_before: points.inertia(&before.values),
            inertia_after: points.inertia(&clusters.centers),
            iterations: clusters.iterations,
        };
        let data = TensorData::new(clusters.centers, [num_experts, width]);
        let new = in_space(Tensor::from_data(data, &old.device()));
        let fitted = Self {
            running: self.running.map(|_| RunningSums::new(&new)),
            prototypes: ema::replaced(self.prototypes, |_| new),
            ..self
        };
        (fitted, fit)
    }
}

/// Rows of `width` values.
#[derive(Clone, Copy)]
struct Points<'a> {
    values: &'a [f32],
    width: usize,
}

struct Clusters {
    /// `[k, width]`
    centers: Vec<f32>,
    iterations: usize,
}

/// The nearest center of a point and the squared distance from it.
type Nearest = (usize, f64);

impl Points<'_> {
    fn len(&self) -> usize {
        self.values.len() / self.width
    }

    fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.width..][..self.width]
    }

    fn clusters(&self, k: usize, stream: Stream) -> Clusters {
        assert!(self.len() >= k, "{} points, {k} centers", self.len());
        let mut centers = self.spread_out(k, stream);
        let mut nearest = self.nearest(&centers);
        for iterations in 1..=MAX_ITERATIONS {
            centers = self.means(k, &mut nearest);
            let moved = self.nearest(&centers);
            let same = moved.iter().zip(&nearest).all(|(new, old)| new.0 == old.0);
            nearest = moved;
            if same || iterations == MAX_ITERATIONS {
                return Clusters {
                    centers,
                    iterations,
                };
            }
        }
        unreachable!("the last iteration returns")
    }

    /// k-means++: every center is a point, drawn with a probability proportional to its squared
    /// distance from the centers so far.
    fn spread_out(&self, k: usize, stream: Stream) -> Vec<f32> {
        let mut centers = Vec::with_capacity(k * self.width);
        let mut distances = vec![1.0; self.len()];
        for index in 0..k {
            let total: f64 = distances.iter().sum();
            let mut rest = stream.index(index as u64).uniform() * total;
            let reached = distances.iter().position(|distance| {
                rest -= distance;
                rest < 0.0
            });
            // Nothing is reached when all points are centers already.
            let center = self.row(reached.unwrap_or(index)).to_vec();
            let far = if index == 0 { f64::INFINITY } else { 0.0 };
            distances
                .par_iter_mut()
                .with_min_len(POINTS_PER_TASK)
                .enumerate()
                .for_each(|(point, distance)| {
                    *distance = distance
                        .max(far)
                        .min(squared_distance(self.row(point), &center));
                });
            centers.extend(center);
        }
        centers
    }

    fn nearest(&self, centers: &[f32]) -> Vec<Nearest> {
        let nearest = |index: usize| {
            let distances = centers
                .chunks(self.width)
                .map(|center| squared_distance(self.row(index), center));
            distances
                .enumerate()
                .fold((0, f64::INFINITY), |best, (center, distance)| {
                    if distance < best.1 {
                        (center, distance)
                    } else {
                        best
                    }
                })
        };
        let points = (0..self.len()).into_par_iter();
        points.with_min_len(POINTS_PER_TASK).map(nearest).collect()
    }

    /// The mean of every cluster. A center without a point moves to the point that is farthest from
    /// its own, which leaves its cluster.
    fn means(&self, k: usize, nearest: &mut [Nearest]) -> Vec<f32> {
        let mut counts = vec![0_usize; k];
        for (center, _) in nearest.iter() {
            counts[*center] += 1;
        }
        for empty in 0..k {
            if counts[empty] > 0 {
                continue;
            }
            let movable = nearest.iter_mut().filter(|(center, _)| counts[*center] > 1);
            if let Some(farthest) = movable.max_by(|a, b| a.1.total_cmp(&b.1)) {
                counts[farthest.0] -= 1;
                counts[empty] = 1;
                *farthest = (empty, 0.0);
            }
        }
        let mut sums = vec![0.0_f64; k * self.width];
        for (index, (center, _)) in nearest.iter().enumerate() {
            let sum = &mut sums[center * self.width..][..self.width];
            sum.iter_mut()
                .zip(self.row(index))
                .for_each(|(sum, &x)| *sum += f64::from(x));
        }
        let mean = |(index, sum): (usize, &f64)| (sum / counts[index / self.width] as f64) as f32;
        sums.iter().enumerate().map(mean).collect()
    }

    fn inertia(&self, centers: &[f32]) -> f64 {
        let total: f64 = self.nearest(centers).iter().map(|nearest| nearest.1).sum();
        total / self.len() as f64
    }
}

fn squared_distance(a: &[f32], b: &[f32]) -> f64 {
    let squares = a.iter().zip(b).map(|(x, y)| f64::from(x - y).powi(2));
    squares.sum()
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::super::{LprConfig, PrototypeEma};
    use super::*;
    use crate::parameters::parameter_values;
    use crate::random::ParamInit;
    use crate::router::RouterSizes;

    /// Points around `directions.len()` directions, in turns.
    fn around(directions: &[[f32; 2]], count: usize) -> Vec<f32> {
        let noise = Stream::new(5).standard_normal(2 * count);
        (0..count)
            .flat_map(|i| {
                let [x, y] = directions[i % directions.len()];
                [x + 0.05 * noise[2 * i], y + 0.05 * noise[2 * i + 1]]
            })
            .collect()
    }

    #[test]
    fn separate_groups_get_one_center_each() {
        let groups = [[3.0, 0.0], [0.0, 3.0], [-3.0, 0.0], [0.0, -3.0]];
        let values = around(&groups, 400);
        let points = Points {
            values: &values,
            width: 2,
        };
        let clusters = points.clusters(4, Stream::new(1));
        for [x, y] in groups {
            let close = |center: &&[f32]| squared_distance(center, &[x, y]) < 0.01;
            assert_eq!(clusters.centers.chunks(2).filter(close).count(), 1);
        }
        assert!(points.inertia(&clusters.centers) < 0.01);
    }

    #[test]
    fn a_center_without_points_takes_the_farthest_one() {
        let values = [0.0, 1.0, 2.0, 10.0];
        let points = Points {
            values: &values,
            width: 1,
        };
        let mut nearest = points.nearest(&[1.0, 100.0]);
        assert!(nearest.iter().all(|(center, _)| *center == 0));
        assert_eq!(points.means(2, &mut nearest), [1.0, 10.0]);
    }

    #[test]
    fn equal_points_are_no_problem() {
        let values = [0.5; 6];
        let points = Points {
            values: &values,
            width: 1,
        };
        assert_eq!(points.clusters(3, Stream::new(2)).centers, [0.5; 3]);
    }

    #[test]
    fn fitted_prototypes_are_unit_directions_for_the_cosine_and_restart_the_running_sums() {
        let device = Device::flex();
        let config = LprConfig {
            latent_dim: 2,
            prototype_ema: PrototypeEma::Official,
            ..LprConfig::default()
        };
        let sizes = RouterSizes {
            hidden_size: 4,
            num_experts: 3,
            top_k: 1,
        };
        let router = config.init(&sizes, &ParamInit::new(1, 0.02, &device));
        let values = around(&[[0.3, 0.0], [0.0, 2.0], [-0.1, -0.1]], 300);
        let means = Tensor::from_data(TensorData::new(values, [300, 2]), &device);
        let (router, fit) = router.fitted(means, Stream::new(3));
        assert!(fit.inertia_after < fit.inertia_before, "{fit:?}");
        let values = parameter_values(&router);
        assert_eq!(values["running.sums"].values, values["prototypes"].values);
        for row in values["prototypes"].values.chunks(2) {
            assert!((squared_distance(row, &[0.0, 0.0]) - 1.0).abs() < 1e-5);
        }
    }
}
