//! Speed of a training step or of an evaluation, on tokens and weights that other programs can have,
//! too.

use std::time::{Duration, Instant};

use burn::module::Module;
use burn::tensor::Device;
use lpr_data::TokenBatch;
use lpr_kernels::profile::{self, SpanTime};
use lpr_model::CausalLm;
use serde::Serialize;

use crate::batch::MicroBatch;
use crate::config::RunConfig;
use crate::error::TrainError;
use crate::optimizer::Optimizer;
use crate::process;
use crate::signals::StopRequest;
use crate::step::{StepPlan, train_step};

pub mod shape;
pub mod tokens;

/// The learning rate rises to its full value over so many steps and then stays.
const WARMUP_STEPS: u64 = 10;
/// Steps whose batches differ; later steps see them again.
const DISTINCT_BATCHES: usize = 32;
/// The seed of the tokens is the seed of the run plus this.
const TOKEN_SEED: u64 = 1234;

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Whole optimizer steps.
    Train,
    /// Forward passes and cross-entropy, without gradients.
    Eval,
}

/// How long is timed.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// What.
    pub mode: Mode,
    /// Steps before the clock starts.
    pub warmup: usize,
    /// Steps that are timed, one by one.
    pub steps: usize,
    /// Whether spans are recorded during the timed steps.
    pub profile: bool,
}

/// The times of the steps.
#[derive(Clone, Debug)]
pub struct Timing {
    /// Cross-entropy of every step, warm-up included.
    pub losses: Vec<f64>,
    /// Wall time of every timed step.
    pub wall: Vec<Duration>,
    /// CPU time of the process in every timed step; empty where the system does not tell.
    pub cpu: Vec<Duration>,
    /// When the first step of all was done.
    pub first_step_done: Instant,
    /// The spans of the timed steps.
    pub spans: Vec<SpanTime>,
}

/// Runs the steps of `plan` with `model`, which has autodiff.
///
/// # Errors
/// If a step is not finite.
pub fn time_steps(
    config: &RunConfig,
    mut model: CausalLm,
    device: &Device,
    plan: Plan,
) -> Result<Timing, TrainError> {
    if plan.mode == Mode::Eval {
        model = model.valid();
    }
    let total = plan.warmup + plan.steps;
    let batches = batches(config, total.min(DISTINCT_BATCHES));
    let mut optimizer = Optimizer::new(&config.optimizer);
    let mut timing = Timing {
        losses: Vec::with_capacity(total),
        wall: Vec::with_capacity(plan.steps),
        cpu: Vec::with_capacity(plan.steps),
        first_step_done: Instant::now(),
        spans: Vec::new(),
    };
    for step in 0..total {
        if step == plan.warmup && plan.profile {
            profile::start();
        }
        let (wall, cpu) = (Instant::now(), process::cpu_time());
        let _step = profile::span("step");
        let batch = MicroBatch::new(&batches[step % batches.len()], device);
        let loss = match plan.mode {
            Mode::Train => {
                let (next, loss) = train(config, model, &mut optimizer, &batch, step as u64)?;
                model = next;
                loss
            }
            Mode::Eval => evaluate(&model, &batch),
        };
        timing.losses.push(loss);
        if step == 0 {
            timing.first_step_done = Instant::now();
        }
        if step >= plan.warmup {
            timing.wall.push(wall.elapsed());
            let cpu = process::cpu_time()
                .zip(cpu)
                .map(|(end, start)| end.saturating_sub(start));
            timing.cpu.extend(cpu);
        }
    }
    timing.spans = profile::stop();
    Ok(timing)
}

fn train(
    config: &RunConfig,
    model: CausalLm,
    optimizer: &mut Optimizer,
    batch: &MicroBatch,
    step: u64,
) -> Result<(CausalLm, f64), TrainError> {
    let rise = (step + 1).min(WARMUP_STEPS) as f64 / WARMUP_STEPS as f64;
    let plan = StepPlan {
        learning_rate: config.optimizer.learning_rate * rise,
        max_grad_norm: config.optimizer.max_grad_norm,
        noise: StepPlan::noise(config.train.seed, step, 1),
        max_loss: f64::INFINITY,
        stop: StopRequest::default(),
        traced_positions: 0,
        gradient_checkpointing: config.train.gradient_checkpointing,
    };
    let batches = std::slice::from_ref(batch);
    let (model, report) =
        train_step(model, optimizer, &config.router, batches, &plan).map_err(|refused| {
            TrainError::Diverged {
                step: step + 1,
                reason: refused.reason.to_string(),
            }
        })?;
    Ok((model, report.loss_ce))
}

fn evaluate(model: &CausalLm, batch: &MicroBatch) -> f64 {
    let _span = profile::span("forward");
    let output = model.forward(&batch.input, None);
    let sum = model.cross_entropy_sum(output.hidden_states, batch.targets.clone());
    f64::from(sum.into_scalar::<f32>()) / batch.num_targets.max(1) as f64
}

/// `count` micro-batches, cut one after the other from the stream of tokens. Every row is one token
/// longer than the sequence, so that each position has a target.
fn batches(config: &RunConfig, count: usize) -> Vec<TokenBatch> {
    let (rows, sequence) = (config.train.micro_batch_size, config.data.sequence_length);
    let vocab_size = config.model.decoder().vocab_size;
    let mut stream = tokens::TokenStream::new(vocab_size as u32, config.train.seed + TOKEN_SEED);
    let batch = |_| {
        let (mut input_ids, mut targets) = (Vec::new(), Vec::new());
        for _ in 0..rows {
            let row: Vec<u32> = stream.by_ref().take(sequence + 1).collect();
            input_ids.extend(&row[..sequence]);
            targets.extend(row[1..].iter().map(|&token| token as i32));
        }
        TokenBatch {
            num_rows: rows,
            sequence_length: sequence,
            num_targets: targets.len(),
            position_ids: (0..rows).flat_map(|_| 0..sequence as u32).collect(),
            document_ids: vec![0; input_ids.len()],
            is_token: vec![true; input_ids.len()],
            input_ids,
            targets,
            position: lpr_data::DataPosition::default(),
        }
    };
    (0..count).map(batch).collect()
}
