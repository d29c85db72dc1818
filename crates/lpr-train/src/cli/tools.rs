//! Arguments of the command that says what a run costs, and of those made from the command line
//! itself.

use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;

use super::ConfigArgs;

/// Arguments of `estimate`.
#[derive(Clone, Debug, Args)]
pub struct EstimateArgs {
    /// The configuration; only the model, the router and the sequence length matter.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `completions`.
#[derive(Clone, Copy, Debug, Args)]
pub struct CompletionsArgs {
    /// The shell.
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Arguments of `man`.
#[derive(Clone, Debug, Args)]
pub struct ManArgs {
    /// Write lpr-train.1 and a page for every command into this folder.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}
