//! `lpr-train report`, `lpr-train compare`, and the page at the end of a run.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::atomic_file;
use crate::cli::{CompareArgs, ReportArgs};
use crate::error::{Outcome, TrainError};
use crate::history::History;
use crate::page::{self, html::Table};
use crate::report::{print_line, print_result};
use crate::run_dir::REPORT_FILE;

/// Runs `report`.
///
/// # Errors
/// A folder that is not one of a run, a page that cannot be written.
pub fn report(args: &ReportArgs) -> Result<Outcome, TrainError> {
    let out = match (&args.out, args.runs.as_slice()) {
        (Some(out), _) => out.clone(),
        (None, [run]) => run.join(REPORT_FILE),
        (None, _) => {
            let text = "several runs need the name of the page: --out FILE";
            return Err(TrainError::Usage(text.to_owned()));
        }
    };
    let runs = read(&args.runs)?;
    write_page(&out, &page::report(&runs))?;
    print_result(&out.display().to_string()).map_err(TrainError::Output)?;
    Ok(Outcome::Done)
}

/// Runs `compare`.
///
/// # Errors
/// As [`report`].
pub fn compare(args: &CompareArgs) -> Result<Outcome, TrainError> {
    let runs = read(&args.runs)?;
    if let Some(out) = &args.out {
        write_page(out, &page::comparison(&runs))?;
        print_line(&format!("wrote {}", out.display()));
    }
    let differences = page::config_differences(&runs);
    let mut text = plain(&page::figures(&runs));
    if differences.rows.is_empty() {
        text.push_str("\nthe configurations are the same");
    } else {
        let _ = write!(text, "\nconfigurations\n{}", plain(&differences).trim_end());
    }
    print_result(&text).map_err(TrainError::Output)?;
    Ok(Outcome::Done)
}

/// Writes `report.html` into the folder of a run.
///
/// # Errors
/// Metrics that cannot be read, a page that cannot be written.
pub fn write_for(run: &Path) -> Result<PathBuf, TrainError> {
    let out = run.join(REPORT_FILE);
    write_page(&out, &page::report(&[History::read(run)?]))?;
    Ok(out)
}

/// The runs, with names that tell them apart.
fn read(folders: &[PathBuf]) -> Result<Vec<History>, TrainError> {
    let runs: Result<Vec<History>, TrainError> =
        folders.iter().map(|folder| History::read(folder)).collect();
    let mut runs = runs?;
    let names: BTreeSet<String> = runs.iter().map(|run| run.name.clone()).collect();
    if names.len() < runs.len() {
        for (run, folder) in runs.iter_mut().zip(folders) {
            run.name = folder.display().to_string();
        }
    }
    for run in &runs {
        for problem in &run.problems {
            print_line(&format!("warning: {}: {problem}", run.name));
        }
    }
    Ok(runs)
}

fn write_page(path: &Path, text: &str) -> Result<(), TrainError> {
    atomic_file::replace(path, |out| out.write_all(text.as_bytes()))
        .map_err(|error| TrainError::io(path, error))
}

/// A table in columns.
fn plain(table: &Table) -> String {
    let rows = || std::iter::once(&table.head).chain(&table.rows);
    let width = |column: usize| rows().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..table.head.len()).filter_map(width).collect();
    let mut text = String::new();
    for row in rows() {
        let mut line = format!("{:<1$}", row[0], widths[0]);
        for (cell, width) in row.iter().zip(&widths).skip(1) {
            let _ = write!(line, "  {cell:>width$}");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_of_a_table_are_aligned() {
        let mut table = Table::new(&["figure", "a"]);
        table.rows.push(vec!["loss".to_owned(), "5.25".to_owned()]);
        assert_eq!(plain(&table), "figure     a\nloss    5.25\n");
    }
}
