//! `lpr-train export`

use std::path::Path;

use lpr_model::hugging_face::to_hugging_face;
use lpr_model::parameters::{TensorMap, parameter_values};

use crate::checkpoint::Checkpoint;
use crate::cli::ExportArgs;
use crate::config::RunConfig;
use crate::error::{Outcome, TrainError};
use crate::hugging_face::{card, config, shards, tokenizer};
use crate::new_folder;
use crate::report::print_result;
use crate::session::{self, RunState};

/// Runs the command.
///
/// # Errors
/// A folder that exists, a checkpoint or tokenizer that cannot be used, a file that cannot be written.
pub fn run(args: &ExportArgs) -> Result<Outcome, TrainError> {
    new_folder::check(&args.out)?;
    let checkpoint = Checkpoint::open(&args.checkpoint)?;
    let run = session::checkpoint_config(&checkpoint)?;
    let state: RunState = checkpoint.state()?;
    let opened = session::open_tokenizer(&run)?;
    let json = config::to_json(&run, opened.eos_id()).ok_or_else(|| {
        let family = run.model.name();
        TrainError::Usage(format!(
            "the family {family} has no form in Hugging Face folders"
        ))
    })?;
    let tensors = tensors(&checkpoint, &run)?;
    let parameters = tensors.values().map(|tensor| tensor.values.len()).sum();
    new_folder::create(&args.out, |folder| {
        let to_io = |error| TrainError::io(folder, error);
        let write = |name: &str, text: String| std::fs::write(folder.join(name), text);
        write(config::CONFIG_FILE, format!("{json:#}\n")).map_err(to_io)?;
        write(card::CARD_FILE, card::text(&run, &state, parameters)).map_err(to_io)?;
        tokenizer::write(folder, &opened).map_err(to_io)?;
        shards::write(folder, &tensors, args.max_shard_size).map_err(to_io)?;
        Ok(folder.to_path_buf())
    })?;
    print_result(&summary(&args.out, &run)).map_err(TrainError::Output)?;
    Ok(Outcome::Done)
}

/// All parameters under Hugging Face's names.
fn tensors(checkpoint: &Checkpoint, config: &RunConfig) -> Result<TensorMap, TrainError> {
    let device = session::open_device(config)?;
    let model = session::load_model(checkpoint, config, &device)?;
    let ours = parameter_values(&model);
    drop(model);
    Ok(to_hugging_face(&ours, config.model.naming()))
}

fn summary(out: &Path, config: &RunConfig) -> String {
    let opens = config::opens_in_transformers(&config.model, &config.router);
    let by = if opens {
        "transformers and lpr-train open it"
    } else {
        "lpr-train opens it, transformers does not: it has no such router"
    };
    format!("wrote {}; {by}", out.display())
}
