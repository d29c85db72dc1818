//! No position sees the future, another document, or padding, with gradients or without.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use lpr_kernels::SequenceMask;
use lpr_model::{CausalLm, FamilyConfig, ModelInput, RouterConfig, TextSoFar};
use serde_json::json;

const ROWS: usize = 2;
const SEQUENCE: usize = 23;

/// A small decoder of every registered family.
fn families() -> Vec<FamilyConfig> {
    let own = |name: &str| match name {
        "qwen3_moe" | "mixtral" => json!({ "num_key_value_heads": 2, "head_dim": 6 }),
        "deepseek_v3" => json!({
            "q_lora_rank": 12, "kv_lora_rank": 10, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4,
            "v_head_dim": 5, "num_shared_experts": 1, "first_k_dense_replace": 1,
            "intermediate_size": 14,
        }),
        other => panic!("family {other} is not tested"),
    };
    let family = |name: &&str| {
        let mut config = json!({
            "family": name, "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 4, "moe_intermediate_size": 10, "num_experts": 5, "top_k": 2,
            "initializer_range": 0.3,
        });
        let own = own(name);
        for (key, value) in own.as_object().unwrap() {
            config[key] = value.clone();
        }
        serde_json::from_value(config).unwrap()
    };
    FamilyConfig::NAMES.iter().map(family).collect()
}

/// Every registered router.
fn routers() -> Vec<RouterConfig> {
    let router = |kind| serde_json::from_value(json!({ "kind": kind })).unwrap();
    RouterConfig::NAMES.iter().map(router).collect()
}

/// Row 0: documents of 9 and 14 tokens. Row 1: one document of 15 tokens, then padding.
fn input(ids: &[i32]) -> ModelInput {
    let device = Device::flex();
    let ints = |f: &dyn Fn(usize, usize) -> i32| -> Tensor<2, Int> {
        let values: Vec<i32> = (0..ROWS * SEQUENCE)
            .map(|i| f(i / SEQUENCE, i % SEQUENCE))
            .collect();
        Tensor::<1, Int>::from_ints(values.as_slice(), &device).reshape([ROWS, SEQUENCE])
    };
    ModelInput {
        input_ids: ints(&|row, at| ids[row * SEQUENCE + at]),
        position_ids: ints(&|row, at| {
            if row == 0 && at >= 9 {
                at as i32 - 9
            } else {
                at as i32
            }
        }),
        mask: Some(SequenceMask {
            document_ids: ints(&|row, at| i32::from(row == 0 && at >= 9)),
            is_token: ints(&|row, at| i32::from(row == 0 || at < 15)),
        }),
    }
}

fn hidden(model: &CausalLm, ids: &[i32]) -> Vec<f32> {
    let output = model.forward(&input(ids), None);
    output.hidden_states.into_data().iter::<f32>().collect()
}

/// Positions of `a` and `b` that differ in any channel.
fn changed(a: &[f32], b: &[f32]) -> Vec<usize> {
    let width = a.len() / (ROWS * SEQUENCE);
    (0..ROWS * SEQUENCE)
        .filter(|p| a[p * width..][..width] != b[p * width..][..width])
        .collect()
}

#[test]
fn a_token_reaches_only_later_positions_of_its_document() {
    for family in families() {
        assert!(family.validate().is_empty(), "{:?}", family.validate());
        for router in routers() {
            let device = Device::flex().autodiff();
            let tracked = CausalLm::new(&family.decoder(), &router, 3, &device);
            for model in [tracked.valid(), tracked] {
                let name = format!("{} with {}", family.name(), router.name());
                check_reach(&model, &name);
            }
        }
    }
}

fn check_reach(model: &CausalLm, name: &str) {
    let ids: Vec<i32> = (0..(ROWS * SEQUENCE) as i32).map(|i| i * 7 % 50).collect();
    let before = hidden(model, &ids);
    for position in 0..ROWS * SEQUENCE {
        let mut other = ids.clone();
        other[position] = (other[position] + 1) % 50;
        let reached = changed(&before, &hidden(model, &other));
        let end = match position {
            0..9 => 9,
            9..23 => SEQUENCE,
            _ => 2 * SEQUENCE,
        };
        // Padding is a key for nobody, so it reaches itself alone.
        let end = if position >= SEQUENCE + 15 {
            position + 1
        } else {
            end
        };
        let reachable: Vec<usize> = (position..end).collect();
        assert_eq!(reached, reachable, "{name}: position {position}");
    }
}

/// The first tokens at once, the others one by one, with what attention kept; against the whole row.
/// Not of the two routers that choose by the place in the batch.
#[test]
fn a_text_token_by_token_has_the_logits_of_the_whole() {
    let device = Device::flex();
    let ids: Vec<i32> = (0..SEQUENCE as i32).map(|i| (i * 29 + 3) % 50).collect();
    let row = |numbers: Vec<i32>| -> Tensor<2, Int> {
        Tensor::<1, Int>::from_ints(numbers.as_slice(), &device).reshape([1, SEQUENCE])
    };
    let whole = ModelInput {
        input_ids: row(ids.clone()),
        position_ids: row((0..SEQUENCE as i32).collect()),
        mask: None,
    };
    let tokens: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
    for family in families() {
        let by_token =
            |router: &RouterConfig| !["random", "forced_balanced"].contains(&router.name());
        for router in routers().into_iter().filter(by_token) {
            let model = CausalLm::new(&family.decoder(), &router, 5, &device);
            let expected = model.logits(model.forward(&whole, None).hidden_states);
            let expected: Vec<f32> = expected.into_data().iter::<f32>().collect();
            for first in [1, 9] {
                let mut text = TextSoFar::default();
                let mut logits = model.next_logits(&tokens[..first], &mut text);
                for at in first..SEQUENCE {
                    let found: Vec<f32> = logits.into_data().iter::<f32>().collect();
                    for (a, b) in found.iter().zip(&expected[(at - 1) * 50..][..50]) {
                        assert!((a - b).abs() < 1e-4, "{family:?} {router:?} {at}: {a} {b}");
                    }
                    logits = model.next_logits(&tokens[at..=at], &mut text);
                }
            }
        }
    }
}
