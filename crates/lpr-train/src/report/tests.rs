use std::fs::{self, File};
use std::sync::{Arc, Mutex};

use super::*;
use crate::record::{BalanceRecord, DataRecord, EvalSummary};
use crate::stability::StabilityTotals;

fn step(step: u64) -> StepRecord {
    StepRecord {
        step,
        epoch: 0,
        tokens_seen: 10 * step,
        loss_ce: 5.25,
        loss_total: 5.5,
        aux: vec![("kl_loss".to_owned(), 0.25)],
        grad_norm: 1.5,
        lr: 1e-3,
        tok_s: 1234.4,
        data_wait_ms: 0.0,
        step_time_ms: 1.0,
        stability: StabilityTotals::default(),
        wall_time: 0.0,
        data: DataRecord::default(),
        balance: BalanceRecord {
            gini: 0.5,
            min_max_ratio: 0.125,
            dead_experts: 3,
            ..BalanceRecord::default()
        },
    }
}

fn evaluation(step: u64) -> EvalRecord {
    let eval = EvalSummary {
        loss: 2.0,
        loss_batch_mean: 2.0,
        perplexity: 7.389,
        tokens: 99,
        balance: BalanceRecord::default(),
    };
    EvalRecord {
        step,
        wall_time: 0.0,
        eval,
    }
}

/// A writer whose content can be read while somebody else owns it.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Shared {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("not poisoned").clone()).expect("text")
    }
}

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .lock()
            .expect("not poisoned")
            .extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A pipe that nobody reads.
struct Broken;

impl Write for Broken {
    fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Err(io::ErrorKind::BrokenPipe.into())
    }
}

fn tell_everything(reporter: &mut dyn Reporter) {
    reporter.message(Level::Debug, "detail");
    reporter.message(Level::Info, "started");
    reporter.message(Level::Warning, "careful");
    reporter.progress(1);
    reporter.step(&step(2));
    reporter.evaluation(&evaluation(2));
}

fn console_text(verbosity: Verbosity) -> String {
    let out = Shared::default();
    tell_everything(&mut Console::to(Box::new(out.clone()), verbosity, 0, 4));
    out.text()
}

#[test]
fn plain_lines_show_loss_speed_balance_and_time_left_without_control_codes() {
    let text = console_text(Verbosity::Normal);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..2], ["started", "warning: careful"]);
    let want = "step 2/4 loss 5.2500 total 5.5000 grad_norm 1.500 tok/s 1234 gini 0.500 min-max \
     0.125 dead 3 \
                lr 1.000e-3 eta 0s";
    assert_eq!(lines[2], want);
    assert!(
        lines[3].starts_with("evaluation at step 2: loss 2.0000 perplexity 7.39 tokens 99"),
        "{text}"
    );
    assert!(!text.contains('\u{1b}') && !text.contains('\r'), "{text:?}");
}

#[test]
fn quiet_shows_only_warnings_and_verbose_shows_details() {
    assert_eq!(console_text(Verbosity::Quiet), "warning: careful\n");
    assert!(console_text(Verbosity::Verbose).starts_with("detail\nstarted\n"));
}

#[test]
fn a_broken_pipe_is_ignored() {
    tell_everything(&mut Console::to(Box::new(Broken), Verbosity::Verbose, 0, 4));
}

#[test]
fn lengths_of_time_are_short() {
    let texts =
        [0, 59, 60, 3599, 3600, 90_000].map(|seconds| duration(Duration::from_secs(seconds)));
    assert_eq!(texts, ["0s", "59s", "1m00s", "59m59s", "1h00m", "25h00m"]);
}

#[test]
fn the_metrics_file_gets_one_object_per_record_and_the_log_gets_words() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let open = |name: &str| {
        File::options()
            .append(true)
            .create(true)
            .open(folder.path().join(name))
            .expect("opened")
    };
    let (metrics, log) = (
        JsonLines::new(folder.path().join("m"), open("m")),
        TextLog::new(open("l")),
    );
    tell_everything(&mut Reporters::new(vec![Box::new(metrics), Box::new(log)]));
    let text = fs::read_to_string(folder.path().join("m")).expect("readable");
    let lines: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("one object a line"))
        .collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["aux.kl_loss"], 0.25);
    assert_eq!(lines[1]["eval"]["tokens"], 99);
    let log = fs::read_to_string(folder.path().join("l")).expect("readable");
    assert_eq!(log.lines().count(), 5);
    assert!(
        log.contains("Z started\n") && log.contains("Z warning: careful\n"),
        "{log}"
    );
}

#[test]
fn a_file_that_cannot_be_written_gives_one_warning_to_the_others() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("m");
    fs::write(&path, "").expect("written");
    let read_only = File::open(&path).expect("opened");
    let out = Shared::default();
    let console = Console::to(Box::new(out.clone()), Verbosity::Quiet, 0, 4);
    let mut reporters = Reporters::new(vec![
        Box::new(JsonLines::new("m".into(), read_only)),
        Box::new(console),
    ]);
    for number in 1..4 {
        reporters.step(&step(number));
    }
    let text = out.text();
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(
        text.starts_with("warning: cannot write metrics.jsonl"),
        "{text}"
    );
}

#[test]
fn tokens_are_not_repeated_in_messages() {
    let token = format!("hf_{}", "AbCd".repeat(8));
    let out = Shared::default();
    Console::to(Box::new(out.clone()), Verbosity::Normal, 0, 1)
        .message(Level::Warning, &format!("bad {token}"));
    assert_eq!(out.text(), "warning: bad [hidden]\n");
}

#[test]
fn a_recording_keeps_what_it_was_told() {
    let mut recording = Recording::default();
    tell_everything(&mut recording);
    assert_eq!(
        (
            recording.steps.len(),
            recording.evaluations.len(),
            recording.messages.len()
        ),
        (1, 1, 3)
    );
    assert_eq!(recording.steps[0], step(2));
}
