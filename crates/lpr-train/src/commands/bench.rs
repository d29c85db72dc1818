//! `lpr-train bench`

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use lpr_kernels::devices::gpu_name;
use lpr_kernels::profile::SpanTime;
use lpr_model::CausalLm;
use lpr_model::estimate::estimate;
use lpr_model::hugging_face::from_hugging_face;
use lpr_model::parameters::{parameter_shapes, with_parameter_values};
use serde::Serialize;

use super::print_findings;
use crate::bench::{self, Mode, Plan, Timing, shape};
use crate::cli::BenchArgs;
use crate::config::{Precision, RunConfig};
use crate::error::{Outcome, TrainError};
use crate::hugging_face::FolderError;
use crate::process;
use crate::session;
use crate::weights_file;

/// Steps whose losses are printed.
const PRINTED_LOSSES: usize = 8;

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Findings {
    shape: String,
    router: &'static str,
    mode: Mode,
    threads: usize,
    instruction_set: String,
    precision: Precision,
    device: String,
    /// What computes in place of the processor, as it calls itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu: Option<String>,
    params: u64,
    /// Floating-point operations, as `estimate` counts them.
    mflop_per_token: f64,
    gflop_s: f64,
    tokens_per_step: u64,
    steps: usize,
    tok_s_median: f64,
    tok_s_best: f64,
    /// Median over steps; absent where the system does not tell the CPU time of a process.
    tok_per_cpu_s: Option<f64>,
    step_s_median: f64,
    step_s_min: f64,
    step_s_max: f64,
    /// From the start of the command to the end of the first step.
    first_step_s: f64,
    /// Absent where the system does not tell.
    rss_peak_mb: Option<f64>,
    /// Cross-entropy of the first steps, warm-up included.
    losses: Vec<f64>,
    loss_last: f64,
    /// Only with `--profile`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    profile: Vec<SpanShare>,
}

/// A span's part of a step, mean over the timed steps.
#[derive(Debug, Serialize)]
struct SpanShare {
    /// The names of the spans from the outermost to this one.
    path: String,
    calls: f64,
    /// Inner spans included.
    total_ms: f64,
    /// Inner spans left out.
    own_ms: f64,
}

/// Runs the command.
///
/// # Errors
/// A configuration with problems, a step that is not finite.
pub fn run(args: &BenchArgs) -> Result<Outcome, TrainError> {
    let start = Instant::now();
    let mut config = shape::config(&args.shape, args.router, args.precision.as_deref())?;
    if let Some(device) = &args.device {
        config.train.device.clone_from(device);
    }
    let threads = use_threads(args.threads)?;
    let device = session::open_device(&config)?;
    let mut model = session::initial_model(&config, &device.clone().autodiff());
    if let Some(path) = &args.init {
        model = with_weights(model, &config, path)?;
    }
    let plan = Plan {
        mode: args.mode,
        warmup: args.warmup,
        steps: args.steps,
        profile: args.profile,
    };
    let timing = bench::time_steps(&config, model, &device, plan)?;
    let tokens = config.positions_per_step();
    let wall = sorted(&timing.wall);
    let (best, median, worst) = (wall[0], wall[wall.len() / 2], wall[wall.len() - 1]);
    let cpu = sorted(&timing.cpu);
    let cost = estimate(
        &config.model.decoder(),
        &config.router,
        config.data.sequence_length,
    );
    let flops = match args.mode {
        Mode::Train => cost.training_flops_per_token,
        Mode::Eval => cost.flops_per_token,
    };
    let findings = Findings {
        shape: args.shape.clone(),
        router: config.router.name(),
        mode: args.mode,
        threads,
        instruction_set: lpr_kernels::instruction_set().to_string(),
        precision: config.train.precision,
        device: config.train.device.clone(),
        gpu: gpu_name(&device),
        params: cost.total_params,
        mflop_per_token: flops as f64 / 1e6,
        gflop_s: flops as f64 * tokens as f64 / median / 1e9,
        tokens_per_step: tokens,
        steps: args.steps,
        tok_s_median: tokens as f64 / median,
        tok_s_best: tokens as f64 / best,
        tok_per_cpu_s: cpu.get(cpu.len() / 2).map(|cpu| tokens as f64 / cpu),
        step_s_median: median,
        step_s_min: best,
        step_s_max: worst,
        first_step_s: timing.first_step_done.duration_since(start).as_secs_f64(),
        rss_peak_mb: process::peak_memory().map(|bytes| bytes as f64 / f64::from(1 << 20)),
        loss_last: timing.losses[timing.losses.len() - 1],
        losses: timing.losses.iter().copied().take(PRINTED_LOSSES).collect(),
        profile: shares(&timing),
    };
    print_findings(args.json, &findings, || table(&findings))?;
    Ok(Outcome::Done)
}

/// The model with the weights of a safetensors file under Hugging Face's names.
fn with_weights(model: CausalLm, config: &RunConfig, path: &Path) -> Result<CausalLm, TrainError> {
    let refused = |problem: String| FolderError {
        path: path.to_path_buf(),
        problems: vec![problem],
    };
    let theirs = weights_file::read(path).map_err(|error| refused(error.to_string()))?;
    let shapes = parameter_shapes(&model);
    from_hugging_face(theirs, &shapes, config.model.naming())
        .and_then(|ours| with_parameter_values(model, ours))
        .map_err(|mismatch| refused(mismatch.to_string()).into())
}

/// Computes on so many threads from here on, on all cores if `None`; how many these are.
fn use_threads(threads: Option<usize>) -> Result<usize, TrainError> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.unwrap_or(0))
        .build_global()
        .map_err(|error| TrainError::Usage(format!("--threads: {error}")))?;
    Ok(rayon::current_num_threads())
}

fn sorted(times: &[Duration]) -> Vec<f64> {
    let mut seconds: Vec<f64> = times.iter().map(Duration::as_secs_f64).collect();
    seconds.sort_by(f64::total_cmp);
    seconds
}

/// The spans of the timed steps, outer ones first and, within one, the longest first.
fn shares(timing: &Timing) -> Vec<SpanShare> {
    let steps = timing.wall.len() as f64;
    let ms = |time: Duration| time.as_secs_f64() * 1e3 / steps;
    let mut spans: Vec<&SpanTime> = timing.spans.iter().collect();
    let total_of = |path: &[&str]| {
        let span = timing.spans.iter().find(|span| span.path == path);
        span.map_or(Duration::ZERO, |span| span.total)
    };
    spans.sort_by_key(|span| {
        let prefixes = (1..=span.path.len()).map(|depth| &span.path[..depth]);
        prefixes
            .map(|path| (std::cmp::Reverse(total_of(path)), path.last().copied()))
            .collect::<Vec<_>>()
    });
    let share = |span: &SpanTime| SpanShare {
        path: span.path.join(" / "),
        calls: span.calls as f64 / steps,
        total_ms: ms(span.total),
        own_ms: ms(span.own),
    };
    spans.into_iter().map(share).collect()
}

fn table(found: &Findings) -> String {
    let mut text = format!(
        "{} with the router {}, {}, {}{}\n\
         {:.0} tokens/s (median of {} steps of {} tokens), best {:.0}",
        found.shape,
        found.router,
        match found.mode {
            Mode::Train => "training",
            Mode::Eval => "evaluation",
        },
        found
            .gpu
            .clone()
            .unwrap_or_else(|| format!("{} threads, {}", found.threads, found.instruction_set)),
        match found.precision {
            Precision::F32 => "",
            Precision::Bf16 => " with bf16 products",
        },
        found.tok_s_median,
        found.steps,
        found.tokens_per_step,
        found.tok_s_best
    );
    if let Some(rate) = found.tok_per_cpu_s {
        let _ = write!(text, ", {rate:.0} per CPU second");
    }
    let _ = write!(text, "; {:.0} GFLOP/s", found.gflop_s);
    if let Some(peak) = found.rss_peak_mb {
        let _ = write!(text, "; peak memory {peak:.0} MiB");
    }
    let _ = write!(
        text,
        "\nfirst step done after {:.2} s; loss {:.4} -> {:.4}",
        found.first_step_s, found.losses[0], found.loss_last
    );
    if !found.profile.is_empty() {
        text.push_str("\n\n  total ms     own ms    calls  per step, mean");
    }
    for share in &found.profile {
        let _ = write!(
            text,
            "\n{:>10.2} {:>10.2} {:>8.1}  {}",
            share.total_ms, share.own_ms, share.calls, share.path
        );
    }
    text
}
