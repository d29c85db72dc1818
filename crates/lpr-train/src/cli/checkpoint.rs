//! Arguments of the commands about checkpoints.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{ConfigArgs, at_least_one};

/// `checkpoint ..`
#[derive(Debug, Subcommand)]
pub enum CheckpointCommand {
    /// Step, size, validation loss, and whether all files are there in the right size.
    List(CheckpointDirArgs),
    /// Compare every file with its hash; exit code 4 if one is wrong.
    Verify(CheckpointDirArgs),
    /// Remove the checkpoints that the run's configuration does not keep.
    Prune(CheckpointPruneArgs),
}

/// Arguments of `checkpoint list` and `checkpoint verify`.
#[derive(Clone, Debug, Args)]
pub struct CheckpointDirArgs {
    /// The folder of a run, or of a checkpoint.
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Print one JSON object per checkpoint, in a list.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `checkpoint prune`.
#[derive(Clone, Debug, Args)]
pub struct CheckpointPruneArgs {
    /// The folder of a run that is not running.
    #[arg(value_name = "RUN")]
    pub dir: PathBuf,
    /// Keep so many of the newest and no others, whatever the configuration says.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub keep: Option<usize>,
    /// Only say what would be removed.
    #[arg(long)]
    pub dry_run: bool,
}

/// Arguments of `verify-resume`.
#[derive(Clone, Debug, Args)]
pub struct VerifyResumeArgs {
    /// The configuration. Its run folder is not touched; the runs are made beside it.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Kill the run after this step.
    #[arg(long, value_name = "N")]
    pub at: u64,
    /// Length of the runs in steps.
    #[arg(long, value_name = "M")]
    pub steps: u64,
    /// Kill it so many times more, at random moments.
    #[arg(long, value_name = "K", default_value_t = 3)]
    pub random_kills: u64,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}
