//! The keys of the paper's router, and which of them contradict each other.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::aligner::{AlignmentForm, AlignmentReduce};
use super::diversity::{Diversity, DiversityKind, DiversityOn, DiversityReduce};
use super::ema::PrototypeEma;
use super::preset;
use super::prototypes::PrototypeInit;
use super::similarity::{Compares, MetricConfig, MetricForm, Similarity};
use super::token_groups::Padding;
use crate::config::ConfigProblem;

/// Which latent is compared with the prototypes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Score {
    /// The mean, so that noise never moves a token: the released code.
    Mean,
    /// The sample z (LPR eq. 12); the mean outside training, where nothing is sampled.
    Sample,
}

/// Keys of `[router] kind = "lpr"`. The defaults are the released code's values for Qwen3-MoE with
/// prototypes on the unit sphere.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(transform = preset::add_to_schema)]
pub struct LprConfig {
    /// Width of the latent in which tokens meet prototypes.
    #[schemars(range(min = 1, max = 65_536))]
    pub latent_dim: usize,
    /// How a latent is compared with a prototype.
    pub similarity: Similarity,
    /// The released code's or the paper's formula, for the metrics where they differ: `hellinger`
    /// and `wasserstein`.
    pub metric_form: MetricForm,
    /// Width of the kernel of `similarity = "gaussian"`.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub gaussian_sigma: f64,
    /// Heads of `similarity = "cross_attention"`.
    #[schemars(range(min = 1, max = 65_536))]
    pub num_similarity_heads: usize,
    /// Project and normalize the queries and keys of `similarity = "cross_attention"`.
    pub similarity_projections: bool,
    /// Score the mean of a token's latent or a sample of it.
    pub score: Score,
    /// Where the prototypes start. Only the initial value is affected.
    pub prototype_init: PrototypeInit,
    /// Decode the mix of prototypes that a token resembles and add it to what its experts see.
    pub aligner: bool,
    /// Form of the diversity loss.
    pub diversity: DiversityKind,
    /// Which vectors the diversity loss is taken over.
    pub diversity_on: DiversityOn,
    /// Mean or sum over pairs of vectors (`sum` is LPR eq. 14 as printed).
    pub diversity_reduce: DiversityReduce,
    /// Compare directions only; `false` takes the vectors as they are (orthogonal form only).
    pub diversity_normalize: bool,
    /// Form of the alignment loss.
    pub alignment: AlignmentForm,
    /// Reduction of `alignment = "paper_l2"`.
    pub alignment_reduce: AlignmentReduce,
    /// Whether padding takes part in the router's losses and in the update of the prototypes.
    pub padding: Padding,
    /// Whether and how prototypes follow their tokens after every step, beside their gradient.
    pub prototype_ema: PrototypeEma,
    /// Share of the old value in `prototype_ema`.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub ema_decay: f64,
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
            metric_form: MetricForm::Code,
            gaussian_sigma: 1.0,
            num_similarity_heads: 1,
            similarity_projections: true,
            score: Score::Mean,
            prototype_init: PrototypeInit::UnitBall,
            aligner: true,
            diversity: DiversityKind::Orthogonal,
            diversity_on: DiversityOn::Both,
            diversity_reduce: DiversityReduce::Mean,
            diversity_normalize: true,
            alignment: AlignmentForm::CodeL1,
            alignment_reduce: AlignmentReduce::TokenMean,
            padding: Padding::Counted,
            prototype_ema: PrototypeEma::Off,
            ema_decay: 0.8,
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
    /// What the metric is built from.
    pub fn metric(&self, num_experts: usize) -> MetricConfig {
        MetricConfig {
            latent_dim: self.latent_dim,
            num_experts,
            form: self.metric_form,
            sigma: self.gaussian_sigma,
            num_heads: self.num_similarity_heads,
            projections: self.similarity_projections,
        }
    }

    pub(super) fn diversity(&self) -> Diversity {
        Diversity {
            kind: self.diversity,
            reduce: self.diversity_reduce,
            normalize: self.diversity_normalize,
        }
    }

    /// Every rule between keys that does not hold.
    pub(super) fn problems(&self) -> Vec<ConfigProblem> {
        let mut problems = self.metric_problems();
        if !self.diversity_normalize && self.diversity != DiversityKind::Orthogonal {
            problems.push(ConfigProblem::new(
                "router.diversity_normalize",
                "is false, which only router.diversity = \"orthogonal\" knows; use true",
            ));
        }
        problems
    }

    fn metric_problems(&self) -> Vec<ConfigProblem> {
        let mut problems = Vec::new();
        let mut problem = |key: &str, message: String| {
            problems.push(ConfigProblem::new(format!("router.{key}"), message));
        };
        let (name, heads) = (self.similarity.name(), self.num_similarity_heads);
        if self.similarity == Similarity::CrossAttention {
            if heads == 0 || !self.latent_dim.is_multiple_of(heads) {
                problem(
                    "num_similarity_heads",
                    format!(
                        "is {heads}, but router.latent_dim = {} must be a multiple of it; use 1, \
                         or another divisor",
                        self.latent_dim
                    ),
                );
            }
        } else if heads != 1 {
            problem(
                "num_similarity_heads",
                format!(
                    "is {heads}, which only router.similarity = \"cross_attention\" knows; use 1, \
                     the similarity is \"{name}\""
                ),
            );
        }
        if self.similarity != Similarity::Gaussian && (self.gaussian_sigma - 1.0).abs() > 0.0 {
            problem(
                "gaussian_sigma",
                format!(
                    "is {}, which only router.similarity = \"gaussian\" knows; remove it, the \
                     similarity is \"{name}\"",
                    self.gaussian_sigma
                ),
            );
        }
        if self.similarity.compares() == Compares::Distributions {
            if self.score == Score::Sample {
                problem(
                    "score",
                    format!(
                        "is \"sample\", but router.similarity = \"{name}\" compares the whole \
                         distribution; use \"mean\""
                    ),
                );
            }
            if self.prototype_init == PrototypeInit::Normal {
                problem(
                    "prototype_init",
                    format!(
                        "is \"normal\", but the prototypes of router.similarity = \"{name}\" start \
                         with length one; use \"unit_ball\" or \"orthogonal\""
                    ),
                );
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contradictions_name_their_key_and_a_remedy() {
        let keys = |config: LprConfig| -> Vec<String> {
            let problems = config.problems();
            assert!(
                problems
                    .iter()
                    .all(|p| p.message.contains("use") || p.message.contains("remove"))
            );
            problems.into_iter().map(|p| p.key).collect()
        };
        assert!(keys(LprConfig::default()).is_empty());
        let attention = |heads| LprConfig {
            similarity: Similarity::CrossAttention,
            num_similarity_heads: heads,
            ..LprConfig::default()
        };
        assert!(keys(attention(4)).is_empty());
        assert_eq!(keys(attention(3)), ["router.num_similarity_heads"]);
        let lost = LprConfig {
            similarity: Similarity::Kl,
            gaussian_sigma: 2.0,
            num_similarity_heads: 2,
            score: Score::Sample,
            prototype_init: PrototypeInit::Normal,
            ..LprConfig::default()
        };
        assert_eq!(
            keys(lost),
            [
                "router.num_similarity_heads",
                "router.gaussian_sigma",
                "router.score",
                "router.prototype_init"
            ]
        );
    }
}
