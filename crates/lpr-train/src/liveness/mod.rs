//! Proof that each configured balancer does something.
//!
//! Balancers die silently: a detached graph, a coefficient nobody reads, a bias nobody updates, tokens
//! counted twice. Three probes look at a model without changing it: the gradient of each loss term at
//! the routers, the effect of each coefficient, and the state that has to move after a step. A run makes
//! them before its first step and now and then (see [`Watch`]); `doctor` makes them on demand. Between
//! probes a run checks its counts at every step, and at every log line that the state moved.

mod coefficients;
mod movement;
mod terms;
mod watch;

use std::fmt;

use lpr_model::{CausalLm, LatentNoise, RouterConfig};
use serde::Serialize;
use thiserror::Error;

pub use coefficients::{CoefficientLiveness, probe_coefficients};
pub use movement::{Movement, StateLiveness, probe_state};
pub use terms::{TermLiveness, probe_rows, probe_terms};
pub use watch::{Watch, check_counts};

use crate::batch::MicroBatch;

/// A configured balancer that does nothing, or not what its configuration says.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum DeadBalancer {
    /// A loss term.
    #[error(
        "the balance term `{name}` (weight {weight}) {fault}; a run with it would prove nothing. \
         Set its weight to 0, or see `lpr-train doctor --config FILE`"
    )]
    Term {
        /// The term.
        name: &'static str,
        /// Its weight.
        weight: f64,
        /// What is wrong with its gradient.
        fault: String,
    },
    /// A coefficient of the losses.
    #[error(
        "the coefficient router.{key} = {value} {fault}; a run with it would prove nothing. Set it \
         to 0, or see `lpr-train doctor --config FILE`"
    )]
    Coefficient {
        /// The key of `[router]`.
        key: String,
        /// Its value.
        value: f64,
        /// What is wrong with its effect.
        fault: &'static str,
    },
    /// State that is to follow the load.
    #[error(
        "router.{key} asks for moving `{parameter}`, but {fault}; a run with it would prove \
         nothing. Turn router.{key} off, or see `lpr-train doctor --config FILE`"
    )]
    State {
        /// The key of `[router]`.
        key: &'static str,
        /// The parameter.
        parameter: &'static str,
        /// Where and when it stood still.
        fault: String,
    },
}

/// How much is asked of a gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strictness {
    /// Initial weights: a tiny gradient is no gradient.
    Initial,
    /// Weights in training, where a term may be near its minimum: only none at all is none.
    Trained,
}

/// What all probes of a model found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Liveness {
    /// Every term of the router's losses.
    pub balance_terms: Vec<TermLiveness>,
    /// Every coefficient of theirs that is not zero.
    pub coefficients: Vec<CoefficientLiveness>,
    /// The state that moves after a step, if there is any.
    pub balance_state: Option<StateLiveness>,
}

impl Liveness {
    /// Makes all probes on `batch`. The model is left as it is.
    pub fn probe(
        model: &CausalLm,
        router: &RouterConfig,
        batch: &MicroBatch,
        noise: &LatentNoise,
    ) -> Self {
        Self {
            balance_terms: probe_terms(model, &**router, batch, noise),
            coefficients: probe_coefficients(model, router, batch, noise),
            balance_state: probe_state(model, &**router, batch, noise),
        }
    }

    /// The verdict on each balancer, with what was found in words.
    pub fn verdicts(&self, strictness: Strictness) -> Vec<(String, Result<(), DeadBalancer>)> {
        fn entry<T: fmt::Display>(
            found: &T,
            verdict: Result<(), DeadBalancer>,
        ) -> (String, Result<(), DeadBalancer>) {
            (found.to_string(), verdict)
        }
        let terms = self.balance_terms.iter();
        let coefficients = self.coefficients.iter();
        terms
            .map(|term| entry(term, term.verdict(strictness)))
            .chain(coefficients.map(|found| entry(found, found.verdict())))
            .chain(self.balance_state.iter().map(|s| entry(s, s.verdict())))
            .collect()
    }
}

/// `layer 3`, or `layers 0, 1 and 3`.
fn list_layers(layers: &[usize]) -> String {
    let words: Vec<String> = layers.iter().map(ToString::to_string).collect();
    match words.split_last() {
        Some((last, [])) => format!("layer {last}"),
        Some((last, others)) => format!("layers {} and {last}", others.join(", ")),
        None => "no layer".to_owned(),
    }
}
