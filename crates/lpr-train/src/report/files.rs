//! The files that records go to.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Level, Reporter, evaluation_summary, step_summary};
use crate::config::hide_tokens;
use crate::expert_tokens::ExpertTokens;
use crate::fault::{self, Point};
use crate::record::{EvalRecord, StepRecord};
use crate::routing::file;
use crate::routing::trace::Trace;
use crate::run_dir::{EXPERT_TOKENS_FILE, LOG_FILE, METRICS_FILE, reopen_metrics};
use crate::{atomic_file, clock};

/// A file that gets whole records or nothing, and remembers its first failure.
pub(super) struct WholeWrites {
    name: &'static str,
    point: Point,
    file: File,
    failed: bool,
    failure: Option<String>,
}

impl WholeWrites {
    /// Appends to `file`, which was opened for appending and is called `name` in messages.
    pub(super) fn new(name: &'static str, point: Point, file: File) -> Self {
        Self {
            name,
            point,
            file,
            failed: false,
            failure: None,
        }
    }

    pub(super) fn write(&mut self, record: &[u8]) {
        let before = self.file.metadata().map(|metadata| metadata.len());
        let written = fault::at(self.point).and_then(|()| self.file.write_all(record));
        let Err(error) = written else {
            return;
        };
        if let Ok(length) = before {
            // Takes back half a record; if that fails as well, resuming drops it.
            let _ = self.file.set_len(length);
        }
        if !self.failed {
            self.failed = true;
            self.failure = Some(format!(
                "cannot write {}: {error}; training goes on without it",
                self.name
            ));
        }
    }

    /// Remembers why something else than writing failed.
    pub(super) fn fail(&mut self, reason: String) {
        self.failure = Some(reason);
    }

    /// Why writing failed, once.
    pub(super) fn take_failure(&mut self) -> Option<String> {
        self.failure.take()
    }
}

/// `metrics.jsonl`: one JSON object per logged step and per evaluation.
pub struct JsonLines {
    path: PathBuf,
    lines: WholeWrites,
}

impl JsonLines {
    /// Appends to `file` at `path`, which was opened for appending.
    pub fn new(path: PathBuf, file: File) -> Self {
        Self {
            path,
            lines: WholeWrites::new(METRICS_FILE, Point::MetricsWrite, file),
        }
    }

    fn write(&mut self, record: &impl Serialize) {
        match serde_json::to_string(record) {
            Ok(line) => self.lines.write(format!("{line}\n").as_bytes()),
            Err(error) => self.lines.failure = Some(format!("a record has no JSON form: {error}")),
        }
    }
}

impl Reporter for JsonLines {
    fn step(&mut self, record: &StepRecord) {
        self.write(record);
    }

    fn evaluation(&mut self, record: &EvalRecord) {
        self.write(record);
    }

    fn message(&mut self, _level: Level, _text: &str) {}

    fn rewind(&mut self, step: u64) {
        match reopen_metrics(&self.path, Some(step)) {
            Ok(file) => self.lines.file = file,
            Err(error) => {
                self.lines.fail(format!(
                    "cannot take the lines after step {step} out of {METRICS_FILE}: {error}"
                ));
            }
        }
    }

    fn take_failure(&mut self) -> Option<String> {
        self.lines.take_failure()
    }
}

/// `expert_tokens.json`: what the experts took in the newest evaluation.
pub struct ExpertTokensFile {
    path: PathBuf,
    failure: Option<String>,
}

impl ExpertTokensFile {
    /// Replaces the file in the folder of a run.
    pub fn new(run: &Path) -> Self {
        Self {
            path: run.join(EXPERT_TOKENS_FILE),
            failure: None,
        }
    }
}

impl Reporter for ExpertTokensFile {
    fn step(&mut self, _record: &StepRecord) {}

    fn evaluation(&mut self, _record: &EvalRecord) {}

    fn expert_tokens(&mut self, found: &ExpertTokens) {
        let write = |out: &mut dyn Write| Ok(serde_json::to_writer(out, found)?);
        if let Err(error) = atomic_file::replace(&self.path, write) {
            self.failure = Some(format!("cannot write {EXPERT_TOKENS_FILE}: {error}"));
        }
    }

    fn message(&mut self, _level: Level, _text: &str) {}

    fn take_failure(&mut self) -> Option<String> {
        self.failure.take()
    }
}

/// The folder `routing`: a file for each trace.
pub struct TraceFiles {
    run: PathBuf,
    failed: bool,
    failure: Option<String>,
}

impl TraceFiles {
    /// Adds to the folder in that of a run, after removing the files of steps after `last_step`, or
    /// all of them.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn new(run: &Path, last_step: Option<u64>) -> io::Result<Self> {
        file::remove_after(run, last_step)?;
        Ok(Self {
            run: run.to_path_buf(),
            failed: false,
            failure: None,
        })
    }
}

impl Reporter for TraceFiles {
    fn step(&mut self, _record: &StepRecord) {}

    fn evaluation(&mut self, _record: &EvalRecord) {}

    fn routing(&mut self, trace: &Trace) {
        let Err(error) = file::write(&self.run, trace) else {
            return;
        };
        if !self.failed {
            self.failed = true;
            self.failure = Some(format!(
                "cannot write the routing trace of step {}: {error}; training goes on without it",
                trace.step
            ));
        }
    }

    fn message(&mut self, _level: Level, _text: &str) {}

    fn rewind(&mut self, step: u64) {
        if let Err(error) = file::remove_after(&self.run, Some(step)) {
            self.failure = Some(format!(
                "cannot remove the routing traces after step {step}: {error}"
            ));
        }
    }

    fn take_failure(&mut self) -> Option<String> {
        self.failure.take()
    }
}

/// `log.txt`: everything in words, with the time.
pub struct TextLog {
    lines: WholeWrites,
}

impl TextLog {
    /// Appends to `file`, which was opened for appending.
    pub fn new(file: File) -> Self {
        Self {
            lines: WholeWrites::new(LOG_FILE, Point::LogWrite, file),
        }
    }

    fn write(&mut self, text: &str) {
        let (time, text) = (clock::utc(clock::now() as u64), hide_tokens(text));
        self.lines.write(format!("{time} {text}\n").as_bytes());
    }
}

impl Reporter for TextLog {
    fn step(&mut self, record: &StepRecord) {
        self.write(&format!(
            "step {} {} lr {:.6e}",
            record.step,
            step_summary(record),
            record.lr
        ));
    }

    fn evaluation(&mut self, record: &EvalRecord) {
        self.write(&evaluation_summary(record));
    }

    fn message(&mut self, level: Level, text: &str) {
        let prefix = if level == Level::Warning {
            "warning: "
        } else {
            ""
        };
        self.write(&format!("{prefix}{text}"));
    }

    fn take_failure(&mut self) -> Option<String> {
        self.lines.take_failure()
    }
}
