//! `losses/`: computed in 64-bit floats, as the references were.

use burn::tensor::{DType, Int, Tensor, activation::softmax};
use lpr_data::IGNORE_INDEX;
use lpr_model::random::ParamInit;
use lpr_model::router::{
    AlignmentReduce, Diversity, DiversityKind, DiversityReduce, Latent, LayerBalance, LprConfig,
    TokenGroups, alignment_code_loss, alignment_paper_loss, alignment_routing, alignment_target,
    kl_loss, load_balancing_loss, switch_loss, z_loss,
};
use lpr_model::{LatentNoise, LossContext};

use crate::case::{Case, Golden, autodiff, gradient, plain, values};

const F64: DType = DType::F64;

pub fn kl(_: &Golden, case: &mut Case) {
    case.knows_keys(&[]);
    let (mean, log_var) = (
        case.input("mu").leaf::<2>(F64),
        case.input("logvar").leaf::<2>(F64),
    );
    let loss = kl_loss(mean.clone(), log_var.clone(), &TokenGroups::one());
    let gradients = loss.backward();
    case.expect_tensor("kl", loss);
    case.expect_tensor("grad.kl.mu", mean.grad(&gradients).unwrap());
    case.expect_tensor("grad.kl.logvar", log_var.grad(&gradients).unwrap());
}

pub fn diversity(_: &Golden, case: &mut Case) {
    use DiversityKind::{Cosine, Euclidean, Orthogonal};
    use DiversityReduce::{Mean, Sum};
    case.knows_keys(&[]);
    let x = case.input("x");
    for (name, kind, reduce, normalize) in [
        ("orthogonal", Orthogonal, Mean, true),
        ("cosine", Cosine, Mean, true),
        ("euclidean", Euclidean, Mean, true),
        ("paper_frobenius_sum_raw", Orthogonal, Sum, false),
        ("frobenius_sum_normalized", Orthogonal, Sum, true),
    ] {
        if !case.has(name) {
            continue;
        }
        let x = x.leaf::<2>(F64);
        let loss = Diversity {
            kind,
            reduce,
            normalize,
        }
        .loss(x.clone());
        let gradients = loss.backward();
        case.expect_tensor(name, loss);
        case.expect_tensor(&format!("grad.{name}.x"), gradient(&x, &gradients));
    }
}

/// Cosine scores.
fn scores(mean: Tensor<2>, keys: &Tensor<2>) -> Tensor<2> {
    let [num_experts, latent_dim] = keys.dims();
    let config = LprConfig {
        latent_dim,
        ..LprConfig::default()
    };
    let (device, log_var) = (autodiff(), mean.zeros_like());
    let init = ParamInit::new(0, 0.02, &device);
    let metric = config.similarity.init(&config.metric(num_experts), &init);
    metric
        .compare(&Latent { mean, log_var }, keys.clone())
        .scores
}

pub fn align_code(_: &Golden, case: &mut Case) {
    case.knows_keys(&["top_k"]);
    let top_k = case.entry.config["top_k"].as_u64().unwrap() as usize;
    let keys = case.input("keys").leaf::<2>(F64);
    let (z, mean) = (
        case.input("z").leaf::<2>(F64),
        case.input("mu").leaf::<2>(F64),
    );
    let scores = scores(mean, &keys);
    case.expect_tensor("scores", scores.clone());
    let (chosen, indices) = scores.clone().topk_with_indices(top_k, 1);
    case.expect("topk_idx", &ints(indices.clone()));
    let routing = alignment_routing(&scores, &indices, chosen);
    case.expect_tensor("routing", routing.clone());
    let target = alignment_target(routing, z.clone(), &TokenGroups::one());
    case.expect_tensor("target", target.clone());
    let loss = alignment_code_loss(keys.clone(), target);
    let gradients = loss.backward();
    case.expect_tensor("align", loss);
    case.expect_tensor("grad.align.keys", keys.grad(&gradients).unwrap());
    assert!(
        z.grad(&gradients).is_none(),
        "the target carries no gradient"
    );
}

pub fn align_paper(_: &Golden, case: &mut Case) {
    case.knows_keys(&[]);
    let (z, mean, keys) = (case.input("z"), case.input("mu"), case.input("keys"));
    for (name, reduce, detach) in [
        ("sum", AlignmentReduce::Sum, false),
        ("token_mean", AlignmentReduce::TokenMean, false),
        ("mean", AlignmentReduce::Mean, false),
        ("token_mean_detached_p", AlignmentReduce::TokenMean, true),
    ] {
        if !case.has(name) {
            continue;
        }
        let (z, mean, keys) = (z.leaf::<2>(F64), mean.leaf::<2>(F64), keys.leaf::<2>(F64));
        let scores = scores(mean.clone(), &keys);
        case.expect_tensor("scores", scores.clone());
        let scores = if detach { scores.detach() } else { scores };
        let mixture = softmax(scores, 1).matmul(keys.clone());
        let loss = alignment_paper_loss(z.clone(), mixture, reduce, &TokenGroups::one());
        let gradients = loss.backward();
        case.expect_tensor(name, loss);
        for (leaf, x) in [("z", z), ("mu", mean), ("keys", keys)] {
            case.expect_tensor(&format!("grad.{name}.{leaf}"), gradient(&x, &gradients));
        }
    }
}

pub fn load_balancing(_: &Golden, case: &mut Case) {
    case.knows_keys(&["E", "top_k", "layers"]);
    let top_k = case.entry.config["top_k"].as_u64().unwrap() as usize;
    let num_layers = case.entry.config["layers"].as_u64().unwrap() as usize;
    let mask = case.input("mask");
    let inputs: Vec<_> = (0..num_layers)
        .map(|l| case.input(&format!("logits.{l}")))
        .collect();
    let context = |masked: bool| LossContext {
        is_token: masked.then(|| {
            let mask = mask.tensor::<2>(F64);
            let tokens = mask.shape().num_elements();
            mask.reshape([tokens])
        }),
        num_groups: 1,
        noise: LatentNoise::Given(Vec::new()),
        step_load: None,
    };
    for name in [
        "hf_global",
        "hf_global_masked",
        "hf_per_layer_sum",
        "switch_layer_mean",
        "z_loss_mean",
    ] {
        if !case.has(name) {
            continue;
        }
        let context = context(name.ends_with("masked"));
        let logits: Vec<_> = inputs.iter().map(|a| a.leaf::<2>(F64)).collect();
        let layers: Vec<_> = logits
            .iter()
            .map(|l| LayerBalance::new(l, &l.clone().topk_with_indices(top_k, 1).1, &context))
            .collect();
        let loss = match name {
            "hf_per_layer_sum" => layers
                .iter()
                .map(|layer| load_balancing_loss(std::slice::from_ref(layer)))
                .reduce(|a, b| a + b)
                .unwrap(),
            "switch_layer_mean" => switch_loss(&layers),
            "z_loss_mean" => z_loss(&logits, &context),
            _ => load_balancing_loss(&layers),
        };
        let gradients = loss.backward();
        case.expect_tensor(name, loss);
        for (layer, logits) in logits.iter().enumerate() {
            let gradient = logits.grad(&gradients).unwrap();
            case.expect_tensor(&format!("grad.{name}.logits.{layer}"), gradient);
        }
    }
}

pub fn causal_lm(_: &Golden, case: &mut Case) {
    case.knows_keys(&[]);
    let (logits, labels) = (case.input("logits"), case.input("labels"));
    let [rows, positions] = labels.shape[..] else {
        panic!("labels have two axes")
    };
    let unshifted = labels
        .values
        .iter()
        .filter(|&&l| l as i32 != IGNORE_INDEX)
        .count();
    let targets = next_tokens(&labels.values, positions);
    let count = targets.iter().filter(|&&t| t != IGNORE_INDEX).count();
    let targets = Tensor::<1, Int>::from_ints(targets.as_slice(), &plain());
    for (name, denominator) in [("mean", count), ("sum_over_hf_num_items", unshifted)] {
        let leaf = logits.leaf::<3>(F64);
        let vocab = leaf.dims()[2];
        // Logits times the identity: the head and its loss are one operation.
        let identity = Tensor::<2>::eye(vocab, &autodiff()).cast(F64);
        let flat = leaf.clone().reshape([rows * positions, vocab]);
        let sum = lpr_kernels::linear_cross_entropy(flat, identity, targets.clone());
        let loss = sum * (denominator as f64).recip();
        let gradients = loss.backward();
        case.expect_tensor(name, loss);
        case.expect_tensor(
            &format!("grad.{name}.logits"),
            leaf.grad(&gradients).unwrap(),
        );
    }
}

/// Labels as Hugging Face gives them (not shifted) to the token that follows each position.
pub fn next_tokens(labels: &[f64], row: usize) -> Vec<i32> {
    labels
        .chunks(row)
        .flat_map(|row| row[1..].iter().map(|&l| l as i32).chain([IGNORE_INDEX]))
        .collect()
}

/// Integers as 64-bit floats.
pub fn ints<const D: usize>(tensor: Tensor<D, Int>) -> Vec<f64> {
    values(tensor.float())
}
