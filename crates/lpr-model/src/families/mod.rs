//! Model families: each turns its `[model]` section into a [`DecoderConfig`].
//!
//! A new family is one file here and one line in the list below.

mod qwen3_moe;

pub use qwen3_moe::Qwen3MoeConfig;

use crate::config::{ConfigProblem, DecoderConfig};
use crate::registry::config_enum;

/// What every family must be able to say.
pub trait Family {
    /// The decoder that these sizes describe.
    fn decoder(&self) -> DecoderConfig;
}

config_enum! {
    /// The `[model]` section: `family` selects the architecture, the other keys are its sizes.
    config FamilyConfig: Family by "family";
    /// Qwen3-MoE: grouped-query attention with per-head query and key norms.
    Qwen3Moe("qwen3_moe"): Qwen3MoeConfig,
}

impl FamilyConfig {
    /// Every rule between the keys of `[model]` that does not hold.
    pub fn validate(&self) -> Vec<ConfigProblem> {
        self.decoder().validate()
    }
}
