//! Tensors of an exported folder: one file, or shards with an index.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::str::FromStr;

use lpr_model::parameters::TensorMap;
use serde_json::json;

use crate::weights_file;

/// Name of the file when one is enough.
pub const SINGLE_FILE: &str = "model.safetensors";
/// Name of the index of several.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// The most bytes of tensors in one file, at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardSize(u64);

impl FromStr for ShardSize {
    type Err = String;

    /// A number with or without a unit: `5GB` (powers of ten) or `5GiB` (powers of two).
    fn from_str(text: &str) -> Result<Self, String> {
        let start = text.find(|c: char| c.is_ascii_alphabetic());
        let (number, unit) = text.split_at(start.unwrap_or(text.len()));
        let factor: u64 = match unit.trim().to_ascii_uppercase().as_str() {
            "" | "B" => 1,
            "KB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "TB" => 1_000_000_000_000,
            "KIB" => 1 << 10,
            "MIB" => 1 << 20,
            "GIB" => 1 << 30,
            "TIB" => 1 << 40,
            _ => {
                return Err(format!(
                    "{unit:?} is no unit; use B, KB, MB, GB, KiB, MiB or GiB"
                ));
            }
        };
        let number: u64 = number
            .trim()
            .parse()
            .map_err(|_| format!("{number:?} is no whole number; write for example 500MB"))?;
        match number.checked_mul(factor) {
            Some(bytes) if bytes > 0 => Ok(Self(bytes)),
            _ => Err("the size must be at least 1 byte and fit in 64 bits".to_owned()),
        }
    }
}

/// Writes `tensors` below `folder` in files of at most `size` bytes of tensors each; a larger tensor
/// has a file of its own.
///
/// # Errors
/// If a file cannot be written.
pub fn write(folder: &Path, tensors: &TensorMap, size: ShardSize) -> io::Result<()> {
    let bytes = |name: &String| 4 * tensors[name].values.len() as u64;
    let mut shards: Vec<Vec<&String>> = vec![Vec::new()];
    let mut filled = 0;
    for name in tensors.keys() {
        if filled > 0 && filled + bytes(name) > size.0 {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += bytes(name);
        shards.last_mut().expect("there is one").push(name);
    }
    let mut weight_map = BTreeMap::new();
    for (index, names) in shards.iter().enumerate() {
        let file = match shards.len() {
            1 => SINGLE_FILE.to_owned(),
            count => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
        };
        let tensors = names.iter().map(|name| ((*name).clone(), &tensors[*name]));
        weights_file::write(
            &mut File::create_new(folder.join(&file))?,
            tensors.collect(),
        )?;
        weight_map.extend(names.iter().map(|name| (*name, file.clone())));
    }
    if shards.len() == 1 {
        return Ok(());
    }
    let total_size: u64 = tensors.keys().map(bytes).sum();
    let index = json!({ "metadata": { "total_size": total_size }, "weight_map": weight_map });
    std::fs::write(folder.join(INDEX_FILE), format!("{index:#}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_of_ten_and_of_two() {
        for (text, bytes) in [
            ("5GB", 5_000_000_000),
            ("5gib", 5 << 30),
            ("200 kb", 200_000),
            ("3MiB", 3 << 20),
            ("17", 17),
        ] {
            assert_eq!(text.parse(), Ok(ShardSize(bytes)), "{text}");
        }
        for text in ["", "GB", "0", "-1GB", "1.5GB", "5 parsecs", "99999999999TB"] {
            assert!(text.parse::<ShardSize>().is_err(), "{text}");
        }
    }
}
