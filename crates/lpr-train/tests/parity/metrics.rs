//! Balance metrics, the smoothed load tracker, the schedule.

use serde_json::Value;

use lpr_train::balance::{LoadMetrics, LoadTracker, TRACKER_DECAY};
use lpr_train::schedule::{DecayShape, Schedule};

use crate::case::{Case, Golden};

/// The field of that name, or a failure for a name that is not known.
fn field(metrics: &LoadMetrics, name: &str) -> Option<f64> {
    Some(match name {
        "gini" => metrics.gini,
        "min_max" | "min_max_ratio" => metrics.min_max_ratio,
        "cv" => metrics.cv,
        "cv_population" => metrics.cv_population,
        "variance_of_fraction" => metrics.variance_of_fraction,
        "utilization" => metrics.utilization,
        "max_over_mean" => metrics.max_over_mean,
        "normalized_entropy" => metrics.normalized_entropy,
        _ => return None,
    })
}

/// Compares a figure. The files give relative tolerances alone, but what measures differences is
/// known only to the rounding of the loads: it may be 1e-16 where they are even and it is zero.
fn compare(case: &mut Case, what: &str, key: &str, got: f64, want: f64) {
    let differences = ["gini", "cv", "cv_population", "variance_of_fraction"];
    let is_rounding = (got - want).abs() <= 4.0 * f64::EPSILON;
    let got = if differences.contains(&key) && is_rounding {
        want
    } else {
        got
    };
    case.compare(what, &[got], &[want]);
}

fn numbers(value: &Value) -> Vec<f64> {
    let list = value.as_array().unwrap().iter();
    list.map(|v| v.as_f64().unwrap()).collect()
}

pub fn metrics(_: &Golden, case: &mut Case) {
    let file = case.json.clone();
    for (name, vector) in file["cases"].as_object().unwrap() {
        let load = numbers(&vector["load"]);
        let mut all = vec![LoadMetrics::from_loads(&load).unwrap()];
        if load.iter().all(|l| l.fract() == 0.0) {
            let counts: Vec<u64> = load.iter().map(|&l| l as u64).collect();
            all.push(LoadMetrics::from_counts(&counts));
            let (min, max) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            for (key, got) in [
                ("gini_fraction", lpr_train::balance::gini_fraction(&counts)),
                ("min_max_fraction", (u128::from(*min), u128::from(*max))),
            ] {
                if let Some(fraction) = vector["expected"][key].as_str() {
                    assert_eq!(reduced(got), fraction, "{name}.{key}");
                }
            }
        }
        for metrics in &all {
            for (key, want) in vector["expected"].as_object().unwrap() {
                match field(metrics, key) {
                    Some(got) => {
                        let want = want.as_f64().unwrap();
                        compare(case, &format!("{name}.{key}"), key, got, want);
                    }
                    None => assert!(
                        ["gini_fraction", "min_max_fraction", "note"].contains(&key.as_str()),
                        "{name}.{key} is not known here"
                    ),
                }
            }
        }
    }
}

/// A fraction in lowest terms, written as in the file.
fn reduced((numerator, denominator): (u128, u128)) -> String {
    fn gcd(a: u128, b: u128) -> u128 {
        if b == 0 { a } else { gcd(b, a % b) }
    }
    let divisor = gcd(numerator, denominator).max(1);
    match (numerator / divisor, denominator / divisor) {
        (n, 1) => n.to_string(),
        (n, d) => format!("{n}/{d}"),
    }
}

pub fn load_ema(_: &Golden, case: &mut Case) {
    let file = case.json.clone();
    assert_eq!(file["decay"].as_f64(), Some(TRACKER_DECAY), "our decay");
    let top_k = file["top_k"].as_u64().unwrap() as usize;
    let batches = file["scores"].as_array().unwrap();
    let wanted = file["after_each_step"].as_array().unwrap();
    assert_eq!(batches.len(), wanted.len());
    let num_experts = numbers(&wanted[0]["hard"]).len();
    let mut tracker = LoadTracker::new(num_experts);
    for (step, (batch, want)) in batches.iter().zip(wanted).enumerate() {
        let (mut counts, mut weights) = (vec![0; num_experts], vec![0.0; num_experts]);
        for row in batch.as_array().unwrap() {
            let scores = numbers(row);
            let mut order: Vec<usize> = (0..num_experts).collect();
            order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
            let sum: f64 = order[..top_k].iter().map(|&e| scores[e].exp()).sum();
            for &expert in &order[..top_k] {
                counts[expert] += 1;
                weights[expert] += scores[expert].exp() / sum;
            }
        }
        tracker.update(&counts, &weights);
        for (side, loads, metrics) in [
            ("hard", &tracker.hard, tracker.hard_metrics()),
            ("soft", &tracker.soft, tracker.soft_metrics()),
        ] {
            case.compare(&format!("step {step} {side}"), loads, &numbers(&want[side]));
            let metrics = metrics.unwrap();
            for (key, want) in want[format!("{side}_metrics")].as_object().unwrap() {
                let got = field(&metrics, key).expect("a known figure");
                let what = format!("step {step} {side} {key}");
                compare(case, &what, key, got, want.as_f64().unwrap());
            }
        }
    }
}

pub fn wsd(_: &Golden, case: &mut Case) {
    for run in case.json.clone()["cases"].as_array().unwrap() {
        let phase = |key: &str| run[key].as_u64().unwrap();
        let schedule = schedule(
            [phase("warmup"), phase("stable"), phase("decay")],
            run["min_ratio"].as_f64().unwrap(),
            1.0,
        );
        let steps = run["steps"].as_array().unwrap().iter();
        let got: Vec<f64> = steps
            .map(|s| schedule.factor(s.as_u64().unwrap()))
            .collect();
        case.compare("factor", &got, &numbers(&run["factor"]));
    }
}

/// The schedule with these numbers of steps in its phases; afterwards the rate stays at its floor.
pub fn schedule(phases: [u64; 3], min_lr_ratio: f64, learning_rate: f64) -> Schedule {
    let total = phases.iter().sum();
    // Half a step more, so that rounding down gives the phase back.
    let ratio = |steps: u64| {
        if steps == 0 {
            0.0
        } else {
            (steps as f64 + 0.5) / total as f64
        }
    };
    let config = lpr_train::schedule::ScheduleConfig {
        warmup_ratio: ratio(phases[0]),
        stable_ratio: ratio(phases[1]),
        min_lr_ratio,
        decay_shape: DecayShape::Cosine,
        ..Default::default()
    };
    Schedule::new(&config, learning_rate, total)
}
