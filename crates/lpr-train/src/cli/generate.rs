//! Arguments of `generate`.

use std::path::PathBuf;

use clap::Args;

use super::at_least_one;

/// Arguments of `generate`.
#[derive(Clone, Debug, Args)]
pub struct GenerateArgs {
    /// Folder of the checkpoint.
    #[arg(long, value_name = "DIR")]
    pub checkpoint: PathBuf,
    /// Texts to continue, each by itself; `-` is the standard input. An empty text asks for the
    /// beginning of a document.
    #[arg(value_name = "PROMPT", required = true)]
    pub prompts: Vec<String>,
    /// The most tokens to add.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = at_least_one)]
    pub max_new_tokens: usize,
    /// Logits are divided by it: below 1 likely tokens become likelier; 0 takes the likeliest.
    #[arg(long, value_name = "T", default_value_t = 1.0, value_parser = temperature)]
    pub temperature: f64,
    /// Choose among so many of the likeliest tokens; 0 for all.
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub top_k: usize,
    /// Choose among the likeliest tokens that together have this probability.
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = share)]
    pub top_p: f64,
    /// Another number gives another text; the same one the same text.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Where to compute, if not where the run did: `cpu`, `wgpu`, `wgpu:N`, `cuda` or `cuda:N`.
    #[arg(long, value_name = "DEVICE", env = "LPR_DEVICE")]
    pub device: Option<String>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

fn temperature(text: &str) -> Result<f64, String> {
    let is_one = |value: &f64| value.is_finite() && *value >= 0.0;
    let value = text.parse().ok().filter(is_one);
    value.ok_or_else(|| "must be a number of at least 0".to_owned())
}

fn share(text: &str) -> Result<f64, String> {
    let is_one = |value: &f64| *value > 0.0 && *value <= 1.0;
    let value = text.parse().ok().filter(is_one);
    value.ok_or_else(|| "must be above 0 and at most 1".to_owned())
}
