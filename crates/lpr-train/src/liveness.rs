//! Proof that each configured balancer does something.
//!
//! Balance terms die silently: a detached graph, a coefficient nobody reads, a bias nobody updates.
//! So every term is probed before the first step, alone, for the gradient it has at the router.

use std::fmt;

use lpr_data::TokenBatch;
use lpr_model::{CausalLm, LatentNoise, RouterConfig};
use serde::Serialize;
use thiserror::Error;

use crate::batch::MicroBatch;
use crate::optimizer::GradientSum;
use crate::step::loss_context;

/// The gradient of one balance term at the router's parameters.
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
}

/// A configured balance term that does nothing, or not what its weight says.
#[derive(Debug, Clone, PartialEq, Error)]
#[error(
    "the balance term `{name}` (weight {weight}) {fault}; a run with it would prove nothing. Set its weight to 0, or see `lpr-train doctor --config FILE`"
)]
pub struct DeadBalancer {
    /// The term.
    pub name: &'static str,
    /// Its weight.
    pub weight: f64,
    /// What is wrong with its gradient.
    pub fault: &'static str,
}

/// A gradient per unit of weight below this is the rounding of a term that is constant: terms that work
/// have 1e-3 and more, constant ones (every token to every expert) some 1e-7.
const NO_GRADIENT: f64 = 1e-5;

impl TermLiveness {
    /// What is wrong with the term, if anything. A weight of zero is never wrong.
    ///
    /// # Errors
    /// [`DeadBalancer`] if the gradient is not finite, zero, or not proportional to the weight.
    pub fn verdict(&self) -> Result<(), DeadBalancer> {
        let (one, two) = (self.gradient_norm, self.doubled_gradient_norm);
        let fault = if self.weight == 0.0 {
            return Ok(());
        } else if !(one.is_finite() && two.is_finite()) {
            "has a gradient that is not finite at the router"
        } else if one / self.weight < NO_GRADIENT {
            "has no gradient at the router"
        } else if (two - 2.0 * one).abs() > 1e-3 * two {
            "has a gradient at the router that is not proportional to its weight"
        } else {
            return Ok(());
        };
        Err(DeadBalancer {
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
pub fn probe(
    model: &CausalLm,
    router: &RouterConfig,
    batch: &MicroBatch,
    noise: &LatentNoise,
) -> Vec<TermLiveness> {
    let context = loss_context(router, batch, noise);
    let losses = || {
        let output = model.forward(&batch.input, Some(&context));
        router.losses(&output.routings, &context)
    };
    // A graph is used up by its backward pass, so every probe runs forward again.
    let norm = |term: usize, factor: f64| {
        let Some(loss) = losses().into_iter().nth(term) else {
            return 0.0;
        };
        if loss.weight == 0.0 || !loss.value.is_tracked() {
            return 0.0;
        }
        let mut gradients = GradientSum::default();
        gradients.add(model, (loss.value * (loss.weight * factor)).backward());
        gradients.norm_where(|name| name.contains(".mlp.router."))
    };
    losses()
        .iter()
        .enumerate()
        .map(|(term, loss)| TermLiveness {
            name: loss.name,
            weight: loss.weight,
            gradient_norm: norm(term, 1.0),
            doubled_gradient_norm: norm(term, 2.0),
        })
        .collect()
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
        }
    }

    #[test]
    fn a_dead_term_is_named_and_a_live_or_unused_one_is_not() {
        assert_eq!(term(0.1, 2.0, 4.0).verdict(), Ok(()));
        assert_eq!(term(0.0, 0.0, 0.0).verdict(), Ok(()));
        for (one, two, word) in [
            (0.0, 0.0, "no gradient"),
            (1e-9, 2e-9, "no gradient"),
            (f64::NAN, 1.0, "not finite"),
            (1.0, 1.0, "not proportional"),
        ] {
            let error = term(0.1, one, two).verdict().expect_err("dead").to_string();
            assert!(error.contains(word) && error.contains("`kl`"), "{error}");
        }
    }
}
