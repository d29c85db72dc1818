//! The choices of the routers for some tokens, and when a run keeps them.

use burn::tensor::{Int, Tensor, TensorData, Transaction};
use lpr_data::{Split, TokenBatch};
use lpr_model::{DecoderConfig, Routing};

use crate::balance::LoadCounts;
use crate::load::LayerLoad;

/// A run keeps traces of at most so many logged steps, and of as many evaluations, beside the first
/// and the last of them.
pub const MAX_TRACES: u64 = 100;
/// A trace has at most so many positions.
pub const MAX_POSITIONS: u64 = 65_536;

/// Whether something that happens every `every` of `total_steps` steps is traced after `step`: all
/// of it, or evenly spaced ones if that is more than [`MAX_TRACES`]; what happens at other steps, as
/// at the end, always.
pub fn is_traced(step: u64, every: u64, total_steps: u64) -> bool {
    let times = total_steps.checked_div(every).unwrap_or(0);
    let stride = every.saturating_mul(times.div_ceil(MAX_TRACES).max(1));
    !step.is_multiple_of(every) || step.is_multiple_of(stride) || step == total_steps
}

/// What one layer chose for some positions while it is still on the device.
#[derive(Debug)]
pub struct DeviceChoices {
    experts: Tensor<2, Int>,
    weights: Tensor<2>,
}

impl DeviceChoices {
    /// The choices for the first `positions` positions (at least 1), or for all if there are fewer.
    pub fn new(routing: &Routing, positions: usize) -> Self {
        let positions = positions.min(routing.expert_indices.dims()[0]);
        Self {
            experts: routing.expert_indices.clone().inner().slice(0..positions),
            weights: routing.routing_weights.clone().inner().slice(0..positions),
        }
    }

    /// Adds what there is to read to `reads`.
    pub fn register(&self, reads: Transaction) -> Transaction {
        let reads = reads.register(self.experts.clone());
        reads.register(self.weights.clone())
    }

    /// Takes from `data` what [`register`](Self::register) added.
    ///
    /// # Panics
    /// If an expert's index is beyond 16 bits; configurations have at most 1,024 experts.
    pub fn take(&self, data: &mut impl Iterator<Item = TensorData>) -> Choices {
        let mut next = || data.next().expect("what was registered was read");
        let index = |expert| u16::try_from(expert).expect("at most 1,024 experts");
        Choices {
            experts: next().iter::<i64>().map(index).collect(),
            weights: next().iter::<f32>().collect(),
        }
    }

    /// Waits for the device.
    pub fn read(&self) -> Choices {
        let reads = self.register(Transaction::default());
        self.take(&mut reads.execute().into_iter())
    }
}

/// What one layer chose for some positions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choices {
    /// `[positions, top_k]`, distinct for each position.
    pub experts: Vec<u16>,
    /// `[positions, top_k]`, the factor of each chosen expert's output.
    pub weights: Vec<f32>,
}

/// One forward pass: a micro-batch of a step, or a batch of an evaluation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TracedBatch {
    /// How many of its positions are in the trace, from its first on.
    pub recorded: u32,
    /// How many it has, padding included.
    pub positions: u32,
    /// Choices per layer and expert for all of its tokens, recorded or not, padding left out.
    pub counts: Vec<Vec<u64>>,
}

/// The choices for the first positions of a sequence of batches, and the load of each batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recording {
    /// Positions to record.
    limit: usize,
    /// Experts of a layer.
    pub num_experts: usize,
    /// Experts of a position.
    pub top_k: usize,
    /// Token ids, `[positions]`.
    pub token_ids: Vec<u32>,
    /// Place in its document, from 0, `[positions]`.
    pub position_ids: Vec<u32>,
    /// False on padding, `[positions]`.
    pub is_token: Vec<bool>,
    /// One per layer with experts.
    pub layers: Vec<Choices>,
    /// The batches, in order.
    pub batches: Vec<TracedBatch>,
}

impl Recording {
    /// Nothing yet of a model; room for `limit` positions.
    pub fn new(limit: usize, model: &DecoderConfig) -> Self {
        let (num_experts, top_k) = (model.moe.num_experts, model.moe.top_k);
        Self::of_shape(limit, model.num_moe_layers(), num_experts, top_k)
    }

    /// The same of a model with `num_layers` layers of `num_experts` experts.
    pub(super) fn of_shape(
        limit: usize,
        num_layers: usize,
        num_experts: usize,
        top_k: usize,
    ) -> Self {
        Self {
            limit,
            num_experts,
            top_k,
            layers: vec![Choices::default(); num_layers],
            ..Self::default()
        }
    }

    /// How many more positions there is room for.
    pub fn left(&self) -> usize {
        self.limit.saturating_sub(self.token_ids.len())
    }

    /// Adds a batch, what was chosen for the first [`Self::left`] of its positions (nothing if there
    /// is no room), and the load of all, layer by layer.
    ///
    /// # Panics
    /// If the choices are not those of as many positions.
    pub fn add(&mut self, batch: &TokenBatch, choices: Vec<Choices>, loads: &[LayerLoad]) {
        let positions = batch.input_ids.len();
        let recorded = self.left().min(positions);
        self.token_ids
            .extend_from_slice(&batch.input_ids[..recorded]);
        self.position_ids
            .extend_from_slice(&batch.position_ids[..recorded]);
        self.is_token.extend_from_slice(&batch.is_token[..recorded]);
        let wanted = if recorded > 0 { self.layers.len() } else { 0 };
        assert_eq!(choices.len(), wanted, "choices of other layers");
        for (sum, new) in self.layers.iter_mut().zip(choices) {
            assert_eq!(new.experts.len(), recorded * self.top_k, "other positions");
            sum.experts.extend(new.experts);
            sum.weights.extend(new.weights);
        }
        let counts = |load: &LayerLoad| load.counts.without_padding.clone();
        self.batches.push(TracedBatch {
            recorded: recorded as u32,
            positions: positions as u32,
            counts: loads.iter().map(counts).collect(),
        });
    }

    /// The experts chosen by `layer` for each recorded token, padding left out.
    pub fn chosen(&self, layer: usize) -> impl Iterator<Item = &[u16]> {
        let rows = self.layers[layer].experts.chunks_exact(self.top_k);
        let kept = rows.zip(&self.is_token).filter(|(_, is_token)| **is_token);
        kept.map(|(row, _)| row)
    }

    /// The ids of the recorded tokens, padding left out.
    pub fn tokens(&self) -> impl Iterator<Item = u32> {
        let ids = self.token_ids.iter().zip(&self.is_token);
        ids.filter(|(_, is_token)| **is_token).map(|(&id, _)| id)
    }

    /// Choices per expert of the recorded positions `range` in `layer`.
    pub fn count(&self, layer: usize, range: std::ops::Range<usize>) -> LoadCounts {
        let mut counts = LoadCounts::new(self.num_experts);
        for position in range {
            let row = &self.layers[layer].experts[position * self.top_k..][..self.top_k];
            for &expert in row {
                counts.with_padding[usize::from(expert)] += 1;
                if self.is_token[position] {
                    counts.without_padding[usize::from(expert)] += 1;
                }
            }
        }
        counts
    }
}

/// A recording and when it was made.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// Optimizer steps done, that one included.
    pub step: u64,
    /// `Train`: the forward passes of the step, made with the weights before its update.
    /// `Validation`: those of an evaluation of the weights after it.
    pub split: Split,
    /// The choices.
    pub recording: Recording,
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::expert_tokens::tests::batch;

    /// A trace of one layer and one batch: ids, whether they are tokens, and the chosen experts.
    pub fn trace(
        ids: &[u32],
        is_token: &[bool],
        chosen: &[Vec<u16>],
        num_experts: usize,
    ) -> Recording {
        let mut recording = Recording::of_shape(usize::MAX, 1, num_experts, chosen[0].len());
        let experts = chosen.concat();
        let weights = vec![1.0; experts.len()];
        let batch = batch(ids, is_token);
        let mut load = LayerLoad {
            counts: LoadCounts::new(num_experts),
            weight_sums: Vec::new(),
        };
        let choices = Choices { experts, weights };
        recording.add(&batch, vec![choices], std::slice::from_ref(&load));
        load.counts = recording.count(0, 0..ids.len());
        recording.batches[0].counts = vec![load.counts.without_padding];
        recording
    }

    #[test]
    fn padding_is_recorded_and_not_counted() {
        let chosen = [vec![0, 1], vec![2, 1], vec![0, 2]];
        let found = trace(&[7, 8, 0], &[true, true, false], &chosen, 3);
        assert_eq!(found.tokens().collect::<Vec<_>>(), [7, 8]);
        assert_eq!(found.chosen(0).collect::<Vec<_>>(), [[0, 1], [2, 1]]);
        assert_eq!(found.batches[0].counts, [[1, 2, 1]]);
        assert_eq!(found.count(0, 0..3).with_padding, [2, 2, 2]);
    }

    #[test]
    fn at_most_a_hundred_evenly_spaced_steps_and_the_last_are_traced() {
        for (every, total) in [(1, 40), (10, 100_000), (7, 3001), (20, 240)] {
            let all = (0..=total).filter(|&step| step % every == 0 || step == total);
            let traced: Vec<u64> = all.filter(|&step| is_traced(step, every, total)).collect();
            assert_eq!((traced[0], traced[traced.len() - 1]), (0, total));
            let inner = &traced[..traced.len() - 1];
            let gap = inner[1] - inner[0];
            assert!(inner.windows(2).all(|w| w[1] - w[0] == gap), "{traced:?}");
            assert!(traced.len() as u64 <= MAX_TRACES + 2, "{}", traced.len());
            assert!(total / every > MAX_TRACES || gap == every);
        }
        assert!(is_traced(33, 0, 40) && is_traced(33, 10, 40));
    }
}
