//! `lpr-train estimate`: what the model of a config costs. Neither data nor weights are touched.

use std::fmt::Write as _;

use lpr_model::estimate::{Estimate, estimate};

use super::{config, print_findings};
use crate::cli::EstimateArgs;
use crate::error::{Outcome, TrainError};
use crate::memory::{LeastMemory, gib};

/// Runs the command.
///
/// # Errors
/// A configuration with problems.
pub fn run(args: &EstimateArgs) -> Result<Outcome, TrainError> {
    let config = config::load(&args.config.config, &args.config.overrides)?;
    let length = config.data.sequence_length;
    let found = estimate(&config.model.decoder(), &config.router, length);
    let memory = LeastMemory::new(&config, &found);
    let mut findings = serde_json::json!(found);
    findings["least_memory"] = serde_json::json!(memory);
    print_findings(args.json, &findings, || {
        let (family, router) = (config.model.name(), config.router.name());
        let memory = gib(memory.total());
        format!(
            "{family} with the {router} router\n{}\ntraining takes at least {memory} of memory",
            table(&found)
        )
    })?;
    Ok(Outcome::Done)
}

fn table(found: &Estimate) -> String {
    let mut text = format!(
        "{:<16}{:>16}{:>16}{:>16}\n",
        "part", "parameters", "active", "MFLOP per token"
    );
    let total = (
        "all",
        found.total_params,
        found.active_params,
        found.flops_per_token,
    );
    let parts = found.parts.iter();
    let rows = parts.map(|part| {
        (
            part.name,
            part.params,
            part.active_params,
            part.flops_per_token,
        )
    });
    for (name, params, active, flops) in rows.chain([total]) {
        let megaflops = flops as f64 / 1e6;
        let _ = writeln!(text, "{name:<16}{params:>16}{active:>16}{megaflops:>16.2}");
    }
    let _ = write!(
        text,
        "MFLOP per token: forward pass, 2 per multiply-add of a matrix product, causal attention over a \
         document of {} positions; {:.2} without the head; training {:.2} (three times the forward pass)",
        found.sequence_length,
        found.flops_per_token_without_head as f64 / 1e6,
        found.training_flops_per_token as f64 / 1e6
    );
    text
}
