//! Routing traces: what a run records, what survives a crash, and what `routing` makes of them.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::path::PathBuf;

use lpr_data::Split;
use lpr_train::routing::file;
use lpr_train::routing::read::read;
use lpr_train::routing::trace::Trace;
use serde_json::Value;
use support::{Setup, Variant, lpr_train, run, run_well, text};

const PADDED: Variant = Variant {
    router: "lpr",
    packing: "none",
    accumulation: 2,
};
const EVERY_STEP: [&str; 2] = ["--override", "log.every_steps=1"];

fn traces(setup: &Setup, name: &str) -> Vec<(u64, Split, PathBuf)> {
    file::list(&setup.run_dir(name)).unwrap()
}

/// Names and bytes of a run's traces.
fn files(setup: &Setup, name: &str) -> Vec<(u64, Split, Vec<u8>)> {
    let read = |(step, split, path)| (step, split, fs::read(path).unwrap());
    traces(setup, name).into_iter().map(read).collect()
}

/// The counts of `metrics.jsonl` by layer: of the step, or of the evaluation after it.
fn logged(setup: &Setup, name: &str, step: u64, split: Split) -> Vec<Vec<u64>> {
    let is_wanted = |line: &Value| {
        line["step"] == step && line.get("eval").is_some() == (split == Split::Validation)
    };
    let lines = setup.metrics(name);
    let line = lines.iter().find(|line| is_wanted(line)).unwrap();
    let line = line.get("eval").unwrap_or(line);
    let layers = line["layers"].as_array().unwrap().iter();
    let counts = |layer: &Value| -> Vec<u64> {
        let counts = layer["counts"].as_array().unwrap().iter();
        counts.map(|count| count.as_u64().unwrap()).collect()
    };
    layers.map(counts).collect()
}

/// The choices of a trace, counted again.
fn counted(trace: &Trace) -> Vec<Vec<u64>> {
    let all = 0..trace.recording.token_ids.len();
    let layers = 0..trace.recording.layers.len();
    let count = |layer| trace.recording.count(layer, all.clone()).without_padding;
    layers.map(count).collect()
}

/// The counts that the trace has of whole batches.
fn stated(trace: &Trace) -> Vec<Vec<u64>> {
    let mut sums = vec![vec![0; trace.recording.num_experts]; trace.recording.layers.len()];
    for batch in &trace.recording.batches {
        for (sums, counts) in sums.iter_mut().zip(&batch.counts) {
            for (sum, count) in sums.iter_mut().zip(counts) {
                *sum += count;
            }
        }
    }
    sums
}

#[test]
fn counts_of_a_trace_are_those_of_the_training_and_change_nothing() {
    let setup = Setup::new(PADDED);
    let args = |name: &str, more: &[&str]| {
        let config = setup.config(name);
        let base = ["-q", "--config", &config];
        run_well(&[&base, &EVERY_STEP[..], more].concat());
    };
    args("plain", &[]);
    args("traced", &["--trace-routing", "65536"]);
    args("cut", &["--trace-routing", "100"]);
    for name in ["traced", "cut"] {
        setup.assert_same("plain", name);
    }
    assert!(!setup.run_dir("plain").join(file::FOLDER).exists());
    let found = traces(&setup, "traced");
    let steps = |wanted| found.iter().filter(move |(_, split, _)| *split == wanted);
    assert_eq!(steps(Split::Train).count(), 40);
    let evaluated: Vec<u64> = steps(Split::Validation).map(|(step, _, _)| *step).collect();
    assert_eq!(evaluated, [0, 10, 20, 30, 40]);
    let mut padding = 0;
    for (step, split, path) in found {
        let trace = read(&path).unwrap();
        let wanted = logged(&setup, "traced", step, split);
        assert_eq!(counted(&trace), wanted, "{}", path.display());
        assert_eq!(stated(&trace), wanted, "{}", path.display());
        padding += trace.recording.is_token.iter().filter(|is| !**is).count();
        // The first positions of the same, with the counts of the whole step.
        let cut = read(&file::path(&setup.run_dir("cut"), step, split)).unwrap();
        assert_eq!(
            cut.recording.token_ids[..],
            trace.recording.token_ids[..100]
        );
        assert_eq!(
            cut.recording.layers[1].experts[..],
            trace.recording.layers[1].experts[..200]
        );
        assert_eq!(
            cut.recording.layers[1].weights[..],
            trace.recording.layers[1].weights[..200]
        );
        if split == Split::Train {
            assert_eq!(stated(&cut), wanted);
        }
    }
    assert!(padding > 0, "the test is to have padding");
}

#[test]
fn traces_are_the_same_whether_a_run_was_stopped_or_not() {
    let setup = Setup::new(PADDED);
    let trace = ["--trace-routing", "64"];
    run_well(&[&["-q", "--config", &setup.config("whole")], &trace[..]].concat());
    let wanted = files(&setup, "whole");
    let steps: Vec<u64> = traces(&setup, "whole")
        .iter()
        .map(|(step, ..)| *step)
        .collect();
    assert_eq!(steps[..6], [0, 3, 6, 9, 10, 12]);
    // Crashes before a trace of a step, in the middle of one, after one, and on the way back.
    for (number, fault) in [
        "trace-write:5",
        "replace-rename:9",
        "step-end:13",
        "eval-batch:9",
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("crashed-{number}");
        let config = setup.config(&name);
        let args = [&["-q", "--config", &config], &trace[..]].concat();
        let crashed = lpr_train()
            .args(&args)
            .env("LPR_FAULT", fault)
            .output()
            .unwrap();
        assert_eq!(crashed.status.code(), None, "{fault}");
        let resume = [&args[..], &["--resume"]].concat();
        let crashed = lpr_train()
            .args(&resume)
            .env("LPR_FAULT", "trace-remove:1")
            .output();
        // A trace after the checkpoint may be there or not.
        assert!(
            matches!(crashed.unwrap().status.code(), None | Some(0)),
            "{fault}"
        );
        run_well(&resume);
        assert!(files(&setup, &name) == wanted, "{fault}");
        let folder = setup.run_dir(&name).join(file::FOLDER);
        assert_eq!(
            fs::read_dir(folder).unwrap().count(),
            wanted.len(),
            "{fault}"
        );
        setup.assert_same("whole", &name);
    }
}

#[test]
fn a_trace_that_cannot_be_written_gives_one_warning_and_training_goes_on() {
    let setup = Setup::new(PADDED);
    run_well(&["-q", "--config", &setup.config("plain")]);
    let config = setup.config("full");
    let args = ["-q", "--config", &config, "--trace-routing", "64"];
    let output = lpr_train()
        .args(args)
        .env("LPR_FAULT", "trace-write:2+:enospc")
        .output()
        .unwrap();
    assert!(output.status.success());
    let warnings = text(&output.stderr);
    assert_eq!(
        warnings
            .matches("cannot write the routing trace of step 3")
            .count(),
        1
    );
    assert_eq!(warnings.matches("routing trace").count(), 1, "{warnings}");
    setup.assert_same("plain", "full");
    assert_eq!(traces(&setup, "full").len(), 1);
}

fn findings(setup: &Setup, name: &str, more: &[&str]) -> Value {
    let path = setup.run_dir(name).display().to_string();
    let output = run_well(&[&["routing", &path, "--json"], more].concat());
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn checkpoints_that_are_replayed_choose_what_the_training_recorded() {
    let setup = Setup::new(PADDED);
    let config = setup.config("one");
    run_well(&["-q", "--config", &config, "--trace-routing", "150"]);
    let (read, made) = (
        findings(&setup, "one", &[]),
        findings(&setup, "one", &["--replay", "150"]),
    );
    assert_eq!(read["specialization"], made["specialization"]);
    assert_eq!(read["specialization"]["step"], 40);
    assert_eq!(
        read["specialization"]["layers"].as_array().unwrap().len(),
        2
    );
    // Checkpoints are those of every fifth step, evaluations those of every tenth.
    let steps = |found: &Value, key: &str| -> Vec<u64> {
        let steps = found[key].as_array().unwrap().iter();
        steps.map(|step| step.as_u64().unwrap()).collect()
    };
    assert_eq!(steps(&read, "validation_steps"), [0, 10, 20, 30, 40]);
    assert_eq!(
        steps(&made, "validation_steps"),
        [5, 10, 15, 20, 25, 30, 35, 40]
    );
    assert_eq!(read["stability"].as_array().unwrap().len(), 4);
    for interval in read["stability"].as_array().unwrap() {
        let overlap = interval["mean"]["overlap"].as_f64().unwrap();
        assert!(overlap > 0.0 && overlap <= 1.0, "{interval}");
    }
    // The slow-down is that of the counts of metrics.jsonl: the micro-batches of a step are apart in
    // the trace, so with one of them.
    let parallel = &read["expert_parallelism"];
    assert_eq!(parallel["split"], "train");
    assert_eq!(parallel["ranks"], serde_json::json!([2]));
    assert_eq!(parallel["ranks_left_out"], serde_json::json!([4, 8]));
    let path = setup.run_dir("one").display().to_string();
    let words = text(&run_well(&["routing", &path, "--ranks", "2,3,6"]).stdout);
    for part in [
        "specialization: ",
        "validation tokens, step 40",
        "30 -> 40",
        "6 ranks",
        "cf 1.25",
        "layer 1",
    ] {
        assert!(words.contains(part), "{part} in {words}");
    }
}

#[test]
fn costs_under_expert_parallelism_follow_from_the_logged_counts() {
    let setup = Setup::new(Variant {
        accumulation: 1,
        ..PADDED
    });
    let config = setup.config("one");
    run_well(
        &[
            &["-q", "--config", &config, "--trace-routing", "1"],
            &EVERY_STEP[..],
        ]
        .concat(),
    );
    let more = ["--ranks", "3", "--capacity-factor", "1.2"];
    let found = findings(&setup, "one", &more);
    let (mut slow_downs, mut dropped, mut choices) = (Vec::new(), 0, 0);
    for step in 1..=40 {
        for counts in logged(&setup, "one", step, Split::Train) {
            let total: u64 = counts.iter().sum();
            let ranks: Vec<u64> = counts.chunks(2).map(|pair| pair.iter().sum()).collect();
            let largest = *ranks.iter().max().unwrap();
            slow_downs.push(largest as f64 / (total as f64 / 3.0));
            // ceil(1.2 total / 6) in integers.
            let capacity = (2 * total).div_ceil(10);
            choices += total;
            dropped += counts
                .iter()
                .map(|&n| n.saturating_sub(capacity))
                .sum::<u64>();
        }
    }
    let all = &found["expert_parallelism"]["all"];
    let mean = slow_downs.iter().sum::<f64>() / slow_downs.len() as f64;
    assert!(
        (all["slow_down"][0].as_f64().unwrap() - mean).abs() < 1e-12,
        "{all} {mean}"
    );
    let rate = all["drop_rate"][0].as_f64();
    assert_eq!(rate, Some(dropped as f64 / choices as f64));
    assert!(dropped > 0 && mean > 1.0);
}

#[test]
fn experts_by_turns_cost_nothing_and_keep_no_token() {
    // Six experts, two a token: every three tokens fill all of them once.
    let setup = Setup::new(Variant {
        router: "forced_balanced",
        packing: "packed",
        accumulation: 1,
    });
    let config = setup.config("even");
    run_well(&["-q", "--config", &config, "--trace-routing", "4096"]);
    let found = findings(&setup, "even", &["--ranks", "2,3,6"]);
    let all = &found["expert_parallelism"]["all"];
    assert_eq!(all["slow_down"], serde_json::json!([1.0, 1.0, 1.0]));
    assert_eq!(all["drop_rate"], serde_json::json!([0.0, 0.0, 0.0, 0.0]));
    let six = 6_f64.log2();
    for layer in found["specialization"]["layers"].as_array().unwrap() {
        let entropy = layer["expert_entropy_bits"].as_f64().unwrap();
        assert!((entropy - six).abs() < 1e-3, "{layer}");
    }
}

#[test]
fn what_is_damaged_foreign_or_missing_is_refused_with_the_reason() {
    let setup = Setup::new(PADDED);
    let config = setup.config("one");
    let short = ["--override", "train.total_steps=6"];
    run_well(
        &[
            &["-q", "--config", &config, "--trace-routing", "64"],
            &short[..],
        ]
        .concat(),
    );
    let run_dir = setup.run_dir("one");
    let path = run_dir.display().to_string();
    let refused = |code: i32, reason: &str| {
        let output = run(&["routing", &path]);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{message}");
        assert!(message.contains(reason), "{reason}: {message}");
        assert!(output.stdout.is_empty());
    };
    let (.., newest) = traces(&setup, "one").pop().unwrap();
    let good = fs::read(&newest).unwrap();
    let mut later = good.clone();
    let at = later
        .windows(11)
        .position(|w| w == b"version\\\":1")
        .unwrap();
    later[at + 10] = b'2';
    for (bytes, reason) in [
        (&good[..good.len() - 1], "it is no safetensors file"),
        (&good[..0], "it is no safetensors file"),
        (
            b"not a trace, but long enough for a header",
            "it is no safetensors file",
        ),
        (&later, "it is of version 2"),
    ] {
        fs::write(&newest, bytes).unwrap();
        refused(3, reason);
        refused(3, newest.file_name().unwrap().to_str().unwrap());
    }
    let weights = run_dir.join("checkpoints/step-00000006/model.safetensors");
    fs::copy(weights, &newest).unwrap();
    refused(3, "has no `routing_trace`");
    fs::write(&newest, &good).unwrap();
    fs::rename(&newest, file::path(&run_dir, 5, Split::Validation)).unwrap();
    refused(3, "it is of step 6, validation");
    fs::rename(file::path(&run_dir, 5, Split::Validation), &newest).unwrap();
    let resolved = run_dir.join("config.resolved.toml");
    let text_of = fs::read_to_string(&resolved).unwrap();
    fs::write(
        &resolved,
        text_of.replace("num_experts = 6", "num_experts = 8"),
    )
    .unwrap();
    refused(3, "[layers, experts, top_k] = [2, 6, 2], the run [2, 8, 2]");
    fs::write(&resolved, text_of).unwrap();
    fs::remove_dir_all(run_dir.join(file::FOLDER)).unwrap();
    refused(2, "--trace-routing N");
    fs::remove_file(resolved).unwrap();
    refused(2, "is not the folder of a run");
    for bad in [
        ["--ranks", "0"],
        ["--capacity-factor", "0"],
        ["--replay", "65537"],
    ] {
        assert_eq!(
            run(&["routing", &path, bad[0], bad[1]]).status.code(),
            Some(2),
            "{bad:?}"
        );
    }
}
