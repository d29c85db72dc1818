//! What the files of a run are called.

/// Name of the lock file.
pub const LOCK_FILE: &str = "lock";
/// Name of the file with every key of the configuration.
pub const CONFIG_FILE: &str = "config.resolved.toml";
/// Name of the file with one JSON object per logged step.
pub const METRICS_FILE: &str = "metrics.jsonl";
/// Name of the file with what was printed.
pub const LOG_FILE: &str = "log.txt";
/// Name of the file that says which program and machine made the run.
pub const ENVIRONMENT_FILE: &str = "environment.json";
/// Name of the file with what the experts took in the newest evaluation.
pub const EXPERT_TOKENS_FILE: &str = "expert_tokens.json";
/// Name of the page with figures and plots.
pub const REPORT_FILE: &str = "report.html";
/// Name of the folder of checkpoints.
pub const CHECKPOINTS_FOLDER: &str = "checkpoints";
