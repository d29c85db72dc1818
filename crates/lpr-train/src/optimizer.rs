//! AdamW over all parameters of the model, its state by parameter name, and the sum of gradients.

use std::collections::BTreeMap;

use burn::module::Param;
use burn::tensor::{Gradients, Tensor, TensorData, Transaction};
use lpr_kernels::{AdamW, AdamWStep, Moments, SquaredNorm, squared_norm};
use lpr_model::CausalLm;
use lpr_model::parameters::{
    HostTensor, ParameterMapper, ParameterVisitor, TensorMap, map_parameters, parameter_shapes,
    visit_parameters,
};

use crate::config::{DecayOn, OptimizerConfig};

/// Suffixes of the two averages in a saved state.
const STATE_SUFFIXES: [&str; 2] = [".exp_avg", ".exp_avg_sq"];

/// The gradients of a step, summed over micro-batches, flat, by parameter name.
#[derive(Debug)]
pub struct GradientSum {
    tensors: BTreeMap<String, Tensor<1>>,
    /// What all of them are multiplied by.
    scale: f64,
}

/// A Euclidean norm that may still be on the device.
#[derive(Debug)]
pub struct GradientNorm {
    squares: SquaredNorm,
    scale: f64,
}

impl GradientNorm {
    /// Adds what there is to read to `reads`.
    pub fn register(&self, reads: Transaction) -> Transaction {
        self.squares.register(reads)
    }

    /// Takes from `data` what [`register`](Self::register) added.
    pub fn take(&self, data: &mut impl Iterator<Item = TensorData>) -> f64 {
        self.squares.take(data).sqrt() * self.scale
    }

    /// Waits for the device.
    pub fn read(&self) -> f64 {
        self.squares.read().sqrt() * self.scale
    }
}

impl Default for GradientSum {
    fn default() -> Self {
        Self {
            tensors: BTreeMap::new(),
            scale: 1.0,
        }
    }
}

impl GradientSum {
    /// Moves the gradients of `model` out of `gradients` and adds them.
    pub fn add(&mut self, model: &CausalLm, gradients: Gradients) {
        struct Collect<'a>(&'a mut GradientSum, Gradients);
        impl ParameterVisitor for Collect<'_> {
            fn visit<const D: usize>(&mut self, name: &str, parameter: &Param<Tensor<D>>) {
                let Some(new) = parameter.val().grad_remove(&mut self.1) else {
                    return;
                };
                self.0.add_to(name.to_owned(), flat(new));
            }
        }
        visit_parameters(model, &mut Collect(self, gradients));
    }

    /// Adds those of `other`, which nothing has scaled.
    pub fn merge(&mut self, other: Self) {
        for (name, gradient) in other.tensors {
            self.add_to(name, gradient);
        }
    }

    fn add_to(&mut self, name: String, new: Tensor<1>) {
        let sum = match self.tensors.remove(&name) {
            Some(sum) => sum + new,
            None => new,
        };
        self.tensors.insert(name, sum);
    }

    /// The Euclidean norm over all gradients together.
    pub fn global_norm(&self) -> GradientNorm {
        self.norm_where(|_| true)
    }

    /// The Euclidean norm over the gradients of the parameters that `selects` picks by name.
    pub fn norm_where(&self, selects: impl Fn(&str) -> bool) -> GradientNorm {
        let selected = self.tensors.iter().filter(|(name, _)| selects(name));
        GradientNorm {
            squares: squared_norm(selected.map(|(_, gradient)| gradient)),
            scale: self.scale,
        }
    }

    /// Scales all gradients, when the optimizer reads them, so that their norm, now `norm`, is at most `max_norm`; 0 turns clipping
    /// off. The factor is `max_norm / (norm + 1e-6)`, as in PyTorch.
    pub fn clip(&mut self, norm: f64, max_norm: f64) {
        let factor = max_norm / (norm + 1e-6);
        if max_norm > 0.0 && factor < 1.0 {
            self.scale *= factor;
        }
    }

    /// The parameters whose gradient is not finite everywhere; those of experts, which are stacked,
    /// with the index of the expert.
    pub fn not_finite(&self, model: &CausalLm) -> Vec<String> {
        let mut found = Vec::new();
        for (name, shape) in parameter_shapes(model) {
            let Some(gradient) = self.tensors.get(&name) else {
                continue;
            };
            let experts = num_stacked(&name, &shape);
            let values = HostTensor::from_tensor(gradient.clone()).values;
            for (expert, part) in values.chunks((values.len() / experts).max(1)).enumerate() {
                if part.iter().all(|value| value.is_finite()) {
                    continue;
                }
                found.push(match experts {
                    1 => name.clone(),
                    _ => format!("{name}[{expert}]"),
                });
            }
        }
        found
    }

    /// Multiplies the gradient of the first parameter whose name contains `part`, or only that of
    /// one expert in it, by `factor`.
    pub fn spoil(&mut self, model: &CausalLm, part: &str, expert: Option<usize>, factor: f64) {
        let shapes = parameter_shapes(model);
        let Some((name, shape)) = shapes.iter().find(|(name, _)| name.contains(part)) else {
            return;
        };
        let Some(gradient) = self.tensors.get_mut(name) else {
            return;
        };
        let mut host = HostTensor::from_tensor(gradient.clone());
        let size = host.values.len() / num_stacked(name, shape);
        let values = host.values.chunks_mut(size.max(1));
        let chosen = values.skip(expert.unwrap_or(0));
        let chosen = chosen.take(expert.map_or(usize::MAX, |_| 1));
        chosen.flatten().for_each(|value| *value *= factor as f32);
        let length = host.values.len();
        let data = TensorData::new(host.values, [length]);
        *gradient = Tensor::from_data(data, &gradient.device());
    }

    /// Copies the gradients to the host, in the shapes of `model`'s parameters.
    pub fn to_host(&self, model: &CausalLm) -> TensorMap {
        parameter_shapes(model)
            .into_iter()
            .filter_map(|(name, shape)| {
                let mut tensor =
                    HostTensor::from_tensor(self.tensors.get(&name)?.clone() * self.scale);
                tensor.shape = shape;
                Some((name, tensor))
            })
            .collect()
    }
}

/// How many experts a parameter is stacked of, 1 for any other.
fn num_stacked(name: &str, shape: &[usize]) -> usize {
    match (name.contains(".experts."), shape) {
        (true, [experts, _, ..]) => *experts,
        _ => 1,
    }
}

fn flat<const D: usize>(tensor: Tensor<D>) -> Tensor<1> {
    let length = tensor.shape().num_elements();
    tensor.reshape([length])
}

/// AdamW with decoupled decay. A parameter that got no gradient in a step keeps its value and state.
#[derive(Debug)]
pub struct Optimizer {
    adamw: AdamW,
    weight_decay: f64,
    decay_on: DecayOn,
    /// Steps taken.
    step: u64,
    moments: BTreeMap<String, Moments<1>>,
}

impl Optimizer {
    /// An optimizer that has taken no step.
    pub fn new(config: &OptimizerConfig) -> Self {
        Self {
            adamw: AdamW {
                betas: (config.betas[0], config.betas[1]),
                eps: config.eps,
            },
            weight_decay: config.weight_decay,
            decay_on: config.decay_on,
            step: 0,
            moments: BTreeMap::new(),
        }
    }

    /// One step: returns the model with its new weights.
    pub fn update(
        &mut self,
        model: CausalLm,
        gradients: GradientSum,
        learning_rate: f64,
    ) -> CausalLm {
        self.step += 1;
        map_parameters(
            model,
            &mut Update {
                optimizer: self,
                gradients,
                learning_rate,
            },
        )
    }

    /// The averages of every parameter with their names in a checkpoint, sharing their memory.
    pub fn averages(&self) -> Vec<(String, Tensor<1>)> {
        let [average, square] = STATE_SUFFIXES;
        let named = |(name, moments): (&String, &Moments<1>)| {
            let (first, second) = (moments.exp_avg.clone(), moments.exp_avg_sq.clone());
            [
                (format!("{name}{average}"), first),
                (format!("{name}{square}"), second),
            ]
        };
        self.moments.iter().flat_map(named).collect()
    }

    /// Continues from a saved state after `step` steps.
    ///
    /// # Errors
    /// If an average is missing, has the wrong length, or belongs to no parameter of `model`.
    pub fn with_state(
        mut self,
        model: &CausalLm,
        step: u64,
        mut state: TensorMap,
    ) -> Result<Self, lpr_model::parameters::ParameterMismatch> {
        struct Restore<'a> {
            state: &'a mut TensorMap,
            moments: BTreeMap<String, Moments<1>>,
            problems: Vec<String>,
        }
        impl ParameterVisitor for Restore<'_> {
            fn visit<const D: usize>(&mut self, name: &str, parameter: &Param<Tensor<D>>) {
                let value = parameter.val().inner();
                let length = value.shape().num_elements();
                let [average, square] =
                    STATE_SUFFIXES.map(|suffix| self.state.remove(&format!("{name}{suffix}")));
                let tensor = |found: HostTensor| {
                    let data = TensorData::new(found.values, [length]);
                    Tensor::<1>::from_data(data, &value.device())
                };
                match (average, square) {
                    // A parameter that no gradient has reached yet.
                    (None, None) => {}
                    (Some(average), Some(square))
                        if [&average, &square].iter().all(|a| a.values.len() == length) =>
                    {
                        let moments = Moments {
                            exp_avg: tensor(average),
                            exp_avg_sq: tensor(square),
                        };
                        self.moments.insert(name.to_owned(), moments);
                    }
                    _ => self.problems.push(format!(
                        "the averages of `{name}` are not two lists of {length} values"
                    )),
                }
            }
        }
        let mut restore = Restore {
            state: &mut state,
            moments: BTreeMap::new(),
            problems: Vec::new(),
        };
        visit_parameters(model, &mut restore);
        let (moments, mut problems) = (restore.moments, restore.problems);
        if step > 0 && moments.is_empty() {
            problems.push(format!("there is no average after {step} steps"));
        }
        problems.extend(
            state
                .keys()
                .map(|name| format!("`{name}` belongs to no parameter")),
        );
        if problems.is_empty() {
            self.step = step;
            self.moments = moments;
            Ok(self)
        } else {
            Err(lpr_model::parameters::ParameterMismatch(problems))
        }
    }

    fn decay(&self, name: &str, rank: usize) -> f64 {
        let decays = match self.decay_on {
            DecayOn::All => true,
            DecayOn::Matrices => {
                let others = ["embed_tokens.weight", "prototypes", "prototype_log_var"];
                rank >= 2 && !others.iter().any(|other| name.ends_with(other))
            }
        };
        if decays { self.weight_decay } else { 0.0 }
    }
}

struct Update<'a> {
    optimizer: &'a mut Optimizer,
    gradients: GradientSum,
    learning_rate: f64,
}

impl ParameterMapper for Update<'_> {
    fn map<const D: usize>(&mut self, name: &str, value: Tensor<D>) -> Tensor<D> {
        let Some(gradient) = self.gradients.tensors.remove(name) else {
            return value;
        };
        let shape = value.dims();
        let value = flat(value);
        let optimizer = &mut *self.optimizer;
        let moments = optimizer
            .moments
            .remove(name)
            .unwrap_or_else(|| Moments::zeros_like(&value));
        let step = AdamWStep {
            step: optimizer.step,
            learning_rate: self.learning_rate,
            weight_decay: optimizer.decay(name, D),
            grad_scale: self.gradients.scale,
        };
        let (value, moments) = optimizer.adamw.update(value, gradient, moments, step);
        optimizer.moments.insert(name.to_owned(), moments);
        value.reshape(shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_decay_but_for_the_embedding_and_the_prototypes() {
        let optimizer = Optimizer::new(&OptimizerConfig {
            weight_decay: 0.5,
            decay_on: DecayOn::Matrices,
            ..OptimizerConfig::default()
        });
        for (name, rank, decays) in [
            ("lm_head.weight", 2, true),
            ("model.layers.0.mlp.experts.down_proj", 3, true),
            (
                "model.layers.0.mlp.router.encoder.projection.weight",
                2,
                true,
            ),
            (
                "model.layers.0.mlp.router.encoder.projection.bias",
                1,
                false,
            ),
            ("model.norm.weight", 1, false),
            ("model.embed_tokens.weight", 2, false),
            ("model.layers.0.mlp.router.prototypes", 2, false),
            (
                "model.layers.0.mlp.router.similarity.prototype_log_var",
                2,
                false,
            ),
        ] {
            assert_eq!(optimizer.decay(name, rank) > 0.0, decays, "{name}");
        }
    }
}
