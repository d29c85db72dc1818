//! Prototypes that follow their tokens by a moving average (method-spec section 2, "EMA of keys").
//!
//! The update happens after the optimizer step, from sums over all micro-batches of the step, so
//! that it does not depend on how a batch is split. With R the share of each token in each expert
//! and z the sampled latents:
//!
//! ```text
//! official     s <- decay s + (1 - decay) R' z,   c <- decay c + (1 - decay) sum R,
//!              K <- s / max(c, 1e-6);  s = K and c = 0 at first
//! paper        K_e <- decay K_e + (1 - decay) (R' z)_e / (sum R)_e   where sum R is not 0
//! ```

use burn::module::{Module, Param};
use burn::tensor::{IndexingUpdateOp, Int, Tensor};
use lpr_kernels::softmax;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::PrototypeSums;
use super::aligner::alignment_routing;

/// Whether and how prototypes follow their tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PrototypeEma {
    /// Gradients alone move the prototypes, as in every published run.
    Off,
    /// The released code's update, which it never calls: running sums and counts, with a share of
    /// every token in every expert.
    Official,
    /// The paper's update towards the mean of the tokens that chose the expert.
    PaperHard,
    /// The same towards the mean of all tokens, weighted by softmax(S).
    PaperSoft,
}

impl PrototypeEma {
    /// R, `[tokens, num_experts]`, without gradient; `None` if there is no update.
    ///
    /// # Shapes
    /// `scores`: `[tokens, num_experts]`; `expert_indices`, `chosen` (their scores): `[tokens, top_k]`
    pub fn shares(
        self,
        scores: &Tensor<2>,
        expert_indices: &Tensor<2, Int>,
        chosen: &Tensor<2>,
    ) -> Option<Tensor<2>> {
        let scores = scores.clone().detach();
        match self {
            Self::Off => None,
            Self::Official => Some(alignment_routing(&scores, expert_indices, chosen.clone())),
            Self::PaperHard => Some(scores.zeros_like().scatter(
                1,
                expert_indices.clone(),
                chosen.clone().detach().ones_like(),
                IndexingUpdateOp::Add,
            )),
            Self::PaperSoft => Some(softmax(scores)),
        }
    }
}

impl PrototypeSums {
    /// R' z and the sum of R.
    ///
    /// # Shapes
    /// `shares` (R): `[tokens, num_experts]`; `latents` (z): `[tokens, latent_dim]`
    pub fn new(shares: Tensor<2>, latents: Tensor<2>) -> Self {
        Self {
            latents: shares.clone().transpose().matmul(latents.detach()),
            shares: shares.sum_dim(0).squeeze_dim(0),
        }
    }

    fn inner(&self) -> Self {
        if self.shares.device().is_autodiff() {
            Self {
                latents: self.latents.clone().inner(),
                shares: self.shares.clone().inner(),
            }
        } else {
            self.clone()
        }
    }
}

/// Smallest count by which a sum is divided, as released.
const MIN_COUNT: f64 = 1e-6;

/// The running state of the official update; saved with the model, never trained.
#[derive(Module, Debug)]
pub struct RunningSums {
    /// s, `[num_experts, latent_dim]`
    sums: Param<Tensor<2>>,
    /// c, `[num_experts]`
    counts: Param<Tensor<1>>,
}

impl RunningSums {
    /// Before the first step of prototypes that start at `prototypes`.
    pub fn new(prototypes: &Tensor<2>) -> Self {
        let sums = prototypes.clone().detach();
        let counts = sums.clone().sum_dim(1).squeeze_dim(1).zeros_like();
        Self {
            sums: Param::from_tensor(sums).set_require_grad(false),
            counts: Param::from_tensor(counts).set_require_grad(false),
        }
    }
}

/// s, c and K after a step of the official update.
pub fn official_update(
    sums: Tensor<2>,
    counts: Tensor<1>,
    step: &PrototypeSums,
    decay: f64,
) -> (Tensor<2>, Tensor<1>, Tensor<2>) {
    let sums = sums * decay + step.latents.clone() * (1.0 - decay);
    let counts = counts * decay + step.shares.clone() * (1.0 - decay);
    let prototypes = sums.clone() / counts.clone().clamp_min(MIN_COUNT).unsqueeze_dim(1);
    (sums, counts, prototypes)
}

/// K after a step of the paper's update.
pub fn paper_update(prototypes: Tensor<2>, step: &PrototypeSums, decay: f64) -> Tensor<2> {
    let shares = step.shares.clone().unsqueeze_dim::<2>(1);
    let unassigned = shares.clone().equal_scalar(0.0);
    let means = step.latents.clone() / shares.mask_fill(unassigned.clone(), 1.0);
    let moved = prototypes.clone() * decay + means * (1.0 - decay);
    let unassigned = unassigned.expand(prototypes.dims());
    moved.mask_where(unassigned, prototypes)
}

/// The prototypes and the running state after a step.
pub fn after_step(
    prototypes: Param<Tensor<2>>,
    running: Option<RunningSums>,
    step: &PrototypeSums,
    decay: f64,
) -> (Param<Tensor<2>>, Option<RunningSums>) {
    let step = step.inner();
    match running {
        None => {
            let update = |old| paper_update(old, &step, decay);
            (replaced(prototypes, update), None)
        }
        Some(RunningSums { sums, counts }) => {
            let (old_sums, old_counts) = (plain(sums.val()), plain(counts.val()));
            let (s, c, k) = official_update(old_sums, old_counts, &step, decay);
            let running = RunningSums {
                sums: replaced(sums, |_| s),
                counts: replaced(counts, |_| c),
            };
            (replaced(prototypes, |_| k), Some(running))
        }
    }
}

/// The value outside the autodiff graph.
pub(super) fn plain<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    if tensor.device().is_autodiff() {
        tensor.inner()
    } else {
        tensor
    }
}

/// The parameter with a new value; it requires a gradient if it did before.
pub(super) fn replaced<const D: usize>(
    parameter: Param<Tensor<D>>,
    new: impl FnOnce(Tensor<D>) -> Tensor<D>,
) -> Param<Tensor<D>> {
    parameter.map(|old| {
        if old.device().is_autodiff() {
            let requires_grad = old.is_require_grad();
            Tensor::from_inner(new(old.inner())).set_require_grad(requires_grad)
        } else {
            new(old)
        }
    })
}
