//! Grids of runs: each distinct configuration is trained once, in a folder named by its hash, and
//! what is there already is not trained again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::config::RunConfig;
use crate::error::TrainError;
use crate::history::History;
use crate::lab::paper::{Row, Scale, Table, base_config};

/// Characters of the hash that name a folder.
const HASH_CHARACTERS: usize = 16;

/// A run of a grid.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// The row it belongs to.
    pub row: usize,
    /// Its configuration; `train.run_dir` names its folder.
    pub config: RunConfig,
}

/// Name and configuration of every row of a table, with `overrides` on top.
///
/// # Errors
/// A configuration with problems.
pub fn variants(
    table: &Table,
    scale: Scale,
    overrides: &[String],
) -> Result<Vec<(&'static str, RunConfig)>, TrainError> {
    let config = |row: &Row| {
        let base = base_config(row.base, scale).ok_or_else(|| {
            TrainError::Usage(format!("there is no configuration called {}", row.base))
        })?;
        let overrides = [&row.overrides[..], overrides].concat();
        let mut config = RunConfig::load_over(row.base, base, &[], &overrides)?;
        config.checkpoint.keep_last = 1;
        Ok((row.name, config))
    };
    table.rows.iter().map(config).collect()
}

/// How a run of a grid ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It did all its steps.
    Done,
    /// It saved and stopped on request.
    Stopped,
    /// It failed with this exit code.
    Failed(i32),
}

/// Trains a run or continues it.
pub trait Train {
    /// The configuration is complete; `Ended::Done` promises an evaluation of the last step.
    ///
    /// # Errors
    /// If the run could not be started.
    fn train(&mut self, config: &RunConfig) -> Result<Ended, TrainError>;
}

/// The runs of a grid after they ended.
#[derive(Debug, Default)]
pub struct Trained {
    /// The folder of every run that has all its steps, by row and seed.
    pub done: BTreeMap<(usize, u64), PathBuf>,
    /// Rows, seeds and exit codes of runs that failed.
    pub failed: Vec<(usize, u64, i32)>,
    /// Whether the grid was stopped on request.
    pub stopped: bool,
}

/// The folder of a run below `root`: the same for configurations that differ in the folder alone.
pub fn folder(root: &Path, config: &RunConfig) -> PathBuf {
    let mut anywhere = config.clone();
    anywhere.train.run_dir = None;
    root.join(&anywhere.hash()[..HASH_CHARACTERS])
}

/// Places every cell below `root` and trains what is not trained yet; a failure does not keep the
/// others from being trained.
///
/// # Errors
/// Those of `train`, and metrics that cannot be read.
pub fn train_all(
    root: &Path,
    cells: Vec<Cell>,
    train: &mut dyn Train,
) -> Result<Trained, TrainError> {
    let mut trained = Trained::default();
    let mut ended: BTreeMap<PathBuf, Ended> = BTreeMap::new();
    for mut cell in cells {
        let folder = folder(root, &cell.config);
        let seed = cell.config.train.seed;
        cell.config.train.run_dir = Some(folder.clone());
        let outcome = match ended.get(&folder) {
            Some(&outcome) => outcome,
            None if is_done(&folder, &cell.config)? => Ended::Done,
            None => train.train(&cell.config)?,
        };
        ended.insert(folder.clone(), outcome);
        match outcome {
            Ended::Done => {
                trained.done.insert((cell.row, seed), folder);
            }
            Ended::Failed(code) => trained.failed.push((cell.row, seed, code)),
            Ended::Stopped => {
                trained.stopped = true;
                break;
            }
        }
    }
    Ok(trained)
}

/// Whether a run has been trained and evaluated to its last step.
fn is_done(folder: &Path, config: &RunConfig) -> Result<bool, TrainError> {
    if !folder.join(crate::run_dir::METRICS_FILE).is_file() {
        return Ok(false);
    }
    let last = config.total_steps();
    let checkpoints = folder.join(crate::run_dir::CHECKPOINTS_FOLDER);
    let is_saved = checkpoints
        .join(crate::checkpoint::folder_name(last))
        .is_dir();
    let history = History::read_records(folder)?;
    let evaluated = history
        .evaluations
        .last()
        .is_some_and(|point| point.step == last);
    Ok(is_saved && evaluated)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Pretends to train; stops or fails where it is told to.
    #[derive(Default)]
    struct Fake {
        trained: Vec<String>,
        ends: Vec<Ended>,
    }

    impl Train for Fake {
        fn train(&mut self, config: &RunConfig) -> Result<Ended, TrainError> {
            let folder = config.run_dir();
            self.trained.push(config.router.name().to_owned());
            let ended = if self.ends.is_empty() {
                Ended::Done
            } else {
                self.ends.remove(0)
            };
            if ended == Ended::Done {
                let last = config.total_steps();
                let name = crate::checkpoint::folder_name(last);
                fs::create_dir_all(folder.join("checkpoints").join(name)).expect("made");
                let line = format!("{{\"step\":{last},\"eval\":{{\"loss\":1.0}}}}\n");
                fs::write(folder.join("metrics.jsonl"), line).expect("written");
            }
            Ok(ended)
        }
    }

    fn cell(row: usize, router: &str) -> Cell {
        let base = include_str!("../../../../configs/quickstart.toml");
        let overrides = [format!("router.kind={router}")];
        let text = base.replace("latent_dim = 8", "");
        let config = RunConfig::load_over("quickstart", &text, &[], &overrides);
        Cell {
            row,
            config: config.expect("a valid configuration"),
        }
    }

    fn cells() -> Vec<Cell> {
        ["lpr", "softmax_topk", "lpr", "random"]
            .into_iter()
            .enumerate()
            .map(|(row, router)| cell(row, router))
            .collect()
    }

    #[test]
    fn what_rows_share_is_trained_once_and_never_again() {
        let root = tempfile::tempdir().expect("a folder");
        let mut fake = Fake::default();
        let trained = train_all(root.path(), cells(), &mut fake).expect("trains");
        assert_eq!(fake.trained, ["lpr", "softmax_topk", "random"]);
        assert_eq!(trained.done.len(), 4);
        assert_eq!(trained.done[&(0, 42)], trained.done[&(2, 42)]);
        let again = train_all(root.path(), cells(), &mut fake).expect("finds");
        assert_eq!((fake.trained.len(), again.done), (3, trained.done));
    }

    #[test]
    fn a_stop_ends_the_grid_and_the_next_call_goes_on_where_it_was() {
        let root = tempfile::tempdir().expect("a folder");
        let mut fake = Fake {
            ends: vec![Ended::Done, Ended::Stopped],
            ..Fake::default()
        };
        let stopped = train_all(root.path(), cells(), &mut fake).expect("stops");
        assert!(stopped.stopped && stopped.done.len() == 1);
        let trained = train_all(root.path(), cells(), &mut fake).expect("goes on");
        assert_eq!(
            fake.trained,
            ["lpr", "softmax_topk", "softmax_topk", "random"]
        );
        assert_eq!((trained.done.len(), trained.stopped), (4, false));
    }

    #[test]
    fn a_failure_is_told_and_the_others_are_trained() {
        let root = tempfile::tempdir().expect("a folder");
        let mut fake = Fake {
            ends: vec![Ended::Failed(5)],
            ..Fake::default()
        };
        let trained = train_all(root.path(), cells(), &mut fake).expect("trains");
        assert_eq!(trained.failed, [(0, 42, 5), (2, 42, 5)]);
        assert_eq!(trained.done.len(), 2);
    }

    #[test]
    fn the_folder_follows_from_all_keys_but_the_folder() {
        let root = Path::new("r");
        let (one, mut other) = (cell(0, "lpr").config, cell(0, "lpr").config);
        other.train.run_dir = Some(PathBuf::from("elsewhere"));
        assert_eq!(folder(root, &one), folder(root, &other));
        other.train.seed += 1;
        assert_ne!(folder(root, &one), folder(root, &other));
    }
}
