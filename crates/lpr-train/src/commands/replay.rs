//! `lpr-train replay`

use std::fmt::Write as _;

use serde::Serialize;

use super::print_findings;
use crate::batch::MicroBatch;
use crate::checkpoint::Checkpoint;
use crate::cli::ReplayArgs;
use crate::error::{Outcome, TrainError};
use crate::optimizer::Optimizer;
use crate::session;
use crate::signals::StopRequest;
use crate::skipped_step::SkippedStep;
use crate::step::{NotApplied, StepPlan, StepReport, train_step};

/// A step made again. Numbers that are not finite become `null` in JSON.
#[derive(Debug, Serialize)]
struct Replayed {
    /// Steps done before the step that was skipped.
    step: u64,
    /// Steps behind the weights that it was made with now.
    checkpoint_step: u64,
    /// What the run said.
    reason: String,
    /// What would be said now; nothing if the update would be applied.
    reason_now: Option<String>,
    loss_ce: f64,
    loss_total: f64,
    grad_norm: f64,
}

/// Runs the command.
///
/// # Errors
/// A checkpoint or a file that cannot be used.
pub fn run(args: &ReplayArgs) -> Result<Outcome, TrainError> {
    let checkpoint = Checkpoint::open(&args.checkpoint)?;
    let config = session::checkpoint_config(&checkpoint)?;
    let skipped = SkippedStep::read(&args.file)?;
    let device = session::open_device(&config)?;
    let autodiff = device.clone().autodiff();
    let model = session::load_model(&checkpoint, &config, &autodiff)?;
    let (step, reason) = (skipped.step, skipped.reason.clone());
    let mut plan = StepPlan {
        learning_rate: skipped.learning_rate,
        max_grad_norm: config.optimizer.max_grad_norm,
        noise: Vec::new(),
        max_loss: f64::INFINITY,
        stop: StopRequest::default(),
        traced_positions: 0,
        gradient_checkpointing: config.train.gradient_checkpointing,
    };
    let seed = skipped.seed;
    let batches = skipped.into_batches(config.model.decoder().vocab_size)?;
    plan.noise = StepPlan::noise(seed, step, batches.len());
    let on_device = |batch| MicroBatch::new(batch, &device);
    let micro_batches: Vec<_> = batches.iter().map(on_device).collect();
    let mut optimizer = Optimizer::new(&config.optimizer);
    let router = &config.router;
    let (report, reason_now) =
        match train_step(model, &mut optimizer, router, &micro_batches, &plan) {
            Ok((_, report)) => (report, None),
            Err(refused) => {
                let NotApplied { report, reason, .. } = *refused;
                (report, Some(reason.to_string()))
            }
        };
    let replayed = Replayed {
        step,
        checkpoint_step: checkpoint.step(),
        reason,
        reason_now,
        loss_ce: report.loss_ce,
        loss_total: report.loss_total,
        grad_norm: report.grad_norm,
    };
    print_findings(args.json, &replayed, || in_words(&replayed, &report))?;
    Ok(Outcome::Done)
}

fn in_words(replayed: &Replayed, report: &StepReport) -> String {
    let (step, weights) = (replayed.step + 1, replayed.checkpoint_step);
    let mut text = format!("step {step} in the run: {}\n", replayed.reason);
    let now = replayed.reason_now.as_deref();
    let now = now.unwrap_or("it is finite, its update would be applied");
    let _ = writeln!(text, "on the weights after step {weights}: {now}");
    let _ = write!(
        text,
        "loss {:.6} total {:.6} grad_norm {:.6}",
        report.loss_ce, report.loss_total, report.grad_norm
    );
    for (name, value, weight) in &report.router_losses {
        let _ = write!(text, "\n{name} {value:.6} times {weight}");
    }
    if weights != replayed.step {
        let _ = write!(
            text,
            "\nthe run had other weights, those after step {}: for the same ones, resume from an \
             older checkpoint with checkpoint.every_steps = 1",
            replayed.step
        );
    }
    text
}
