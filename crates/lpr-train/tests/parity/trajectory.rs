//! `traj/`: optimizer steps from the same initial weights on the same batches, with the log of every
//! step and the final weights.

use burn::tensor::DType;
use lpr_model::LatentNoise;
use lpr_model::hugging_face::to_hugging_face;
use lpr_model::parameters::{TensorMap, parameter_values};
use lpr_model::router::RouterConfig;
use lpr_train::batch::MicroBatch;
use lpr_train::config::{DecayOn, OptimizerConfig};
use lpr_train::optimizer::Optimizer;
use lpr_train::step::{StepPlan, StepReport, train_step};
use serde_json::{Value, json};

use crate::case::{Array, Case, Golden, only, values};
use crate::losses::ints;
use crate::metrics::schedule;
use crate::model;

pub fn file(golden: &Golden, case: &mut Case) {
    let (folder, file) = case.entry.file.rsplit_once('/').unwrap();
    let (folder, file) = (folder.to_owned(), file.to_owned());
    match file.as_str() {
        "initial.safetensors" => model::weights(golden, case),
        "batches.safetensors" => batches(case),
        "final.safetensors" => {
            for (name, tensor) in train(golden, &folder).0 {
                let values: Vec<f64> = tensor.values.iter().map(|&v| f64::from(v)).collect();
                case.expect(&name, &values);
            }
        }
        "log.json" => log(golden, case, &folder),
        other => panic!("{other} is not known here"),
    }
}

/// The token ids and the noise reach the model as they are.
fn batches(case: &mut Case) {
    case.knows_keys(&["model", "optimizer", "schedule", "accumulation"]);
    let ids = case.input("input_ids");
    for step in 0..ids.shape[0] {
        let batch = micro_batch(&ids.at(step));
        let got = ints(batch.input.input_ids);
        case.compare("input_ids", &got, &ids.at(step).values);
    }
    for layer in 0.. {
        let Some(noise) = case.try_input(&format!("eps.{layer}")) else {
            break;
        };
        let noise = noise.at(0);
        let given = LatentNoise::Given(vec![noise.tensor(DType::F32)]);
        let shape = [noise.shape[0], noise.shape[1]];
        let got = given.layer(0, shape, &crate::case::autodiff());
        case.compare("eps", &values(got), &noise.values);
    }
}

fn micro_batch(ids: &Array) -> MicroBatch {
    model::batch(ids, ids, None)
}

/// The final weights under Hugging Face's names, and the report and learning rate of every step.
fn train(golden: &Golden, folder: &str) -> (TensorMap, Vec<(StepReport, f64)>) {
    let entry = golden.entry(&format!("{folder}/initial.safetensors"));
    let run = &entry.config;
    let accumulation = run["accumulation"].as_u64().unwrap() as usize;
    let weights = golden.parameters(&format!("{folder}/initial.safetensors"));
    let (mut model, mut router) = model::build(&run["model"], weights);
    // The reference adds the router's loss once per micro-batch, undivided.
    match &mut router {
        RouterConfig::Lpr(config) => config.equiv_accum = accumulation as f64,
        RouterConfig::SoftmaxTopk(config) => config.equiv_accum = accumulation as f64,
        _ => {}
    }
    let settings = optimizer_config(&run["optimizer"]);
    let mut optimizer = Optimizer::new(&settings);
    let arrays = golden.arrays(&format!("{folder}/batches.safetensors"));
    let array = |name: &str| arrays.iter().find(|(n, _)| n == name).map(|(_, a)| a);
    let ids = array("input_ids").unwrap();
    let phase = |key: &str| run["schedule"][key].as_u64().unwrap();
    let num_steps = ids.shape[0] / accumulation;
    let schedule = schedule(
        [phase("warmup"), phase("stable"), phase("decay")],
        run["schedule"]["min_lr_ratio"].as_f64().unwrap(),
        settings.learning_rate,
    );
    let mut log = Vec::new();
    for step in 0..num_steps {
        let micro_steps = step * accumulation..(step + 1) * accumulation;
        let mut batches: Vec<_> = micro_steps
            .clone()
            .map(|m| micro_batch(&ids.at(m)))
            .collect();
        if accumulation > 1 {
            // The reference divides by the labels before the shift, one too many per row.
            for batch in &mut batches {
                batch.num_targets += batch.num_rows;
            }
        }
        let noise = |m: usize| {
            let layers = (0..).map_while(|layer| array(&format!("eps.{layer}")));
            LatentNoise::Given(layers.map(|a| a.at(m).tensor(DType::F32)).collect())
        };
        let plan = StepPlan {
            learning_rate: schedule.learning_rate(step as u64),
            max_grad_norm: settings.max_grad_norm,
            noise: micro_steps.map(noise).collect(),
            max_loss: f64::INFINITY,
            stop: lpr_train::signals::StopRequest::default(),
            traced_positions: 0,
            gradient_checkpointing: false,
        };
        let (next, report) = train_step(model, &mut optimizer, &router, &batches, &plan).unwrap();
        model = next;
        log.push((report, plan.learning_rate));
    }
    let naming = model::configs(&run["model"]).0.naming();
    (to_hugging_face(&parameter_values(&model), naming), log)
}

fn optimizer_config(theirs: &Value) -> OptimizerConfig {
    only(theirs, "type", &json!("AdamW"));
    let number = |key: &str| theirs[key].as_f64().unwrap();
    OptimizerConfig {
        learning_rate: number("lr"),
        betas: [
            theirs["betas"][0].as_f64().unwrap(),
            theirs["betas"][1].as_f64().unwrap(),
        ],
        eps: number("eps"),
        weight_decay: number("weight_decay"),
        decay_on: match theirs["decay_params"].as_str().unwrap() {
            "all parameters (official)" => DecayOn::All,
            "only ndim>=2, not embed_tokens, not expert_keys" => DecayOn::Matrices,
            other => panic!("decay groups {other} are not known here"),
        },
        max_grad_norm: number("clip"),
    }
}

fn log(golden: &Golden, case: &mut Case, folder: &str) {
    let file = case.json.clone();
    let accumulation = file["config"]["accumulation"].as_f64().unwrap();
    let (_, router) = model::configs(&file["config"]["model"]);
    let (weights, steps) = train(golden, folder);
    // The sum over micro-batches, without the factor of all losses together.
    let weighted = |report: &StepReport| -> f64 {
        let terms = report.router_losses.iter();
        let own = |name: &str| match (&router, name) {
            (RouterConfig::Lpr(config), "kl") => config.kl_weight,
            (RouterConfig::Lpr(config), "alignment") => config.alignment_weight,
            (RouterConfig::Lpr(config), _) => config.diversity_weight,
            _ => 1.0,
        };
        let sums = terms.map(|(name, value, _)| own(name) * value * accumulation);
        sums.sum()
    };
    for (key, list) in file["log"].as_object().unwrap() {
        let want: Vec<f64> = list
            .as_array()
            .unwrap()
            .iter()
            .map(|v| v.as_f64().unwrap())
            .collect();
        let got: Vec<f64> = steps
            .iter()
            .map(|(report, learning_rate)| match key.as_str() {
                "lm_loss" => report.loss_ce,
                "reg_or_aux" => weighted(report),
                "loss" => report.loss_total,
                "grad_norm" => report.grad_norm,
                "lr" => *learning_rate,
                other => panic!("column {other} is not known here"),
            })
            .collect();
        case.compare(key, &got, &want);
    }
    // Sum and sum of absolute values of every final weight, within the rounding of so many terms.
    for (name, sums) in file["checksum"].as_object().unwrap() {
        // Matrices of no shared experts have no elements, and are none of ours.
        let found = weights.get(name).map(|tensor| tensor.values.as_slice());
        let found = found.unwrap_or_default();
        let values = || found.iter().map(|&v| f64::from(v));
        let absolute = values().map(f64::abs).sum::<f64>();
        let want = sums[1].as_f64().unwrap();
        case.compare(&format!("checksum of {name}"), &[absolute], &[want]);
        let error = (values().sum::<f64>() - sums[0].as_f64().unwrap()).abs();
        assert!(error <= 1e-3 * want, "checksum of {name}: off by {error}");
    }
}
