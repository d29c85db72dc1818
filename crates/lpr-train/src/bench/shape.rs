//! What is timed: shapes with fixed names, or any configuration.

use std::path::PathBuf;

use crate::config::{ConfigErrors, RunConfig};

/// The shapes that have a name, with their configuration without a router.
const NAMED: [(&str, &str); 3] = [
    ("cpu-small", include_str!("shapes/cpu-small.toml")),
    ("cpu-medium", include_str!("shapes/cpu-medium.toml")),
    ("paper-0.6b", include_str!("shapes/paper-0.6b.toml")),
];

/// The routers that have a name, each as overrides: the plain one with Hugging Face's pooled loss, and
/// the paper's with every loss added once.
const VANILLA: &[&str] = &[
    "router.kind=softmax_topk",
    "router.norm_topk_prob=false",
    "router.aux_loss=pooled",
    "router.aux_loss_weight=1e-3",
    "router.equiv_accum=1",
];
const LPR: &[&str] = &[
    "router.kind=lpr",
    "router.prototype_init=normal",
    "router.loss_weight=0.01",
    "router.diversity_weight=1",
    "router.kl_weight=0.01",
    "router.alignment_weight=0.1",
    "router.equiv_accum=1",
];

/// Which router a shape is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum BenchRouter {
    /// Linear logits, softmax, top-k, the pooled load-balancing loss.
    Vanilla,
    /// Latent prototypes with cosine similarity.
    Lpr,
}

impl BenchRouter {
    fn overrides(self) -> Vec<String> {
        let keys = match self {
            Self::Vanilla => VANILLA,
            Self::Lpr => LPR,
        };
        keys.iter().map(|&key| key.to_owned()).collect()
    }
}

/// The configuration of a named shape, whose router is the plain one unless another is asked for, or
/// of a configuration file, whose router is its own unless another is asked for; likewise the
/// precision, which is that of 32-bit floats for a named shape.
///
/// # Errors
/// A file with problems.
pub fn config(
    shape: &str,
    router: Option<BenchRouter>,
    precision: Option<&str>,
) -> Result<RunConfig, ConfigErrors> {
    let named = NAMED.iter().find(|(name, _)| *name == shape);
    let router = router.or(named.map(|_| BenchRouter::Vanilla));
    let mut overrides = router.map(BenchRouter::overrides).unwrap_or_default();
    overrides.extend(precision.map(|precision| format!("train.precision={precision}")));
    match named {
        Some((name, text)) => RunConfig::parse(name, text, &overrides),
        None => RunConfig::load(&[PathBuf::from(shape)], &overrides),
    }
}

#[cfg(test)]
mod tests {
    use lpr_model::estimate::estimate;

    use super::*;

    #[test]
    fn every_name_is_a_valid_configuration_with_every_router() {
        for (name, _) in NAMED {
            for router in [None, Some(BenchRouter::Vanilla), Some(BenchRouter::Lpr)] {
                let found =
                    config(name, router, None).unwrap_or_else(|error| panic!("{name}: {error}"));
                let lpr = router == Some(BenchRouter::Lpr);
                assert_eq!(
                    found.router.name(),
                    if lpr { "lpr" } else { "softmax_topk" }
                );
            }
        }
    }

    #[test]
    fn the_sizes_are_those_of_the_documentation() {
        let expect = [
            ("cpu-small", 2048, 17.47),
            ("cpu-medium", 2048, 188.9),
            ("paper-0.6b", 16_384, 645.4),
        ];
        for (name, positions, millions) in expect {
            let config = config(name, None, None).expect("valid");
            assert_eq!(config.positions_per_step(), positions, "{name}");
            let params = estimate(
                &config.model.decoder(),
                &config.router,
                config.data.sequence_length,
            )
            .total_params;
            assert!(
                (params as f64 / 1e6 - millions).abs() < 0.05,
                "{name}: {params}"
            );
        }
    }
}
