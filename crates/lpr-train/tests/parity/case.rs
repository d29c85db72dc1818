//! One entry of the manifest: its arrays, its tolerances, and what has been compared so far.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device, Gradients, Tensor, TensorData};
use lpr_model::parameters::{HostTensor, TensorMap};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// A folder of reference vectors.
pub struct Golden {
    dir: PathBuf,
    pub entries: Vec<Entry>,
}

/// One file of the manifest.
#[derive(Clone)]
pub struct Entry {
    pub file: String,
    pub config: Value,
    rtol: f64,
    atol: f64,
}

/// One array of a file, as 64-bit floats.
#[derive(Clone, Debug)]
pub struct Array {
    pub shape: Vec<usize>,
    pub values: Vec<f64>,
}

impl Golden {
    /// A set of the project's own.
    pub fn fixtures(name: &str) -> Self {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
        Self::open(&fixtures.join(name))
    }

    pub fn open(dir: &Path) -> Self {
        let dir = dir.to_owned();
        let manifest = read_json(&dir.join("manifest.json"));
        let entries = manifest["entries"].as_array().unwrap().iter();
        let entries = entries
            .map(|entry| Entry {
                file: entry["file"].as_str().unwrap().to_owned(),
                config: entry["config"].clone(),
                rtol: entry["rtol"].as_f64().unwrap_or(0.0),
                atol: entry["atol"].as_f64().unwrap_or(0.0),
            })
            .collect();
        Self { dir, entries }
    }

    pub fn entry(&self, file: &str) -> &Entry {
        let found = self.entries.iter().find(|e| e.file == file);
        found.unwrap_or_else(|| panic!("the manifest has no {file}"))
    }

    /// All arrays of a file but those without elements (matrices of no shared experts), in which
    /// there is nothing to compare.
    pub fn arrays(&self, file: &str) -> Vec<(String, Array)> {
        let path = self.dir.join(file);
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let array = |view: safetensors::tensor::TensorView<'_>| Array {
            shape: view.shape().to_vec(),
            values: to_f64(view.dtype(), view.data()),
        };
        let full = file.iter().filter(|(_, view)| !view.data().is_empty());
        full.map(|(n, v)| (n.to_owned(), array(v))).collect()
    }

    /// All arrays of a file as named parameters.
    pub fn parameters(&self, file: &str) -> TensorMap {
        let arrays = self.arrays(file).into_iter();
        arrays.map(|(name, array)| (name, array.host())).collect()
    }
}

fn read_json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap()
}

fn to_f64(dtype: Dtype, bytes: &[u8]) -> Vec<f64> {
    fn each<const N: usize>(bytes: &[u8], f: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        bytes.chunks(N).map(|c| f(c.try_into().unwrap())).collect()
    }
    match dtype {
        Dtype::F32 => each(bytes, |b| f64::from(f32::from_le_bytes(b))),
        Dtype::F64 => each(bytes, f64::from_le_bytes),
        Dtype::I64 => each(bytes, |b| i64::from_le_bytes(b) as f64),
        Dtype::I32 => each(bytes, |b| f64::from(i32::from_le_bytes(b))),
        Dtype::BOOL | Dtype::U8 => each(bytes, |[b]| f64::from(b)),
        other => panic!("arrays of {other:?} are not known here"),
    }
}

impl Array {
    /// As a tensor that requires a gradient, in the arithmetic of `dtype`.
    pub fn leaf<const D: usize>(&self, dtype: DType) -> Tensor<D> {
        self.tensor(dtype).require_grad()
    }

    /// As a constant on the autodiff device.
    pub fn tensor<const D: usize>(&self, dtype: DType) -> Tensor<D> {
        let data = TensorData::new(self.values.clone(), self.shape.clone());
        Tensor::from_data(data.convert_dtype(dtype), (&autodiff(), dtype))
    }

    pub fn host(&self) -> HostTensor {
        HostTensor {
            shape: self.shape.clone(),
            values: self.values.iter().map(|&v| v as f32).collect(),
        }
    }

    /// Rows `index` of the first axis.
    pub fn at(&self, index: usize) -> Self {
        let shape = self.shape[1..].to_vec();
        let size: usize = shape.iter().product();
        Self {
            values: self.values[index * size..][..size].to_vec(),
            shape,
        }
    }
}

/// The device with gradients that all checks run on.
pub fn autodiff() -> Device {
    Device::flex().autodiff()
}

/// The same without gradients, for integers.
pub fn plain() -> Device {
    Device::flex()
}

/// The values of a tensor as 64-bit floats.
pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

/// The gradient of a leaf; zero where none arrived.
pub fn gradient<const D: usize>(leaf: &Tensor<D>, gradients: &Gradients) -> Tensor<D> {
    let found = leaf.grad(gradients);
    found.unwrap_or_else(|| leaf.clone().inner().zeros_like())
}

/// Fails where `config` says something else than the only `value` of `key` that is implemented.
pub fn only(config: &Value, key: &str, value: &Value) {
    let found = &config[key];
    let same = match (found.as_f64(), value.as_f64()) {
        (Some(found), Some(value)) => found.to_bits() == value.to_bits(),
        _ => found == value,
    };
    assert!(
        same || config.get(key).is_none(),
        "`{key}` is {found}, only {value} is implemented"
    );
}

/// The check of one entry.
pub struct Case {
    pub entry: Entry,
    /// The file, where it is a text.
    pub json: Value,
    arrays: Vec<(String, Array)>,
    done: BTreeSet<String>,
    failures: Vec<String>,
    comparisons: usize,
}

impl Case {
    pub fn new(golden: &Golden, entry: &Entry) -> Self {
        let is_json = entry.file.ends_with(".json");
        let (json, arrays) = if is_json {
            (read_json(&golden.dir.join(&entry.file)), Vec::new())
        } else {
            (Value::Null, golden.arrays(&entry.file))
        };
        Self {
            json,
            arrays,
            entry: entry.clone(),
            done: BTreeSet::new(),
            failures: Vec::new(),
            comparisons: 0,
        }
    }

    /// Whether the file has that array.
    pub fn has(&self, name: &str) -> bool {
        self.arrays.iter().any(|(n, _)| n == name)
    }

    /// Whether the first of the file's cases or steps has that key.
    pub fn has_key(&self, key: &str) -> bool {
        let first = match (&self.json["cases"], &self.json["after_each_step"]) {
            (Value::Object(cases), _) => cases.values().next(),
            (Value::Array(list), _) | (_, Value::Array(list)) => list.first(),
            _ => None,
        };
        first.is_some_and(|first| first.get(key).is_some())
    }

    /// Fails for a key of the entry's config that no check reads: it may change what is meant.
    pub fn knows_keys(&self, read: &[&str]) {
        let keys = self.entry.config.as_object().into_iter().flatten();
        let unknown: Vec<_> = keys
            .map(|(key, _)| key.as_str())
            .filter(|key| !read.contains(key) && *key != "note")
            .collect();
        assert!(unknown.is_empty(), "config keys {unknown:?} are not read");
    }

    /// Takes an array as an input of the check.
    pub fn input(&mut self, name: &str) -> Array {
        self.try_input(name)
            .unwrap_or_else(|| panic!("{} has no `{name}`", self.entry.file))
    }

    /// Takes an array as an input if the file has it.
    pub fn try_input(&mut self, name: &str) -> Option<Array> {
        let found = self.arrays.iter().find(|(n, _)| n == name)?.1.clone();
        self.done.insert(name.to_owned());
        Some(found)
    }

    /// The names of the arrays that start with `prefix`, without it.
    pub fn names(&self, prefix: &str) -> Vec<String> {
        let names = self
            .arrays
            .iter()
            .filter_map(|(n, _)| n.strip_prefix(prefix));
        names.map(str::to_owned).collect()
    }

    /// Takes every array whose name starts with `prefix` as an input, with the prefix removed.
    pub fn inputs(&mut self, prefix: &str) -> TensorMap {
        let found: Vec<_> = self
            .arrays
            .iter()
            .filter_map(|(name, array)| {
                let rest = name.strip_prefix(prefix)?;
                Some((name.clone(), rest.to_owned(), array.host()))
            })
            .collect();
        self.done
            .extend(found.iter().map(|(name, _, _)| name.clone()));
        found
            .into_iter()
            .map(|(_, rest, host)| (rest, host))
            .collect()
    }

    /// Compares values with the array `name` of the file.
    pub fn expect(&mut self, name: &str, got: &[f64]) {
        let want = self.input(name);
        self.compare(name, got, &want.values);
    }

    /// Compares a tensor with the array `name` of the file.
    pub fn expect_tensor<const D: usize>(&mut self, name: &str, got: Tensor<D>) {
        self.expect(name, &values(got));
    }

    /// Compares the gradients of parameters (in Hugging Face's names) with the arrays
    /// `{prefix}{name}`; a gradient that only one side has must be zero.
    pub fn expect_gradients(&mut self, prefix: &str, got: &TensorMap) {
        for (name, gradient) in got {
            let name = format!("{prefix}{name}");
            let values: Vec<f64> = gradient.values.iter().map(|&v| f64::from(v)).collect();
            if self.has(&name) {
                self.expect(&name, &values);
            } else {
                self.compare(&name, &values, &vec![0.0; values.len()]);
            }
        }
        for name in self.names(prefix) {
            let full = format!("{prefix}{name}");
            if !got.contains_key(&name) && !self.done.contains(&full) {
                let length = self.input(&full).values.len();
                self.expect(&full, &vec![0.0; length]);
            }
        }
    }

    /// Compares two sets of values under the entry's tolerances.
    pub fn compare(&mut self, what: &str, got: &[f64], want: &[f64]) {
        let Entry {
            file, rtol, atol, ..
        } = &self.entry;
        self.comparisons += 1;
        if got.len() != want.len() {
            let text = format!("{file} {what}: {} values, not {}", got.len(), want.len());
            self.failures.push(text);
            return;
        }
        let excess = |g: f64, w: f64| {
            let error = (g - w).abs() - (atol + rtol * w.abs());
            if error.is_nan() { f64::INFINITY } else { error }
        };
        let worst = (0..got.len())
            .max_by(|&a, &b| excess(got[a], want[a]).total_cmp(&excess(got[b], want[b])));
        if let Some(i) = worst
            && excess(got[i], want[i]) > 0.0
        {
            let bad = (0..got.len()).filter(|&i| excess(got[i], want[i]) > 0.0);
            self.failures.push(format!(
                "{file} {what}: {} of {} values differ; [{i}] is {}, not {} (rtol {rtol}, atol {atol})",
                bad.count(),
                got.len(),
                got[i],
                want[i]
            ));
        }
    }

    /// All differences, and all arrays that were neither used nor compared.
    pub fn finish(mut self) -> Vec<String> {
        for (name, _) in &self.arrays {
            if !self.done.contains(name) {
                let text = format!("{} {name}: not compared", self.entry.file);
                self.failures.push(text);
            }
        }
        if self.comparisons == 0 {
            let text = format!("{}: nothing was compared", self.entry.file);
            self.failures.push(text);
        }
        self.failures
    }
}
