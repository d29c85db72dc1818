//! `lpr-train`: parse, run, print the error once, exit code.

use std::process::ExitCode;

use clap::Parser;
use lpr_train::cli::Cli;
use lpr_train::report::print_line;

fn main() -> ExitCode {
    lpr_kernels::keep_freed_memory();
    match lpr_train::commands::run(Cli::parse()) {
        Ok(outcome) => outcome.exit_code().into(),
        Err(error) => {
            let code = error.exit_code();
            print_line(&format!("error: {:#}", anyhow::Error::new(error)));
            code.into()
        }
    }
}
