//! `lpr-train man`

use std::path::Path;

use clap::{Command, CommandFactory};
use clap_mangen::Man;

use crate::atomic_file;
use crate::cli::{Cli, ManArgs};
use crate::error::{Outcome, TrainError};
use crate::report::{print_line, print_result};

/// Runs the command.
///
/// # Errors
/// If a page cannot be written.
pub fn run(args: &ManArgs) -> Result<Outcome, TrainError> {
    let mut command = Cli::command().disable_help_subcommand(true);
    // Gives the commands below it their full names.
    command.build();
    let Some(folder) = &args.out else {
        let page = render(&Man::new(command));
        let page = String::from_utf8_lossy(&page);
        print_result(page.trim_end()).map_err(TrainError::Output)?;
        return Ok(Outcome::Done);
    };
    std::fs::create_dir_all(folder).map_err(|error| TrainError::io(folder, error))?;
    let count = write_pages(&command, folder)?;
    print_line(&format!("wrote {count} pages to {}", folder.display()));
    Ok(Outcome::Done)
}

/// The page of a command and those of all commands below it; how many they are.
fn write_pages(command: &Command, folder: &Path) -> Result<usize, TrainError> {
    let man = Man::new(command.clone());
    let path = folder.join(man.get_filename());
    atomic_file::replace(&path, |file| file.write_all(&render(&man)))
        .map_err(|error| TrainError::io(&path, error))?;
    command
        .get_subcommands()
        .try_fold(1, |count, below| Ok(count + write_pages(below, folder)?))
}

fn render(man: &Man) -> Vec<u8> {
    let mut page = Vec::new();
    man.render(&mut page)
        .expect("memory takes in whatever is written");
    page
}
