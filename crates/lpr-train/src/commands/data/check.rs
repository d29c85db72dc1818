//! `lpr-train data check`

use std::fmt::Write as _;

use lpr_data::{FileReport, Hub, Tokenizer, check_files};

use crate::cli::DataCheckArgs;
use crate::commands::print_findings;
use crate::error::{Outcome, TrainError};

/// Runs the command.
///
/// # Errors
/// A source that yields no file, or, after all files were read and reported, files that cannot be
/// used.
pub fn run(args: &DataCheckArgs, hub: &Hub) -> Result<Outcome, TrainError> {
    let reports = check(args, hub)?;
    print_findings(args.json, &reports, || table(&reports))?;
    verdict(&reports)
}

/// Fails if any file cannot be used.
fn verdict(reports: &[FileReport]) -> Result<Outcome, TrainError> {
    match reports
        .iter()
        .filter(|report| report.error.is_some())
        .count()
    {
        0 => Ok(Outcome::Done),
        bad => Err(TrainError::BadFiles {
            bad,
            total: reports.len(),
        }),
    }
}

fn check(args: &DataCheckArgs, hub: &Hub) -> Result<Vec<FileReport>, TrainError> {
    let tokenizer = args.tokenizer.as_deref();
    let tokenizer = tokenizer
        .map(|spec| Tokenizer::fetch(spec, hub))
        .transpose()?;
    Ok(check_files(
        &args.sources,
        &args.text_column,
        tokenizer.as_ref(),
        hub,
    )?)
}

fn table(reports: &[FileReport]) -> String {
    let mut text = String::new();
    for report in reports {
        let _ = write!(
            text,
            "{}: {} documents, {} skipped, {} bytes",
            report.path, report.documents, report.skipped, report.bytes
        );
        let _ = report
            .tokens
            .map_or(Ok(()), |tokens| write!(text, ", {tokens} tokens"));
        let _ = report
            .error
            .as_ref()
            .map_or(Ok(()), |error| write!(text, "\n  bad: {error}"));
        text.push('\n');
    }
    text.pop();
    text
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn args(folder: &Path) -> DataCheckArgs {
        DataCheckArgs {
            sources: vec![format!("{}/*.jsonl", folder.display())],
            text_column: "text".to_owned(),
            tokenizer: Some("bytes".to_owned()),
            json: false,
        }
    }

    #[test]
    fn good_files_are_counted_and_a_bad_one_is_named_with_exit_code_3() {
        let folder = tempfile::tempdir().expect("temporary folder");
        fs::write(
            folder.path().join("a.jsonl"),
            "{\"text\": \"one\"}\n{\"text\": \"\"}\n",
        )
        .expect("written");
        let args = args(folder.path());
        let reports = check(&args, &Hub::default()).expect("read");
        let text = table(&reports);
        assert!(
            text.ends_with("a.jsonl: 1 documents, 1 skipped, 3 bytes, 3 tokens"),
            "{text}"
        );
        assert_eq!(verdict(&reports).expect("good"), Outcome::Done);
        fs::write(
            folder.path().join("b.jsonl"),
            "{\"text\": \"two\"}\nnot json\n",
        )
        .expect("written");
        let reports = check(&args, &Hub::default()).expect("read");
        let text = table(&reports);
        assert!(
            text.contains("b.jsonl") && text.contains("\n  bad: "),
            "{text}"
        );
        let list = serde_json::json!(reports);
        assert_eq!(list[0]["documents"], 1);
        assert!(list[0]["error"].is_null() && list[1]["error"].is_string());
        let error = verdict(&reports).expect_err("one is bad");
        assert_eq!(
            (error.exit_code(), error.to_string().as_str()),
            (3, "1 of 2 data files cannot be used")
        );
    }

    #[test]
    fn sources_without_a_file_are_a_data_error() {
        let folder = tempfile::tempdir().expect("temporary folder");
        assert_eq!(
            check(&args(folder.path()), &Hub::default())
                .expect_err("nothing there")
                .exit_code(),
            3
        );
    }
}
