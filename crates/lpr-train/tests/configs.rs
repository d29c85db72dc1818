//! The configurations that come with the project: they load, and their small twins train and
//! resume. That they describe the paper's models is checked in `estimate.rs`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use lpr_model::parameters::TensorMap;
use lpr_model::router::Similarity;
use lpr_model::{FamilyConfig, RouterConfig};
use lpr_train::config::RunConfig;
use lpr_train::weights_file;
use serde_json::Value;
use support::run_well;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs")
}

fn load(name: &str) -> RunConfig {
    let path = folder().join(format!("{name}.toml"));
    RunConfig::load(&[path], &[]).unwrap_or_else(|e| panic!("{name}: {e}"))
}

#[test]
fn every_file_loads_and_no_two_describe_the_same_run() {
    let files = fs::read_dir(folder()).unwrap();
    let names: Vec<String> = files
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "toml"))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    let mut hashes: Vec<String> = names.iter().map(|name| load(name).hash()).collect();
    for family in ["qwen3moe", "mixtral", "deepseekv3"] {
        for name in [family.to_owned(), format!("{family}-lpr")] {
            assert!(names.contains(&name), "{name}");
            assert!(names.contains(&format!("tiny-{name}")), "tiny-{name}");
            let same = |config: &RunConfig| (config.model.name(), config.router.name());
            assert_eq!(same(&load(&name)), same(&load(&format!("tiny-{name}"))));
        }
    }
    hashes.sort();
    hashes.dedup();
    assert_eq!(hashes.len(), names.len());
}

/// A run of this length.
struct Length {
    steps: usize,
    micro_batch_size: usize,
    learning_rate: f64,
}

const THREE_STEPS: Length = Length {
    steps: 3,
    micro_batch_size: 2,
    learning_rate: 1e-3,
};

/// The model of a `tiny-` config, smaller still, with a router of `keys`.
fn small(name: &str, router: &toml::Table, run_dir: &Path, length: &Length) -> toml::Table {
    let text = fs::read_to_string(folder().join(format!("{name}.toml"))).unwrap();
    let mut model = text.parse::<toml::Table>().unwrap()["model"].clone();
    let model_table = model.as_table_mut().unwrap();
    for (key, value) in [
        ("vocab_size", 257),
        ("hidden_size", 24),
        ("num_hidden_layers", 2),
        ("num_attention_heads", 2),
        ("num_key_value_heads", 1),
        ("head_dim", 8),
        ("q_lora_rank", 12),
        ("kv_lora_rank", 8),
        ("qk_nope_head_dim", 8),
        ("qk_rope_head_dim", 4),
        ("v_head_dim", 6),
        ("moe_intermediate_size", 10),
        ("num_experts", 8),
        ("top_k", 2),
    ] {
        if let Some(size) = model_table.get_mut(key) {
            *size = value.into();
        }
    }
    if name.ends_with("deepseekv3") {
        model_table.insert("first_k_dense_replace".to_owned(), 1.into());
        model_table.insert("intermediate_size".to_owned(), 14.into());
    }
    let rest = format!(
        r#"
[data]
train = ["builtin:synthetic"]
sequence_length = 24
[optimizer]
learning_rate = {}
[train]
total_steps = {}
micro_batch_size = {}
gradient_accumulation_steps = 2
run_dir = "{}"
[checkpoint]
every_steps = 1
keep_last = 9
[log]
every_steps = 1
[eval]
every_steps = 0
"#,
        length.learning_rate,
        length.steps,
        length.micro_batch_size,
        run_dir.display()
    );
    let mut config: toml::Table = rest.parse().unwrap();
    config.insert("model".to_owned(), model);
    config.insert("router".to_owned(), router.clone().into());
    config
}

/// Every registered router, and every form of the balancing loss.
fn routers() -> Vec<toml::Table> {
    let kind = |name: &&str| toml::Table::from_iter([("kind".to_owned(), (*name).into())]);
    let mut routers: Vec<_> = RouterConfig::NAMES.iter().map(kind).collect();
    for form in ["switch", "per_sequence", "global_batch"] {
        let mut router = kind(&"softmax_topk");
        router.insert("aux_loss".to_owned(), form.into());
        routers.push(router);
    }
    routers
}

fn checkpoint(run_dir: &Path, step: u64, file: &str) -> PathBuf {
    run_dir.join(format!("checkpoints/step-{step:08}/{file}"))
}

#[test]
fn every_family_with_every_router_trains_and_resumes_to_the_same_bits() {
    let families = ["tiny-qwen3moe", "tiny-deepseekv3", "tiny-mixtral"];
    let known: Vec<_> = families.map(|name| load(name).model.name()).to_vec();
    assert_eq!(known, FamilyConfig::NAMES);
    for family in families {
        for router in routers() {
            let name = format!("{family} with {router}");
            let folder = tempfile::tempdir().unwrap();
            let start = |run: &str| {
                let run_dir = folder.path().join(run);
                let path = folder.path().join(format!("{run}.toml"));
                let config = small(family, &router, &run_dir, &THREE_STEPS);
                fs::write(&path, config.to_string()).unwrap();
                (run_dir, path.display().to_string())
            };
            let (whole, config) = start("whole");
            run_well(&["-q", "--config", &config]);
            let (resumed, config) = start("resumed");
            copy_at(&whole, &resumed, 1);
            run_well(&["-q", "--resume", "--config", &config]);
            for file in ["model.safetensors", "optimizer.safetensors", "state.json"] {
                let [a, b] = [&whole, &resumed].map(|run| fs::read(checkpoint(run, 3, file)));
                assert!(a.unwrap() == b.unwrap(), "{name}: {file} differs");
            }
            check_change(&name, &whole);
        }
    }
}

/// The paper's router with every metric, and each way to move its prototypes.
fn lpr_routers() -> Vec<toml::Table> {
    let lpr = |key: &str, value: &str| {
        let keys = [("kind", "lpr"), (key, value)];
        toml::Table::from_iter(keys.map(|(key, value)| (key.to_owned(), value.into())))
    };
    let metrics = Similarity::ALL.iter();
    let mut routers: Vec<_> = metrics.map(|m| lpr("similarity", m.name())).collect();
    for update in ["official", "paper_hard", "paper_soft"] {
        routers.push(lpr("prototype_ema", update));
    }
    routers
}

/// Loss and cross-entropy of every step of a run.
fn losses(run_dir: &Path) -> (Vec<f64>, Vec<f64>) {
    let lines = fs::read_to_string(run_dir.join("metrics.jsonl")).unwrap();
    let lines = lines
        .lines()
        .map(|l| serde_json::from_str::<Value>(l).unwrap());
    let steps: Vec<Value> = lines.filter(|line| line["loss_ce"].is_number()).collect();
    let column = |key: &str| steps.iter().map(|s| s[key].as_f64().unwrap()).collect();
    (column("loss_total"), column("loss_ce"))
}

/// Twenty steps of 192 tokens each. Means of five steps differ by 0.01 nats with their text alone, while
/// training lowers the cross-entropy from 5.2 to 2.8 or less; the margin is half of that.
#[test]
fn every_family_with_every_router_learns() {
    const MARGIN: f64 = 1.2;
    let length = Length {
        steps: 20,
        micro_batch_size: 4,
        learning_rate: 1e-2,
    };
    let families = ["tiny-qwen3moe", "tiny-deepseekv3", "tiny-mixtral"];
    for family in families {
        let more = if family == families[0] {
            lpr_routers()
        } else {
            Vec::new()
        };
        for router in routers().into_iter().chain(more) {
            let name = format!("{family} with {router}");
            let folder = tempfile::tempdir().unwrap();
            let run_dir = folder.path().join("run");
            let path = folder.path().join("run.toml");
            let mut config = small(family, &router, &run_dir, &length);
            config.remove("checkpoint");
            fs::write(&path, config.to_string()).unwrap();
            run_well(&["-q", "--config", &path.display().to_string()]);
            let (total, ce) = losses(&run_dir);
            assert_eq!(total.len(), length.steps, "{name}");
            for losses in [total, ce] {
                assert!(losses.iter().all(|l| l.is_finite()), "{name}: {losses:?}");
                let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
                let (first, last) = (mean(&losses[..5]), mean(&losses[15..]));
                assert!(last < first - MARGIN, "{name}: {first} to {last}");
            }
        }
    }
}

/// Weights are finite and were trained, and a correction bias has moved.
fn check_change(name: &str, run: &Path) {
    let read = |step| -> TensorMap {
        weights_file::read(&checkpoint(run, step, "model.safetensors")).unwrap()
    };
    let (first, last) = (read(1), read(3));
    for (parameter, tensor) in &last {
        let finite = tensor.values.iter().all(|v| v.is_finite());
        assert!(finite, "{name}: {parameter}");
        // The bias may be back where it was.
        let moved = parameter.ends_with("correction_bias") || *tensor != first[parameter];
        assert!(moved, "{name}: {parameter} stands still");
    }
    let bias = |(name, _): &(&String, _)| name.ends_with("correction_bias");
    for (parameter, tensor) in last.iter().filter(bias) {
        // Three moves of 1e-3 each.
        let moved = tensor.values.iter().any(|v| v.abs() > 5e-4);
        let bounded = tensor.values.iter().all(|v| v.abs() < 3.5e-3);
        assert!(moved && bounded, "{name}: {parameter} {:?}", tensor.values);
    }
}

/// Copies a run as it was right after its checkpoint of `step`.
fn copy_at(from: &Path, to: &Path, step: u64) {
    let source = checkpoint(from, step, "");
    fs::create_dir_all(checkpoint(to, step, "")).unwrap();
    for entry in fs::read_dir(source).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        fs::copy(entry.path(), checkpoint(to, step, &name)).unwrap();
    }
    for file in ["lock", "metrics.jsonl", "config.resolved.toml"] {
        fs::copy(from.join(file), to.join(file)).unwrap();
    }
}
