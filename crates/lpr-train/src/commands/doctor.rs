//! `lpr-train doctor`: what this build and machine can do, and whether the balancers of a config work.

use std::fmt::Write as _;

use lpr_data::{DataLoader, DataPosition, Split};
use serde::Serialize;

use super::{config, print_findings};
use crate::batch::MicroBatch;
use crate::cli::DoctorArgs;
use crate::config::DEVICE_NAMES;
use crate::environment::Environment;
use crate::error::{Outcome, TrainError};
use crate::liveness::{Liveness, Strictness, probe_rows};
use crate::memory;
use crate::session;
use crate::step::StepPlan;

/// What `doctor` found.
#[derive(Debug, Serialize)]
struct Findings {
    #[serde(flatten)]
    environment: Environment,
    devices: [&'static str; session::DEVICES.len()],
    /// What configurations may name and this build does not have.
    not_compiled_in: Vec<&'static str>,
    /// Memory that can be had, in bytes; absent where the system does not tell.
    available_memory: Option<u64>,
    /// Present with `--config`.
    #[serde(flatten)]
    balancers: Option<Liveness>,
}

/// Runs the command.
///
/// # Errors
/// A configuration with problems, or, after everything was printed, a balancer that does nothing.
pub fn run(args: &DoctorArgs) -> Result<Outcome, TrainError> {
    let balancers = if args.config.config.is_empty() {
        None
    } else {
        Some(probe_balancers(args)?)
    };
    let findings = Findings {
        environment: Environment::here(),
        devices: session::DEVICES,
        not_compiled_in: DEVICE_NAMES
            .into_iter()
            .filter(|name| !session::DEVICES.contains(name))
            .collect(),
        available_memory: memory::available(),
        balancers,
    };
    print_findings(args.json, &findings, || table(&findings))?;
    if let Some(balancers) = &findings.balancers {
        for (_, verdict) in balancers.verdicts(Strictness::Initial) {
            verdict?;
        }
    }
    Ok(Outcome::Done)
}

/// The balancers of a config, probed on the first rows of its training data with the weights that
/// a run would start from.
fn probe_balancers(args: &DoctorArgs) -> Result<Liveness, TrainError> {
    let config = config::load(&args.config.config, &args.config.overrides)?;
    let device = session::open_device(&config)?;
    let tokenizer = session::open_tokenizer(&config)?;
    let rows = config.router.loss_group_rows().max(1);
    let start = DataPosition::default();
    let mut loader = DataLoader::open(&config.data, Split::Train, rows, tokenizer, &start)?;
    let Some(batch) = loader.next_batch()? else {
        return Err(TrainError::Usage(
            "the training data holds no batch".to_owned(),
        ));
    };
    let batch = MicroBatch::new(&probe_rows(&batch, &config.router), &device);
    let model = session::initial_model(&config, &device.autodiff());
    let noise = &StepPlan::noise(config.train.seed, 0, 1)[0];
    Ok(Liveness::probe(&model, &config.router, &batch, noise))
}

fn table(findings: &Findings) -> String {
    let mut text = format!(
        "lpr-train {}\ndevices      {}; not compiled in: {}\nmemory       {}\ncpu kernels  {} on {} threads",
        findings.environment.version,
        findings.devices.join(", "),
        findings.not_compiled_in.join(", "),
        (findings.available_memory).map_or_else(|| "unknown".to_owned(), memory::readable),
        findings.environment.cpu_kernels,
        findings.environment.cpu_threads
    );
    if let Some(balancers) = &findings.balancers {
        for (found, verdict) in balancers.verdicts(Strictness::Initial) {
            let word = if verdict.is_ok() { "ok" } else { "DEAD" };
            let _ = write!(text, "\n{word:<6} {found}");
        }
    }
    text
}
