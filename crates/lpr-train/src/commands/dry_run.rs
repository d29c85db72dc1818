//! `lpr-train --dry-run`: what would be trained, at what cost, on which first batch. Writes nothing
//! but files of the hub into their cache.

use std::fmt::Write as _;

use lpr_data::{DataError, DataLoader, TokenBatch, Tokenizer};

use super::estimate::describe;
use super::train::open_data;
use crate::checkpoint::Checkpoint;
use crate::cli::TrainArgs;
use crate::config::RunConfig;
use crate::cost::RunCost;
use crate::error::{Outcome, TrainError};
use crate::hub;
use crate::report::{Bars, Level, Verbosity, print_line, print_result};
use crate::resume::{self, Notes, Origin};
use crate::run_dir::CHECKPOINTS_FOLDER;
use crate::session;
use crate::signals::StopRequest;

/// Rows of the first batch that are shown.
const ROWS: usize = 2;
/// Characters of a document that are shown, and ids of a row.
const CHARACTERS: usize = 300;
const IDS: usize = 12;

/// Prints the resolved configuration, then, as comments of it, the estimate and the first batch of
/// the run, or of what is left of it with `--resume`.
///
/// # Errors
/// Whatever would stop the run up to its first batch.
pub fn run(
    args: &TrainArgs,
    mut config: RunConfig,
    parent: Option<&Checkpoint>,
    verbosity: Verbosity,
) -> Result<Outcome, TrainError> {
    let stop = StopRequest::on_signals().map_err(TrainError::Signals)?;
    let bars = Bars::stderr(verbosity);
    config.data.hub = hub::open(&stop, verbosity, &bars);
    let mut notes = Notes::new();
    let earlier = resume::earlier_config(args, &config, parent);
    let pinned = hub::pin(&mut config, earlier.as_ref(), &mut notes);
    let estimated = describe(&config, &RunCost::new(&config, None));
    print(&format!("{}\n{}", config.to_toml(), commented(&estimated)))?;
    pinned?;
    session::open_device(&config)?;
    session::check_memory(&config)?;
    let tokenizer = session::open_tokenizer(&config)?;
    let checkpoints = config.run_dir().join(CHECKPOINTS_FOLDER);
    let origin = Origin::find(args, &config, &checkpoints, parent, &mut notes)?;
    let mut loader = match &origin {
        Some(origin) if origin.state.step > 0 => {
            origin.resume_data(&config, &tokenizer, args.allow_data_change)?
        }
        _ => open_data(&config, &tokenizer)?,
    };
    loader.interrupt_by(stop.flag());
    let batch = loader.next_batch()?;
    tell(&notes, &mut loader, verbosity);
    let text = match batch {
        Some(batch) => first_batch(&batch, &tokenizer)?,
        None => "the data ends before the first batch".to_owned(),
    };
    print(&commented(&format!(
        "\n{text}\n\nnothing was trained and nothing written"
    )))?;
    Ok(Outcome::Done)
}

fn print(text: &str) -> Result<(), TrainError> {
    print_result(text).map_err(TrainError::Output)
}

fn tell(notes: &Notes, loader: &mut DataLoader, verbosity: Verbosity) {
    let warnings = loader.warnings().into_iter();
    let warnings = warnings.map(|warning| (Level::Warning, warning.to_string()));
    for (level, text) in notes.iter().cloned().chain(warnings) {
        if level == Level::Warning {
            print_line(&format!("warning: {text}"));
        } else if verbosity != Verbosity::Quiet {
            print_line(&text);
        }
    }
}

/// Every line as a comment of TOML.
fn commented(text: &str) -> String {
    let lines = text.lines().map(|line| format!("# {line}"));
    let lines: Vec<String> = lines.map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}

/// The numbers of a batch and the text of its first rows.
fn first_batch(batch: &TokenBatch, tokenizer: &Tokenizer) -> Result<String, TrainError> {
    let positions = batch.input_ids.len();
    let tokens = batch.is_token.iter().filter(|&&is| is).count();
    let mut text = format!(
        "first batch: {} rows of {} positions: {tokens} tokens, {} padding, {} targets",
        batch.num_rows,
        batch.sequence_length,
        positions - tokens,
        batch.num_targets
    );
    for row in 0..batch.num_rows.min(ROWS) {
        describe_row(&mut text, batch, row, tokenizer)?;
    }
    Ok(text)
}

fn describe_row(
    text: &mut String,
    batch: &TokenBatch,
    row: usize,
    tokenizer: &Tokenizer,
) -> Result<(), TrainError> {
    let range = row * batch.sequence_length..(row + 1) * batch.sequence_length;
    let (ids, documents) = (
        &batch.input_ids[range.clone()],
        &batch.document_ids[range.clone()],
    );
    let tokens = batch.is_token[range.clone()]
        .iter()
        .filter(|&&is| is)
        .count();
    let targets = batch.targets[range].iter();
    let targets = targets
        .filter(|&&target| target != lpr_data::IGNORE_INDEX)
        .count();
    let shown: Vec<String> = ids[..tokens.min(IDS)].iter().map(u32::to_string).collect();
    let dots = if tokens > IDS { " .." } else { "" };
    let _ = write!(
        text,
        "\nrow {}: {tokens} tokens, {targets} targets; ids {}{dots}",
        row + 1,
        shown.join(" ")
    );
    // Padding stands at the end of a row.
    let mut start = 0;
    while start < tokens {
        let document = documents[start];
        let length = documents[start..tokens]
            .iter()
            .take_while(|&&id| id == document)
            .count();
        let of_document = &ids[start..start + length];
        let decoded = tokenizer.decode(of_document).map_err(DataError::from)?;
        let _ = write!(
            text,
            "\n  document {}, {length} tokens: {}",
            document + 1,
            quoted(&decoded)
        );
        start += length;
    }
    if tokens < ids.len() {
        let _ = write!(text, "\n  padding, {} positions", ids.len() - tokens);
    }
    Ok(())
}

/// A text on one line and not too long.
fn quoted(text: &str) -> String {
    let count = text.chars().count();
    let shown: String = text.chars().take(CHARACTERS).collect();
    if count > CHARACTERS {
        format!("{shown:?} and {} characters more", count - CHARACTERS)
    } else {
        format!("{shown:?}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lpr_data::{DataPosition, IGNORE_INDEX};

    #[test]
    fn a_row_shows_its_documents_and_its_padding() {
        let ids = [b'a', b'b', b'\n', b'c', 0, 0];
        let batch = TokenBatch {
            num_rows: 1,
            sequence_length: 6,
            input_ids: ids.into_iter().map(u32::from).collect(),
            targets: vec![98, 10, IGNORE_INDEX, 256, IGNORE_INDEX, IGNORE_INDEX],
            is_token: vec![true, true, true, true, false, false],
            document_ids: vec![0, 0, 0, 1, 1, 1],
            position_ids: vec![0, 1, 2, 0, 1, 2],
            num_targets: 3,
            position: DataPosition::default(),
        };
        let tokenizer = Tokenizer::open("bytes").expect("built in");
        let text = first_batch(&batch, &tokenizer).expect("decodes");
        let want = "first batch: 1 rows of 6 positions: 4 tokens, 2 padding, 3 targets\n\
                    row 1: 4 tokens, 3 targets; ids 97 98 10 99\n  \
                    document 1, 3 tokens: \"ab\\n\"\n  \
                    document 2, 1 tokens: \"c\"\n  \
                    padding, 2 positions";
        assert_eq!(text, want);
        assert_eq!(commented("a\n\nb"), "# a\n#\n# b");
    }

    #[test]
    fn a_long_text_is_cut_and_says_so() {
        assert_eq!(quoted("a\"b"), "\"a\\\"b\"");
        let long = quoted(&"x".repeat(CHARACTERS + 5));
        assert!(long.ends_with("x\" and 5 characters more"), "{long}");
    }
}
