//! A small corpus, a small model, and the real binary.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(dead_code, reason = "each test program uses its part")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lpr_model::FamilyConfig;
use serde_json::{Value, json};

/// Numbers without pattern, the same every time.
pub fn mix(index: u64) -> u64 {
    let mut z = index.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x51_7c_c1_b7;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z ^ (z >> 29)
}

/// A model of two layers for tests, whose keys `more` replaces.
pub fn small_family(name: &str, more: &Value) -> FamilyConfig {
    let mut config = json!({
        "family": name, "vocab_size": 257, "hidden_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "moe_intermediate_size": 12, "num_experts": 6, "top_k": 2,
    });
    let attention = match name {
        "deepseek_v3" => json!({
            "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
            "v_head_dim": 8, "num_shared_experts": 1, "first_k_dense_replace": 1,
            "intermediate_size": 24,
        }),
        _ => json!({ "num_key_value_heads": 1, "head_dim": 8 }),
    };
    let all = config.as_object_mut().unwrap();
    for part in [attention, more.clone()] {
        all.extend(part.as_object().unwrap().clone());
    }
    serde_json::from_value(config).unwrap()
}

/// Two JSON-lines files with documents of 20 to 150 bytes, about 4,000 bytes together.
pub fn write_corpus(folder: &Path) {
    for shard in 0..2_u64 {
        let mut lines = String::new();
        for document in 0..24_u64 {
            let seed = mix(1000 * shard + document);
            let words = (0..4 + seed % 20)
                .map(|w| ["ba", "do", "kel", "mira", "su"][(mix(seed + w) % 5) as usize]);
            let text: Vec<&str> = words.collect();
            let _ = writeln!(lines, "{}", serde_json::json!({ "text": text.join(" ") }));
        }
        std::fs::write(folder.join(format!("shard-{shard}.jsonl")), lines).unwrap();
    }
}

/// What varies between the runs of a test.
#[derive(Clone, Copy, Debug)]
pub struct Variant {
    pub router: &'static str,
    pub packing: &'static str,
    pub accumulation: usize,
}

/// A config whose run takes 40 steps and passes over the corpus more than once.
pub fn config(corpus: &Path, run_dir: &Path, variant: Variant) -> String {
    let Variant {
        router,
        packing,
        accumulation,
    } = variant;
    let corpus = corpus.display();
    let run_dir = run_dir.display();
    format!(
        r#"
[model]
family = "qwen3_moe"
vocab_size = 257
hidden_size = 16
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 1
head_dim = 8
moe_intermediate_size = 12
num_experts = 6
top_k = 2
[router]
kind = "{router}"
[data]
train = ["{corpus}/*.jsonl"]
validation = ["{corpus}/shard-1.jsonl"]
sequence_length = 48
packing = "{packing}"
on_data_end = "repeat"
[train]
total_steps = 40
micro_batch_size = 3
gradient_accumulation_steps = {accumulation}
run_dir = "{run_dir}"
[checkpoint]
every_steps = 5
keep_last = 100
[eval]
at_start = true
every_steps = 10
max_tokens = 400
[log]
every_steps = 3
"#
    )
}

/// The binary under test.
pub fn lpr_train() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lpr-train"));
    command.env_remove("LPR_DEVICE").env_remove("LPR_FAULT");
    command
}

/// Runs the binary and returns what it did.
pub fn run(args: &[&str]) -> Output {
    lpr_train().args(args).output().unwrap()
}

/// Runs the binary, which must succeed.
pub fn run_well(args: &[&str]) -> Output {
    let output = run(args);
    assert!(
        output.status.success(),
        "{args:?}: {}",
        text(&output.stderr)
    );
    output
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A folder with a corpus and a config.
pub struct Setup {
    pub folder: tempfile::TempDir,
    pub variant: Variant,
}

impl Setup {
    pub fn new(variant: Variant) -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_corpus(folder.path());
        Self { folder, variant }
    }

    pub fn run_dir(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes the config of the run called `name` and returns its path.
    pub fn config(&self, name: &str) -> String {
        let path = self.folder.path().join(format!("{name}.toml"));
        let text = config(self.folder.path(), &self.run_dir(name), self.variant);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// Copies the run `from` to `to` as it was right after its checkpoint of `step`.
    pub fn copy_at(&self, from: &str, to: &str, step: u64) {
        let (from, to) = (self.run_dir(from), self.run_dir(to));
        let checkpoint = format!("checkpoints/step-{step:08}");
        std::fs::create_dir_all(to.join(&checkpoint)).unwrap();
        for entry in std::fs::read_dir(from.join(&checkpoint)).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), to.join(&checkpoint).join(entry.file_name())).unwrap();
        }
        for file in ["lock", "metrics.jsonl", "config.resolved.toml"] {
            std::fs::copy(from.join(file), to.join(file)).unwrap();
        }
    }

    pub fn file(&self, run: &str, step: u64, name: &str) -> Vec<u8> {
        let path = self
            .run_dir(run)
            .join(format!("checkpoints/step-{step:08}/{name}"));
        std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    pub fn state(&self, run: &str, step: u64) -> Value {
        serde_json::from_slice(&self.file(run, step, "state.json")).unwrap()
    }

    /// The lines of `metrics.jsonl` without what depends on the machine and the hour.
    pub fn metrics(&self, run: &str) -> Vec<Value> {
        let lines = std::fs::read_to_string(self.run_dir(run).join("metrics.jsonl")).unwrap();
        let lines = lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap());
        lines.map(lpr_train::record::without_timing).collect()
    }

    /// Weights, optimizer, state (token hash included) and log of two finished runs are the same.
    pub fn assert_same(&self, one: &str, other: &str) {
        self.assert_same_at(one, other, 40);
    }

    /// The same for runs of `steps` steps.
    pub fn assert_same_at(&self, one: &str, other: &str, steps: u64) {
        let variant = self.variant;
        for file in ["model.safetensors", "optimizer.safetensors"] {
            let same = self.file(one, steps, file) == self.file(other, steps, file);
            assert!(same, "{variant:?}: {file} of {one} and {other} differ");
        }
        let states = (self.state(one, steps), self.state(other, steps));
        assert_eq!(states.0, states.1, "{variant:?}");
        assert_eq!(self.metrics(one), self.metrics(other), "{variant:?}");
    }

    /// The steps of a run's checkpoints, newest first; every one of them valid.
    pub fn steps(&self, name: &str) -> Vec<u64> {
        let checkpoints = self.run_dir(name).join("checkpoints");
        let folders = lpr_train::checkpoint::step_folders(&checkpoints).unwrap();
        for (_, path) in &folders {
            lpr_train::checkpoint::Checkpoint::open(path).unwrap();
        }
        folders.into_iter().map(|(step, _)| step).collect()
    }

    /// How many lines `metrics.jsonl` has by now.
    pub fn lines(&self, run: &str) -> usize {
        let path = self.run_dir(run).join("metrics.jsonl");
        std::fs::read_to_string(path).map_or(0, |text| text.lines().count())
    }

    /// Names of temporary files and folders anywhere in a run.
    pub fn leftovers(&self, name: &str) -> Vec<String> {
        let run = self.run_dir(name);
        let list = |folder: PathBuf| std::fs::read_dir(folder).into_iter().flatten();
        list(run.clone())
            .chain(list(run.join("checkpoints")))
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with(".tmp"))
            .collect()
    }
}
