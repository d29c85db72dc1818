//! `lpr-train import`

use std::fmt::Write as _;
use std::path::Path;

use burn::tensor::Device;
use lpr_data::DataFingerprint;
use lpr_model::hugging_face::from_hugging_face;
use lpr_model::parameters::{parameter_shapes, with_parameter_values};
use lpr_model::{CausalLm, RouterConfig};
use serde_json::{Value as Json, json};

use crate::balance::LoadMetrics;
use crate::cli::ImportArgs;
use crate::config::RunConfig;
use crate::error::{Outcome, TrainError};
use crate::hub;
use crate::hugging_face::{FolderError, config, folder, tokenizer};
use crate::new_folder;
use crate::optimizer::Optimizer;
use crate::report::{Bars, Verbosity, print_result};
use crate::router_swap::{LayerSwap, swap_routers};
use crate::session::{self, RunState};
use crate::signals::StopRequest;
use crate::snapshot::Snapshot;

/// Tokens that prototypes are fitted to unless the command line says otherwise.
const SAMPLE_TOKENS: u64 = 65_536;
/// What the sections of a run that no folder knows start as; a configuration file replaces it.
const PLACEHOLDER_SOURCE: &str = "builtin:synthetic";
const PLACEHOLDER_STEPS: u64 = 1_000;

/// Runs the command.
///
/// # Errors
/// A folder that exists, one that cannot be imported, a configuration with problems, or data that
/// cannot be read.
pub fn run(args: &ImportArgs) -> Result<Outcome, TrainError> {
    let stop = StopRequest::on_signals().map_err(TrainError::Signals)?;
    new_folder::check(&args.out)?;
    let Source { base, own } = read_config(&args.from)?;
    let mut overrides = args.config.overrides.clone();
    overrides.extend(args.router.iter().map(|kind| format!("router.kind={kind}")));
    let name = args.out.display().to_string();
    let config = RunConfig::load_over(&name, &base, &args.config.config, &overrides)?;
    let device = session::open_device(&config)?;
    // With --router the weights are those of the folder's own router.
    let router = args.router.as_ref().map_or(&config.router, |_| &own.router);
    let model = read_model(&args.from, &config, router, &device)?;
    let mut text = format!("imported {} to {name}\n", args.from.display());
    let model = if args.router.is_none() {
        model
    } else {
        if matches!(own.router, RouterConfig::Lpr(_)) {
            let text = format!("{} has an lpr router already", args.from.display());
            return Err(TrainError::Usage(text));
        }
        let Some((model, layers)) = swapped(args, &config, model, &device, &stop)? else {
            return Ok(Outcome::StoppedEarly);
        };
        text += &table(own.router.name(), &layers);
        model
    };
    new_folder::create(&args.out, |temporary| {
        let optimizer = Optimizer::new(&config.optimizer);
        let state = RunState::new(&config, DataFingerprint::default());
        Snapshot::take(&config, &model, &optimizer, &state).write(temporary)?;
        Ok(temporary.join(crate::checkpoint::folder_name(0)))
    })?;
    let _ = write!(
        text,
        "next, with [data] and [train] in my.toml:\n  lpr-train --config {name}/{} --config my.toml \
         --resume={name}\n  lpr-train eval --checkpoint {name} --data SRC",
        session::CONFIG_FILE
    );
    print_result(&text).map_err(TrainError::Output)?;
    Ok(Outcome::Done)
}

/// What a folder says about its model.
struct Source {
    /// As a configuration file.
    base: String,
    /// The same, checked.
    own: RunConfig,
}

fn read_config(from: &Path) -> Result<Source, TrainError> {
    if !from.is_dir() {
        return Err(refused(from, vec!["it is not a folder".to_owned()]));
    }
    let mut problems = Vec::new();
    let sections = match folder::read_json(from, config::CONFIG_FILE) {
        Ok(theirs) => config::from_json(&theirs, &mut problems),
        Err(problem) => {
            problems.push(problem);
            None
        }
    };
    let checked = sections.and_then(|(model, router)| {
        let base = base_config(from, model, router)
            .map_err(|error| problems.push(format!("`{}`: {error}", config::CONFIG_FILE)))
            .ok()?;
        match RunConfig::parse(config::CONFIG_FILE, &base, &[]) {
            Ok(own) => Some(Source { base, own }),
            Err(errors) => {
                let found = errors.problems().iter();
                problems.extend(
                    found.map(|p| format!("`{}`: {} {}", config::CONFIG_FILE, p.key, p.message)),
                );
                None
            }
        }
    });
    match checked {
        Some(source) if problems.is_empty() => Ok(source),
        // The tensors cannot be checked without a model, their files can.
        _ => {
            folder::read_tensors(from, &mut problems);
            Err(refused(from, problems))
        }
    }
}

fn base_config(from: &Path, model: Json, router: Json) -> Result<String, toml::ser::Error> {
    let mut data = json!({ "train": [PLACEHOLDER_SOURCE] });
    let file = folder::file(from, tokenizer::TOKENIZER_FILE).ok();
    let real = file.and_then(|file| file.canonicalize().ok());
    if let Some(path) = real.as_deref().and_then(Path::to_str) {
        data["tokenizer"] = path.into();
    }
    let train = json!({ "total_steps": PLACEHOLDER_STEPS });
    let sections = json!({ "model": model, "router": router, "data": data, "train": train });
    toml::to_string(&sections)
}

fn refused(from: &Path, problems: Vec<String>) -> TrainError {
    let path = from.to_path_buf();
    FolderError { path, problems }.into()
}

/// The model of a folder with the `router` that its tensors are for.
fn read_model(
    from: &Path,
    config: &RunConfig,
    router: &RouterConfig,
    device: &Device,
) -> Result<CausalLm, TrainError> {
    let mut problems = Vec::new();
    let theirs = folder::read_tensors(from, &mut problems);
    let seed = config.train.seed;
    let model = CausalLm::new(&config.model.decoder(), router, seed, device);
    // A folder of which nothing could be read misses everything, which need not be said.
    if theirs.is_empty() && !problems.is_empty() {
        return Err(refused(from, problems));
    }
    let shapes = parameter_shapes(&model);
    match from_hugging_face(theirs, &shapes, config.model.naming()) {
        Ok(ours) if problems.is_empty() => {
            with_parameter_values(model, ours).map_err(|mismatch| refused(from, mismatch.0))
        }
        Ok(_) => Err(refused(from, problems)),
        Err(mismatch) => {
            problems.extend(mismatch.0);
            Err(refused(from, problems))
        }
    }
}

/// The model with LPR routers fitted to a sample of data.
fn swapped(
    args: &ImportArgs,
    config: &RunConfig,
    model: CausalLm,
    device: &Device,
    stop: &StopRequest,
) -> Result<Option<(CausalLm, Vec<LayerSwap>)>, TrainError> {
    let mut sample = config.clone();
    if !args.data.is_empty() {
        sample.data.validation.clone_from(&args.data);
    } else if sample.data.validation.is_empty() {
        sample.data.validation = vec![PLACEHOLDER_SOURCE.to_owned()];
    }
    let verbosity = Verbosity::default();
    sample.data.hub = hub::open(stop, verbosity, &Bars::stderr(verbosity));
    let tokenizer = session::open_tokenizer(&sample)?;
    let loader = session::open_validation(&sample, &tokenizer)?;
    let num_tokens = args.sample_tokens.unwrap_or(SAMPLE_TOKENS);
    swap_routers(model, config, loader, num_tokens, device, &|| stop.is_set())
}

fn table(old: &str, layers: &[LayerSwap]) -> String {
    let tokens = layers.first().map_or(0, |layer| layer.num_tokens);
    let mut text = format!(
        "prototypes fitted to {tokens} tokens; Gini of the expert load on them (exact counts)\n\
         layer  {old:>14}  lpr, unfitted  lpr, fitted  squared distance to the nearest prototype\n"
    );
    for (index, layer) in layers.iter().enumerate() {
        let gini = |counts: &[u64]| LoadMetrics::from_counts(counts).gini;
        let _ = writeln!(
            text,
            "{index:>5}  {:>14.4}  {:>13.4}  {:>11.4}  {:.3e} -> {:.3e}",
            gini(&layer.old),
            gini(&layer.unfitted),
            gini(&layer.fitted),
            layer.fit.inertia_before,
            layer.fit.inertia_after
        );
    }
    text
}
