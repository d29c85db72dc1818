//! Reading traces, whoever wrote them: everything is checked before it is used. The format is that
//! of [`super::file`].

use std::fs;
use std::path::Path;

use lpr_data::Split;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::file::{HEADER, Header, VERSION};
use super::trace::{Choices, MAX_POSITIONS, Recording, Trace, TracedBatch};
use crate::error::TrainError;

/// A larger file is none of ours.
const MAX_BYTES: u64 = 1 << 30;
/// A model has at most so many experts in a layer.
const MAX_EXPERTS: usize = 1 << 16;
/// A model has at most so many layers.
const MAX_LAYERS: usize = 1 << 12;

/// Reads a trace, whoever wrote it.
///
/// # Errors
/// [`TrainError::Trace`] with what is wrong with it; [`TrainError::Io`] if it cannot be read.
pub fn read(path: &Path) -> Result<Trace, TrainError> {
    let to_io = |error| TrainError::io(path, error);
    let size = fs::metadata(path).map_err(to_io)?.len();
    let invalid = |reason: String| TrainError::Trace {
        path: path.to_path_buf(),
        reason,
    };
    if size > MAX_BYTES {
        return Err(invalid(format!("{size} bytes, more than {MAX_BYTES}")));
    }
    let bytes = fs::read(path).map_err(to_io)?;
    decode(&bytes).map_err(invalid)
}

/// The trace in the bytes of a file, or what is wrong with it.
fn decode(bytes: &[u8]) -> Result<Trace, String> {
    let unreadable = |error| format!("it is no safetensors file: {error}");
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(unreadable)?;
    let entries = metadata.metadata().as_ref();
    let header = entries.and_then(|entries| entries.get(HEADER));
    let header = header.ok_or_else(|| format!("its metadata has no `{HEADER}`"))?;
    let header = decode_header(header)?;
    let file = Arrays(SafeTensors::deserialize(bytes).map_err(unreadable)?);
    let mut splits = [Split::Train, Split::Validation].into_iter();
    let split = splits.find(|split| split.to_string() == header.split);
    let split = split.ok_or_else(|| format!("split is {:?}", header.split))?;

    let token_ids = file.words("token_ids")?;
    let (positions, top_k) = (token_ids.len(), header.top_k);
    if positions as u64 > MAX_POSITIONS {
        return Err(format!(
            "it has {positions} positions, more than {MAX_POSITIONS}"
        ));
    }
    let num_layers = file.shape("experts")?.first().copied().unwrap_or(0);
    if !(1..=MAX_LAYERS).contains(&num_layers) {
        return Err(format!("it has {num_layers} layers with experts"));
    }
    let choices = [num_layers, positions, top_k];
    let experts = file.numbers("experts", Dtype::U16, &choices, u16::from_le_bytes)?;
    let weights = file.numbers("weights", Dtype::F32, &choices, f32::from_le_bytes)?;
    let per_layer = positions * top_k;
    let layers = (0..num_layers).map(|layer| Choices {
        experts: experts[layer * per_layer..][..per_layer].to_vec(),
        weights: weights[layer * per_layer..][..per_layer].to_vec(),
    });
    let is_token = file.numbers("is_token", Dtype::BOOL, &[positions], |[byte]| byte == 1)?;
    let recorded = file.words("recorded")?;
    let loads = [recorded.len(), num_layers, header.num_experts];
    let counts = file.numbers("counts", Dtype::U64, &loads, u64::from_le_bytes)?;
    let sizes = file.numbers("positions", Dtype::U32, &loads[..1], u32::from_le_bytes)?;
    let mut counts = counts.chunks_exact(header.num_experts).map(<[u64]>::to_vec);
    let batches = recorded
        .iter()
        .zip(sizes)
        .map(|(&recorded, positions)| TracedBatch {
            recorded,
            positions,
            counts: counts.by_ref().take(num_layers).collect(),
        });
    let mut recording = Recording::of_shape(positions, num_layers, header.num_experts, top_k);
    recording.batches = batches.collect();
    recording.layers = layers.collect();
    recording.position_ids =
        file.numbers("position_ids", Dtype::U32, &[positions], u32::from_le_bytes)?;
    recording.token_ids = token_ids;
    recording.is_token = is_token;
    check(&recording)?;
    let step = header.step;
    Ok(Trace {
        step,
        split,
        recording,
    })
}

fn decode_header(text: &str) -> Result<Header, String> {
    let json: serde_json::Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let version = json["version"].as_u64();
    if version.is_some_and(|version| version != VERSION) {
        return Err(format!(
            "it is of version {}; lpr-train {} reads version {VERSION}",
            json["version"],
            env!("CARGO_PKG_VERSION")
        ));
    }
    let header: Header = serde_json::from_value(json).map_err(|error| error.to_string())?;
    let (num_experts, top_k) = (header.num_experts, header.top_k);
    if !(1..=MAX_EXPERTS).contains(&num_experts) || !(1..=num_experts).contains(&top_k) {
        return Err(format!("{top_k} of {num_experts} experts cannot be chosen"));
    }
    Ok(header)
}

/// The arrays of a file, which may be anything.
struct Arrays<'a>(SafeTensors<'a>);

impl<'a> Arrays<'a> {
    fn get(&self, name: &str) -> Result<TensorView<'a>, String> {
        let tensor = self.0.tensor(name);
        tensor.map_err(|_| format!("it has no array `{name}`"))
    }

    fn shape(&self, name: &str) -> Result<Vec<usize>, String> {
        Ok(self.get(name)?.shape().to_vec())
    }

    /// A list of any length.
    fn words(&self, name: &str) -> Result<Vec<u32>, String> {
        let length = self.shape(name)?.iter().product();
        self.numbers(name, Dtype::U32, &[length], u32::from_le_bytes)
    }

    fn numbers<T, const BYTES: usize>(
        &self,
        name: &str,
        dtype: Dtype,
        shape: &[usize],
        number: fn([u8; BYTES]) -> T,
    ) -> Result<Vec<T>, String> {
        let tensor = self.get(name)?;
        if tensor.dtype() != dtype || tensor.shape() != shape {
            return Err(format!(
                "`{name}` is {:?} {:?} and not {dtype:?} {shape:?}",
                tensor.dtype(),
                tensor.shape()
            ));
        }
        let (numbers, _) = tensor.data().as_chunks::<BYTES>();
        Ok(numbers.iter().map(|&bytes| number(bytes)).collect())
    }
}

/// Refuses numbers that contradict each other.
fn check(recording: &Recording) -> Result<(), String> {
    let mut start = 0_usize;
    for (number, batch) in recording.batches.iter().enumerate() {
        let end = start.saturating_add(batch.recorded as usize);
        if batch.recorded > batch.positions || end > recording.token_ids.len() {
            return Err(format!("batch {number} has fewer positions than recorded"));
        }
        for (layer, counts) in batch.counts.iter().enumerate() {
            if let Some(expert) = first_bad(recording, layer, start..end) {
                return Err(format!("layer {layer}: {expert} is no choice of experts"));
            }
            let found = recording.count(layer, start..end).without_padding;
            let is_whole = batch.recorded == batch.positions;
            let fits =
                |(&found, &count): (&u64, &u64)| found == count || (!is_whole && found < count);
            let possible = counts
                .iter()
                .all(|&count| count <= u64::from(batch.positions));
            if !possible || !found.iter().zip(counts).all(fits) {
                return Err(format!(
                    "batch {number}, layer {layer}: the counts contradict the choices"
                ));
            }
            if counts.iter().sum::<u64>() != batch.counts[0].iter().sum::<u64>() {
                return Err(format!(
                    "batch {number}: layers 0 and {layer} have other numbers of choices"
                ));
            }
        }
        start = end;
    }
    if start == recording.token_ids.len() {
        return Ok(());
    }
    Err(format!(
        "its batches have {start} positions and not {}",
        recording.token_ids.len()
    ))
}

/// The first row of choices that is none: an expert that does not exist or comes twice, a weight
/// that is no number.
fn first_bad(recording: &Recording, layer: usize, range: std::ops::Range<usize>) -> Option<String> {
    let (layer, top_k) = (&recording.layers[layer], recording.top_k);
    range.into_iter().find_map(|position| {
        let row = &layer.experts[position * top_k..][..top_k];
        let weights = &layer.weights[position * top_k..][..top_k];
        let exists = |&expert: &u16| usize::from(expert) < recording.num_experts;
        let once = |(slot, expert): (usize, &u16)| !row[..slot].contains(expert);
        let valid = row.iter().all(exists)
            && row.iter().enumerate().all(once)
            && weights.iter().all(|weight| weight.is_finite());
        (!valid).then(|| format!("{row:?} with weights {weights:?}"))
    })
}

#[cfg(test)]
mod tests {
    use super::super::file::encode;
    use super::super::file::tests::example;
    use super::*;

    #[test]
    fn no_change_of_a_byte_makes_the_reader_panic() {
        let bytes = encode(&example()).expect("bytes");
        let mut refused = 0;
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut changed = bytes.clone();
                changed[at] = value;
                refused += usize::from(decode(&changed).is_err());
            }
            refused += usize::from(decode(&bytes[..at]).is_err());
        }
        assert!(refused > bytes.len(), "{refused}");
    }

    #[test]
    fn what_contradicts_itself_is_refused_with_the_reason() {
        let refuse = |change: &dyn Fn(&mut Recording), reason: &str| {
            let mut trace = example();
            change(&mut trace.recording);
            let error = decode(&encode(&trace).expect("bytes")).expect_err("refused");
            assert!(error.contains(reason), "{error}");
        };
        refuse(&|r| r.layers[0].experts[1] = 0, "[0, 0]");
        refuse(&|r| r.layers[0].experts[1] = 3, "[0, 3]");
        refuse(&|r| r.layers[0].weights[1] = f32::NAN, "NaN");
        refuse(&|r| r.batches[0].counts[0][2] = 2, "contradict");
        refuse(&|r| r.batches[0].counts[0][2] = u64::MAX, "contradict");
        refuse(&|r| r.batches[0].recorded = 2, "2 positions and not 3");
        refuse(&|r| r.batches[0].positions = 2, "fewer positions");
        refuse(&|r| r.batches.clear(), "0 positions and not 3");
        let no_layers = |r: &mut Recording| {
            r.layers.clear();
            r.batches[0].counts.clear();
        };
        refuse(&no_layers, "0 layers");
        // Three experts a token in the metadata, two in the arrays.
        let mut bytes = encode(&example()).expect("bytes");
        let key = b"top_k\\\":";
        let at = bytes.windows(key.len()).position(|found| found == key);
        bytes[at.expect("in the metadata") + key.len()] = b'3';
        let error = decode(&bytes).expect_err("refused");
        assert!(error.contains("`experts` is U16 [1, 3, 2]"), "{error}");
    }

    #[test]
    fn metadata_of_another_version_or_of_no_model_is_refused() {
        for (num_experts, top_k) in [(0, 0), (3, 0), (3, 4), (1 << 17, 2)] {
            let (version, step, split) = (VERSION, 1, "train".to_owned());
            let header = Header {
                version,
                step,
                split,
                num_experts,
                top_k,
            };
            let text = serde_json::to_string(&header).expect("JSON");
            let error = decode_header(&text).err().expect("refused");
            assert!(error.contains("cannot be chosen"), "{error}");
        }
        let later = r#"{"version": 2, "heads": 3}"#;
        let error = decode_header(later).err().expect("refused");
        assert!(
            error.contains("version 2") && error.contains("version 1"),
            "{error}"
        );
    }
}
