//! Arguments of the commands that show runs.

use std::path::PathBuf;

use clap::Args;

use super::ConfigArgs;
use crate::lab::paper::{Artefact, Scale};
use crate::routing::trace::MAX_POSITIONS;

/// Arguments of `report`.
#[derive(Clone, Debug, Args)]
pub struct ReportArgs {
    /// Folders of runs.
    #[arg(value_name = "RUN", required = true)]
    pub runs: Vec<PathBuf>,
    /// The page to write; `report.html` in the folder of a single run if absent.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// Arguments of `compare`.
#[derive(Clone, Debug, Args)]
pub struct CompareArgs {
    /// Folders of runs, two or more.
    #[arg(value_name = "RUN", required = true, num_args = 2..)]
    pub runs: Vec<PathBuf>,
    /// Also write a page with the curves on top of each other.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// Arguments of `watch`.
#[derive(Clone, Debug, Args)]
pub struct WatchArgs {
    /// The folder of the run.
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
}

/// Arguments of `routing`.
#[derive(Clone, Debug, Args)]
pub struct RoutingArgs {
    /// The folder of the run, trained with `--trace-routing`.
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// Make the traces again from the checkpoints in RUN, on the first N positions of its validation
    /// data, instead of reading those of the training. Any run will do.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MAX_POSITIONS))]
    pub replay: Option<u64>,
    /// Numbers of ranks to spread the experts over.
    #[arg(
        long,
        value_name = "R1,R2",
        value_delimiter = ',',
        default_value = "2,4,8"
    )]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=65_536))]
    pub ranks: Vec<u64>,
    /// An expert takes at most so many times its even share of a forward pass.
    #[arg(
        long,
        value_name = "F1,F2",
        value_delimiter = ',',
        default_value = "1,1.25,1.5,2"
    )]
    #[arg(value_parser = capacity_factor)]
    pub capacity_factor: Vec<f64>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// A factor that leaves some capacity.
fn capacity_factor(text: &str) -> Result<f64, String> {
    let factor: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if factor > 0.0 && factor <= 1e6 {
        Ok(factor)
    } else {
        Err("must be above 0 and at most 1000000".to_owned())
    }
}

/// What all grids have in common.
#[derive(Clone, Debug, Args)]
pub struct GridArgs {
    /// Train every row with so many seeds, and tell mean and interval.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub seeds: u64,
    /// The folder of results; runs are below it and are shared by all tables written to it.
    #[arg(long, value_name = "DIR", default_value = "grids")]
    pub out: PathBuf,
}

/// Arguments of `reproduce`.
#[derive(Clone, Debug, Args)]
pub struct ReproduceArgs {
    /// The table or figure.
    #[arg(value_enum)]
    pub artefact: Artefact,
    /// How large the models are and how long they are trained.
    #[arg(long, value_enum, default_value = "tiny")]
    pub scale: Scale,
    /// Set one key in all runs, for example `data.train`.
    #[arg(short, long = "override", value_name = "SECTION.KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Seeds and folder.
    #[command(flatten)]
    pub grid: GridArgs,
}

/// Arguments of `ablate`.
#[derive(Clone, Debug, Args)]
pub struct AblateArgs {
    /// What all runs share.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// A key and its values; with several, every combination is trained.
    #[arg(long, value_name = "SECTION.KEY=V1,V2", required = true)]
    pub set: Vec<String>,
    /// Seeds and folder.
    #[command(flatten)]
    pub grid: GridArgs,
}
