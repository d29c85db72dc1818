//! What each expert of a layer got, read back from the device.

use burn::tensor::{Int, Tensor, TensorData, Transaction};
use lpr_kernels::weight_per_expert;
use lpr_model::Routing;

use crate::balance::LoadCounts;
use crate::batch::MicroBatch;

/// What each expert of one layer got in one micro-batch.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerLoad {
    /// Tokens per expert, with and without padding.
    pub counts: LoadCounts,
    /// Sum of the routing weights per expert, padding included.
    pub weight_sums: Vec<f64>,
}

/// A layer's load while it is still on the device.
#[derive(Debug)]
pub struct DeviceLoad {
    with_padding: Tensor<1, Int>,
    without_padding: Option<Tensor<1, Int>>,
    weight_sums: Tensor<1>,
}

impl DeviceLoad {
    /// Counts the choices that `routing` made for `batch`.
    pub fn new(routing: &Routing, batch: &MicroBatch) -> Self {
        let num_experts = routing.router_logits.dims()[1];
        let weight_sums = weight_per_expert(
            routing.expert_indices.clone(),
            routing.routing_weights.clone(),
            num_experts,
        );
        Self {
            with_padding: routing.expert_counts(None),
            without_padding: batch
                .is_token
                .clone()
                .map(|is_token| routing.expert_counts(Some(is_token))),
            weight_sums,
        }
    }

    /// Adds what there is to read to `reads`.
    pub fn register(&self, reads: Transaction) -> Transaction {
        let reads = reads
            .register(self.with_padding.clone())
            .register(self.weight_sums.clone());
        match &self.without_padding {
            Some(counts) => reads.register(counts.clone()),
            None => reads,
        }
    }

    /// Takes from `data` what [`register`](Self::register) added.
    pub fn take(&self, data: &mut impl Iterator<Item = TensorData>) -> LayerLoad {
        let mut next = || data.next().expect("what was registered was read");
        let with_padding = counts(&next());
        let weight_sums = next().iter::<f64>().collect();
        let without_padding = match &self.without_padding {
            Some(_) => counts(&next()),
            None => with_padding.clone(),
        };
        LayerLoad {
            counts: LoadCounts {
                with_padding,
                without_padding,
            },
            weight_sums,
        }
    }

    /// Waits for the device.
    pub fn read(self) -> LayerLoad {
        let reads = self.register(Transaction::default());
        self.take(&mut reads.execute().into_iter())
    }
}

fn counts(data: &TensorData) -> Vec<u64> {
    data.iter::<u64>().collect()
}
