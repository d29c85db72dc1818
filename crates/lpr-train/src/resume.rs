//! From where a run starts: anew, from a checkpoint of its own, or as a branch of another run.

use std::path::Path;
use std::sync::Arc;

use lpr_data::{DataError, DataLoader, Tokenizer};

use crate::checkpoint::{self, Checkpoint, CheckpointError};
use crate::cli::{Resume, TrainArgs};
use crate::config::{RunConfig, resume_differences};
use crate::error::TrainError;
use crate::report::Level;
use crate::routing::file;
use crate::run_dir::{Earlier, RunDir};
use crate::schedule::Schedule;
use crate::session::{self, RunState};

/// What the user is told once there is a reporter.
pub type Notes = Vec<(Level, String)>;

/// What a run continues from.
pub struct Origin {
    /// The checkpoint, all hashes compared.
    pub checkpoint: Checkpoint,
    /// The state in it.
    pub state: RunState,
}

impl Origin {
    /// The checkpoint that the command line asks for, below `checkpoints` unless it names one.
    /// `parent` is that of another run to branch off from. `None` starts at the first step.
    ///
    /// # Errors
    /// A checkpoint that may not be used, or one of another run.
    pub fn find(
        args: &TrainArgs,
        config: &RunConfig,
        checkpoints: &Path,
        parent: Option<&Checkpoint>,
        notes: &mut Notes,
    ) -> Result<Option<Self>, TrainError> {
        let checkpoint = match args.resume() {
            Resume::No => None,
            Resume::From(path) => Some(Checkpoint::open(&path)?),
            Resume::Latest => {
                let found = checkpoint::find_latest(checkpoints)?;
                let warnings = found.warnings.into_iter();
                notes.extend(warnings.map(|text| (Level::Warning, text)));
                found.checkpoint
            }
        };
        let Some(checkpoint) = checkpoint.or_else(|| parent.cloned()) else {
            if args.resume() != Resume::No {
                let text = "no checkpoint to continue from; starting at the first step";
                notes.push((Level::Info, text.to_owned()));
            }
            return Ok(None);
        };
        let text = format!("continuing from {}", checkpoint.path().display());
        notes.push((Level::Info, text));
        compare_configs(&checkpoint, config, notes)?;
        let state = checkpoint.state()?;
        session::check_state(&checkpoint, &state, config)?;
        Ok(Some(Self { checkpoint, state }))
    }

    /// The training data where the checkpoint left it.
    ///
    /// # Errors
    /// Data that cannot be opened, or changed and may not.
    pub fn resume_data(
        &self,
        config: &RunConfig,
        tokenizer: &Arc<Tokenizer>,
        allow_change: bool,
    ) -> Result<DataLoader, TrainError> {
        let rows = config.train.micro_batch_size;
        let saved = (&self.state.data, &self.state.data_fingerprint);
        let tokenizer = Arc::clone(tokenizer);
        DataLoader::resume(&config.data, rows, tokenizer, saved, allow_change).map_err(|error| {
            match error {
                DataError::Changed { differences } => TrainError::OtherData {
                    checkpoint: self.checkpoint.path().to_path_buf(),
                    differences,
                },
                error => error.into(),
            }
        })
    }
}

/// Opens the run folder as the command line says and clears what crashes left in it.
///
/// # Errors
/// A folder that may not be used.
pub fn open_run_dir(
    args: &TrainArgs,
    config: &RunConfig,
    notes: &mut Notes,
) -> Result<RunDir, TrainError> {
    let earlier = match args.resume() {
        Resume::No if args.overwrite => Earlier::Remove,
        Resume::No => Earlier::Refuse,
        Resume::Latest | Resume::From(_) => Earlier::Keep,
    };
    let run_dir = RunDir::open(config.run_dir(), earlier)?;
    let warnings = run_dir.warnings().iter().cloned();
    notes.extend(warnings.map(|text| (Level::Warning, text)));
    let traces = run_dir.path().join(file::FOLDER);
    for folder in [run_dir.path(), &run_dir.checkpoints(), &traces] {
        let cleaned = checkpoint::clean_leftovers(folder)?;
        for path in cleaned.removed {
            let text = format!("removed {}, left from a crash", path.display());
            notes.push((Level::Info, text));
        }
        let warnings = cleaned.warnings.into_iter();
        notes.extend(warnings.map(|text| (Level::Warning, text)));
    }
    Ok(run_dir)
}

/// The configuration of the run that is to go on, as far as it can be read; whether it may is judged
/// later.
pub fn earlier_config(
    args: &TrainArgs,
    config: &RunConfig,
    parent: Option<&Checkpoint>,
) -> Option<RunConfig> {
    let path = match args.resume() {
        Resume::From(path) => path.join(session::CONFIG_FILE),
        Resume::Latest => config.run_dir().join(crate::run_dir::CONFIG_FILE),
        Resume::No => parent?.path().join(session::CONFIG_FILE),
    };
    RunConfig::load(&[path], &[]).ok()
}

/// Turns the configuration of a run into that of a branch which decays from `step` on, in a folder
/// of its own, and returns the checkpoint where it leaves the run. The run itself is only read.
///
/// The decay takes as many steps as it would have taken in the run.
///
/// # Errors
/// A schedule without decay, a step in the warm-up, or no valid checkpoint of that step.
pub fn branch(config: &mut RunConfig, step: u64) -> Result<Checkpoint, TrainError> {
    let schedule = Schedule::of(config);
    let refuse = |why: String| Err(TrainError::Usage(format!("--decay-from {step}: {why}")));
    if schedule.decay_steps() == 0 {
        let text = "the schedule has no decay; lower schedule.stable_ratio";
        return refuse(text.to_owned());
    }
    if step < schedule.warmup_steps() {
        let warmup = schedule.warmup_steps();
        return refuse(format!("the warm-up ends only after step {warmup}"));
    }
    let checkpoints = config.run_dir().join(crate::run_dir::CHECKPOINTS_FOLDER);
    let path = checkpoints.join(checkpoint::folder_name(step));
    if !path.exists() {
        let steps = checkpoint::step_folders(&checkpoints)?;
        let steps: Vec<String> = steps.iter().map(|(step, _)| step.to_string()).collect();
        let reason = format!(
            "there is no checkpoint of that step; there are: {}",
            steps.join(", ")
        );
        return Err(CheckpointError::Invalid { path, reason }.into());
    }
    let mut run_dir = config.run_dir().as_os_str().to_owned();
    run_dir.push(format!("-decay-{step}"));
    config.train.run_dir = Some(run_dir.into());
    config.train.total_tokens = None;
    config.train.total_steps = Some(step + schedule.decay_steps());
    config.schedule.decay_start = Some(step);
    Ok(Checkpoint::open(&path)?)
}

/// Refuses to continue another run; notes what may change.
fn compare_configs(
    checkpoint: &Checkpoint,
    config: &RunConfig,
    notes: &mut Notes,
) -> Result<(), TrainError> {
    let saved = session::checkpoint_config(checkpoint)?;
    let mut differences = resume_differences(&saved, config);
    if checkpoint.step() == 0 {
        differences.allow_other_runs();
    }
    for difference in differences.noted {
        notes.push((
            Level::Info,
            format!("changed since the checkpoint: {difference}"),
        ));
    }
    if differences.refused.is_empty() {
        return Ok(());
    }
    Err(TrainError::OtherRun {
        checkpoint: checkpoint.path().to_path_buf(),
        differences: differences.refused,
    })
}
