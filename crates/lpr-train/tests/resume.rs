//! Exact resume: however a run is interrupted, it ends with the same bits.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::time::{Duration, Instant};

use support::{Setup, Variant, lpr_train, run, run_well, text};

fn variants() -> Vec<Variant> {
    let mut variants = Vec::new();
    for router in ["lpr", "softmax_topk"] {
        for packing in ["packed", "none"] {
            for accumulation in [1, 4] {
                variants.push(Variant {
                    router,
                    packing,
                    accumulation,
                });
            }
        }
    }
    variants
}

const LPR: Variant = Variant {
    router: "lpr",
    packing: "packed",
    accumulation: 1,
};

#[test]
fn one_leg_two_legs_and_three_legs_end_with_the_same_bits() {
    let mut stopped_inside_a_document = false;
    for variant in variants() {
        let setup = Setup::new(variant);
        run_well(&["-q", "--config", &setup.config("whole")]);
        // 20 + 20
        setup.copy_at("whole", "two", 20);
        run_well(&["-q", "--resume", "--config", &setup.config("two")]);
        setup.assert_same("whole", "two");
        // 15 + 15 + 10: the last leg continues what the second one saved.
        setup.copy_at("whole", "second", 15);
        run_well(&["-q", "--resume", "--config", &setup.config("second")]);
        setup.copy_at("second", "three", 30);
        run_well(&["-q", "--resume", "--config", &setup.config("three")]);
        setup.assert_same("whole", "three");
        // The stops were where they are hardest.
        let data = |step: u64| setup.state("whole", step)["data"].clone();
        let epoch = |step| {
            data(step)["sources"][0]["cursor"]["epoch"]
                .as_u64()
                .unwrap()
        };
        let epochs = epoch(40);
        assert!(
            epochs >= 1,
            "{variant:?}: the run must pass over the data more than once"
        );
        if variant.accumulation == 4 {
            assert!(epoch(30) >= 1, "{variant:?}: stops in a later epoch");
        }
        stopped_inside_a_document |= data(20)["token_offset"].as_u64().unwrap() > 0;
    }
    assert!(stopped_inside_a_document);
}

/// What lpr-data tests for every mix, here down to the weights.
#[test]
fn shuffled_and_weighted_sources_resume_exactly_in_the_second_epoch() {
    for (packing, weights) in [
        ("none", "[1.0, 3.0]"),
        ("packed", "[1.0, 3.0]"),
        ("best_fit", "[1.0, 3.0]"),
        ("best_fit", "[]"),
    ] {
        let setup = Setup::new(Variant {
            packing,
            accumulation: 2,
            ..LPR
        });
        let shards = [0, 1].map(|shard| setup.folder.path().join(format!("shard-{shard}.jsonl")));
        let overrides = [
            format!("data.train={shards:?}"),
            format!("data.weights={weights}"),
            "data.shuffle=true".to_owned(),
            "data.shuffle_window=10".to_owned(),
            "data.packing_window=16".to_owned(),
        ];
        let train = |name: &str, resume: &[&str]| {
            let config = setup.config(name);
            let mut args = vec!["-q", "--config", &config];
            args.extend(resume);
            for change in &overrides {
                args.extend(["--override", change]);
            }
            run_well(&args);
        };
        train("whole", &[]);
        setup.copy_at("whole", "second", 15);
        train("second", &["--resume"]);
        setup.copy_at("second", "three", 30);
        train("three", &["--resume"]);
        setup.assert_same("whole", "three");
        for source in setup.state("whole", 30)["data"]["sources"]
            .as_array()
            .unwrap()
        {
            let epoch = source["cursor"]["epoch"].as_u64().unwrap();
            assert!(epoch >= 1, "{packing} {weights}: {source}");
        }
        let lines = setup.metrics("whole");
        let data = lines.iter().rev().map(|line| &line["data"]);
        let data = data.into_iter().find(|data| data.is_object()).unwrap();
        let tokens = data["source_tokens"].as_array().unwrap();
        assert_eq!(tokens.len(), if weights == "[]" { 1 } else { 2 });
        assert_eq!(data["padding_ratio"] == 0.0, packing == "packed", "{data}");
    }
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let setup = Setup::new(LPR);
    for (name, threads) in [("one", "1"), ("three", "3")] {
        let config = setup.config(name);
        let status = lpr_train()
            .args(["-q", "--config", &config])
            .env("RAYON_NUM_THREADS", threads)
            .status()
            .unwrap();
        assert!(status.success());
    }
    setup.assert_same("one", "three");
}

#[test]
fn another_seed_gives_other_weights() {
    let setup = Setup::new(LPR);
    run_well(&["-q", "--config", &setup.config("one")]);
    run_well(&[
        "-q",
        "--config",
        &setup.config("other"),
        "--override",
        "train.seed=43",
    ]);
    let weights = |name: &str| setup.file(name, 40, "model.safetensors");
    assert_ne!(weights("one"), weights("other"));
}

#[test]
fn sigterm_saves_and_exits_75_and_the_run_goes_on_exactly() {
    let setup = Setup::new(LPR);
    run_well(&["-q", "--config", &setup.config("whole")]);
    let config = setup.config("stopped");
    let child = lpr_train()
        .args(["-q", "--config", &config])
        .spawn()
        .unwrap();
    let metrics = setup.run_dir("stopped").join("metrics.jsonl");
    let deadline = Instant::now() + Duration::from_mins(1);
    while std::fs::metadata(&metrics).map_or(0, |m| m.len()) < 2000 {
        assert!(Instant::now() < deadline, "the run does not start");
        std::thread::sleep(Duration::from_millis(2));
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let status = child.wait_with_output().unwrap().status;
    assert_eq!(status.code(), Some(75));
    run_well(&["-q", "--resume", "--config", &config]);
    for file in ["model.safetensors", "optimizer.safetensors"] {
        assert!(
            setup.file("whole", 40, file) == setup.file("stopped", 40, file),
            "{file} differs"
        );
    }
    assert_eq!(setup.metrics("whole"), setup.metrics("stopped"));
}

#[test]
fn another_model_or_other_data_is_refused_and_a_lower_rate_is_not() {
    let setup = Setup::new(LPR);
    run_well(&["-q", "--config", &setup.config("whole")]);
    setup.copy_at("whole", "changed", 20);
    let config = setup.config("changed");
    let resume = |change: &str| run(&["-q", "--resume", "--config", &config, "--override", change]);
    for change in [
        "model.num_experts=7",
        "router.kind=softmax_topk",
        "train.seed=1",
        "data.sequence_length=40",
    ] {
        let output = resume(change);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{change}: {message}");
        let key = change.split('=').next().unwrap().split('.').next().unwrap();
        assert!(message.contains(key), "{change}: {message}");
    }
    assert_eq!(
        resume("optimizer.learning_rate=1e-4").status.code(),
        Some(0)
    );
    // The corpus is part of the run.
    setup.copy_at("whole", "moved", 20);
    let shard = setup.folder.path().join("shard-0.jsonl");
    let longer = std::fs::read_to_string(&shard).unwrap() + "{\"text\": \"one more\"}\n";
    std::fs::write(shard, longer).unwrap();
    let resume = ["-q", "--resume", "--config", &setup.config("moved")];
    let output = run(&resume);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{message}");
    assert!(message.contains("shard-0.jsonl: "), "{message}");
    assert!(message.contains("--allow-data-change"), "{message}");
    let output = run_well(&[&resume[..], &["--allow-data-change"]].concat());
    let message = text(&output.stderr);
    assert!(message.contains("shard-0.jsonl: "), "{message}");
    // The file was being read, or had been: the source began its next epoch.
    let epoch = |run: &str, step| {
        let state = setup.state(run, step);
        state["data"]["sources"][0]["cursor"]["epoch"]
            .as_u64()
            .unwrap()
    };
    assert!(epoch("moved", 25) > epoch("whole", 25));
}

#[test]
fn what_was_trained_before_a_bad_file_is_not_lost() {
    let setup = Setup::new(LPR);
    // The second file breaks off in the middle of a line.
    let bad = setup.folder.path().join("shard-1.jsonl");
    let intact = std::fs::read_to_string(&bad).unwrap();
    std::fs::write(&bad, &intact[..intact.len() - 40]).unwrap();
    let config = setup.config("run");
    let no_cadence = [
        "--override",
        "checkpoint.every_steps=0",
        "--override",
        "data.validation=[]",
        "--override",
        "eval.at_start=false",
        "--override",
        "eval.every_steps=0",
    ];
    let output = run(&[&["-q", "--config", &config], &no_cadence[..]].concat());
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{message}");
    assert!(message.contains("shard-1.jsonl, line 2"), "{message}");
    let latest = setup.run_dir("run").join("checkpoints/latest");
    let latest = std::fs::read_to_string(latest).unwrap();
    let step: u64 = latest.trim().trim_start_matches("step-").parse().unwrap();
    assert!(step > 5, "{latest}");
    assert_eq!(setup.state("run", step)["step"], step);
}
