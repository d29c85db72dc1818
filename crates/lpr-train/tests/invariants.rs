//! What holds of the load in every run, whatever else happens in it (F34).

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use serde_json::Value;
use support::{Setup, Variant, run_well};

const TOP_K: u64 = 2;
const STEPS: u64 = 12;

fn setup(router: &'static str, packing: &'static str, accumulation: usize) -> Setup {
    Setup::new(Variant {
        router,
        packing,
        accumulation,
    })
}

/// Trains 12 steps, each of them logged.
fn train(setup: &Setup, run: &str, more: &[&str]) {
    let config = setup.config(run);
    let keys = ["train.total_steps=12", "log.every_steps=1"];
    let overrides = keys.iter().chain(more).flat_map(|key| ["--override", key]);
    let arguments: Vec<&str> = ["--config", &config].into_iter().chain(overrides).collect();
    run_well(&arguments);
}

fn steps(setup: &Setup, run: &str) -> Vec<Value> {
    let lines = setup.metrics(run).into_iter();
    lines.filter(|line| line.get("loss_ce").is_some()).collect()
}

fn sum(layer: &Value, key: &str) -> u64 {
    let counts = layer[key].as_array().unwrap().iter();
    counts.map(|count| count.as_u64().unwrap()).sum()
}

#[test]
fn the_counts_of_every_layer_are_the_tokens_of_the_step_times_top_k() {
    for router in ["softmax_topk", "sigmoid_topk", "lpr", "random"] {
        for (packing, accumulation) in [("none", 1), ("none", 4), ("packed", 3)] {
            let setup = setup(router, packing, accumulation);
            train(&setup, "run", &["eval.every_steps=1"]);
            let mut seen = 0;
            for line in steps(&setup, "run") {
                let tokens = line["tokens_seen"].as_u64().unwrap() - seen;
                seen += tokens;
                let layers = line["layers"].as_array().unwrap();
                assert_eq!(layers.len(), 2);
                for layer in layers {
                    let counts = sum(layer, "counts");
                    assert_eq!(counts, TOP_K * tokens, "{router} {packing} {accumulation}");
                    assert!(sum(layer, "counts_with_padding") >= counts);
                }
            }
            assert!(seen > 0);
        }
    }
}

/// Neither weights nor biases nor counts nor averages know whether the run was evaluated.
#[test]
fn evaluation_leaves_no_trace_in_training() {
    for router in ["sigmoid_topk", "lpr"] {
        let setup = setup(router, "packed", 2);
        train(&setup, "often", &["eval.every_steps=1"]);
        train(
            &setup,
            "never",
            &["eval.every_steps=0", "eval.at_start=false"],
        );
        for file in ["model.safetensors", "optimizer.safetensors"] {
            let same = setup.file("often", STEPS, file) == setup.file("never", STEPS, file);
            assert!(same, "{router}: {file}");
        }
        assert_eq!(steps(&setup, "often"), steps(&setup, "never"), "{router}");
        let state = |run| setup.state(run, STEPS);
        for key in ["data", "trackers", "idle", "window", "stability"] {
            assert_eq!(state("often")[key], state("never")[key], "{router}: {key}");
        }
    }
}

#[test]
fn experts_by_turns_have_a_gini_of_zero_and_dead_experts_a_ratio_of_zero() {
    // 3 rows of 48 tokens with 2 choices each over 6 experts.
    let setup = setup("forced_balanced", "packed", 1);
    train(&setup, "run", &[]);
    for line in steps(&setup, "run") {
        assert_eq!(
            (&line["gini"], &line["min_max_ratio"]),
            (&0.0.into(), &1.0.into())
        );
    }
    // More experts than tokens can reach.
    train(
        &setup,
        "many",
        &["router.kind=random", "model.num_experts=128"],
    );
    let mut dead = 0;
    for line in steps(&setup, "many") {
        for layer in line["layers"].as_array().unwrap() {
            let counts = layer["counts"].as_array().unwrap();
            let has_dead = counts.iter().any(|count| *count == 0);
            assert_eq!(has_dead, layer["min_max_ratio"] == 0.0, "{layer}");
            dead += u64::from(has_dead);
        }
    }
    assert!(dead > 0, "no expert was ever dead");
}

#[test]
fn the_mean_of_a_centred_correction_bias_stays_zero() {
    let setup = setup("sigmoid_topk", "packed", 1);
    let keys = ["router.bias_update_rate=0.01", "router.zero_mean_bias=true"];
    train(&setup, "run", &keys);
    let path = setup
        .run_dir("run")
        .join("checkpoints/step-00000012/model.safetensors");
    let tensors = lpr_train::weights_file::read(&path).unwrap();
    let biases = tensors
        .iter()
        .filter(|(name, _)| name.ends_with("correction_bias"));
    let mut layers = 0;
    for (name, bias) in biases {
        let mean = bias.values.iter().sum::<f32>() / bias.values.len() as f32;
        assert!(mean.abs() < 1e-7, "{name}: {mean}");
        assert!(
            bias.values.iter().any(|value| *value != 0.0),
            "{name} did not move"
        );
        layers += 1;
    }
    assert_eq!(layers, 2);
}
