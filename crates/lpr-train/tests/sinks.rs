//! CSV and event files next to `metrics.jsonl`, also after a resume; `watch`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use support::{Setup, Variant, lpr_train, run, run_well, text};

const VANILLA: Variant = Variant {
    router: "softmax_topk",
    packing: "packed",
    accumulation: 1,
};
const SINKS: [&str; 2] = ["--override", "log.sinks=[\"tensorboard\", \"csv\"]"];

fn event_files(run: &Path) -> Vec<PathBuf> {
    let paths = std::fs::read_dir(run)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let is_events = |path: &PathBuf| path.display().to_string().contains("events.out.tfevents.");
    let mut paths: Vec<PathBuf> = paths.filter(is_events).collect();
    paths.sort();
    paths
}

/// The steps of the summaries of an event file. A frame is a length, a checksum, the message and
/// a checksum; a message has the time, the step, and a summary as field 5.
fn summary_steps(path: &Path) -> Vec<u8> {
    let bytes = std::fs::read(path).unwrap();
    let (mut rest, mut steps) = (&bytes[..], Vec::new());
    while !rest.is_empty() {
        let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        let message = &rest[12..12 + length];
        assert_eq!((message[0], message[9]), (0x09, 0x10), "time and step");
        assert!(message[10] < 0x80, "a step of one byte");
        if message[11] == 0x2a {
            steps.push(message[10]);
        }
        rest = &rest[16 + length..];
    }
    steps
}

/// The columns that are the same in every run of a config.
fn rows(path: &Path) -> Vec<Vec<String>> {
    let csv = std::fs::read_to_string(path).unwrap();
    let split = |line: &str| line.split(',').map(str::to_owned).collect::<Vec<String>>();
    let head = split(csv.lines().next().unwrap());
    let is_timing = |name: &String| name == "wall_time" || name.starts_with("speed/");
    let keep = |row: Vec<String>| {
        assert_eq!(row.len(), head.len());
        let cells = row.into_iter().zip(&head);
        cells
            .filter(|(_, name)| !is_timing(name))
            .map(|(cell, _)| cell)
            .collect()
    };
    csv.lines().map(split).map(keep).collect()
}

#[test]
fn csv_and_event_files_go_on_after_a_resume_as_if_nothing_had_happened() {
    let setup = Setup::new(VANILLA);
    run_well(&[&["-q", "--config", &setup.config("whole")], &SINKS[..]].concat());
    let whole = setup.run_dir("whole");
    let files = event_files(&whole);
    assert_eq!(files.len(), 1);
    let metrics = std::fs::read_to_string(whole.join("metrics.jsonl")).unwrap();
    let step = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        u8::try_from(line["step"].as_u64().unwrap()).unwrap()
    };
    let steps: Vec<u8> = metrics.lines().map(step).collect();
    assert_eq!(summary_steps(&files[0]), steps);
    assert_eq!(rows(&whole.join("train.csv")).len(), 1 + 14);
    assert_eq!(rows(&whole.join("eval.csv")).len(), 1 + 5);

    // A crash long after the checkpoint of step 20, in the middle of writing.
    setup.copy_at("whole", "two", 20);
    let two = setup.run_dir("two");
    for name in ["train.csv", "eval.csv"] {
        let mut content = std::fs::read(whole.join(name)).unwrap();
        content.extend(b"41,half a li");
        std::fs::write(two.join(name), content).unwrap();
    }
    let mut events = std::fs::read(&files[0]).unwrap();
    events.truncate(events.len() - 5);
    std::fs::write(two.join(files[0].file_name().unwrap()), events).unwrap();
    run_well(
        &[
            &["-q", "--resume", "--config", &setup.config("two")],
            &SINKS[..],
        ]
        .concat(),
    );
    for name in ["train.csv", "eval.csv"] {
        assert_eq!(rows(&two.join(name)), rows(&whole.join(name)), "{name}");
    }
    let resumed = event_files(&two);
    let found: Vec<u8> = resumed
        .iter()
        .flat_map(|path| summary_steps(path))
        .collect();
    assert_eq!((resumed.len(), found), (2, steps));
}

#[test]
fn no_sink_means_no_file_and_an_unknown_one_is_refused() {
    let setup = Setup::new(VANILLA);
    let config = setup.config("none");
    run_well(&["-q", "--config", &config, "--override", "log.sinks=[]"]);
    assert!(event_files(&setup.run_dir("none")).is_empty());
    assert!(!setup.run_dir("none").join("train.csv").exists());
    let refused = run(&[
        "--config",
        &setup.config("x"),
        "--override",
        "log.sinks=[\"wandb\"]",
    ]);
    assert_eq!(refused.status.code(), Some(2));
    let told = text(&refused.stderr);
    assert!(
        told.contains("log.sinks") && told.contains("\"tensorboard\""),
        "{told}"
    );
}

#[test]
fn bars_are_shown_on_request_and_watch_ends_with_the_run() {
    let setup = Setup::new(VANILLA);
    let config = setup.config("one");
    let mut training = lpr_train()
        .args(["--watch", "--config", &config])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let folder = setup.run_dir("one");
    let start = Instant::now();
    while std::fs::metadata(folder.join("lock")).map_or(0, |lock| lock.len()) < 512 {
        assert!(
            start.elapsed() < Duration::from_mins(1),
            "the run does not start"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    // Returns only because the run ends.
    let path = folder.display().to_string();
    let watched = run(&["watch", &path]);
    assert!(training.try_wait().unwrap().is_some() || folder.join("report.html").exists());
    let output = training.wait_with_output().unwrap();
    let told = text(&output.stderr);
    assert!(output.status.success(), "{told}");
    assert_eq!(told.matches("\n  layer 0").count(), 14, "{told}");
    let watched_text = text(&watched.stdout);
    assert!(watched.status.success(), "{}", text(&watched.stderr));
    assert!(
        watched_text.contains("evaluation at step 40"),
        "{watched_text}"
    );
    assert!(watched_text.contains("\n  layer 1   "), "{watched_text}");
    // Of a run that has ended only the newest record is shown.
    let after = text(&run_well(&["watch", &path]).stdout);
    assert!(
        after.starts_with("evaluation at step 40") && after.lines().count() == 3,
        "{after}"
    );
    let nothing = run(&["watch", &setup.folder.path().display().to_string()]);
    assert_eq!(nothing.status.code(), Some(2));
}
