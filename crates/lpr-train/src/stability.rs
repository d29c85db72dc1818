//! Steps that must not be taken, and losses out of line: what counts as one, and what follows.
//!
//! Everything that decides is in [`Stability`], which goes into checkpoints, so that a resumed run
//! decides as the run that was not interrupted.

use std::collections::VecDeque;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where the losses hardly vary, this part of their mean stands for the standard deviation.
const LEAST_RELATIVE_DEVIATION: f64 = 1e-3;

/// What to do when the loss or a gradient is not finite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnNonfinite {
    /// Go on with the next batch; roll back after `max_skips` in a row.
    #[default]
    Skip,
    /// Go back to the newest checkpoint, but not in the data.
    Rollback,
    /// End the run with exit code 5.
    Abort,
}

/// What to do when the loss jumps up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnSpike {
    /// Say so and take the step.
    #[default]
    Warn,
    /// Go on with the next batch; roll back after `max_skips` in a row.
    Skip,
    /// Go back to the newest checkpoint, but not in the data.
    Rollback,
}

/// The `[stability]` section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StabilityConfig {
    /// What to do when the loss or a gradient is not finite; such an update is never applied.
    pub on_nonfinite: OnNonfinite,
    /// What to do when the cross-entropy is a spike.
    pub on_spike: OnSpike,
    /// A spike is so many standard deviations above the mean of the last losses.
    #[schemars(range(min = 1.0, max = 1000.0))]
    pub spike_threshold: f64,
    /// How many losses that mean is of; before there are so many, nothing is a spike.
    #[schemars(range(min = 4, max = 100_000))]
    pub spike_window: usize,
    /// Most steps in a row that are skipped; one more rolls the run back.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub max_skips: u64,
    /// Most times that the run rolls back; one more ends it with exit code 5.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub max_rollbacks: u64,
}

impl Default for StabilityConfig {
    fn default() -> Self {
        Self {
            on_nonfinite: OnNonfinite::Skip,
            on_spike: OnSpike::Warn,
            spike_threshold: 6.0,
            spike_window: 128,
            max_skips: 3,
            max_rollbacks: 3,
        }
    }
}

/// What happened since the beginning of the run, in steps that were rolled back, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StabilityTotals {
    /// Steps whose loss or gradients were not finite.
    pub nonfinite_total: u64,
    /// Steps whose loss was a spike.
    pub spikes_total: u64,
    /// Steps whose update was not applied, for either reason.
    pub skipped_total: u64,
    /// Times that the run went back to a checkpoint.
    pub rollbacks_total: u64,
}

/// Why an update is not applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The loss or a gradient is not finite.
    Nonfinite,
    /// The loss is a spike.
    Spike,
}

/// What follows from a step whose update was not applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consequence {
    /// The next batch.
    Skip,
    /// The newest checkpoint with the next batch.
    RollBack,
    /// Exit code 5.
    Stop,
}

/// The losses of the last steps and what has been done about them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stability {
    /// Cross-entropies of the newest steps whose update was applied, oldest first.
    losses: VecDeque<f64>,
    /// Steps behind the present weights whose update was not applied.
    unapplied: u64,
    /// How many of the newest steps those are without a gap.
    in_a_row: u64,
    /// The whole run.
    #[serde(flatten)]
    totals: StabilityTotals,
}

impl Stability {
    /// The counts for a record.
    pub fn totals(&self) -> StabilityTotals {
        self.totals
    }

    /// Whether the newest step was applied, so that the weights are worth going back to.
    pub fn is_sound(&self) -> bool {
        self.in_a_row == 0
    }

    /// Updates that made the present weights, after `step` steps.
    pub fn num_updates(&self, step: u64) -> u64 {
        step.saturating_sub(self.unapplied)
    }

    /// By how many standard deviations `loss` exceeds the mean of the window; `None` before the
    /// window is full.
    pub fn z_score(&self, config: &StabilityConfig, loss: f64) -> Option<f64> {
        let (mean, deviation) = self.usual_loss(config)?;
        Some((loss - mean) / deviation)
    }

    /// Mean and standard deviation of the window.
    fn usual_loss(&self, config: &StabilityConfig) -> Option<(f64, f64)> {
        if self.losses.len() < config.spike_window {
            return None;
        }
        let count = self.losses.len() as f64;
        let mean = self.losses.iter().sum::<f64>() / count;
        let squares: f64 = self.losses.iter().map(|loss| (loss - mean).powi(2)).sum();
        let least = LEAST_RELATIVE_DEVIATION * mean.abs();
        let deviation = (squares / count).sqrt().max(least).max(f64::MIN_POSITIVE);
        Some((mean, deviation))
    }

    /// The largest loss that is no spike.
    fn largest_usual_loss(&self, config: &StabilityConfig) -> f64 {
        self.usual_loss(config)
            .map_or(f64::INFINITY, |(mean, deviation)| {
                mean + config.spike_threshold * deviation
            })
    }

    /// The largest loss with which an update is applied.
    pub fn max_loss(&self, config: &StabilityConfig) -> f64 {
        match config.on_spike {
            OnSpike::Warn => f64::INFINITY,
            OnSpike::Skip | OnSpike::Rollback => self.largest_usual_loss(config),
        }
    }

    /// Whether `loss` is a spike.
    pub fn is_spike(&self, config: &StabilityConfig, loss: f64) -> bool {
        loss > self.largest_usual_loss(config)
    }

    /// Takes in the loss of a step whose update was applied.
    pub fn applied(&mut self, config: &StabilityConfig, loss: f64) {
        self.totals.spikes_total += u64::from(self.is_spike(config, loss));
        self.in_a_row = 0;
        self.losses.push_back(loss);
        let surplus = self.losses.len().saturating_sub(config.spike_window);
        self.losses.drain(..surplus);
    }

    /// Takes in a step whose update was not applied and says what follows.
    pub fn refused(&mut self, config: &StabilityConfig, trouble: Trouble) -> Consequence {
        let totals = &mut self.totals;
        match trouble {
            Trouble::Nonfinite => totals.nonfinite_total += 1,
            Trouble::Spike => totals.spikes_total += 1,
        }
        totals.skipped_total += 1;
        self.unapplied += 1;
        self.in_a_row += 1;
        let skips = match (trouble, config.on_nonfinite, config.on_spike) {
            (Trouble::Nonfinite, OnNonfinite::Abort, _) => return Consequence::Stop,
            (Trouble::Nonfinite, OnNonfinite::Skip, _) => true,
            (Trouble::Spike, _, on_spike) => on_spike == OnSpike::Skip,
            (Trouble::Nonfinite, OnNonfinite::Rollback, _) => false,
        };
        if skips && self.in_a_row <= config.max_skips {
            Consequence::Skip
        } else if self.totals.rollbacks_total < config.max_rollbacks {
            Consequence::RollBack
        } else {
            Consequence::Stop
        }
    }

    /// Goes back to `saved`, which a checkpoint held; what happened since is still counted.
    pub fn roll_back(&mut self, saved: Self) {
        let rollbacks_total = self.totals.rollbacks_total + 1;
        *self = Self {
            in_a_row: 0,
            totals: StabilityTotals {
                rollbacks_total,
                ..self.totals
            },
            ..saved
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> StabilityConfig {
        StabilityConfig {
            spike_window: 4,
            max_skips: 2,
            max_rollbacks: 1,
            ..StabilityConfig::default()
        }
    }

    fn after(losses: &[f64]) -> Stability {
        let mut stability = Stability::default();
        for loss in losses {
            stability.applied(&config(), *loss);
        }
        stability
    }

    #[test]
    fn the_z_score_is_that_of_the_newest_losses() {
        assert_eq!(after(&[1.0, 3.0, 1.0]).z_score(&config(), 9.0), None);
        // Mean 2 and standard deviation 1; the first loss has left the window.
        let stability = after(&[50.0, 1.0, 3.0, 1.0, 3.0]);
        assert_eq!(stability.z_score(&config(), 9.0), Some(7.0));
        assert!(stability.is_spike(&config(), 9.0));
        assert!(!stability.is_spike(&config(), 8.0));
        assert!(!stability.is_spike(&config(), -50.0), "lower is better");
    }

    #[test]
    fn losses_that_never_vary_make_no_spike_of_a_rounding_error() {
        let stability = after(&[2.0; 4]);
        assert!(!stability.is_spike(&config(), 2.000_001));
        assert!(stability.is_spike(&config(), 2.1));
        assert_eq!(after(&[0.0; 4]).z_score(&config(), 0.0), Some(0.0));
    }

    #[test]
    fn a_spike_that_was_taken_is_counted_and_joins_the_window() {
        let mut stability = after(&[1.0, 3.0, 1.0, 3.0]);
        stability.applied(&config(), 90.0);
        assert_eq!(stability.totals().spikes_total, 1);
        assert!(!stability.is_spike(&config(), 9.0));
    }

    #[test]
    fn skips_in_a_row_become_a_rollback_and_rollbacks_an_end() {
        use Consequence::{RollBack, Skip, Stop};
        let mut stability = after(&[1.0]);
        let saved = stability.clone();
        let refuse = |stability: &mut Stability| stability.refused(&config(), Trouble::Nonfinite);
        assert_eq!([0, 1].map(|_| refuse(&mut stability)), [Skip, Skip]);
        assert!(!stability.is_sound());
        stability.applied(&config(), 1.0);
        assert!(stability.is_sound());
        assert_eq!(stability.num_updates(4), 2);
        let found = [0, 1, 2].map(|_| refuse(&mut stability));
        assert_eq!(found, [Skip, Skip, RollBack]);
        stability.roll_back(saved);
        assert_eq!(stability.num_updates(1), 1);
        assert_eq!(stability.losses, [1.0]);
        let found = [0, 1, 2].map(|_| refuse(&mut stability));
        assert_eq!(found, [Skip, Skip, Stop]);
        let totals = stability.totals();
        assert_eq!((totals.skipped_total, totals.rollbacks_total), (8, 1));
    }

    #[test]
    fn every_policy_has_its_consequence() {
        use Consequence::{RollBack, Skip, Stop};
        let first = |on_nonfinite, on_spike, trouble| {
            let config = StabilityConfig {
                on_nonfinite,
                on_spike,
                ..config()
            };
            Stability::default().refused(&config, trouble)
        };
        for (on_nonfinite, want) in [
            (OnNonfinite::Skip, Skip),
            (OnNonfinite::Rollback, RollBack),
            (OnNonfinite::Abort, Stop),
        ] {
            let found = first(on_nonfinite, OnSpike::Skip, Trouble::Nonfinite);
            assert_eq!(found, want, "{on_nonfinite:?}");
        }
        for (on_spike, want) in [(OnSpike::Skip, Skip), (OnSpike::Rollback, RollBack)] {
            let found = first(OnNonfinite::Abort, on_spike, Trouble::Spike);
            assert_eq!(found, want, "{on_spike:?}");
        }
    }

    #[test]
    fn the_state_survives_a_file_bit_by_bit() {
        let mut stability = after(&[1.0 / 3.0, 0.1, 2.0_f64.sqrt()]);
        stability.refused(&config(), Trouble::Spike);
        let text = serde_json::to_string(&stability).expect("serialized");
        let back: Stability = serde_json::from_str(&text).expect("deserialized");
        assert_eq!(back, stability);
    }
}
