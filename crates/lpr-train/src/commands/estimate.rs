//! `lpr-train estimate`: what a run costs, or all runs of a table. Neither data nor weights are touched.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use lpr_model::estimate::Estimate;
use serde::Serialize;

use super::{config, print_findings};
use crate::cli::EstimateArgs;
use crate::config::RunConfig;
use crate::cost::{RunCost, Time};
use crate::error::{Outcome, TrainError};
use crate::history::History;
use crate::lab::grid;
use crate::memory::readable;

/// Runs the command.
///
/// # Errors
/// A configuration with problems, a run whose speed cannot be read.
pub fn run(args: &EstimateArgs) -> Result<Outcome, TrainError> {
    let speed = match &args.from_run {
        Some(run) => Some(measured_speed(run)?),
        None => args.tokens_per_second,
    };
    if args.table.is_empty() {
        let config = config::load(&args.config.config, &args.config.overrides)?;
        let cost = RunCost::new(&config, speed);
        print_findings(args.json, &cost, || describe(&config, &cost))?;
    } else {
        let cost = table_cost(args, speed)?;
        print_findings(args.json, &cost, || describe_table(&cost))?;
    }
    Ok(Outcome::Done)
}

/// The median of the tokens per second of a run's logged steps.
fn measured_speed(run: &Path) -> Result<f64, TrainError> {
    let history = History::read_records(run)?;
    let speeds = history.steps.iter().map(|point| point.value("tok_s"));
    let mut speeds: Vec<f64> = speeds
        .filter(|speed| *speed > 0.0 && speed.is_finite())
        .collect();
    speeds.sort_by(f64::total_cmp);
    speeds.get(speeds.len() / 2).copied().ok_or_else(|| {
        TrainError::Usage(format!(
            "{} has no logged step with a speed; give --tokens-per-second X",
            run.display()
        ))
    })
}

/// The cost of a grid of the paper.
#[derive(Debug, Serialize)]
struct TableCost {
    rows: Vec<RowCost>,
    /// Runs that are trained: rows with the same configuration are one.
    runs: u64,
    positions: u64,
    training_flops: f64,
    time: Option<Time>,
}

#[derive(Debug, Serialize)]
struct RowCost {
    table: &'static str,
    row: String,
    seed: u64,
    /// False if a row above has the same run.
    is_trained: bool,
    #[serde(flatten)]
    cost: RunCost,
}

fn table_cost(args: &EstimateArgs, speed: Option<f64>) -> Result<TableCost, TrainError> {
    let mut seen = BTreeSet::new();
    let mut rows = Vec::new();
    for artefact in &args.table {
        let table = artefact.table(args.scale);
        for variant in grid::variants(&table, args.scale, &args.config.overrides)? {
            let (name, mut config) = variant;
            for seed in 0..args.seeds {
                config.train.seed += u64::from(seed > 0);
                rows.push(RowCost {
                    table: table.name,
                    row: name.to_owned(),
                    seed: config.train.seed,
                    is_trained: seen.insert(grid::folder(Path::new(""), &config)),
                    cost: RunCost::new(&config, speed),
                });
            }
        }
    }
    let trained = || rows.iter().filter(|row| row.is_trained);
    let positions = trained().map(|row| row.cost.positions).sum();
    Ok(TableCost {
        runs: trained().count() as u64,
        positions,
        training_flops: trained().map(|row| row.cost.training_flops).sum(),
        time: speed.map(|speed| Time::new(positions, speed)),
        rows,
    })
}

fn describe_table(cost: &TableCost) -> String {
    let mut text = format!(
        "{:<8}{:<28}{:>6}{:>14}{:>14}{:>12}{:>12}\n",
        "table", "row", "seed", "parameters", "positions", "FLOP", "memory"
    );
    for RowCost {
        table,
        row,
        seed,
        is_trained,
        cost,
    } in &cost.rows
    {
        let _ = writeln!(
            text,
            "{table:<8}{row:<28}{seed:>6}{:>14}{:>14}{:>12.2e}{:>12}{}",
            cost.model.total_params,
            cost.positions,
            cost.training_flops,
            readable(cost.memory.total),
            if *is_trained {
                ""
            } else {
                "  the same run as above"
            }
        );
    }
    let _ = write!(
        text,
        "{} distinct runs of {} rows: {} token positions, {:.3e} FLOP",
        cost.runs,
        cost.rows.len(),
        cost.positions,
        cost.training_flops
    );
    if let Some(time) = &cost.time {
        let _ = write!(text, "\n{}, one run after the other", duration(time));
    }
    text
}

/// What a run costs, in words.
pub fn describe(config: &RunConfig, cost: &RunCost) -> String {
    let (family, router) = (config.model.name(), config.router.name());
    let mut text = format!(
        "{family} with the {router} router\n{}\n\n{:<16}{:>16}\n",
        table(&cost.model),
        "memory",
        "MiB"
    );
    let memory = &cost.memory;
    for (name, bytes) in memory.parts().into_iter().chain([("all", memory.total)]) {
        let _ = writeln!(
            text,
            "{name:<16}{:>16.1}",
            bytes as f64 / f64::from(1 << 20)
        );
    }
    let _ = write!(
        text,
        "memory: 32-bit floats, the same for every train.precision; {} more while a checkpoint is written; at \
         least {} are needed at one time\n\
         on a GPU the blocks of rows of its experts take {} more; nowhere does it depend on what tokens \
         choose\n\n\
         {} steps, {} token positions, {:.3e} FLOP",
        readable(memory.snapshot),
        readable(memory.least),
        readable(cost.portable_experts),
        cost.steps,
        cost.positions,
        cost.training_flops
    );
    if let Some(time) = &cost.time {
        let _ = write!(text, "\n{}", duration(time));
    }
    text
}

fn duration(time: &Time) -> String {
    let length = match time.days {
        days if days >= 1.0 => format!("{days:.1} days"),
        days if days >= 1.0 / 24.0 => format!("{:.1} hours", days * 24.0),
        days => format!("{:.1} minutes", days * 24.0 * 60.0),
    };
    format!(
        "at {:.0} tokens per second: {:.3e} tokens a day, {length}",
        time.tokens_per_second, time.tokens_per_day
    )
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
