//! The commands, one file each.

pub mod bench;
pub mod checkpoint;
pub mod cite;
pub mod completions;
pub mod config;
pub mod data;
pub mod doctor;
mod dry_run;
pub mod estimate;
pub mod eval;
pub mod export;
mod generate;
pub mod import;
pub mod lab;
pub mod man;
pub mod replay;
pub mod report;
pub mod routing;
mod train;
pub mod verify_resume;
pub mod watch;

use crate::cli::{Cli, Command};
use crate::error::{Outcome, TrainError};
use crate::report::print_result;
use serde::Serialize;

/// Runs the command of a parsed command line.
///
/// # Errors
/// Whatever stopped the command.
pub fn run(cli: Cli) -> Result<Outcome, TrainError> {
    let (command, verbosity) = cli.into_parts();
    match command {
        Command::Train(args) => train::run(&args, verbosity),
        Command::Eval(args) => eval::run(&args, verbosity),
        Command::Generate(args) => generate::run(&args, verbosity),
        Command::Bench(args) => bench::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Import(args) => import::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Estimate(args) => estimate::run(&args),
        Command::Checkpoint(command) => checkpoint::run(&command),
        Command::VerifyResume(args) => verify_resume::run(&args),
        Command::Report(args) => report::report(&args),
        Command::Compare(args) => report::compare(&args),
        Command::Reproduce(args) => lab::reproduce(&args),
        Command::Ablate(args) => lab::ablate(&args),
        Command::Routing(args) => routing::run(&args, verbosity),
        Command::Watch(args) => watch::run(&args),
        Command::Data(command) => data::run(&command, verbosity),
        Command::Config(command) => config::run(&command),
        Command::Cite(args) => cite::run(&args),
        Command::Completions(args) => completions::run(args),
        Command::Man(args) => man::run(&args),
    }
}

/// Prints what a command found: as one line of JSON, or in words.
fn print_findings(
    as_json: bool,
    findings: &impl Serialize,
    in_words: impl FnOnce() -> String,
) -> Result<(), TrainError> {
    let text = if as_json {
        serde_json::json!(findings).to_string()
    } else {
        in_words()
    };
    print_result(&text).map_err(TrainError::Output)
}
