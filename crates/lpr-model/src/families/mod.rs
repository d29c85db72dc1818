//! Model families: each turns its `[model]` section into a [`DecoderConfig`].
//!
//! A new family is one file here and one line in the list below.

mod deepseek_v3;
mod mixtral;
mod qwen3_moe;

pub use deepseek_v3::DeepseekV3Config;
pub use mixtral::MixtralConfig;
pub use qwen3_moe::Qwen3MoeConfig;

use crate::config::{ConfigProblem, DecoderConfig};
use crate::hugging_face::Naming;
use crate::registry::config_enum;

/// What every family must be able to say.
pub trait Family {
    /// The decoder that these sizes describe.
    fn decoder(&self) -> DecoderConfig;

    /// What Hugging Face calls its tensors.
    fn naming(&self) -> Naming {
        Naming::Mlp
    }
}

config_enum! {
    /// The `[model]` section: `family` selects the architecture, the other keys are its sizes.
    config FamilyConfig: Family by "family";
    /// Qwen3-MoE: grouped-query attention with per-head query and key norms.
    Qwen3Moe("qwen3_moe"): Qwen3MoeConfig,
    /// DeepSeek-V3: latent attention, shared experts, dense blocks at the start.
    DeepseekV3("deepseek_v3"): DeepseekV3Config,
    /// Mixtral: grouped-query attention.
    Mixtral("mixtral"): MixtralConfig,
}

impl FamilyConfig {
    /// Every rule between the keys of `[model]` that does not hold.
    pub fn validate(&self) -> Vec<ConfigProblem> {
        self.decoder().validate()
    }
}
