//! `lpr-train cite`: what a paper needs to name a run.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use lpr_model::estimate::estimate;
use serde::Serialize;
use serde_json::Value as Json;

use super::print_findings;
use crate::cli::CiteArgs;
use crate::config::RunConfig;
use crate::error::{Outcome, TrainError};
use crate::history::{History, Point};
use crate::lab::results::{ResultRow, latex_head, latex_row};
use crate::page::html::number;
use crate::report::print_line;
use crate::run_dir::CONFIG_FILE;

/// The paper whose router this program implements.
const BIBTEX: &str = "\
@article{yang2025latent,
  title   = {Latent Prototype Routing: Achieving Near-Perfect Load Balancing in Mixture-of-Experts},
  author  = {Yang, Jiajie},
  journal = {arXiv preprint arXiv:2506.21328},
  year    = {2025}
}";

/// What `--json` prints. Figures that the run did not log are null.
#[derive(Debug, Serialize)]
struct Citation {
    run: String,
    config: PathBuf,
    /// SHA-256 of the resolved configuration, as in the manifests of checkpoints.
    config_hash: String,
    family: &'static str,
    router: &'static str,
    parameters: u64,
    seed: u64,
    train: Vec<String>,
    validation: Vec<String>,
    tokenizer: String,
    data_fingerprint: Option<String>,
    /// Of the program that trained it.
    version: Option<String>,
    revision: Option<String>,
    platform: Option<String>,
    cpu: Option<String>,
    steps: u64,
    steps_configured: u64,
    tokens: f64,
    training_loss: f64,
    validation_loss: f64,
    validation_tokens: f64,
    /// Exact counts of the newest evaluation.
    gini: f64,
    min_max_ratio: f64,
    /// The paper's smoothed figures, of the last logged step.
    gini_ema: f64,
    min_max_ratio_ema: f64,
    bibtex: &'static str,
    latex_head: String,
    latex_row: String,
}

/// Runs the command.
///
/// # Errors
/// A folder that is not one of a run, a configuration that cannot be read.
pub fn run(args: &CiteArgs) -> Result<Outcome, TrainError> {
    let history = History::read(&args.run)?;
    for problem in &history.problems {
        print_line(&format!("warning: {problem}"));
    }
    let citation = cite(&args.run, history)?;
    print_findings(args.json, &citation, || in_words(&citation))?;
    Ok(Outcome::Done)
}

fn cite(folder: &Path, history: History) -> Result<Citation, TrainError> {
    let path = folder.join(CONFIG_FILE);
    let config = RunConfig::load(std::slice::from_ref(&path), &[])?;
    let length = config.data.sequence_length;
    let parameters = estimate(&config.model.decoder(), &config.router, length).total_params;
    let value = |point: Option<&Point>, key| point.map_or(f64::NAN, |point| point.value(key));
    let (step, evaluation) = (history.steps.last(), history.evaluations.last());
    let recorded = |key: &str| {
        let text = history.environment.get(key).and_then(Json::as_str);
        text.map(str::to_owned)
    };
    let saved = history.saved.as_ref();
    let citation = Citation {
        config_hash: config.hash(),
        config: path,
        family: config.model.name(),
        router: config.router.name(),
        parameters,
        seed: config.train.seed,
        train: config.data.train.clone(),
        validation: config.data.validation.clone(),
        tokenizer: config.data.tokenizer.clone(),
        data_fingerprint: saved
            .map(|saved| saved.data_fingerprint.clone())
            .filter(|text| !text.is_empty()),
        version: recorded("version"),
        revision: recorded("revision"),
        platform: recorded("platform"),
        cpu: recorded("cpu"),
        steps: step.map_or(0, |point| point.step),
        steps_configured: config.total_steps(),
        tokens: value(step, "tokens_seen"),
        training_loss: value(step, "loss_ce"),
        validation_loss: value(evaluation, "loss"),
        validation_tokens: value(evaluation, "tokens"),
        gini: value(evaluation, "gini"),
        min_max_ratio: value(evaluation, "min_max_ratio"),
        gini_ema: value(step, "gini_ema"),
        min_max_ratio_ema: value(step, "min_max_ratio_ema"),
        bibtex: BIBTEX,
        run: history.name.clone(),
        latex_head: String::new(),
        latex_row: String::new(),
    };
    let row = ResultRow::new(citation.run.clone(), None, &[history], parameters);
    Ok(Citation {
        latex_head: latex_head(std::slice::from_ref(&row)),
        latex_row: latex_row(&row),
        ..citation
    })
}

fn in_words(found: &Citation) -> String {
    let or_unknown = |text: &Option<String>| text.clone().unwrap_or_else(|| "unknown".to_owned());
    let facts = [
        ("run", found.run.clone()),
        ("config", found.config.display().to_string()),
        ("config SHA-256", found.config_hash.clone()),
        (
            "model",
            format!("{}, {} parameters", found.family, found.parameters),
        ),
        ("router", found.router.to_owned()),
        ("seed", found.seed.to_string()),
        ("training data", found.train.join(", ")),
        ("validation data", found.validation.join(", ")),
        ("tokenizer", found.tokenizer.clone()),
        ("data fingerprint", or_unknown(&found.data_fingerprint)),
        (
            "program",
            format!("lpr-train {}", or_unknown(&found.version)),
        ),
        ("source revision", or_unknown(&found.revision)),
        (
            "machine",
            format!(
                "{}, {}",
                or_unknown(&found.platform),
                or_unknown(&found.cpu)
            ),
        ),
        (
            "steps",
            format!("{} of {}", found.steps, found.steps_configured),
        ),
        ("tokens", number(found.tokens)),
        (
            "training loss",
            format!("{} nats", number(found.training_loss)),
        ),
        (
            "validation loss",
            format!(
                "{} nats on {} tokens",
                number(found.validation_loss),
                number(found.validation_tokens)
            ),
        ),
        ("Gini, exact on validation", number(found.gini)),
        ("min-max ratio, exact", number(found.min_max_ratio)),
        ("Gini, EMA in training", number(found.gini_ema)),
        ("min-max ratio, EMA", number(found.min_max_ratio_ema)),
    ];
    let mut text = String::new();
    for (name, value) in facts {
        let _ = writeln!(text, "{name:<27}{value}");
    }
    let (head, row) = (&found.latex_head, &found.latex_row);
    let _ = write!(text, "\n{}\n\n% {head}\n{row}", found.bibtex);
    text
}
