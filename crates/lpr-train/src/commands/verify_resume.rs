//! `lpr-train verify-resume`: does a run that is killed and resumed end with the same bits?

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value as Json;

use super::{config, print_findings};
use crate::atomic_file::{parent, remove_any, temporary_name};
use crate::checkpoint::{self, Checkpoint};
use crate::cli::VerifyResumeArgs;
use crate::clock;
use crate::config::RunConfig;
use crate::error::{Outcome, TrainError};
use crate::fault;
use crate::record::without_timing;
use crate::run_dir::{CHECKPOINTS_FOLDER, METRICS_FILE};
use crate::session::{MODEL_FILE, OPTIMIZER_FILE};

/// The longest wait for a save before the kill.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// What was done and found.
#[derive(Serialize)]
struct Report {
    same: bool,
    steps: u64,
    straight_seconds: f64,
    kills: Vec<Kill>,
    checks: Vec<Check>,
}

/// One `kill -9`.
#[derive(Serialize)]
struct Kill {
    /// When it came.
    when: String,
    /// The checkpoint that the run continued from; absent if there was none yet.
    continued_from: Option<u64>,
}

/// One comparison of the two runs.
#[derive(Serialize)]
struct Check {
    what: &'static str,
    same: bool,
    straight: String,
    resumed: String,
}

/// Runs the command.
///
/// # Errors
/// A run that fails, and a difference.
pub fn run(args: &VerifyResumeArgs) -> Result<Outcome, TrainError> {
    let config = config::load(&args.config.config, &args.config.overrides)?;
    if !(1..args.steps).contains(&args.at) {
        let (at, steps) = (args.at, args.steps);
        let text = format!(
            "--at {at} must be from 1 to --steps - 1 = {}",
            steps.saturating_sub(1)
        );
        return Err(TrainError::Usage(text));
    }
    let run_dir = config.run_dir();
    let name = run_dir.file_name().unwrap_or_default().to_string_lossy();
    let work = parent(run_dir).join(temporary_name(&format!("verify-{name}")));
    let to_io = |error| TrainError::io(&work, error);
    remove_any(&work).map_err(to_io)?;
    fs::create_dir_all(&work).map_err(to_io)?;
    let report = compare(args, &config, &work);
    let report = match report {
        Ok(report) => report,
        Err(error) => {
            // The error is what counts.
            let _ = remove_any(&work);
            return Err(error);
        }
    };
    print_findings(args.json, &report, || describe(&report))?;
    if report.same {
        remove_any(&work).map_err(to_io)?;
        return Ok(Outcome::Done);
    }
    Err(TrainError::NotTheSame { folder: work })
}

fn compare(args: &VerifyResumeArgs, config: &RunConfig, work: &Path) -> Result<Report, TrainError> {
    let straight = Trial::new(work, "straight", config, args)?;
    let resumed = Trial::new(work, "resumed", config, args)?;
    let start = Instant::now();
    straight.finish()?;
    let length = start.elapsed();

    let mut kills = Vec::new();
    // The pause lets the save that was begun before come to its end, so that there is a checkpoint.
    let place = format!("{}:{}", fault::Point::StepEnd.name(), args.at);
    let pause = length.min(LONGEST_PAUSE).as_millis();
    let crash = format!("{place}:delay={pause},{place}:crash");
    let output = resumed.command().env(fault::VARIABLE, crash).output();
    let output = output.map_err(|error| TrainError::io(work, error))?;
    if output.status.code().is_some() {
        return Err(failed("did not reach the step of the kill", &output.stderr));
    }
    let mut killed = |when| -> Result<(), TrainError> {
        let continued_from = resumed.newest()?;
        kills.push(Kill {
            when,
            continued_from,
        });
        Ok(())
    };
    killed(format!("after step {}", args.at))?;
    for index in 0..args.random_kills {
        let moment = length.mul_f64(random(index));
        if resumed.kill_after(moment)? {
            killed(format!("{:.2} s after a start", moment.as_secs_f64()))?;
        }
    }
    resumed.finish()?;
    let checks = checks(&straight, &resumed)?;
    Ok(Report {
        same: checks.iter().all(|check| check.same),
        steps: args.steps,
        straight_seconds: length.as_secs_f64(),
        kills,
        checks,
    })
}

/// Between 0 and 1, another one for each index and each time.
fn random(index: u64) -> f64 {
    let seed = clock::now().to_bits().wrapping_add(index << 32);
    let mixed = (seed ^ (seed >> 29)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 11) as f64 / (1_u64 << 53) as f64
}

/// One of the two runs.
struct Trial {
    run_dir: PathBuf,
    config: PathBuf,
    steps: u64,
}

impl Trial {
    fn new(
        work: &Path,
        name: &str,
        config: &RunConfig,
        args: &VerifyResumeArgs,
    ) -> Result<Self, TrainError> {
        let mut config = config.clone();
        let run_dir = work.join(name);
        config.train.run_dir = Some(run_dir.clone());
        config.train.total_tokens = None;
        config.train.total_steps = Some(args.steps);
        // There has to be a checkpoint before the kill.
        let half = (args.at / 2).max(1);
        let every = config.checkpoint.every_steps;
        config.checkpoint.every_steps = if every == 0 { half } else { every.min(half) };
        let path = work.join(format!("{name}.toml"));
        fs::write(&path, config.to_toml()).map_err(|error| TrainError::io(&path, error))?;
        Ok(Self {
            run_dir,
            config: path,
            steps: args.steps,
        })
    }

    fn checkpoints(&self) -> PathBuf {
        self.run_dir.join(CHECKPOINTS_FOLDER)
    }

    /// The newest valid checkpoint.
    fn newest(&self) -> Result<Option<u64>, TrainError> {
        let found = checkpoint::find_latest(&self.checkpoints())?;
        Ok(found.checkpoint.map(|checkpoint| checkpoint.step()))
    }

    /// This program, training, from a checkpoint if there is one.
    fn command(&self) -> Command {
        let program = std::env::current_exe().unwrap_or_else(|_| "lpr-train".into());
        let mut command = Command::new(program);
        command.args(["train", "-q", "--resume", "--config"]);
        command.arg(&self.config).env_remove(fault::VARIABLE);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    /// Trains to the end.
    fn finish(&self) -> Result<(), TrainError> {
        let output = self.command().output();
        let output = output.map_err(|error| TrainError::io(&self.run_dir, error))?;
        if output.status.success() {
            return Ok(());
        }
        Err(failed("failed", &output.stderr))
    }

    /// Trains for so long. False if the run ended before.
    fn kill_after(&self, moment: Duration) -> Result<bool, TrainError> {
        let to_io = |error| TrainError::io(&self.run_dir, error);
        let mut child = self
            .command()
            .stderr(Stdio::null())
            .spawn()
            .map_err(to_io)?;
        std::thread::sleep(moment);
        let ended = |child: &mut Child| child.try_wait().map(|status| status.is_some());
        let running = !ended(&mut child).map_err(to_io)?;
        if running {
            child.kill().map_err(to_io)?;
        }
        let status = child.wait().map_err(to_io)?;
        // A run that failed is found out by the one that has to finish.
        Ok(running && !status.success())
    }

    /// The lines of the metrics without what depends on the machine and the hour.
    fn metrics(&self) -> Result<Vec<Json>, TrainError> {
        let path = self.run_dir.join(METRICS_FILE);
        let text = fs::read_to_string(&path).map_err(|error| TrainError::io(&path, error))?;
        let lines = text.lines().map(serde_json::from_str::<Json>);
        let lines = lines.map(|line| line.map(without_timing));
        lines
            .collect::<Result<_, _>>()
            .map_err(|error| TrainError::io(&path, error.into()))
    }
}

fn failed(what: &str, stderr: &[u8]) -> TrainError {
    let text = String::from_utf8_lossy(stderr);
    let cause = std::io::Error::other(text.trim().to_owned());
    TrainError::io(
        Path::new("the run to verify"),
        std::io::Error::other(format!("it {what}: {cause}")),
    )
}

fn checks(straight: &Trial, resumed: &Trial) -> Result<Vec<Check>, TrainError> {
    let open = |trial: &Trial| {
        let path = trial
            .checkpoints()
            .join(checkpoint::folder_name(trial.steps));
        Checkpoint::open(&path)
    };
    let pair = (open(straight)?, open(resumed)?);
    let states: (Json, Json) = (pair.0.state()?, pair.1.state()?);
    let hash = |checkpoint: &Checkpoint, name: &str| {
        let entry = checkpoint.manifest().files.get(name);
        entry.map_or_else(|| "absent".to_owned(), |entry| entry.sha256.clone())
    };
    let check = |what, straight: String, resumed: String| Check {
        what,
        same: straight == resumed,
        straight,
        resumed,
    };
    let file = |what, name| check(what, hash(&pair.0, name), hash(&pair.1, name));
    let tokens = |state: &Json| state["data"]["token_hash"].to_string();
    let (one, other) = (straight.metrics()?, resumed.metrics()?);
    let first = one.iter().zip(&other).find(|(one, other)| one != other);
    let lines = |all: &[Json], line: Option<&Json>| match line {
        None => format!("{} lines", all.len()),
        Some(line) => format!("{} lines; {line}", all.len()),
    };
    Ok(vec![
        file("weights, SHA-256", MODEL_FILE),
        file("optimizer, SHA-256", OPTIMIZER_FILE),
        check("hash of the tokens", tokens(&states.0), tokens(&states.1)),
        check(
            "state of the run",
            states.0.to_string(),
            states.1.to_string(),
        ),
        check(
            "losses and balance",
            lines(&one, first.map(|pair| pair.0)),
            lines(&other, first.map(|pair| pair.1)),
        ),
    ])
}

fn describe(report: &Report) -> String {
    let mut text = format!(
        "straight: {} steps in {:.1} s\nresumed:",
        report.steps, report.straight_seconds
    );
    for kill in &report.kills {
        let from = kill.continued_from.map_or_else(
            || "started over".to_owned(),
            |step| format!("continued from step {step}"),
        );
        let _ = write!(text, "\n  kill -9 {}, {from}", kill.when);
    }
    for check in &report.checks {
        if check.same {
            // The state as a whole is long and says nothing more.
            let value = if check.straight.len() > 80 {
                ""
            } else {
                &check.straight
            };
            let _ = write!(text, "\n{:<20} same  {value}", check.what);
        } else {
            let _ = write!(
                text,
                "\n{:<20} DIFFERS\n  straight {}\n  resumed  {}",
                check.what, check.straight, check.resumed
            );
        }
    }
    text.push_str(if report.same {
        "\nthe resumed run is the straight run, bit for bit"
    } else {
        "\nthe resumed run is not the straight run"
    });
    text
}
