//! `lpr_router/`: the whole router, forward and backward.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::{DType, Tensor};
use lpr_model::hugging_face::{from_hugging_face, to_hugging_face};
use lpr_model::parameters::{
    HostTensor, ParameterVisitor, TensorMap, parameter_shapes, visit_parameters,
    with_parameter_values,
};
use lpr_model::random::ParamInit;
use lpr_model::router::{
    DiversityKind, LprConfig, RouteContext, Router, RouterKind, RouterSizes, Similarity,
};
use lpr_model::{LatentNoise, LossContext};
use serde_json::Value;

use crate::case::{Case, Golden, autodiff};
use crate::losses::ints;

const F32: DType = DType::F32;

/// Our config of a reference router or model.
pub fn lpr_config(config: &Value) -> LprConfig {
    let number = |keys: [&str; 2]| keys.iter().find_map(|k| config[*k].as_f64());
    let text = |keys: [&str; 2]| keys.iter().find_map(|k| config[*k].as_str()).unwrap();
    LprConfig {
        latent_dim: number(["latent", "router_latent_dim"]).unwrap() as usize,
        similarity: match text(["metric", "routing_metrics"]) {
            "cosine" | "Cosine" => Similarity::Cosine,
            "dot" => Similarity::DotProduct,
            other => panic!("metric {other} is not known here"),
        },
        unit_ball: config["unit_ball"].as_bool().unwrap(),
        diversity: match config["diversity_type"].as_str().unwrap() {
            "orthogonal" => DiversityKind::Orthogonal,
            "cosine" => DiversityKind::Cosine,
            "euclidean" => DiversityKind::Euclidean,
            other => panic!("diversity {other} is not known here"),
        },
        diversity_weight: config["div_weight"].as_f64().unwrap()
            * config["diversity_lambda"].as_f64().unwrap(),
        kl_weight: config["kl_weight"].as_f64().unwrap(),
        alignment_weight: config["align_weight"].as_f64().unwrap(),
        loss_weight: config["router_kl_loss_coef"].as_f64().unwrap_or(1.0),
        equiv_accum: 1.0,
        ..LprConfig::default()
    }
}

/// A block's tensors, named as its part `part` of layer 0 would be, so that the model's naming rules
/// apply.
const PREFIX: &str = "model.layers.0.mlp.";

/// Loads `{params}{name}` of the file, where `theirs` is the part's name in Hugging Face's block and
/// `ours` in ours.
pub fn load<M: Module>(module: M, case: &mut Case, theirs: &str, ours: &str) -> M {
    let params = case.inputs("param.");
    let params = renamed(params, |name| format!("{PREFIX}{theirs}{name}"));
    let shapes: Vec<_> = parameter_shapes(&module)
        .into_iter()
        .map(|(name, shape)| (format!("{PREFIX}{ours}{name}"), shape))
        .collect();
    let values = from_hugging_face(params, &shapes).unwrap_or_else(|e| panic!("{e}"));
    let prefix = format!("{PREFIX}{ours}");
    let values = renamed(values, |name| {
        name.strip_prefix(&prefix).unwrap().to_owned()
    });
    with_parameter_values(module, values).unwrap_or_else(|e| panic!("{e}"))
}

/// Compares the gradients of `module` with `grad.param.*`.
pub fn expect_gradients<M: Module>(
    module: &M,
    gradients: burn::tensor::Gradients,
    case: &mut Case,
    theirs: &str,
    ours: &str,
) {
    struct Collect(burn::tensor::Gradients, BTreeMap<String, HostTensor>);
    impl ParameterVisitor for Collect {
        fn visit<const D: usize>(&mut self, name: &str, p: &burn::module::Param<Tensor<D>>) {
            let gradient = p.val().grad_remove(&mut self.0);
            let gradient = gradient.unwrap_or_else(|| p.val().inner().zeros_like());
            self.1
                .insert(name.to_owned(), HostTensor::from_tensor(gradient));
        }
    }
    let mut collect = Collect(gradients, BTreeMap::new());
    visit_parameters(module, &mut collect);
    let named = renamed(collect.1, |name| format!("{PREFIX}{ours}{name}"));
    let prefix = format!("{PREFIX}{theirs}");
    let named = renamed(to_hugging_face(&named), |name| {
        name.strip_prefix(&prefix).unwrap().to_owned()
    });
    case.expect_gradients("grad.param.", &named);
}

fn renamed(map: TensorMap, rename: impl Fn(&str) -> String) -> TensorMap {
    map.into_iter()
        .map(|(name, t)| (rename(&name), t))
        .collect()
}

pub fn lpr(_: &Golden, case: &mut Case) {
    let config = case.entry.config.clone();
    let size = |key: &str| config[key].as_u64().unwrap() as usize;
    let sizes = RouterSizes {
        hidden_size: size("hidden"),
        num_experts: size("n_experts"),
        top_k: size("top_k"),
    };
    let lpr = lpr_config(&config);
    let device = autodiff();
    let router = lpr.init(&sizes, &ParamInit::new(0, 0.02, &device));
    let router = load(router, case, "gate.", "router.");

    let x = case.input("x").leaf::<2>(F32);
    let losses = LossContext {
        is_token: None,
        num_groups: 1,
        noise: LatentNoise::Given(vec![case.input("eps").tensor(F32)]),
    };
    let context = RouteContext {
        layer: 0,
        losses: Some(&losses),
    };
    let routing = router.route(x.clone(), &context);

    case.expect("topk_idx", &ints(routing.expert_indices.clone()));
    case.expect_tensor("topk_weights", routing.routing_weights.clone());
    case.expect_tensor("scores", routing.router_logits.clone());
    let decoded = routing.residual.clone().expect("the aligner is on");
    case.expect_tensor("z_decoded", decoded.clone());
    for (ours, theirs) in [
        ("kl", "kl"),
        ("diversity_tokens", "div_tokens"),
        ("diversity_prototypes", "div_keys"),
        ("alignment", "align"),
    ] {
        let term = routing.terms.iter().find(|t| t.name == ours).unwrap();
        case.expect_tensor(theirs, term.value.clone());
    }
    inner_values(case, &router, &x, &routing, &lpr);

    let weighted = lpr
        .losses(std::slice::from_ref(&routing), &losses)
        .into_iter()
        .map(|loss| loss.value * loss.weight)
        .reduce(|a, b| a + b)
        .unwrap();
    case.expect_tensor("reg", weighted.clone());
    let objective = (routing.routing_weights * case.input("cot_weights").tensor(F32)).sum()
        + (decoded * case.input("cot_z_decoded").tensor(F32)).sum()
        + weighted;
    let gradients = objective.backward();
    case.expect_tensor("objective", objective);
    case.expect_tensor("grad.x", x.grad(&gradients).unwrap());
    expect_gradients(&router, gradients, case, "gate.", "router.");
}

/// Values on the way that `Routing` does not show.
fn inner_values(
    case: &mut Case,
    router: &lpr_model::router::LprRouter,
    x: &Tensor<2>,
    routing: &lpr_model::Routing,
    config: &LprConfig,
) {
    let latent = router.encode(x.clone());
    case.expect_tensor("mu", latent.mean.clone());
    case.expect_tensor("logvar", latent.log_var.clone());
    let noise = case.input("eps").tensor(F32);
    case.expect_tensor("z", latent.sample(noise));
    let found = config
        .similarity
        .compare(latent.mean, router.prototypes.val());
    case.expect_tensor("weighted_prototypes", found.mixture);
    let chosen = routing
        .router_logits
        .clone()
        .gather(1, routing.expert_indices.clone());
    let hard = lpr_model::router::alignment_routing(
        &routing.router_logits,
        &routing.expert_indices,
        chosen,
    );
    case.expect_tensor("routing_pseudo_hard", hard);
}
