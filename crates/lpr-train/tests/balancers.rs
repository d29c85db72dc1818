//! A configured balancer that does nothing is found; one that works is not accused.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use serde_json::Value;
use support::{Setup, Variant, run, run_well, text};

fn setup(router: &'static str) -> Setup {
    Setup::new(Variant {
        router,
        packing: "packed",
        accumulation: 1,
    })
}

fn doctor(setup: &Setup, overrides: &[&str]) -> Value {
    let config = setup.config("run");
    let mut args = vec!["doctor", "--json", "--config", &config];
    for change in overrides {
        args.extend(["--override", change]);
    }
    serde_json::from_slice(&run_well(&args).stdout).unwrap()
}

fn terms(setup: &Setup, overrides: &[&str]) -> Vec<Value> {
    let found = doctor(setup, overrides);
    found["balance_terms"].as_array().unwrap().clone()
}

#[test]
fn every_term_of_every_router_has_a_gradient_proportional_to_its_weight() {
    for (router, names) in [
        (
            "lpr",
            &[
                "kl",
                "diversity_tokens",
                "diversity_prototypes",
                "alignment",
            ][..],
        ),
        ("softmax_topk", &["load_balancing", "z"]),
    ] {
        let overrides = if router == "lpr" {
            vec![]
        } else {
            vec!["router.z_loss_weight=0.1"]
        };
        let terms = terms(&setup(router), &overrides);
        let found: Vec<&str> = terms.iter().map(|t| t["name"].as_str().unwrap()).collect();
        assert_eq!(found, names);
        for term in terms {
            let (one, two) = (&term["gradient_norm"], &term["doubled_gradient_norm"]);
            let (one, two) = (one.as_f64().unwrap(), two.as_f64().unwrap());
            assert!(one > 0.0 && (two / one - 2.0).abs() < 1e-3, "{term}");
            assert_eq!(term["zero_weight_gradient_norm"], 0.0, "{term}");
        }
    }
}

#[test]
fn a_weight_of_zero_has_no_gradient_and_is_no_fault() {
    for term in terms(&setup("lpr"), &["router.loss_weight=0"]) {
        assert_eq!(
            (&term["weight"], &term["gradient_norm"]),
            (&Value::from(0.0), &Value::from(0.0))
        );
    }
}

#[test]
fn every_coefficient_names_the_terms_that_it_weighs() {
    let found = doctor(&setup("lpr"), &[]);
    let growth = |key: &str| -> Vec<String> {
        let list = found["coefficients"].as_array().unwrap();
        let one = list.iter().find(|c| c["key"] == key).unwrap();
        let grown = one["growth"].as_array().unwrap().iter();
        let grown = grown.filter(|pair| pair[1] == 2.0);
        grown.map(|p| p[0].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(growth("kl_weight"), ["kl"]);
    assert_eq!(growth("alignment_weight"), ["alignment"]);
    let diversity = ["diversity_tokens", "diversity_prototypes"];
    assert_eq!(growth("diversity_weight"), diversity);
    assert_eq!(growth("loss_weight").len(), 4);
}

#[test]
fn state_that_moves_after_a_step_is_listed_and_must_be_able_to_move() {
    let setup = setup("sigmoid_topk");
    let found = doctor(&setup, &[]);
    let state = &found["balance_state"];
    assert_eq!(state["parameter"], "correction_bias");
    assert_eq!(state["layers"], 2);
    assert_eq!(state["still_layers"], serde_json::json!([]));
    let frozen = doctor(&setup, &["router.bias_update_rate=0"]);
    assert!(frozen["balance_state"].is_null());
    // With every expert for every token there is no load to follow.
    let config = setup.config("run");
    let change = ["--config", &config, "--override", "model.top_k=6"];
    let output = run(&[&["doctor"][..], &change].concat());
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("router.bias_update_rate"), "{message}");
    assert!(text(&output.stdout).contains("DEAD   correction_bias"));
}

#[test]
fn a_balancer_that_cannot_do_anything_stops_the_run_by_name() {
    // Where every token goes to every expert the loads are equal whatever the router does.
    let setup = setup("softmax_topk");
    let config = setup.config("run");
    for command in [&["doctor"][..], &["-q"]] {
        let change = ["--config", &config, "--override", "model.top_k=6"];
        let output = run(&[command, &change[..]].concat());
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains("`load_balancing`"), "{message}");
    }
    let off = [
        "-q",
        "--config",
        &config,
        "--override",
        "model.top_k=6",
        "--override",
        "router.aux_loss=none",
        "--override",
        "router.aux_loss_weight=0",
    ];
    run_well(&off);
}
