//! Activations that are made again change no bit: losses, loads, gradients, weights.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::Arc;

use burn::tensor::Device;
use lpr_data::{DataConfig, DataLoader, DataPosition, Packing, Split, Tokenizer};
use lpr_model::parameters::{HostTensor, parameter_values};
use lpr_model::router::Similarity;
use lpr_model::{CausalLm, FamilyConfig, RouterConfig};
use lpr_train::batch::MicroBatch;
use lpr_train::config::OptimizerConfig;
use lpr_train::optimizer::Optimizer;
use lpr_train::signals::StopRequest;
use lpr_train::step::{StepPlan, StepReport, train_step};
use serde_json::{Value, json};
use support::{Setup, Variant, run_well, small_family, text};

const STEPS: usize = 10;
const ROWS: usize = 2;
const SEQUENCE: usize = 24;

/// Three layers, so that one has a neighbour on both sides.
fn family(name: &str, more: &Value) -> FamilyConfig {
    let mut keys = json!({ "num_hidden_layers": 3 });
    let all = keys.as_object_mut().unwrap();
    all.extend(more.as_object().unwrap().clone());
    small_family(name, &keys)
}

fn router(config: Value) -> RouterConfig {
    serde_json::from_value(config).unwrap()
}

/// Every router, every loss over layers and every state that `after_step` moves.
fn routers() -> Vec<RouterConfig> {
    let softmax = |aux_loss: &str| {
        router(json!({
            "kind": "softmax_topk", "aux_loss": aux_loss, "aux_loss_weight": 0.1,
            "z_loss_weight": 0.01, "norm_topk_prob": aux_loss == "switch",
            "loss_group_rows": usize::from(aux_loss == "per_sequence"),
        }))
    };
    let lpr = |more: Value| {
        let mut config = json!({ "kind": "lpr", "latent_dim": 4, "loss_weight": 0.1 });
        let keys = more.as_object().unwrap().clone();
        config.as_object_mut().unwrap().extend(keys);
        router(config)
    };
    vec![
        softmax("none"),
        softmax("pooled"),
        softmax("switch"),
        softmax("per_sequence"),
        softmax("global_batch"),
        router(json!({
            "kind": "sigmoid_topk", "n_group": 3, "topk_group": 2, "bias_update_rate": 0.01,
        })),
        router(json!({ "kind": "random" })),
        router(json!({ "kind": "forced_balanced" })),
        lpr(json!({})),
        lpr(json!({ "score": "sample", "prototype_ema": "official", "padding": "masked" })),
        lpr(json!({ "prototype_ema": "paper_soft", "loss_group_rows": 1, "aligner": false })),
        lpr(json!({
            "alignment": "paper_l2", "diversity": "euclidean", "prototype_ema": "paper_hard",
        })),
    ]
}

/// The micro-batches of all steps, two each: several documents in a row, or padding behind one.
fn micro_batches(packing: Packing) -> Vec<MicroBatch> {
    let corpus = tempfile::tempdir().unwrap();
    support::write_corpus(corpus.path());
    let mut config = DataConfig::new(vec![corpus.path().join("*.jsonl").display().to_string()]);
    config.packing = packing;
    config.sequence_length = SEQUENCE;
    let tokenizer = Arc::new(Tokenizer::open("bytes").unwrap());
    let start = DataPosition::default();
    let mut loader = DataLoader::open(&config, Split::Train, ROWS, tokenizer, &start).unwrap();
    (0..2 * STEPS)
        .map(|_| MicroBatch::new(&loader.next_batch().unwrap().unwrap(), &Device::flex()))
        .collect()
}

/// What every step reports, and the weights after the last one.
fn train(
    family: &FamilyConfig,
    router: &RouterConfig,
    batches: &[MicroBatch],
    gradient_checkpointing: bool,
) -> (Vec<StepReport>, Vec<(String, HostTensor)>) {
    let device = Device::flex().autodiff();
    let mut model = CausalLm::new(&family.decoder(), router, 5, &device);
    let mut optimizer = Optimizer::new(&OptimizerConfig::default());
    let mut reports = Vec::new();
    for (step, batches) in batches.chunks(2).enumerate() {
        let plan = StepPlan {
            learning_rate: 1e-2,
            max_grad_norm: 1.0,
            noise: StepPlan::noise(7, step as u64, batches.len()),
            max_loss: f64::INFINITY,
            stop: StopRequest::default(),
            traced_positions: ROWS * SEQUENCE,
            gradient_checkpointing,
        };
        let (next, report) = train_step(model, &mut optimizer, router, batches, &plan).unwrap();
        model = next;
        reports.push(report);
    }
    (reports, parameter_values(&model).into_iter().collect())
}

/// Every number of the reports, as its bits.
fn bits(reports: &[StepReport]) -> Vec<Vec<u64>> {
    let of_report = |report: &StepReport| {
        let StepReport {
            loss_ce,
            loss_total,
            router_losses,
            grad_norm,
            num_tokens,
            loads,
            choices,
        } = report;
        let mut bits = vec![loss_ce.to_bits(), loss_total.to_bits(), grad_norm.to_bits()];
        bits.push(*num_tokens as u64);
        for (_, value, weight) in router_losses {
            bits.extend([value.to_bits(), weight.to_bits()]);
        }
        for load in loads.iter().flatten() {
            bits.extend(&load.counts.with_padding);
            bits.extend(&load.counts.without_padding);
            bits.extend(load.weight_sums.iter().map(|sum| sum.to_bits()));
        }
        for choices in choices.iter().flatten() {
            bits.extend(choices.experts.iter().map(|&expert| u64::from(expert)));
            bits.extend(choices.weights.iter().map(|w| u64::from(w.to_bits())));
        }
        bits
    };
    reports.iter().map(of_report).collect()
}

fn assert_same(family: &FamilyConfig, router: &RouterConfig, packing: Packing) {
    let name = format!("{} {}", json!(family)["family"], json!(router));
    let batches = micro_batches(packing);
    let (kept, kept_weights) = train(family, router, &batches, false);
    let (made, made_weights) = train(family, router, &batches, true);
    for (step, (kept, made)) in kept.iter().zip(&made).enumerate() {
        let losses = |r: &StepReport| (r.loss_ce, r.loss_total, r.grad_norm);
        assert_eq!(losses(kept), losses(made), "{name}, step {step}");
        // Not counted twice.
        for (batch, layers) in batches[2 * step..].iter().zip(&made.loads) {
            for load in layers {
                let counted: u64 = load.counts.with_padding.iter().sum();
                assert_eq!(counted, 2 * batch.num_positions as u64, "{name}");
            }
        }
    }
    assert_eq!(bits(&kept), bits(&made), "{name}");
    for ((parameter, kept), (_, made)) in kept_weights.iter().zip(&made_weights) {
        let bits = |tensor: &HostTensor| -> Vec<u32> {
            tensor.values.iter().map(|value| value.to_bits()).collect()
        };
        assert!(bits(kept) == bits(made), "{name}: {parameter}");
    }
    assert!(
        kept[STEPS - 1].loss_ce < kept[0].loss_ce,
        "{name} learns nothing"
    );
}

#[test]
fn qwen3_moe_takes_the_same_steps_with_every_router() {
    for router in routers() {
        assert_same(&family("qwen3_moe", &json!({})), &router, Packing::Packed);
    }
}

#[test]
fn deepseek_v3_takes_the_same_steps_with_every_router() {
    for router in routers() {
        assert_same(
            &family("deepseek_v3", &json!({})),
            &router,
            Packing::BestFit,
        );
    }
}

#[test]
fn mixtral_takes_the_same_steps_with_every_router_and_padding() {
    for router in routers() {
        assert_same(&family("mixtral", &json!({})), &router, Packing::None);
    }
}

/// Its gradient comes from both ends of the model.
#[test]
fn a_tied_embedding_takes_the_same_steps() {
    let tied = family("qwen3_moe", &json!({ "tie_word_embeddings": true }));
    for router in routers().into_iter().skip(8) {
        assert_same(&tied, &router, Packing::Packed);
    }
}

#[test]
fn every_similarity_takes_the_same_steps() {
    for similarity in Similarity::ALL {
        let router = router(json!({
            "kind": "lpr", "latent_dim": 4, "similarity": similarity, "num_similarity_heads": 2,
        }));
        let family = family("qwen3_moe", &json!({}));
        assert_same(&family, &router, Packing::Packed);
    }
}

/// It may be switched on the way, and a run with it resumes exactly.
#[test]
fn runs_with_and_without_it_end_with_the_same_bits() {
    for (router, packing) in [("lpr", "packed"), ("softmax_topk", "none")] {
        let setup = Setup::new(Variant {
            router,
            packing,
            accumulation: 2,
        });
        let train = |name: &str, checkpointing: bool, resume: &[&str]| {
            let config = setup.config(name);
            let change = format!("train.gradient_checkpointing={checkpointing}");
            let mut args = vec!["--config", &config, "--override", &change];
            args.extend(resume);
            text(&run_well(&args).stderr)
        };
        train("kept", false, &[]);
        train("made", true, &[]);
        setup.assert_same("kept", "made");
        setup.copy_at("made", "resumed", 20);
        let log = train("resumed", true, &["--resume"]);
        assert!(!log.contains("gradient_checkpointing"), "{log}");
        setup.assert_same("kept", "resumed");
        setup.copy_at("made", "switched", 20);
        let log = train("switched", false, &["--resume"]);
        let note = "changed since the checkpoint: train.gradient_checkpointing";
        assert!(log.contains(note), "{log}");
        setup.assert_same("kept", "switched");
    }
}
