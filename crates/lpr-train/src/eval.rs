//! Validation: cross-entropy alone, and the exact expert load on the same tokens.

use burn::tensor::Device;
use lpr_data::{DataError, DataLoader};
use lpr_model::CausalLm;

use crate::balance::{BalanceError, LoadCounts};
use crate::batch::MicroBatch;
use crate::expert_tokens::TokenChoices;
use crate::fault::{self, Point};
use crate::load::{DeviceLoad, LayerLoad};
use crate::record::{BalanceRecord, EvalSummary};
use crate::routing::trace::{DeviceChoices, Recording};

/// The sums of an evaluation.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Evaluation {
    /// Cross-entropy of all targets, in nats; no router loss is part of it.
    pub cross_entropy: f64,
    /// Targets that were predicted.
    pub targets: u64,
    /// Over the batches: mean cross-entropy per target, times rows.
    pub batch_means: f64,
    /// Rows of all batches.
    pub rows: u64,
    /// Exact counts per layer.
    pub loads: Vec<LoadCounts>,
    /// Which experts took which tokens, on a sample of the data.
    pub token_choices: TokenChoices,
    /// The choices for the first positions, if asked for.
    pub recording: Option<Recording>,
    /// What the data loader had to say.
    pub warnings: Vec<String>,
}

impl Evaluation {
    /// Adds a batch.
    fn add_batch(&mut self, cross_entropy: f64, targets: usize, rows: usize) {
        self.cross_entropy += cross_entropy;
        self.targets += targets as u64;
        self.batch_means += cross_entropy / targets.max(1) as f64 * rows as f64;
        self.rows += rows as u64;
    }

    /// Adds the counts of one layer.
    fn add_load(&mut self, layer: usize, load: &LoadCounts) {
        match self.loads.get_mut(layer) {
            Some(sum) => sum.add(load),
            None => self.loads.push(load.clone()),
        }
    }

    /// Adds an evaluation of the same model on other data; its choices are left out.
    pub fn add(&mut self, other: &Self) {
        self.cross_entropy += other.cross_entropy;
        self.targets += other.targets;
        self.batch_means += other.batch_means;
        self.rows += other.rows;
        for (layer, load) in other.loads.iter().enumerate() {
            self.add_load(layer, load);
        }
        self.warnings.extend_from_slice(&other.warnings);
    }

    /// The means and the balance of the load.
    ///
    /// # Errors
    /// None that can be met here; the counts are exact.
    pub fn summary(&self) -> Result<EvalSummary, BalanceError> {
        let loss = self.cross_entropy / self.targets.max(1) as f64;
        Ok(EvalSummary {
            loss,
            loss_batch_mean: self.batch_means / self.rows.max(1) as f64,
            perplexity: loss.exp(),
            tokens: self.targets,
            balance: BalanceRecord::new(&self.loads, None)?,
        })
    }
}

/// Runs `model` (without autodiff, see [`burn::module::Module::valid`]) over the batches of `loader`
/// until `max_tokens` tokens were seen or the data ends, and fills `recording`. `None` if `stop` asked
/// to end before that.
///
/// # Errors
/// If the data cannot be read.
pub fn evaluate(
    model: &CausalLm,
    mut loader: DataLoader,
    max_tokens: Option<u64>,
    device: &Device,
    recording: Option<Recording>,
    stop: &dyn Fn() -> bool,
) -> Result<Option<Evaluation>, DataError> {
    let limit = max_tokens.unwrap_or(u64::MAX);
    let mut tokens = loader.position().tokens;
    let mut found = Evaluation {
        recording,
        ..Evaluation::default()
    };
    while tokens < limit {
        let Some(batch) = loader.next_batch()? else {
            break;
        };
        fault::reached(Point::EvalBatch);
        if stop() {
            return Ok(None);
        }
        tokens = batch.position.tokens;
        let (num_targets, num_rows) = (batch.num_targets, batch.num_rows);
        let read = batch;
        let batch = MicroBatch::new(&read, device);
        let output = model.forward(&batch.input, None);
        found.token_choices.add(&read, &output.routings);
        let cross_entropy = model.cross_entropy_sum(output.hidden_states, batch.targets.clone());
        let cross_entropy = f64::from(cross_entropy.into_scalar::<f32>());
        found.add_batch(cross_entropy, num_targets, num_rows);
        let loads = output
            .routings
            .iter()
            .map(|r| DeviceLoad::new(r, &batch).read());
        let loads: Vec<LayerLoad> = loads.collect();
        for (layer, load) in loads.iter().enumerate() {
            found.add_load(layer, &load.counts);
        }
        let recording = found.recording.as_mut();
        if let Some(recording) = recording.filter(|recording| recording.left() > 0) {
            let left = recording.left();
            let choices = output
                .routings
                .iter()
                .map(|r| DeviceChoices::new(r, left).read());
            recording.add(&read, choices.collect(), &loads);
        }
    }
    found.warnings = loader.warnings().iter().map(ToString::to_string).collect();
    Ok(Some(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_means_weigh_targets_and_rows() {
        let load = LoadCounts {
            with_padding: vec![4, 0],
            without_padding: vec![3, 0],
        };
        let mut first = Evaluation::default();
        first.add_batch(30.0, 10, 2); // 3 nats each
        first.add_load(0, &load);
        let mut second = Evaluation::default();
        second.add_batch(4.0, 2, 1); // 2 nats each
        second.add_load(0, &load);
        let mut sum = first.clone();
        sum.add(&second);
        let summary = sum.summary().expect("exact counts");
        assert!((summary.loss - 34.0 / 12.0).abs() < 1e-12);
        assert!((summary.loss_batch_mean - 8.0 / 3.0).abs() < 1e-12);
        assert!((summary.perplexity - summary.loss.exp()).abs() < 1e-12);
        assert_eq!(summary.tokens, 12);
        assert_eq!(summary.balance.layers[0].counts, [6, 0]);
    }

    #[test]
    fn nothing_has_a_loss_of_zero() {
        let summary = Evaluation::default().summary().expect("no counts");
        assert_eq!((summary.loss, summary.loss_batch_mean), (0.0, 0.0));
    }
}
