//! `model/`: whole tiny models, from token ids to the gradients of all weights.

use std::collections::BTreeSet;

use burn::tensor::{DType, Tensor};
use lpr_data::TokenBatch;
use lpr_model::hugging_face::{from_hugging_face, to_hugging_face};
use lpr_model::parameters::{TensorMap, parameter_shapes, parameter_values, with_parameter_values};
use lpr_model::router::{
    AuxLossForm, LprConfig, RouterConfig, RouterKind, SigmoidTopkConfig, SoftmaxTopkConfig,
};
use lpr_model::{CausalLm, FamilyConfig, LatentNoise, LossContext, Routing};
use lpr_train::batch::MicroBatch;
use lpr_train::objective::objective;
use lpr_train::optimizer::GradientSum;
use lpr_train::step::loss_context;
use serde_json::{Value, json};

use crate::case::{Array, Case, Golden, autodiff, only, plain};
use crate::losses::{ints, next_tokens};
use crate::moe_block::dense_weights;
use crate::router::{lpr_config, reported};

/// (our key, theirs) of what the families have in common.
const COMMON: [(&str, &str); 5] = [
    ("vocab_size", "vocab_size"),
    ("hidden_size", "hidden_size"),
    ("num_hidden_layers", "num_hidden_layers"),
    ("num_attention_heads", "num_attention_heads"),
    ("top_k", "num_experts_per_tok"),
];

/// Keys of the same name, for which a family has the default of its Hugging Face config.
const OPTIONAL: [&str; 4] = [
    "rms_norm_eps",
    "rope_theta",
    "initializer_range",
    "tie_word_embeddings",
];

/// Keys of which only one value is implemented.
fn fixed() -> [(&'static str, Value); 8] {
    [
        ("hidden_act", json!("silu")),
        ("attention_bias", json!(false)),
        ("attention_dropout", json!(0.0)),
        ("sliding_window", Value::Null),
        ("rope_scaling", Value::Null),
        ("rope_interleave", json!(true)),
        ("mlp_only_layers", json!([])),
        ("decoder_sparse_step", json!(1)),
    ]
}

/// Keys of the routers, of dense blocks, and those that change nothing here.
const OTHER_KEYS: [&str; 22] = [
    "model_type",
    "max_position_embeddings",
    "head_dim",
    "num_key_value_heads",
    "intermediate_size",
    "router_aux_loss_coef",
    "norm_topk_prob",
    "routed_scaling_factor",
    "n_group",
    "topk_group",
    "bias_update_rate",
    "router_latent_dim",
    "SimilarityMetrics",
    "routing_metrics",
    "diversity_type",
    "diversity_lambda",
    "kl_weight",
    "align_weight",
    "div_weight",
    "unit_ball",
    "router_kl_loss_coef",
    // The released code never updates its prototypes' averages.
    "router_ema_decay",
];

/// (our key, theirs) of what a family has beside that.
fn own_keys(family: &str) -> &'static [(&'static str, &'static str)] {
    match family {
        "qwen3_moe" => &[
            ("num_key_value_heads", "num_key_value_heads"),
            ("num_experts", "num_experts"),
            ("moe_intermediate_size", "moe_intermediate_size"),
        ],
        "mixtral" => &[
            ("num_key_value_heads", "num_key_value_heads"),
            ("num_experts", "num_local_experts"),
            ("moe_intermediate_size", "intermediate_size"),
        ],
        "deepseek_v3" => &[
            ("q_lora_rank", "q_lora_rank"),
            ("kv_lora_rank", "kv_lora_rank"),
            ("qk_nope_head_dim", "qk_nope_head_dim"),
            ("qk_rope_head_dim", "qk_rope_head_dim"),
            ("v_head_dim", "v_head_dim"),
            ("num_experts", "n_routed_experts"),
            ("num_shared_experts", "n_shared_experts"),
            ("moe_intermediate_size", "moe_intermediate_size"),
            ("first_k_dense_replace", "first_k_dense_replace"),
        ],
        other => panic!("family {other} is not known here"),
    }
}

/// Fails for a key that is not read or has a value that is not implemented.
fn check_keys(family: &str, theirs: &Value) {
    for (key, value) in fixed() {
        only(theirs, key, &value);
    }
    let named = COMMON.iter().chain(own_keys(family)).map(|(_, key)| *key);
    let fixed = fixed().map(|(key, _)| key);
    let known: Vec<&str> = named
        .chain(OPTIONAL)
        .chain(fixed)
        .chain(OTHER_KEYS)
        .collect();
    let unknown = theirs.as_object().unwrap().keys();
    let unknown: Vec<_> = unknown.filter(|k| !known.contains(&k.as_str())).collect();
    assert!(unknown.is_empty(), "model keys {unknown:?} are not read");
}

/// Our configs of a reference model.
pub fn configs(theirs: &Value) -> (FamilyConfig, RouterConfig) {
    let model_type = theirs["model_type"].as_str().unwrap();
    let family = model_type.strip_suffix("_lpr").unwrap_or(model_type);
    check_keys(family, theirs);
    let mut ours = json!({ "family": family });
    for (key, their_key) in COMMON.iter().chain(own_keys(family)) {
        let value = theirs.get(their_key);
        ours[key] = value.unwrap_or_else(|| panic!("no `{their_key}`")).clone();
    }
    for key in OPTIONAL.iter().filter(|key| !theirs[**key].is_null()) {
        ours[key] = theirs[key].clone();
    }
    let number = |key: &str| theirs[key].as_u64().unwrap();
    if family == "deepseek_v3" {
        only(
            theirs,
            "num_key_value_heads",
            &theirs["num_attention_heads"],
        );
        if number("first_k_dense_replace") > 0 {
            ours["intermediate_size"] = theirs["intermediate_size"].clone();
        }
    } else {
        let default = || number("hidden_size") / number("num_attention_heads");
        ours["head_dim"] = theirs["head_dim"].as_u64().unwrap_or_else(default).into();
    }
    let router = if model_type == family {
        vanilla_router(family, theirs)
    } else {
        RouterConfig::Lpr(lpr_config(theirs))
    };
    (serde_json::from_value(ours).unwrap(), router)
}

/// The router that a family comes with.
pub fn vanilla_router(family: &str, theirs: &Value) -> RouterConfig {
    if family == "deepseek_v3" {
        return RouterConfig::SigmoidTopk(SigmoidTopkConfig {
            norm_topk_prob: theirs["norm_topk_prob"].as_bool().unwrap(),
            routed_scaling_factor: theirs["routed_scaling_factor"].as_f64().unwrap(),
            n_group: theirs["n_group"].as_u64().unwrap() as usize,
            topk_group: theirs["topk_group"].as_u64().unwrap() as usize,
            bias_update_rate: theirs["bias_update_rate"].as_f64().unwrap_or(0.0),
            ..SigmoidTopkConfig::default()
        });
    }
    RouterConfig::SoftmaxTopk(SoftmaxTopkConfig {
        norm_topk_prob: family == "mixtral" || theirs["norm_topk_prob"].as_bool().unwrap(),
        aux_loss: AuxLossForm::Pooled,
        aux_loss_weight: theirs["router_aux_loss_coef"].as_f64().unwrap_or(0.0),
        equiv_accum: 1.0,
        ..SoftmaxTopkConfig::default()
    })
}

/// A model with the weights of a reference.
pub fn build(theirs: &Value, mut weights: TensorMap) -> (CausalLm, RouterConfig) {
    let (family, router) = configs(theirs);
    if theirs["tie_word_embeddings"] == true
        && let Some(head) = weights.remove("lm_head.weight")
    {
        let embedding = &weights["model.embed_tokens.weight"];
        assert_eq!(head.values, embedding.values, "the tied matrices");
    }
    let model = CausalLm::new(&family.decoder(), &router, 0, &autodiff());
    let weights = from_hugging_face(weights, &parameter_shapes(&model), family.naming());
    let weights = weights.unwrap_or_else(|e| panic!("{e}"));
    let model = with_parameter_values(model, weights).unwrap_or_else(|e| panic!("{e}"));
    (model, router)
}

/// A batch as the data loader would make it: whole rows, padding on the right.
pub fn batch(input_ids: &Array, labels: &Array, mask: Option<&Array>) -> MicroBatch {
    let [rows, sequence] = input_ids.shape[..] else {
        panic!("ids have two axes")
    };
    let targets = next_tokens(&labels.values, sequence);
    let batch = TokenBatch {
        num_rows: rows,
        sequence_length: sequence,
        input_ids: input_ids.values.iter().map(|&id| id as u32).collect(),
        num_targets: targets
            .iter()
            .filter(|&&t| t != lpr_data::IGNORE_INDEX)
            .count(),
        targets,
        is_token: match mask {
            Some(mask) => mask.values.iter().map(|&m| m != 0.0).collect(),
            None => vec![true; rows * sequence],
        },
        document_ids: vec![0; rows * sequence],
        position_ids: (0..rows).flat_map(|_| 0..sequence as u32).collect(),
        position: lpr_data::DataPosition::default(),
    };
    MicroBatch::new(&batch, &plain())
}

/// The weights go in under Hugging Face's names and come out the same.
pub fn weights(_: &Golden, case: &mut Case) {
    let weights = case.inputs("");
    let config = &case.entry.config;
    let config = config.get("model").unwrap_or(config).clone();
    let naming = configs(&config).0.naming();
    let (model, _) = build(&config, weights);
    for (name, tensor) in to_hugging_face(&parameter_values(&model), naming) {
        let values: Vec<f64> = tensor.values.iter().map(|&v| f64::from(v)).collect();
        case.expect(&name, &values);
    }
}

/// The numbers of the layers that the file has something of, in order. Dense layers have nothing,
/// and whether they count is left to the file.
fn layers(case: &Case) -> Vec<usize> {
    let number = |name: String| name.split('.').next().unwrap().parse().unwrap();
    let found: BTreeSet<usize> = case.names("layer.").into_iter().map(number).collect();
    found.into_iter().collect()
}

pub fn forward_backward(golden: &Golden, case: &mut Case) {
    let config = case.entry.config.clone();
    let folder = case.entry.file.rsplit_once('/').unwrap().0.to_owned();
    let weights = golden.parameters(&format!("{folder}/model.safetensors"));
    let (model, router) = build(&config, weights);
    let (ids, labels) = (case.input("input_ids"), case.input("labels"));
    let mask = case.try_input("attention_mask");
    let batch = batch(&ids, &labels, mask.as_ref());
    let is_lpr = matches!(router, RouterConfig::Lpr(_));
    let layers = layers(case);
    let noise = layers
        .iter()
        .filter(|_| is_lpr)
        .map(|l| case.input(&format!("layer.{l}.eps")).tensor(DType::F32));
    let noise = LatentNoise::Given(noise.collect());

    let context = loss_context(&*router, &batch, &noise);
    let output = model.forward(&batch.input, Some(&context));
    case.expect_tensor("logits", model.logits(output.hidden_states.clone()));
    let sum = model.cross_entropy_sum(output.hidden_states, batch.targets.clone());
    case.expect_tensor("lm_loss", sum.clone() / batch.num_targets as f64);
    assert_eq!(output.routings.len(), layers.len(), "layers with experts");
    for (layer, routing) in layers.iter().zip(&output.routings) {
        expect_layer(case, &format!("layer.{layer}."), routing, &router, &context);
    }
    let losses = router.losses(&output.routings, &context);
    if is_lpr {
        case.expect_tensor("reg_sum", regularizer(&router, &output.routings, &context));
    } else if let Some(aux) = losses.first() {
        case.expect_tensor("aux_loss", aux.value.clone());
    }
    let loss = objective(sum, &losses, batch.num_targets, 1);
    let mut gradients = GradientSum::default();
    gradients.add(&model, loss.backward());
    case.expect_tensor("loss", loss);
    let naming = configs(&config).0.naming();
    let gradients = to_hugging_face(&gradients.to_host(&model), naming);
    case.expect_gradients("grad.", &gradients);
}

/// Compares what the router of one layer did with the arrays `{prefix}*`.
fn expect_layer(
    case: &mut Case,
    prefix: &str,
    routing: &Routing,
    router: &RouterConfig,
    context: &LossContext,
) {
    let name = |name: &str| format!("{prefix}{name}");
    if !matches!(router, RouterConfig::Lpr(_)) {
        case.expect_tensor(&name("router_logits"), routing.router_logits.clone());
        case.expect(&name("dense_weights"), &dense_weights(routing));
        return;
    }
    case.expect_tensor(&name("scores"), routing.router_logits.clone());
    case.expect(&name("topk_idx"), &ints(routing.expert_indices.clone()));
    case.expect_tensor(&name("topk_weights"), routing.routing_weights.clone());
    for (ours, theirs) in [
        ("kl", "kl"),
        ("diversity_tokens", "div_tokens"),
        ("diversity_prototypes", "div_keys"),
        ("alignment", "align"),
    ] {
        let term = routing.terms.iter().find(|t| t.name == ours).unwrap();
        case.expect_tensor(&name(theirs), reported(term, &case.entry.config));
    }
    let own = regularizer(router, std::slice::from_ref(routing), context);
    case.expect_tensor(&name("reg"), own);
}

/// The router's losses without the factor of all of them together.
fn regularizer(router: &RouterConfig, routings: &[Routing], context: &LossContext) -> Tensor<1> {
    let RouterConfig::Lpr(config) = router else {
        panic!("an LPR model")
    };
    let config = LprConfig {
        loss_weight: 1.0,
        ..config.clone()
    };
    let losses = config.losses(routings, context).into_iter();
    let weighted = losses.map(|loss| loss.value * loss.weight);
    weighted.reduce(|a, b| a + b).unwrap()
}
