//! What changed between the configuration of a checkpoint and the one that wants to continue from
//! it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value as Json;

use super::RunConfig;

/// A key with two values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The dotted key.
    pub key: String,
    /// Its value in the checkpoint, as JSON; `(absent)` if it had none.
    pub saved: String,
    /// Its value now.
    pub current: String,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} -> {}", self.key, self.saved, self.current)
    }
}

/// The differences between two configurations, by what they mean for a resumed run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// The run would not be the same run: shapes, data, batches, seed, the arithmetic of the
    /// optimizer.
    pub refused: Vec<Difference>,
    /// Allowed, and worth a line in the log.
    pub noted: Vec<Difference>,
}

impl Differences {
    /// Refuses no difference outside of `[model]` and `[router]`: before its first step a checkpoint
    /// is weights alone, which any run may start from.
    pub fn allow_other_runs(&mut self) {
        let of_weights =
            |d: &Difference| d.key.starts_with("model.") || d.key.starts_with("router.");
        let (refused, noted) = self.refused.drain(..).partition(of_weights);
        self.refused = refused;
        self.noted.extend::<Vec<_>>(noted);
    }
}

/// Sections (with a dot at the end) and keys that may change.
const NOTED: [&str; 24] = [
    "optimizer.learning_rate",
    "optimizer.weight_decay",
    "optimizer.max_grad_norm",
    "schedule.",
    "train.total_steps",
    "train.total_tokens",
    "train.device",
    "train.precision",
    "train.gradient_checkpointing",
    "train.run_dir",
    "stability.",
    "checkpoint.",
    "eval.",
    "log.",
    // What the next four say is in the data's fingerprint, which is compared apart.
    "data.train",
    "data.weights",
    "data.text_column",
    "data.tokenizer",
    "data.max_tokens",
    "data.validation",
    "data.on_bad_shard",
    "data.on_data_end",
    "data.cache_limit_gb",
    "router.equiv_accum",
];
/// Endings of router keys that may change, because they scale losses and change no shape.
const NOTED_ROUTER_ENDINGS: [&str; 3] = ["_weight", "_coefficient", "_rate"];

/// Compares the configuration of a checkpoint with the current one. A key that is not known to be
/// harmless is refused.
///
/// # Panics
/// As [`RunConfig::to_toml`].
pub fn resume_differences(saved: &RunConfig, current: &RunConfig) -> Differences {
    let (saved, current) = (flatten(saved), flatten(current));
    let mut differences = Differences::default();
    let keys: BTreeSet<&String> = saved.keys().chain(current.keys()).collect();
    for key in keys
        .into_iter()
        .filter(|key| saved.get(*key) != current.get(*key))
    {
        let show = |values: &BTreeMap<String, Json>| {
            values
                .get(key)
                .map_or_else(|| "(absent)".to_owned(), ToString::to_string)
        };
        let difference = Difference {
            key: key.clone(),
            saved: show(&saved),
            current: show(&current),
        };
        if is_noted(key) {
            differences.noted.push(difference);
        } else {
            differences.refused.push(difference);
        }
    }
    differences
}

fn is_noted(key: &str) -> bool {
    let listed = |name: &str| {
        if name.ends_with('.') {
            key.starts_with(name)
        } else {
            key == name
        }
    };
    let scales = |ending: &str| key.starts_with("router.") && key.ends_with(ending);
    NOTED.into_iter().any(listed) || NOTED_ROUTER_ENDINGS.into_iter().any(scales)
}

/// Dotted keys and their values; absent ones are left out.
fn flatten(config: &RunConfig) -> BTreeMap<String, Json> {
    let mut flat = BTreeMap::new();
    let value =
        serde_json::to_value(config).expect("a configuration consists of numbers, words and lists");
    flatten_into(String::new(), value, &mut flat);
    flat
}

fn flatten_into(key: String, value: Json, flat: &mut BTreeMap<String, Json>) {
    match value {
        Json::Object(entries) => {
            for (name, value) in entries {
                let key = if key.is_empty() {
                    name
                } else {
                    format!("{key}.{name}")
                };
                flatten_into(key, value, flat);
            }
        }
        Json::Null => {}
        value => {
            flat.insert(key, value);
        }
    }
}
