//! The gradient of each loss term at the routers, alone, as the objective would add it.

use std::fmt;

use burn::tensor::Tensor;
use lpr_data::TokenBatch;
use lpr_model::parameters::parameter_shapes;
use lpr_model::router::RouterKind;
use lpr_model::{CausalLm, LatentNoise, RouterConfig, RouterLoss, Routing};
use serde::Serialize;

use super::{DeadBalancer, Strictness, list_layers};
use crate::batch::MicroBatch;
use crate::objective::objective;
use crate::optimizer::GradientSum;
use crate::step::loss_context;

/// The gradient of one balance term at the routers' parameters.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TermLiveness {
    /// Name of the term, as in `aux.<name>`.
    pub name: &'static str,
    /// Its factor in the objective.
    pub weight: f64,
    /// Norm of the gradient of `weight * term` at all routers' parameters.
    pub gradient_norm: f64,
    /// The same for twice the weight.
    pub doubled_gradient_norm: f64,
    /// The same for a weight of zero.
    pub zero_weight_gradient_norm: f64,
    /// Layers whose router has no gradient at all although its load is uneven.
    pub silent_layers: Vec<usize>,
}

/// A gradient per unit of weight below this is the rounding of a term that is constant: terms that work
/// have 1e-3 and more at first, constant ones (every token to every expert) some 1e-7.
const NO_GRADIENT: f64 = 1e-5;

impl TermLiveness {
    /// What is wrong with the term, if anything. A weight of zero must have no gradient at all.
    ///
    /// # Errors
    /// [`DeadBalancer::Term`] if the gradient is not finite, zero, or not proportional to the weight.
    pub fn verdict(&self, strictness: Strictness) -> Result<(), DeadBalancer> {
        let (one, two) = (self.gradient_norm, self.doubled_gradient_norm);
        let constant = strictness == Strictness::Initial && one / self.weight < NO_GRADIENT;
        // Not a comparison with zero: a gradient that is no number is none, either.
        let none_without_weight = self.zero_weight_gradient_norm.abs() <= 0.0;
        let fault = if !none_without_weight {
            "has a gradient at the router even with a weight of 0".to_owned()
        } else if self.weight == 0.0 {
            return Ok(());
        } else if !(one.is_finite() && two.is_finite()) {
            "has a gradient that is not finite at the router".to_owned()
        } else if constant {
            "has no gradient at the router".to_owned()
        } else if !self.silent_layers.is_empty() {
            let layers = list_layers(&self.silent_layers);
            format!("has no gradient at the router of {layers}")
        } else if (two - 2.0 * one).abs() > 1e-3 * two {
            "has a gradient at the router that is not proportional to its weight".to_owned()
        } else {
            return Ok(());
        };
        Err(DeadBalancer::Term {
            name: self.name,
            weight: self.weight,
            fault,
        })
    }
}

impl fmt::Display for TermLiveness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<24} weight {:<10.4} gradient {:.4e}, {:.4e} at twice the weight",
            self.name, self.weight, self.gradient_norm, self.doubled_gradient_norm
        )
    }
}

/// The first rows of a batch: as many as the router's losses need at once, at least one.
pub fn probe_rows(batch: &TokenBatch, router: &RouterConfig) -> TokenBatch {
    let num_rows = router.loss_group_rows().clamp(1, batch.num_rows);
    let positions = num_rows * batch.sequence_length;
    let targets = batch.targets[..positions].to_vec();
    let ignored = |target: &&i32| **target == lpr_data::IGNORE_INDEX;
    TokenBatch {
        num_rows,
        sequence_length: batch.sequence_length,
        input_ids: batch.input_ids[..positions].to_vec(),
        num_targets: positions - targets.iter().filter(ignored).count(),
        targets,
        is_token: batch.is_token[..positions].to_vec(),
        document_ids: batch.document_ids[..positions].to_vec(),
        position_ids: batch.position_ids[..positions].to_vec(),
        position: batch.position.clone(),
    }
}

/// Probes every term of the router's losses on `batch`. The model is left as it is.
pub fn probe_terms(
    model: &CausalLm,
    router: &dyn RouterKind,
    batch: &MicroBatch,
    noise: &LatentNoise,
) -> Vec<TermLiveness> {
    let context = loss_context(router, batch, noise);
    let forward = || model.forward(&batch.input, Some(&context));
    // A graph is used up by its backward pass, so every probe runs forward again.
    let gradients = |term: usize, factor: f64| {
        let output = forward();
        let losses = router.losses(&output.routings, &context).into_iter();
        let loss = losses.skip(term).take(1).map(|loss| RouterLoss {
            weight: loss.weight * factor,
            ..loss
        });
        // In the place of the cross-entropy: part of the graph, without a gradient of its own.
        let nothing = output.hidden_states.sum() * 0.0;
        let mut gradients = GradientSum::default();
        let loss: Vec<_> = loss.collect();
        gradients.add(model, objective(nothing, &loss, 1, 1).backward());
        gradients
    };
    let routers = routers(model);
    let at_routers = |gradients: &GradientSum| gradients.norm_where(|n| n.contains(ROUTER)).read();
    let routings = forward().routings;
    let losses = router.losses(&routings, &context);
    let uneven: Vec<bool> = routings.iter().map(|r| is_uneven(r, batch)).collect();
    let probe = |(term, loss): (usize, &RouterLoss)| {
        let whole = gradients(term, 1.0);
        let is_silent = |&layer: &usize| {
            let at_layer = |name: &str| name.starts_with(&routers[layer]);
            uneven[layer] && whole.norm_where(at_layer).read() == 0.0
        };
        TermLiveness {
            name: loss.name,
            weight: loss.weight,
            gradient_norm: at_routers(&whole),
            doubled_gradient_norm: at_routers(&gradients(term, 2.0)),
            zero_weight_gradient_norm: at_routers(&gradients(term, 0.0)),
            silent_layers: (0..routers.len()).filter(is_silent).collect(),
        }
    };
    losses.iter().enumerate().map(probe).collect()
}

/// Part of the name of every router's parameters.
const ROUTER: &str = ".mlp.router.";

/// What the names of each layer's router parameters begin with, for routers that have any.
fn routers(model: &CausalLm) -> Vec<String> {
    let mut prefixes: Vec<String> = parameter_shapes(model)
        .into_iter()
        .filter_map(|(name, _)| Some(name.split_once(ROUTER)?.0.to_owned() + ROUTER))
        .collect();
    prefixes.dedup();
    prefixes
}

/// Whether some expert got more tokens than another.
fn is_uneven(routing: &Routing, batch: &MicroBatch) -> bool {
    let counts: Tensor<1, burn::tensor::Int> = routing.expert_counts(batch.is_token.clone());
    let counts: Vec<i64> = counts.into_data().iter::<i64>().collect();
    counts.windows(2).any(|pair| pair[0] != pair[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn term(weight: f64, gradient_norm: f64, doubled_gradient_norm: f64) -> TermLiveness {
        TermLiveness {
            name: "kl",
            weight,
            gradient_norm,
            doubled_gradient_norm,
            zero_weight_gradient_norm: 0.0,
            silent_layers: Vec::new(),
        }
    }

    #[test]
    fn a_dead_term_is_named_and_a_live_or_unused_one_is_not() {
        let both = [Strictness::Initial, Strictness::Trained];
        for strictness in both {
            assert_eq!(term(0.1, 2.0, 4.0).verdict(strictness), Ok(()));
            assert_eq!(term(0.0, 0.0, 0.0).verdict(strictness), Ok(()));
        }
        // Near its minimum a term may have next to no gradient.
        assert_eq!(term(0.1, 1e-9, 2e-9).verdict(Strictness::Trained), Ok(()));
        let silent = TermLiveness {
            silent_layers: vec![0, 2],
            ..term(0.1, 1.0, 2.0)
        };
        let unweighted = TermLiveness {
            zero_weight_gradient_norm: 1e-30,
            ..term(0.0, 1e-30, 1e-30)
        };
        let broken = TermLiveness {
            zero_weight_gradient_norm: f64::NAN,
            ..term(0.1, 1.0, 2.0)
        };
        for (found, strictness, words) in [
            (term(0.1, 0.0, 0.0), &both[..1], "no gradient"),
            (term(0.1, 1e-9, 2e-9), &both[..1], "no gradient"),
            (term(0.1, f64::NAN, 1.0), &both, "not finite"),
            (term(0.1, 1.0, 1.0), &both, "not proportional"),
            (silent, &both, "at the router of layers 0 and 2"),
            (unweighted, &both, "weight of 0"),
            (broken, &both, "weight of 0"),
        ] {
            for &strictness in strictness {
                let error = found.verdict(strictness).expect_err("dead").to_string();
                assert!(error.contains(words) && error.contains("`kl`"), "{error}");
            }
        }
    }
}
