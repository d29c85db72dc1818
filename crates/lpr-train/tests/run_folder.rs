//! Run folders and checkpoints as a user handles them: names, overwriting, retention, listing,
//! pruning, continuing with changes, branching off.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::path::Path;
use std::process::Output;

use serde_json::Value;
use support::{Setup, Variant, lpr_train, run, run_well, text};

const PLAIN: Variant = Variant {
    router: "softmax_topk",
    packing: "packed",
    accumulation: 1,
};

/// Trains the run `name` with overrides and other arguments.
fn train(setup: &Setup, name: &str, overrides: &[&str], more: &[&str]) -> Output {
    let config = setup.config(name);
    let mut args = vec!["--config", &config];
    args.extend(overrides.iter().flat_map(|text| ["--override", text]));
    args.extend(more);
    run(&args)
}

fn train_well(setup: &Setup, name: &str, overrides: &[&str], more: &[&str]) -> String {
    let output = train(setup, name, overrides, more);
    let message = text(&output.stderr);
    assert!(output.status.success(), "{overrides:?} {more:?}: {message}");
    message
}

/// The run must be refused with `code` and every one of `words`.
fn assert_refused(output: &Output, code: i32, words: &[&str]) {
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{message}");
    for word in words {
        assert!(message.contains(word), "{word} in {message}");
    }
}

#[test]
fn names_that_cannot_be_run_folders_are_refused() {
    let setup = Setup::new(PLAIN);
    let root = setup.folder.path();
    fs::create_dir(root.join("thesis")).unwrap();
    fs::write(root.join("thesis/chapter.tex"), "words").unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(root.join("thesis"), root.join("link")).unwrap();
    let inside = |name: &str| root.join(name).display().to_string();
    let cases = [
        (String::new(), "empty"),
        ("/".to_owned(), "does not name a folder"),
        ("..".to_owned(), "does not name a folder"),
        (inside("a/../../b"), "`..`"),
        (inside("a\\u0000b"), "NUL"),
        (inside(&"x".repeat(300)), "255 bytes"),
        (inside("thesis"), "chapter.tex"),
        #[cfg(unix)]
        (inside("link"), "symbolic link"),
    ];
    for (path, why) in cases {
        let key = format!("train.run_dir=\"{path}\"");
        for more in [&[][..], &["--overwrite"], &["--resume"]] {
            let output = train(&setup, "run", &[&key], more);
            assert_refused(&output, 2, &["run_dir", why]);
        }
    }
    assert_eq!(
        fs::read_to_string(root.join("thesis/chapter.tex")).unwrap(),
        "words"
    );
    assert_eq!(fs::read_dir(root.join("thesis")).unwrap().count(), 1);
}

#[test]
fn overwriting_is_asked_for_and_spares_what_is_not_ours() {
    let setup = Setup::new(PLAIN);
    let short = ["train.total_steps=4", "eval.at_start=false"];
    train_well(&setup, "run", &short, &[]);
    assert_refused(
        &train(&setup, "run", &short, &[]),
        2,
        &["--resume", "--overwrite"],
    );
    let checkpoints = setup.run_dir("run").join("checkpoints");
    let theirs = checkpoints.join("step-00000002");
    fs::create_dir(&theirs).unwrap();
    fs::write(theirs.join("thesis.tex"), "words").unwrap();
    let output = train(&setup, "run", &short, &["--overwrite"]);
    assert_refused(&output, 2, &["step-00000002", "removes nothing"]);
    assert!(theirs.join("thesis.tex").exists() && checkpoints.join("step-00000004").exists());
    fs::rename(&theirs, checkpoints.join("mine")).unwrap();
    train_well(
        &setup,
        "run",
        &["train.total_steps=3", "eval.at_start=false"],
        &["--overwrite"],
    );
    assert_eq!(setup.steps("run"), [3]);
    assert_eq!(
        fs::read_to_string(checkpoints.join("mine/thesis.tex")).unwrap(),
        "words"
    );
}

const RETENTION: [&str; 5] = [
    "checkpoint.every_steps=2",
    "checkpoint.keep_last=2",
    "checkpoint.keep_every=16",
    "checkpoint.keep_best=1",
    "eval.every_steps=4",
];

#[test]
fn what_the_three_rules_keep_stays() {
    let setup = Setup::new(PLAIN);
    // The loss falls, so that the best one is the last evaluated one.
    train_well(
        &setup,
        "run",
        &[&RETENTION[..], &["train.total_steps=38"]].concat(),
        &[],
    );
    assert_eq!(setup.steps("run"), [38, 36, 32, 16]);
    // With a rate that ruins the weights the best one is the first that was evaluated.
    let ruin = [
        "optimizer.learning_rate=3.0",
        "train.total_steps=22",
        "eval.every_steps=8",
    ];
    train_well(&setup, "ruined", &[&RETENTION[..], &ruin].concat(), &[]);
    let losses: Vec<(u64, f64)> = list(&setup, "ruined")
        .iter()
        .filter_map(|row| Some((row["step"].as_u64()?, row["loss"].as_f64()?)))
        .collect();
    let best = losses.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    let evaluations: Vec<f64> = setup
        .metrics("ruined")
        .iter()
        .filter(|line| line["step"].as_u64() > Some(0))
        .filter_map(|line| line["eval"]["loss"].as_f64())
        .collect();
    let lowest = evaluations.iter().copied().fold(f64::INFINITY, f64::min);
    assert_eq!(
        best.1.to_bits(),
        lowest.to_bits(),
        "{losses:?} {evaluations:?}"
    );
    assert!(setup.steps("ruined").contains(&best.0));
}

#[test]
fn a_removal_that_fails_is_told_and_the_others_go_on() {
    let setup = Setup::new(PLAIN);
    let config = setup.config("run");
    let mut command = lpr_train();
    command.args(["--config", &config, "--override", "checkpoint.keep_last=1"]);
    let output = command
        .env("LPR_FAULT", "prune-rename:2:denied")
        .output()
        .unwrap();
    let message = text(&output.stderr);
    assert!(output.status.success(), "{message}");
    assert_eq!(
        message.matches("warning: cannot remove").count(),
        1,
        "{message}"
    );
    assert!(message.contains("step-00000010"), "{message}");
    // The next save removed it.
    assert_eq!(setup.steps("run"), [40]);
}

fn list(setup: &Setup, name: &str) -> Vec<Value> {
    let dir = setup.run_dir(name).display().to_string();
    let output = run_well(&["checkpoint", "list", &dir, "--json"]);
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn checkpoints_are_listed_verified_and_pruned() {
    let setup = Setup::new(PLAIN);
    train_well(&setup, "run", &[], &[]);
    let rows = list(&setup, "run");
    let steps: Vec<u64> = rows
        .iter()
        .map(|row| row["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, [40, 35, 30, 25, 20, 15, 10, 5]);
    assert!(rows[0]["loss"].as_f64().unwrap() > 1.0 && rows[1]["loss"].is_null());
    assert!(
        rows.iter()
            .all(|row| row["valid"] == true && row["bytes"].as_u64() > Some(10_000))
    );
    let dir = setup.run_dir("run").display().to_string();
    run_well(&["checkpoint", "verify", &dir]);

    let flipped = setup
        .run_dir("run")
        .join("checkpoints/step-00000030/model.safetensors");
    let mut bytes = fs::read(&flipped).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&flipped, bytes).unwrap();
    run_well(&["checkpoint", "list", &dir]);
    let output = run(&["checkpoint", "verify", &dir]);
    assert_refused(&output, 4, &["1 of 8"]);
    assert!(
        text(&output.stdout).contains("SHA-256"),
        "{}",
        text(&output.stdout)
    );
    let one = format!("{dir}/checkpoints/step-00000030");
    assert_eq!(run(&["checkpoint", "verify", &one]).status.code(), Some(4));
    assert_eq!(
        run(&["checkpoint", "list", "/nowhere"]).status.code(),
        Some(4)
    );

    let output = run_well(&["checkpoint", "prune", &dir, "--keep", "2", "--dry-run"]);
    assert_eq!(text(&output.stdout).matches("would remove").count(), 6);
    assert_eq!(list(&setup, "run").len(), 8);
    run_well(&["checkpoint", "prune", &dir, "--keep", "2"]);
    assert_eq!(setup.steps("run"), [40, 35]);
    // By the configuration, which keeps 100.
    let output = run_well(&["checkpoint", "prune", &dir]);
    assert!(text(&output.stdout).contains("nothing to remove"));
    assert_eq!(run(&["checkpoint", "prune", &one]).status.code(), Some(2));
}

#[test]
fn a_disk_that_seems_too_small_is_told_at_the_start() {
    let setup = Setup::new(PLAIN);
    let huge = [
        "model.vocab_size=30000",
        "checkpoint.keep_last=1000000",
        "train.total_steps=1",
        "eval.at_start=false",
    ];
    let message = train_well(&setup, "run", &huge, &[]);
    // A million checkpoints of 11 MB: more than any disk of a test machine has.
    assert!(
        message.contains("warning") && message.contains("of free space"),
        "{message}"
    );
    let message = train_well(&setup, "small", &["train.total_steps=1"], &[]);
    assert!(!message.contains("free space"), "{message}");
}

#[test]
fn other_data_needs_permission() {
    let setup = Setup::new(PLAIN);
    train_well(&setup, "run", &[], &[]);
    let root = setup.folder.path();
    let other = root.join("other");
    fs::create_dir(&other).unwrap();
    fs::copy(root.join("shard-1.jsonl"), other.join("shard.jsonl")).unwrap();
    let key = format!("data.train=[\"{}/*.jsonl\"]", other.display());
    for change in [key.as_str(), "data.packing=none"] {
        setup.copy_at("run", "changed", 20);
        assert_refused(
            &train(&setup, "changed", &[change], &["--resume"]),
            4,
            &["data"],
        );
        assert_eq!(setup.steps("changed"), [20]);
    }
    let more = ["--resume", "--allow-data-change"];
    let message = train_well(&setup, "changed", &[&key], &more);
    assert!(
        message.contains("changed since the checkpoint: data.train"),
        "{message}"
    );
    let (before, after) = (setup.state("run", 20), setup.state("changed", 25));
    assert!(after["data"]["tokens"].as_u64() > before["data"]["tokens"].as_u64());
    // Without a change the flag changes nothing.
    setup.copy_at("run", "same", 20);
    train_well(&setup, "same", &[], &more);
    setup.assert_same("run", "same");
}

#[test]
fn what_makes_it_another_run_is_refused_with_all_differences() {
    let setup = Setup::new(PLAIN);
    train_well(&setup, "run", &[], &[]);
    setup.copy_at("run", "changed", 20);
    for change in [
        "model.num_experts=7",
        "model.hidden_size=32",
        "model.vocab_size=300",
        "router.kind=lpr",
        "optimizer.betas=[0.8, 0.9]",
        "optimizer.eps=1e-6",
        "optimizer.decay_on=matrices",
        "train.seed=1",
        "train.micro_batch_size=2",
        "train.gradient_accumulation_steps=2",
    ] {
        let key = change.split('=').next().unwrap();
        let twice = [change, "data.sequence_length=40"];
        let output = train(&setup, "changed", &twice, &["--resume"]);
        assert_refused(&output, 4, &[key, "data.sequence_length: 48 -> 40", "->"]);
    }
    assert_eq!(setup.steps("changed"), [20]);
}

/// The learning rate of every logged step.
fn rates(setup: &Setup, name: &str) -> Vec<(u64, f64)> {
    let lines = setup.metrics(name).into_iter();
    let rate = |line: Value| Some((line["step"].as_u64()?, line["lr"].as_f64()?));
    lines.filter_map(rate).collect()
}

#[test]
fn a_longer_run_goes_on_at_the_peak() {
    let setup = Setup::new(PLAIN);
    let every = ["log.every_steps=1"];
    train_well(&setup, "run", &every, &[]);
    setup.copy_at("run", "longer", 20);
    let message = train_well(
        &setup,
        "longer",
        &[&every[..], &["train.total_steps=48"]].concat(),
        &["--resume"],
    );
    assert!(message.contains("train.total_steps: 40 -> 48"), "{message}");
    let peak = 1e-3;
    // Warm-up: 2 of 40 steps; stable until step 32 of 40, until 2 + 36 of 48.
    for (step, rate) in rates(&setup, "longer") {
        if (3..=38).contains(&step) {
            assert_eq!(rate.to_bits(), f64::to_bits(peak), "step {step}");
        }
        assert_eq!(
            rate < peak,
            !(3..=39).contains(&step),
            "step {step}: {rate}"
        );
    }
    assert_eq!(setup.steps("longer")[0], 48);
}

#[test]
fn a_branch_decays_from_its_step_and_leaves_the_run_alone() {
    let setup = Setup::new(PLAIN);
    let every = ["log.every_steps=1"];
    train_well(&setup, "run", &every, &[]);
    let before = snapshot(&setup.run_dir("run"));
    train_well(&setup, "run", &every, &["--decay-from", "20"]);
    assert_eq!(snapshot(&setup.run_dir("run")), before);
    // The run decays from 32 to 40, so the branch does from 20 to 28.
    let branch = "run-decay-20";
    let tail = |name: &str, from: u64| -> Vec<f64> {
        let all = rates(&setup, name).into_iter();
        all.filter(|(step, _)| *step > from)
            .map(|(_, rate)| rate)
            .collect()
    };
    assert_eq!(tail(branch, 0).len(), 8);
    assert_eq!(tail(branch, 20), tail("run", 32));
    assert_eq!(setup.steps(branch), [28, 25]);
    // The same command continues the branch, or refuses to start it again.
    let again = train(&setup, "run", &every, &["--decay-from", "20"]);
    assert_refused(&again, 2, &["--resume"]);
    fs::remove_dir_all(setup.run_dir(branch).join("checkpoints/step-00000028")).unwrap();
    let message = train_well(&setup, "run", &every, &["--decay-from", "20", "--resume"]);
    assert!(
        message.contains("run-decay-20/checkpoints/step-00000025"),
        "{message}"
    );
    for (step, words) in [("21", "there are: 40, 35"), ("1", "warm-up")] {
        let code = if step == "1" { 2 } else { 4 };
        assert_refused(
            &train(&setup, "run", &every, &["--decay-from", step]),
            code,
            &[words],
        );
    }
    let flat = [&every[..], &["schedule.stable_ratio=0.95"]].concat();
    assert_refused(
        &train(&setup, "run", &flat, &["--decay-from", "20"]),
        2,
        &["no decay"],
    );
}

/// Every file below a folder with its content.
fn snapshot(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(snapshot(&path));
        } else {
            files.push((path.display().to_string(), fs::read(&path).unwrap()));
        }
    }
    files.sort();
    files
}

#[test]
fn a_checkpoint_folder_that_vanishes_or_becomes_a_file_never_ends_in_a_panic() {
    let setup = Setup::new(PLAIN);
    for (name, faults, code) in [("gone", "", 75), ("file", "x", 4)] {
        let config = setup.config(name);
        let mut command = lpr_train();
        command.args([
            "--config",
            &config,
            "--override",
            "train.total_steps=1000000",
        ]);
        command.args([
            "--override",
            "checkpoint.every_steps=1",
            "--override",
            "log.every_steps=1",
        ]);
        let child = command
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        let send = |signal| rustix::process::kill_process(pid, signal).unwrap();
        while setup.lines(name) < 6 {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        send(rustix::process::Signal::STOP);
        let checkpoints = setup.run_dir(name).join("checkpoints");
        fs::rename(&checkpoints, setup.run_dir(name).join("elsewhere")).unwrap();
        if !faults.is_empty() {
            fs::write(&checkpoints, faults).unwrap();
        }
        let lines = setup.lines(name);
        send(rustix::process::Signal::CONT);
        while setup.lines(name) < lines + 6 {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        send(rustix::process::Signal::TERM);
        let output = child.wait_with_output().unwrap();
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{name}: {message}");
        assert!(!message.contains("panicked"), "{message}");
        // A save that was in flight when its folder went may have failed, too.
        let told = message.contains("warning: cannot save step");
        assert!(code == 75 || told, "{message}");
        if code == 75 {
            assert!(setup.steps(name)[0] >= lines as u64);
        }
    }
}

#[test]
fn verify_resume_finds_the_same_bits() {
    let setup = Setup::new(Variant {
        router: "lpr",
        ..PLAIN
    });
    let config = setup.config("run");
    let output = run_well(&[
        "verify-resume",
        "--config",
        &config,
        "--at",
        "6",
        "--steps",
        "14",
        "--random-kills",
        "2",
        "--json",
    ]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["same"], true, "{report}");
    assert_eq!(report["checks"].as_array().unwrap().len(), 5);
    assert_eq!(report["kills"][0]["continued_from"], 3, "{report}");
    assert!(!setup.run_dir("run").exists());
    let left = fs::read_dir(setup.folder.path()).unwrap();
    let left = left.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(left.filter(|name| name.starts_with(".tmp")).count(), 0);
    for at in ["0", "14"] {
        let output = run(&[
            "verify-resume",
            "--config",
            &config,
            "--at",
            at,
            "--steps",
            "14",
        ]);
        assert_refused(&output, 2, &["--at"]);
    }
}

/// Text that changes between the two runs, under the same names and sizes, is the difference that it
/// has to find.
#[test]
fn verify_resume_finds_a_difference() {
    let setup = Setup::new(PLAIN);
    let config = setup.config("run");
    let mut command = lpr_train();
    command.args([
        "verify-resume",
        "--config",
        &config,
        "--at",
        "8",
        "--steps",
        "12",
    ]);
    let child = command
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let work = setup
        .folder
        .path()
        .join(format!(".tmp-{}-verify-run", child.id()));
    let straight = work.join("straight/checkpoints/step-00000012");
    while !straight.exists() {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    for shard in ["shard-0.jsonl", "shard-1.jsonl"] {
        let path = setup.folder.path().join(shard);
        let changed = fs::read_to_string(&path).unwrap().replace("mira", "arim");
        fs::write(&path, changed).unwrap();
    }
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let report = text(&output.stdout);
    assert!(report.contains("hash of the tokens   DIFFERS"), "{report}");
    assert!(work.exists(), "both runs are kept for inspection");
}
