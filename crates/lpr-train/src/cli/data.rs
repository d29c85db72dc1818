//! The arguments of `data ..`.

use clap::{Args, Subcommand};
use lpr_data::Packing;
use serde::de::DeserializeOwned;

use super::at_least_one;

/// `data ..`
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Read every document; exit code 3 if any file is bad.
    Check(DataCheckArgs),
    /// How fast documents become rows of tokens, and in how much memory.
    Bench(DataBenchArgs),
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
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = at_least_one)]
    pub sequence_length: usize,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// A value that is spelled as in the configuration.
fn config_value<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(text.into()).map_err(|error| error.to_string())
}
