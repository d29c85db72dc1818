//! `lpr-train --config x.toml`

use std::fmt::Write as _;
use std::sync::Arc;

use lpr_data::{DataError, DataLoader, DataPosition, Split, Tokenizer};
use lpr_model::RouterConfig;

use super::config;
use crate::checkpoint::{self, Checkpoint};
use crate::cli::{Resume, TrainArgs};
use crate::config::{RunConfig, resume_differences};
use crate::error::{Outcome, TrainError};
use crate::liveness::Watch;
use crate::optimizer::Optimizer;
use crate::report::{
    Console, JsonLines, Level, Reporter, Reporters, TextLog, Verbosity, print_result,
};
use crate::run_dir::RunDir;
use crate::session::{self, EvalPoint, RunState};
use crate::signals::StopRequest;
use crate::trainer::Trainer;

/// Runs the command.
///
/// # Errors
/// Whatever stopped the run; its newest checkpoint is then intact.
pub fn run(args: &TrainArgs, verbosity: Verbosity) -> Result<Outcome, TrainError> {
    let config = config::load(&args.config.config, &args.overrides())?;
    if args.dry_run {
        print_result(config.to_toml().trim_end()).map_err(TrainError::Output)?;
        return Ok(Outcome::Done);
    }
    let stop = StopRequest::on_signals().map_err(TrainError::Signals)?;
    let device = session::open_device(&config)?;
    session::check_memory(&config)?;
    let tokenizer = session::open_tokenizer(&config)?;
    let run_dir = RunDir::open(config.run_dir(), args.resume() != Resume::No)?;
    let mut notes: Vec<(Level, String)> = Vec::new();
    notes.extend(
        run_dir
            .warnings()
            .iter()
            .map(|text| (Level::Warning, text.clone())),
    );
    let checkpoint = find_checkpoint(&run_dir, &args.resume(), &mut notes)?;
    let saved: Option<RunState> = checkpoint.as_ref().map(Checkpoint::state).transpose()?;
    if let Some(checkpoint) = &checkpoint {
        compare_configs(checkpoint, &config, &mut notes)?;
        if let Some(state) = &saved {
            session::check_state(checkpoint, state, &config)?;
        }
    }
    let loader = match (&checkpoint, &saved) {
        (Some(checkpoint), Some(state)) if state.step > 0 => resume_data(
            checkpoint,
            state,
            &config,
            &tokenizer,
            args.allow_data_change,
        )?,
        _ => open_data(&config, &tokenizer)?,
    };
    let fingerprint = loader.fingerprint().clone();
    let state = match saved {
        Some(state) => RunState {
            data: loader.position().clone(),
            data_fingerprint: fingerprint,
            ..state
        },
        None => RunState::new(&config, fingerprint),
    };

    let autodiff = device.clone().autodiff();
    let (model, optimizer) = if let Some(checkpoint) = &checkpoint {
        let model = session::load_model(checkpoint, &config, &autodiff)?;
        let optimizer = session::load_optimizer(checkpoint, &config, &model, &state)?;
        (model, optimizer)
    } else {
        let model = session::initial_model(&config, &autodiff);
        (model, Optimizer::new(&config.optimizer))
    };
    run_dir.write_config(&config.to_toml())?;
    let last_step = checkpoint.as_ref().map(Checkpoint::step);
    let mut reporter = reporters(&run_dir, verbosity, last_step, config.total_steps())?;
    for (level, text) in &notes {
        reporter.message(*level, text);
    }
    let mut trainer = Trainer {
        config: &config,
        device,
        tokenizer,
        loader,
        optimizer,
        state,
        checkpoints: run_dir.checkpoints(),
        reporter: &mut reporter,
        stop,
        watch: Watch::new(&config),
    };
    let outcome = trainer.run(model)?;
    let state = trainer.state;
    drop(reporter);
    if outcome == Outcome::Done && verbosity != Verbosity::Quiet {
        print_result(&summary(args, &config, &run_dir, &state)).map_err(TrainError::Output)?;
    }
    Ok(outcome)
}

/// The checkpoint to continue from; `None` starts at the first step.
fn find_checkpoint(
    run_dir: &RunDir,
    resume: &Resume,
    notes: &mut Vec<(Level, String)>,
) -> Result<Option<Checkpoint>, TrainError> {
    let folder = run_dir.checkpoints();
    for path in checkpoint::clean_leftovers(&folder)? {
        let text = format!(
            "removed {}, left from a save that did not finish",
            path.display()
        );
        notes.push((Level::Info, text));
    }
    let checkpoint = match resume {
        Resume::No => return Ok(None),
        Resume::From(path) => Some(Checkpoint::open(path)?),
        Resume::Latest => {
            let found = checkpoint::find_latest(&folder)?;
            notes.extend(
                found
                    .warnings
                    .into_iter()
                    .map(|text| (Level::Warning, text)),
            );
            found.checkpoint
        }
    };
    notes.push((
        Level::Info,
        match &checkpoint {
            Some(found) => format!("continuing from {}", found.path().display()),
            None => "no checkpoint to continue from; starting at the first step".to_owned(),
        },
    ));
    Ok(checkpoint)
}

/// Refuses to continue another run; notes what may change.
fn compare_configs(
    checkpoint: &Checkpoint,
    config: &RunConfig,
    notes: &mut Vec<(Level, String)>,
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

/// The training data from its start.
fn open_data(config: &RunConfig, tokenizer: &Arc<Tokenizer>) -> Result<DataLoader, TrainError> {
    let rows = config.train.micro_batch_size;
    let start = DataPosition::default();
    let tokenizer = Arc::clone(tokenizer);
    Ok(DataLoader::open(
        &config.data,
        Split::Train,
        rows,
        tokenizer,
        &start,
    )?)
}

/// The training data where the checkpoint left it.
fn resume_data(
    checkpoint: &Checkpoint,
    state: &RunState,
    config: &RunConfig,
    tokenizer: &Arc<Tokenizer>,
    allow_change: bool,
) -> Result<DataLoader, TrainError> {
    let rows = config.train.micro_batch_size;
    let saved = (&state.data, &state.data_fingerprint);
    let tokenizer = Arc::clone(tokenizer);
    DataLoader::resume(&config.data, rows, tokenizer, saved, allow_change).map_err(|error| {
        match error {
            DataError::Changed { differences } => TrainError::OtherData {
                checkpoint: checkpoint.path().to_path_buf(),
                differences,
            },
            error => error.into(),
        }
    })
}

fn reporters(
    run_dir: &RunDir,
    verbosity: Verbosity,
    last_step: Option<u64>,
    total_steps: u64,
) -> Result<Reporters, TrainError> {
    let metrics = run_dir.open_metrics(last_step)?;
    let log = run_dir.open_log()?;
    Ok(Reporters::new(vec![
        Box::new(Console::stderr(
            verbosity,
            last_step.unwrap_or(0),
            total_steps,
        )),
        Box::new(JsonLines::new(run_dir.metrics(), metrics)),
        Box::new(TextLog::new(log)),
    ]))
}

/// What a finished run prints: figures before and after, where things are, what to try next.
fn summary(args: &TrainArgs, config: &RunConfig, run_dir: &RunDir, state: &RunState) -> String {
    let mut text = format!(
        "\ntrained {} steps on {} tokens; everything is in {}\n",
        state.step,
        state.data.tokens,
        run_dir.path().display()
    );
    text.push_str(&data_summary(&state.data));
    if let (Some(first), Some(last)) = (state.first_evaluation, state.last_evaluation) {
        text.push_str(&comparison(config.router.name(), &first, &last));
    }
    text.push_str(&suggestions(args, config, run_dir, state.step));
    text
}

/// What became of the training data, as far as it is not plain.
fn data_summary(data: &DataPosition) -> String {
    let mut text = format!(
        "data: {} documents, {:.2} % of positions padding, {:.2} % of tokens cut",
        data.documents,
        100.0 * data.padding_ratio(),
        100.0 * data.cut_ratio()
    );
    for (count, what) in [
        (data.skipped_documents, "empty or too short"),
        (data.bad_lines, "bad lines skipped"),
        (data.bad_shards, "bad files given up"),
    ] {
        if count > 0 {
            let _ = write!(text, ", {count} {what}");
        }
    }
    if data.sources.len() > 1 {
        let tokens = data.sources.iter().map(|source| source.tokens);
        let tokens: Vec<String> = tokens.map(|tokens| tokens.to_string()).collect();
        let _ = write!(text, "\ntokens of each source: {}", tokens.join(", "));
    }
    text.push('\n');
    text
}

/// What to try next: the same run with each other router, and a closer look at this one.
fn suggestions(args: &TrainArgs, config: &RunConfig, run_dir: &RunDir, step: u64) -> String {
    let mut text = "\nnext:".to_owned();
    let mut files = String::new();
    for file in &args.config.config {
        let _ = write!(files, " --config {}", file.display());
    }
    let run = run_dir.path().display();
    for kind in RouterConfig::NAMES {
        if *kind != config.router.name() {
            let _ = write!(
                text,
                "\n  lpr-train{files} --override router.kind={kind} --override train.run_dir={run}-{kind}"
            );
        }
    }
    let checkpoint = run_dir.checkpoints().join(checkpoint::folder_name(step));
    let _ = write!(
        text,
        "\n  lpr-train eval --checkpoint {}\n  lpr-train config init my.toml",
        checkpoint.display()
    );
    text
}

/// The first and the last evaluation side by side; one column if they are the same.
fn comparison(router: &str, first: &EvalPoint, last: &EvalPoint) -> String {
    let points = if first.step == last.step {
        vec![last]
    } else {
        vec![first, last]
    };
    let mut text = format!("\n{:<24}", format!("validation, {router} router"));
    for point in &points {
        let _ = write!(text, "{:>14}", format!("step {}", point.step));
    }
    let mut row = |name: &str, figure: &dyn Fn(&EvalPoint) -> f64| {
        let _ = write!(text, "\n{name:<24}");
        for point in &points {
            let _ = write!(text, "{:>14.4}", figure(point));
        }
    };
    row("loss, nats per token", &|point| point.loss);
    row("perplexity", &|point| point.loss.exp());
    row("Gini of expert load", &|point| point.gini);
    row("min-max ratio of load", &|point| point.min_max_ratio);
    text.push_str("\nload: exact counts on the validation tokens, no padding, mean over layers\n");
    text
}
