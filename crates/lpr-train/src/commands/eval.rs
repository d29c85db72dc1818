//! `lpr-train eval`

use std::fmt::Write as _;

use crate::checkpoint::Checkpoint;
use crate::cli::EvalArgs;
use crate::error::{Outcome, TrainError};
use crate::eval::evaluate;
use crate::logits_file;
use crate::record::{BalanceRecord, EvalSummary};
use crate::report::{Verbosity, print_line, print_result};
use crate::session;
use crate::signals::StopRequest;

/// Runs the command.
///
/// # Errors
/// A checkpoint that is not valid, data that cannot be read.
pub fn run(args: &EvalArgs, verbosity: Verbosity) -> Result<Outcome, TrainError> {
    let stop = StopRequest::on_signals().map_err(TrainError::Signals)?;
    let checkpoint = Checkpoint::open(&args.checkpoint)?;
    let mut config = session::checkpoint_config(&checkpoint)?;
    if !args.data.is_empty() {
        config.data.validation.clone_from(&args.data);
    }
    if let Some(device) = &args.device {
        config.train.device.clone_from(device);
    }
    if config.data.validation.is_empty() {
        let text = "the run has no validation data; name some with --data";
        return Err(TrainError::Usage(text.to_owned()));
    }
    let device = session::open_device(&config)?;
    let tokenizer = session::open_tokenizer(&config)?;
    let loader = session::open_validation(&config, &tokenizer)?;
    let model = session::load_model(&checkpoint, &config, &device)?;
    if let Some(path) = &args.logits {
        let first = session::open_validation(&config, &tokenizer)?.next_batch()?;
        let first = first.ok_or_else(|| TrainError::Usage("the data holds no batch".to_owned()))?;
        logits_file::write(path, &model, &first, &device)?;
    }
    let max_tokens = args.max_tokens.or(config.eval.max_tokens);
    let found = evaluate(&model, loader, max_tokens, &device, &|| stop.is_set())?;
    let Some(found) = found else {
        return Ok(Outcome::StoppedEarly);
    };
    if verbosity != Verbosity::Quiet {
        found
            .warnings
            .iter()
            .for_each(|warning| print_line(&format!("warning: {warning}")));
    }
    let summary = EvalSummary {
        loss: found.loss,
        perplexity: found.perplexity(),
        tokens: found.targets,
        balance: BalanceRecord::new(&found.loads, None)?,
    };
    let text = if args.json {
        format!("{:#}", serde_json::json!(summary))
    } else {
        table(&summary)
    };
    print_result(&text).map_err(TrainError::Output)?;
    Ok(Outcome::Done)
}

fn table(summary: &EvalSummary) -> String {
    let mut text = format!(
        "loss {:.4}  perplexity {:.2}  tokens {}\n\
         expert load (exact counts on these tokens, without padding)\n\
         layer      gini  min-max     cv  dead\n",
        summary.loss, summary.perplexity, summary.tokens
    );
    for layer in &summary.balance.layers {
        let _ = writeln!(
            text,
            "{:>5}  {:>8.4} {:>8.4} {:>6.3} {:>5}",
            layer.layer, layer.gini, layer.min_max_ratio, layer.cv, layer.dead_experts
        );
    }
    let balance = &summary.balance;
    let _ = write!(
        text,
        " mean  {:>8.4} {:>8.4}        {:>5}",
        balance.gini, balance.min_max_ratio, balance.dead_experts
    );
    text
}
