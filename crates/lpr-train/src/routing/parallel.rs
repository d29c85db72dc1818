//! What an uneven load would cost if the experts were spread over devices.
//!
//! Under expert parallelism rank `r` of `R` holds experts `r E/R .. (r+1) E/R` of each layer, and a
//! layer is done when the rank with the most choices is. A capacity bounds what an expert takes of a
//! forward pass; what comes above it is dropped. Both follow from the counts of a forward pass (a
//! micro-batch, or a batch of an evaluation) and layer, padding left out.

use super::trace::{Recording, TracedBatch};
use serde::Serialize;

/// What is asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    /// Numbers of ranks.
    pub ranks: Vec<usize>,
    /// Capacity factors.
    pub capacity_factors: Vec<f64>,
}

/// Sums over forward passes and layers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Costs {
    /// Forward passes and layers with any choice.
    passes: u64,
    /// For each number of ranks: the slow-downs.
    slow_downs: Vec<f64>,
    /// All choices.
    choices: u64,
    /// For each capacity factor: choices above the capacity.
    dropped: Vec<u64>,
}

/// The means of [`Costs`].
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Prediction {
    /// For each number of ranks: largest load of a rank over the mean load of the ranks, 1 if
    /// all ranks have the same, averaged over forward passes and layers.
    pub slow_down: Vec<f64>,
    /// For each capacity factor: share of the choices above the capacity of their expert.
    pub drop_rate: Vec<f64>,
}

impl Costs {
    /// Adds the costs of one layer in one forward pass.
    fn add(&mut self, counts: &[u64], layout: &Layout) {
        let choices: u64 = counts.iter().sum();
        if choices == 0 {
            return;
        }
        let slow_downs = layout.ranks.iter().map(|&ranks| slow_down(counts, ranks));
        let factors = layout.capacity_factors.iter();
        let dropped = factors.map(|&factor| dropped(counts, factor));
        self.merge(&Self {
            passes: 1,
            slow_downs: slow_downs.collect(),
            choices,
            dropped: dropped.collect(),
        });
    }

    /// Adds other costs of the same layout.
    pub fn merge(&mut self, other: &Self) {
        self.passes += other.passes;
        self.choices += other.choices;
        self.slow_downs
            .resize(other.slow_downs.len().max(self.slow_downs.len()), 0.0);
        self.dropped
            .resize(other.dropped.len().max(self.dropped.len()), 0);
        for (sum, new) in self.slow_downs.iter_mut().zip(&other.slow_downs) {
            *sum += new;
        }
        for (sum, new) in self.dropped.iter_mut().zip(&other.dropped) {
            *sum += new;
        }
    }

    /// The mean slow-down over forward passes and layers, the share of all choices that are dropped.
    pub fn prediction(&self) -> Prediction {
        let mean = |sum: &f64| sum / self.passes.max(1) as f64;
        let rate = |&dropped: &u64| dropped as f64 / self.choices.max(1) as f64;
        Prediction {
            slow_down: self.slow_downs.iter().map(mean).collect(),
            drop_rate: self.dropped.iter().map(rate).collect(),
        }
    }
}

/// The costs of each layer of a recording.
pub fn layers(recording: &Recording, layout: &Layout) -> Vec<Costs> {
    let mut layers = vec![Costs::default(); recording.layers.len()];
    for TracedBatch { counts, .. } in &recording.batches {
        for (costs, counts) in layers.iter_mut().zip(counts) {
            costs.add(counts, layout);
        }
    }
    layers
}

/// Largest load of a rank over the mean load of the ranks, with the experts dealt in order: 1 if all
/// ranks have the same, `ranks` if one has all. The number of `counts` is a multiple of `ranks`, and
/// they are not all zero.
fn slow_down(counts: &[u64], ranks: usize) -> f64 {
    let loads = counts.chunks_exact(counts.len() / ranks);
    let largest = loads.map(|experts| experts.iter().sum::<u64>()).max();
    let total: u64 = counts.iter().sum();
    (largest.unwrap_or(0) as f64 * ranks as f64) / total as f64
}

/// `sum_e max(0, n(e) - C)` with `C = ceil(factor n / E)`, `n(e)` the choices of expert `e` of `E`
/// and `n = tokens top_k` their sum.
fn dropped(counts: &[u64], factor: f64) -> u64 {
    let total: u64 = counts.iter().sum();
    // 1.1 x 100 / 10 is 11 and a rounding error above it, which must not be rounded up to 12.
    let exact = factor * total as f64 / counts.len() as f64;
    let capacity = (exact * (1.0 - 1e-12)).ceil() as u64;
    counts
        .iter()
        .map(|count| count.saturating_sub(capacity))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::super::trace::tests::trace;
    use super::*;

    fn layout() -> Layout {
        Layout {
            ranks: vec![2, 4, 8],
            capacity_factors: vec![1.0, 1.25, 1.5, 2.0],
        }
    }

    fn predict(counts: &[&[u64]]) -> Prediction {
        let mut costs = Costs::default();
        for counts in counts {
            costs.add(counts, &layout());
        }
        costs.prediction()
    }

    #[test]
    fn an_even_load_costs_nothing() {
        let chosen: Vec<_> = (0..32)
            .map(|place| vec![place % 8, (place + 4) % 8])
            .collect();
        let recording = trace(&[1; 32], &[true; 32], &chosen, 8);
        assert_eq!(recording.batches[0].counts, [[8; 8]]);
        let found = layers(&recording, &layout())[0].prediction();
        assert_eq!(found.slow_down, [1.0, 1.0, 1.0]);
        assert_eq!(found.drop_rate, [0.0; 4]);
    }

    #[test]
    fn one_expert_with_everything_is_as_slow_as_one_rank() {
        let found = predict(&[&[0, 0, 0, 64, 0, 0, 0, 0]]);
        assert_eq!(found.slow_down, [2.0, 4.0, 8.0]);
        // Capacities 8, 10, 12, 16 of 64.
        assert_eq!(
            found.drop_rate,
            [56.0, 54.0, 52.0, 48.0].map(|dropped| dropped / 64.0)
        );
    }

    #[test]
    fn figures_worked_out_by_hand() {
        // 40 choices, 5 an expert. Ranks of 4: 26 and 14; of 2: 16 10 8 6; capacity 5, 7, 8, 10.
        let counts = [12, 4, 6, 4, 5, 3, 0, 6];
        let found = predict(&[&counts]);
        assert_eq!(found.slow_down, [26.0 / 20.0, 16.0 / 10.0, 12.0 / 5.0]);
        assert_eq!(
            found.drop_rate,
            [9.0 / 40.0, 5.0 / 40.0, 4.0 / 40.0, 2.0 / 40.0]
        );
        // Slow-downs are averaged over passes, drops over choices; a pass without tokens is none.
        let both = predict(&[&counts, &[1; 8], &[0; 8]]);
        assert_eq!(both.slow_down, [1.15, 1.3, 1.7]);
        assert_eq!(both.drop_rate[..1], [9.0 / 48.0]);
    }

    #[test]
    fn a_capacity_that_is_whole_is_not_rounded_up() {
        // 1.1 x 100 / 10 = 11.
        let mut counts = [10_u64; 10];
        (counts[0], counts[1]) = (12, 8);
        assert_eq!(dropped(&counts, 1.1), 1);
        assert_eq!(dropped(&[3, 0, 0], 1.0), 2);
        assert_eq!(dropped(&[3, 1, 0], 1.0), 1);
    }
}
