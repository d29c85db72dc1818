//! The `[data]` section of the config. Its doc comments are the user's documentation of the keys.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::split::Split;

/// Where the training text comes from and how it becomes rows of tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Training files, globs, folders or "builtin:synthetic", read in the order of their paths.
    #[schemars(length(min = 1))]
    pub train: Vec<String>,
    /// Validation sources, written the same way. Always read once, from the start.
    #[serde(default)]
    pub validation: Vec<String>,
    /// The parquet column or JSON key that holds the text.
    #[serde(default = "default_text_column")]
    pub text_column: String,
    /// "bytes" (256 byte values and an end mark), a tokenizer.json, or a folder that holds one.
    #[serde(default = "default_tokenizer")]
    pub tokenizer: String,
    /// The longest row, in tokens.
    #[serde(default = "default_sequence_length")]
    #[schemars(range(min = 2))]
    pub sequence_length: usize,
    /// How documents become rows.
    #[serde(default)]
    pub packing: Packing,
    /// What to do about a file or a line that cannot be read.
    #[serde(default)]
    pub on_bad_shard: OnBadShard,
    /// What to do when all training files have been read. Validation always stops.
    #[serde(default)]
    pub on_data_end: OnDataEnd,
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

impl DataConfig {
    /// A config with the given training sources and the default of every other key.
    pub fn new(train: Vec<String>) -> Self {
        Self {
            train,
            validation: Vec::new(),
            text_column: default_text_column(),
            tokenizer: default_tokenizer(),
            sequence_length: default_sequence_length(),
            packing: Packing::default(),
            on_bad_shard: OnBadShard::default(),
            on_data_end: OnDataEnd::default(),
        }
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
    /// No training source, or a sequence length below 2 (a row of one token has nothing to
    /// predict).
    pub fn validate(&self) -> Result<(), DataError> {
        if self.train.is_empty() {
            return Err(DataError::NoSources {
                split: Split::Train,
            });
        }
        if self.sequence_length < 2 {
            return Err(DataError::TooSmall {
                name: "sequence_length",
                value: self.sequence_length,
                min: 2,
            });
        }
        Ok(())
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

/// What to do when all files have been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnDataEnd {
    /// End the run.
    #[default]
    Stop,
    /// Start the next epoch with the first file.
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
    fn the_schema_documents_every_key() {
        let schema = schemars::schema_for!(DataConfig);
        let properties = schema.get("properties").unwrap().as_object().unwrap();
        assert_eq!(properties.len(), 8);
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
