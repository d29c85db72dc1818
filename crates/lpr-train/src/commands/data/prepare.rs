//! `lpr-train data prepare`

use std::path::Path;
use std::sync::Arc;

use lpr_data::{DataConfig, DataLoader, Hub, Prepared, Tokenizer, Warning, prepare};

use crate::cli::DataPrepareArgs;
use crate::commands::print_findings;
use crate::error::{Outcome, TrainError};
use crate::new_folder;
use crate::report::{Verbosity, print_line};
use crate::signals::StopRequest;

/// Runs the command.
///
/// # Errors
/// An output folder that is in use, sources or a tokenizer that cannot be read.
pub fn run(args: &DataPrepareArgs, hub: &Hub, verbosity: Verbosity) -> Result<Outcome, TrainError> {
    let stop = StopRequest::on_signals().map_err(TrainError::Signals)?;
    let Some(found) = prepare_folder(args, hub, verbosity, &stop)? else {
        return Ok(Outcome::StoppedEarly);
    };
    print_findings(args.json, &found, || {
        format!(
            "{}: {} documents, {} tokens in {} files; {} empty documents, {} bad lines and {} bad \
             files left out",
            args.out.display(),
            found.documents,
            found.tokens,
            found.files,
            found.skipped_documents,
            found.bad_lines,
            found.bad_shards
        )
    })?;
    Ok(Outcome::Done)
}

/// Makes the folder; `None`, and no folder, if asked to stop.
fn prepare_folder(
    args: &DataPrepareArgs,
    hub: &Hub,
    verbosity: Verbosity,
    stop: &StopRequest,
) -> Result<Option<Prepared>, TrainError> {
    new_folder::check(&args.out)?;
    let tokenizer = Arc::new(Tokenizer::fetch(&args.tokenizer, hub)?);
    let config = DataConfig {
        text_column: args.text_column.clone(),
        on_bad_shard: args.on_bad_shard,
        hub: hub.clone(),
        ..DataConfig::new(args.sources.clone())
    };
    let threads = args.threads.unwrap_or_else(DataLoader::default_workers);
    let mut files = 0;
    let mut go_on = |found: &Prepared, warnings: &[Warning]| {
        if verbosity != Verbosity::Quiet {
            for warning in warnings {
                print_line(&format!("warning: {warning}"));
            }
            if found.files > files && files > 0 {
                let (documents, tokens) = (found.documents, found.tokens);
                print_line(&format!(
                    "{files} files, {documents} documents, {tokens} tokens"
                ));
            }
        }
        files = found.files;
        !stop.is_set()
    };
    let mut found = None;
    let made = new_folder::create(&args.out, |folder: &Path| {
        found = prepare(&config, &tokenizer, folder, threads, &mut go_on)?;
        if found.is_none() {
            return Err(TrainError::Usage("stopped on request".to_owned()));
        }
        Ok(folder.to_path_buf())
    });
    if stop.is_set() && found.is_none() {
        return Ok(None);
    }
    made.map(|()| found)
}
