//! Validation: cross-entropy alone, and the exact expert load on the same tokens.

use burn::tensor::Device;
use lpr_data::{DataError, DataLoader};
use lpr_model::CausalLm;

use crate::balance::LoadCounts;
use crate::batch::MicroBatch;
use crate::load::DeviceLoad;

/// The outcome of an evaluation.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// Mean cross-entropy per target, in nats; no router loss is part of it.
    pub loss: f64,
    /// Targets that were predicted.
    pub targets: u64,
    /// Exact counts per layer.
    pub loads: Vec<LoadCounts>,
    /// What the data loader had to say.
    pub warnings: Vec<String>,
}

impl Evaluation {
    /// exp(loss)
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }
}

/// Runs `model` (without autodiff, see [`burn::module::Module::valid`]) over the batches of `loader`
/// until `max_tokens` tokens were seen or the data ends. `None` if `stop` asked to end before that.
///
/// # Errors
/// If the data cannot be read.
pub fn evaluate(
    model: &CausalLm,
    mut loader: DataLoader,
    max_tokens: Option<u64>,
    device: &Device,
    stop: &dyn Fn() -> bool,
) -> Result<Option<Evaluation>, DataError> {
    let limit = max_tokens.unwrap_or(u64::MAX);
    let (mut sum, mut targets) = (0.0, 0);
    let mut tokens = loader.position().tokens;
    let mut loads: Vec<LoadCounts> = Vec::new();
    while tokens < limit {
        let Some(batch) = loader.next_batch()? else {
            break;
        };
        if stop() {
            return Ok(None);
        }
        tokens = batch.position.tokens;
        let batch = MicroBatch::new(&batch, device);
        let output = model.forward(&batch.input, None);
        let cross_entropy = model.cross_entropy_sum(output.hidden_states, batch.targets.clone());
        sum += f64::from(cross_entropy.into_scalar::<f32>());
        targets += batch.num_targets as u64;
        for (layer, routing) in output.routings.iter().enumerate() {
            let load = DeviceLoad::new(routing, &batch).read().counts;
            match loads.get_mut(layer) {
                Some(sum) => sum.add(&load),
                None => loads.push(load),
            }
        }
    }
    let warnings = loader.warnings().iter().map(ToString::to_string).collect();
    Ok(Some(Evaluation {
        loss: sum / targets.max(1) as f64,
        targets,
        loads,
        warnings,
    }))
}
