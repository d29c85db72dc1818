//! What each expert of a layer got, read back from the device.

use burn::tensor::{IndexingUpdateOp, Int, Tensor};
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
        let choices = routing.expert_indices.shape().num_elements();
        let weights = routing.routing_weights.clone().detach();
        let weight_sums = Tensor::<1>::zeros([num_experts], &weights.device()).select_assign(
            0,
            routing.expert_indices.clone().reshape([choices]),
            weights.reshape([choices]),
            IndexingUpdateOp::Add,
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

    /// Waits for the device.
    pub fn read(self) -> LayerLoad {
        let with_padding = counts(self.with_padding);
        LayerLoad {
            counts: LoadCounts {
                without_padding: self
                    .without_padding
                    .map_or_else(|| with_padding.clone(), counts),
                with_padding,
            },
            weight_sums: self.weight_sums.into_data().iter::<f64>().collect(),
        }
    }
}

fn counts(tensor: Tensor<1, Int>) -> Vec<u64> {
    tensor.into_data().iter::<u64>().collect()
}
