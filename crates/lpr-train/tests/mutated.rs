//! Configurations, weights, manifests and states with bytes changed at random: an error or a value,
//! never a panic. The fuzz targets in `fuzz/` ask the same with knowledge of the code; this needs no
//! other compiler. `LPR_MUTATED_SECONDS=1200` goes on for so long.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use lpr_data::{DataFingerprint, FileFingerprint};
use lpr_train::checkpoint::{Checkpoint, MANIFEST_FILE};
use lpr_train::config::RunConfig;
use lpr_train::hugging_face::folder::{read_json, read_tensors};
use lpr_train::session::RunState;
use serde_json::json;
use support::mix;

/// Cases of each kind in a normal run.
const CASES: u64 = 1_000;
/// What readers of text and of numbers stumble over.
const WORDS: [&str; 16] = [
    "[",
    "]",
    "{",
    "}",
    "\"",
    "\\u0000",
    "=",
    "\n",
    "nan",
    "-1",
    "1e999",
    "18446744073709551616",
    "../",
    "null",
    "\u{1f600}",
    "[router]\n",
];

/// Numbers without pattern, the same every time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 += 1;
        (mix(self.0) % limit.max(1) as u64) as usize
    }

    /// `seed` with one to four changes.
    fn mutated(&mut self, seed: &[u8]) -> Vec<u8> {
        let mut bytes = seed.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            let end = bytes.len().min(at + 1 + self.below(24));
            match self.below(7) {
                0 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
                1 if !bytes.is_empty() => bytes[at] = [0, 0xff, b'9', b'"'][self.below(4)],
                2 => drop(bytes.drain(at..end)),
                3 => {
                    let part = bytes[at..end].to_vec();
                    let to = self.below(bytes.len() + 1);
                    bytes.splice(to..to, part);
                }
                4 => bytes.truncate(at),
                _ => {
                    let word = WORDS[self.below(WORDS.len())];
                    bytes.splice(at..at, word.bytes());
                }
            }
        }
        bytes
    }
}

/// Hands mutations of the seeds to `read`, and counts those of which it says that they were read.
fn throw(name: &str, seeds: &[Vec<u8>], mut read: impl FnMut(&[u8]) -> bool) {
    let seconds = std::env::var("LPR_MUTATED_SECONDS").ok();
    let length = seconds.map_or(Duration::ZERO, |s| Duration::from_secs(s.parse().unwrap()));
    let (start, mut dice) = (Instant::now(), Dice(0));
    let (mut cases, mut readable) = (0, 0);
    for seed in seeds {
        assert!(read(seed), "{name}: the seed itself cannot be read");
    }
    while cases < CASES || start.elapsed() < length {
        let seed = &seeds[dice.below(seeds.len())];
        let case = dice.mutated(seed);
        readable += u64::from(read(&case));
        cases += 1;
    }
    println!("{name}: {cases} cases, {readable} of them readable");
    assert!(readable < cases, "{name}: nothing was ever refused");
}

#[test]
fn configurations() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
    let names = ["tiny-deepseekv3-lpr", "tiny-mixtral", "quickstart"];
    let seed = |name| fs::read(folder.join(format!("{name}.toml"))).unwrap();
    throw("configurations", &names.map(seed), |bytes| {
        let text = String::from_utf8_lossy(bytes);
        let first = text.lines().next().unwrap_or_default().to_owned();
        let _ = RunConfig::parse("x.toml", &text, &[first]);
        match RunConfig::parse("x.toml", &text, &[]) {
            Ok(config) => {
                // What is accepted is written so that it reads back as the same.
                let again = RunConfig::parse("x.toml", &config.to_toml(), &[]);
                assert_eq!(again.as_ref(), Ok(&config), "{text}");
                true
            }
            Err(errors) => {
                assert!(!errors.problems().is_empty(), "{text}");
                false
            }
        }
    });
}

#[test]
fn weights() {
    let header = json!({
        "a": { "dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24] },
        "b": { "dtype": "BF16", "shape": [3, 4], "data_offsets": [24, 48] },
        "c": { "dtype": "I64", "shape": [], "data_offsets": [48, 56] },
        "__metadata__": { "format": "pt" }
    })
    .to_string();
    let seed = [
        &(header.len() as u64).to_le_bytes(),
        header.as_bytes(),
        &[0; 56],
    ]
    .concat();
    let folder = tempfile::tempdir().unwrap();
    throw("weights", &[seed], |bytes| {
        fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
        let tensors = read_tensors(folder.path(), &mut Vec::new());
        let size = |shape: &[usize]| shape.iter().product::<usize>();
        assert!(tensors.values().all(|t| t.values.len() == size(&t.shape)));
        !tensors.is_empty()
    });
}

#[test]
fn indexes() {
    let folder = tempfile::tempdir().unwrap();
    let seed = json!({ "weight_map": { "a": "model-1.safetensors", "b": "model-2.safetensors" } });
    throw("indexes", &[seed.to_string().into()], |bytes| {
        fs::write(folder.path().join("model.safetensors.index.json"), bytes).unwrap();
        let mut problems = Vec::new();
        assert!(read_tensors(folder.path(), &mut problems).is_empty());
        // There are no shards, so something is always wrong, unless the map is empty.
        let index = read_json(folder.path(), "model.safetensors.index.json");
        index.is_ok()
    });
}

#[test]
fn manifests() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state.json");
    fs::write(&state, "{}").unwrap();
    let entry = lpr_train::sha256::of_file(&state).unwrap();
    let manifest = json!({
        "format_version": 1, "lpr_train_version": "0.1.0", "step": 3, "config_hash": "hash",
        "files": { "state.json": entry }
    });
    throw("manifests", &[manifest.to_string().into()], |bytes| {
        fs::write(folder.path().join(MANIFEST_FILE), bytes).unwrap();
        let opened = Checkpoint::open(folder.path());
        opened.is_ok_and(|checkpoint| checkpoint.state::<RunState>().is_err())
    });
}

#[test]
fn states() {
    let config = RunConfig::parse("x", &lpr_train::config::template(), &[]).unwrap();
    let file = FileFingerprint {
        name: "a.parquet".to_owned(),
        bytes: 1000,
        hash: "0f".repeat(32),
    };
    let data = DataFingerprint {
        tokenizer: "bytes".to_owned(),
        sources: vec![vec![file]],
        ..DataFingerprint::default()
    };
    let state = serde_json::to_vec(&RunState::new(&config, data)).unwrap();
    throw("states", &[state], |bytes| {
        serde_json::from_slice::<RunState>(bytes).is_ok()
    });
}
