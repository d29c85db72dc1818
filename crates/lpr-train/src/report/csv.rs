//! CSV files: a column per tag, the same tags as in `TensorBoard`.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use super::files::WholeWrites;
use super::{Level, Reporter};
use crate::atomic_file::open_lines;
use crate::fault::Point;
use crate::record::{EvalRecord, StepRecord, scalars};

/// Name of the file with a row per logged step.
pub const TRAIN_FILE: &str = "train.csv";
/// Name of the file with a row per evaluation.
pub const EVAL_FILE: &str = "eval.csv";

/// `train.csv` and `eval.csv`.
pub struct Csv {
    run: PathBuf,
    train: Rows,
    eval: Rows,
}

struct Rows {
    out: WholeWrites,
    has_head: bool,
}

impl Csv {
    /// Appends to the files in the folder of a run, after dropping rows after `last_step`; `None`
    /// empties them.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn new(run: &Path, last_step: Option<u64>) -> io::Result<Self> {
        Ok(Self {
            run: run.to_path_buf(),
            train: Rows::open(run, TRAIN_FILE, last_step)?,
            eval: Rows::open(run, EVAL_FILE, last_step)?,
        })
    }
}

impl Rows {
    fn open(run: &Path, name: &'static str, last_step: Option<u64>) -> io::Result<Self> {
        let file = open_lines(&run.join(name), |line| match step_of(line) {
            Some(step) => last_step.is_some_and(|last| step <= last),
            // The head.
            None => last_step.is_some() && line.starts_with(b"step,"),
        })?;
        Ok(Self {
            has_head: file.metadata()?.len() > 0,
            out: WholeWrites::new(name, Point::CsvWrite, file),
        })
    }

    fn write(&mut self, step: u64, wall_time: f64, scalars: &[(String, f64)]) {
        let mut text = String::new();
        if !self.has_head {
            self.has_head = true;
            let tags: Vec<&str> = scalars.iter().map(|(tag, _)| tag.as_str()).collect();
            text = format!("step,wall_time,{}\n", tags.join(","));
        }
        let values: Vec<String> = scalars.iter().map(|(_, value)| value.to_string()).collect();
        let _ = writeln!(text, "{step},{wall_time},{}", values.join(","));
        self.out.write(text.as_bytes());
    }
}

fn step_of(line: &[u8]) -> Option<u64> {
    let digits = line.split(|&byte| byte == b',').next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

impl Reporter for Csv {
    fn step(&mut self, record: &StepRecord) {
        let scalars = scalars::of_step(record);
        self.train.write(record.step, record.wall_time, &scalars);
    }

    fn evaluation(&mut self, record: &EvalRecord) {
        let scalars = scalars::of_evaluation(record);
        self.eval.write(record.step, record.wall_time, &scalars);
    }

    fn message(&mut self, _level: Level, _text: &str) {}

    fn rewind(&mut self, step: u64) {
        match Self::new(&self.run, Some(step)) {
            Ok(later) => *self = later,
            Err(error) => self.train.out.fail(format!(
                "cannot take the rows after step {step} back: {error}"
            )),
        }
    }

    fn take_failure(&mut self) -> Option<String> {
        self.train
            .out
            .take_failure()
            .or(self.eval.out.take_failure())
    }
}
