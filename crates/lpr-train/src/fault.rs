//! Faults on demand, so that tests and users can see what a crash, a full disk or a slow one does.
//!
//! `LPR_FAULT=save-rename:2` ends the process, as `kill -9` would, when it comes to rename a
//! checkpoint for the second time. In general `POINT:N[+][:ACTION]`, several separated by commas:
//! the action is taken the `N`-th time that the point is passed, counted from 1, and with `+` every
//! time from then on. Actions: `crash` (the default), `eio`, `enospc`, `denied` (the operation
//! fails that way without being tried), `delay=MS` (it starts so much later), `times=FACTOR` (a
//! number is multiplied; the only action where there is one). Without the variable a point costs
//! one load.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::ValueEnum;

use crate::error::TrainError;

/// The environment variable.
pub const VARIABLE: &str = "LPR_FAULT";

/// Where a fault can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Point {
    /// Opening the tokenizer.
    TokenizerOpen,
    /// Writing the owner into the lock file.
    LockWrite,
    /// Opening metrics.jsonl.
    MetricsOpen,
    /// Appending a line to metrics.jsonl.
    MetricsWrite,
    /// Appending a line to log.txt.
    LogWrite,
    /// Appending a row to a CSV file.
    CsvWrite,
    /// Appending to an event file of `TensorBoard`.
    EventsWrite,
    /// Writing a file of the routing trace.
    TraceWrite,
    /// Removing one that a resumed run makes again.
    TraceRemove,
    /// Writing a small file's temporary sibling: `latest`, the configuration, metrics to keep.
    ReplaceWrite,
    /// Making that sibling durable.
    ReplaceSync,
    /// Renaming it.
    ReplaceRename,
    /// Making the rename durable.
    ReplaceFolderSync,
    /// Making the temporary folder of a save.
    SaveBegin,
    /// Writing a file of a checkpoint.
    SaveFile,
    /// Making that file durable, after it was written.
    SaveSync,
    /// Writing the manifest.
    SaveManifest,
    /// Making the manifest durable.
    SaveManifestSync,
    /// Making the names in the temporary folder durable.
    SaveFolderSync,
    /// Renaming the temporary folder to the checkpoint's name.
    SaveRename,
    /// Making that name durable.
    SaveParentSync,
    /// Replacing `latest`.
    SaveLatest,
    /// Choosing the checkpoints that go.
    PruneList,
    /// Renaming a checkpoint that goes.
    PruneRename,
    /// Removing it.
    PruneRemove,
    /// Removing what a crash left.
    CleanRemove,
    /// Listing the checkpoints.
    OpenList,
    /// Reading a manifest.
    OpenManifest,
    /// Hashing a file of a checkpoint.
    OpenHash,
    /// Reading the state of a run.
    ReadState,
    /// Reading weights or the optimizer's averages.
    ReadTensors,
    /// Before the batches of a step are fetched.
    DataBatch,
    /// Before a micro-batch of a step.
    StepMicroBatch,
    /// The cross-entropy of a micro-batch, before the backward pass.
    StepLoss,
    /// The gradient of a norm.
    StepGradient,
    /// The gradients of one expert.
    StepExpertGradient,
    /// The learning rate of a step.
    StepLearningRate,
    /// One weight of an expert, after the update.
    StepWeight,
    /// Between the gradients and the update.
    StepUpdate,
    /// After a step.
    StepEnd,
    /// Before a batch of an evaluation.
    EvalBatch,
}

impl Point {
    /// Whether it is a number that can be spoiled, and nothing else.
    fn is_number(self) -> bool {
        matches!(
            self,
            Self::StepLoss
                | Self::StepGradient
                | Self::StepExpertGradient
                | Self::StepLearningRate
                | Self::StepWeight
        )
    }

    /// Whether an operation follows that may fail.
    fn can_fail(self) -> bool {
        !matches!(
            self,
            Self::TokenizerOpen
                | Self::DataBatch
                | Self::StepMicroBatch
                | Self::StepUpdate
                | Self::StepEnd
                | Self::EvalBatch
        )
    }

    /// The name in `LPR_FAULT`.
    pub fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Action {
    Crash,
    Fail(io::ErrorKind),
    Delay(Duration),
    Times(f64),
}

/// One entry of the variable.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Fault {
    point: Point,
    first: u64,
    repeats: bool,
    action: Action,
}

struct Plan {
    faults: Vec<Fault>,
    /// How often each point was passed, in the order of its variants.
    passed: Vec<AtomicU64>,
}

static PLAN: OnceLock<Plan> = OnceLock::new();

/// Reads `LPR_FAULT`. To be called once, before anything else.
///
/// # Errors
/// A point or an action that does not exist.
pub fn arm_from_environment() -> Result<(), TrainError> {
    let Some(text) = std::env::var_os(VARIABLE) else {
        return Ok(());
    };
    let faults = parse(&text.to_string_lossy()).map_err(TrainError::Usage)?;
    let passed = Point::value_variants().iter().map(|_| AtomicU64::new(0));
    let passed = passed.collect();
    PLAN.get_or_init(|| Plan { faults, passed });
    Ok(())
}

/// Passes a point.
///
/// # Errors
/// The one that was asked for.
pub fn at(point: Point) -> io::Result<()> {
    PLAN.get().map_or(Ok(()), |plan| plan.pass(point))
}

/// Passes a point where a number can be spoiled: what to multiply it by, if anything.
pub fn factor(point: Point) -> Option<f64> {
    let mut due = PLAN.get()?.due(point).into_iter();
    due.find_map(|action| match action {
        Action::Times(factor) => Some(factor),
        _ => None,
    })
}

/// Passes a point where nothing can fail.
pub fn reached(point: Point) {
    if let Some(plan) = PLAN.get() {
        // `parse` lets no failure through for these points.
        let _ = plan.pass(point);
    }
}

impl Plan {
    fn pass(&self, point: Point) -> io::Result<()> {
        let mut due = self.due(point).into_iter();
        due.try_for_each(|action| action.take(point))
    }

    /// Counts that a point is passed: what is to be done there this time.
    fn due(&self, point: Point) -> Vec<Action> {
        let count = 1 + self.passed[point as usize].fetch_add(1, Ordering::SeqCst);
        let is_due = |fault: &&Fault| {
            let late = fault.repeats && count > fault.first;
            fault.point == point && (count == fault.first || late)
        };
        let due = self.faults.iter().filter(is_due);
        due.map(|fault| fault.action).collect()
    }
}

impl Action {
    fn take(self, point: Point) -> io::Result<()> {
        match self {
            Self::Crash => crash(),
            // For `factor` alone.
            Self::Times(_) => Ok(()),
            Self::Delay(length) => {
                std::thread::sleep(length);
                Ok(())
            }
            Self::Fail(kind) => {
                let text = format!("{kind} ({VARIABLE} at {})", point.name());
                Err(io::Error::new(kind, text))
            }
        }
    }
}

/// Ends the process without any clean-up.
fn crash() -> ! {
    #[cfg(unix)]
    {
        use rustix::process::{Signal, getpid, kill_process};
        // If it fails, there is still the abort.
        let _ = kill_process(getpid(), Signal::KILL);
    }
    std::process::abort()
}

fn parse(text: &str) -> Result<Vec<Fault>, String> {
    text.split(',')
        .map(|entry| parse_one(entry.trim()))
        .collect()
}

fn parse_one(entry: &str) -> Result<Fault, String> {
    let wrong = |what: &str| {
        format!(
            "{VARIABLE}: `{entry}` {what}; the form is POINT:N[+][:ACTION], see docs/reliability.md"
        )
    };
    let mut parts = entry.splitn(3, ':');
    let name = parts.next().unwrap_or_default();
    let point = Point::from_str(name, false).map_err(|_| {
        let known: Vec<String> = Point::value_variants().iter().map(|p| p.name()).collect();
        wrong(&format!("names no point; there are {}", known.join(", ")))
    })?;
    let count = parts.next().unwrap_or_default();
    let (digits, repeats) = match count.strip_suffix('+') {
        Some(digits) => (digits, true),
        None => (count, false),
    };
    let first = digits.parse().ok().filter(|&first: &u64| first > 0);
    let first = first.ok_or_else(|| wrong("has no number from 1 on behind the point"))?;
    let action = parse_action(parts.next().unwrap_or("crash")).ok_or_else(|| {
        wrong("names no action; there are crash, eio, enospc, denied, delay=MS, times=FACTOR")
    })?;
    match action {
        Action::Fail(_) if !point.can_fail() => Err(wrong(
            "asks for a failure where only crash and delay can be had",
        )),
        Action::Times(_) if !point.is_number() => {
            Err(wrong("asks for a factor where no number is"))
        }
        Action::Crash | Action::Delay(_) | Action::Fail(_) if point.is_number() => {
            Err(wrong("needs the action times=FACTOR"))
        }
        _ => Ok(Fault {
            point,
            first,
            repeats,
            action,
        }),
    }
}

fn parse_action(text: &str) -> Option<Action> {
    Some(match text {
        "crash" => Action::Crash,
        "eio" => Action::Fail(io::ErrorKind::Other),
        "enospc" => Action::Fail(io::ErrorKind::StorageFull),
        "denied" => Action::Fail(io::ErrorKind::PermissionDenied),
        _ => match text.strip_prefix("delay=") {
            Some(length) => Action::Delay(Duration::from_millis(length.parse().ok()?)),
            None => Action::Times(text.strip_prefix("times=")?.parse().ok()?),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_understood() {
        let faults = parse("save-rename:2, metrics-write:1+:enospc,data-batch:3:delay=20");
        let fault = |point, first, repeats, action| Fault {
            point,
            first,
            repeats,
            action,
        };
        let full = Action::Fail(io::ErrorKind::StorageFull);
        let late = Action::Delay(Duration::from_millis(20));
        let want = vec![
            fault(Point::SaveRename, 2, false, Action::Crash),
            fault(Point::MetricsWrite, 1, true, full),
            fault(Point::DataBatch, 3, false, late),
        ];
        assert_eq!(faults, Ok(want));
    }

    #[test]
    fn what_does_not_exist_is_refused_with_what_does() {
        for (entry, needle) in [
            ("save-renam:1", "save-rename,"),
            ("save-rename", "number"),
            ("save-rename:0", "number"),
            ("save-rename:x", "number"),
            ("save-rename:1:explode", "enospc"),
            ("save-rename:1:delay=x", "delay=MS"),
            ("save-rename:1:times=2", "no number"),
            ("step-loss:1", "times=FACTOR"),
            ("step-loss:1:times=", "times=FACTOR"),
            ("step-end:1:eio", "only crash and delay"),
            ("", "names no point"),
        ] {
            let error = parse(entry).expect_err("refused");
            assert!(error.contains(needle), "{entry}: {error}");
        }
    }

    #[test]
    fn a_fault_happens_at_its_count_and_only_then() {
        let plan = |text: &str| Plan {
            faults: parse(text).expect("valid"),
            passed: Point::value_variants()
                .iter()
                .map(|_| AtomicU64::new(0))
                .collect(),
        };
        let failures = |plan: &Plan| -> Vec<bool> {
            let pass = || plan.pass(Point::SaveFile).is_err();
            (0..4).map(|_| pass()).collect()
        };
        let second = plan("save-file:2:eio,save-sync:1:eio");
        assert_eq!(failures(&second), [false, true, false, false]);
        let from_third = plan("save-file:3+:denied");
        assert_eq!(failures(&from_third), [false, false, true, true]);
    }
}
