//! Experts that get no token, in plain words.

use serde::{Deserialize, Serialize};

use crate::load::LayerLoad;

/// After so many steps without a token an expert is reported.
pub const IDLE_STEPS: u64 = 200;

/// How long each expert of each layer has been without a token (padding does not count).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdleExperts {
    /// Steps without a token, per layer and expert.
    steps: Vec<Vec<u64>>,
    /// Idle experts per layer at the last report.
    reported: Vec<usize>,
}

impl IdleExperts {
    /// Nobody is idle yet.
    pub fn new(num_layers: usize, num_experts: usize) -> Self {
        Self {
            steps: vec![vec![0; num_experts]; num_layers],
            reported: vec![0; num_layers],
        }
    }

    /// Whether it is for so many layers and experts.
    pub fn fits(&self, num_layers: usize, num_experts: usize) -> bool {
        [self.steps.len(), self.reported.len()] == [num_layers; 2]
            && self.steps.iter().all(|steps| steps.len() == num_experts)
    }

    /// Takes in one step: the loads of every micro-batch and layer.
    pub fn add_step(&mut self, micro_batches: &[Vec<LayerLoad>]) {
        for (layer, experts) in self.steps.iter_mut().enumerate() {
            for (expert, steps) in experts.iter_mut().enumerate() {
                let is_used = micro_batches
                    .iter()
                    .any(|layers| layers[layer].counts.without_padding[expert] > 0);
                *steps = if is_used { 0 } else { *steps + 1 };
            }
        }
    }

    /// A sentence for each layer whose number of idle experts changed since the last call.
    pub fn report(&mut self) -> Vec<String> {
        let layers = self.steps.iter().zip(&mut self.reported).enumerate();
        layers
            .filter_map(|(layer, (experts, reported))| {
                let idle = experts.iter().filter(|&&steps| steps >= IDLE_STEPS).count();
                let before = std::mem::replace(reported, idle);
                let of = experts.len();
                match idle {
                    idle if idle == before => None,
                    0 => Some(format!("layer {layer}: all {of} experts get tokens again")),
                    idle => Some(format!(
                        "layer {layer}: {idle} of {of} experts got no token for {IDLE_STEPS} steps"
                    )),
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::LoadCounts;

    fn step(counts: [u64; 3]) -> Vec<Vec<LayerLoad>> {
        let counts = LoadCounts {
            with_padding: vec![9; 3],
            without_padding: counts.to_vec(),
        };
        vec![vec![LayerLoad {
            counts,
            weight_sums: vec![0.0; 3],
        }]]
    }

    #[test]
    fn an_idle_expert_is_reported_once_and_once_more_when_it_is_back() {
        let mut idle = IdleExperts::new(1, 3);
        for _ in 0..IDLE_STEPS - 1 {
            idle.add_step(&step([5, 0, 5]));
        }
        assert!(idle.report().is_empty(), "not yet");
        idle.add_step(&step([5, 0, 5]));
        assert_eq!(
            idle.report(),
            ["layer 0: 1 of 3 experts got no token for 200 steps"]
        );
        idle.add_step(&step([5, 0, 5]));
        assert!(idle.report().is_empty(), "nothing changed");
        idle.add_step(&step([0, 1, 0]));
        assert_eq!(idle.report(), ["layer 0: all 3 experts get tokens again"]);
    }
}
