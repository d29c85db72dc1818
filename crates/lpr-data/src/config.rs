//! The `[data]` section of the config. Its doc comments are the user's documentation of the keys.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::hub::{Hub, OwnHub};
use crate::split::Split;

/// Where the training text comes from and how it becomes rows of tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Training files, globs, folders, `hf://datasets/OWNER/NAME[@REVISION]/PATH`, `https://` or "builtin:synthetic", in the order of their paths.
    #[schemars(length(min = 1))]
    pub train: Vec<String>,
    /// The share of tokens of each entry of train, in any unit; empty reads all entries as one.
    #[serde(default)]
    pub weights: Vec<f64>,
    /// Validation sources, written the same way. Always read once, from the start.
    #[serde(default)]
    pub validation: Vec<String>,
    /// The parquet column or JSON key that holds the text.
    #[serde(default = "default_text_column")]
    pub text_column: String,
    /// "bytes" (256 byte values and an end mark), a tokenizer.json, a folder that holds one, or `hf://OWNER/NAME[@REVISION]`.
    #[serde(default = "default_tokenizer")]
    pub tokenizer: String,
    /// The longest row, in tokens.
    #[serde(default = "default_sequence_length")]
    #[schemars(range(min = 2))]
    pub sequence_length: usize,
    /// How documents become rows.
    #[serde(default)]
    pub packing: Packing,
    /// Documents that are packed together by best fit; more waste less and take more memory.
    #[serde(default = "default_window")]
    #[schemars(range(min = 1, max = 1_048_576))]
    pub packing_window: usize,
    /// Whether documents in one row are apart: attention stays inside, positions restart.
    #[serde(default = "default_document_mask")]
    pub document_mask: bool,
    /// Whether each epoch has its own order of files, row groups and, in windows, documents.
    #[serde(default)]
    pub shuffle: bool,
    /// Documents among which shuffling draws an order; a resumed run reads one window again.
    #[serde(default = "default_window")]
    #[schemars(range(min = 1, max = 1_048_576))]
    pub shuffle_window: usize,
    /// Seed of the shuffled order, apart from train.seed, so that the data can stay the same.
    #[serde(default = "default_shuffle_seed")]
    #[schemars(range(min = 0, max = 9_223_372_036_854_775_807_u64))]
    pub shuffle_seed: u64,
    /// What to do about a file or a line that cannot be read.
    #[serde(default)]
    pub on_bad_shard: OnBadShard,
    /// What to do when all files of a training source have been read. Validation always stops.
    #[serde(default)]
    pub on_data_end: OnDataEnd,
    /// End the training data when so many tokens have been handed out; no limit if absent.
    #[serde(default)]
    #[schemars(range(min = 1, max = 1_000_000_000_000_000_000_u64))]
    pub max_tokens: Option<u64>,
    /// Gigabytes (1e9 bytes) of fetched data files to keep, those used longest ago go first; 0 reads from the network and stores nothing; unset keeps all.
    #[serde(default)]
    #[schemars(range(min = 0.0))]
    pub cache_limit_gb: Option<f64>,
    /// How files on the network are reached; no key of the file.
    #[serde(skip)]
    pub hub: Hub,
}

fn default_text_column() -> String {
    "text".to_owned()
}

fn default_tokenizer() -> String {
    "bytes".to_owned()
}

fn default_sequence_length() -> usize {
    1024
}

fn default_window() -> usize {
    4096
}

fn default_document_mask() -> bool {
    true
}

fn default_shuffle_seed() -> u64 {
    42
}

impl DataConfig {
    /// A config with the given training sources and the default of every other key.
    pub fn new(train: Vec<String>) -> Self {
        Self {
            train,
            weights: Vec::new(),
            validation: Vec::new(),
            text_column: default_text_column(),
            tokenizer: default_tokenizer(),
            sequence_length: default_sequence_length(),
            packing: Packing::default(),
            packing_window: default_window(),
            document_mask: default_document_mask(),
            shuffle: false,
            shuffle_window: default_window(),
            shuffle_seed: default_shuffle_seed(),
            on_bad_shard: OnBadShard::default(),
            on_data_end: OnDataEnd::default(),
            max_tokens: None,
            cache_limit_gb: None,
            hub: Hub::default(),
        }
    }

    /// The hub with the limit of the cache, to be closed on its own.
    pub(crate) fn own_hub(&self) -> OwnHub {
        let bytes = self
            .cache_limit_gb
            .map(|gigabytes| (gigabytes * 1e9) as u64);
        self.hub.separate(bytes)
    }

    /// The sources of a split, as written.
    pub fn sources(&self, split: Split) -> &[String] {
        match split {
            Split::Train => &self.train,
            Split::Validation => &self.validation,
        }
    }

    /// Checks what can be checked without opening a file.
    ///
    /// # Errors
    /// No training source, weights that are not one positive number for each, a sequence length below
    /// 2 (a row of one token has nothing to predict), an empty window.
    pub fn validate(&self) -> Result<(), DataError> {
        if self.train.is_empty() {
            return Err(DataError::NoSources {
                split: Split::Train,
            });
        }
        if let Some(reason) = self.weights_problem() {
            let weights = self.weights.clone();
            return Err(DataError::Weights { weights, reason });
        }
        for (name, value, min) in [
            ("sequence_length", self.sequence_length, 2),
            ("packing_window", self.packing_window, 1),
            ("shuffle_window", self.shuffle_window, 1),
        ] {
            if value < min {
                return Err(DataError::TooSmall { name, value, min });
            }
        }
        Ok(())
    }

    /// The rule that `weights` breaks, if any: none at all, or a positive number for each entry of
    /// `train`.
    pub fn weights_problem(&self) -> Option<String> {
        let (weights, entries) = (self.weights.len(), self.train.len());
        let is_weight = |weight: &f64| weight.is_finite() && *weight > 0.0;
        if self.weights.is_empty() {
            None
        } else if weights != entries {
            Some(format!(
                "{weights} weights for {entries} entries of train; give one for each, or none"
            ))
        } else if !self.weights.iter().all(is_weight) {
            Some("each must be above 0 and finite; remove an entry that is not wanted".to_owned())
        } else {
            None
        }
    }
}

/// How documents become rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Packing {
    /// As in the paper: one document a row, cut at `sequence_length`, padded, without end mark.
    #[default]
    None,
    /// Documents follow each other, each with an end mark, in full rows; nothing is cut away.
    Packed,
    /// Documents, each with an end mark, stay whole where a row can hold them, and share rows so
    /// that hardly any padding is left.
    BestFit,
}

/// What to do about a file or a line that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnBadShard {
    /// Stop with an error that names the place.
    #[default]
    Fail,
    /// Warn, count, and go on with the next line, or with the next file if the rest is damaged.
    Skip,
}

/// What to do when all files of a source have been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnDataEnd {
    /// Read it no more; the run ends with the last source.
    #[default]
    Stop,
    /// Start the next epoch of the source.
    Repeat,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_training_sources_are_required() {
        let config: DataConfig = serde_json::from_str(r#"{"train": ["a"]}"#).unwrap();
        assert_eq!(config, DataConfig::new(vec!["a".to_owned()]));
        assert!(serde_json::from_str::<DataConfig>("{}").is_err());
        let error = serde_json::from_str::<DataConfig>(r#"{"train": ["a"], "trian": 1}"#);
        assert!(error.unwrap_err().to_string().contains("trian"));
    }

    #[test]
    fn survives_a_round_trip() {
        let config = DataConfig {
            validation: vec!["b".to_owned()],
            packing: Packing::Packed,
            on_bad_shard: OnBadShard::Skip,
            on_data_end: OnDataEnd::Repeat,
            ..DataConfig::new(vec!["a".to_owned()])
        };
        let json = serde_json::to_string(&config).unwrap();
        assert!(json.contains(r#""packing":"packed""#), "{json}");
        assert_eq!(serde_json::from_str::<DataConfig>(&json).unwrap(), config);
    }

    #[test]
    fn weights_are_one_positive_number_for_each_entry_or_none() {
        let config = |weights: &[f64]| DataConfig {
            weights: weights.to_vec(),
            ..DataConfig::new(vec!["a".to_owned(), "b".to_owned()])
        };
        for good in [&[][..], &[0.5, 3.0]] {
            assert!(config(good).validate().is_ok(), "{good:?}");
        }
        for bad in [&[1.0][..], &[1.0, 0.0], &[1.0, -1.0], &[f64::INFINITY, 1.0]] {
            let error = config(bad).validate().unwrap_err();
            assert!(matches!(error, DataError::Weights { .. }), "{error}");
        }
    }

    #[test]
    fn the_schema_documents_every_key() {
        let schema = schemars::schema_for!(DataConfig);
        let properties = schema.get("properties").unwrap().as_object().unwrap();
        assert_eq!(properties.len(), 16);
        for (key, property) in properties {
            let description = property.get("description").and_then(|text| text.as_str());
            assert!(
                description.is_some_and(|text| !text.contains('\n')),
                "{key}: {description:?}"
            );
        }
        let minimum = &properties["sequence_length"]["minimum"];
        assert_eq!(minimum, &serde_json::json!(2));
    }
}
