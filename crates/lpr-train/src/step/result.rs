//! What the micro-batches of a step leave on the device, and the one place that reads it back.

use burn::tensor::{TensorData, Transaction};
use lpr_model::Routing;

use super::{Losses, StepReport};
use crate::batch::MicroBatch;
use crate::load::DeviceLoad;
use crate::optimizer::GradientNorm;
use crate::routing::trace::DeviceChoices;

/// What one micro-batch leaves on the device, read back with that of all others.
pub(super) struct MicroBatchResult {
    losses: Losses,
    loads: Vec<DeviceLoad>,
    choices: Vec<DeviceChoices>,
}

impl MicroBatchResult {
    pub(super) fn new(
        batch: &MicroBatch,
        losses: Losses,
        routings: &[Routing],
        traced: usize,
    ) -> Self {
        let choices = routings.iter().filter(|_| traced > 0);
        Self {
            losses,
            loads: routings.iter().map(|r| DeviceLoad::new(r, batch)).collect(),
            choices: choices.map(|r| DeviceChoices::new(r, traced)).collect(),
        }
    }

    /// Adds what there is to read to `reads`, in the order of the fields.
    fn register(&self, reads: Transaction) -> Transaction {
        let reads = reads.register(self.losses.cross_entropy.clone());
        let losses = self.losses.router_losses.iter();
        let reads = losses.fold(reads, |reads, loss| reads.register(loss.value.clone()));
        let loads = self.loads.iter();
        let reads = loads.fold(reads, |reads, load| load.register(reads));
        let choices = self.choices.iter();
        choices.fold(reads, |reads, choices| choices.register(reads))
    }
}

impl StepReport {
    /// Waits for the device, the one time in a step: whether the update may be applied depends on it.
    pub(super) fn read(
        results: &[MicroBatchResult],
        micro_batches: &[MicroBatch],
        step_targets: usize,
        norm: Option<&GradientNorm>,
    ) -> Self {
        let reads = results
            .iter()
            .fold(Transaction::default(), |reads, r| r.register(reads));
        let reads = norm.iter().fold(reads, |reads, norm| norm.register(reads));
        let mut data = reads.execute().into_iter();
        let num = results.len() as f64;
        let mut cross_entropy = 0.0;
        let mut router_losses: Vec<(&'static str, f64, f64)> = Vec::new();
        let mut loads = Vec::with_capacity(results.len());
        let mut choices = Vec::with_capacity(results.len());
        for result in results {
            cross_entropy += scalar(&mut data);
            for (index, loss) in result.losses.router_losses.iter().enumerate() {
                let value = scalar(&mut data) / num;
                match router_losses.get_mut(index) {
                    Some((_, sum, _)) => *sum += value,
                    None => router_losses.push((loss.name, value, loss.weight)),
                }
            }
            let layers = result.loads.iter().map(|load| load.take(&mut data));
            loads.push(layers.collect());
            let chosen = result.choices.iter().map(|c| c.take(&mut data));
            choices.push(chosen.collect());
        }
        let loss_ce = cross_entropy / step_targets.max(1) as f64;
        let weighted: f64 = router_losses.iter().map(|(_, v, w)| v * w).sum();
        Self {
            loss_ce,
            loss_total: loss_ce + weighted,
            router_losses,
            grad_norm: norm.map_or(f64::NAN, |norm| norm.take(&mut data)),
            num_tokens: micro_batches.iter().map(|b| b.num_tokens).sum(),
            loads,
            choices,
        }
    }
}

fn scalar(data: &mut impl Iterator<Item = TensorData>) -> f64 {
    let scalar = data.next().and_then(|data| data.iter::<f32>().next());
    f64::from(scalar.expect("what was registered was read"))
}
