//! Crashes, full disks and damaged files at every boundary, by `LPR_FAULT` and by real ones.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::{Output, Stdio};

use support::{Setup, Variant, lpr_train, run, run_well, text};

const LPR: Variant = Variant {
    router: "lpr",
    packing: "packed",
    accumulation: 1,
};
/// Steps of a run in here.
const STEPS: u64 = 12;

/// Makes the run of `support` short.
fn args<'a>(config: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let short = [
        "train.total_steps=12",
        "checkpoint.every_steps=3",
        "checkpoint.keep_last=2",
        "eval.every_steps=6",
        "eval.at_start=false",
    ];
    let mut args = vec!["--config", config];
    args.extend(
        short
            .iter()
            .chain(more)
            .flat_map(|text| ["--override", text]),
    );
    args
}

/// Starts the run `name` with a fault.
fn with_fault(setup: &Setup, name: &str, fault: &str, more: &[&str]) -> Output {
    let config = setup.config(name);
    let mut command = lpr_train();
    command.args(args(&config, more)).env("LPR_FAULT", fault);
    command.output().unwrap()
}

fn resume(setup: &Setup, name: &str) -> Output {
    let config = setup.config(name);
    run(&[&["--resume"], &args(&config, &[])[..]].concat())
}

fn whole(setup: &Setup) {
    let config = setup.config("whole");
    run_well(&args(&config, &[]));
    assert_eq!(setup.steps("whole"), [12, 9]);
}

/// Every place where a save, a removal of old checkpoints or a step can be cut short; the number is
/// such that there is an older checkpoint.
const CRASHES: [&str; 23] = [
    "save-begin:2",
    "save-file:4",
    "save-file:5",
    "save-sync:4",
    "save-manifest:2",
    "save-manifest-sync:2",
    "save-folder-sync:2",
    "save-rename:2",
    "save-parent-sync:2",
    "save-latest:2",
    "replace-write:5",
    "replace-sync:5",
    "replace-rename:5",
    "replace-folder-sync:5",
    "prune-list:2",
    "prune-rename:1",
    "prune-remove:1",
    "open-manifest:2",
    "open-hash:6",
    "step-update:8",
    "step-end:8",
    "eval-batch:2",
    "metrics-write:3",
];

#[test]
fn a_crash_at_any_boundary_loses_nothing() {
    let setup = Setup::new(LPR);
    whole(&setup);
    for crash in CRASHES {
        let name = crash.replace(':', "-");
        let output = with_fault(&setup, &name, crash, &[]);
        assert_eq!(
            output.status.code(),
            None,
            "{crash}: {}",
            text(&output.stderr)
        );
        let output = resume(&setup, &name);
        assert!(output.status.success(), "{crash}: {}", text(&output.stderr));
        setup.assert_same_at("whole", &name, STEPS);
        assert_eq!(setup.steps(&name), [12, 9], "{crash}");
        assert_eq!(setup.leftovers(&name), Vec::<String>::new(), "{crash}");
    }
}

#[test]
fn a_crash_while_resuming_or_cleaning_up_loses_nothing() {
    let setup = Setup::new(LPR);
    whole(&setup);
    let name = "crashed";
    // Leaves a temporary folder, which the next start is to remove.
    assert_eq!(
        with_fault(&setup, name, "save-rename:3", &[]).status.code(),
        None
    );
    // Beside it there may be a file that the loop was about to replace.
    assert!(!setup.leftovers(name).is_empty());
    for crash in [
        "lock-write:1",
        "clean-remove:1",
        "open-list:2",
        "open-manifest:1",
        "open-hash:2",
        "read-state:1",
        "read-tensors:2",
        "replace-rename:1",
        "metrics-open:1",
        "replace-sync:2",
        "data-batch:1",
    ] {
        let config = setup.config(name);
        let mut command = lpr_train();
        command
            .arg("--resume")
            .args(args(&config, &[]))
            .env("LPR_FAULT", crash);
        let output = command.output().unwrap();
        assert_eq!(
            output.status.code(),
            None,
            "{crash}: {}",
            text(&output.stderr)
        );
    }
    assert!(resume(&setup, name).status.success());
    setup.assert_same_at("whole", name, STEPS);
    assert_eq!(setup.leftovers(name), Vec::<String>::new());
}

#[test]
fn a_save_that_fails_is_told_and_training_goes_on() {
    let setup = Setup::new(LPR);
    whole(&setup);
    for fault in [
        "save-begin:2:enospc",
        "save-file:5:enospc",
        "save-sync:6:eio",
        "save-file:7:eio",
        "save-manifest:2:enospc",
        "save-rename:2:denied",
        "save-latest:2:enospc",
        "replace-sync:5:eio",
    ] {
        let name = fault.replace(':', "-");
        let output = with_fault(&setup, &name, fault, &[]);
        let message = text(&output.stderr);
        assert!(output.status.success(), "{fault}: {message}");
        let told = message.matches("warning: cannot save step 6").count();
        assert_eq!(told, 1, "{fault}: {message}");
        assert!(
            message.contains("LPR_FAULT at"),
            "the cause is named: {message}"
        );
        setup.assert_same_at("whole", &name, STEPS);
        assert_eq!(setup.leftovers(&name), Vec::<String>::new(), "{fault}");
    }
}

#[test]
fn a_last_save_that_fails_exits_4_and_the_older_checkpoints_stay() {
    let setup = Setup::new(LPR);
    whole(&setup);
    let output = with_fault(&setup, "full", "save-file:9+:enospc", &[]);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{message}");
    for words in ["cannot save step 9", "error: cannot use", "step-00000012"] {
        assert!(message.contains(words), "{words} in {message}");
    }
    assert_eq!(setup.steps("full"), [6, 3]);
    assert_eq!(setup.leftovers("full"), Vec::<String>::new());
    assert!(resume(&setup, "full").status.success());
    setup.assert_same_at("whole", "full", STEPS);
}

/// A limit of the system on the size of files stands for the full disk, so that nothing is made up.
#[cfg(unix)]
#[test]
fn a_real_write_error_is_survived_like_a_made_up_one() {
    let setup = Setup::new(LPR);
    whole(&setup);
    let config = setup.config("limited");
    // 4 KiB, less than the weights; the signal that goes with the limit is ignored.
    let script = "trap '' XFSZ; ulimit -f 8; exec \"$0\" \"$@\"";
    let mut command = std::process::Command::new("sh");
    command.args(["-c", script, env!("CARGO_BIN_EXE_lpr-train")]);
    let output = command.args(args(&config, &[])).output().unwrap();
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{message}");
    for words in [
        "cannot save step 3",
        "cannot save step 9",
        "model.safetensors",
    ] {
        assert!(message.contains(words), "{words} in {message}");
    }
    let once = message.matches("cannot write metrics.jsonl").count();
    assert_eq!(once, 1, "{message}");
    assert_eq!(setup.steps("limited"), Vec::<u64>::new());
    assert_eq!(setup.leftovers("limited"), Vec::<String>::new());
    assert!(resume(&setup, "limited").status.success());
    setup.assert_same_at("whole", "limited", STEPS);
}

#[test]
fn metrics_and_log_that_cannot_be_written_give_one_warning_each() {
    let setup = Setup::new(LPR);
    whole(&setup);
    let fault = "metrics-write:2+:enospc,log-write:3+:eio";
    let output = with_fault(&setup, "mute", fault, &[]);
    let message = text(&output.stderr);
    assert!(output.status.success(), "{message}");
    for file in ["metrics.jsonl", "log.txt"] {
        let told = message.matches(&format!("cannot write {file}")).count();
        assert_eq!(told, 1, "{file}: {message}");
    }
    let weights = |name: &str| setup.file(name, STEPS, "model.safetensors");
    assert!(weights("mute") == weights("whole"));
    assert_eq!(setup.metrics("mute"), setup.metrics("whole")[..1]);
}

#[test]
fn an_unknown_fault_is_refused_before_anything_is_begun() {
    let setup = Setup::new(LPR);
    for fault in ["save-renam:1", "save-rename:1:explode", "save-rename"] {
        let output = with_fault(&setup, "run", fault, &[]);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{fault}: {message}");
        assert!(message.contains("LPR_FAULT"), "{message}");
        assert!(!setup.run_dir("run").exists());
    }
}

/// The file, a word of the message, and what is done to the file.
type Damage<'a> = (&'a str, &'a str, Box<dyn Fn(PathBuf) + 'a>);

/// Damages the newest checkpoint of a finished run in every way: the next start warns and goes on
/// from the one before; named explicitly, it is refused.
#[test]
fn a_damaged_checkpoint_is_found_before_it_is_used() {
    let setup = Setup::new(LPR);
    whole(&setup);
    let flip = |path: PathBuf| {
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).unwrap();
    };
    let cut = |path: PathBuf, length: u64| {
        fs::File::options()
            .write(true)
            .open(path)
            .unwrap()
            .set_len(length)
            .unwrap();
    };
    let damages: Vec<Damage<'_>> = vec![
        ("model.safetensors", "SHA-256", Box::new(flip)),
        ("optimizer.safetensors", "SHA-256", Box::new(flip)),
        ("state.json", "SHA-256", Box::new(flip)),
        (
            "model.safetensors",
            "has 100 bytes",
            Box::new(|path| cut(path, 100)),
        ),
        (
            "optimizer.safetensors",
            "has 0 bytes",
            Box::new(|path| cut(path, 0)),
        ),
        (
            "state.json",
            "is missing",
            Box::new(|path| fs::remove_file(path).unwrap()),
        ),
        (
            "extra.bin",
            "not listed",
            Box::new(|path| fs::write(path, "x").unwrap()),
        ),
        (
            "manifest.json",
            "is missing",
            Box::new(|path| fs::remove_file(path).unwrap()),
        ),
        (
            "manifest.json",
            "incomplete or damaged",
            Box::new(|path| cut(path, 80)),
        ),
    ];
    for (file, why, damage) in damages {
        let (name, step) = ("damaged", 9);
        let _ = fs::remove_dir_all(setup.run_dir(name));
        setup.copy_at("whole", name, 9);
        setup.copy_at("whole", name, 12);
        damage(
            setup
                .run_dir(name)
                .join("checkpoints/step-00000012")
                .join(file),
        );
        let config = setup.config(name);
        let newest = setup.run_dir(name).join("checkpoints/step-00000012");
        let explicit = format!("--resume={}", newest.display());
        let output = run(&[&[explicit.as_str()], &args(&config, &[])[..]].concat());
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{file}: {message}");
        assert!(message.contains(file) && message.contains(why), "{message}");
        let output = resume(&setup, name);
        let message = text(&output.stderr);
        assert!(output.status.success(), "{file}: {message}");
        let warned = message.contains("warning: skipped step-00000012") && message.contains(why);
        assert!(
            warned && message.contains(&format!("step-{step:08}")),
            "{message}"
        );
        setup.assert_same_at("whole", name, STEPS);
    }
}

#[test]
fn a_checkpoint_of_a_later_version_stops_everything_and_stays() {
    let setup = Setup::new(LPR);
    whole(&setup);
    let newest = setup.run_dir("whole").join("checkpoints/step-00000012");
    let manifest = newest.join("manifest.json");
    let later = fs::read_to_string(&manifest).unwrap();
    let later = later.replace("\"format_version\": 1", "\"format_version\": 9");
    let later = later.replace(env!("CARGO_PKG_VERSION"), "9.9.9");
    fs::write(&manifest, &later).unwrap();
    let metrics = setup.metrics("whole");
    let output = resume(&setup, "whole");
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{message}");
    for words in ["format version 9", "lpr-train 9.9.9 or newer"] {
        assert!(message.contains(words), "{words} in {message}");
    }
    assert_eq!(fs::read_to_string(&manifest).unwrap(), later);
    assert_eq!(setup.metrics("whole"), metrics);
}

#[test]
fn a_run_folder_has_one_owner_and_a_dead_one_does_not_count() {
    let setup = Setup::new(LPR);
    let config = setup.config("run");
    let mut command = lpr_train();
    command.args(args(&config, &["log.every_steps=1"]));
    let mut child = command
        .env("LPR_FAULT", "step-end:4:delay=600000")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while setup.lines("run") < 4 {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let output = resume(&setup, "run");
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    let host = lpr_train::process::host_name();
    for words in [&format!("process {}", child.id()), &host] {
        assert!(message.contains(words.as_str()), "{words} in {message}");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let output = resume(&setup, "run");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(setup.steps("run"), [12, 9]);
}
