//! Rules between keys, which no schema of single keys can say.

use lpr_data::DataConfig;
use lpr_kernels::devices::DeviceName;
use lpr_model::{ConfigProblem, FamilyConfig, RouterConfig};
use serde::de::DeserializeOwned;
use toml::Value;

use super::layers::Node;
use super::problem::Problem;
use super::{EvalConfig, OptimizerConfig, RunConfig, TrainConfig};
use crate::hub;
use crate::schedule::ScheduleConfig;

/// The rules that do not hold, placed where the key they name was set.
///
/// `value` is what is right in `tree`. A section that is incomplete is not judged, nor is a key
/// that `found` already complains about. `config` is the whole, if there is one.
pub fn check(
    value: &Value,
    config: Option<&RunConfig>,
    tree: &Node,
    found: &[Problem],
) -> Vec<Problem> {
    let mut broken = Vec::new();
    let model: Option<FamilyConfig> = section(value, "model");
    let router: Option<RouterConfig> = section(value, "router");
    broken.extend(model.iter().flat_map(FamilyConfig::validate));
    if let (Some(model), Some(router)) = (&model, &router) {
        broken.extend(router.validate(&model.decoder()));
    }
    broken.extend(or_default(value, "optimizer").iter().flat_map(optimizer));
    broken.extend(or_default(value, "schedule").iter().flat_map(schedule));
    broken.extend(or_default(value, "train").iter().flat_map(train));
    broken.extend(section(value, "data").iter().filter_map(weights));
    if let (Some(data), Some(eval)) = (section(value, "data"), or_default(value, "eval")) {
        broken.extend(addresses(&data));
        broken.extend(evaluation(&data, &eval));
    }
    broken.extend(config.and_then(run_length));
    broken.extend(config.and_then(loss_groups));
    let reported = |key: &str| found.iter().any(|problem| problem.key == key);
    let placed =
        |rule: ConfigProblem| Problem::new(&tree.closest(&rule.key).place, rule.key, rule.message);
    broken
        .into_iter()
        .filter(|rule| !reported(&rule.key))
        .map(placed)
        .collect()
}

/// One section as its type, if what is right in it suffices.
fn section<T: DeserializeOwned>(value: &Value, name: &str) -> Option<T> {
    value.get(name)?.clone().try_into().ok()
}

/// A section that may be left out.
fn or_default<T: DeserializeOwned + Default>(value: &Value, name: &str) -> Option<T> {
    if value.get(name).is_some() {
        section(value, name)
    } else {
        Some(T::default())
    }
}

fn optimizer(optimizer: &OptimizerConfig) -> Vec<ConfigProblem> {
    let bad = optimizer.betas.iter().any(|beta| *beta >= 1.0);
    let message = format!(
        "is {:?}; both must be below 1, for example [0.9, 0.95]",
        optimizer.betas
    );
    bad.then(|| ConfigProblem::new("optimizer.betas", message))
        .into_iter()
        .collect()
}

fn schedule(schedule: &ScheduleConfig) -> Vec<ConfigProblem> {
    // Decimal ratios that add up to one may exceed it by a rounding error.
    const SLACK: f64 = 1e-9;
    let sum = schedule.warmup_ratio + schedule.stable_ratio;
    let message = format!(
        "is {}, and with schedule.warmup_ratio = {} that is {sum}; together they may be at most \
         1, the decay gets the \
         rest",
        schedule.stable_ratio, schedule.warmup_ratio
    );
    (sum > 1.0 + SLACK)
        .then(|| ConfigProblem::new("schedule.stable_ratio", message))
        .into_iter()
        .collect()
}

fn train(train: &TrainConfig) -> Vec<ConfigProblem> {
    let mut problems = Vec::new();
    match (train.total_steps, train.total_tokens) {
        (None, None) => problems.push(ConfigProblem::new(
            "train.total_steps",
            "is missing; set it, or train.total_tokens, to the length of the run",
        )),
        (Some(steps), Some(tokens)) => problems.push(ConfigProblem::new(
            "train.total_tokens",
            format!("is {tokens} although train.total_steps is {steps}; remove one of the two"),
        )),
        _ => {}
    }
    if let Err(error) = train.device.parse::<DeviceName>() {
        problems.push(ConfigProblem::new("train.device", error.to_string()));
    }
    problems
}

fn weights(data: &DataConfig) -> Option<ConfigProblem> {
    let reason = data.weights_problem()?;
    let message = format!("is {:?}: {reason}", data.weights);
    Some(ConfigProblem::new("data.weights", message))
}

/// What is on the network must at least be named.
fn addresses(data: &DataConfig) -> Vec<ConfigProblem> {
    let tokenizer = std::slice::from_ref(&data.tokenizer);
    let lists = [
        ("data.train", data.train.as_slice()),
        ("data.validation", &data.validation),
        ("data.tokenizer", tokenizer),
    ];
    let all = lists
        .into_iter()
        .flat_map(|(key, list)| list.iter().map(move |text| (key, text)));
    all.filter_map(|(key, text)| {
        let reason = hub::address_problem(text)?;
        Some(ConfigProblem::new(key, reason))
    })
    .collect()
}

fn evaluation(data: &DataConfig, eval: &EvalConfig) -> Vec<ConfigProblem> {
    let message = format!(
        "is {}, but there is nothing to evaluate on; set data.validation, or eval.every_steps = 0",
        eval.every_steps
    );
    let idle = eval.every_steps > 0 && data.validation.is_empty();
    idle.then(|| ConfigProblem::new("eval.every_steps", message))
        .into_iter()
        .collect()
}

/// Router losses are taken over groups of rows, which have to fill a micro-batch.
fn loss_groups(config: &RunConfig) -> Option<ConfigProblem> {
    let (rows, group) = (
        config.train.micro_batch_size,
        config.router.loss_group_rows(),
    );
    let uneven = group > 0 && !rows.is_multiple_of(group);
    let message = format!(
        "is {group}, but train.micro_batch_size = {rows} must be a multiple of it, or it must be 0"
    );
    uneven.then(|| ConfigProblem::new("router.loss_group_rows", message))
}

/// The counters of a run are 64-bit.
fn run_length(config: &RunConfig) -> Option<ConfigProblem> {
    let positions = config.positions_per_step();
    let too_long = config
        .total_steps()
        .checked_mul(positions)
        .is_none_or(|tokens| tokens > i64::MAX as u64);
    too_long.then(|| {
        let message = format!(
            "with {positions} token positions a step is more than can be counted; make it smaller"
        );
        ConfigProblem::new("train.total_steps", message)
    })
}
