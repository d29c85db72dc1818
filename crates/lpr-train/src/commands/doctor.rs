//! `lpr-train doctor`: what this build and machine can do, and whether the balancers of a config work.

use std::fmt::Write as _;

use lpr_data::{DataLoader, DataPosition, Split};
use lpr_kernels::devices::Platform;
use serde::Serialize;

use super::{config, print_findings};
use crate::batch::MicroBatch;
use crate::cli::DoctorArgs;
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
    /// Where this build can compute on this machine, under the names for configurations.
    devices: Vec<FoundDevice>,
    /// Where it cannot.
    missing: Vec<MissingDevice>,
    /// Memory that can be had, in bytes; absent where the system does not tell.
    available_memory: Option<u64>,
    /// Present with `--config`.
    #[serde(flatten)]
    balancers: Option<Liveness>,
}

#[derive(Debug, Serialize)]
struct FoundDevice {
    name: String,
    /// As it calls itself.
    description: String,
}

#[derive(Debug, Serialize)]
struct MissingDevice {
    name: String,
    /// And what to do.
    reason: String,
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
    let environment = Environment::here();
    let (devices, missing) = find_devices(&environment.cpu);
    let findings = Findings {
        environment,
        devices,
        missing,
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

fn find_devices(cpu: &str) -> (Vec<FoundDevice>, Vec<MissingDevice>) {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    found.push(FoundDevice {
        name: Platform::Cpu.name().to_owned(),
        description: cpu.to_owned(),
    });
    for platform in [Platform::Wgpu, Platform::Cuda] {
        let devices = platform.devices().unwrap_or_else(|error| {
            let name = platform.name().to_owned();
            let reason = error.to_string();
            missing.push(MissingDevice { name, reason });
            Vec::new()
        });
        for (index, device) in devices.into_iter().enumerate() {
            let name = format!("{}:{index}", platform.name());
            match device {
                Ok(description) => found.push(FoundDevice { name, description }),
                Err(error) => missing.push(MissingDevice {
                    name,
                    reason: error.to_string(),
                }),
            }
        }
    }
    (found, missing)
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
    let mut text = format!("lpr-train {}", findings.environment.version);
    for FoundDevice { name, description } in &findings.devices {
        let _ = write!(text, "\ndevice       {name}  {description}");
    }
    for MissingDevice { name, reason } in &findings.missing {
        let _ = write!(text, "\nmissing      {name}: {reason}");
    }
    let _ = write!(
        text,
        "\nmemory       {}\ncpu kernels  {} on {} threads",
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
