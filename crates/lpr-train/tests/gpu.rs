//! Training on a GPU, or a program in its place: the CPU's losses, and runs that change devices.
//!
//! The device is that of `LPR_TEST_DEVICE`, or the first of this build. Where there is none, every
//! test fails and says why.

#![cfg(any(feature = "wgpu", feature = "cuda"))]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::path::Path;
use std::sync::Arc;

use burn::tensor::Device;
use lpr_data::{DataConfig, DataLoader, DataPosition, Packing, Split, Tokenizer};
use lpr_kernels::devices;
use lpr_model::router::{LprConfig, Preset, Similarity};
use lpr_model::{CausalLm, FamilyConfig, RouterConfig};
use lpr_train::batch::MicroBatch;
use lpr_train::config::OptimizerConfig;
use lpr_train::optimizer::Optimizer;
use lpr_train::signals::StopRequest;
use lpr_train::step::{StepPlan, train_step};
use serde_json::{Value, json};
use support::{Setup, Variant, run_well, small_family, text};

const STEPS: u64 = 10;
const TOLERANCE: f64 = 1e-4;

fn device_name() -> String {
    let first = if cfg!(feature = "wgpu") {
        "wgpu"
    } else {
        "cuda"
    };
    std::env::var("LPR_TEST_DEVICE").unwrap_or_else(|_| first.to_owned())
}

fn gpu() -> Device {
    let name = device_name();
    let device = devices::open(name.parse().unwrap());
    device.unwrap_or_else(|error| panic!("no device {name} to test on: {error}"))
}

fn routers() -> Vec<RouterConfig> {
    let kind = |kind: &str| router(&json!({ "kind": kind }));
    let paper = LprConfig {
        latent_dim: 4,
        ..Preset::Paper.config()
    };
    vec![
        router(&json!({ "kind": "softmax_topk", "z_loss_weight": 1e-3 })),
        kind("sigmoid_topk"),
        kind("random"),
        kind("forced_balanced"),
        kind("lpr"),
        RouterConfig::Lpr(paper),
    ]
}

fn router(config: &Value) -> RouterConfig {
    serde_json::from_value(config.clone()).unwrap()
}

/// As many steps' rows of the corpus, several documents and padding in each.
fn batches(device: &Device) -> Vec<MicroBatch> {
    let corpus = tempfile::tempdir().unwrap();
    support::write_corpus(corpus.path());
    let mut config = DataConfig::new(vec![corpus.path().join("*.jsonl").display().to_string()]);
    config.packing = Packing::BestFit;
    config.sequence_length = 48;
    let tokenizer = Arc::new(Tokenizer::open("bytes").unwrap());
    let start = DataPosition::default();
    let mut loader = DataLoader::open(&config, Split::Train, 3, tokenizer, &start).unwrap();
    (0..STEPS)
        .map(|_| MicroBatch::new(&loader.next_batch().unwrap().unwrap(), device))
        .collect()
}

/// Cross-entropy, objective and gradient norm of each step.
fn train(
    family: &FamilyConfig,
    router: &RouterConfig,
    device: &Device,
    gradient_checkpointing: bool,
) -> Vec<[f64; 3]> {
    let mut model = CausalLm::new(&family.decoder(), router, 5, &device.clone().autodiff());
    let mut optimizer = Optimizer::new(&OptimizerConfig::default());
    let mut losses = Vec::new();
    for (step, batch) in batches(device).into_iter().enumerate() {
        let plan = StepPlan {
            learning_rate: 1e-3,
            max_grad_norm: 1.0,
            noise: StepPlan::noise(7, step as u64, 1),
            max_loss: f64::INFINITY,
            stop: StopRequest::default(),
            traced_positions: 0,
            gradient_checkpointing,
        };
        let (next, report) = train_step(model, &mut optimizer, router, &[batch], &plan).unwrap();
        model = next;
        losses.push([report.loss_ce, report.loss_total, report.grad_norm]);
    }
    losses
}

fn assert_follows(family: &str, routers: &[RouterConfig], gradient_checkpointing: bool) {
    let model = small_family(family, &json!({}));
    for router in routers {
        let name = json!(router);
        let on_cpu = train(&model, router, &Device::flex(), false);
        let on_gpu = train(&model, router, &gpu(), gradient_checkpointing);
        for (step, (cpu, gpu)) in on_cpu.iter().zip(&on_gpu).enumerate() {
            for (cpu, gpu) in cpu.iter().zip(gpu) {
                let close = (cpu - gpu).abs() <= TOLERANCE * cpu.abs().max(1.0);
                assert!(
                    close,
                    "{family} {name}, step {step}: {gpu}, on the CPU {cpu}"
                );
            }
        }
        assert!(on_cpu[9][0] < on_cpu[0][0], "{family} {name}: {on_cpu:?}");
    }
}

#[test]
fn qwen3_moe_follows_the_cpu_with_every_router() {
    assert_follows("qwen3_moe", &routers(), false);
}

#[test]
fn mixtral_follows_the_cpu_with_every_router() {
    assert_follows("mixtral", &routers(), false);
}

#[test]
fn deepseek_v3_follows_the_cpu_with_every_router() {
    assert_follows("deepseek_v3", &routers(), false);
}

#[test]
fn blocks_that_are_made_again_follow_the_cpu() {
    assert_follows("qwen3_moe", &routers()[4..5], true);
}

#[test]
fn every_similarity_follows_the_cpu() {
    let router = |similarity: &Similarity| {
        router(&json!({ "kind": "lpr", "latent_dim": 4, "similarity": similarity.name() }))
    };
    let routers: Vec<_> = Similarity::ALL.iter().map(router).collect();
    assert_follows("qwen3_moe", &routers, false);
}

/// The losses of the logged steps.
fn losses(metrics: &[Value]) -> Vec<f64> {
    let trained = metrics.iter().filter(|line| line["loss_ce"].is_number());
    trained
        .map(|line| line["loss_ce"].as_f64().unwrap())
        .collect()
}

fn assert_same_losses(one: &[f64], other: &[f64]) {
    assert_eq!(one.len(), other.len());
    assert!(one.len() >= 3, "{one:?}");
    for (a, b) in one.iter().zip(other) {
        assert!((a - b).abs() <= TOLERANCE * a.abs(), "{one:?}\n{other:?}");
    }
}

#[test]
fn the_smallest_shipped_model_trains_to_the_losses_of_the_cpu() {
    let folder = tempfile::tempdir().unwrap();
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/tiny-qwen3moe-lpr.toml");
    let config = config.display().to_string();
    let metrics = |device: &str| {
        let run_dir = folder.path().join(device.replace(':', "-"));
        let overrides = [
            "data.train=[\"builtin:synthetic\"]".to_owned(),
            "data.validation=[\"builtin:synthetic\"]".to_owned(),
            "data.sequence_length=32".to_owned(),
            "train.micro_batch_size=2".to_owned(),
            "train.total_steps=5".to_owned(),
            "eval.max_tokens=64".to_owned(),
            "log.every_steps=1".to_owned(),
            format!("train.run_dir={:?}", run_dir.display().to_string()),
        ];
        let mut args = vec!["--config", &config, "--device", device];
        args.extend(overrides.iter().flat_map(|text| ["--override", text]));
        run_well(&args);
        let lines = std::fs::read_to_string(run_dir.join("metrics.jsonl")).unwrap();
        let lines: Vec<Value> = lines
            .lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect();
        losses(&lines)
    };
    assert_same_losses(&metrics("cpu"), &metrics(&device_name()));
}

#[test]
fn a_run_goes_on_where_another_device_saved_it() {
    let setup = Setup::new(Variant {
        router: "lpr",
        packing: "packed",
        accumulation: 2,
    });
    let train = |name: &str, device: &str, more: &[&str]| {
        let config = setup.config(name);
        let mut args = vec!["--config", &config, "--device", device];
        args.extend(["--override", "train.total_steps=10"]);
        args.extend(["--override", "log.every_steps=1"]);
        args.extend(more);
        run_well(&args);
        losses(&setup.metrics(name))
    };
    let gpu = device_name();
    let on_cpu = train("cpu", "cpu", &[]);
    assert_same_losses(&train("gpu", &gpu, &[]), &on_cpu);
    setup.copy_at("cpu", "cpu-then-gpu", 5);
    assert_same_losses(&train("cpu-then-gpu", &gpu, &["--resume"]), &on_cpu);
    setup.copy_at("gpu", "gpu-then-cpu", 5);
    assert_same_losses(&train("gpu-then-cpu", "cpu", &["--resume"]), &on_cpu);
}

/// What is asked for is used, and said.
#[test]
fn the_device_is_recorded_and_listed() {
    let doctor: Value = serde_json::from_slice(&run_well(&["doctor", "--json"]).stdout).unwrap();
    let devices = doctor["devices"].as_array().unwrap();
    let kind = device_name();
    let kind = kind.split(':').next().unwrap();
    let found = devices
        .iter()
        .find(|d| d["name"].as_str().unwrap().starts_with(kind));
    let description = &found.unwrap_or_else(|| panic!("no {kind} in {doctor}"))["description"];
    assert!(!description.as_str().unwrap().is_empty());
    let setup = Setup::new(Variant {
        router: "softmax_topk",
        packing: "packed",
        accumulation: 1,
    });
    let config = setup.config("run");
    let refused = |device: &str, more: &[&str], word: &str| {
        let mut args = vec!["--config", &config, "--device", device];
        args.extend(more);
        let refused = support::run(&args);
        let message = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(6), "{message}");
        assert!(message.contains(word), "{message}");
        assert!(!setup.run_dir("run").exists());
    };
    refused(&format!("{kind}:9999"), &[], "doctor");
    if kind == "wgpu" {
        let bf16 = ["--override", "train.precision=bf16"];
        refused(&device_name(), &bf16, "no products of 16-bit brain floats");
    }
    run_well(&[
        "--config",
        &config,
        "--device",
        &device_name(),
        "--override",
        "train.total_steps=1",
    ]);
    let environment = std::fs::read(setup.run_dir("run").join("environment.json")).unwrap();
    let environment: Value = serde_json::from_slice(&environment).unwrap();
    assert!(environment["gpu"].is_string(), "{environment}");
}
