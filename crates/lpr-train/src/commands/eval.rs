//! `lpr-train eval`

use std::fmt::Write as _;
use std::sync::Arc;

use lpr_data::Tokenizer;
use serde::Serialize;

use super::print_findings;
use crate::checkpoint::Checkpoint;
use crate::cli::EvalArgs;
use crate::config::RunConfig;
use crate::error::{Outcome, TrainError};
use crate::eval::{Evaluation, evaluate};
use crate::hub;
use crate::logits_file;
use crate::record::EvalSummary;
use crate::report::{Bars, Verbosity, print_line};
use crate::session;
use crate::signals::StopRequest;

/// What `--json` prints.
#[derive(Serialize)]
struct Findings {
    /// The longest row in tokens.
    max_length: usize,
    rows_per_batch: usize,
    /// Over all data.
    #[serde(flatten)]
    all: EvalSummary,
    /// Each `--data` alone, if there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sets: Vec<EvaluationSet>,
}

/// One `--data`.
#[derive(Serialize)]
struct EvaluationSet {
    data: String,
    #[serde(flatten)]
    summary: EvalSummary,
}

/// Runs the command.
///
/// # Errors
/// A checkpoint that is not valid, data that cannot be read.
pub fn run(args: &EvalArgs, verbosity: Verbosity) -> Result<Outcome, TrainError> {
    let stop = StopRequest::on_signals().map_err(TrainError::Signals)?;
    let checkpoint = Checkpoint::open(&args.checkpoint)?;
    let mut config = session::checkpoint_config(&checkpoint)?;
    if let Some(device) = &args.device {
        config.train.device.clone_from(device);
    }
    config.eval.max_length = args.max_length.or(config.eval.max_length);
    config.eval.rows_per_batch = args.rows_per_batch.or(config.eval.rows_per_batch);
    config.eval.max_tokens = args.max_tokens.or(config.eval.max_tokens);
    config.data.hub = hub::open(&stop, verbosity, &Bars::stderr(verbosity));
    let configs = evaluation_sets(&config, &args.data)?;
    let device = session::open_device(&config)?;
    let tokenizer = session::open_tokenizer(&config)?;
    check_readable(&configs, &tokenizer)?;
    let model = session::load_model(&checkpoint, &config, &device)?;
    if let Some(path) = &args.logits {
        let first = session::open_validation(&configs[0], &tokenizer)?.next_batch()?;
        let first = first.ok_or_else(|| TrainError::Usage("the data holds no batch".to_owned()))?;
        logits_file::write(path, &model, &first, &device)?;
    }
    let mut all = Evaluation::default();
    let mut each = Vec::new();
    for config in &configs {
        let loader = session::open_validation(config, &tokenizer)?;
        let max_tokens = config.eval.max_tokens;
        let found = evaluate(&model, loader, max_tokens, &device, None, &|| stop.is_set())?;
        let Some(found) = found else {
            return Ok(Outcome::StoppedEarly);
        };
        all.add(&found);
        each.push(found.summary()?);
    }
    if verbosity != Verbosity::Quiet {
        all.warnings
            .iter()
            .for_each(|warning| print_line(&format!("warning: {warning}")));
    }
    let sets = args.data.iter().zip(each).map(|(data, summary)| {
        let data = data.clone();
        EvaluationSet { data, summary }
    });
    let findings = Findings {
        max_length: config.eval_max_length(),
        rows_per_batch: config.eval_rows_per_batch(),
        all: all.summary()?,
        sets: if args.data.len() > 1 {
            sets.collect()
        } else {
            Vec::new()
        },
    };
    print_findings(args.json, &findings, || table(&findings))?;
    Ok(Outcome::Done)
}

/// The config of each evaluation: one a `--data`, or the run's own.
fn evaluation_sets(config: &RunConfig, data: &[String]) -> Result<Vec<RunConfig>, TrainError> {
    if !data.is_empty() {
        let set = |source: &String| {
            let mut config = config.clone();
            config.data.validation = vec![source.clone()];
            config
        };
        return Ok(data.iter().map(set).collect());
    }
    if config.data.validation.is_empty() {
        let text = "the run has no validation data; name some with --data";
        return Err(TrainError::Usage(text.to_owned()));
    }
    Ok(vec![config.clone()])
}

/// Finds sources that cannot be opened before the first of them is evaluated.
fn check_readable(configs: &[RunConfig], tokenizer: &Arc<Tokenizer>) -> Result<(), TrainError> {
    for config in configs {
        session::open_validation(config, tokenizer)?;
    }
    Ok(())
}

fn table(found: &Findings) -> String {
    let mut text = String::new();
    for set in &found.sets {
        let _ = writeln!(text, "{}\n  {}", set.data, losses(&set.summary));
    }
    let _ = write!(
        text,
        "{}\n\
         in rows of up to {} tokens, {} to a batch\n\
         expert load (exact counts on these tokens, without padding)\n\
         layer      gini  min-max     cv  dead\n",
        losses(&found.all),
        found.max_length,
        found.rows_per_batch
    );
    let balance = &found.all.balance;
    for layer in &balance.layers {
        let _ = writeln!(
            text,
            "{:>5}  {:>8.4} {:>8.4} {:>6.3} {:>5}",
            layer.layer, layer.gini, layer.min_max_ratio, layer.cv, layer.dead_experts
        );
    }
    let _ = write!(
        text,
        " mean  {:>8.4} {:>8.4}        {:>5}",
        balance.gini, balance.min_max_ratio, balance.dead_experts
    );
    text
}

fn losses(summary: &EvalSummary) -> String {
    format!(
        "loss {:.4}  perplexity {:.2}  tokens {}  (mean of batches, as the paper: {:.4})",
        summary.loss, summary.perplexity, summary.tokens, summary.loss_batch_mean
    )
}
