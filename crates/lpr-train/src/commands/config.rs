//! `lpr-train config init|check|schema|reference`

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::cli::{ConfigArgs, ConfigCommand};
use crate::config::{self, RunConfig};
use crate::error::{Outcome, TrainError};
use crate::report::{print_line, print_result};

/// Runs the command.
///
/// # Errors
/// A configuration with problems, or a file that cannot be written.
pub fn run(command: &ConfigCommand) -> Result<Outcome, TrainError> {
    match command {
        ConfigCommand::Init { path: None } => print_result(config::template().trim_end()),
        ConfigCommand::Init { path: Some(path) } => {
            init(path)?;
            print_line(&format!(
                "wrote {0}; train with `lpr-train --config {0}`",
                path.display()
            ));
            return Ok(Outcome::Done);
        }
        ConfigCommand::Check { files, config } => {
            print_result(check(files, config)?.to_toml().trim_end())
        }
        ConfigCommand::Schema => print_result(&format!("{:#}", config::json_schema())),
        ConfigCommand::Reference => print_result(config::reference().trim_end()),
    }
    .map_err(TrainError::Output)?;
    Ok(Outcome::Done)
}

/// Writes the template to a new file.
fn init(path: &Path) -> Result<(), TrainError> {
    let file = File::options().write(true).create_new(true).open(path);
    let mut file = file.map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => TrainError::Usage(format!(
            "{} exists; remove it or name another file",
            path.display()
        )),
        _ => TrainError::io(path, error),
    })?;
    file.write_all(config::template().as_bytes())
        .map_err(|error| TrainError::io(path, error))
}

fn check(files: &[PathBuf], args: &ConfigArgs) -> Result<RunConfig, TrainError> {
    load(&[files, args.config.as_slice()].concat(), &args.overrides)
}

/// Loads a configuration of at least one file.
///
/// # Errors
/// No file, or a configuration with problems.
pub fn load(files: &[PathBuf], overrides: &[String]) -> Result<RunConfig, TrainError> {
    if files.is_empty() {
        let hint =
            "name a configuration file with --config FILE; `lpr-train config init FILE` writes one";
        return Err(TrainError::Usage(hint.to_owned()));
    }
    Ok(RunConfig::load(files, overrides)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_init_writes_passes_check_and_is_not_overwritten() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("first.toml");
        init(&path).expect("written");
        let config = check(std::slice::from_ref(&path), &ConfigArgs::default()).expect("valid");
        assert_eq!(config.run_dir(), Path::new("runs/first"));
        let error = init(&path).expect_err("refused");
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("exists"), "{error}");
    }

    #[test]
    fn no_file_at_all_is_a_usage_error_that_says_what_to_type() {
        let error = load(&[], &[]).expect_err("refused");
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("--config FILE"), "{error}");
    }

    #[test]
    fn the_schema_is_a_json_schema_with_every_section() {
        let schema = config::json_schema();
        assert!(
            schema["$schema"]
                .as_str()
                .is_some_and(|text| text.contains("json-schema.org"))
        );
        for section in [
            "model",
            "router",
            "data",
            "optimizer",
            "schedule",
            "train",
            "checkpoint",
            "eval",
            "log",
        ] {
            assert!(schema["properties"][section].is_object(), "{section}");
        }
    }
}
