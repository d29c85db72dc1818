//! `lpr-train data ..`

mod bench;
mod check;

use crate::cli::DataCommand;
use crate::error::{Outcome, TrainError};

/// Runs one of the commands.
///
/// # Errors
/// Whatever stopped the command.
pub fn run(command: &DataCommand) -> Result<Outcome, TrainError> {
    match command {
        DataCommand::Check(args) => check::run(args),
        DataCommand::Bench(args) => bench::run(args),
    }
}
