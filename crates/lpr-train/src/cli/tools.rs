//! Arguments of the commands that say what a run costs or was, and of those made from the command
//! line itself.

use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;

use super::ConfigArgs;
use crate::lab::paper::{Artefact, Scale};

/// Arguments of `estimate`.
#[derive(Clone, Debug, Args)]
pub struct EstimateArgs {
    /// The configuration of a run; with --table, its overrides apply to every run.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// The runs of a table or figure of the paper instead of one run; of several, those they share once.
    #[arg(long, value_enum, conflicts_with = "config")]
    pub table: Vec<Artefact>,
    /// With --table: how large its models are and how long they are trained.
    #[arg(long, value_enum, default_value = "tiny", requires = "table")]
    pub scale: Scale,
    /// With --table: how many seeds each row is trained with.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "table")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub seeds: u64,
    /// Also tell tokens a day and days, at this speed.
    #[arg(long, value_name = "X", value_parser = positive)]
    pub tokens_per_second: Option<f64>,
    /// Also tell them at the speed of this run, the median of its logged steps.
    #[arg(long, value_name = "RUN", conflicts_with = "tokens_per_second")]
    pub from_run: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// A finite number above zero.
fn positive(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if number.is_finite() && number > 0.0 {
        Ok(number)
    } else {
        Err("must be a number above 0".to_owned())
    }
}

/// Arguments of `cite`.
#[derive(Clone, Debug, Args)]
pub struct CiteArgs {
    /// The folder of the run.
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
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
