//! `lpr-train data ..`

mod bench;
mod check;
mod prepare;
mod tokenizer;

use crate::cli::DataCommand;
use crate::error::{Outcome, TrainError};
use crate::report::Verbosity;

/// Runs one of the commands.
///
/// # Errors
/// Whatever stopped the command.
pub fn run(command: &DataCommand, verbosity: Verbosity) -> Result<Outcome, TrainError> {
    match command {
        DataCommand::Check(args) => check::run(args),
        DataCommand::Bench(args) => bench::run(args),
        DataCommand::Prepare(args) => prepare::run(args, verbosity),
        DataCommand::Tokenizer(args) => tokenizer::run(args),
    }
}
