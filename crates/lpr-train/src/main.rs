//! `lpr-train`: parse, run, print the error once, exit code.

use std::process::ExitCode;

use clap::Parser;
use lpr_train::cli::Cli;
use lpr_train::report::print_line;
use lpr_train::{commands, fault};

fn main() -> ExitCode {
    lpr_kernels::keep_freed_memory();
    let done = fault::arm_from_environment().and_then(|()| commands::run(Cli::parse()));
    match done {
        Ok(outcome) => outcome.exit_code().into(),
        Err(error) => {
            let code = error.exit_code();
            print_line(&format!("error: {}", error.chain()));
            code.into()
        }
    }
}
