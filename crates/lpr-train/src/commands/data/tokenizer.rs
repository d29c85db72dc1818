//! `lpr-train data tokenizer`

use lpr_data::{Hub, train_tokenizer};

use crate::atomic_file;
use crate::cli::DataTokenizerArgs;
use crate::error::{Outcome, TrainError};
use crate::report::print_result;

/// Runs the command.
///
/// # Errors
/// A file in the way, sources that cannot be read or hold no text.
pub fn run(args: &DataTokenizerArgs, hub: &Hub) -> Result<Outcome, TrainError> {
    if args.out.exists() {
        let path = args.out.display();
        let text = format!("{path} exists; name another file with --out");
        return Err(TrainError::Usage(text));
    }
    let sample_bytes = args.sample_mb * 1_000_000;
    let trained = train_tokenizer(
        &args.data,
        &args.text_column,
        args.vocab_size,
        sample_bytes,
        hub,
    )?;
    atomic_file::replace(&args.out, |file| file.write_all(trained.json.as_bytes()))
        .map_err(|error| TrainError::io(&args.out, error))?;
    let text = format!(
        "{}: {} ids, learned from {} documents with {} bytes",
        args.out.display(),
        trained.vocab_size,
        trained.documents,
        trained.bytes
    );
    print_result(&text).map_err(TrainError::Output)?;
    Ok(Outcome::Done)
}
