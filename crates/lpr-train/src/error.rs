//! Why a command failed, and the exit code that scripts see.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

use lpr_data::DataError;
use thiserror::Error;

use crate::balance::BalanceError;
use crate::checkpoint::CheckpointError;
use crate::config::{ConfigErrors, Difference};
use crate::hugging_face::FolderError;
use crate::liveness::DeadBalancer;
use crate::run_dir::RunDirError;

/// A failure of a command.
#[derive(Debug, Error)]
pub enum TrainError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// The command line asks for something that cannot be.
    #[error("{0}")]
    Usage(String),
    /// The folder of the run cannot be used.
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    /// The data or the tokenizer cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The tokenizer makes ids that the model has no row for.
    #[error(
        "the tokenizer {tokenizer} has {tokenizer_size} ids, model.vocab_size is {model_size}; \
         set it to at least \
         {tokenizer_size}"
    )]
    Vocabulary {
        /// As in the configuration.
        tokenizer: String,
        /// Largest id + 1.
        tokenizer_size: usize,
        /// Rows of the embedding.
        model_size: usize,
    },
    /// The training data is not what it was when the checkpoint was saved.
    #[error(
        "the training data changed since {} was saved:{}\nrestore it, or start a new run with \
         another train.run_dir; --allow-data-change goes on, unless the tokenizer is another \
         one",
        checkpoint.display(),
        list(differences)
    )]
    OtherData {
        /// The folder of the checkpoint.
        checkpoint: PathBuf,
        /// What is different, one sentence each.
        differences: Vec<String>,
    },
    /// `data check` found files that cannot be used.
    #[error("{bad} of {total} data files cannot be used")]
    BadFiles {
        /// How many are bad.
        bad: usize,
        /// How many were read.
        total: usize,
    },
    /// Nothing can be chosen from what a model says.
    #[error("the model's logits are not all finite; take a checkpoint from before it diverged")]
    LogitsNotFinite,
    /// A routing trace may not be used.
    #[error("{} is not a routing trace of this lpr-train: {reason}", path.display())]
    Trace {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A checkpoint could not be written or may not be used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A Hugging Face folder may not be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The configuration does not fit the checkpoint.
    #[error(
        "{checkpoint} was saved by another run; these keys differ (saved -> now):{}\nrestore \
         them, or start a new run \
         with another train.run_dir",
        list(differences),
        checkpoint = checkpoint.display()
    )]
    OtherRun {
        /// The folder of the checkpoint.
        checkpoint: PathBuf,
        /// The keys that may not change.
        differences: Vec<Difference>,
    },
    /// The loss or a gradient is no longer a finite number.
    #[error("training diverged at step {step}: {reason}; try a lower optimizer.learning_rate")]
    Diverged {
        /// The step that was not applied.
        step: u64,
        /// What is not finite.
        reason: String,
    },
    /// The device is missing, not compiled in, or out of memory.
    #[error("device {device}: {reason}")]
    Device {
        /// The device as configured.
        device: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The routing statistics contradict each other.
    #[error(transparent)]
    Balance(#[from] BalanceError),
    /// A configured balancer does nothing.
    #[error(transparent)]
    DeadBalancer(#[from] DeadBalancer),
    /// A resumed run is not the run that was never interrupted.
    #[error("the runs differ; both are in {}", folder.display())]
    NotTheSame {
        /// Where they are.
        folder: PathBuf,
    },
    /// Some runs of a grid failed; the others are trained.
    #[error("{failed} of {total} runs failed; the same command tries them again")]
    FailedRuns {
        /// How many failed.
        failed: usize,
        /// How many the grid has.
        total: usize,
    },
    /// The file system refused.
    #[error("cannot use {path}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The handlers of SIGINT and SIGTERM cannot be installed.
    #[error("cannot listen to signals")]
    Signals(#[source] io::Error),
    /// The result could not be written to stdout.
    #[error("cannot write the result")]
    Output(#[source] io::Error),
}

impl TrainError {
    /// An input or output error at `path`.
    pub fn io(path: &Path, source: io::Error) -> Self {
        Self::Io {
            path: path.to_path_buf(),
            source,
        }
    }

    /// The failure and its causes on one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }

    /// 1 for a failure at run time, 2 usage or configuration, 3 data, 4 checkpoint, 5 diverged, 6
    /// device.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::RunDir(RunDirError::Io { .. })
            | Self::Balance(_)
            | Self::DeadBalancer(_)
            | Self::NotTheSame { .. }
            | Self::FailedRuns { .. }
            | Self::Io { .. }
            | Self::Output(_)
            | Self::Signals(_) => 1,
            Self::Data(DataError::Interrupted) => Outcome::StoppedEarly.exit_code(),
            Self::Config(_)
            | Self::Usage(_)
            | Self::RunDir(
                RunDirError::BadPath { .. }
                | RunDirError::Foreign { .. }
                | RunDirError::InUse { .. }
                | RunDirError::HasCheckpoints { .. }
                | RunDirError::NotOurs { .. },
            )
            | Self::Vocabulary { .. } => 2,
            Self::Data(_) | Self::BadFiles { .. } | Self::Trace { .. } => 3,
            Self::Checkpoint(_)
            | Self::RunDir(RunDirError::Checkpoint(_))
            | Self::Folder(_)
            | Self::OtherRun { .. }
            | Self::OtherData { .. } => 4,
            Self::Diverged { .. } | Self::LogitsNotFinite => 5,
            Self::Device { .. } => 6,
        }
    }
}

fn list(differences: &[impl Display]) -> String {
    let line = |text: String, difference| text + &format!("\n  {difference}");
    differences.iter().fold(String::new(), line)
}

/// How a command that did not fail ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It did what was asked.
    Done,
    /// It was asked to stop, saved, and can be resumed.
    StoppedEarly,
}

impl Outcome {
    /// 0, or 75 (`EX_TEMPFAIL`: submit the job again). A second signal ends the process with 130 or
    /// 143 instead.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::StoppedEarly => 75,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_failure_has_its_exit_code() {
        let path = PathBuf::from("x");
        let io = || io::Error::other("broken");
        let difference = Difference {
            key: "train.seed".to_owned(),
            saved: "1".to_owned(),
            current: "2".to_owned(),
        };
        let cases: [(TrainError, u8); 15] = [
            (TrainError::LogitsNotFinite, 5),
            (TrainError::io(&path, io()), 1),
            (TrainError::Output(io()), 1),
            (
                RunDirError::Io {
                    path: path.clone(),
                    source: io(),
                }
                .into(),
                1,
            ),
            (
                BalanceError::InvalidLoad {
                    expert: 0,
                    load: -1.0,
                }
                .into(),
                1,
            ),
            (ConfigErrors::new(Vec::new()).into(), 2),
            (TrainError::Usage("x".to_owned()), 2),
            (RunDirError::HasCheckpoints { path: path.clone() }.into(), 2),
            (TrainError::BadFiles { bad: 1, total: 2 }, 3),
            (
                TrainError::Trace {
                    path: path.clone(),
                    reason: "damaged".to_owned(),
                },
                3,
            ),
            (
                CheckpointError::BadName {
                    name: "x".to_owned(),
                }
                .into(),
                4,
            ),
            (
                TrainError::OtherRun {
                    checkpoint: path.clone(),
                    differences: vec![difference],
                },
                4,
            ),
            (
                TrainError::OtherData {
                    checkpoint: path.clone(),
                    differences: vec!["a.jsonl was removed".to_owned()],
                },
                4,
            ),
            (
                TrainError::Diverged {
                    step: 3,
                    reason: "the loss is NaN".to_owned(),
                },
                5,
            ),
            (
                TrainError::Device {
                    device: "cuda".to_owned(),
                    reason: "not compiled in".to_owned(),
                },
                6,
            ),
        ];
        for (error, code) in cases {
            assert_eq!(error.exit_code(), code, "{error}");
        }
        assert_eq!(
            (Outcome::Done.exit_code(), Outcome::StoppedEarly.exit_code()),
            (0, 75)
        );
    }

    #[test]
    fn the_differences_of_another_run_are_listed() {
        let difference = Difference {
            key: "train.seed".to_owned(),
            saved: "1".to_owned(),
            current: "2".to_owned(),
        };
        let error = TrainError::OtherRun {
            checkpoint: PathBuf::from("c"),
            differences: vec![difference],
        };
        assert!(
            error.to_string().contains("\n  train.seed: 1 -> 2\n"),
            "{error}"
        );
    }
}
