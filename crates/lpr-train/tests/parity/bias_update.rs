//! `bias_update.json`: the correction bias over several steps.

use burn::module::Param;
use burn::tensor::{DType, Tensor, TensorData};
use lpr_model::random::ParamInit;
use lpr_model::router::{
    BiasUpdate, RouteContext, Router, RouterSizes, SigmoidTopkConfig, StepStatistics,
};

use crate::case::{Array, Case, Golden, autodiff, plain, values};

pub fn bias_update(_: &Golden, case: &mut Case) {
    let file = case.json.clone();
    let rate = file["update_rate"].as_f64().unwrap();
    let steps = file["after_each_step"].as_array().unwrap();
    let num_experts = steps[0]["bias"].as_array().unwrap().len();
    let sizes = RouterSizes {
        hidden_size: num_experts,
        num_experts,
        top_k: file["top_k"].as_u64().unwrap() as usize,
    };
    let config = SigmoidTopkConfig {
        bias_update_rate: rate,
        ..SigmoidTopkConfig::default()
    };
    let device = autodiff();
    let mut router = config.init(&sizes, &ParamInit::new(0, 0.02, &device));
    // So that the logits are what goes in.
    router.weight = Param::from_tensor(Tensor::eye(num_experts, &device));
    let update = BiasUpdate {
        rate,
        zero_mean: false,
    };
    // The references are 64-bit; the router's own bias is 32-bit: every sum of so many moves may be
    // rounded by its last bit.
    let mut exact = Tensor::<1>::zeros([num_experts], (&plain(), DType::F64));
    for (index, (scores, after)) in file["scores"]
        .as_array()
        .unwrap()
        .iter()
        .zip(steps)
        .enumerate()
    {
        let context = RouteContext {
            layer: 0,
            losses: None,
        };
        let logits = array(scores).tensor::<2>(DType::F32);
        let statistics = StepStatistics::new(&router.route(logits, &context), None);
        let counts = statistics.expert_counts.clone().float();
        let got = values(counts.clone());
        case.compare(
            &format!("{index}.counts"),
            &got,
            &array(&after["counts"]).values,
        );
        let counts = Tensor::from_data(TensorData::new(got, [num_experts]), (&plain(), DType::F64));
        exact = update.apply(exact, counts);
        let want = array(&after["bias"]).values;
        case.compare(&format!("{index}.bias"), &values(exact.clone()), &want);
        router = router.after_step(&statistics);
        let moves = (index + 1) as f64;
        let rounding = moves * moves * rate * f64::from(f32::EPSILON);
        for (got, want) in values(router.correction_bias.val()).iter().zip(&want) {
            let error = (got - want).abs();
            assert!(error <= rounding, "step {index}: {got}, not {want}");
        }
    }
}

fn array(value: &serde_json::Value) -> Array {
    let rows = value.as_array().unwrap();
    if rows[0].is_number() {
        Array {
            shape: vec![rows.len()],
            values: rows.iter().map(|v| v.as_f64().unwrap()).collect(),
        }
    } else {
        let rows: Vec<Array> = rows.iter().map(array).collect();
        Array {
            shape: vec![rows.len(), rows[0].values.len()],
            values: rows.into_iter().flat_map(|row| row.values).collect(),
        }
    }
}
