//! How a step is split into micro-batches changes no loss and no gradient.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use lpr_data::{DataConfig, DataLoader, DataPosition, Packing, Split, Tokenizer};
use lpr_model::parameters::parameter_values;
use lpr_model::router::{
    AuxLossForm, LprConfig, Preset, PrototypeEma, RouterConfig, SigmoidTopkConfig,
    SoftmaxTopkConfig,
};
use lpr_model::{CausalLm, FamilyConfig, LatentNoise};
use lpr_train::batch::MicroBatch;
use lpr_train::config::OptimizerConfig;
use lpr_train::optimizer::Optimizer;
use lpr_train::step::{StepPlan, StepReport, train_step};

const ROWS: usize = 8;
const SEQUENCE: usize = 40;
const LATENT: usize = 4;

fn family() -> FamilyConfig {
    serde_json::from_value(serde_json::json!({
        "family": "qwen3_moe", "vocab_size": 257, "hidden_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
        "moe_intermediate_size": 10, "num_experts": 6, "top_k": 2,
    }))
    .unwrap()
}

/// Every loss is computed per row, whatever the micro-batch, or over the step.
fn routers() -> Vec<RouterConfig> {
    let softmax = |aux_loss| {
        RouterConfig::SoftmaxTopk(SoftmaxTopkConfig {
            aux_loss,
            z_loss_weight: 1e-3,
            loss_group_rows: 1,
            ..SoftmaxTopkConfig::default()
        })
    };
    let lpr = LprConfig {
        latent_dim: LATENT,
        loss_group_rows: 1,
        ..LprConfig::default()
    };
    let paper = LprConfig {
        latent_dim: LATENT,
        loss_group_rows: 1,
        ..Preset::Paper.config()
    };
    vec![
        softmax(AuxLossForm::Pooled),
        softmax(AuxLossForm::Switch),
        global_batch(1e-3),
        RouterConfig::SoftmaxTopk(SoftmaxTopkConfig {
            aux_loss: AuxLossForm::PerSequence,
            ..SoftmaxTopkConfig::default()
        }),
        RouterConfig::Lpr(lpr),
        RouterConfig::Lpr(paper),
    ]
}

/// The loss that needs no grouping, because it is defined over the step.
fn global_batch(z_loss_weight: f64) -> RouterConfig {
    RouterConfig::SoftmaxTopk(SoftmaxTopkConfig {
        aux_loss: AuxLossForm::GlobalBatch,
        z_loss_weight,
        loss_group_rows: 0,
        ..SoftmaxTopkConfig::default()
    })
}

/// The same eight rows in micro-batches of `rows`; packed rows are full, others partly padding.
fn batches(rows: usize, packing: Packing) -> Vec<MicroBatch> {
    let corpus = tempfile::tempdir().unwrap();
    support::write_corpus(corpus.path());
    let source = match packing {
        Packing::Packed | Packing::BestFit => "builtin:synthetic".to_owned(),
        Packing::None => corpus.path().join("*.jsonl").display().to_string(),
    };
    let mut config = DataConfig::new(vec![source]);
    config.packing = packing;
    config.sequence_length = SEQUENCE;
    let tokenizer = Arc::new(Tokenizer::open("bytes").unwrap());
    let start = DataPosition::default();
    let mut loader = DataLoader::open(&config, Split::Train, rows, tokenizer, &start).unwrap();
    (0..ROWS / rows)
        .map(|_| MicroBatch::new(&loader.next_batch().unwrap().unwrap(), &Device::flex()))
        .collect()
}

/// The same noise for each row, whatever the micro-batch.
fn noise(rows: usize) -> Vec<LatentNoise> {
    let all = lpr_model::random::Stream::new(9).standard_normal(2 * ROWS * SEQUENCE * LATENT);
    let device = Device::flex().autodiff();
    let layer = |layer: usize, micro_batch: usize| {
        let size = rows * SEQUENCE * LATENT;
        let start = layer * ROWS * SEQUENCE * LATENT + micro_batch * size;
        Tensor::<1>::from_floats(&all[start..start + size], &device)
            .reshape([rows * SEQUENCE, LATENT])
    };
    (0..ROWS / rows)
        .map(|m| LatentNoise::Given((0..2).map(|l| layer(l, m)).collect()))
        .collect()
}

fn step(router: &RouterConfig, rows: usize) -> StepReport {
    step_on(router, rows, Packing::Packed).1
}

fn step_on(router: &RouterConfig, rows: usize, packing: Packing) -> (CausalLm, StepReport) {
    let model = CausalLm::new(&family().decoder(), router, 5, &Device::flex().autodiff());
    let mut optimizer = Optimizer::new(&OptimizerConfig::default());
    let plan = StepPlan {
        learning_rate: 1e-3,
        max_grad_norm: 1.0,
        noise: noise(rows),
        max_loss: f64::INFINITY,
        stop: lpr_train::signals::StopRequest::default(),
        traced_positions: 0,
        gradient_checkpointing: false,
    };
    let batches = batches(rows, packing);
    train_step(model, &mut optimizer, router, &batches, &plan).unwrap()
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 2e-6 * a.abs().max(b.abs()).max(1e-3)
}

#[test]
fn one_times_eight_equals_eight_times_one_for_every_term() {
    for router in routers() {
        let whole = step(&router, 8);
        assert!(!whole.router_losses.is_empty());
        for rows in [1, 2, 4] {
            let split = step(&router, rows);
            let name = router.name();
            assert!(
                close(whole.loss_ce, split.loss_ce),
                "{name}: {} {}",
                whole.loss_ce,
                split.loss_ce
            );
            assert!(close(whole.loss_total, split.loss_total), "{name}: total");
            assert!(
                close(whole.grad_norm, split.grad_norm),
                "{name}: {} {}",
                whole.grad_norm,
                split.grad_norm
            );
            for (a, b) in whole.router_losses.iter().zip(&split.router_losses) {
                assert_eq!((a.0, a.2), (b.0, b.2));
                assert!(close(a.1, b.1), "{name} {}: {} {}", a.0, a.1, b.1);
            }
            let counts = |report: &StepReport| -> Vec<u64> {
                let mut sum = vec![0; 6];
                for layers in &report.loads {
                    for (total, count) in sum.iter_mut().zip(&layers[1].counts.with_padding) {
                        *total += count;
                    }
                }
                sum
            };
            assert_eq!(counts(&whole), counts(&split), "{name}");
        }
    }
}

#[test]
fn losses_over_whole_micro_batches_do_depend_on_the_split() {
    // The released behaviour, and the reason for `loss_group_rows`: the diversity of many tokens is
    // not the mean of the diversities of few.
    let config = LprConfig {
        latent_dim: LATENT,
        loss_group_rows: 0,
        ..LprConfig::default()
    };
    let router = RouterConfig::Lpr(config);
    let diversity = |report: StepReport| {
        report
            .router_losses
            .iter()
            .find(|l| l.0 == "diversity_tokens")
            .unwrap()
            .1
    };
    assert!(!close(
        diversity(step(&router, 8)),
        diversity(step(&router, 1))
    ));
}

#[test]
fn a_weight_of_zero_is_exactly_no_gradient() {
    let lpr = |loss_weight: f64| {
        let config = LprConfig {
            latent_dim: LATENT,
            loss_weight,
            ..LprConfig::default()
        };
        step(&RouterConfig::Lpr(config), 8)
    };
    let (off, on) = (lpr(0.0), lpr(0.01));
    assert_eq!(off.loss_total.to_bits(), off.loss_ce.to_bits());
    assert_eq!(off.loss_ce.to_bits(), on.loss_ce.to_bits());
    assert!(on.loss_total > on.loss_ce);
    assert_ne!(off.grad_norm.to_bits(), on.grad_norm.to_bits());
}

#[test]
fn prototypes_follow_their_tokens_whatever_the_micro_batch() {
    for prototype_ema in [
        PrototypeEma::Official,
        PrototypeEma::PaperHard,
        PrototypeEma::PaperSoft,
    ] {
        let router = RouterConfig::Lpr(LprConfig {
            latent_dim: LATENT,
            loss_group_rows: 1,
            prototype_ema,
            ..LprConfig::default()
        });
        let prototypes = |rows: usize| {
            let mut values = parameter_values(&step_on(&router, rows, Packing::Packed).0);
            values
                .remove("model.layers.1.mlp.router.prototypes")
                .unwrap()
        };
        let whole = prototypes(8);
        for rows in [1, 2, 4] {
            for (a, b) in whole.values.iter().zip(&prototypes(rows).values) {
                assert!((a - b).abs() < 1e-5, "{prototype_ema:?} {rows}: {a} {b}");
            }
        }
    }
}

#[test]
fn the_global_loss_counts_every_token_once_whatever_the_padding() {
    let router = global_batch(0.0);
    let whole = step_on(&router, 8, Packing::None).1;
    assert!(whole.num_tokens < ROWS * SEQUENCE, "there must be padding");
    for rows in [1, 2, 4] {
        let split = step_on(&router, rows, Packing::None).1;
        assert!(close(whole.loss_total, split.loss_total), "{rows}");
        assert!(close(whole.grad_norm, split.grad_norm), "{rows}");
        let (a, b) = (whole.router_losses[0].1, split.router_losses[0].1);
        assert!(close(a, b), "{rows}: {a} {b}");
    }
    // The per-layer form over micro-batches is another loss.
    let switch = RouterConfig::SoftmaxTopk(SoftmaxTopkConfig {
        aux_loss: AuxLossForm::Switch,
        ..SoftmaxTopkConfig::default()
    });
    let (a, b) = (step(&switch, 8), step(&switch, 1));
    assert!(!close(a.router_losses[0].1, b.router_losses[0].1));
}

#[test]
fn the_bias_moves_by_the_tokens_of_the_whole_step() {
    let router = RouterConfig::SigmoidTopk(SigmoidTopkConfig {
        bias_update_rate: 0.25,
        ..SigmoidTopkConfig::default()
    });
    let mut found = Vec::new();
    for rows in [8, 2, 1] {
        let (model, report) = step_on(&router, rows, Packing::None);
        assert!(report.num_tokens < ROWS * SEQUENCE, "there must be padding");
        for layer in 0..2 {
            let mut counts = [0_i64; 6];
            for layers in &report.loads {
                for (sum, &count) in counts.iter_mut().zip(&layers[layer].counts.without_padding) {
                    *sum += count as i64;
                }
            }
            let total: i64 = counts.iter().sum();
            let want = counts.map(|count| 0.25 * (total - 6 * count).signum() as f64);
            let values = parameter_values(&model);
            let bias = &values[&format!("model.layers.{layer}.mlp.router.correction_bias")];
            let got: Vec<f64> = bias.values.iter().map(|&b| f64::from(b)).collect();
            assert_eq!(got, want, "layer {layer} in micro-batches of {rows}");
            assert!(want.iter().any(|&b| b != 0.0));
            found.push((layer, got));
        }
    }
    assert!(found.iter().all(|(layer, bias)| *bias == found[*layer].1));
}
