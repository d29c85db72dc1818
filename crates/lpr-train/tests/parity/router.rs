//! `lpr_router/`: the whole router, forward and backward.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::{DType, Tensor};
use lpr_model::hugging_face::{Naming, from_hugging_face, to_hugging_face};
use lpr_model::parameters::{
    HostTensor, ParameterVisitor, TensorMap, parameter_shapes, visit_parameters,
    with_parameter_values,
};
use lpr_model::random::ParamInit;
use lpr_model::router::{
    AlignmentForm, AlignmentReduce, DiversityKind, DiversityOn, Latent, LprConfig, LprRouter,
    PrototypeInit, RouteContext, Router, RouterKind, RouterSizes, RouterTerm, Score, Similarity,
    alignment_routing,
};
use lpr_model::{LatentNoise, LossContext, Routing};
use serde_json::{Value, json};

use crate::case::{Case, Golden, autodiff, only};
use crate::losses::ints;

const F32: DType = DType::F32;

/// Our config of a reference router or model.
pub fn lpr_config(config: &Value) -> LprConfig {
    let number = |keys: [&str; 2]| keys.iter().find_map(|k| config[*k].as_f64());
    let text = |keys: [&str; 2]| keys.iter().find_map(|k| config[*k].as_str()).unwrap();
    LprConfig {
        latent_dim: number(["latent", "router_latent_dim"]).unwrap() as usize,
        similarity: similarity(text(["metric", "routing_metrics"])),
        num_similarity_heads: config["heads"].as_u64().unwrap_or(1) as usize,
        gaussian_sigma: config["sigma"].as_f64().unwrap_or(1.0),
        prototype_init: if config["unit_ball"].as_bool().unwrap() {
            PrototypeInit::UnitBall
        } else {
            PrototypeInit::Normal
        },
        diversity: match config["diversity_type"].as_str().unwrap() {
            "orthogonal" => DiversityKind::Orthogonal,
            "cosine" => DiversityKind::Cosine,
            "euclidean" => DiversityKind::Euclidean,
            other => panic!("diversity {other} is not known here"),
        },
        diversity_weight: config["div_weight"].as_f64().unwrap() * diversity_factor(config),
        kl_weight: config["kl_weight"].as_f64().unwrap(),
        alignment_weight: config["align_weight"].as_f64().unwrap(),
        loss_weight: config["router_kl_loss_coef"].as_f64().unwrap_or(1.0),
        equiv_accum: 1.0,
        ..LprConfig::default()
    }
}

/// The references' second weight of the diversity, which they report as a part of its value.
fn diversity_factor(config: &Value) -> f64 {
    config["diversity_lambda"].as_f64().unwrap()
}

/// A loss term as the references report it.
pub fn reported(term: &RouterTerm, config: &Value) -> Tensor<1> {
    if term.name.starts_with("diversity") {
        term.value.clone() * diversity_factor(config)
    } else {
        term.value.clone()
    }
}

/// Our name of a metric, of which the references have two.
pub fn similarity(name: &str) -> Similarity {
    match name {
        "cosine" | "Cosine" => Similarity::Cosine,
        "dot" | "DotProducts" => Similarity::DotProduct,
        "gaussian" | "GaussianKernel" => Similarity::Gaussian,
        "mahalanobis" | "Mahalanobis" => Similarity::Mahalanobis,
        "attention" | "CrossAttention" => Similarity::CrossAttention,
        "kl" => Similarity::Kl,
        "js" => Similarity::Js,
        "hellinger" => Similarity::Hellinger,
        "wasserstein" => Similarity::Wasserstein,
        other => panic!("metric {other} is not known here"),
    }
}

/// A block's tensors, named as its part `part` of layer 0 would be, so that the model's naming rules
/// apply.
const PREFIX: &str = "model.layers.0.mlp.";

/// The same in a family's own names.
fn prefix(naming: Naming) -> &'static str {
    match naming {
        Naming::Mlp => PREFIX,
        Naming::BlockSparseMoe => "model.layers.0.block_sparse_moe.",
    }
}

/// Loads `{params}{name}` of the file, where `theirs` is the part's name in Hugging Face's block and
/// `ours` in ours.
pub fn load<M: Module>(module: M, case: &mut Case, theirs: &str, ours: &str) -> M {
    load_as(module, case.inputs("param."), theirs, ours, Naming::Mlp)
}

/// [`load`] of given `params`, and for a family with names of its own.
pub fn load_as<M: Module>(
    module: M,
    params: TensorMap,
    theirs: &str,
    ours: &str,
    naming: Naming,
) -> M {
    let params = renamed(params, |name| format!("{}{theirs}{name}", prefix(naming)));
    let shapes: Vec<_> = parameter_shapes(&module)
        .into_iter()
        .map(|(name, shape)| (format!("{PREFIX}{ours}{name}"), shape))
        .collect();
    let values = from_hugging_face(params, &shapes, naming).unwrap_or_else(|e| panic!("{e}"));
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
    let named = named_gradients(module, gradients, theirs, ours, Naming::Mlp);
    case.expect_gradients("grad.param.", &named);
}

/// The gradients of `module` under a family's names below `theirs`; zero where none arrived.
pub fn named_gradients<M: Module>(
    module: &M,
    gradients: burn::tensor::Gradients,
    theirs: &str,
    ours: &str,
    naming: Naming,
) -> TensorMap {
    struct Collect(burn::tensor::Gradients, BTreeMap<String, HostTensor>);
    impl ParameterVisitor for Collect {
        fn visit<const D: usize>(&mut self, name: &str, p: &burn::module::Param<Tensor<D>>) {
            if !p.val().is_require_grad() {
                return;
            }
            let gradient = p.val().grad_remove(&mut self.0);
            let gradient = gradient.unwrap_or_else(|| p.val().inner().zeros_like());
            self.1
                .insert(name.to_owned(), HostTensor::from_tensor(gradient));
        }
    }
    let mut collect = Collect(gradients, BTreeMap::new());
    visit_parameters(module, &mut collect);
    let named = renamed(collect.1, |name| format!("{PREFIX}{ours}{name}"));
    let prefix = format!("{}{theirs}", prefix(naming));
    renamed(to_hugging_face(&named, naming), |name| {
        name.strip_prefix(&prefix).unwrap().to_owned()
    })
}

pub fn renamed(map: TensorMap, rename: impl Fn(&str) -> String) -> TensorMap {
    map.into_iter()
        .map(|(name, t)| (rename(&name), t))
        .collect()
}

/// A golden router, its noise and the tokens it saw.
struct Setup {
    config: LprConfig,
    router: LprRouter,
    x: Tensor<2>,
    losses: LossContext,
}

fn setup(case: &mut Case, config: LprConfig) -> Setup {
    case.knows_keys(&[
        "hidden",
        "latent",
        "n_experts",
        "top_k",
        "metric",
        "heads",
        "sigma",
        "diversity_type",
        "diversity_lambda",
        "div_weight",
        "kl_weight",
        "align_weight",
        "unit_ball",
        "layer_norm_eps",
    ]);
    only(&case.entry.config, "layer_norm_eps", &json!(1e-5));
    let size = |key: &str| case.entry.config[key].as_u64().unwrap() as usize;
    let sizes = RouterSizes {
        hidden_size: size("hidden"),
        num_experts: size("n_experts"),
        top_k: size("top_k"),
    };
    let device = autodiff();
    let router = config.init(&sizes, &ParamInit::new(0, 0.02, &device));
    Setup {
        router: load(router, case, "gate.", "router."),
        config,
        x: case.input("x").leaf::<2>(F32),
        losses: LossContext {
            is_token: None,
            num_groups: 1,
            noise: LatentNoise::Given(vec![case.input("eps").tensor(F32)]),
            step_load: None,
        },
    }
}

impl Setup {
    fn route(&self) -> Routing {
        let context = RouteContext {
            layer: 0,
            losses: Some(&self.losses),
        };
        self.router.route(self.x.clone(), &context)
    }

    /// Compares the decision, the `terms` (ours, theirs), their weighted sum and what depends on
    /// the noise; returns that sum.
    fn expect(&self, case: &mut Case, routing: &Routing, terms: &[(&str, &str)]) -> Tensor<1> {
        case.expect("topk_idx", &ints(routing.expert_indices.clone()));
        case.expect_tensor("topk_weights", routing.routing_weights.clone());
        case.expect_tensor("scores", routing.router_logits.clone());
        assert_eq!(routing.terms.len(), terms.len());
        for (ours, theirs) in terms {
            let term = routing.terms.iter().find(|t| t.name == *ours).unwrap();
            case.expect_tensor(theirs, reported(term, &case.entry.config));
        }
        let latent = self.router.encode(self.x.clone());
        case.expect_tensor("mu", latent.mean.clone());
        case.expect_tensor("logvar", latent.log_var.clone());
        let noise = case.input("eps").tensor(F32);
        case.expect_tensor("z", latent.sample(noise));
        let weighted = self
            .config
            .losses(std::slice::from_ref(routing), &self.losses)
            .into_iter()
            .map(|loss| loss.value * loss.weight)
            .reduce(|a, b| a + b)
            .unwrap();
        case.expect_tensor("reg", weighted.clone());
        weighted
    }

    fn expect_gradients(&self, case: &mut Case, objective: Tensor<1>) {
        let gradients = objective.backward();
        case.expect_tensor("objective", objective);
        case.expect_tensor("grad.x", self.x.grad(&gradients).unwrap());
        expect_gradients(&self.router, gradients, case, "gate.", "router.");
    }
}

pub fn lpr(_: &Golden, case: &mut Case) {
    let config = lpr_config(&case.entry.config);
    let setup = setup(case, config);
    let routing = setup.route();
    let terms = [
        ("kl", "kl"),
        ("diversity_tokens", "div_tokens"),
        ("diversity_prototypes", "div_keys"),
        ("alignment", "align"),
    ];
    let weighted = setup.expect(case, &routing, &terms);
    let decoded = routing.residual.clone().expect("the aligner is on");
    case.expect_tensor("z_decoded", decoded.clone());
    let found = setup.router.compare(&setup.router.encode(setup.x.clone()));
    case.expect_tensor("weighted_prototypes", found.mixture);
    let scores = &routing.router_logits;
    let chosen = scores.clone().gather(1, routing.expert_indices.clone());
    let hard = alignment_routing(scores, &routing.expert_indices, chosen);
    case.expect_tensor("routing_pseudo_hard", hard);
    let objective = (routing.routing_weights * case.input("cot_weights").tensor(F32)).sum()
        + (decoded * case.input("cot_z_decoded").tensor(F32)).sum()
        + weighted;
    setup.expect_gradients(case, objective);
}

/// The paper's text, with means where it names no reduction.
pub fn paper_mode(_: &Golden, case: &mut Case) {
    let config = LprConfig {
        score: Score::Sample,
        aligner: false,
        diversity_on: DiversityOn::Tokens,
        alignment: AlignmentForm::PaperL2,
        alignment_reduce: AlignmentReduce::TokenMean,
        ..lpr_config(&case.entry.config)
    };
    let setup = setup(case, config);
    let routing = setup.route();
    let terms = [
        ("kl", "kl"),
        ("diversity_tokens", "div_tokens"),
        ("alignment", "align"),
    ];
    let weighted = setup.expect(case, &routing, &terms);
    assert!(routing.residual.is_none());
    let latent = setup.router.encode(setup.x.clone());
    let sample = Latent {
        mean: latent.sample(case.input("eps").tensor(F32)),
        ..latent
    };
    case.expect_tensor("aggregated_keys", setup.router.compare(&sample).mixture);
    let objective =
        (routing.routing_weights * case.input("cot_weights").tensor(F32)).sum() + weighted;
    setup.expect_gradients(case, objective);
}
