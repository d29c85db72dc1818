//! `lpr-train checkpoint ..`

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::print_findings;
use crate::checkpoint::{self, Checkpoint, CheckpointError, MANIFEST_FILE, Retention};
use crate::cli::{CheckpointCommand, CheckpointDirArgs, CheckpointPruneArgs};
use crate::config::RunConfig;
use crate::error::{Outcome, TrainError};
use crate::report::{print_line, print_result};
use crate::run_dir::{CHECKPOINTS_FOLDER, CONFIG_FILE, Earlier, RunDir};
use crate::session;

/// Runs the command.
///
/// # Errors
/// A folder without checkpoints, and for `verify` a checkpoint that cannot be used.
pub fn run(command: &CheckpointCommand) -> Result<Outcome, TrainError> {
    match command {
        CheckpointCommand::List(args) => list(args, false),
        CheckpointCommand::Verify(args) => list(args, true),
        CheckpointCommand::Prune(args) => prune(args),
    }
}

/// A line of the table.
#[derive(Serialize)]
struct Row {
    step: Option<u64>,
    path: PathBuf,
    bytes: Option<u64>,
    /// Validation loss in nats, if the weights were evaluated.
    loss: Option<f64>,
    valid: bool,
    /// Why it cannot be used.
    problem: Option<String>,
}

impl Row {
    /// Looks at names and sizes; at every hash, too, if `hashes`.
    fn new(path: PathBuf, hashes: bool) -> Self {
        let opened = if hashes {
            Checkpoint::open(&path)
        } else {
            Checkpoint::open_unhashed(&path)
        };
        match opened {
            Ok(found) => Self {
                step: Some(found.step()),
                bytes: Some(found.manifest().files.values().map(|file| file.bytes).sum()),
                loss: session::validation_loss(&found),
                path,
                valid: true,
                problem: None,
            },
            Err(error) => Self {
                step: None,
                path,
                bytes: None,
                loss: None,
                valid: false,
                problem: Some(TrainError::from(error).chain()),
            },
        }
    }
}

fn list(args: &CheckpointDirArgs, hashes: bool) -> Result<Outcome, TrainError> {
    let folders = folders(&args.dir)?;
    let rows: Vec<Row> = folders
        .into_iter()
        .map(|path| Row::new(path, hashes))
        .collect();
    print_findings(args.json, &rows, || table(&rows, hashes))?;
    let bad = rows.iter().filter(|row| !row.valid).count();
    if hashes && bad > 0 {
        let reason = format!("{bad} of {} checkpoints cannot be used", rows.len());
        let path = args.dir.clone();
        return Err(CheckpointError::Invalid { path, reason }.into());
    }
    Ok(Outcome::Done)
}

fn table(rows: &[Row], hashes: bool) -> String {
    let mut text = format!("{:>10} {:>12} {:>9}  state", "step", "bytes", "loss");
    for row in rows {
        let show = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        let state = match &row.problem {
            Some(problem) => problem,
            None if hashes => "valid, all hashes compared",
            None => "complete",
        };
        let _ = write!(
            text,
            "\n{:>10} {:>12} {:>9}  {state}",
            show(row.step.map(|step| step.to_string())),
            show(row.bytes.map(|bytes| bytes.to_string())),
            show(row.loss.map(|loss| format!("{loss:.4}"))),
        );
    }
    text
}

/// The folders of checkpoints that `dir` means: a run, its folder of checkpoints, or one of them.
fn folders(dir: &Path) -> Result<Vec<PathBuf>, TrainError> {
    if dir.join(MANIFEST_FILE).exists() {
        return Ok(vec![dir.to_path_buf()]);
    }
    let inside = dir.join(CHECKPOINTS_FOLDER);
    let folder = if inside.is_dir() {
        inside
    } else {
        dir.to_path_buf()
    };
    let found = checkpoint::step_folders(&folder)?;
    if found.is_empty() {
        return Err(CheckpointError::Invalid {
            path: dir.to_path_buf(),
            reason: "there are no checkpoints; name the folder of a run or of a checkpoint"
                .to_owned(),
        }
        .into());
    }
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

fn prune(args: &CheckpointPruneArgs) -> Result<Outcome, TrainError> {
    let config = args.dir.join(CONFIG_FILE);
    if !config.is_file() {
        let dir = args.dir.display();
        let text = format!("{dir} is not the folder of a run: it holds no {CONFIG_FILE}");
        return Err(TrainError::Usage(text));
    }
    let retention = match args.keep {
        Some(keep_last) => Retention {
            keep_last,
            keep_every: 0,
            keep_best: 0,
        },
        None => session::retention(&RunConfig::load(&[config], &[])?),
    };
    let checkpoints = args.dir.join(CHECKPOINTS_FOLDER);
    let loss = &session::validation_loss;
    let (verb, paths, warnings) = if args.dry_run {
        let surplus = checkpoint::surplus(&checkpoints, retention, loss)?;
        ("would remove", surplus, Vec::new())
    } else {
        // Nobody else may save or prune meanwhile.
        let run_dir = RunDir::open(&args.dir, Earlier::Keep)?;
        let pruned = checkpoint::prune(&run_dir.checkpoints(), retention, loss)?;
        ("removed", pruned.removed, pruned.warnings)
    };
    let lines = paths
        .iter()
        .map(|path| format!("{verb} {}", path.display()));
    let mut lines: Vec<String> = lines.collect();
    if lines.is_empty() {
        lines.push("nothing to remove".to_owned());
    }
    print_result(&lines.join("\n")).map_err(TrainError::Output)?;
    for warning in &warnings {
        print_line(&format!("warning: {warning}"));
    }
    if warnings.is_empty() {
        return Ok(Outcome::Done);
    }
    let reason = format!("{} checkpoints could not be removed", warnings.len());
    let path = checkpoints;
    Err(CheckpointError::Invalid { path, reason }.into())
}
