//! What a run left behind, read back for reports: records, configuration, machine, last checkpoint.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use lpr_data::DataFingerprint;
use lpr_model::parameters::HostTensor;
use serde::Deserialize;
use serde_json::Value as Json;

use crate::checkpoint::{self, Checkpoint};
use crate::error::TrainError;
use crate::expert_tokens::ExpertTokens;
use crate::run_dir::{
    CHECKPOINTS_FOLDER, CONFIG_FILE, ENVIRONMENT_FILE, EXPERT_TOKENS_FILE, METRICS_FILE,
};
use crate::session;
use crate::weights_file;

/// A sequence keeps at least so many members, evenly spaced, and at most twice as many.
const KEPT: usize = 120;

/// A line of `metrics.jsonl`: a logged step or an evaluation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Point {
    /// Optimizer steps done.
    pub step: u64,
    /// Every number of the line by its key; what is not a finite number is NaN.
    pub values: BTreeMap<String, f64>,
    /// The layers with experts, one by one.
    pub layers: Vec<LayerPoint>,
}

/// The load of one layer in a [`Point`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerPoint {
    /// Every number by its key.
    pub values: BTreeMap<String, f64>,
    /// Choices per expert, padding left out.
    pub counts: Vec<u64>,
}

/// What a line of `metrics.jsonl` is.
#[derive(Clone, Debug, PartialEq)]
pub enum Line {
    /// A logged step.
    Step(Point),
    /// An evaluation.
    Evaluation(Point),
    /// A record of another kind.
    Other,
}

impl Line {
    /// Reads a line; `None` if it is not a whole JSON object.
    pub fn parse(text: &str) -> Option<Self> {
        let json: Json = serde_json::from_str(text).ok()?;
        let step = json.get("step")?.as_u64()?;
        Some(if let Some(eval) = json.get("eval") {
            Self::Evaluation(Point::new(step, eval))
        } else if json.get("loss_ce").is_some() {
            Self::Step(Point::new(step, &json))
        } else {
            Self::Other
        })
    }
}

impl Point {
    fn new(step: u64, fields: &Json) -> Self {
        let layers = fields["layers"].as_array().map_or(&[][..], Vec::as_slice);
        let layer = |layer: &Json| {
            let counts = layer["counts"].as_array().map_or(&[][..], Vec::as_slice);
            LayerPoint {
                values: numbers(layer),
                counts: counts.iter().filter_map(Json::as_u64).collect(),
            }
        };
        Self {
            step,
            values: numbers(fields),
            layers: layers.iter().map(layer).collect(),
        }
    }

    /// A number of the line, NaN if it has none of that name.
    pub fn value(&self, key: &str) -> f64 {
        self.values.get(key).copied().unwrap_or(f64::NAN)
    }
}

fn numbers(fields: &Json) -> BTreeMap<String, f64> {
    let fields = fields.as_object().into_iter().flatten();
    fields
        .filter(|(_, value)| value.is_number() || value.is_null())
        .map(|(key, value)| (key.clone(), value.as_f64().unwrap_or(f64::NAN)))
        .collect()
}

/// The members of a sequence of any length that are kept: evenly spaced ones, and the newest.
#[derive(Clone, Debug)]
pub struct Thinned<T> {
    kept: Vec<T>,
    newest: Option<T>,
    stride: usize,
    seen: usize,
}

impl<T> Default for Thinned<T> {
    fn default() -> Self {
        Self {
            kept: Vec::new(),
            newest: None,
            stride: 1,
            seen: 0,
        }
    }
}

impl<T> Thinned<T> {
    /// Takes in the next member.
    pub fn push(&mut self, item: T) {
        if self.seen.is_multiple_of(self.stride) {
            self.kept.push(item);
            self.newest = None;
        } else {
            self.newest = Some(item);
        }
        self.seen += 1;
        if self.kept.len() > 2 * KEPT {
            // Their number is odd: every second one, the newest among them, stays.
            let mut index = 0;
            self.kept.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            self.stride *= 2;
        }
    }

    /// What is kept, in order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.kept.iter().chain(&self.newest)
    }

    /// The newest member.
    pub fn last(&self) -> Option<&T> {
        self.newest.as_ref().or(self.kept.last())
    }

    /// One of how many members is kept.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// How many members there were.
    pub fn seen(&self) -> usize {
        self.seen
    }
}

/// The vectors by which a layer's router tells its experts apart.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertVectors {
    /// Index among all layers of the model, as in the parameter's name.
    pub block: usize,
    /// True for the prototypes of an LPR router, false for the rows of a linear one.
    pub are_prototypes: bool,
    /// One vector per expert.
    pub rows: Vec<Vec<f64>>,
}

/// What is used of a run's newest checkpoint.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Saved {
    /// Optimizer steps done.
    pub step: u64,
    /// SHA-256 of the fingerprint of files and tokenizer; empty if it cannot be read.
    pub data_fingerprint: String,
    /// Layers whose routers have such vectors, in order.
    pub vectors: Vec<ExpertVectors>,
}

/// A run as its folder shows it.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The last part of its path.
    pub name: String,
    /// Logged steps.
    pub steps: Thinned<Point>,
    /// Evaluations.
    pub evaluations: Thinned<Point>,
    /// The content of `config.resolved.toml`.
    pub config: String,
    /// The content of `environment.json`.
    pub environment: BTreeMap<String, Json>,
    /// From the newest valid checkpoint, if there is one.
    pub saved: Option<Saved>,
    /// What the experts took in the newest evaluation.
    pub expert_tokens: Option<ExpertTokens>,
    /// What could not be read, in words.
    pub problems: Vec<String>,
}

impl History {
    /// Reads the run in `folder`. Memory does not grow with the length of the run.
    ///
    /// # Errors
    /// If it is not the folder of a run, or its metrics cannot be read. What else is missing or
    /// damaged is listed in [`Self::problems`].
    pub fn read(folder: &Path) -> Result<Self, TrainError> {
        let mut history = Self::read_records(folder)?;
        history.config = history.read_text(&folder.join(CONFIG_FILE));
        let environment = history.read_text(&folder.join(ENVIRONMENT_FILE));
        history.environment = history
            .parse(ENVIRONMENT_FILE, &environment)
            .unwrap_or_default();
        if folder.join(EXPERT_TOKENS_FILE).is_file() {
            let text = history.read_text(&folder.join(EXPERT_TOKENS_FILE));
            history.expert_tokens = history.parse(EXPERT_TOKENS_FILE, &text);
        }
        history.read_checkpoint(&folder.join(CHECKPOINTS_FOLDER));
        Ok(history)
    }

    /// Like [`Self::read`], the records of `metrics.jsonl` only.
    ///
    /// # Errors
    /// If it is not the folder of a run, or its metrics cannot be read.
    pub fn read_records(folder: &Path) -> Result<Self, TrainError> {
        let metrics = folder.join(METRICS_FILE);
        if !metrics.is_file() {
            return Err(TrainError::Usage(format!(
                "{} is not the folder of a run: it has no {METRICS_FILE}",
                folder.display()
            )));
        }
        let mut history = Self {
            name: name(folder),
            ..Self::default()
        };
        history
            .read_metrics(&metrics)
            .map_err(|error| TrainError::io(&metrics, error))?;
        Ok(history)
    }

    /// The configuration by dotted keys, values as TOML.
    pub fn config_keys(&self) -> BTreeMap<String, String> {
        let table: toml::Table = self.config.parse().unwrap_or_default();
        let mut keys = BTreeMap::new();
        flatten(String::new(), toml::Value::Table(table), &mut keys);
        keys
    }

    /// Names of the router's loss terms, as logged.
    pub fn loss_terms(&self) -> Vec<String> {
        let last = self.steps.last().into_iter();
        last.flat_map(|point| point.values.keys())
            .filter_map(|key| key.strip_prefix("aux."))
            .map(str::to_owned)
            .collect()
    }

    fn read_metrics(&mut self, path: &Path) -> io::Result<()> {
        let mut bad = 0_u64;
        for line in BufReader::new(File::open(path)?).split(b'\n') {
            match Line::parse(&String::from_utf8_lossy(&line?)) {
                Some(Line::Step(point)) => self.steps.push(point),
                Some(Line::Evaluation(point)) => self.evaluations.push(point),
                Some(Line::Other) => {}
                None => bad += 1,
            }
        }
        if bad > 0 {
            self.problems
                .push(format!("{bad} lines of {METRICS_FILE} cannot be read"));
        }
        Ok(())
    }

    fn read_text(&mut self, path: &Path) -> String {
        fs::read_to_string(path).unwrap_or_else(|error| {
            self.problems.push(format!("{}: {error}", name(path)));
            String::new()
        })
    }

    fn parse<T: serde::de::DeserializeOwned>(&mut self, name: &str, text: &str) -> Option<T> {
        if text.is_empty() {
            return None;
        }
        let parsed = serde_json::from_str(text);
        parsed
            .map_err(|error| self.problems.push(format!("{name}: {error}")))
            .ok()
    }

    fn read_checkpoint(&mut self, checkpoints: &Path) {
        match checkpoint::find_latest(checkpoints) {
            Ok(found) => {
                self.problems.extend(found.warnings);
                let saved = found.checkpoint.map(|checkpoint| saved(&checkpoint));
                match saved.transpose() {
                    Ok(saved) => self.saved = saved,
                    Err(error) => self.problems.push(error.to_string()),
                }
            }
            Err(error) => self.problems.push(error.to_string()),
        }
    }
}

fn saved(checkpoint: &Checkpoint) -> Result<Saved, TrainError> {
    let state: Json = checkpoint.state()?;
    let fingerprint = DataFingerprint::deserialize(&state["data_fingerprint"]).ok();
    let path = checkpoint.file(session::MODEL_FILE)?;
    let wanted = |name: &str| vectors_of(name).is_some();
    let tensors =
        weights_file::read_where(&path, wanted).map_err(|error| TrainError::io(&path, error))?;
    let mut vectors: Vec<ExpertVectors> = tensors
        .iter()
        .filter_map(|(name, tensor)| {
            let (block, are_prototypes) = vectors_of(name)?;
            Some(ExpertVectors {
                block,
                are_prototypes,
                rows: rows(tensor, are_prototypes)?,
            })
        })
        .collect();
    vectors.sort_by_key(|layer| layer.block);
    Ok(Saved {
        step: checkpoint.step(),
        data_fingerprint: fingerprint.map_or_else(String::new, |found| found.digest()),
        vectors,
    })
}

/// The block of a parameter that holds one vector per expert, and whether those are prototypes.
fn vectors_of(name: &str) -> Option<(usize, bool)> {
    let (block, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let are_prototypes = match rest {
        "mlp.router.prototypes" => true,
        "mlp.router.weight" => false,
        _ => return None,
    };
    Some((block.parse().ok()?, are_prototypes))
}

/// Prototypes are `[num_experts, latent_dim]`, linear routers `[hidden_size, num_experts]`.
fn rows(tensor: &HostTensor, are_prototypes: bool) -> Option<Vec<Vec<f64>>> {
    let &[first, second] = tensor.shape.as_slice() else {
        return None;
    };
    let at = |row: usize, column: usize| f64::from(tensor.values[row * second + column]);
    Some(if are_prototypes {
        let row = |expert| (0..second).map(|d| at(expert, d)).collect();
        (0..first).map(row).collect()
    } else {
        let row = |expert| (0..first).map(|d| at(d, expert)).collect();
        (0..second).map(row).collect()
    })
}

fn name(path: &Path) -> String {
    let absolute = fs::canonicalize(path).unwrap_or_else(|_| PathBuf::from(path));
    let name = absolute.file_name().unwrap_or(absolute.as_os_str());
    name.to_string_lossy().into_owned()
}

fn flatten(key: String, value: toml::Value, keys: &mut BTreeMap<String, String>) {
    match value {
        toml::Value::Table(table) => {
            for (name, value) in table {
                let key = if key.is_empty() {
                    name
                } else {
                    format!("{key}.{name}")
                };
                flatten(key, value, keys);
            }
        }
        value => {
            keys.insert(key, value.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_sequence_is_thinned_evenly_and_keeps_its_ends() {
        let mut thinned = Thinned::default();
        for number in 0..10_000_usize {
            thinned.push(number);
            let kept: Vec<usize> = thinned.iter().copied().collect();
            assert!(kept.len() <= 2 * KEPT + 1, "{number}: {}", kept.len());
            assert_eq!((kept[0], kept[kept.len() - 1]), (0, number));
            let inner = &kept[..kept.len() - 1];
            assert!(
                inner.windows(2).all(|w| w[1] - w[0] == thinned.stride()),
                "{inner:?}"
            );
        }
        assert!(thinned.iter().count() > KEPT);
        assert_eq!((thinned.last(), thinned.seen()), (Some(&9999), 10_000));
    }

    #[test]
    fn lines_are_told_apart_and_half_a_line_is_none() {
        let text =
            r#"{"step":3,"loss_ce":2.5,"aux.kl":null,"layers":[{"gini":0.5,"counts":[1,2]}]}"#;
        let Some(Line::Step(point)) = Line::parse(text) else {
            panic!("a step")
        };
        assert_eq!((point.step, point.value("loss_ce")), (3, 2.5));
        assert!(point.values["aux.kl"].is_nan() && point.value("absent").is_nan());
        assert_eq!(point.layers[0].counts, [1, 2]);
        assert_eq!(point.layers[0].values.get("gini"), Some(&0.5));
        let evaluation = r#"{"step":3,"wall_time":1.0,"eval":{"loss":2.0}}"#;
        let Some(Line::Evaluation(point)) = Line::parse(evaluation) else {
            panic!("an evaluation")
        };
        assert_eq!(point.values.get("loss"), Some(&2.0));
        assert_eq!(Line::parse(r#"{"step":3,"event":"x"}"#), Some(Line::Other));
        assert_eq!(Line::parse(r#"{"step":3,"loss_ce""#), None);
    }

    #[test]
    fn experts_are_rows_whatever_the_layout_of_the_router() {
        let tensor = HostTensor {
            shape: vec![2, 3],
            values: vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        };
        assert_eq!(
            rows(&tensor, true).expect("two experts"),
            [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
        );
        assert_eq!(
            rows(&tensor, false).expect("three experts"),
            [[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]]
        );
        assert_eq!(
            vectors_of("model.layers.12.mlp.router.prototypes"),
            Some((12, true))
        );
        assert_eq!(vectors_of("model.layers.0.mlp.router.aligner.weight"), None);
    }
}
