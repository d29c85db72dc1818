//! What `estimate` says of the paper's models, and of every family with every router.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::path::Path;

use burn::module::Param;
use burn::tensor::{Device, Tensor};
use lpr_model::estimate::estimate;
use lpr_model::parameters::{ParameterVisitor, visit_parameters};
use lpr_model::router::Similarity;
use lpr_model::{CausalLm, RouterConfig};
use lpr_train::config::RunConfig;
use serde_json::Value;
use support::run_well;

fn path(name: &str) -> String {
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
    configs.join(format!("{name}.toml")).display().to_string()
}

/// What the command prints as JSON for a config of the project.
fn found(name: &str, overrides: &[&str]) -> Value {
    let path = path(name);
    let mut args = vec!["estimate", "--json", "--config", &path];
    for change in overrides {
        args.extend(["--override", change]);
    }
    serde_json::from_slice(&run_well(&args).stdout).unwrap()
}

fn part(found: &Value, name: &str, figure: &str) -> u64 {
    let parts = found["parts"].as_array().unwrap();
    let part = parts.iter().find(|part| part["name"] == name);
    part.map_or(0, |part| part[figure].as_u64().unwrap())
}

/// A row of the table in method-spec section 3.1.
struct Row {
    config: &'static str,
    total: u64,
    small_vocabulary: u64,
    experts: u64,
    attention: u64,
    router: u64,
    shared: u64,
    active: u64,
    megaflops: f64,
    megaflops_without_head: f64,
}

/// Parameters of the released code that nothing uses; the table's totals have them with LPR.
const DEAD: u64 = 13_056;

const TABLE: [Row; 6] = [
    Row {
        config: "qwen3moe",
        total: 645_413_376,
        small_vocabulary: 644_866_560,
        experts: 301_989_888,
        attention: 31_458_816,
        router: 786_432,
        shared: 0,
        active: 362_297_856,
        megaflops: 438.59,
        megaflops_without_head: 127.43,
    },
    Row {
        config: "qwen3moe-lpr",
        total: 644_965_824 - DEAD,
        small_vocabulary: 644_419_008 - DEAD,
        experts: 301_989_888,
        attention: 31_458_816,
        router: 325_824,
        shared: 0,
        active: 361_837_248,
        megaflops: 437.66,
        megaflops_without_head: 126.49,
    },
    Row {
        config: "deepseekv3",
        total: 621_351_936,
        small_vocabulary: 620_805_120,
        experts: 259_522_560,
        attention: 39_727_104,
        router: 786_432,
        shared: 10_137_600,
        active: 378_049_536,
        megaflops: 460.63,
        megaflops_without_head: 149.46,
    },
    Row {
        config: "deepseekv3-lpr",
        total: 620_904_384 - DEAD,
        small_vocabulary: 620_357_568 - DEAD,
        experts: 259_522_560,
        attention: 39_727_104,
        router: 325_824,
        shared: 10_137_600,
        active: 377_588_928,
        megaflops: 459.69,
        megaflops_without_head: 148.53,
    },
    Row {
        config: "mixtral",
        total: 629_683_200,
        small_vocabulary: 629_136_384,
        experts: 301_989_888,
        attention: 15_728_640,
        router: 786_432,
        shared: 0,
        active: 346_567_680,
        megaflops: 394.54,
        megaflops_without_head: 83.37,
    },
    Row {
        config: "mixtral-lpr",
        total: 629_235_648 - DEAD,
        small_vocabulary: 628_688_832 - DEAD,
        experts: 301_989_888,
        attention: 15_728_640,
        router: 325_824,
        shared: 0,
        active: 346_107_072,
        megaflops: 393.61,
        megaflops_without_head: 82.44,
    },
];

#[test]
fn the_six_models_of_the_paper_cost_what_its_table_says() {
    for row in TABLE {
        let (name, found) = (row.config, found(row.config, &[]));
        let params = |name| part(&found, name, "params");
        assert_eq!(found["total_params"], row.total, "{name}");
        assert_eq!(found["active_params"], row.active, "{name}");
        assert_eq!(found["router_params"], row.router, "{name}");
        assert_eq!(params("router"), row.router, "{name}");
        assert_eq!(params("experts"), row.experts, "{name}");
        assert_eq!(params("attention"), row.attention, "{name}");
        assert_eq!(params("shared_experts"), row.shared, "{name}");
        assert_eq!(params("dense"), 0, "{name}");
        assert_eq!(params("norms"), 13_312, "{name}");
        let ends = [params("embedding"), params("head")];
        assert_eq!(ends, [155_582_464; 2], "{name}");
        let flops = |key: &str| found[key].as_u64().unwrap() as f64;
        for (key, megaflops) in [
            ("flops_per_token", row.megaflops),
            ("flops_per_token_without_head", row.megaflops_without_head),
            ("training_flops_per_token", 3.0 * row.megaflops),
        ] {
            // The table is rounded to 0.01 MFLOP.
            let off = (flops(key) / 1e6 / megaflops - 1.0).abs();
            assert!(off < 1e-4, "{name}: {key} is off by {off}");
        }
        let small = self::found(name, &["model.vocab_size=151669"]);
        assert_eq!(small["total_params"], row.small_vocabulary, "{name}");
    }
}

/// Counts the values of the trained parameters of a model, and makes them all.
#[derive(Default)]
struct Count {
    all: u64,
    router: u64,
}

impl ParameterVisitor for Count {
    fn visit<const D: usize>(&mut self, name: &str, parameter: &Param<Tensor<D>>) {
        let value = parameter.val();
        if value.is_require_grad() {
            let len = value.into_data().iter::<f32>().count() as u64;
            self.all += len;
            self.router += if name.contains(".router.") { len } else { 0 };
        }
    }
}

/// Every registered router, and the paper's with each metric.
fn routers() -> Vec<Vec<String>> {
    let kind = |name: &&str| vec![format!("router.kind={name}")];
    let mut routers: Vec<_> = RouterConfig::NAMES.iter().map(kind).collect();
    for metric in Similarity::ALL {
        let metric = format!("router.similarity={}", metric.name());
        routers.push(vec!["router.kind=lpr".to_owned(), metric]);
    }
    let update = "router.prototype_ema=official".to_owned();
    routers.push(vec!["router.kind=lpr".to_owned(), update]);
    routers
}

#[test]
fn what_is_estimated_is_what_is_built() {
    for family in ["tiny-qwen3moe", "tiny-deepseekv3", "tiny-mixtral"] {
        for mut overrides in routers() {
            overrides.push("model.vocab_size=257".to_owned());
            if family == "tiny-deepseekv3" {
                overrides.push("model.first_k_dense_replace=1".to_owned());
                overrides.push("model.intermediate_size=40".to_owned());
            }
            let config = RunConfig::load(&[path(family).into()], &overrides).unwrap();
            let decoder = config.model.decoder();
            let found = estimate(&decoder, &config.router, 64);
            let mut count = Count::default();
            let device = Device::flex().autodiff();
            visit_parameters(
                &CausalLm::new(&decoder, &config.router, 0, &device),
                &mut count,
            );
            let name = format!("{family} {overrides:?}");
            assert_eq!(found.total_params, count.all, "{name}");
            assert_eq!(found.router_params, count.router, "{name}");
            let idle = decoder.moe.num_experts - decoder.moe.top_k;
            let expert = 3 * decoder.hidden_size * decoder.moe.moe_intermediate_size;
            let idle = (idle * expert * decoder.num_moe_layers()) as u64;
            assert_eq!(found.active_params, count.all - idle, "{name}");
        }
    }
}

/// Latent attention, a dense first block, shared experts, a tied head: by hand.
#[test]
fn operations_are_two_per_multiply_add() {
    let changes = [
        "model.first_k_dense_replace=1",
        "model.intermediate_size=40",
        "model.tie_word_embeddings=true",
        "data.sequence_length=9",
    ];
    let found = found("tiny-deepseekv3", &changes);
    let flops = |name| part(&found, name, "flops_per_token");
    let projections = 192 * 96 + 96 * 4 * 48 + 192 * (64 + 16) + 64 * 4 * 64 + 4 * 32 * 192;
    // The mean causal context of 9 positions is 5.
    let pairs = 5 * 4 * (48 + 32);
    assert_eq!(flops("attention"), 2 * 4 * (projections + pairs));
    assert_eq!(flops("dense"), 2 * 3 * 192 * 40);
    assert_eq!(flops("experts"), 2 * 3 * 4 * 3 * 192 * 56);
    assert_eq!(flops("shared_experts"), 2 * 3 * 3 * 192 * 112);
    assert_eq!(flops("router"), 2 * 3 * 192 * 32);
    assert_eq!(flops("head"), 2 * 192 * 4096);
    assert_eq!((flops("embedding"), flops("norms")), (0, 0));
    assert_eq!(part(&found, "head", "params"), 0);
}

#[test]
fn every_router_says_its_own_operations() {
    let (hidden, experts, latent) = (192, 32, 16);
    let encoder = hidden * 2 * latent;
    let aligner = latent * hidden;
    let pairs = experts * latent;
    for (changes, macs) in [
        (&["router.kind=random"][..], 0),
        (&["router.kind=forced_balanced"], 0),
        (&["router.kind=sigmoid_topk"], hidden * experts),
        (
            &["router.similarity=dot_product"],
            encoder + 2 * pairs + aligner,
        ),
        (&["router.aligner=false"], encoder + 2 * pairs),
        (
            &["router.similarity=cross_attention"],
            encoder + 2 * pairs + latent * latent + aligner,
        ),
        (
            &["router.similarity=wasserstein"],
            encoder + 3 * pairs + latent * latent + aligner,
        ),
    ] {
        let found = found("tiny-qwen3moe-lpr", changes);
        let flops = part(&found, "router", "flops_per_token");
        assert_eq!(flops, 2 * 4 * macs, "{changes:?}");
    }
}

#[test]
fn the_table_names_what_it_counts() {
    let path = path("qwen3moe");
    let text = support::text(&run_well(&["estimate", "--config", &path]).stdout);
    for word in [
        "645413376",
        "362297856",
        "786432",
        "438.59",
        "127.43",
        "1315.77",
    ] {
        assert!(text.contains(word), "{word}: {text}");
    }
    assert!(
        text.contains("causal attention over a document of 1024 positions"),
        "{text}"
    );
}
