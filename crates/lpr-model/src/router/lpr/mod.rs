//! Latent Prototype Routing (arXiv 2506.21328; method-spec sections 1 and 2).
//!
//! Every token is encoded into a small latent, compared with one learned prototype per expert, and
//! sent to the k most similar. Regularizers shape latents and prototypes so that experts share the
//! load.

mod aligner;
mod diversity;
mod encoder;
mod prototypes;
mod similarity;

pub use aligner::{
    AlignmentForm, AlignmentReduce, alignment_code_loss, alignment_paper_loss, alignment_routing,
    alignment_target,
};
pub use diversity::{Diversity, DiversityKind, DiversityReduce};
pub use encoder::{Latent, kl_loss};
pub use similarity::{PrototypeMatch, Similarity};

use burn::module::{Module, Param};
use burn::tensor::{Tensor, activation::softmax};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::encoder::LatentEncoder;
use super::{
    LossContext, RouteContext, Router, RouterKind, RouterLoss, RouterSizes, RouterTerm, Routing,
};
use crate::config::{ConfigProblem, DecoderConfig};
use crate::layers::Linear;
use crate::random::ParamInit;

/// Keys of `[router] kind = "lpr"`. The defaults are the released code's values for Qwen3-MoE.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LprConfig {
    /// Width of the latent in which tokens meet prototypes.
    #[schemars(range(min = 1, max = 65_536))]
    pub latent_dim: usize,
    /// How a latent is compared with a prototype.
    pub similarity: Similarity,
    /// Start the prototypes on the unit sphere; otherwise plain normal numbers. Only the initial
    /// value is affected.
    pub unit_ball: bool,
    /// Decode the mix of prototypes that a token resembles and add it to what its experts see.
    pub aligner: bool,
    /// Form of the diversity loss, applied to the latents and to the prototypes.
    pub diversity: DiversityKind,
    /// Mean or sum over pairs of vectors (`sum` is LPR eq. 14 as printed).
    pub diversity_reduce: DiversityReduce,
    /// Compare directions only; `false` takes the vectors as they are (orthogonal form only).
    pub diversity_normalize: bool,
    /// Form of the alignment loss.
    pub alignment: AlignmentForm,
    /// Reduction of `alignment = "paper_l2"`.
    pub alignment_reduce: AlignmentReduce,
    /// Weight of all router losses together (beta of LPR eq. 24).
    #[schemars(range(min = 0.0))]
    pub loss_weight: f64,
    /// Weight of the diversity losses.
    #[schemars(range(min = 0.0))]
    pub diversity_weight: f64,
    /// Weight of the KL divergence of the latents from the standard normal.
    #[schemars(range(min = 0.0))]
    pub kl_weight: f64,
    /// Weight of the loss that pulls prototypes towards their tokens.
    #[schemars(range(min = 0.0))]
    pub alignment_weight: f64,
    /// Extra factor on the router's losses. The released trainer adds them once per micro-batch
    /// without dividing by the number of accumulation steps, so its effective factor is 27.
    #[schemars(range(min = 0.0))]
    pub equiv_accum: f64,
    /// Rows that share one evaluation of the router's losses; 0 means the whole micro-batch.
    pub loss_group_rows: usize,
}

impl Default for LprConfig {
    fn default() -> Self {
        Self {
            latent_dim: 16,
            similarity: Similarity::Cosine,
            unit_ball: true,
            aligner: true,
            diversity: DiversityKind::Orthogonal,
            diversity_reduce: DiversityReduce::Mean,
            diversity_normalize: true,
            alignment: AlignmentForm::CodeL1,
            alignment_reduce: AlignmentReduce::TokenMean,
            loss_weight: 0.01,
            diversity_weight: 1.0,
            kl_weight: 0.01,
            alignment_weight: 0.1,
            equiv_accum: 27.0,
            loss_group_rows: 0,
        }
    }
}

impl LprConfig {
    /// Makes the router.
    pub fn init(&self, sizes: &RouterSizes, init: &ParamInit<'_>) -> LprRouter {
        let (hidden_size, latent_dim) = (sizes.hidden_size, self.latent_dim);
        LprRouter {
            encoder: LatentEncoder::new(&init.at("encoder"), hidden_size, latent_dim),
            prototypes: prototypes::init(
                &init.at("prototypes"),
                sizes.num_experts,
                latent_dim,
                self.unit_ball,
            ),
            aligner: self
                .aligner
                .then(|| Linear::with_bias(&init.at("aligner"), latent_dim, hidden_size)),
            similarity: self.similarity,
            diversity: Diversity {
                kind: self.diversity,
                reduce: self.diversity_reduce,
                normalize: self.diversity_normalize,
            },
            alignment: self.alignment,
            alignment_reduce: self.alignment_reduce,
            top_k: sizes.top_k,
        }
    }
}

/// Encode, compare, select, decode.
#[derive(Module, Debug)]
pub struct LprRouter {
    encoder: LatentEncoder,
    /// K, one prototype per expert: `[num_experts, latent_dim]`
    pub prototypes: Param<Tensor<2>>,
    aligner: Option<Linear>,
    #[module(skip)]
    similarity: Similarity,
    #[module(skip)]
    diversity: Diversity,
    #[module(skip)]
    alignment: AlignmentForm,
    #[module(skip)]
    alignment_reduce: AlignmentReduce,
    #[module(skip)]
    top_k: usize,
}

impl LprRouter {
    /// The latent of every token.
    ///
    /// # Shapes
    /// `hidden_states`: `[tokens, hidden_size]`
    pub fn encode(&self, hidden_states: Tensor<2>) -> Latent {
        self.encoder.forward(hidden_states)
    }
}

impl Router for LprRouter {
    fn route(&self, hidden_states: Tensor<2>, context: &RouteContext<'_>) -> Routing {
        let latent = self.encode(hidden_states);
        let prototypes = self.prototypes.val();
        // The mean is scored, not a sample, so noise never moves a token (method-spec 0.8).
        let PrototypeMatch { scores, mixture } = self
            .similarity
            .compare(latent.mean.clone(), prototypes.clone());
        let (chosen, expert_indices) = scores.clone().topk_with_indices(self.top_k, 1);
        let routing_weights = softmax(chosen.clone(), 1);

        let terms = match context.losses {
            Some(losses) => {
                let shape = latent.mean.dims();
                let noise = losses.noise.layer(context.layer, shape, &scores.device());
                let sample = latent.sample(noise);
                let groups = losses.num_groups;
                let alignment = match self.alignment {
                    AlignmentForm::CodeL1 => {
                        let routing = alignment_routing(&scores, &expert_indices, chosen);
                        let target = alignment_target(routing, sample, groups);
                        alignment_code_loss(prototypes.clone(), target)
                    }
                    AlignmentForm::PaperL2 => {
                        alignment_paper_loss(sample, mixture.clone(), self.alignment_reduce)
                    }
                };
                let of_tokens = self.diversity.grouped_loss(latent.mean.clone(), groups);
                vec![
                    RouterTerm::new(KL, kl_loss(latent.mean, latent.log_var)),
                    RouterTerm::new(DIVERSITY_TOKENS, of_tokens),
                    RouterTerm::new(DIVERSITY_PROTOTYPES, self.diversity.loss(prototypes)),
                    RouterTerm::new(ALIGNMENT, alignment),
                ]
            }
            None => Vec::new(),
        };
        Routing {
            router_logits: scores,
            expert_indices,
            routing_weights,
            residual: self.aligner.as_ref().map(|a| a.forward(mixture)),
            terms,
            prototype_sums: None,
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

    fn validate(&self, _decoder: &DecoderConfig) -> Vec<ConfigProblem> {
        let mut problems = Vec::new();
        if !self.diversity_normalize && self.diversity != DiversityKind::Orthogonal {
            problems.push(ConfigProblem::new(
                "router.diversity_normalize",
                "is false, which only router.diversity = \"orthogonal\" knows; use true",
            ));
        }
        problems
    }
}
