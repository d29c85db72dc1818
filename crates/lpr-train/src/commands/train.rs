//! `lpr-train --config x.toml`

use std::fmt::Write as _;
use std::sync::Arc;

use burn::tensor::Device;
use lpr_data::{DataLoader, DataPosition, Split, Tokenizer};
use lpr_model::{CausalLm, RouterConfig};

use super::{config, dry_run, report};
use crate::checkpoint;
use crate::cli::TrainArgs;
use crate::config::{RunConfig, Sink};
use crate::cost::RunCost;
use crate::environment::Environment;
use crate::error::{Outcome, TrainError};
use crate::hub;
use crate::liveness::Watch;
use crate::memory::readable;
use crate::optimizer::Optimizer;
use crate::process;
use crate::report::{
    Bars, Console, Csv, ExpertTokensFile, JsonLines, Level, Reporter, Reporters, TensorBoard,
    TextLog, TraceFiles, Verbosity, print_result,
};
use crate::resume::{self, Notes, Origin};
use crate::routing::file;
use crate::routing::trace::MAX_TRACES;
use crate::run_dir::{REPORT_FILE, RunDir};
use crate::saver::Saver;
use crate::session::{self, EvalPoint, RunState};
use crate::signals::{SaveRequest, StopRequest};
use crate::trainer::Trainer;

/// Runs the command.
///
/// # Errors
/// Whatever stopped the run; its newest checkpoint is then intact.
pub fn run(args: &TrainArgs, verbosity: Verbosity) -> Result<Outcome, TrainError> {
    let mut config = config::load(&args.config.config, &args.overrides())?;
    let branch = |step| resume::branch(&mut config, step);
    let parent = args.decay_from.map(branch).transpose()?;
    if args.dry_run {
        return dry_run::run(args, config, parent.as_ref(), verbosity);
    }
    let stop = StopRequest::on_signals().map_err(TrainError::Signals)?;
    let save = SaveRequest::on_signal().map_err(TrainError::Signals)?;
    let device = session::open_device(&config)?;
    session::check_memory(&config)?;
    let bars = Bars::stderr(verbosity);
    config.data.hub = hub::open(&stop, verbosity, &bars);
    let mut notes = Notes::new();
    // A run that goes on stays on the commits it stood on.
    let earlier = resume::earlier_config(args, &config, parent.as_ref());
    hub::pin(&mut config, earlier.as_ref(), &mut notes)?;
    let tokenizer = session::open_tokenizer(&config)?;
    let run_dir = resume::open_run_dir(args, &config, &mut notes)?;
    let origin = Origin::find(
        args,
        &config,
        &run_dir.checkpoints(),
        parent.as_ref(),
        &mut notes,
    )?;
    let mut loader = match &origin {
        Some(origin) if origin.state.step > 0 => {
            origin.resume_data(&config, &tokenizer, args.allow_data_change)?
        }
        _ => open_data(&config, &tokenizer)?,
    };
    loader.interrupt_by(stop.flag());
    notes.extend(space_warning(&run_dir, &config));
    notes.extend(trace_note(args, &config, &run_dir));

    let last_step = origin.as_ref().map(|origin| origin.checkpoint.step());
    let (model, optimizer, state) = open_model(&config, origin, &loader, &device)?;
    run_dir.write_config(&config.to_toml())?;
    let environment = Environment::on(&device);
    if let Some(gpu) = &environment.gpu {
        notes.push((Level::Info, format!("computing on {gpu}")));
    }
    run_dir.write_environment(&environment)?;
    let first_step = last_step.unwrap_or(0);
    let console = Console::stderr(verbosity, &bars, first_step, config.total_steps());
    let console = console.with_experts(args.watch);
    let mut reporter = reporters(&run_dir, console, last_step, &config.log.sinks)?;
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
        saver: Saver::new(run_dir.checkpoints(), last_step),
        reporter: &mut reporter,
        stop,
        save: save.or_file_in(run_dir.path()),
        watch: Watch::new(&config),
        trace_routing: args.trace_routing.map(|positions| positions as usize),
    };
    let outcome = trainer.run(model);
    let state = trainer.state;
    // A run that failed is the one to look at most closely.
    if let Err(error) = report::write_for(run_dir.path()) {
        reporter.message(Level::Warning, &format!("no {REPORT_FILE}: {error}"));
    }
    drop(reporter);
    let outcome = outcome?;
    if outcome == Outcome::Done && verbosity != Verbosity::Quiet {
        // Everything is in the run folder; that the terminal has gone does not make it a failure.
        let _ = print_result(&summary(args, &config, &run_dir, &state));
    }
    Ok(outcome)
}

/// Says so if the disk seems too small for the checkpoints that are to be kept, and one more.
fn space_warning(run_dir: &RunDir, config: &RunConfig) -> Option<(Level, String)> {
    let retention = session::retention(config);
    let landmarks = config.total_steps().checked_div(retention.keep_every);
    let kept = (retention.keep_last + retention.keep_best) as u64 + landmarks.unwrap_or(0);
    let there = checkpoint::step_folders(&run_dir.checkpoints()).map_or(0, |found| found.len());
    let to_come = (kept + 1).saturating_sub(there as u64).max(1);
    let needed = to_come.saturating_mul(session::checkpoint_bytes(config));
    let free = process::free_space(run_dir.path())?;
    (free < needed).then(|| {
        let text = format!(
            "{} has {} MB of free space, {to_come} more checkpoints need about {} MB; lower \
             checkpoint.keep_last, keep_every or keep_best, or choose another train.run_dir",
            run_dir.path().display(),
            free >> 20,
            needed >> 20,
        );
        (Level::Warning, text)
    })
}

/// Says how large the routing traces may become.
fn trace_note(args: &TrainArgs, config: &RunConfig, run_dir: &RunDir) -> Option<(Level, String)> {
    let positions = args.trace_routing?;
    let steps = config.total_steps();
    let traces = |every| {
        let times = steps.checked_div(every).unwrap_or(0);
        times.min(MAX_TRACES) + 1
    };
    let text = format!(
        "routing traces of {positions} positions, at most {} files of about {} kB, go to {}",
        traces(config.log.every_steps) + traces(config.eval.every_steps) + 1,
        file::size(positions, &config.model.decoder()).div_ceil(1000),
        run_dir.path().join(file::FOLDER).display()
    );
    Some((Level::Info, text))
}

/// Weights, optimizer and state of the checkpoint, or those that a run starts with.
fn open_model(
    config: &RunConfig,
    origin: Option<Origin>,
    loader: &DataLoader,
    device: &Device,
) -> Result<(CausalLm, Optimizer, RunState), TrainError> {
    let fingerprint = loader.fingerprint().clone();
    let autodiff = device.clone().autodiff();
    let Some(origin) = origin else {
        let model = session::initial_model(config, &autodiff);
        let state = RunState::new(config, fingerprint);
        return Ok((model, Optimizer::new(&config.optimizer), state));
    };
    let state = RunState {
        data: loader.position().clone(),
        data_fingerprint: fingerprint,
        ..origin.state
    };
    let model = session::load_model(&origin.checkpoint, config, &autodiff)?;
    let optimizer = session::load_optimizer(&origin.checkpoint, config, &model, &state)?;
    Ok((model, optimizer, state))
}

/// The training data from its start.
///
/// # Errors
/// If it cannot be opened.
pub fn open_data(config: &RunConfig, tokenizer: &Arc<Tokenizer>) -> Result<DataLoader, TrainError> {
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

fn reporters(
    run_dir: &RunDir,
    console: Console,
    last_step: Option<u64>,
    sinks: &[Sink],
) -> Result<Reporters, TrainError> {
    let to_io = |error| TrainError::io(run_dir.path(), error);
    let (metrics, log) = (run_dir.open_metrics(last_step)?, run_dir.open_log()?);
    let mut list: Vec<Box<dyn Reporter>> = vec![
        Box::new(console),
        Box::new(JsonLines::new(run_dir.metrics(), metrics)),
        Box::new(TextLog::new(log)),
        Box::new(ExpertTokensFile::new(run_dir.path())),
        Box::new(TraceFiles::new(run_dir.path(), last_step).map_err(to_io)?),
    ];
    for sink in sinks {
        list.push(match sink {
            Sink::Tensorboard => {
                Box::new(TensorBoard::new(run_dir.path(), last_step).map_err(to_io)?)
            }
            Sink::Csv => Box::new(Csv::new(run_dir.path(), last_step).map_err(to_io)?),
        });
    }
    Ok(Reporters::new(list))
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
    if let Some(peak) = process::peak_memory() {
        let estimated = RunCost::new(config, None).memory.total;
        let _ = writeln!(
            text,
            "memory: {} at its peak, {} estimated",
            readable(peak),
            readable(estimated)
        );
    }
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
