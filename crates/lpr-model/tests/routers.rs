//! What every registered router must do, whatever the number of experts and the choices per token.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use burn::tensor::{Device, Tensor, TensorData};
use lpr_model::config::{AttentionConfig, DecoderConfig, GroupedQueryConfig, MoeConfig};
use lpr_model::moe::MoeLayer;
use lpr_model::random::{ParamInit, Stream};
use lpr_model::router::{RouteContext, RouterConfig, Routing};
use lpr_model::{LatentNoise, LossContext};
use serde_json::json;

const HIDDEN: usize = 16;
const TOKENS: usize = 64;

fn routers() -> Vec<RouterConfig> {
    let router = |kind| serde_json::from_value(json!({ "kind": kind })).unwrap();
    RouterConfig::NAMES.iter().map(router).collect()
}

fn moe(num_experts: usize, top_k: usize) -> MoeConfig {
    MoeConfig {
        num_experts,
        top_k,
        moe_intermediate_size: 4,
        shared_intermediate_size: 0,
    }
}

fn decoder(num_experts: usize, top_k: usize) -> DecoderConfig {
    DecoderConfig {
        vocab_size: 5,
        hidden_size: HIDDEN,
        num_hidden_layers: 1,
        attention: AttentionConfig::GroupedQuery(GroupedQueryConfig {
            num_attention_heads: 1,
            num_key_value_heads: 1,
            head_dim: 2,
            rope_theta: 1e4,
            qk_norm_eps: None,
        }),
        moe: moe(num_experts, top_k),
        first_k_dense_replace: 0,
        dense_intermediate_size: 0,
        rms_norm_eps: 1e-6,
        initializer_range: 0.02,
        tie_word_embeddings: false,
    }
}

fn context(step: u64) -> LossContext {
    LossContext {
        is_token: None,
        num_groups: 1,
        noise: LatentNoise::Stream(Stream::new(step)),
        step_load: None,
    }
}

fn tokens(device: &Device) -> Tensor<2> {
    let values = Stream::new(1).standard_normal(TOKENS * HIDDEN);
    Tensor::from_data(TensorData::new(values, [TOKENS, HIDDEN]), device)
}

fn route(router: &RouterConfig, num_experts: usize, top_k: usize, step: Option<u64>) -> Routing {
    let device = Device::flex();
    let init = ParamInit::new(7, 0.3, &device);
    let layer = MoeLayer::new(&init, HIDDEN, &moe(num_experts, top_k), router);
    let losses = step.map(context);
    let context = RouteContext {
        layer: 0,
        losses: losses.as_ref(),
    };
    layer.forward(tokens(&device), &context).1
}

fn ids(routing: &Routing) -> Vec<i64> {
    routing.expert_indices.clone().into_data().iter().collect()
}

fn counts(routing: &Routing) -> Vec<i64> {
    routing.expert_counts(None).into_data().iter().collect()
}

#[test]
fn experts_are_distinct_and_weights_sane_from_one_of_one_to_all_of_512() {
    for router in routers() {
        for (num_experts, top_k) in [
            (1, 1),
            (5, 1),
            (5, 2),
            (5, 5),
            (512, 1),
            (512, 4),
            (512, 512),
        ] {
            let name = format!("{} {top_k} of {num_experts}", router.name());
            let problems = router.validate(&decoder(num_experts, top_k));
            assert!(problems.is_empty(), "{name}: {problems:?}");
            let routing = route(&router, num_experts, top_k, Some(3));
            let weights = routing.routing_weights.clone().into_data();
            let weights: Vec<f32> = weights.iter().collect();
            assert!(weights.iter().all(|w| w.is_finite() && *w >= 0.0), "{name}");
            for (ids, weights) in ids(&routing).chunks(top_k).zip(weights.chunks(top_k)) {
                let mut sorted = ids.to_vec();
                sorted.sort_unstable();
                sorted.dedup();
                assert_eq!(sorted.len(), top_k, "{name}: {ids:?}");
                assert!(
                    sorted
                        .iter()
                        .all(|&id| (0..num_experts as i64).contains(&id))
                );
                let sum: f32 = weights.iter().sum();
                // Qwen3-MoE keeps the probabilities of the chosen experts.
                let keeps = router.name() == "softmax_topk" && sum < 1.0 && sum > 0.0;
                assert!(keeps || (sum - 1.0).abs() < 1e-4, "{name}: sum {sum}");
            }
            let total: i64 = counts(&routing).iter().sum();
            assert_eq!(total, (TOKENS * top_k) as i64, "{name}");
        }
    }
}

#[test]
fn experts_by_turns_get_the_same_number_of_tokens() {
    let router = serde_json::from_value(json!({ "kind": "forced_balanced" })).unwrap();
    assert_eq!(counts(&route(&router, 16, 2, Some(1))), [8; 16]);
    // 64 slots for 5 experts: none is more than one ahead.
    let mut uneven = counts(&route(&router, 5, 1, None));
    uneven.sort_unstable();
    assert_eq!(uneven, [12, 13, 13, 13, 13]);
}

#[test]
fn experts_by_lot_differ_between_steps_and_can_be_replayed() {
    let router = serde_json::from_value(json!({ "kind": "random" })).unwrap();
    let drawn = |step| ids(&route(&router, 16, 2, step));
    assert_eq!(drawn(Some(1)), drawn(Some(1)));
    assert_ne!(drawn(Some(1)), drawn(Some(2)));
    assert_eq!(drawn(None), drawn(None));
}

#[test]
fn groups_limit_the_choice_to_their_experts() {
    let router = serde_json::from_value(json!({
        "kind": "sigmoid_topk", "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5,
    }))
    .unwrap();
    let routing = route(&router, 16, 4, None);
    let scores: Vec<f32> = routing.router_logits.into_data().iter().collect();
    let chosen: Vec<i64> = routing.expert_indices.into_data().iter().collect();
    for (scores, chosen) in scores.chunks(16).zip(chosen.chunks(4)) {
        // By hand: the two groups with the largest sum of their two best scores.
        let sigmoid = |x: &f32| 1.0 / (1.0 + (-x).exp());
        let mut groups: Vec<(f32, usize)> = scores
            .chunks(4)
            .enumerate()
            .map(|(group, scores)| {
                let mut best: Vec<f32> = scores.iter().map(sigmoid).collect();
                best.sort_by(|a, b| b.total_cmp(a));
                (best[0] + best[1], group)
            })
            .collect();
        groups.sort_by(|a, b| b.0.total_cmp(&a.0));
        let kept = [groups[0].1, groups[1].1];
        let mut best: Vec<usize> = (0..16).filter(|e| kept.contains(&(e / 4))).collect();
        best.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
        let mut want: Vec<i64> = best[..4].iter().map(|&e| e as i64).collect();
        let mut got = chosen.to_vec();
        want.sort_unstable();
        got.sort_unstable();
        assert_eq!(got, want);
    }
    let sums: Vec<f32> = routing
        .routing_weights
        .sum_dim(1)
        .into_data()
        .iter()
        .collect();
    assert!(sums.iter().all(|sum| (sum - 2.5).abs() < 1e-5), "{sums:?}");
}

#[test]
fn settings_that_do_not_fit_are_refused_by_key() {
    for (keys, num_experts, top_k, key) in [
        (json!({ "n_group": 3 }), 16, 2, "router.n_group"),
        (
            json!({ "n_group": 4, "topk_group": 5 }),
            16,
            2,
            "router.topk_group",
        ),
        (
            json!({ "n_group": 8, "topk_group": 1 }),
            16,
            3,
            "router.topk_group",
        ),
        (
            json!({ "bias_update_rate": 0.0, "zero_mean_bias": true }),
            16,
            2,
            "router.zero_mean_bias",
        ),
        (
            json!({ "kind": "softmax_topk", "aux_loss": "per_sequence", "loss_group_rows": 2 }),
            16,
            2,
            "router.loss_group_rows",
        ),
        (
            json!({ "kind": "softmax_topk", "aux_loss": "global_batch", "loss_group_rows": 1 }),
            16,
            2,
            "router.loss_group_rows",
        ),
    ] {
        let mut config = json!({ "kind": "sigmoid_topk" });
        for (name, value) in keys.as_object().unwrap() {
            config[name] = value.clone();
        }
        let router: RouterConfig = serde_json::from_value(config).unwrap();
        let problems = router.validate(&decoder(num_experts, top_k));
        let found: Vec<&str> = problems.iter().map(|p| p.key.as_str()).collect();
        assert_eq!(found, [key], "{problems:?}");
    }
}
