//! `lpr-train routing`

use std::path::Path;
use std::sync::Arc;

use lpr_data::{Split, Tokenizer};
use lpr_model::DecoderConfig;

use super::print_findings;
use crate::checkpoint::{self, Checkpoint};
use crate::cli::RoutingArgs;
use crate::config::RunConfig;
use crate::error::{Outcome, TrainError};
use crate::eval::evaluate;
use crate::hub;
use crate::report::{Bars, Verbosity};
use crate::routing::summary::Summary;
use crate::routing::trace::{Recording, Trace};
use crate::routing::{file, read};
use crate::run_dir::{CHECKPOINTS_FOLDER, CONFIG_FILE};
use crate::session;
use crate::signals::StopRequest;

mod words;

/// Runs the command.
///
/// # Errors
/// A folder that is not one of a run or has nothing to look at, a trace or a checkpoint that is not
/// valid, data that cannot be read.
pub fn run(args: &RoutingArgs, verbosity: Verbosity) -> Result<Outcome, TrainError> {
    let stop = StopRequest::on_signals().map_err(TrainError::Signals)?;
    let mut config = run_config(&args.run)?;
    config.data.hub = hub::open(&stop, verbosity, &Bars::stderr(verbosity));
    let tokenizer = session::open_tokenizer(&config)?;
    let num_experts = config.model.decoder().moe.num_experts;
    let mut summary = Summary::new(&args.ranks, &args.capacity_factor, num_experts);
    let outcome = match args.replay {
        Some(positions) => {
            let replay = Replay {
                config: &config,
                tokenizer: &tokenizer,
                positions,
                stop: &stop,
            };
            replay.run(&args.run.join(CHECKPOINTS_FOLDER), &mut summary)?
        }
        None => read_traces(&args.run, &config.model.decoder(), &mut summary)?,
    };
    if outcome == Outcome::Done {
        let findings = summary.finish(&tokenizer);
        print_findings(args.json, &findings, || words::describe(&findings))?;
    }
    Ok(outcome)
}

/// The configuration of a run.
fn run_config(run: &Path) -> Result<RunConfig, TrainError> {
    let path = run.join(CONFIG_FILE);
    if !path.is_file() {
        return Err(TrainError::Usage(format!(
            "{} is not the folder of a run: it has no {CONFIG_FILE}",
            run.display()
        )));
    }
    Ok(RunConfig::load(&[path], &[])?)
}

/// Reads the traces that the training left.
fn read_traces(
    run: &Path,
    model: &DecoderConfig,
    summary: &mut Summary,
) -> Result<Outcome, TrainError> {
    let folder = run.join(file::FOLDER);
    let found = file::list(run).map_err(|error| TrainError::io(&folder, error))?;
    if found.is_empty() {
        return Err(TrainError::Usage(format!(
            "{} holds no routing traces; train with --trace-routing N, or make them from the \
             checkpoints with --replay N",
            run.display()
        )));
    }
    for (step, split, path) in found {
        let trace = read::read(&path)?;
        check_origin(&trace, step, split, model)
            .map_err(|reason| TrainError::Trace { path, reason })?;
        summary.add(trace);
    }
    Ok(Outcome::Done)
}

/// Refuses a trace that is not what its name says, or is of another model.
fn check_origin(
    trace: &Trace,
    step: u64,
    split: Split,
    model: &DecoderConfig,
) -> Result<(), String> {
    let Trace {
        step: found_step,
        split: found_split,
        recording,
    } = trace;
    if (*found_step, *found_split) != (step, split) {
        return Err(format!("it is of step {found_step}, {found_split}"));
    }
    let shape = [
        recording.layers.len(),
        recording.num_experts,
        recording.top_k,
    ];
    let wanted = [
        model.num_moe_layers(),
        model.moe.num_experts,
        model.moe.top_k,
    ];
    if shape != wanted {
        return Err(format!(
            "it has [layers, experts, top_k] = {shape:?}, the run {wanted:?}"
        ));
    }
    let largest = recording.token_ids.iter().max();
    match largest.filter(|&&id| id as usize >= model.vocab_size) {
        Some(id) => Err(format!(
            "it has the token {id}, the run a vocabulary of {}",
            model.vocab_size
        )),
        None => Ok(()),
    }
}

/// Makes traces from checkpoints: all of them on the same tokens.
struct Replay<'a> {
    config: &'a RunConfig,
    tokenizer: &'a Arc<Tokenizer>,
    positions: u64,
    stop: &'a StopRequest,
}

impl Replay<'_> {
    fn run(&self, checkpoints: &Path, summary: &mut Summary) -> Result<Outcome, TrainError> {
        if self.config.data.validation.is_empty() {
            let text = "the run has no validation data to route";
            return Err(TrainError::Usage(text.to_owned()));
        }
        let mut folders = checkpoint::step_folders(checkpoints)?;
        folders.reverse();
        if folders.is_empty() {
            let text = format!("{} holds no checkpoints", checkpoints.display());
            return Err(TrainError::Usage(text));
        }
        let device = session::open_device(self.config)?;
        let limit = self
            .config
            .eval
            .max_tokens
            .unwrap_or(u64::MAX)
            .min(self.positions);
        for (_, path) in folders {
            let checkpoint = Checkpoint::open(&path)?;
            let model = session::load_model(&checkpoint, self.config, &device)?;
            let recording = Recording::new(self.positions as usize, &self.config.model.decoder());
            let loader = session::open_validation(self.config, self.tokenizer)?;
            let stopped = || self.stop.is_set();
            let limit = Some(limit);
            let found = evaluate(&model, loader, limit, &device, Some(recording), &stopped)?;
            let Some(recording) = found.and_then(|found| found.recording) else {
                return Ok(Outcome::StoppedEarly);
            };
            summary.add(Trace {
                step: checkpoint.step(),
                split: Split::Validation,
                recording,
            });
        }
        Ok(Outcome::Done)
    }
}
