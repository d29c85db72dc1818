//! `lpr-train data ..`

mod bench;
mod check;
mod prepare;
mod tokenizer;

use crate::cli::DataCommand;
use crate::error::{Outcome, TrainError};
use crate::hub;
use crate::report::{Bars, Verbosity};
use crate::signals::StopRequest;

/// Runs one of the commands.
///
/// # Errors
/// Whatever stopped the command.
pub fn run(command: &DataCommand, verbosity: Verbosity) -> Result<Outcome, TrainError> {
    // Nothing is to be saved, so a signal may end the process.
    let hub = hub::open(&StopRequest::default(), verbosity, &Bars::stderr(verbosity));
    match command {
        DataCommand::Check(args) => check::run(args, &hub),
        DataCommand::Bench(args) => bench::run(args, &hub),
        DataCommand::Prepare(args) => prepare::run(args, &hub, verbosity),
        DataCommand::Tokenizer(args) => tokenizer::run(args, &hub),
    }
}
