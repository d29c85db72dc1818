//! Requests to stop, to save and go on, and terminals that go away.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use support::{Setup, Variant, lpr_train, run, run_well, text};

const PLAIN: Variant = Variant {
    router: "softmax_topk",
    packing: "packed",
    accumulation: 1,
};

/// Starts a run that reports every step.
fn start(setup: &Setup, name: &str, fault: &str, more: &[&str]) -> Child {
    let config = setup.config(name);
    let mut command = lpr_train();
    command.args(["-q", "--config", &config, "--override", "log.every_steps=1"]);
    command.args(more.iter().flat_map(|text| ["--override", text]));
    if !fault.is_empty() {
        command.env("LPR_FAULT", fault);
    }
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.spawn().unwrap()
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_mins(2);
    while !done() {
        assert!(Instant::now() < deadline, "{what} takes too long");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Until `metrics.jsonl` has a line of `step`.
fn wait_for_step(setup: &Setup, name: &str, step: u64) {
    let path = setup.run_dir(name).join("metrics.jsonl");
    let line = format!("{{\"step\":{step},");
    wait_until("the step", || {
        fs::read_to_string(&path).is_ok_and(|text| text.contains(&line))
    });
}

/// Until the process catches SIGTERM.
fn wait_for_handlers(child: &Child) {
    let path = format!("/proc/{}/status", child.id());
    let term = 1_u64 << (Signal::TERM.as_raw() - 1);
    wait_until("the start", || {
        let status = fs::read_to_string(&path).unwrap_or_default();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        caught.is_some_and(|mask| u64::from_str_radix(mask.trim(), 16).unwrap() & term != 0)
    });
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

fn code(mut child: Child) -> Option<i32> {
    let mut status = None;
    wait_until("the end", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap().code()
}

/// Continues a run to its end and compares it with one that was never stopped.
fn assert_goes_on(setup: &Setup, name: &str) {
    if !setup.run_dir("whole").exists() {
        let config = setup.config("whole");
        run_well(&["-q", "--config", &config, "--override", "log.every_steps=1"]);
    }
    let config = setup.config(name);
    run_well(&[
        "-q",
        "--resume",
        "--config",
        &config,
        "--override",
        "log.every_steps=1",
    ]);
    for file in ["model.safetensors", "optimizer.safetensors"] {
        assert!(
            setup.file("whole", 40, file) == setup.file(name, 40, file),
            "{name}: {file}"
        );
    }
    assert_eq!(setup.metrics("whole"), setup.metrics(name), "{name}");
}

#[test]
fn a_stop_in_any_phase_saves_once_and_exits_with_75() {
    let setup = Setup::new(PLAIN);
    // (phase, fault that prolongs it, where it stops)
    let phases = [
        ("tokenizer", "tokenizer-open:1:delay=600", 0, 0),
        ("evaluation", "eval-batch:5+:delay=400", 10, 10),
        ("step", "step-update:8:delay=400", 7, 7),
        ("save", "save-file:1+:delay=300", 6, 6),
    ];
    for (index, (phase, fault, step, earliest)) in phases.into_iter().enumerate() {
        let child = start(&setup, phase, fault, &["checkpoint.every_steps=6"]);
        if step == 0 {
            wait_for_handlers(&child);
        } else {
            wait_for_step(&setup, phase, step);
        }
        send(
            &child,
            if index % 2 == 0 {
                Signal::TERM
            } else {
                Signal::INT
            },
        );
        assert_eq!(code(child), Some(75), "{phase}");
        let steps = setup.steps(phase);
        assert!(steps[0] >= earliest && steps[0] < 40, "{phase}: {steps:?}");
        assert_eq!(setup.leftovers(phase), Vec::<String>::new(), "{phase}");
        assert_goes_on(&setup, phase);
    }
}

#[test]
fn a_stop_between_two_micro_batches_does_not_wait_for_the_others() {
    let variant = Variant {
        accumulation: 4,
        ..PLAIN
    };
    let setup = Setup::new(variant);
    // The second micro-batch of step 8.
    let child = start(&setup, "run", "step-micro-batch:30+:delay=700", &[]);
    wait_for_step(&setup, "run", 7);
    send(&child, Signal::TERM);
    assert_eq!(code(child), Some(75));
    assert_eq!(setup.steps("run")[0], 7, "step 8 was begun and given up");
    assert_goes_on(&setup, "run");
}

#[test]
fn a_stop_while_data_is_waited_for_does_not_wait() {
    let setup = Setup::new(PLAIN);
    let pipe = setup.folder.path().join("pipe");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    // Held open for writing, so that it never ends.
    let _writer = File::options().read(true).write(true).open(&pipe).unwrap();
    let keys = [
        "train.total_steps=1000000",
        "data.validation=[]",
        "eval.at_start=false",
        "eval.every_steps=0",
    ];
    let child = start(&setup, "run", "", &keys);
    wait_for_step(&setup, "run", 1);
    // The next pass over the data waits for what the pipe never says.
    fs::rename(&pipe, setup.folder.path().join("shard-0.jsonl")).unwrap();
    let mut lines = 0;
    wait_until("the end of the data", || {
        std::thread::sleep(Duration::from_secs(1));
        let before = std::mem::replace(&mut lines, setup.lines("run"));
        before == lines
    });
    send(&child, Signal::TERM);
    assert_eq!(code(child), Some(75));
    assert_eq!(setup.steps("run")[0], lines as u64);
}

#[test]
fn a_second_signal_ends_even_a_save_at_once() {
    let setup = Setup::new(PLAIN);
    for (signal, expected) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let name = format!("run{expected}");
        let slow = "save-file:5+:delay=600000";
        let child = start(&setup, &name, slow, &["train.total_steps=1000000"]);
        wait_for_step(&setup, &name, 12);
        send(&child, signal);
        // The first is served before the second is sent, else both might count as the first.
        wait_until("the first signal", || {
            let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
            status
                .lines()
                .filter(|line| line.starts_with("ShdPnd:"))
                .all(|line| line.ends_with('0'))
        });
        std::thread::sleep(Duration::from_millis(100));
        send(&child, signal);
        assert_eq!(code(child), Some(expected));
        assert_eq!(
            setup.steps(&name),
            [5],
            "the one that was being written is not there"
        );
        assert_eq!(setup.leftovers(&name).len(), 1);
    }
    let config = setup.config("run143");
    run_well(&["-q", "--resume", "--config", &config]);
    assert_eq!(setup.leftovers("run143"), Vec::<String>::new());
}

#[test]
fn a_checkpoint_on_request_and_the_run_goes_on() {
    let setup = Setup::new(PLAIN);
    let pause = "step-end:7:delay=1500,step-end:13:delay=1500";
    let child = start(&setup, "run", pause, &["checkpoint.every_steps=0"]);
    wait_for_step(&setup, "run", 7);
    send(&child, Signal::USR1);
    wait_for_step(&setup, "run", 13);
    let file = setup.run_dir("run").join("save-now");
    fs::write(&file, "").unwrap();
    assert_eq!(code(child), Some(0));
    assert_eq!(setup.steps("run"), [40, 13, 7]);
    assert!(!file.exists());
}

/// A terminal that hangs up, and readers that leave.
#[test]
fn training_does_not_need_a_terminal() {
    let setup = Setup::new(PLAIN);
    let config = setup.config("run");
    let mut command = lpr_train();
    command.args(["-v", "--config", &config, "--override", "log.every_steps=1"]);
    command
        .env("TERM", "dumb")
        .env("LPR_FAULT", "step-end:3:delay=800");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    drop(child.stderr.take());
    wait_for_step(&setup, "run", 3);
    send(&child, Signal::HUP);
    assert_eq!(code(child), Some(0));
    assert_eq!(setup.steps("run")[0], 40);
}

#[test]
fn without_a_terminal_there_are_plain_lines() {
    let setup = Setup::new(PLAIN);
    let config = setup.config("run");
    let output = run(&["--config", &config]);
    for bytes in [&output.stdout, &output.stderr] {
        let plain = |byte: &u8| !byte.is_ascii_control() || *byte == b'\n';
        assert!(bytes.iter().all(plain), "{}", text(bytes));
    }
    assert!(
        text(&output.stderr).contains("step 39/40"),
        "{}",
        text(&output.stderr)
    );
}

/// A real terminal of 20 columns, made by script(1).
#[test]
fn a_terminal_of_20_columns_is_no_problem() {
    let setup = Setup::new(PLAIN);
    let config = setup.config("run");
    let program = Path::new(env!("CARGO_BIN_EXE_lpr-train"));
    let line = format!(
        "stty cols 20 rows 5; exec {} --config {config}",
        program.display()
    );
    let mut command = Command::new("script");
    command
        .args(["-q", "-e", "-c", &line, "/dev/null"])
        .env("TERM", "xterm");
    let output = command
        .stdin(Stdio::null())
        .env_remove("LPR_DEVICE")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stdout));
    assert_eq!(setup.steps("run")[0], 40);
    assert!(
        !text(&output.stdout).contains("panicked"),
        "{}",
        text(&output.stdout)
    );
}
