//! How a step is split into micro-batches changes no loss and no gradient.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use lpr_data::{DataConfig, DataLoader, DataPosition, Packing, Split, Tokenizer};
use lpr_model::parameters::parameter_values;
use lpr_model::router::{
    AuxLossForm, LprConfig, Preset, PrototypeEma, RouterConfig, SoftmaxTopkConfig,
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

/// Every loss is computed per row, whatever the micro-batch.
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
        RouterConfig::Lpr(lpr),
        RouterConfig::Lpr(paper),
    ]
}

/// The same eight rows in micro-batches of `rows`.
fn batches(rows: usize) -> Vec<MicroBatch> {
    let mut config = DataConfig::new(vec!["builtin:synthetic".to_owned()]);
    config.packing = Packing::Packed;
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
    stepped(router, rows).1
}

fn stepped(router: &RouterConfig, rows: usize) -> (CausalLm, StepReport) {
    let model = CausalLm::new(&family().decoder(), router, 5, &Device::flex().autodiff());
    let mut optimizer = Optimizer::new(&OptimizerConfig::default());
    let plan = StepPlan {
        learning_rate: 1e-3,
        max_grad_norm: 1.0,
        noise: noise(rows),
    };
    train_step(model, &mut optimizer, router, &batches(rows), &plan).unwrap()
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
            let mut values = parameter_values(&stepped(&router, rows).0);
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
