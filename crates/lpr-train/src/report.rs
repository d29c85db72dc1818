//! Where records go: the terminal, `metrics.jsonl`, `log.txt`. Only this file writes to the
//! terminal.
//!
//! Reporting never stops a run: a closed pipe is ignored, and a file that cannot be written gives
//! one warning.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::config::hide_tokens;
use crate::expert_tokens::ExpertTokens;
use crate::record::{EvalRecord, StepRecord};
use crate::routing::trace::Trace;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

mod csv;
mod downloads;
mod files;
pub mod spark;
mod tensorboard;
#[cfg(test)]
mod tests;

pub use csv::{Csv, EVAL_FILE, TRAIN_FILE};
pub use downloads::Downloads;
pub use files::{ExpertTokensFile, JsonLines, TextLog, TraceFiles};
pub use tensorboard::{EVENTS_PREFIX, TensorBoard};

/// How much a message matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Only with `-v`.
    Debug,
    /// What happens.
    Info,
    /// What the user should look at.
    Warning,
}

/// How much the terminal shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verbosity {
    /// Warnings and errors.
    Quiet,
    /// Progress, too.
    #[default]
    Normal,
    /// Everything.
    Verbose,
}

impl Verbosity {
    fn shows(self, level: Level) -> bool {
        match self {
            Self::Quiet => level >= Level::Warning,
            Self::Normal => level >= Level::Info,
            Self::Verbose => true,
        }
    }
}

/// The place on the terminal where progress bars share the lines, if there is one.
#[derive(Clone, Default)]
pub struct Bars(Option<MultiProgress>);

impl Bars {
    /// Bars on stderr, if it is a terminal that can move them and they are wanted.
    pub fn stderr(verbosity: Verbosity) -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let visible = verbosity != Verbosity::Quiet && io::stderr().is_terminal() && !dumb;
        let target = || ProgressDrawTarget::stderr_with_hz(4);
        Self(visible.then(|| MultiProgress::with_draw_target(target())))
    }
}

/// Takes in what happens in a run.
pub trait Reporter {
    /// A step that is logged.
    fn step(&mut self, record: &StepRecord);

    /// An evaluation.
    fn evaluation(&mut self, record: &EvalRecord);

    /// What the experts took in the evaluation just told.
    fn expert_tokens(&mut self, _found: &ExpertTokens) {}

    /// What the routers chose in a step, or in the evaluation just told.
    fn routing(&mut self, _trace: &Trace) {}

    /// Anything else, in words.
    fn message(&mut self, level: Level, text: &str);

    /// A step was done, whether logged or not.
    fn progress(&mut self, _step: u64) {}

    /// The run went back to `step`; records of later steps no longer count.
    fn rewind(&mut self, _step: u64) {}

    /// Why writing failed, once.
    fn take_failure(&mut self) -> Option<String> {
        None
    }
}

/// Hands everything to several reporters, and the failure of one to the others.
#[derive(Default)]
pub struct Reporters {
    list: Vec<Box<dyn Reporter>>,
}

impl Reporters {
    /// All of `list`, in this order.
    pub fn new(list: Vec<Box<dyn Reporter>>) -> Self {
        Self { list }
    }

    fn each(&mut self, tell: impl Fn(&mut dyn Reporter)) {
        self.list
            .iter_mut()
            .for_each(|reporter| tell(reporter.as_mut()));
        let failures: Vec<String> = self
            .list
            .iter_mut()
            .filter_map(|reporter| reporter.take_failure())
            .collect();
        for failure in failures {
            self.list
                .iter_mut()
                .for_each(|reporter| reporter.message(Level::Warning, &failure));
        }
    }
}

impl Reporter for Reporters {
    fn step(&mut self, record: &StepRecord) {
        self.each(|reporter| reporter.step(record));
    }

    fn evaluation(&mut self, record: &EvalRecord) {
        self.each(|reporter| reporter.evaluation(record));
    }

    fn expert_tokens(&mut self, found: &ExpertTokens) {
        self.each(|reporter| reporter.expert_tokens(found));
    }

    fn routing(&mut self, trace: &Trace) {
        self.each(|reporter| reporter.routing(trace));
    }

    fn message(&mut self, level: Level, text: &str) {
        self.each(|reporter| reporter.message(level, text));
    }

    fn progress(&mut self, step: u64) {
        self.each(|reporter| reporter.progress(step));
    }

    fn rewind(&mut self, step: u64) {
        self.each(|reporter| reporter.rewind(step));
    }
}

/// The terminal: a progress bar where there is one, plain lines without control codes elsewhere.
pub struct Console {
    verbosity: Verbosity,
    out: Box<dyn Write + Send>,
    bar: Option<ProgressBar>,
    first_step: u64,
    total_steps: u64,
    start: Instant,
    shows_experts: bool,
}

impl Console {
    /// Reports on stderr the steps after `first_step` up to `total_steps`.
    pub fn stderr(verbosity: Verbosity, bars: &Bars, first_step: u64, total_steps: u64) -> Self {
        let bar = bars.0.as_ref().map(|bars| {
            let bar = bars.add(ProgressBar::new(total_steps));
            let style = ProgressStyle::with_template("[{bar:16}] {pos}/{len} eta {eta} {wide_msg}");
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.set_style(style.progress_chars("=> "));
            bar.set_position(first_step);
            bar.reset_eta();
            bar
        });
        let mut console = Self::to(Box::new(io::stderr()), verbosity, first_step, total_steps);
        console.bar = bar;
        console
    }

    /// Plain lines to any writer.
    pub fn to(
        out: Box<dyn Write + Send>,
        verbosity: Verbosity,
        first_step: u64,
        total_steps: u64,
    ) -> Self {
        Self {
            verbosity,
            out,
            bar: None,
            first_step,
            total_steps,
            start: Instant::now(),
            shows_experts: false,
        }
    }

    /// The same; with `shows_experts` a line of bars per layer follows each logged step.
    #[must_use]
    pub fn with_experts(mut self, shows_experts: bool) -> Self {
        self.shows_experts = shows_experts;
        self
    }

    fn line(&mut self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            // Nobody may be reading any more, which is no reason to stop training.
            None => drop(writeln!(self.out, "{text}")),
        }
    }

    fn eta(&self, step: u64) -> String {
        let done = step.saturating_sub(self.first_step);
        let left = self.total_steps.saturating_sub(step);
        let seconds = self.start.elapsed().as_secs_f64() / done.max(1) as f64 * left as f64;
        Duration::try_from_secs_f64(seconds).map_or_else(|_| "unknown".to_owned(), duration)
    }
}

impl Reporter for Console {
    fn step(&mut self, record: &StepRecord) {
        if let Some(bar) = &self.bar {
            bar.set_position(record.step);
            bar.set_message(bar_summary(record));
        } else if self.verbosity.shows(Level::Info) {
            let (step, total, eta) = (record.step, self.total_steps, self.eta(record.step));
            self.line(&format!(
                "step {step}/{total} {} lr {:.3e} eta {eta}",
                step_summary(record),
                record.lr
            ));
        }
        if self.shows_experts && self.verbosity.shows(Level::Info) {
            let layers = record.balance.layers.iter();
            let loads = layers.map(|layer| (&layer.counts[..], layer.gini, layer.min_max_ratio));
            for line in spark::layers(loads) {
                self.line(&line);
            }
        }
    }

    fn evaluation(&mut self, record: &EvalRecord) {
        if self.verbosity.shows(Level::Info) {
            self.line(&evaluation_summary(record));
        }
    }

    fn message(&mut self, level: Level, text: &str) {
        if self.verbosity.shows(level) {
            let prefix = if level == Level::Warning {
                "warning: "
            } else {
                ""
            };
            self.line(&hide_tokens(&format!("{prefix}{text}")));
        }
    }

    fn progress(&mut self, step: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(step);
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}

/// What fits beside a progress bar of 80 columns.
fn bar_summary(record: &StepRecord) -> String {
    let balance = &record.balance;
    format!(
        "loss {:.3} tok/s {:.0} gini {:.3} min-max {:.3}",
        record.loss_ce, record.tok_s, balance.gini, balance.min_max_ratio
    )
}

fn step_summary(record: &StepRecord) -> String {
    let balance = &record.balance;
    format!(
        "loss {:.4} total {:.4} grad_norm {:.3} tok/s {:.0} gini {:.3} min-max {:.3} dead {}",
        record.loss_ce,
        record.loss_total,
        record.grad_norm,
        record.tok_s,
        balance.gini,
        balance.min_max_ratio,
        balance.dead_experts
    )
}

fn evaluation_summary(record: &EvalRecord) -> String {
    let eval = &record.eval;
    format!(
        "evaluation at step {}: loss {:.4} perplexity {:.2} tokens {} gini {:.3} min-max {:.3} \
         dead {}",
        record.step,
        eval.loss,
        eval.perplexity,
        eval.tokens,
        eval.balance.gini,
        eval.balance.min_max_ratio,
        eval.balance.dead_experts
    )
}

fn duration(length: Duration) -> String {
    let seconds = length.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds}s"),
        (0, minutes, seconds) => format!("{minutes}m{seconds:02}s"),
        (hours, minutes, _) => format!("{hours}h{minutes:02}m"),
    }
}

/// Keeps everything in memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recording {
    /// The logged steps.
    pub steps: Vec<StepRecord>,
    /// The evaluations.
    pub evaluations: Vec<EvalRecord>,
    /// The messages.
    pub messages: Vec<(Level, String)>,
}

impl Reporter for Recording {
    fn step(&mut self, record: &StepRecord) {
        self.steps.push(record.clone());
    }

    fn evaluation(&mut self, record: &EvalRecord) {
        self.evaluations.push(record.clone());
    }

    fn message(&mut self, level: Level, text: &str) {
        self.messages.push((level, text.to_owned()));
    }
}

/// Writes the result of a command to stdout. A reader that has gone away is no error.
///
/// # Errors
/// If stdout cannot be written for another reason, for example a full disk.
pub fn print_result(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Writes a line to stderr, if anybody reads it.
pub fn print_line(text: &str) {
    let _ = writeln!(io::stderr(), "{}", hide_tokens(text));
}
