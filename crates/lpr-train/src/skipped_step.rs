//! A step whose update was not applied, in a file of the run folder, with all it takes to make it
//! again: the tokens, the places in the data, the seed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use lpr_data::{DataPosition, TokenBatch};
use serde::{Deserialize, Serialize};

use crate::atomic_file;
use crate::error::TrainError;

/// The folder of these files in a run folder.
pub const FOLDER: &str = "skipped";
/// So many are written; what comes later is only counted.
const MAX_FILES: usize = 100;
/// A larger file is none of ours.
const MAX_BYTES: u64 = 1 << 30;

/// What is written. Numbers that are not finite are absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SkippedStep {
    /// Steps done before.
    pub step: u64,
    /// Why the update was not applied.
    pub reason: String,
    /// Mean cross-entropy per target.
    pub loss_ce: Option<f64>,
    /// The objective.
    pub loss_total: Option<f64>,
    /// Norm of all gradients together.
    pub grad_norm: Option<f64>,
    /// `train.seed`; the routers' noise follows from it and the step.
    pub seed: u64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Where the first batch starts.
    pub position: DataPosition,
    /// The micro-batches.
    pub batches: Vec<SkippedBatch>,
}

/// See [`TokenBatch`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SkippedBatch {
    num_rows: usize,
    sequence_length: usize,
    input_ids: Vec<u32>,
    targets: Vec<i32>,
    is_token: Vec<bool>,
    document_ids: Vec<u32>,
    position_ids: Vec<u32>,
    position: DataPosition,
}

impl From<&TokenBatch> for SkippedBatch {
    fn from(batch: &TokenBatch) -> Self {
        Self {
            num_rows: batch.num_rows,
            sequence_length: batch.sequence_length,
            input_ids: batch.input_ids.clone(),
            targets: batch.targets.clone(),
            is_token: batch.is_token.clone(),
            document_ids: batch.document_ids.clone(),
            position_ids: batch.position_ids.clone(),
            position: batch.position.clone(),
        }
    }
}

impl SkippedBatch {
    /// The batch, if its lists have the lengths that its shape says and ids below `vocab_size`.
    fn checked(self, vocab_size: usize) -> Option<TokenBatch> {
        let size = self.num_rows.checked_mul(self.sequence_length)?;
        let lengths = [
            self.input_ids.len(),
            self.targets.len(),
            self.is_token.len(),
            self.document_ids.len(),
            self.position_ids.len(),
        ];
        let is_id = |id: u64| id < vocab_size as u64;
        let is_target = |target: i32| {
            target == lpr_data::IGNORE_INDEX || u64::try_from(target).is_ok_and(is_id)
        };
        let is_place = |place: u32| (place as usize) < self.sequence_length;
        let valid = size > 0
            && lengths == [size; 5]
            && self.input_ids.iter().all(|&id| is_id(u64::from(id)))
            && self.targets.iter().all(|&target| is_target(target))
            && self.document_ids.iter().all(|&id| is_place(id))
            && self.position_ids.iter().all(|&place| is_place(place));
        let ignored = |target: &&i32| **target != lpr_data::IGNORE_INDEX;
        valid.then(|| TokenBatch {
            num_targets: self.targets.iter().filter(ignored).count(),
            num_rows: self.num_rows,
            sequence_length: self.sequence_length,
            input_ids: self.input_ids,
            targets: self.targets,
            is_token: self.is_token,
            document_ids: self.document_ids,
            position_ids: self.position_ids,
            position: self.position,
        })
    }
}

impl SkippedStep {
    /// Writes the file of the `number`-th such step of a run; `None` if the folder is full.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(&self, run_dir: &Path, number: u64) -> io::Result<Option<PathBuf>> {
        let folder = run_dir.join(FOLDER);
        fs::create_dir_all(&folder)?;
        let name = format!("step-{:08}-{number}.json", self.step + 1);
        let path = folder.join(name);
        if !path.exists() && fs::read_dir(&folder)?.count() >= MAX_FILES {
            return Ok(None);
        }
        atomic_file::replace(&path, |out| Ok(serde_json::to_writer(out, self)?))?;
        Ok(Some(path))
    }

    /// Reads a file that [`Self::write`] wrote.
    ///
    /// # Errors
    /// If it cannot be read or holds something else.
    pub fn read(path: &Path) -> Result<Self, TrainError> {
        let to_io = |error| TrainError::io(path, error);
        let size = fs::metadata(path).map_err(to_io)?.len();
        let invalid = |text: String| to_io(io::Error::new(io::ErrorKind::InvalidData, text));
        if size > MAX_BYTES {
            return Err(invalid(format!("{size} bytes, more than {MAX_BYTES}")));
        }
        let bytes = fs::read(path).map_err(to_io)?;
        serde_json::from_slice(&bytes)
            .map_err(|error| invalid(format!("it describes no skipped step: {error}")))
    }

    /// The micro-batches for a model of `vocab_size` ids.
    ///
    /// # Errors
    /// If a batch contradicts itself or is for another vocabulary.
    pub fn into_batches(self, vocab_size: usize) -> Result<Vec<TokenBatch>, TrainError> {
        let batches = self.batches.into_iter();
        let checked: Option<Vec<_>> = batches.map(|batch| batch.checked(vocab_size)).collect();
        checked
            .filter(|batches| !batches.is_empty())
            .ok_or_else(|| {
                let text = format!(
                    "the batches of the skipped step are damaged or not for a vocabulary of \
                 {vocab_size} ids"
                );
                TrainError::Usage(text)
            })
    }
}
