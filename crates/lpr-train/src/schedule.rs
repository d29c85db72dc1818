//! Warm-up, stable, decay (WSD): the learning rate as a pure function of the step.
//!
//! Nothing here is remembered, so nothing is checkpointed: after a resume, or with another number
//! of steps, the rate follows from the step alone.

use std::f64::consts::PI;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::RunConfig;

/// Which curve the learning rate follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// Linear warm-up, constant peak, decay to `min_lr_ratio`.
    #[default]
    Wsd,
}

/// How the rate falls from the peak to its floor in the decay phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DecayShape {
    /// Half a cosine wave.
    #[default]
    Cosine,
    /// A straight line.
    Linear,
    /// One minus the square root of the progress: steep at first.
    Sqrt,
}

/// The `[schedule]` section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ScheduleConfig {
    /// The curve of the learning rate.
    pub kind: ScheduleKind,
    /// Share of the steps that warm up linearly, from `min_lr_ratio` to the peak.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub warmup_ratio: f64,
    /// Share of the steps at the peak; what warm-up and this leave is the decay.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub stable_ratio: f64,
    /// The step from which on the rate decays, in place of `stable_ratio`; `--decay-from` sets it.
    #[schemars(range(min = 0, max = 1_000_000_000_000_u64))]
    pub decay_start: Option<u64>,
    /// The lowest rate, as a share of the peak.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub min_lr_ratio: f64,
    /// The curve of the decay.
    pub decay_shape: DecayShape,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self {
            kind: ScheduleKind::Wsd,
            warmup_ratio: 0.05,
            stable_ratio: 0.75,
            decay_start: None,
            min_lr_ratio: 0.05,
            decay_shape: DecayShape::Cosine,
        }
    }
}

/// The learning rate of every step of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    learning_rate: f64,
    warmup_steps: u64,
    stable_steps: u64,
    decay_steps: u64,
    min_lr_ratio: f64,
    decay_shape: DecayShape,
}

impl Schedule {
    /// The schedule of a run of `total_steps` whose peak is `learning_rate`.
    ///
    /// Phases in steps: `w = floor(warmup_ratio N)`, `s = floor(stable_ratio N)`, decay `N - w -
    /// s`. The ratios must not add up to more than one, which the configuration has checked.
    pub fn new(config: &ScheduleConfig, learning_rate: f64, total_steps: u64) -> Self {
        let share = |ratio: f64| (ratio * total_steps as f64).floor() as u64;
        let warmup_steps = share(config.warmup_ratio).min(total_steps);
        let stable_steps = match config.decay_start {
            Some(start) => start.saturating_sub(warmup_steps),
            None => share(config.stable_ratio),
        };
        let stable_steps = stable_steps.min(total_steps - warmup_steps);
        Self {
            learning_rate,
            warmup_steps,
            stable_steps,
            decay_steps: total_steps - warmup_steps - stable_steps,
            min_lr_ratio: config.min_lr_ratio,
            decay_shape: config.decay_shape,
        }
    }

    /// The schedule of a run.
    pub fn of(config: &RunConfig) -> Self {
        let learning_rate = config.optimizer.learning_rate;
        Self::new(&config.schedule, learning_rate, config.total_steps())
    }

    /// How many steps warm up.
    pub fn warmup_steps(&self) -> u64 {
        self.warmup_steps
    }

    /// How many steps the decay takes.
    pub fn decay_steps(&self) -> u64 {
        self.decay_steps
    }

    /// The learning rate of the 0-based optimizer step `step`.
    pub fn learning_rate(&self, step: u64) -> f64 {
        self.learning_rate * self.factor(step)
    }

    /// The learning rate of `step` as a share of the peak.
    ///
    /// With `t` the step, `r` the floor ratio, `w`, `s`, `D` the steps of the phases and `p = (t -
    /// w - s) / D`: `t < w`: `r + (1 - r) t / w`; `t < w + s`: `1`; `t < w + s + D`: `r + (1 - r)
    /// f(p)`; afterwards `r`, where `f` is `(1 + cos(pi p)) / 2`, `1 - p` or `1 - sqrt(p)`. The
    /// first step has rate `r`, not zero (LPR code).
    pub fn factor(&self, step: u64) -> f64 {
        let floor = self.min_lr_ratio;
        let decay_start = self.warmup_steps + self.stable_steps;
        if step < self.warmup_steps {
            floor + (1.0 - floor) * (step as f64 / self.warmup_steps as f64)
        } else if step < decay_start {
            1.0
        } else if step < decay_start + self.decay_steps {
            let progress = (step - decay_start) as f64 / self.decay_steps as f64;
            floor + (1.0 - floor) * fall(self.decay_shape, progress)
        } else {
            floor
        }
    }
}

/// From 1 at `progress` 0 to 0 at `progress` 1.
fn fall(shape: DecayShape, progress: f64) -> f64 {
    match shape {
        DecayShape::Cosine => 0.5 * (1.0 + (PI * progress).cos()),
        DecayShape::Linear => 1.0 - progress,
        DecayShape::Sqrt => 1.0 - progress.sqrt(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails, showing both numbers, unless `|got - want| <= rtol |want|`.
    fn assert_close(got: f64, want: f64, rtol: f64, what: &str) {
        assert!(
            (got - want).abs() <= rtol * want.abs(),
            "{what}: got {got:e}, want {want:e}, rtol {rtol:e}"
        );
    }

    fn with_shape(decay_shape: DecayShape) -> Schedule {
        let config = ScheduleConfig {
            warmup_ratio: 0.25,
            stable_ratio: 0.25,
            min_lr_ratio: 0.2,
            decay_shape,
            ..Default::default()
        };
        Schedule::new(&config, 1e-3, 8)
    }

    #[test]
    fn phases_are_the_floors_of_the_ratios_and_the_rest() {
        let schedule = Schedule::new(&ScheduleConfig::default(), 1e-3, 4000);
        assert_eq!(
            (
                schedule.warmup_steps,
                schedule.stable_steps,
                schedule.decay_steps
            ),
            (200, 3000, 800)
        );
        let schedule = Schedule::new(&ScheduleConfig::default(), 1e-3, 30);
        assert_eq!(
            (
                schedule.warmup_steps,
                schedule.stable_steps,
                schedule.decay_steps
            ),
            (1, 22, 7)
        );
    }

    #[test]
    fn every_step_of_a_short_run_is_as_computed_by_hand() {
        let linear = with_shape(DecayShape::Linear);
        let want = [0.2, 0.6, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2, 0.2];
        for (step, want) in want.into_iter().enumerate() {
            assert_close(
                linear.factor(step as u64),
                want,
                1e-15,
                &format!("linear step {step}"),
            );
            assert_close(
                linear.learning_rate(step as u64),
                1e-3 * want,
                1e-15,
                &format!("rate of step {step}"),
            );
        }
        let sqrt = with_shape(DecayShape::Sqrt);
        assert_close(
            sqrt.factor(5),
            0.2 + 0.8 * 0.5,
            1e-15,
            "a quarter of the decay costs half of the range",
        );
        let cosine = with_shape(DecayShape::Cosine);
        assert_close(
            cosine.factor(6),
            0.6,
            1e-15,
            "cosine is at the middle in the middle",
        );
    }

    #[test]
    fn phases_that_fill_the_run_leave_no_decay() {
        let config = ScheduleConfig {
            warmup_ratio: 0.5,
            stable_ratio: 0.5,
            ..Default::default()
        };
        let schedule = Schedule::new(&config, 1.0, 4);
        assert_eq!(
            (0..6).map(|step| schedule.factor(step)).collect::<Vec<_>>(),
            [0.05, 0.525, 1.0, 1.0, 0.05, 0.05]
        );
    }

    #[test]
    fn a_longer_run_agrees_with_a_shorter_one_in_the_stable_phase() {
        let short = Schedule::new(&ScheduleConfig::default(), 1e-3, 100);
        let long = Schedule::new(&ScheduleConfig::default(), 1e-3, 120);
        assert_eq!(
            short.learning_rate(50).to_bits(),
            long.learning_rate(50).to_bits()
        );
    }
}
