//! The arguments of `data ..`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use lpr_data::{OnBadShard, Packing};
use serde::de::DeserializeOwned;

use super::{at_least_one, at_least_two};

/// `data ..`
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Read every document; exit code 3 if any file is bad.
    Check(DataCheckArgs),
    /// How fast documents become rows of tokens, and in how much memory.
    Bench(DataBenchArgs),
    /// Tokenize documents once, into a folder that can be a source like any other.
    Prepare(DataPrepareArgs),
    /// Train a byte-level BPE tokenizer.
    Tokenizer(DataTokenizerArgs),
}

/// Arguments of `data check`.
#[derive(Clone, Debug, Args)]
pub struct DataCheckArgs {
    /// Files, globs, folders or builtin:synthetic.
    #[arg(value_name = "SRC", required = true)]
    pub sources: Vec<String>,
    /// The parquet column or JSON key that holds the text.
    #[arg(long, default_value = "text")]
    pub text_column: String,
    /// Count tokens, too: "bytes", a tokenizer.json or a folder that holds one.
    #[arg(long, value_name = "TOKENIZER")]
    pub tokenizer: Option<String>,
    /// Print one JSON object per file, in a list.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `data bench`.
#[derive(Clone, Debug, Args)]
pub struct DataBenchArgs {
    /// Files, globs, folders or builtin:synthetic, read once.
    #[arg(long, value_name = "SRC", required = true, num_args = 1..)]
    pub data: Vec<String>,
    /// "bytes", a tokenizer.json or a folder that holds one.
    #[arg(long, value_name = "TOKENIZER", default_value = "bytes")]
    pub tokenizer: String,
    /// The parquet column or JSON key that holds the text.
    #[arg(long, default_value = "text")]
    pub text_column: String,
    /// Threads that read and tokenize; as many as in training if absent.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub threads: Option<usize>,
    /// How documents become rows, as `data.packing`.
    #[arg(long, default_value = "packed", value_parser = config_value::<Packing>)]
    pub packing: Packing,
    /// The longest row in tokens, as `data.sequence_length`.
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = at_least_two)]
    pub sequence_length: usize,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `data prepare`.
#[derive(Clone, Debug, Args)]
pub struct DataPrepareArgs {
    /// Files, globs, folders or builtin:synthetic.
    #[arg(value_name = "SRC", required = true)]
    pub sources: Vec<String>,
    /// "bytes", a tokenizer.json or a folder that holds one; training must name the same.
    #[arg(long, value_name = "TOKENIZER")]
    pub tokenizer: String,
    /// The folder to write; it must not exist or be empty.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// The parquet column or JSON key that holds the text.
    #[arg(long, default_value = "text")]
    pub text_column: String,
    /// What to do about a file or a line that cannot be read, as `data.on_bad_shard`.
    #[arg(long, default_value = "fail", value_parser = config_value::<OnBadShard>)]
    pub on_bad_shard: OnBadShard,
    /// Threads that tokenize; as many as in training if absent.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub threads: Option<usize>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `data tokenizer`.
#[derive(Clone, Debug, Args)]
pub struct DataTokenizerArgs {
    /// Files, globs, folders or builtin:synthetic.
    #[arg(long, value_name = "SRC", required = true, num_args = 1..)]
    pub data: Vec<String>,
    /// Ids of the tokenizer: 256 bytes, merges, and the end mark.
    #[arg(long, value_name = "N")]
    pub vocab_size: usize,
    /// The tokenizer.json to write; it must not exist.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Learn from the first so many megabytes of text.
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub sample_mb: u64,
    /// The parquet column or JSON key that holds the text.
    #[arg(long, default_value = "text")]
    pub text_column: String,
}

/// A value that is spelled as in the configuration.
fn config_value<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(text.into()).map_err(|error| error.to_string())
}
