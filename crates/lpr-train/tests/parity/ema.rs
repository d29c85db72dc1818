//! `ema.safetensors`: prototypes that follow their tokens, in 64-bit floats.

use burn::tensor::{DType, Int, Tensor, TensorData};
use lpr_model::router::{PrototypeEma, PrototypeSums, official_update, paper_update};

use crate::case::{Array, Case, Golden, plain, values};

const F64: DType = DType::F64;

fn constant(array: &Array) -> Tensor<2> {
    array.tensor::<2>(F64).inner()
}

fn indices(array: &Array) -> Tensor<2, Int> {
    let values: Vec<i64> = array.values.iter().map(|&v| v as i64).collect();
    Tensor::from_data(TensorData::new(values, array.shape.clone()), &plain())
}

/// Each step is split into two micro-batches, whose sums add up.
pub fn prototypes(_: &Golden, case: &mut Case) {
    case.knows_keys(&["decay", "top_k"]);
    let decay = case.entry.config["decay"].as_f64().unwrap();
    let top_k = case.entry.config["top_k"].as_u64().unwrap() as usize;
    let start = constant(&case.input("keys0"));
    let mut sums = start.clone();
    let mut counts = sums.clone().sum_dim(1).squeeze_dim::<1>(1).zeros_like();
    let mut paper_hard = start;
    for step in 0..case.names("z.").len() {
        let (z, scores) = (
            constant(&case.input(&format!("z.{step}"))),
            constant(&case.input(&format!("scores.{step}"))),
        );
        let (chosen, found) = scores.clone().topk_with_indices(top_k, 1);
        case.expect(&format!("topk_idx.{step}"), &values(found.float()));
        let expert_indices = indices(&case.input(&format!("topk_idx.{step}")));
        let step_sums = |ema: PrototypeEma| {
            let shares = ema.shares(&scores, &expert_indices, &chosen).unwrap();
            let tokens = z.dims()[0];
            let part = |from: usize, length: usize| {
                let rows = |t: &Tensor<2>| t.clone().narrow(0, from, length);
                PrototypeSums::new(rows(&shares), rows(&z))
            };
            let (one, other) = (part(0, tokens / 2), part(tokens / 2, tokens - tokens / 2));
            (shares, one.merged(other))
        };
        let (shares, official) = step_sums(PrototypeEma::Official);
        case.expect_tensor(&format!("routing.{step}"), shares);
        let prototypes;
        (sums, counts, prototypes) = official_update(sums, counts, &official, decay);
        case.expect_tensor(&format!("official_sums.{step}"), sums.clone());
        case.expect_tensor(&format!("official_counts.{step}"), counts.clone());
        case.expect_tensor(&format!("official_keys.{step}"), prototypes);
        let (_, hard) = step_sums(PrototypeEma::PaperHard);
        paper_hard = paper_update(paper_hard, &hard, decay);
        case.expect_tensor(&format!("paper_hard_keys.{step}"), paper_hard.clone());
    }
}
