//! Traces in files of the run folder.
//!
//! `routing/step-00000100-train.safetensors` has the traced positions of step 100,
//! `..-validation.safetensors` those of the evaluation after it. With T positions, L layers with
//! experts, K experts of a token, B batches and E experts, the arrays of version 1 are
//!
//! | name | type | shape | |
//! |---|---|---|---|
//! | `token_ids` | U32 | `[T]` | |
//! | `position_ids` | U32 | `[T]` | place in the document, 0 at its start |
//! | `is_token` | BOOL | `[T]` | false on padding |
//! | `experts` | U16 | `[L, T, K]` | the chosen experts |
//! | `weights` | F32 | `[L, T, K]` | the factor of each expert's output |
//! | `recorded` | U32 | `[B]` | positions of each batch that are in the trace; their sum is T |
//! | `positions` | U32 | `[B]` | positions of each batch |
//! | `counts` | U64 | `[B, L, E]` | choices for all tokens of each batch, padding left out |
//!
//! and the metadata has one entry `routing_trace`, a JSON object with `version`, `step`, `split`,
//! `num_experts` and `top_k`.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use lpr_data::Split;
use lpr_model::DecoderConfig;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::{Deserialize, Serialize};

use super::trace::{Recording, Trace};
use crate::atomic_file::{self, remove_any};
use crate::fault::{self, Point};

/// The folder of traces in a run folder.
pub const FOLDER: &str = "routing";
/// The version that is written and read.
pub(super) const VERSION: u64 = 1;
/// The entry of the metadata.
pub(super) const HEADER: &str = "routing_trace";

/// What the metadata says.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Header {
    pub version: u64,
    pub step: u64,
    pub split: String,
    pub num_experts: usize,
    pub top_k: usize,
}

/// The file of a trace in the folder of a run.
pub fn path(run: &Path, step: u64, split: Split) -> PathBuf {
    run.join(FOLDER)
        .join(format!("step-{step:08}-{split}.safetensors"))
}

/// The traces of a run by step, that of the training step before that of the evaluation; none if
/// there is no such folder.
///
/// # Errors
/// Those of the file system.
pub fn list(run: &Path) -> io::Result<Vec<(u64, Split, PathBuf)>> {
    let entries = match fs::read_dir(run.join(FOLDER)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        if let Some((step, split)) = name.to_str().and_then(of_name) {
            found.push((step, split, entry.path()));
        }
    }
    found.sort_by_key(|(step, split, _)| (*step, *split == Split::Validation));
    Ok(found)
}

fn of_name(name: &str) -> Option<(u64, Split)> {
    let (step, split) = name.strip_prefix("step-")?.split_once('-')?;
    let mut splits = [Split::Train, Split::Validation].into_iter();
    let is_ours = |found: &Split| split == format!("{found}.safetensors");
    Some((step.parse().ok()?, splits.find(is_ours)?))
}

/// Removes the traces of steps after `last_step`, all of them if there is none: the run goes on from
/// there and makes them again.
///
/// # Errors
/// Those of the file system.
pub fn remove_after(run: &Path, last_step: Option<u64>) -> io::Result<()> {
    for (step, _, path) in list(run)? {
        if last_step.is_none_or(|last| step > last) {
            fault::at(Point::TraceRemove)?;
            remove_any(&path)?;
        }
    }
    Ok(())
}

/// How large the arrays of a trace are, in bytes, apart from the counts of its batches.
pub fn size(positions: u64, model: &DecoderConfig) -> u64 {
    positions * (9 + 6 * (model.num_moe_layers() * model.moe.top_k) as u64)
}

/// Writes a trace into the folder of its run. The same trace gives the same bytes.
///
/// # Errors
/// Those of the file system; an older file of the same name is then untouched.
pub fn write(run: &Path, trace: &Trace) -> io::Result<()> {
    let path = path(run, trace.step, trace.split);
    fault::at(Point::TraceWrite)?;
    fs::create_dir_all(run.join(FOLDER))?;
    let bytes = encode(trace)?;
    atomic_file::replace(&path, |out| out.write_all(&bytes))
}

pub(super) fn encode(trace: &Trace) -> io::Result<Vec<u8>> {
    let Recording {
        num_experts,
        top_k,
        token_ids,
        position_ids,
        is_token,
        layers,
        batches,
        ..
    } = &trace.recording;
    let header = Header {
        version: VERSION,
        step: trace.step,
        split: trace.split.to_string(),
        num_experts: *num_experts,
        top_k: *top_k,
    };
    // One entry: the order of several would not be the same every time.
    let header = HashMap::from([(HEADER.to_owned(), serde_json::to_string(&header)?)]);
    let words = |values: &mut dyn Iterator<Item = u32>| -> Vec<u8> {
        values.flat_map(u32::to_le_bytes).collect()
    };
    let all = layers.iter();
    let experts = all.clone().flat_map(|layer| &layer.experts);
    let weights = all.flat_map(|layer| &layer.weights);
    let counts = batches
        .iter()
        .flat_map(|batch| batch.counts.iter().flatten());
    let choices = vec![layers.len(), token_ids.len(), *top_k];
    let loads = vec![batches.len(), layers.len(), *num_experts];
    let (positions, per_batch) = (vec![token_ids.len()], vec![batches.len()]);
    let arrays: [(&str, Dtype, Vec<usize>, Vec<u8>); 8] = [
        (
            "token_ids",
            Dtype::U32,
            positions.clone(),
            words(&mut token_ids.iter().copied()),
        ),
        (
            "position_ids",
            Dtype::U32,
            positions.clone(),
            words(&mut position_ids.iter().copied()),
        ),
        (
            "is_token",
            Dtype::BOOL,
            positions,
            is_token.iter().map(|&is| u8::from(is)).collect(),
        ),
        (
            "experts",
            Dtype::U16,
            choices.clone(),
            experts.flat_map(|e| e.to_le_bytes()).collect(),
        ),
        (
            "weights",
            Dtype::F32,
            choices,
            weights.flat_map(|w| w.to_le_bytes()).collect(),
        ),
        (
            "recorded",
            Dtype::U32,
            per_batch.clone(),
            words(&mut batches.iter().map(|b| b.recorded)),
        ),
        (
            "positions",
            Dtype::U32,
            per_batch,
            words(&mut batches.iter().map(|b| b.positions)),
        ),
        (
            "counts",
            Dtype::U64,
            loads,
            counts.flat_map(|count| count.to_le_bytes()).collect(),
        ),
    ];
    let views: Result<BTreeMap<_, _>, _> = arrays
        .iter()
        .map(|(name, dtype, shape, bytes)| {
            Ok((*name, TensorView::new(*dtype, shape.clone(), bytes)?))
        })
        .collect();
    let views = views.map_err(|error: safetensors::SafeTensorError| io::Error::other(error))?;
    safetensors::serialize(views, Some(header)).map_err(io::Error::other)
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::read::read;
    use super::super::trace::tests::trace;
    use super::*;

    pub fn example() -> Trace {
        let chosen = [vec![0, 1], vec![2, 1], vec![0, 2]];
        Trace {
            step: 12,
            split: Split::Validation,
            recording: trace(&[7, 8, 0], &[true, true, false], &chosen, 3),
        }
    }

    #[test]
    fn a_trace_comes_back_as_it_was_and_the_same_trace_gives_the_same_bytes() {
        let folder = tempfile::tempdir().expect("a folder");
        let trace = example();
        write(folder.path(), &trace).expect("written");
        let path = path(folder.path(), 12, Split::Validation);
        let back = read(&path).expect("read");
        assert_eq!((back.step, back.split), (12, Split::Validation));
        assert_eq!(
            encode(&back).expect("bytes"),
            fs::read(&path).expect("bytes")
        );
        assert_eq!(back.recording.layers, trace.recording.layers);
        assert_eq!(back.recording.batches, trace.recording.batches);
    }

    #[test]
    fn traces_after_a_step_are_removed_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        for step in [0, 12, 24] {
            write(folder.path(), &Trace { step, ..example() }).expect("written");
        }
        let other = folder.path().join(FOLDER).join("step-24.txt");
        fs::write(&other, "notes").expect("written");
        let steps = || {
            let found = list(folder.path()).expect("listed").into_iter();
            found.map(|(step, _, _)| step).collect::<Vec<_>>()
        };
        remove_after(folder.path(), Some(12)).expect("removed");
        assert_eq!(steps(), [0, 12]);
        remove_after(folder.path(), None).expect("removed");
        assert!(steps().is_empty() && other.exists());
        assert_eq!(list(&folder.path().join("none")).expect("nothing").len(), 0);
    }
}
