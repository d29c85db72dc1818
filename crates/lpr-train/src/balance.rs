//! How evenly the experts are loaded: pure metrics on counts, exact counters of a window, the
//! smoothed tracker.
//!
//! Two kinds of figures come from the same integer counts and are never mixed. The exact ones
//! describe what happened in a window; the smoothed ones repeat the paper's moving average, in
//! which an expert that is no longer chosen fades slowly, so that its smallest values say how long
//! ago it was used rather than how rarely.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// How much of its past the smoothed tracker keeps with each micro-batch (LPR code).
pub const TRACKER_DECAY: f64 = 0.99;

/// A load that cannot be measured, or counts that contradict the number of routed tokens.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum BalanceError {
    /// A load is NaN, infinite or negative.
    #[error("the load of expert {expert} is {load}; a load is a finite number and at least 0")]
    InvalidLoad {
        /// Index of the expert.
        expert: usize,
        /// The load found.
        load: f64,
    },
    /// The counts of a layer do not add up to one choice per token and slot.
    #[error(
        "layer {layer}: the expert counts ({kind}) add up to {found}, but {tokens} tokens x top_k \
         {top_k} = {wanted} \
         choices were made; this is a bug in the routing statistics, please report it"
    )]
    WrongTotal {
        /// Index of the layer.
        layer: usize,
        /// `with padding` or `without padding`.
        kind: &'static str,
        /// The sum of the counts.
        found: u64,
        /// The number of routed tokens.
        tokens: u64,
        /// Experts per token.
        top_k: u64,
        /// `tokens * top_k`.
        wanted: u64,
    },
}

/// Balance figures of one vector of expert loads.
///
/// With `l_(i)` the loads in ascending order (`i` from 1), `n` their number and `S` their sum:
/// `gini = sum_i (2i - n - 1) l_(i) / (n S)` and `min_max_ratio = min / max` (LPR eq. 26 without
/// its epsilon). Nothing routed (`no_data`) gives zeros; a single expert has `gini` 0 and
/// `min_max_ratio` 1.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LoadMetrics {
    /// 0 for an even load, `(n - 1) / n` if one expert takes everything.
    pub gini: f64,
    /// Smallest load over the largest; 0 as soon as one expert is unused.
    pub min_max_ratio: f64,
    /// Standard deviation (divided by `n - 1`) over the mean.
    pub cv: f64,
    /// Standard deviation (divided by `n`) over the mean.
    pub cv_population: f64,
    /// Population variance of the shares `l / S`.
    pub variance_of_fraction: f64,
    /// Share of the experts with any load.
    pub utilization: f64,
    /// Largest load over the mean.
    pub max_over_mean: f64,
    /// Entropy of the shares over `ln n`; 1 for an even load.
    pub normalized_entropy: f64,
    /// Number of experts without any load.
    pub dead_experts: usize,
    /// True if all loads are zero, so that the other figures mean nothing.
    pub no_data: bool,
}

impl LoadMetrics {
    /// The figures of integer counts; Gini and min-max ratio come from exact integer arithmetic.
    pub fn from_counts(counts: &[u64]) -> Self {
        let loads: Vec<f64> = counts.iter().map(|&count| count as f64).collect();
        let mut metrics = Self::of_valid_loads(&loads);
        if !metrics.no_data {
            let (numerator, denominator) = gini_fraction(counts);
            metrics.gini = numerator as f64 / denominator as f64;
        }
        metrics
    }

    /// The figures of real-valued loads.
    ///
    /// # Errors
    /// [`BalanceError::InvalidLoad`] for the first load that is NaN, infinite or negative.
    pub fn from_loads(loads: &[f64]) -> Result<Self, BalanceError> {
        let invalid = |load: &f64| !load.is_finite() || *load < 0.0;
        if let Some(expert) = loads.iter().position(invalid) {
            return Err(BalanceError::InvalidLoad {
                expert,
                load: loads[expert],
            });
        }
        Ok(Self::of_valid_loads(loads))
    }

    fn of_valid_loads(loads: &[f64]) -> Self {
        let n = loads.len() as f64;
        let mut ascending = loads.to_vec();
        ascending.sort_by(f64::total_cmp);
        let sum: f64 = ascending.iter().sum();
        let dead_experts = ascending.iter().take_while(|&&load| load == 0.0).count();
        if dead_experts == ascending.len() {
            return Self {
                dead_experts,
                no_data: true,
                ..Self::default()
            };
        }
        let (min, max) = (ascending[0], ascending[ascending.len() - 1]);
        // The i-th smallest and the i-th largest load have opposite factors: no difference is
        // negative, and those of an even load are exactly zero.
        let from_both_ends = ascending.iter().zip(ascending.iter().rev()).enumerate();
        let weighted = from_both_ends
            .take(loads.len() / 2)
            .map(|(i, (small, large))| (n - 1.0 - 2.0 * i as f64) * (large - small))
            // An empty `sum` would be minus zero.
            .fold(0.0, |sum, part| sum + part);
        let mean = sum / n;
        let shares: Vec<f64> = ascending.iter().map(|load| load / sum).collect();
        let several = loads.len() > 1;
        Self {
            gini: weighted / (n * sum),
            min_max_ratio: min / max,
            cv: if several {
                (squared_deviations(&ascending) / (n - 1.0)).sqrt() / mean
            } else {
                0.0
            },
            cv_population: (squared_deviations(&ascending) / n).sqrt() / mean,
            variance_of_fraction: squared_deviations(&shares) / n,
            utilization: (n - dead_experts as f64) / n,
            max_over_mean: max / mean,
            normalized_entropy: if several {
                entropy(&shares) / n.ln()
            } else {
                1.0
            },
            dead_experts,
            no_data: false,
        }
    }
}

/// Sum of squared distances from the mean; exactly zero if all values (at least one) are equal,
/// because they are measured from the first.
fn squared_deviations(values: &[f64]) -> f64 {
    let offset = |value: &f64| value - values[0];
    let mean = values.iter().map(offset).sum::<f64>() / values.len() as f64;
    let squares = values.iter().map(|value| (offset(value) - mean).powi(2));
    squares.sum()
}

/// Shannon entropy in nats; a share of zero adds nothing.
fn entropy(shares: &[f64]) -> f64 {
    -shares
        .iter()
        .filter(|&&share| share > 0.0)
        .map(|share| share * share.ln())
        .sum::<f64>()
}

/// The Gini coefficient of counts as a reduced fraction (numerator, denominator); `(0, 1)` if all
/// are zero.
///
/// Exact for every `u64` count and up to `2^31` experts: the sums stay below `2^127`.
pub fn gini_fraction(counts: &[u64]) -> (u128, u128) {
    let n = counts.len() as i128;
    let mut ascending = counts.to_vec();
    ascending.sort_unstable();
    let sum: u128 = ascending.iter().map(|&count| u128::from(count)).sum();
    if sum == 0 {
        return (0, 1);
    }
    let weighted = ascending
        .iter()
        .zip(1_i128..)
        .map(|(&count, i)| (2 * i - n - 1) * i128::from(count));
    // Ascending order pairs the larger counts with the larger weights, so the sum is never
    // negative.
    let numerator = weighted.sum::<i128>().unsigned_abs();
    let denominator = n.unsigned_abs() * sum;
    let divisor = greatest_common_divisor(numerator, denominator);
    (numerator / divisor, denominator / divisor)
}

fn greatest_common_divisor(mut a: u128, mut b: u128) -> u128 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// Exact choices per expert of one layer over a window, summed over micro-batches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadCounts {
    /// Choices made for all positions, padding included.
    pub with_padding: Vec<u64>,
    /// Choices made for real tokens only.
    pub without_padding: Vec<u64>,
}

impl LoadCounts {
    /// Counts of `num_experts` experts, all zero.
    pub fn new(num_experts: usize) -> Self {
        Self {
            with_padding: vec![0; num_experts],
            without_padding: vec![0; num_experts],
        }
    }

    /// Adds the counts of a micro-batch.
    ///
    /// # Panics
    /// If the number of experts differs.
    pub fn add(&mut self, other: &Self) {
        add_to(&mut self.with_padding, &other.with_padding);
        add_to(&mut self.without_padding, &other.without_padding);
    }

    /// Checks that every position and slot was counted exactly once.
    ///
    /// # Errors
    /// [`BalanceError::WrongTotal`] if a sum is not `positions * top_k`, or not `tokens * top_k`
    /// without padding.
    pub fn check_totals(
        &self,
        layer: usize,
        positions: u64,
        tokens: u64,
        top_k: u64,
    ) -> Result<(), BalanceError> {
        let sides = [
            ("with padding", &self.with_padding, positions),
            ("without padding", &self.without_padding, tokens),
        ];
        for (kind, counts, tokens) in sides {
            let (found, wanted) = (counts.iter().sum::<u64>(), tokens * top_k);
            if found != wanted {
                return Err(BalanceError::WrongTotal {
                    layer,
                    kind,
                    found,
                    tokens,
                    top_k,
                    wanted,
                });
            }
        }
        Ok(())
    }

    /// Sets all counts to zero: the start of a new window.
    pub fn reset(&mut self) {
        self.with_padding.fill(0);
        self.without_padding.fill(0);
    }
}

fn add_to(total: &mut [u64], addend: &[u64]) {
    assert_eq!(
        total.len(),
        addend.len(),
        "expert counts of different lengths"
    );
    for (total, addend) in total.iter_mut().zip(addend) {
        *total += addend;
    }
}

/// The paper-compatible smoothed load of one layer: `h <- 0.99 h + 0.01 c` with each micro-batch,
/// from `h = 0`.
///
/// `c` counts all positions, padding included (as the paper's code does). There is no bias
/// correction: every figure is a ratio of loads, in which it cancels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoadTracker {
    /// Smoothed number of choices per expert.
    pub hard: Vec<f64>,
    /// Smoothed sum of routing weights per expert.
    pub soft: Vec<f64>,
}

impl LoadTracker {
    /// A tracker that has seen nothing.
    pub fn new(num_experts: usize) -> Self {
        Self {
            hard: vec![0.0; num_experts],
            soft: vec![0.0; num_experts],
        }
    }

    /// Takes in one micro-batch: choices and summed routing weights per expert.
    ///
    /// # Panics
    /// If either has another number of experts.
    pub fn update(&mut self, counts: &[u64], routing_weight_sums: &[f64]) {
        assert_eq!(
            self.hard.len(),
            counts.len(),
            "counts of another number of experts"
        );
        assert_eq!(
            self.soft.len(),
            routing_weight_sums.len(),
            "weights of another number of experts"
        );
        let smooth = |old: f64, new: f64| TRACKER_DECAY * old + (1.0 - TRACKER_DECAY) * new;
        for (hard, &count) in self.hard.iter_mut().zip(counts) {
            *hard = smooth(*hard, count as f64);
        }
        for (soft, &weight) in self.soft.iter_mut().zip(routing_weight_sums) {
            *soft = smooth(*soft, weight);
        }
    }

    /// The figures of the smoothed choices.
    ///
    /// # Errors
    /// [`BalanceError::InvalidLoad`] if the state is not finite (a damaged checkpoint).
    pub fn hard_metrics(&self) -> Result<LoadMetrics, BalanceError> {
        LoadMetrics::from_loads(&self.hard)
    }

    /// The figures of the smoothed routing weights.
    ///
    /// # Errors
    /// [`BalanceError::InvalidLoad`] if a routing weight was not finite or negative.
    pub fn soft_metrics(&self) -> Result<LoadMetrics, BalanceError> {
        LoadMetrics::from_loads(&self.soft)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_expert_taking_everything_has_gini_one_minus_one_over_n_exactly() {
        for n in 2_usize..70 {
            let mut counts = vec![0; n];
            counts[n / 2] = 1 << 53;
            let metrics = LoadMetrics::from_counts(&counts);
            assert_eq!(
                metrics.gini.to_bits(),
                ((n - 1) as f64 / n as f64).to_bits(),
                "{n} experts"
            );
            assert_eq!(
                (metrics.min_max_ratio.to_bits(), metrics.dead_experts),
                (0, n - 1)
            );
        }
    }

    #[test]
    fn an_even_load_of_any_size_has_figures_of_exactly_zero() {
        for n in 1..70 {
            for load in [0.1, 1.0 / 3.0, 0.04, 1e-17] {
                let metrics = LoadMetrics::from_loads(&vec![load; n]).expect("valid");
                let zeros = [
                    metrics.gini,
                    metrics.cv,
                    metrics.cv_population,
                    metrics.variance_of_fraction,
                ];
                assert_eq!(zeros.map(f64::to_bits), [0; 4], "{n} experts with {load}");
            }
        }
    }

    #[test]
    fn counts_beyond_the_range_of_floats_are_still_told_apart() {
        assert_eq!(
            gini_fraction(&[(1 << 53) - 1, 1 << 53]),
            (1, 2 * ((1 << 54) - 1))
        );
        assert_eq!(gini_fraction(&[u64::MAX, u64::MAX]), (0, 1));
        assert_eq!(gini_fraction(&[0, u64::MAX]), (1, 2));
    }

    #[test]
    fn nothing_routed_is_flagged_and_gives_zeros() {
        for counts in [&[][..], &[0], &[0, 0, 0]] {
            let metrics = LoadMetrics::from_counts(counts);
            assert!(metrics.no_data, "{counts:?}");
            assert_eq!(
                (metrics.gini, metrics.min_max_ratio, metrics.cv),
                (0.0, 0.0, 0.0),
                "{counts:?}"
            );
            assert_eq!(metrics.dead_experts, counts.len());
        }
    }

    #[test]
    fn a_single_expert_is_balanced() {
        let metrics = LoadMetrics::from_counts(&[4]);
        assert_eq!(
            (
                metrics.gini,
                metrics.min_max_ratio,
                metrics.cv,
                metrics.no_data
            ),
            (0.0, 1.0, 0.0, false)
        );
    }

    #[test]
    fn a_load_that_is_not_a_number_is_an_error_and_names_the_expert() {
        for bad in [f64::NAN, f64::INFINITY, -1.0] {
            let error = LoadMetrics::from_loads(&[1.0, bad]).expect_err("refused");
            assert!(error.to_string().contains("expert 1"), "{error}");
        }
    }

    #[test]
    fn the_order_of_the_experts_does_not_matter() {
        let counts = [3, 1, 4, 1, 5, 9, 2, 6];
        let mut reversed = counts;
        reversed.reverse();
        assert_eq!(
            LoadMetrics::from_counts(&counts),
            LoadMetrics::from_counts(&reversed)
        );
    }

    #[test]
    fn a_window_is_the_sum_of_its_micro_batches() {
        let batch = LoadCounts {
            with_padding: vec![3, 1],
            without_padding: vec![2, 0],
        };
        let mut window = LoadCounts::new(2);
        window.add(&batch);
        window.add(&batch);
        assert_eq!(
            window,
            LoadCounts {
                with_padding: vec![6, 2],
                without_padding: vec![4, 0]
            }
        );
        assert_eq!(window.check_totals(0, 4, 2, 2), Ok(()));
        let error = window
            .check_totals(7, 4, 3, 2)
            .expect_err("two choices are missing");
        assert!(
            error.to_string().contains("layer 7") && error.to_string().contains("without padding"),
            "{error}"
        );
        window.reset();
        assert_eq!(window, LoadCounts::new(2));
    }

    #[test]
    fn the_tracker_survives_a_file_bit_by_bit() {
        let mut tracker = LoadTracker::new(3);
        for batch in 0..50 {
            tracker.update(&[batch, 1, 0], &[0.1 * batch as f64, 1.0 / 3.0, 0.0]);
        }
        let text = serde_json::to_string(&tracker).expect("serializes");
        let back: LoadTracker = serde_json::from_str(&text).expect("deserializes");
        let bits = |tracker: &LoadTracker| -> Vec<u64> {
            tracker
                .hard
                .iter()
                .chain(&tracker.soft)
                .map(|load| load.to_bits())
                .collect()
        };
        assert_eq!(bits(&tracker), bits(&back));
    }
}
