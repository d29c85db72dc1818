//! What a run costs, before it is started: positions, operations, memory, time.

use lpr_model::estimate::{Estimate, estimate};
use serde::Serialize;

use crate::config::RunConfig;
use crate::memory::{Memory, portable_experts};

/// Seconds of a day.
const DAY: f64 = 86_400.0;

/// What one run costs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunCost {
    /// The model.
    #[serde(flatten)]
    pub model: Estimate,
    /// Memory of training.
    pub memory: Memory,
    /// Bytes that the experts of a GPU take beyond it, whatever the load.
    pub portable_experts: u64,
    /// Optimizer steps.
    pub steps: u64,
    /// Token positions of all steps, padding included.
    pub positions: u64,
    /// Floating-point operations of training on all positions.
    pub training_flops: f64,
    /// At a given speed.
    pub time: Option<Time>,
}

/// How long something takes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Time {
    /// The speed.
    pub tokens_per_second: f64,
    /// Tokens in a day.
    pub tokens_per_day: f64,
    /// Days until the last token.
    pub days: f64,
}

impl Time {
    /// Of `positions` token positions.
    pub fn new(positions: u64, tokens_per_second: f64) -> Self {
        let tokens_per_day = tokens_per_second * DAY;
        Self {
            tokens_per_second,
            tokens_per_day,
            days: positions as f64 / tokens_per_day,
        }
    }
}

impl RunCost {
    /// Of the run that `config` describes. Makes no weights and opens no file.
    pub fn new(config: &RunConfig, tokens_per_second: Option<f64>) -> Self {
        let length = config.data.sequence_length;
        let model = estimate(&config.model.decoder(), &config.router, length);
        let memory = Memory::new(config, &model);
        let steps = config.total_steps();
        let positions = steps.saturating_mul(config.positions_per_step());
        Self {
            training_flops: model.training_flops_per_token as f64 * positions as f64,
            time: tokens_per_second.map(|speed| Time::new(positions, speed)),
            portable_experts: portable_experts(config),
            model,
            memory,
            steps,
            positions,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_as_long_as_its_steps_and_its_time_follows_from_the_speed() {
        let text = crate::config::template();
        let overrides = ["train.gradient_accumulation_steps=3".to_owned()];
        let config = RunConfig::parse("x.toml", &text, &overrides).expect("valid");
        let cost = RunCost::new(&config, Some(500.0));
        // 200 steps of 3 micro-batches of 8 rows of 128 tokens.
        assert_eq!((cost.steps, cost.positions), (200, 614_400));
        let flops = cost.model.training_flops_per_token as f64 * 614_400.0;
        assert!((cost.training_flops / flops - 1.0).abs() < 1e-12);
        let time = cost.time.expect("a speed was given");
        assert!((time.tokens_per_day - 43_200_000.0).abs() < 1e-3);
        assert!((time.days - 1228.8 / 86_400.0).abs() < 1e-12);
        assert_eq!(RunCost::new(&config, None).time, None);
    }
}
