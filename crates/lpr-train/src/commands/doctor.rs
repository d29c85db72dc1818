//! `lpr-train doctor`: what this build and machine can do, and whether the balancers of a config work.

use std::fmt::Write as _;

use lpr_data::{DataLoader, DataPosition, Split};
use serde::Serialize;

use super::config;
use crate::batch::MicroBatch;
use crate::cli::DoctorArgs;
use crate::error::{Outcome, TrainError};
use crate::liveness::{TermLiveness, probe, probe_rows};
use crate::report::print_result;
use crate::session;
use crate::step::StepPlan;

/// What `doctor` found.
#[derive(Debug, Serialize)]
struct Findings {
    version: &'static str,
    devices: Vec<&'static str>,
    cpu_kernels: String,
    cpu_threads: usize,
    /// Present with `--config`.
    balance_terms: Option<Vec<TermLiveness>>,
}

/// Runs the command.
///
/// # Errors
/// A configuration with problems, or, after everything was printed, a balancer that does nothing.
pub fn run(args: &DoctorArgs) -> Result<Outcome, TrainError> {
    let balance_terms = if args.config.config.is_empty() {
        None
    } else {
        Some(balance_terms(args)?)
    };
    let findings = Findings {
        version: env!("CARGO_PKG_VERSION"),
        devices: vec!["cpu"],
        cpu_kernels: format!("{:?}", lpr_kernels::instruction_set()),
        cpu_threads: std::thread::available_parallelism().map_or(1, usize::from),
        balance_terms,
    };
    let text = if args.json {
        format!("{:#}", serde_json::json!(findings))
    } else {
        table(&findings)
    };
    print_result(&text).map_err(TrainError::Output)?;
    for term in findings.balance_terms.iter().flatten() {
        term.verdict()?;
    }
    Ok(Outcome::Done)
}

/// The balance terms of a config, probed on the first rows of its training data with the weights that
/// a run would start from.
fn balance_terms(args: &DoctorArgs) -> Result<Vec<TermLiveness>, TrainError> {
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
    let noise = StepPlan::noise(config.train.seed, 0, 1);
    let probes = noise
        .iter()
        .flat_map(|noise| probe(&model, &config.router, &batch, noise));
    Ok(probes.collect())
}

fn table(findings: &Findings) -> String {
    let mut text = format!(
        "lpr-train {}\ndevices      {}\ncpu kernels  {} on {} threads",
        findings.version,
        findings.devices.join(", "),
        findings.cpu_kernels,
        findings.cpu_threads
    );
    for term in findings.balance_terms.iter().flatten() {
        let verdict = match term.verdict() {
            Ok(()) if term.weight == 0.0 => "off",
            Ok(()) => "alive",
            Err(_) => "DEAD",
        };
        let _ = write!(text, "\n{verdict:<6} {term}");
    }
    text
}
