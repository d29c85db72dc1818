//! The references in `docs/` are what the program says of itself.
//!
//! `LPR_UPDATE_DOCS=1 cargo test --release --workspace --test reference` writes them.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, Command, CommandFactory};
use lpr_train::cli::Cli;
use support::{run_well, text};

/// Compares a file of `docs/` with what it must be, or writes it.
fn check(name: &str, wanted: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let path = path.join(name);
    if std::env::var_os("LPR_UPDATE_DOCS").is_some() {
        std::fs::write(&path, wanted).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    let line = found.lines().zip(wanted.lines()).position(|(a, b)| a != b);
    assert!(
        found == wanted,
        "docs/{name} is not up to date (first difference at line {line:?}); `just reference` writes it"
    );
}

#[test]
fn the_reference_of_the_configuration_is_what_the_program_prints() {
    check(
        "config.md",
        &text(&run_well(&["config", "reference"]).stdout),
    );
}

#[test]
fn the_schema_in_the_documentation_is_what_the_program_prints() {
    let schema = text(&run_well(&["config", "schema"]).stdout);
    check("config.schema.json", &schema);
}

#[test]
fn the_reference_of_the_command_line_is_its_definition() {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let mut text = "# Command line\n\nEvery command and argument, made from their definition; `--help` after a \
                    command says the same, `lpr-train man --out DIR` writes it as pages of the manual, \
                    `lpr-train completions SHELL` as completion scripts.\n"
        .to_owned();
    write_command(&mut text, &command);
    check("cli.md", &text);
}

fn write_command(text: &mut String, command: &Command) {
    let name = command.get_bin_name().unwrap_or(command.get_name());
    let about = command.get_long_about().or(command.get_about()).unwrap();
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:").trim();
    let _ = writeln!(text, "\n## {name}\n\n{about}\n");
    for line in usage.lines() {
        let _ = writeln!(text, "    {}", line.trim());
    }
    // What every command takes is told once, with the program.
    let is_program = !name.contains(' ');
    let shown = |arg: &&Arg| {
        let made_by_clap = ["help", "version"].contains(&arg.get_id().as_str());
        !made_by_clap && (is_program || !arg.is_global_set())
    };
    let arguments: Vec<&Arg> = command.get_arguments().filter(shown).collect();
    if !arguments.is_empty() {
        text.push('\n');
    }
    for arg in arguments {
        write_argument(text, arg);
    }
    if let Some(after) = command.get_after_help() {
        let _ = writeln!(text, "\n{after}");
    }
    for below in command.get_subcommands() {
        write_command(text, below);
    }
}

fn write_argument(text: &mut String, arg: &Arg) {
    let mut name = arg.to_string();
    if let Some(short) = arg.get_short().filter(|_| arg.get_long().is_some()) {
        name = format!("-{short}, {name}");
    }
    let help = arg.get_long_help().or(arg.get_help()).unwrap();
    let help = help.to_string();
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    let _ = write!(text, "- `{name}`: {}.", help.trim_end_matches('.'));
    let takes_value = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
    let values = arg.get_possible_values();
    if takes_value && !values.is_empty() {
        let values: Vec<String> = values
            .iter()
            .map(|v| format!("`{}`", v.get_name()))
            .collect();
        let _ = write!(text, " One of {}.", values.join(", "));
    }
    let defaults: Vec<_> = arg
        .get_default_values()
        .iter()
        .map(|v| v.to_string_lossy())
        .collect();
    if takes_value && !defaults.is_empty() {
        let _ = write!(text, " Default: `{}`.", defaults.join(" "));
    }
    if let Some(variable) = arg.get_env() {
        let _ = write!(text, " Or set `{}`.", variable.display());
    }
    text.push('\n');
}

/// A folder with a page of the manual for every command.
#[test]
fn every_command_has_a_page_of_the_manual() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("man1").display().to_string();
    run_well(&["man", "--out", &out]);
    let page = |name: &str| std::fs::read_to_string(PathBuf::from(&out).join(name)).unwrap();
    let main = page("lpr-train.1");
    assert!(main.starts_with(".ie"), "it is no roff: {main}");
    for words in ["lpr\\-train", "Exit codes", "completions"] {
        assert!(main.contains(words), "{words} in {main}");
    }
    assert!(page("lpr-train-data-prepare.1").contains("\\-\\-tokenizer"));
    let mut command = Cli::command();
    command.build();
    let of_commands = command.get_subcommands().filter(|c| c.get_name() != "help");
    for name in of_commands.map(Command::get_name) {
        assert!(page(&format!("lpr-train-{name}.1")).len() > 200, "{name}");
    }
    assert_eq!(
        text(&run_well(&["man"]).stdout),
        main.trim_end().to_owned() + "\n"
    );
}

#[test]
fn every_shell_gets_a_script_that_knows_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = text(&run_well(&["completions", shell]).stdout);
        for word in Cli::command().get_subcommands().map(Command::get_name) {
            assert!(script.contains(word), "{word} for {shell}");
        }
    }
}

/// The bash script completes what a user types.
#[cfg(unix)]
#[test]
fn bash_completes_commands_and_values() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lpr-train.bash");
    std::fs::write(&path, run_well(&["completions", "bash"]).stdout).unwrap();
    let complete = |words: &[&str]| {
        let last = words.len() - 1;
        let typed: String = words
            .iter()
            .fold(String::new(), |all, word| all + " '" + word + "'");
        let program = format!(
            "source '{}'; COMP_WORDS=({typed}); COMP_CWORD={last}; \
             _lpr__train lpr-train '{}' '{}'; echo \"${{COMPREPLY[@]}}\"",
            path.display(),
            words[last],
            words[last - 1]
        );
        let output = std::process::Command::new("bash")
            .args(["--norc", "-c", &program])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout).trim().to_owned()
    };
    assert_eq!(complete(&["lpr-train", "est"]), "estimate");
    assert_eq!(complete(&["lpr-train", "data", "prep"]), "prepare");
    assert_eq!(
        complete(&["lpr-train", "reproduce", "--scale", "sm"]),
        "small"
    );
}

/// `config init` shows keys that it does not set as comments, each with its default.
#[test]
fn the_defaults_that_config_init_shows_are_the_defaults() {
    let folder = tempfile::tempdir().unwrap();
    let template = text(&run_well(&["config", "init"]).stdout);
    let mut shown = 0;
    let mut uncommented = String::new();
    for line in template.lines() {
        let default = line.strip_prefix("# ").filter(|rest| {
            let pair = rest.split_once(" = ");
            pair.is_some_and(|(key, _)| !key.contains(' '))
        });
        shown += usize::from(default.is_some());
        let _ = writeln!(uncommented, "{}", default.unwrap_or(line));
    }
    assert!(shown > 50, "{shown} of {template}");
    let resolved = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        let path = path.display().to_string();
        let args = ["config", "check", &path, "-o", "train.run_dir=runs/x"];
        text(&run_well(&args).stdout)
    };
    let defaults = resolved("all.toml", &uncommented);
    assert_eq!(resolved("init.toml", &template), defaults);
}
