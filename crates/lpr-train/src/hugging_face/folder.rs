//! Reading a Hugging Face folder that somebody else wrote: nothing outside of it is opened, nothing in
//! it is executed, and everything that is wrong is listed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{bf16, f16};
use lpr_model::parameters::{HostTensor, TensorMap};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::Deserializer as _;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde_json::Value as Json;

use super::shards::{INDEX_FILE, SINGLE_FILE};
use crate::checkpoint::is_plain_name;

/// A larger `config.json` or index is none. The index of a model with a million tensors has 200 MB.
const MAX_JSON_BYTES: u64 = 1 << 28;
/// Endings of files that are, or may be, Python pickles.
const PICKLES: [&str; 6] = ["bin", "pt", "pth", "pkl", "pickle", "ckpt"];

/// The path of a file in `folder`, or why it cannot be used.
///
/// # Errors
/// A name with a path in it, a file that is missing, not regular, or a link that leads out.
pub fn file(folder: &Path, name: &str) -> Result<PathBuf, String> {
    if !is_plain_name(name) {
        return Err(format!(
            "{name:?} is not the plain name of a file in the folder"
        ));
    }
    let path = folder.join(name);
    let unusable = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => format!("`{name}` is missing"),
        _ => format!("`{name}` cannot be used: {error}"),
    };
    let real = path.canonicalize().map_err(unusable)?;
    let inside = folder.canonicalize().map_err(unusable)?;
    if !real.starts_with(inside) {
        return Err(format!(
            "`{name}` is a link that leads out of the folder; copy the files instead of linking \
             them"
        ));
    }
    if real.is_file() {
        Ok(path)
    } else {
        Err(format!("`{name}` is not a regular file"))
    }
}

/// The content of a JSON file of `folder`.
///
/// # Errors
/// As [`file()`], and a file that is too large or no JSON object.
pub fn read_json(folder: &Path, name: &str) -> Result<Json, String> {
    let path = file(folder, name)?;
    let unusable = |error: std::io::Error| format!("`{name}` cannot be read: {error}");
    let size = fs::metadata(&path).map_err(unusable)?.len();
    if size > MAX_JSON_BYTES {
        return Err(format!(
            "`{name}` has {size} bytes, more than {MAX_JSON_BYTES}"
        ));
    }
    let bytes = fs::read(&path).map_err(unusable)?;
    match serde_json::from_slice(&bytes) {
        Ok(json @ Json::Object(_)) => Ok(json),
        Ok(_) => Err(format!("`{name}` is not a JSON object")),
        Err(error) => Err(format!("`{name}` is not complete JSON ({error})")),
    }
}

/// All tensors of `folder`, converted to 32-bit floats. What is wrong is added to `problems`; then
/// the tensors are those that could be read, and zeros stand for those whose numbers could not be.
pub fn read_tensors(folder: &Path, problems: &mut Vec<String>) -> TensorMap {
    problems.extend(pickles(folder));
    let exists = |name: &str| fs::symlink_metadata(folder.join(name)).is_ok();
    match (exists(SINGLE_FILE), exists(INDEX_FILE)) {
        (true, true) => {
            problems.push(format!(
                "`{SINGLE_FILE}` and `{INDEX_FILE}` are both there; remove the one that is out of \
                 date"
            ));
            TensorMap::new()
        }
        (false, false) => {
            problems.push(format!(
                "neither `{SINGLE_FILE}` nor `{INDEX_FILE}` is there"
            ));
            TensorMap::new()
        }
        (true, false) => read_file(folder, SINGLE_FILE, problems).unwrap_or_default(),
        (false, true) => read_shards(folder, problems),
    }
}

fn pickles(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| {
            let name = name.trim_end_matches(".index.json");
            let ending = Path::new(name).extension().and_then(|e| e.to_str());
            ending.is_some_and(|ending| PICKLES.contains(&ending.to_ascii_lowercase().as_str()))
        })
        .collect();
    names.sort();
    let problem = |name: String| {
        format!(
            "`{name}` is a pickle, which can run any program and is never read; convert it to \
             safetensors and remove it"
        )
    };
    names.into_iter().map(problem).collect()
}

/// The tensors of all shards, which must be where the index says and nowhere else.
fn read_shards(folder: &Path, problems: &mut Vec<String>) -> TensorMap {
    let weight_map = match read_json(folder, INDEX_FILE) {
        Ok(index) => index["weight_map"].as_object().cloned(),
        Err(problem) => {
            problems.push(problem);
            return TensorMap::new();
        }
    };
    let Some(weight_map) = weight_map else {
        problems.push(format!("`{INDEX_FILE}` has no `weight_map`"));
        return TensorMap::new();
    };
    let mut shards: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (tensor, shard) in weight_map {
        match shard {
            Json::String(shard) => {
                shards.entry(shard).or_default().insert(tensor);
            }
            other => problems.push(format!("the index says that `{tensor}` is in {other}")),
        }
    }
    let mut all = TensorMap::new();
    for (shard, listed) in shards {
        let Some(tensors) = read_file(folder, &shard, problems) else {
            continue;
        };
        let absent = listed.iter().filter(|name| !tensors.contains_key(*name));
        problems
            .extend(absent.map(|name| {
                format!("the index says that `{name}` is in `{shard}`, but it is not")
            }));
        let extra = tensors.keys().filter(|name| !listed.contains(*name));
        problems.extend(
            extra.map(|name| format!("`{shard}` holds `{name}`, which the index does not say")),
        );
        all.extend(tensors);
    }
    all
}

/// The tensors of one file; `None` if it cannot be read at all.
fn read_file(folder: &Path, name: &str, problems: &mut Vec<String>) -> Option<TensorMap> {
    let read = || {
        let path = file(folder, name)?;
        fs::read(path).map_err(|error| format!("`{name}` cannot be read: {error}"))
    };
    let bytes = match read() {
        Ok(bytes) => bytes,
        Err(problem) => {
            problems.push(problem);
            return None;
        }
    };
    let contents = match SafeTensors::deserialize(&bytes) {
        Ok(contents) => contents,
        Err(error) => {
            problems.push(format!(
                "`{name}` is not a complete safetensors file ({error})"
            ));
            return None;
        }
    };
    problems.extend(repeated_name(&bytes).map(|repeated| {
        format!(
            "`{name}` holds two tensors called `{repeated}`, so that it is not clear which counts"
        )
    }));
    let mut tensors = TensorMap::new();
    for (tensor, view) in contents.iter() {
        let values = floats(&view).unwrap_or_else(|| {
            problems.push(format!(
                "`{tensor}` holds {:?}, only F32, F16 and BF16 are read",
                view.dtype()
            ));
            vec![0.0; view.shape().iter().product()]
        });
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            problems.push(format!(
                "value {at} of `{tensor}` is {}, which is no weight",
                values[at]
            ));
        }
        let shape = view.shape().to_vec();
        tensors.insert(tensor.to_owned(), HostTensor { shape, values });
    }
    Some(tensors)
}

/// A name that the header of a safetensors file, which was found valid, holds twice.
fn repeated_name(bytes: &[u8]) -> Option<String> {
    struct Names;
    impl<'de> Visitor<'de> for Names {
        type Value = Option<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a header")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let (mut seen, mut repeated) = (BTreeSet::new(), None);
            while let Some((name, IgnoredAny)) = map.next_entry::<String, _>()? {
                if let Some(name) = seen.replace(name) {
                    repeated.get_or_insert(name);
                }
            }
            Ok(repeated)
        }
    }
    let (length, header) = bytes.split_first_chunk::<8>()?;
    let header = header.get(..usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    let mut header = serde_json::Deserializer::from_slice(header);
    header.deserialize_map(Names).ok()?
}

/// The numbers of a tensor, exactly; `None` if they are no floats of at most 32 bits.
fn floats(view: &TensorView<'_>) -> Option<Vec<f32>> {
    let data = view.data();
    let halves = || data.as_chunks::<2>().0.iter();
    match view.dtype() {
        Dtype::F32 => {
            let numbers = data.as_chunks::<4>().0.iter();
            Some(numbers.map(|b| f32::from_le_bytes(*b)).collect())
        }
        Dtype::F16 => Some(halves().map(|b| f16::from_le_bytes(*b).to_f32()).collect()),
        Dtype::BF16 => Some(halves().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_become_the_same_numbers() {
        let numbers = [0.0_f32, -1.5, 65504.0, 0.099_975_586];
        let f16s: Vec<u8> = numbers
            .iter()
            .flat_map(|x| f16::from_f32(*x).to_le_bytes())
            .collect();
        let view = TensorView::new(Dtype::F16, vec![4], &f16s).expect("a tensor");
        assert_eq!(floats(&view).as_deref(), Some(&numbers[..]));
        let bf16s = [0xc0, 0x3f, 0x80, 0xff];
        let view = TensorView::new(Dtype::BF16, vec![2], &bf16s).expect("a tensor");
        assert_eq!(floats(&view), Some(vec![1.5, f32::NEG_INFINITY]));
        let view = TensorView::new(Dtype::I32, vec![1], &bf16s).expect("a tensor");
        assert_eq!(floats(&view), None);
    }

    #[test]
    fn pickles_are_named_whatever_their_ending() {
        let folder = tempfile::tempdir().expect("a folder");
        for name in [
            "pytorch_model.bin",
            "a.PT",
            "b.pth",
            "pytorch_model.bin.index.json",
            "config.json",
            "model.safetensors",
        ] {
            fs::write(folder.path().join(name), "x").expect("written");
        }
        let found = pickles(folder.path());
        assert_eq!(found.len(), 4, "{found:?}");
        assert!(found.iter().all(|problem| problem.contains("never read")));
    }
}
