//! The configuration of a run: one type for the whole file, and the only place that reads it.
//!
//! Files and overrides are layered (`layers`), checked against the schema of the types below
//! (`schema`), turned into a [`RunConfig`] and checked for rules between keys (`rules`). Every
//! problem of every layer is reported at once.

use std::path::{Path, PathBuf};

use lpr_data::DataConfig;
use lpr_model::{FamilyConfig, RouterConfig};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schedule::ScheduleConfig;
use crate::stability::StabilityConfig;

mod compare;
mod layers;
mod load;
mod preset;
mod problem;
mod reference;
mod rules;
mod schema;
mod template;
mod value;

pub use compare::{Difference, Differences, resume_differences};
pub use problem::{ConfigErrors, Place, Problem, hide_tokens};
pub use reference::reference;
pub use template::template;

/// Everything that decides what a run computes and where it writes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Configuration of lpr-train")]
pub struct RunConfig {
    /// The architecture and its sizes.
    pub model: FamilyConfig,
    /// How tokens are sent to experts.
    pub router: RouterConfig,
    /// The text to train and validate on.
    pub data: DataConfig,
    /// `AdamW` and gradient clipping.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// The learning rate over the run.
    #[serde(default)]
    pub schedule: ScheduleConfig,
    /// Length of the run, batches, seed, device.
    #[serde(default)]
    pub train: TrainConfig,
    /// What to do about steps that are not finite and losses that jump.
    #[serde(default)]
    pub stability: StabilityConfig,
    /// When to save and how many checkpoints to keep.
    #[serde(default)]
    pub checkpoint: CheckpointConfig,
    /// When to evaluate on the validation sources and how much of them.
    #[serde(default)]
    pub eval: EvalConfig,
    /// When to report.
    #[serde(default)]
    pub log: LogConfig,
}

/// Which parameters weight decay acts on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DecayOn {
    /// Every parameter, as in the paper's trainer.
    #[default]
    All,
    /// Parameters with two or more axes, but not the embedding and the prototypes (their
    /// log-variances included).
    Matrices,
}

/// The `[optimizer]` section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerConfig {
    /// The learning rate at the peak of the schedule.
    #[schemars(range(min = 0.0, max = 100.0))]
    pub learning_rate: f64,
    /// Decay rates of the first and second moment; each below 1.
    #[schemars(inner(range(min = 0.0, max = 1.0)))]
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    #[schemars(extend("exclusiveMinimum" = 0.0, "maximum" = 1.0))]
    pub eps: f64,
    /// Decoupled weight decay.
    #[schemars(range(min = 0.0, max = 100.0))]
    pub weight_decay: f64,
    /// Which parameters weight decay acts on.
    pub decay_on: DecayOn,
    /// Gradients are scaled down to this norm over all parameters together; 0 turns clipping off.
    #[schemars(range(min = 0.0))]
    pub max_grad_norm: f64,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            learning_rate: 1e-3,
            betas: [0.9, 0.95],
            eps: 1e-8,
            weight_decay: 0.1,
            decay_on: DecayOn::All,
            max_grad_norm: 1.0,
        }
    }
}

/// What the matrix products of the model multiply. Weights, optimizer, sums, router scores and
/// everything that is not a product are 32-bit floats in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 32-bit floats.
    #[default]
    F32,
    /// Factors rounded to 16-bit brain floats, on GPUs, and CPUs, that multiply them (AVX-512 BF16).
    Bf16,
}

/// The `[train]` section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Optimizer steps of the whole run; either this or `total_tokens`.
    #[schemars(range(min = 1, max = 1_000_000_000_000_u64))]
    pub total_steps: Option<u64>,
    /// Token positions of the whole run, padding included, rounded up to whole steps; either this
    /// or `total_steps`.
    #[schemars(range(min = 1, max = 1_000_000_000_000_000_000_u64))]
    pub total_tokens: Option<u64>,
    /// Rows of one forward and backward pass.
    #[schemars(range(min = 1, max = 65_536))]
    pub micro_batch_size: usize,
    /// Micro-batches whose gradients are added up for one optimizer step.
    #[schemars(range(min = 1, max = 65_536))]
    pub gradient_accumulation_steps: usize,
    /// Keep only the inputs of the blocks for the backward pass, which makes the activations again, one
    /// block at a time: less memory, about a third more time, the same results.
    pub gradient_checkpointing: bool,
    /// Seed of everything random but the order of the data, which has `data.shuffle_seed`.
    #[schemars(range(min = 0, max = 9_223_372_036_854_775_807_u64))]
    pub seed: u64,
    /// Where to compute: "cpu", "wgpu" or "cuda", the latter two in builds that have them and with a
    /// number after a colon where there are several; `doctor` lists them.
    pub device: String,
    /// What matrix products multiply.
    pub precision: Precision,
    /// The folder of the run; "runs/" and the name of the last configuration file if absent.
    pub run_dir: Option<PathBuf>,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            total_steps: None,
            total_tokens: None,
            micro_batch_size: 8,
            gradient_accumulation_steps: 1,
            gradient_checkpointing: false,
            seed: 42,
            device: "cpu".to_owned(),
            precision: Precision::F32,
            run_dir: None,
        }
    }
}

/// The `[checkpoint]` section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointConfig {
    /// Save every so many steps, but not after one that was skipped; 0 saves only at the end.
    pub every_steps: u64,
    /// How many of the newest checkpoints to keep.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub keep_last: usize,
    /// Also keep those whose step is a multiple of this; 0 keeps none for that reason.
    pub keep_every: u64,
    /// Also keep so many with the lowest validation loss.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub keep_best: usize,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self {
            every_steps: 0,
            keep_last: 2,
            keep_every: 0,
            keep_best: 0,
        }
    }
}

/// The `[eval]` section.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EvalConfig {
    /// Evaluate every so many steps; 0 evaluates only at the end.
    pub every_steps: u64,
    /// Also evaluate before the first step.
    pub at_start: bool,
    /// The longest row in tokens; `data.sequence_length` if absent.
    #[schemars(range(min = 2, max = 4_194_304))]
    pub max_length: Option<usize>,
    /// Stop after so many tokens; all of the validation data if absent.
    #[schemars(range(min = 1, max = 1_000_000_000_000_000_000_u64))]
    pub max_tokens: Option<u64>,
    /// Rows of one forward pass; `train.micro_batch_size` if absent.
    #[schemars(range(min = 1, max = 65_536))]
    pub rows_per_batch: Option<usize>,
}

/// Where records go besides `metrics.jsonl` and the terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Sink {
    /// Event files that `TensorBoard` reads.
    Tensorboard,
    /// `train.csv` and `eval.csv`.
    Csv,
}

/// The `[log]` section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// Report every so many steps; expert counts are exact over the same window.
    #[schemars(range(min = 1, max = 1_000_000_000_000_u64))]
    pub every_steps: u64,
    /// Where records go besides `metrics.jsonl` and the terminal.
    pub sinks: Vec<Sink>,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            every_steps: 10,
            sinks: vec![Sink::Tensorboard],
        }
    }
}

impl RunConfig {
    /// Optimizer steps of the whole run.
    ///
    /// From `train.total_tokens`: the fewest steps whose token positions, padding included, reach
    /// that number.
    pub fn total_steps(&self) -> u64 {
        let tokens = self
            .train
            .total_tokens
            .map(|tokens| tokens.div_ceil(self.positions_per_step()));
        self.train.total_steps.or(tokens).unwrap_or(1)
    }

    /// The largest number of token positions of one optimizer step.
    pub fn positions_per_step(&self) -> u64 {
        let rows =
            self.train.micro_batch_size as u64 * self.train.gradient_accumulation_steps as u64;
        rows.saturating_mul(self.data.sequence_length as u64).max(1)
    }

    /// The folder of the run.
    pub fn run_dir(&self) -> &Path {
        self.train
            .run_dir
            .as_deref()
            .unwrap_or(Path::new("runs/run"))
    }

    /// The longest row of an evaluation, in tokens.
    pub fn eval_max_length(&self) -> usize {
        self.eval.max_length.unwrap_or(self.data.sequence_length)
    }

    /// Rows of one forward pass of an evaluation.
    pub fn eval_rows_per_batch(&self) -> usize {
        self.eval
            .rows_per_batch
            .unwrap_or(self.train.micro_batch_size)
    }
}

/// The JSON Schema of the configuration, for editors.
pub fn json_schema() -> serde_json::Value {
    schema::Schema::of::<RunConfig>().json().clone()
}

#[cfg(test)]
mod tests;
