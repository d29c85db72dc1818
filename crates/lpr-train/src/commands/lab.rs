//! `lpr-train reproduce` and `lpr-train ablate`: train a grid of runs, then tell their results.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use lpr_model::estimate::estimate;

use super::config;
use crate::atomic_file;
use crate::cli::{AblateArgs, GridArgs, ReproduceArgs};
use crate::config::RunConfig;
use crate::error::{Outcome, TrainError};
use crate::history::History;
use crate::lab::grid::{self, Cell, Ended, Train, Trained, train_all};
use crate::lab::paper::{Printed, Row};
use crate::lab::results::{ResultRow, csv, latex, markdown};
use crate::page;
use crate::page::html::number;
use crate::report::{print_line, print_result};
use crate::signals::StopRequest;

/// Between two looks at a run.
const PAUSE: Duration = Duration::from_millis(200);

/// A named configuration.
struct Variant {
    name: String,
    config: RunConfig,
    printed: Option<Printed>,
}

/// What a grid is called.
struct Title<'a> {
    file: &'a str,
    text: String,
    note: &'a str,
}

/// Runs `reproduce`.
///
/// # Errors
/// A configuration with problems, a run that failed, a file that cannot be written.
pub fn reproduce(args: &ReproduceArgs) -> Result<Outcome, TrainError> {
    let table = args.artefact.table(args.scale);
    let configs = grid::variants(&table, args.scale, &args.overrides)?;
    let variant = |((name, config), row): ((&str, RunConfig), &Row)| Variant {
        name: name.to_owned(),
        config,
        printed: Some(row.printed),
    };
    let variants = configs.into_iter().zip(&table.rows).map(variant).collect();
    let title = Title {
        file: table.name,
        text: format!("{}: {}", table.name, table.title),
        note: table.note,
    };
    run(&title, variants, &args.grid)
}

/// Runs `ablate`.
///
/// # Errors
/// As [`reproduce`].
pub fn ablate(args: &AblateArgs) -> Result<Outcome, TrainError> {
    let mut combinations: Vec<Vec<String>> = vec![Vec::new()];
    for set in &args.set {
        let (key, values) = set.split_once('=').ok_or_else(|| {
            TrainError::Usage(format!("--set {set:?} has no `=`; write section.key=v1,v2"))
        })?;
        let with = |value: String| {
            let change = format!("{key}={value}");
            combinations
                .iter()
                .map(move |changes| [&changes[..], std::slice::from_ref(&change)].concat())
                .collect::<Vec<_>>()
        };
        combinations = split_values(values).into_iter().flat_map(with).collect();
    }
    let mut variants = Vec::new();
    for changes in combinations {
        let overrides = [&args.config.overrides[..], &changes].concat();
        variants.push(Variant {
            name: changes.join(" "),
            config: config::load(&args.config.config, &overrides)?,
            printed: None,
        });
    }
    let title = Title {
        file: "ablation",
        text: "Ablation".to_owned(),
        note: "",
    };
    run(&title, variants, &args.grid)
}

/// Values between commas that are not inside quotes or brackets.
fn split_values(text: &str) -> Vec<String> {
    let (mut values, mut depth, mut quoted) = (vec![String::new()], 0, false);
    for character in text.chars() {
        match character {
            '"' => quoted = !quoted,
            '[' | '{' if !quoted => depth += 1,
            ']' | '}' if !quoted => depth -= 1,
            ',' if !quoted && depth == 0 => {
                values.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(value) = values.last_mut() {
            value.push(character);
        }
    }
    values
}

fn run(title: &Title<'_>, variants: Vec<Variant>, args: &GridArgs) -> Result<Outcome, TrainError> {
    let root = args.out.join("runs");
    std::fs::create_dir_all(&root).map_err(|error| TrainError::io(&root, error))?;
    let mut cells = Vec::new();
    // Seeds outside, so that a grid that is stopped early has every row.
    for seed in 0..args.seeds {
        for (row, variant) in variants.iter().enumerate() {
            let mut config = variant.config.clone();
            config.train.seed += seed;
            cells.push(Cell { row, config });
        }
    }
    let total = cells.len();
    let mut processes = Processes {
        stop: StopRequest::on_signals().map_err(TrainError::Signals)?,
    };
    let trained = train_all(&root, cells, &mut processes)?;
    let text = write_results(title, &variants, &trained, &args.out)?;
    print_result(text.trim_end()).map_err(TrainError::Output)?;
    if trained.stopped {
        print_line("stopped on request; the same command goes on");
        return Ok(Outcome::StoppedEarly);
    }
    if trained.failed.is_empty() {
        return Ok(Outcome::Done);
    }
    for &(row, seed, code) in &trained.failed {
        let name = &variants[row].name;
        print_line(&format!(
            "failed with exit code {code}: {name}, seed {seed}"
        ));
    }
    Err(TrainError::FailedRuns {
        failed: trained.failed.len(),
        total,
    })
}

/// Writes all files of results and returns the Markdown.
fn write_results(
    title: &Title<'_>,
    variants: &[Variant],
    trained: &Trained,
    out: &Path,
) -> Result<String, TrainError> {
    let (mut rows, mut pages) = (Vec::new(), Vec::new());
    for (row, variant) in variants.iter().enumerate() {
        let mut runs = Vec::new();
        for ((_, seed), folder) in trained.done.range((row, 0)..=(row, u64::MAX)) {
            let mut history = History::read(folder)?;
            history.name = format!("{}, seed {seed}", variant.name);
            runs.push(history);
        }
        let config = &variant.config;
        let length = config.data.sequence_length;
        let found = estimate(&config.model.decoder(), &config.router, length);
        let name = variant.name.clone();
        rows.push(ResultRow::new(
            name,
            variant.printed,
            &runs,
            found.total_params as u64,
        ));
        pages.extend(runs);
    }
    let note = [title.note, &data_of_all(variants, &pages)].join(" ");
    let text = markdown(&title.text, note.trim(), &rows);
    let mut files = vec![
        (format!("{}.md", title.file), text.clone()),
        (format!("{}.csv", title.file), csv(&rows)),
        (format!("{}.tex", title.file), latex(&rows)),
    ];
    if !pages.is_empty() {
        files.push((format!("{}.html", title.file), page::report(&pages)));
    }
    for (name, content) in files {
        let path = out.join(name);
        atomic_file::replace(&path, |file| file.write_all(content.as_bytes()))
            .map_err(|error| TrainError::io(&path, error))?;
    }
    Ok(text)
}

/// What all runs were trained and evaluated on, in a sentence; empty if they differ in that.
fn data_of_all(variants: &[Variant], runs: &[History]) -> String {
    let of = |variant: &Variant| {
        let data = &variant.config.data;
        let names = |sources: &[String]| {
            let ends: Vec<String> = sources.iter().map(|path| last_two_parts(path)).collect();
            ends.join(", ")
        };
        let tokenizer = last_two_parts(&data.tokenizer);
        (names(&data.train), tokenizer, names(&data.validation))
    };
    let Some(first) = variants.first().map(of) else {
        return String::new();
    };
    let evaluation = runs.first().and_then(|run| run.evaluations.last());
    let (Some(evaluation), true) = (evaluation, variants.iter().all(|v| of(v) == first)) else {
        return String::new();
    };
    let (train, tokenizer, validation) = first;
    let tokens = number(evaluation.value("tokens"));
    format!(
        "Trained on {train} with the tokenizer {tokenizer}; evaluated on {tokens} tokens of \
         {validation}."
    )
}

/// The end of a path: a file or pattern and its folder.
fn last_two_parts(path: &str) -> String {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    parts[parts.len().saturating_sub(2)..].join("/")
}

/// Trains in processes of their own, so that one that dies takes nothing with it.
struct Processes {
    stop: StopRequest,
}

impl Train for Processes {
    fn train(&mut self, config: &RunConfig) -> Result<Ended, TrainError> {
        if self.stop.is_set() {
            return Ok(Ended::Stopped);
        }
        let file: PathBuf = config.run_dir().with_extension("toml");
        let to_io = |error| TrainError::io(&file, error);
        let text = config.to_toml();
        atomic_file::replace(&file, |out| out.write_all(text.as_bytes())).map_err(to_io)?;
        print_line(&format!("training {}", config.run_dir().display()));
        let program = std::env::current_exe().map_err(to_io)?;
        let mut child = Command::new(program)
            .args(["--quiet", "--resume", "--config"])
            .arg(&file)
            .stdin(Stdio::null())
            .spawn()
            .map_err(to_io)?;
        let mut asked = false;
        let status = loop {
            if let Some(status) = child.try_wait().map_err(to_io)? {
                break status;
            }
            if self.stop.is_set() && !asked {
                asked = true;
                crate::process::ask_to_stop(child.id());
            }
            std::thread::sleep(PAUSE);
        };
        Ok(match status.code() {
            Some(0) => Ended::Done,
            Some(75) => Ended::Stopped,
            _ if self.stop.is_set() => Ended::Stopped,
            code => Ended::Failed(code.unwrap_or(1)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_told_by_its_end() {
        assert_eq!(last_two_parts("/a/b/c-*.parquet"), "b/c-*.parquet");
        assert_eq!(last_two_parts("bytes"), "bytes");
    }

    #[test]
    fn values_are_split_at_commas_outside_of_lists_and_quotes() {
        assert_eq!(split_values("4,8"), ["4", "8"]);
        assert_eq!(split_values("[1, 2],[3]"), ["[1, 2]", "[3]"]);
        assert_eq!(split_values("\"a,b\",c"), ["\"a,b\"", "c"]);
    }
}
