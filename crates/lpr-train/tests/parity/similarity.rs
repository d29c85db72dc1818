//! `similarity/`: scores, mixtures, and the gradients of both.

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor};
use lpr_model::hugging_face::Naming;
use lpr_model::random::ParamInit;
use lpr_model::router::{AnySimilarity, Latent, LprConfig};

use serde_json::json;

use crate::case::{Case, Golden, autodiff, gradient, only};
use crate::router::{load_as, named_gradients, renamed, similarity};

const F32: DType = DType::F32;

/// A metric and its prototypes where a router has them, so that a router's names apply.
#[derive(Module, Debug)]
struct Compared {
    prototypes: Param<Tensor<2>>,
    similarity: AnySimilarity,
}

/// The released router's name of a tensor of a metric's file.
fn in_router(name: &str) -> String {
    match name.strip_prefix("keys") {
        Some(rest) => format!("expert_keys{rest}"),
        None if name.starts_with("proj.") => name.to_owned(),
        None => format!("similarity_func.{name}"),
    }
}

/// The inverse of [`in_router`].
fn in_file(name: &str) -> String {
    let name = name.strip_prefix("expert_").unwrap_or(name);
    name.strip_prefix("similarity_func.")
        .unwrap_or(name)
        .to_owned()
}

pub fn metric(_: &Golden, case: &mut Case) {
    case.knows_keys(&["metric", "sigma", "num_heads", "eps", "rms_eps", "scores"]);
    let config = case.entry.config.clone();
    only(&config, "eps", &json!(1e-8));
    only(&config, "rms_eps", &json!(1e-6));
    only(&config, "scores", &json!("-distance"));
    // Every tensor that has a gradient is the token's or a parameter.
    let (tokens, parameters): (Vec<_>, Vec<_>) = case
        .names("grad_scores.")
        .into_iter()
        .partition(|name| ["z", "mu", "logvar"].contains(&name.as_str()));
    let parameters: Vec<_> = parameters
        .into_iter()
        .map(|name| (in_router(&name), case.input(&name).host()))
        .collect();
    let is_prototypes = |name: &str| ["expert_keys", "expert_keys_mu"].contains(&name);
    let shape = &parameters
        .iter()
        .find(|(n, _)| is_prototypes(n))
        .unwrap()
        .1
        .shape;
    let (num_experts, latent_dim) = (shape[0], shape[1]);
    let lpr = LprConfig {
        latent_dim,
        similarity: similarity(config["metric"].as_str().unwrap()),
        gaussian_sigma: config["sigma"].as_f64().unwrap_or(1.0),
        num_similarity_heads: config["num_heads"].as_u64().unwrap_or(1) as usize,
        ..LprConfig::default()
    };
    let device = autodiff();
    let init = ParamInit::new(0, 0.02, &device);
    let compared = Compared {
        prototypes: init.zeros([num_experts, latent_dim]),
        similarity: lpr.similarity.init(&lpr.metric(num_experts), &init),
    };
    let parameters = parameters.into_iter().collect();
    let compared = load_as(compared, parameters, "gate.", "router.", Naming::Mlp);

    for (output, cotangent, prefix) in [
        ("scores", "cot_scores", "grad_scores"),
        ("weighted_prototypes", "cot_weighted", "grad_weighted"),
    ] {
        let leaves: Vec<_> = tokens
            .iter()
            .map(|name| (name, case.input(name).leaf::<2>(F32)))
            .collect();
        let leaf = |wanted: &str| {
            leaves
                .iter()
                .find(|(n, _)| *n == wanted)
                .map(|(_, t)| t.clone())
        };
        let mean = leaf("z").or_else(|| leaf("mu")).unwrap();
        let log_var = leaf("logvar").unwrap_or_else(|| mean.zeros_like());
        let latent = Latent { mean, log_var };
        let found = compared
            .similarity
            .compare(&latent, compared.prototypes.val());
        let value = if output == "scores" {
            found.scores
        } else {
            found.mixture
        };
        case.expect_tensor(output, value.clone());
        let gradients = (value * case.input(cotangent).tensor(F32)).sum().backward();
        for (name, leaf) in &leaves {
            case.expect_tensor(&format!("{prefix}.{name}"), gradient(leaf, &gradients));
        }
        let named = named_gradients(&compared, gradients, "gate.", "router.", Naming::Mlp);
        case.expect_gradients(&format!("{prefix}."), &renamed(named, in_file));
    }
}
