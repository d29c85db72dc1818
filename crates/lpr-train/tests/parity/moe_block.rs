//! `moe_block/`: router and experts of one layer, forward and backward.

use burn::tensor::{DType, Int, Tensor};
use lpr_model::config::MoeConfig;
use lpr_model::hugging_face::Naming;
use lpr_model::moe::MoeLayer;
use lpr_model::random::ParamInit;
use lpr_model::router::RouteContext;

use crate::case::{Case, Golden, autodiff, values};
use crate::model::vanilla_router;
use crate::router;

/// Routing weights spread over all experts, zero where not chosen.
pub fn dense_weights(routing: &lpr_model::Routing) -> Vec<f64> {
    let zeros = routing.router_logits.clone().detach().zeros_like();
    values(zeros.scatter(
        1,
        routing.expert_indices.clone(),
        routing.routing_weights.clone(),
        burn::tensor::IndexingUpdateOp::Add,
    ))
}

pub fn block(_: &Golden, case: &mut Case) {
    case.knows_keys(&[
        "arch",
        "hidden",
        "num_experts",
        "num_local_experts",
        "n_routed_experts",
        "top_k",
        "moe_intermediate_size",
        "intermediate_size",
        "n_shared_experts",
        "n_group",
        "topk_group",
        "norm_topk_prob",
        "routed_scaling_factor",
    ]);
    let config = case.entry.config.clone();
    let size = |key: &str| config[key].as_u64().unwrap() as usize;
    let arch = config["arch"].as_str().unwrap();
    let (num_experts, width, naming) = match arch {
        "qwen3_moe" => ("num_experts", "moe_intermediate_size", Naming::Mlp),
        "mixtral" => (
            "num_local_experts",
            "intermediate_size",
            Naming::BlockSparseMoe,
        ),
        "deepseek_v3" => ("n_routed_experts", "moe_intermediate_size", Naming::Mlp),
        other => panic!("arch {other} is not known here"),
    };
    let shared = config["n_shared_experts"].as_u64().unwrap_or(0) as usize;
    let moe = MoeConfig {
        num_experts: size(num_experts),
        top_k: size("top_k"),
        moe_intermediate_size: size(width),
        shared_intermediate_size: shared * size(width),
    };
    let device = autodiff();
    let init = ParamInit::new(0, 0.02, &device);
    let kind = vanilla_router(arch, &config);
    let layer = MoeLayer::new(&init, size("hidden"), &moe, &kind);
    let layer = router::load_as(layer, case.inputs("param."), "", "", naming);

    let x = case.input("x").leaf::<3>(DType::F32);
    let [batch, sequence, hidden] = x.dims();
    let context = RouteContext {
        layer: 0,
        losses: None,
    };
    let (y, routing) = layer.forward(x.clone().reshape([batch * sequence, hidden]), &context);
    case.expect_tensor("y", y.clone());
    case.expect_tensor("router_logits", routing.router_logits.clone());
    case.expect("dense_weights", &dense_weights(&routing));
    case.expect("topk_idx_sorted", &sorted_rows(&routing.expert_indices));

    let cotangent = case.input("cot").tensor::<3>(DType::F32);
    let objective = (y * cotangent.reshape([batch * sequence, hidden])).sum();
    let gradients = objective.backward();
    case.expect_tensor("grad.x", x.grad(&gradients).unwrap());
    let named = router::named_gradients(&layer, gradients, "", "", naming);
    case.expect_gradients("grad.param.", &named);
}

fn sorted_rows(indices: &Tensor<2, Int>) -> Vec<f64> {
    let [_, top_k] = indices.dims();
    let mut all = crate::losses::ints(indices.clone());
    for row in all.chunks_mut(top_k) {
        row.sort_by(f64::total_cmp);
    }
    all
}
