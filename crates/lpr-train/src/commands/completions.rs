//! `lpr-train completions`

use clap::CommandFactory;
use clap_complete::generate;

use crate::cli::{Cli, CompletionsArgs};
use crate::error::{Outcome, TrainError};
use crate::report::print_result;

/// What `clap_complete` 4.6 calls this program in the states of the bash script below a command, and
/// what it calls it everywhere else (clap-rs/clap#6421).
const BASH_NAMES: [&str; 2] = ["lpr__subcmd__train", "lpr__train"];

/// Runs the command.
///
/// # Errors
/// If the script cannot be printed.
pub fn run(args: CompletionsArgs) -> Result<Outcome, TrainError> {
    let mut command = Cli::command();
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    generate(args.shell, &mut command, name, &mut script);
    let script = String::from_utf8_lossy(&script).replace(BASH_NAMES[0], BASH_NAMES[1]);
    print_result(script.trim_end()).map_err(TrainError::Output)?;
    Ok(Outcome::Done)
}
