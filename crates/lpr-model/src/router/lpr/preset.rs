//! Named sets of the switches in which the paper and its code differ (method-spec section 5).
//!
//! A preset is shorthand in a config file: where configs are layered, `router.preset` is replaced by
//! the keys it stands for, below the keys of the same layer and above those of earlier ones. So a
//! resolved config holds values only, and no preset can contradict them.

use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
use std::str::FromStr;

use super::aligner::{AlignmentForm, AlignmentReduce};
use super::config::{LprConfig, Score};
use super::diversity::{DiversityOn, DiversityReduce};
use super::ema::PrototypeEma;
use super::prototypes::PrototypeInit;
use super::similarity::MetricForm;
use super::token_groups::Padding;

/// The key of a config that a preset replaces.
pub const PRESET_KEY: &str = "preset";

/// What the key says of itself in a schema.
const DESCRIPTION: &str = "Sets every switch in which the paper and its code differ; keys that are \
                           given beside it win. The resolved config shows the keys it stands for.";

/// A named set of switches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// The released code as it ran for Qwen3-MoE in Table 1, with its published config.
    Official,
    /// The paper's text taken literally: both of its squared norms are sums over the tokens of a
    /// micro-batch, which at thousands of tokens outweigh the cross-entropy by far.
    Paper,
    /// What we would choose on merit.
    Clean,
}

impl Preset {
    /// Every preset with its name.
    pub const ALL: [(&'static str, Self); 3] = [
        ("official", Self::Official),
        ("paper", Self::Paper),
        ("clean", Self::Clean),
    ];

    /// The keys that a preset sets. It leaves sizes, metric, kind of diversity and the weights in
    /// which nothing differs alone.
    pub const KEYS: [&'static str; 17] = [
        "metric_form",
        "num_similarity_heads",
        "similarity_projections",
        "score",
        "prototype_init",
        "aligner",
        "diversity_on",
        "diversity_reduce",
        "diversity_normalize",
        "alignment",
        "alignment_reduce",
        "padding",
        "prototype_ema",
        "ema_decay",
        "loss_weight",
        "alignment_weight",
        "equiv_accum",
    ];

    /// The defaults with the switches of this preset.
    pub fn config(self) -> LprConfig {
        let code = LprConfig {
            metric_form: MetricForm::Code,
            num_similarity_heads: 1,
            similarity_projections: true,
            score: Score::Mean,
            prototype_init: PrototypeInit::Normal,
            aligner: true,
            diversity_on: DiversityOn::Both,
            diversity_reduce: DiversityReduce::Mean,
            diversity_normalize: true,
            alignment: AlignmentForm::CodeL1,
            alignment_reduce: AlignmentReduce::TokenMean,
            padding: Padding::Counted,
            prototype_ema: PrototypeEma::Off,
            ema_decay: 0.8,
            loss_weight: 0.01,
            alignment_weight: 0.1,
            equiv_accum: 27.0,
            ..LprConfig::default()
        };
        match self {
            Self::Official => code,
            Self::Paper => LprConfig {
                metric_form: MetricForm::Paper,
                similarity_projections: false,
                score: Score::Sample,
                prototype_init: PrototypeInit::UnitBall,
                aligner: false,
                diversity_on: DiversityOn::Tokens,
                diversity_reduce: DiversityReduce::Sum,
                diversity_normalize: false,
                alignment: AlignmentForm::PaperL2,
                alignment_reduce: AlignmentReduce::Sum,
                padding: Padding::Masked,
                ema_decay: 0.9,
                alignment_weight: 0.05,
                equiv_accum: 1.0,
                ..code
            },
            // The strength of the released run as one number, losses that depend neither on the
            // number of tokens nor on padding, and prototypes pulled to where their tokens are.
            Self::Clean => LprConfig {
                prototype_init: PrototypeInit::UnitBall,
                alignment: AlignmentForm::PaperL2,
                padding: Padding::Masked,
                ema_decay: 0.9,
                loss_weight: 0.27,
                alignment_weight: 0.05,
                equiv_accum: 1.0,
                ..code
            },
        }
    }
}

impl FromStr for Preset {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        let found = Self::ALL.into_iter().find(|(known, _)| *known == name);
        found.map(|(_, preset)| preset).ok_or(())
    }
}

/// Adds the key to the schema of [`LprConfig`], which itself has no such field.
pub fn add_to_schema(schema: &mut Schema) {
    let properties = schema
        .ensure_object()
        .get_mut("properties")
        .and_then(|properties| properties.as_object_mut());
    if let Some(properties) = properties {
        let mut key = schemars::json_schema!({ "description": DESCRIPTION, "type": "string" });
        let names: Vec<&str> = Preset::ALL.iter().map(|(name, _)| *name).collect();
        key.insert("enum".to_owned(), names.into());
        properties.insert(PRESET_KEY.to_owned(), key.to_value());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(config: &LprConfig) -> serde_json::Map<String, serde_json::Value> {
        let value = serde_json::to_value(config).expect("plain values");
        value.as_object().expect("a table").clone()
    }

    #[test]
    fn presets_differ_from_the_default_in_their_keys_alone() {
        let default = json(&LprConfig::default());
        for (name, preset) in Preset::ALL {
            assert_eq!(name.parse(), Ok(preset));
            let config = json(&preset.config());
            for (key, value) in &config {
                let set = Preset::KEYS.contains(&key.as_str());
                assert!(set || *value == default[key], "{name} sets {key}");
            }
            assert!(Preset::KEYS.iter().all(|key| config.contains_key(*key)));
            assert!(preset.config().problems().is_empty(), "{name}");
        }
    }
}
