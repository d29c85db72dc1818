//! Numbers spoiled on demand (`fault`), so that tests see what a run does about them.

use burn::tensor::Tensor;
use lpr_model::CausalLm;
use lpr_model::parameters::{parameter_values, with_parameter_values};

use crate::fault::{self, Point};
use crate::optimizer::GradientSum;

/// What every parameter of an expert has in its name.
const EXPERTS: &str = ".experts.";
/// The expert that is spoiled.
const EXPERT: usize = 1;

/// The cross-entropy of a micro-batch.
pub fn loss(loss: Tensor<1>) -> Tensor<1> {
    match fault::factor(Point::StepLoss) {
        Some(factor) => loss * factor,
        None => loss,
    }
}

/// The gradients of a step: those of a norm, or of one expert.
pub fn gradients(gradients: &mut GradientSum, model: &CausalLm) {
    if let Some(factor) = fault::factor(Point::StepGradient) {
        gradients.spoil(model, "norm.weight", None, factor);
    }
    if let Some(factor) = fault::factor(Point::StepExpertGradient) {
        gradients.spoil(model, EXPERTS, Some(EXPERT), factor);
    }
}

/// The learning rate of a step.
pub fn learning_rate(rate: f64) -> f64 {
    rate * fault::factor(Point::StepLearningRate).unwrap_or(1.0)
}

/// The weights after a step.
pub fn weights(model: CausalLm) -> CausalLm {
    let Some(factor) = fault::factor(Point::StepWeight) else {
        return model;
    };
    let mut values = parameter_values(&model);
    let of_expert = values.iter_mut().find(|(name, _)| name.contains(EXPERTS));
    if let Some((_, weights)) = of_expert {
        weights.values[0] *= factor as f32;
    }
    with_parameter_values(model, values).expect("the values are the model's own")
}
