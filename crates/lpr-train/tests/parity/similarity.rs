//! `similarity/`: scores, mixtures, and the gradients of both.

use burn::tensor::DType;
use lpr_model::router::Similarity;

use crate::case::{Case, Golden};

pub fn vector(_: &Golden, case: &mut Case) {
    let metric = match case.entry.config["metric"].as_str() {
        Some("Cosine") => Similarity::Cosine,
        Some("DotProducts") => Similarity::DotProduct,
        other => panic!("metric {other:?} is not known here"),
    };
    let (z, keys) = (case.input("z"), case.input("keys"));
    for (output, cotangent, gradient) in [
        ("scores", "cot_scores", "grad_scores"),
        ("weighted_prototypes", "cot_weighted", "grad_weighted"),
    ] {
        let (z, keys) = (z.leaf::<2>(DType::F32), keys.leaf::<2>(DType::F32));
        let found = metric.compare(z.clone(), keys.clone());
        let value = if output == "scores" {
            found.scores
        } else {
            found.mixture
        };
        case.expect_tensor(output, value.clone());
        let gradients = (value * case.input(cotangent).tensor(DType::F32))
            .sum()
            .backward();
        case.expect_tensor(&format!("{gradient}.z"), z.grad(&gradients).unwrap());
        case.expect_tensor(&format!("{gradient}.keys"), keys.grad(&gradients).unwrap());
    }
}
