//! Faults on demand (`LPR_FAULT=POINT:N[+]:times=FACTOR`, several separated by commas).

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::ValueEnum;

use crate::error::TrainError;

/// The environment variable.
pub const VARIABLE: &str = "LPR_FAULT";

/// Where a fault can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Point {
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
}

/// One entry of the variable.
struct Fault {
    point: Point,
    first: u64,
    repeats: bool,
    factor: f64,
}

struct Plan {
    faults: Vec<Fault>,
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
    let text = text.to_string_lossy().into_owned();
    let faults: Option<Vec<Fault>> = text.split(',').map(parse_one).collect();
    let faults = faults.ok_or_else(|| TrainError::Usage(format!("{VARIABLE}: {text:?}")))?;
    let passed = Point::value_variants().iter().map(|_| AtomicU64::new(0));
    let passed = passed.collect();
    PLAN.get_or_init(|| Plan { faults, passed });
    Ok(())
}

/// Passes a point where numbers can be spoiled: what to multiply them by, if anything.
pub fn factor(point: Point) -> Option<f64> {
    let plan = PLAN.get()?;
    let count = 1 + plan.passed[point as usize].fetch_add(1, Ordering::SeqCst);
    let due = |fault: &&Fault| {
        fault.point == point && (count == fault.first || fault.repeats && count > fault.first)
    };
    plan.faults.iter().find(due).map(|fault| fault.factor)
}

fn parse_one(entry: &str) -> Option<Fault> {
    let mut parts = entry.splitn(3, ':');
    let point = Point::from_str(parts.next()?, false).ok()?;
    let count = parts.next()?;
    Some(Fault {
        point,
        first: count.trim_end_matches('+').parse().ok()?,
        repeats: count.ends_with('+'),
        factor: parts.next()?.strip_prefix("times=")?.parse().ok()?,
    })
}
