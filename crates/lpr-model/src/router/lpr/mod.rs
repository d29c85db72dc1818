//! Latent Prototype Routing (arXiv 2506.21328; method-spec sections 1 and 2).
//!
//! Every token is encoded into a small latent, compared with one learned prototype per expert, and
//! sent to the k most similar. Regularizers shape latents and prototypes so that experts share the
//! load.

mod aligner;
mod config;
mod diversity;
mod ema;
mod encoder;
mod fit;
mod preset;
mod prototypes;
mod similarity;
mod token_groups;

pub use aligner::{
    AlignmentForm, AlignmentReduce, alignment_code_loss, alignment_paper_loss, alignment_routing,
    alignment_target,
};
pub use config::{LprConfig, Score};
pub use diversity::{Diversity, DiversityKind, DiversityOn, DiversityReduce};
pub use ema::{PrototypeEma, official_update, paper_update};
pub use encoder::{Latent, kl_loss};
pub use fit::PrototypeFit;
pub use preset::{PRESET_KEY, Preset};
pub use prototypes::PrototypeInit;
pub use similarity::{
    AnySimilarity, Compares, Metric, MetricConfig, MetricForm, PrototypeMatch, Similarity,
};
pub use token_groups::{Padding, TokenGroups};

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor};
use lpr_kernels::softmax;

use self::ema::RunningSums;
use self::encoder::LatentEncoder;
use super::{
    LossContext, Mover, MovingState, PrototypeSums, RouteContext, Router, RouterKind, RouterLoss,
    RouterSizes, RouterTerm, Routing, StepStatistics,
};
use crate::config::{ConfigProblem, DecoderConfig};
use crate::layers::Linear;
use crate::random::ParamInit;

impl LprConfig {
    /// Makes the router.
    pub fn init(&self, sizes: &RouterSizes, init: &ParamInit<'_>) -> LprRouter {
        let &RouterSizes {
            hidden_size,
            num_experts,
            top_k,
        } = sizes;
        let latent_dim = self.latent_dim;
        let prototypes = self
            .prototype_init
            .init(&init.at("prototypes"), num_experts, latent_dim);
        LprRouter {
            encoder: LatentEncoder::new(&init.at("encoder"), hidden_size, latent_dim),
            running: (self.prototype_ema == PrototypeEma::Official)
                .then(|| RunningSums::new(&prototypes.val())),
            prototypes,
            aligner: self
                .aligner
                .then(|| Linear::with_bias(&init.at("aligner"), latent_dim, hidden_size)),
            similarity: self
                .similarity
                .init(&self.metric(num_experts), &init.at("similarity")),
            config: self.clone(),
            top_k,
        }
    }
}

/// Encode, compare, select, decode.
#[derive(Module, Debug)]
pub struct LprRouter {
    encoder: LatentEncoder,
    /// K, one prototype per expert: `[num_experts, latent_dim]`
    pub prototypes: Param<Tensor<2>>,
    similarity: AnySimilarity,
    aligner: Option<Linear>,
    running: Option<RunningSums>,
    #[module(skip)]
    config: LprConfig,
    #[module(skip)]
    top_k: usize,
}

/// The latents of a micro-batch and what came of them, as the losses see it.
struct Decision<'a> {
    latent: Latent,
    sample: Tensor<2>,
    scored: Tensor<2>,
    scores: &'a Tensor<2>,
    chosen: &'a Tensor<2>,
    expert_indices: &'a Tensor<2, Int>,
}

impl LprRouter {
    /// The latent of every token.
    ///
    /// # Shapes
    /// `hidden_states`: `[tokens, hidden_size]`
    pub fn encode(&self, hidden_states: Tensor<2>) -> Latent {
        self.encoder.forward(hidden_states)
    }

    /// Compares latents, whose mean is what is scored, with the prototypes.
    pub fn compare(&self, latent: &Latent) -> PrototypeMatch {
        self.similarity.compare(latent, self.prototypes.val())
    }

    fn terms(&self, decision: &Decision<'_>, groups: &TokenGroups) -> Vec<RouterTerm> {
        let Decision {
            latent,
            sample,
            scored,
            scores,
            chosen,
            expert_indices,
        } = decision;
        let prototypes = self.prototypes.val();
        let alignment = match self.config.alignment {
            AlignmentForm::CodeL1 => {
                let routing = alignment_routing(scores, expert_indices, (*chosen).clone());
                let target = alignment_target(routing, sample.clone(), groups);
                alignment_code_loss(prototypes.clone(), target)
            }
            AlignmentForm::PaperL2 => {
                let mixture = softmax((*scores).clone()).matmul(prototypes.clone());
                let reduce = self.config.alignment_reduce;
                alignment_paper_loss(sample.clone(), mixture, reduce, groups)
            }
        };
        let kl = kl_loss(latent.mean.clone(), latent.log_var.clone(), groups);
        let diversity = self.config.diversity();
        let mut terms = vec![RouterTerm::new(KL, kl)];
        if self.config.diversity_on.tokens() {
            let loss = diversity.grouped_loss(scored.clone(), groups);
            terms.push(RouterTerm::new(DIVERSITY_TOKENS, loss));
        }
        if self.config.diversity_on.prototypes() {
            let loss = diversity.loss(prototypes);
            terms.push(RouterTerm::new(DIVERSITY_PROTOTYPES, loss));
        }
        terms.push(RouterTerm::new(ALIGNMENT, alignment));
        terms
    }

    fn prototype_sums(
        &self,
        decision: &Decision<'_>,
        groups: &TokenGroups,
    ) -> Option<PrototypeSums> {
        let &Decision {
            scores,
            expert_indices,
            chosen,
            ..
        } = decision;
        let shares = self
            .config
            .prototype_ema
            .shares(scores, expert_indices, chosen)?;
        let latents = decision.sample.clone();
        Some(PrototypeSums::new(groups.masked(shares), latents))
    }
}

impl Router for LprRouter {
    fn route(&self, hidden_states: Tensor<2>, context: &RouteContext<'_>) -> Routing {
        let latent = self.encode(hidden_states);
        let sample = context.losses.map(|losses| {
            let shape = latent.mean.dims();
            let device = latent.mean.device();
            latent.sample(losses.noise.layer(context.layer, shape, &device))
        });
        let scored = match (self.config.score, &sample) {
            (Score::Sample, Some(sample)) => sample.clone(),
            // Noise never moves a token (method-spec 0.8), and there is none outside training.
            _ => latent.mean.clone(),
        };
        let PrototypeMatch { scores, mixture } = self.compare(&Latent {
            mean: scored.clone(),
            log_var: latent.log_var.clone(),
        });
        let (chosen, expert_indices) = lpr_kernels::top_k(scores.clone(), self.top_k);

        let (mut terms, mut prototype_sums) = (Vec::new(), None);
        if let (Some(losses), Some(sample)) = (context.losses, sample) {
            let groups = TokenGroups::new(losses, self.config.padding);
            let decision = Decision {
                latent,
                sample,
                scored,
                scores: &scores,
                chosen: &chosen,
                expert_indices: &expert_indices,
            };
            terms = self.terms(&decision, &groups);
            prototype_sums = self.prototype_sums(&decision, &groups);
        }
        Routing {
            router_logits: scores,
            expert_indices,
            routing_weights: softmax(chosen),
            residual: self.aligner.as_ref().map(|a| a.forward(mixture)),
            terms,
            prototype_sums,
        }
    }

    fn after_step(self, statistics: &StepStatistics) -> Self {
        let Some(sums) = &statistics.prototype_sums else {
            return self;
        };
        let (prototypes, running) =
            ema::after_step(self.prototypes, self.running, sums, self.config.ema_decay);
        Self {
            prototypes,
            running,
            ..self
        }
    }
}

const KL: &str = "kl";
const DIVERSITY_TOKENS: &str = "diversity_tokens";
const DIVERSITY_PROTOTYPES: &str = "diversity_prototypes";
const ALIGNMENT: &str = "alignment";

impl RouterKind for LprConfig {
    /// Each term is summed over layers (LPR eq. 24 as released).
    fn losses(&self, layers: &[Routing], _context: &LossContext) -> Vec<RouterLoss> {
        let weight = |name: &str| match name {
            KL => self.kl_weight,
            DIVERSITY_TOKENS | DIVERSITY_PROTOTYPES => self.diversity_weight,
            _ => self.alignment_weight,
        };
        let Some((first, rest)) = layers.split_first() else {
            return Vec::new();
        };
        let sum = |index: usize, term: &RouterTerm| {
            rest.iter().fold(term.value.clone(), |sum, layer| {
                sum + layer.terms[index].value.clone()
            })
        };
        first
            .terms
            .iter()
            .enumerate()
            .map(|(index, term)| RouterLoss {
                name: term.name,
                value: sum(index, term),
                weight: weight(term.name) * self.loss_weight * self.equiv_accum,
            })
            .collect()
    }

    fn loss_group_rows(&self) -> usize {
        self.loss_group_rows
    }

    /// The prototypes: by their own update, or else by the losses that pull at them.
    fn moving_state(&self) -> Option<MovingState> {
        let diversity = if self.diversity_on.prototypes() {
            self.diversity_weight
        } else {
            0.0
        };
        let pull = (diversity + self.alignment_weight) * self.loss_weight * self.equiv_accum;
        let (key, mover) = match self.prototype_ema {
            PrototypeEma::Off if pull == 0.0 => return None,
            PrototypeEma::Off => ("loss_weight", Mover::Gradient),
            _ => ("prototype_ema", Mover::AfterStep),
        };
        let parameter = "prototypes";
        Some(MovingState {
            parameter,
            key,
            mover,
        })
    }

    /// Encoder, scores, mixture, the metric's projection, aligner. A score counts one multiply-add per
    /// dimension, two where distributions are compared (means and variances).
    fn macs_per_token(&self, sizes: &RouterSizes) -> u64 {
        let (hidden, experts, latent) = (sizes.hidden_size, sizes.num_experts, self.latent_dim);
        let (moments, projected) = match self.similarity.compares() {
            Compares::Vectors => {
                let attention = self.similarity == Similarity::CrossAttention;
                (1, attention && self.similarity_projections)
            }
            Compares::Distributions => (2, true),
        };
        let encoder = hidden * 2 * latent;
        let scores_and_mixture = (moments + 1) * experts * latent;
        let projection = usize::from(projected) * latent * latent;
        let aligner = usize::from(self.aligner) * latent * hidden;
        (encoder + scores_and_mixture + projection + aligner) as u64
    }

    /// Activations of the encoder, hidden states with the residual, latents and their losses, scores.
    fn kept_per_token(&self, sizes: &RouterSizes) -> u64 {
        let hidden = sizes.hidden_size * (1 + usize::from(self.aligner));
        (hidden + 24 * self.latent_dim + 6 * sizes.num_experts + 4 * sizes.top_k) as u64
    }

    fn validate(&self, _decoder: &DecoderConfig) -> Vec<ConfigProblem> {
        self.problems()
    }
}

#[cfg(test)]
mod tests;
