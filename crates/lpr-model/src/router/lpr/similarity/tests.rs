//! Properties of every registered metric.

use burn::tensor::{Device, TensorData};

use super::super::{LprConfig, PrototypeInit, Score};
use super::*;
use crate::random::Stream;
use crate::router::{RouteContext, Router, RouterSizes};

const TOKENS: usize = 40;
const EXPERTS: usize = 6;
const WIDTH: usize = 4;

fn normal(name: &str, rows: usize, device: &Device) -> Tensor<2> {
    let values = Stream::new(5).child(name).standard_normal(rows * WIDTH);
    Tensor::from_data(TensorData::new(values, [rows, WIDTH]), device)
}

/// Every metric in both forms, and cross-attention with more heads and without projections.
fn configs() -> Vec<LprConfig> {
    let mut configs = Vec::new();
    for &similarity in Similarity::ALL {
        for metric_form in [MetricForm::Code, MetricForm::Paper] {
            configs.push(LprConfig {
                latent_dim: WIDTH,
                similarity,
                metric_form,
                ..LprConfig::default()
            });
        }
    }
    for (num_similarity_heads, similarity_projections) in [(2, true), (2, false), (1, false)] {
        configs.push(LprConfig {
            latent_dim: WIDTH,
            similarity: Similarity::CrossAttention,
            num_similarity_heads,
            similarity_projections,
            ..LprConfig::default()
        });
    }
    configs
}

fn metric(config: &LprConfig, device: &Device) -> AnySimilarity {
    // Large weights, so that projections matter.
    let init = ParamInit::new(1, 0.5, device);
    config.similarity.init(&config.metric(EXPERTS), &init)
}

fn values(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

#[test]
fn every_metric_chooses_distinct_experts_with_weights_that_sum_to_one() {
    const TOP_K: usize = 3;
    let device = Device::flex();
    for config in configs() {
        let sizes = RouterSizes {
            hidden_size: WIDTH,
            num_experts: EXPERTS,
            top_k: TOP_K,
        };
        let router = config.init(&sizes, &ParamInit::new(2, 0.5, &device));
        let context = RouteContext {
            layer: 0,
            losses: None,
        };
        for hidden in [
            normal("x", TOKENS, &device),
            Tensor::zeros([TOKENS, WIDTH], &device),
        ] {
            let routing = router.route(hidden, &context);
            let indices: Vec<i64> = routing.expert_indices.into_data().iter::<i64>().collect();
            for row in indices.chunks(TOP_K) {
                let distinct = (0..TOP_K).all(|i| !row[..i].contains(&row[i]));
                let known = row.iter().all(|&e| (0..EXPERTS as i64).contains(&e));
                assert!(distinct && known, "{config:?}: {row:?}");
            }
            for row in values(routing.routing_weights).chunks(TOP_K) {
                let sum: f32 = row.iter().sum();
                assert!(row.iter().all(|w| w.is_finite() && *w >= 0.0), "{config:?}");
                assert!((sum - 1.0).abs() < 1e-5, "{config:?}: {row:?}");
            }
            assert!(values(routing.router_logits).iter().all(|s| s.is_finite()));
            let residual = routing.residual.expect("the aligner is on");
            assert!(values(residual).iter().all(|x| x.is_finite()));
        }
    }
}

#[test]
fn nothing_is_closer_to_a_distribution_than_itself() {
    let device = Device::flex();
    let prototypes = normal("prototypes", EXPERTS, &device);
    for config in configs() {
        let is_distance = config.similarity.compares() == Compares::Distributions
            || matches!(
                config.similarity,
                Similarity::Gaussian | Similarity::Mahalanobis
            );
        if !is_distance {
            continue;
        }
        // The experts' log-variances start at zero.
        let mut means = vec![prototypes.clone()];
        means.extend((0..6).map(|i| normal(&format!("token {i}"), EXPERTS, &device)));
        means.push(prototypes.clone() + 1e-2);
        let mut log_vars = vec![Tensor::zeros([EXPERTS, WIDTH], &device); 7];
        log_vars.push(Tensor::full([EXPERTS, WIDTH], 0.1, &device));
        let latent = Latent {
            mean: Tensor::cat(means, 0),
            log_var: Tensor::cat(log_vars, 0),
        };
        let scores = values(
            metric(&config, &device)
                .compare(&latent, prototypes.clone())
                .scores,
        );
        for (token, row) in scores.chunks(EXPERTS).enumerate() {
            for (expert, score) in row.iter().enumerate() {
                let own = scores[expert * EXPERTS + expert];
                let what = format!("{config:?}: token {token} expert {expert}");
                assert!(*score <= own + 1e-6, "{what}: {score} above {own}");
                if token != expert && token < 7 * EXPERTS {
                    assert!(*score < own, "{what}: {score} is not below {own}");
                }
            }
        }
    }
}

#[test]
fn gradients_are_finite_at_zero_and_where_token_and_prototype_are_the_same() {
    let device = Device::flex().autodiff();
    for config in configs() {
        for same in [
            Tensor::zeros([EXPERTS, WIDTH], &device),
            normal("same", EXPERTS, &device),
        ] {
            let metric = metric(&config, &device);
            let leaf = |tensor: &Tensor<2>| tensor.clone().detach().require_grad();
            let (mean, prototypes) = (leaf(&same), leaf(&same));
            let log_var = leaf(&same.zeros_like());
            let latent = Latent {
                mean: mean.clone(),
                log_var: log_var.clone(),
            };
            let found = metric.compare(&latent, prototypes.clone());
            let cotangent = normal("cotangent", EXPERTS, &device)
                .matmul(normal("cotangent 2", EXPERTS, &device).transpose());
            let loss = (found.scores * cotangent).sum() + found.mixture.powi_scalar(2).sum();
            let gradients = loss.backward();
            for leaf in [mean, prototypes, log_var] {
                if let Some(gradient) = leaf.grad(&gradients) {
                    let gradient = values(gradient);
                    assert!(
                        gradient.iter().all(|g| g.is_finite()),
                        "{config:?}: {gradient:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn paper_forms_are_the_printed_functions_of_the_codes() {
    let device = Device::flex();
    let (mean, prototypes) = (normal("x", 5, &device), normal("k", EXPERTS, &device));
    let log_var = normal("l", 5, &device) * 0.3;
    let scores = |similarity, metric_form| {
        let config = LprConfig {
            latent_dim: WIDTH,
            similarity,
            metric_form,
            ..LprConfig::default()
        };
        let latent = Latent {
            mean: mean.clone(),
            log_var: log_var.clone(),
        };
        values(
            metric(&config, &device)
                .compare(&latent, prototypes.clone())
                .scores,
        )
    };
    let both = |similarity| {
        let code = scores(similarity, MetricForm::Code);
        code.into_iter().zip(scores(similarity, MetricForm::Paper))
    };
    for (code, paper) in both(Similarity::Wasserstein) {
        assert!((code * code + paper).abs() < 1e-4, "{code} {paper}");
    }
    for (code, paper) in both(Similarity::Kl).chain(both(Similarity::Js)) {
        assert!((code - paper).abs() < f32::EPSILON);
    }
    // One dimension by hand: m = 0 and 1, sigma = 1 and 2.
    let point = |mean: f32, variance: f32| Latent {
        mean: Tensor::from_data([[mean]], &device),
        log_var: Tensor::from_data([[variance.ln()]], &device),
    };
    let (a, b) = (point(0.0, 1.0), point(1.0, 4.0));
    let affinity = 4.0 / 5.0 * (-1.0_f32 / 20.0).exp();
    let want = ((1.0 - affinity) / 2.0).sqrt();
    let got = values(divergence::hellinger_paper(&a, &b))[0];
    assert!((got - want).abs() < 1e-5, "{got} {want}");
    let want = (1.0 - (4.0_f32 / 5.0).sqrt() * (-1.0_f32 / 20.0).exp()).sqrt();
    let got = values(divergence::hellinger(&a, &b))[0];
    assert!((got - want).abs() < 1e-5, "{got} {want}");
    let got = values(divergence::kl(&a, &b))[0];
    let want = 0.5 * (4.0_f32.ln() + 2.0 / 4.0 - 1.0);
    assert!((got - want).abs() < 1e-5, "{got} {want}");
    let got = values(divergence::wasserstein_paper(&a, &b))[0];
    assert!((got - 2.0).abs() < 1e-5, "{got}");
}

#[test]
fn one_head_without_projections_is_a_scaled_inner_product() {
    let device = Device::flex();
    let config = |similarity, num_similarity_heads| LprConfig {
        latent_dim: WIDTH,
        similarity,
        num_similarity_heads,
        similarity_projections: false,
        ..LprConfig::default()
    };
    let (mean, prototypes) = (normal("x", 5, &device), normal("k", EXPERTS, &device));
    let latent = Latent {
        log_var: mean.zeros_like(),
        mean,
    };
    let compare = |config: LprConfig| metric(&config, &device).compare(&latent, prototypes.clone());
    let inner = values(compare(config(Similarity::DotProduct, 1)).scores);
    for heads in [1, 2, 4] {
        let scale = heads as f32 * (WIDTH as f32 / heads as f32).sqrt();
        let attention = values(compare(config(Similarity::CrossAttention, heads)).scores);
        for (a, b) in attention.iter().zip(&inner) {
            assert!((a * scale - b).abs() < 1e-5, "{heads} heads: {a} {b}");
        }
    }
}

#[test]
fn distributions_refuse_what_they_cannot_score() {
    for &similarity in Similarity::ALL {
        let config = LprConfig {
            similarity,
            score: Score::Sample,
            prototype_init: PrototypeInit::Normal,
            ..LprConfig::default()
        };
        let refused = similarity.compares() == Compares::Distributions;
        assert_eq!(config.problems().len(), if refused { 2 } else { 0 });
    }
}
