//! `model/`: whole tiny models, from token ids to the gradients of all weights.

use burn::tensor::{DType, Tensor};
use lpr_data::TokenBatch;
use lpr_model::hugging_face::{from_hugging_face, to_hugging_face};
use lpr_model::parameters::{TensorMap, parameter_shapes, parameter_values, with_parameter_values};
use lpr_model::router::{AuxLossForm, RouterConfig, SigmoidTopkConfig, SoftmaxTopkConfig};
use lpr_model::{CausalLm, FamilyConfig, LatentNoise};
use lpr_train::batch::MicroBatch;
use lpr_train::objective::objective;
use lpr_train::optimizer::GradientSum;
use lpr_train::step::loss_context;
use serde_json::{Value, json};

use crate::case::{Array, Case, Golden, autodiff, plain};
use crate::losses::{ints, next_tokens};
use crate::moe_block::dense_weights;
use crate::router::lpr_config;

/// (our key, theirs) of what the families have in common.
const COMMON: [(&str, &str); 9] = [
    ("vocab_size", "vocab_size"),
    ("hidden_size", "hidden_size"),
    ("num_hidden_layers", "num_hidden_layers"),
    ("num_attention_heads", "num_attention_heads"),
    ("top_k", "num_experts_per_tok"),
    ("rms_norm_eps", "rms_norm_eps"),
    ("rope_theta", "rope_theta"),
    ("initializer_range", "initializer_range"),
    ("tie_word_embeddings", "tie_word_embeddings"),
];

/// (our key, theirs) of what a family has beside that.
fn own_keys(family: &str) -> &'static [(&'static str, &'static str)] {
    match family {
        "qwen3_moe" => &[
            ("num_key_value_heads", "num_key_value_heads"),
            ("head_dim", "head_dim"),
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

/// Our configs of a reference model.
pub fn configs(theirs: &Value) -> (FamilyConfig, RouterConfig) {
    let model_type = theirs["model_type"].as_str().unwrap();
    let family = model_type.strip_suffix("_lpr").unwrap_or(model_type);
    let mut ours = json!({ "family": family });
    for (key, their_key) in COMMON.iter().chain(own_keys(family)) {
        ours[key] = theirs[their_key].clone();
    }
    let number = |key: &str| theirs[key].as_u64().unwrap();
    match family {
        "mixtral" => {
            let default = number("hidden_size") / number("num_attention_heads");
            ours["head_dim"] = theirs["head_dim"].as_u64().unwrap_or(default).into();
        }
        "deepseek_v3" => {
            assert_eq!(theirs["rope_interleave"], true, "only pairs are rotated");
            if number("first_k_dense_replace") > 0 {
                ours["intermediate_size"] = theirs["intermediate_size"].clone();
            }
        }
        _ => {}
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
pub fn build(theirs: &Value, weights: TensorMap) -> (CausalLm, RouterConfig) {
    let (family, router) = configs(theirs);
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

pub fn forward_backward(golden: &Golden, case: &mut Case) {
    let config = case.entry.config.clone();
    let folder = case.entry.file.rsplit_once('/').unwrap().0.to_owned();
    let weights = golden.parameters(&format!("{folder}/model.safetensors"));
    let (model, router) = build(&config, weights);
    let (ids, labels) = (case.input("input_ids"), case.input("labels"));
    let mask = case.try_input("attention_mask");
    let batch = batch(&ids, &labels, mask.as_ref());
    let num_layers = config["num_hidden_layers"].as_u64().unwrap() as usize;
    let is_lpr = matches!(router, RouterConfig::Lpr(_));
    let noise = (0..num_layers)
        .filter(|_| is_lpr)
        .map(|l| case.input(&format!("layer.{l}.eps")).tensor(DType::F32));
    let noise = LatentNoise::Given(noise.collect());

    let context = loss_context(&*router, &batch, &noise);
    let output = model.forward(&batch.input, Some(&context));
    case.expect_tensor("logits", model.logits(output.hidden_states.clone()));
    let sum = model.cross_entropy_sum(output.hidden_states, batch.targets.clone());
    case.expect_tensor("lm_loss", sum.clone() / batch.num_targets as f64);
    for (layer, routing) in output.routings.iter().enumerate() {
        let name = |name: &str| format!("layer.{layer}.{name}");
        if !is_lpr {
            case.expect_tensor(&name("router_logits"), routing.router_logits.clone());
            case.expect(&name("dense_weights"), &dense_weights(routing));
            continue;
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
            case.expect_tensor(&name(theirs), term.value.clone());
        }
        case.expect_tensor(
            &name("reg"),
            regularizer(&router, std::slice::from_ref(routing), &context),
        );
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

/// The router's losses without the factor of all of them together.
fn regularizer(
    router: &RouterConfig,
    routings: &[lpr_model::Routing],
    context: &lpr_model::LossContext,
) -> Tensor<1> {
    let RouterConfig::Lpr(config) = router else {
        panic!("an LPR model")
    };
    let losses = router.losses(routings, context).into_iter();
    losses
        .map(|loss| loss.value * (loss.weight / config.loss_weight))
        .reduce(|a, b| a + b)
        .unwrap()
}
