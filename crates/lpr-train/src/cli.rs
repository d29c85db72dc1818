//! The command line. Flags are for paths, devices and overrides; everything else is in the
//! configuration file.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

mod lab;

pub use lab::{
    AblateArgs, CompareArgs, GridArgs, ReportArgs, ReproduceArgs, RoutingArgs, WatchArgs,
};

use crate::bench::Mode;
use crate::bench::shape::BenchRouter;
use crate::hugging_face::shards::ShardSize;
use crate::report::Verbosity;
use crate::routing::trace::MAX_POSITIONS;

mod checkpoint;
mod data;
mod generate;
mod tools;

pub use checkpoint::{CheckpointCommand, CheckpointDirArgs, CheckpointPruneArgs, VerifyResumeArgs};
pub use data::{DataBenchArgs, DataCheckArgs, DataCommand, DataPrepareArgs, DataTokenizerArgs};
pub use generate::GenerateArgs;
pub use tools::{CiteArgs, CompletionsArgs, EstimateArgs, ManArgs};

/// Pre-trains Mixture-of-Experts language models and shows what the router does.
///
/// Without a command, trains: `lpr-train --config x.toml` is `lpr-train train --config x.toml`.
#[derive(Debug, Parser)]
#[command(
    name = "lpr-train",
    version,
    args_conflicts_with_subcommands = true,
    arg_required_else_help = true
)]
#[command(
    after_help = "Exit codes: 0 done; 1 runtime failure; 2 usage or configuration; 3 data; \
                  4 checkpoint; 5 diverged; 6 device or out of memory; 75 stopped early on request \
                  after a good save; 130/143 on a second signal."
)]
pub struct Cli {
    /// What to do, training if absent.
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    train: TrainArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// How much is printed.
#[derive(Clone, Copy, Debug, Args)]
struct OutputArgs {
    /// Print only warnings and errors.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Print details.
    #[arg(short, long, global = true)]
    verbose: bool,
}

/// A command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a model.
    #[command(arg_required_else_help = true)]
    Train(TrainArgs),
    /// Loss, perplexity and expert load of a checkpoint.
    Eval(EvalArgs),
    /// Continue texts with the model of a checkpoint.
    Generate(GenerateArgs),
    /// Speed of training or evaluation, on made-up tokens.
    Bench(BenchArgs),
    /// Write a checkpoint as a Hugging Face folder.
    Export(ExportArgs),
    /// Read a Hugging Face folder into a checkpoint of step 0.
    Import(ImportArgs),
    /// Make a step again that was skipped because it was not finite, or its loss a spike.
    Replay(ReplayArgs),
    /// What this build and machine can do; with --config, whether each balancer works.
    Doctor(DoctorArgs),
    /// Parameters, floating-point operations, memory and time of a run; nothing is loaded.
    Estimate(EstimateArgs),
    /// List, verify and remove checkpoints.
    #[command(subcommand)]
    Checkpoint(CheckpointCommand),
    /// Does a run that is killed and resumed end with the same bits? Exit code 1 if not.
    VerifyResume(VerifyResumeArgs),
    /// Write a page with the figures, curves and experts of runs.
    Report(ReportArgs),
    /// Figures of runs side by side, and where their configurations differ.
    Compare(CompareArgs),
    /// Train the runs of a table or figure of the paper, and tell our values beside its own.
    Reproduce(ReproduceArgs),
    /// Train a configuration with every combination of some values.
    Ablate(AblateArgs),
    /// What experts specialize in, whether tokens keep their experts, and what the load would cost
    /// under expert parallelism.
    Routing(RoutingArgs),
    /// Follow a run from another terminal until it ends.
    Watch(WatchArgs),
    /// Check, measure and prepare data files; train a tokenizer on them.
    #[command(subcommand)]
    Data(DataCommand),
    /// Write or check configuration files.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// What names a run in a paper: program, configuration, data, figures, BibTeX, a LaTeX row.
    Cite(CiteArgs),
    /// Print the completion script of a shell.
    Completions(CompletionsArgs),
    /// Print the page of the manual, or write a page for every command.
    Man(ManArgs),
}

/// What configures a run.
#[derive(Clone, Debug, Default, Args)]
pub struct ConfigArgs {
    /// Configuration file; several are layered from left to right.
    #[arg(short, long, value_name = "FILE")]
    pub config: Vec<PathBuf>,
    /// Set one key after all files; TOML syntax, bare words are strings.
    #[arg(short, long = "override", value_name = "SECTION.KEY=VALUE")]
    pub overrides: Vec<String>,
}

/// Arguments of `train`.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the command line"
)]
#[derive(Clone, Debug, Default, Args)]
pub struct TrainArgs {
    /// The configuration.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Continue from the newest checkpoint of the run, or from the one in PATH.
    // An empty text, which is no path, stands for the flag without one.
    #[arg(long, value_name = "PATH", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "")]
    resume: Option<OsString>,
    /// With --resume: go on although the files of data.train are not those of the checkpoint. A
    /// source that changed begins its next epoch, unless it changed behind the file being read.
    #[arg(long, requires = "resume")]
    pub allow_data_change: bool,
    /// Remove the checkpoints that an earlier run left in the run folder, and start anew.
    #[arg(long, conflicts_with = "resume")]
    pub overwrite: bool,
    /// Branch off: continue the checkpoint of STEP in a run folder of its own, FOLDER-decay-STEP, and
    /// begin the decay of the learning rate at once. With --resume, continue that branch if it has a
    /// checkpoint.
    #[arg(long, value_name = "STEP", conflicts_with = "overwrite")]
    pub decay_from: Option<u64>,
    /// Where to compute: `cpu`, `wgpu`, `wgpu:N`, `cuda` or `cuda:N`; `doctor` lists what there is.
    /// Overrides `train.device`.
    #[arg(long, value_name = "DEVICE", env = "LPR_DEVICE")]
    pub device: Option<String>,
    /// Print the resolved configuration, what the run costs and its first batch, and stop. Nothing is
    /// written but files of the hub into their cache.
    #[arg(long)]
    pub dry_run: bool,
    /// Show the load of every expert as bars, a line per layer, at each logged step.
    #[arg(long)]
    pub watch: bool,
    /// Write the experts and weights that each layer's router chose for the first N positions of a
    /// logged step, and of the validation data at an evaluation, to files in RUN/routing, for
    /// `routing`. At most about 100 of each, evenly spaced, with 9 + 6 x layers x `top_k` bytes a
    /// position: 65536 positions of 24 layers with 8 experts have 76 MB a file. Training is the same
    /// with and without.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MAX_POSITIONS))]
    pub trace_routing: Option<u64>,
}

/// Whether and from where a run continues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    /// A new run.
    No,
    /// From the newest valid checkpoint of the run folder.
    Latest,
    /// From this checkpoint.
    From(PathBuf),
}

impl TrainArgs {
    /// Whether and from where to continue.
    pub fn resume(&self) -> Resume {
        match &self.resume {
            None => Resume::No,
            Some(path) if path.is_empty() => Resume::Latest,
            Some(path) => Resume::From(PathBuf::from(path)),
        }
    }

    /// The overrides, those that have flags of their own included.
    pub fn overrides(&self) -> Vec<String> {
        let device = self
            .device
            .iter()
            .map(|device| format!("train.device={device:?}"));
        self.config
            .overrides
            .iter()
            .cloned()
            .chain(device)
            .collect()
    }
}

/// Arguments of `eval`.
#[derive(Clone, Debug, Args)]
pub struct EvalArgs {
    /// Folder of the checkpoint.
    #[arg(long, value_name = "DIR")]
    pub checkpoint: PathBuf,
    /// File, glob, folder or builtin:synthetic; the validation sources of the run if absent. Several
    /// are also reported one by one.
    #[arg(long, value_name = "SRC")]
    pub data: Vec<String>,
    /// The longest row in tokens; `eval.max_length` of the run if absent. The paper evaluates at 512.
    #[arg(long, value_name = "N", value_parser = at_least_two)]
    pub max_length: Option<usize>,
    /// Rows of a forward pass; `eval.rows_per_batch` of the run if absent.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub rows_per_batch: Option<usize>,
    /// Stop after so many tokens of each source; `eval.max_tokens` of the run if absent.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub max_tokens: Option<u64>,
    /// Where to compute, if not where the run did: `cpu`, `wgpu`, `wgpu:N`, `cuda` or `cuda:N`.
    #[arg(long, value_name = "DEVICE", env = "LPR_DEVICE")]
    pub device: Option<String>,
    /// Also write token ids, logits and chosen experts of the first batch to this safetensors file.
    #[arg(long, value_name = "FILE")]
    pub logits: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `bench`.
#[derive(Clone, Debug, Args)]
pub struct BenchArgs {
    /// `cpu-small`, `cpu-medium`, `paper-0.6b`, or a configuration file.
    #[arg(long, value_name = "NAME|FILE")]
    pub shape: String,
    /// The router; the file's own, or the vanilla one of a named shape, if absent.
    #[arg(long, value_enum)]
    pub router: Option<BenchRouter>,
    /// Whole optimizer steps, or forward passes with the loss.
    #[arg(long, value_enum, default_value = "train")]
    pub mode: Mode,
    /// Steps to time.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = at_least_one)]
    pub steps: usize,
    /// Steps before that.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub warmup: usize,
    /// Threads to compute on; all cores if absent.
    #[arg(long, value_name = "T", value_parser = at_least_one)]
    pub threads: Option<usize>,
    /// What matrix products multiply; as `train.precision` of the file says, or 32-bit floats, if
    /// absent.
    #[arg(long, value_parser = ["f32", "bf16"])]
    pub precision: Option<String>,
    /// Where to compute, if not where the file says: `cpu`, `wgpu`, `wgpu:N`, `cuda` or `cuda:N`.
    #[arg(long, value_name = "DEVICE", env = "LPR_DEVICE")]
    pub device: Option<String>,
    /// Start from these weights: a safetensors file under Hugging Face's names.
    #[arg(long, value_name = "FILE")]
    pub init: Option<PathBuf>,
    /// Also measure phases and operations. Costs a little time.
    #[arg(long)]
    pub profile: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// A count that may not be zero.
fn at_least_one(text: &str) -> Result<usize, String> {
    let count: NonZeroUsize = text.parse().map_err(|error| format!("{error}"))?;
    Ok(count.get())
}

/// A length with something to predict.
fn at_least_two(text: &str) -> Result<usize, String> {
    match at_least_one(text)? {
        1 => Err("must be at least 2".to_owned()),
        length => Ok(length),
    }
}

/// Arguments of `export`.
#[derive(Clone, Debug, Args)]
pub struct ExportArgs {
    /// Folder of the checkpoint.
    #[arg(long, value_name = "DIR")]
    pub checkpoint: PathBuf,
    /// The folder to write; it must not exist or be empty.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Split the weights into files of at most this size.
    #[arg(long, value_name = "SIZE", default_value = "5GB")]
    pub max_shard_size: ShardSize,
}

/// Arguments of `import`.
#[derive(Clone, Debug, Args)]
pub struct ImportArgs {
    /// The Hugging Face folder: config.json, safetensors, tokenizer.json.
    #[arg(long, value_name = "DIR")]
    pub from: PathBuf,
    /// The checkpoint folder to write; it must not exist or be empty.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// The other sections of the run, and changes to what the folder says.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Replace the router by this one, its prototypes fitted to a sample of text; its keys are those
    /// of the configuration.
    #[arg(long, value_name = "KIND", value_parser = ["lpr"])]
    pub router: Option<String>,
    /// The sample: file, glob, folder or builtin:synthetic; the validation sources of the
    /// configuration if absent.
    #[arg(long, value_name = "SRC", requires = "router")]
    pub data: Vec<String>,
    /// Tokens of the sample, 65536 if absent.
    #[arg(long, value_name = "N", requires = "router", value_parser = clap::value_parser!(u64).range(1..))]
    pub sample_tokens: Option<u64>,
}

/// Arguments of `replay`.
#[derive(Clone, Debug, Args)]
pub struct ReplayArgs {
    /// The file in the folder `skipped` of the run.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Folder of the checkpoint whose weights make the step; nothing is written to it.
    #[arg(long, value_name = "DIR")]
    pub checkpoint: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `doctor`.
#[derive(Clone, Debug, Args)]
pub struct DoctorArgs {
    /// Probe the balancers of this configuration.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `config ..`
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Write a commented configuration file to start from.
    Init {
        /// The file to write; it must not exist. Printed if absent.
        path: Option<PathBuf>,
    },
    /// Report every problem of a configuration, or print it with every key.
    Check {
        /// Configuration files, layered from left to right.
        #[arg(value_name = "FILE")]
        files: Vec<PathBuf>,
        /// The same files, as for training.
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Print the JSON Schema of the configuration, for editors.
    Schema,
    /// Print every key with its meaning, values and default, as Markdown.
    Reference,
}

impl Cli {
    /// The command and how much to print.
    pub fn into_parts(self) -> (Command, Verbosity) {
        let verbosity = match (self.output.quiet, self.output.verbose) {
            (true, _) => Verbosity::Quiet,
            (_, true) => Verbosity::Verbose,
            _ => Verbosity::Normal,
        };
        (
            self.command.unwrap_or(Command::Train(self.train)),
            verbosity,
        )
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> (Command, Verbosity) {
        let words = std::iter::once("lpr-train").chain(line.split_whitespace());
        Cli::try_parse_from(words)
            .unwrap_or_else(|error| panic!("{error}"))
            .into_parts()
    }

    fn train(line: &str) -> TrainArgs {
        match parse(line).0 {
            Command::Train(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn training_needs_no_command() {
        for line in [
            "--config a.toml --config b.toml --override x.y=1",
            "train -c a.toml -c b.toml -o x.y=1",
        ] {
            let args = train(line);
            assert_eq!(
                args.config.config,
                [PathBuf::from("a.toml"), PathBuf::from("b.toml")]
            );
            assert_eq!(args.overrides(), ["x.y=1"]);
            assert!(!args.dry_run);
        }
    }

    #[test]
    fn resume_takes_a_path_only_behind_an_equals_sign() {
        assert_eq!(train("--config a.toml").resume(), Resume::No);
        assert_eq!(train("--resume --config a.toml").resume(), Resume::Latest);
        assert_eq!(
            train("--resume=dir --config a.toml").resume(),
            Resume::From(PathBuf::from("dir"))
        );
    }

    #[test]
    fn the_device_flag_is_the_last_override() {
        let args = train("--config a.toml --override train.device=wgpu --device cuda:1");
        assert_eq!(
            args.overrides(),
            ["train.device=wgpu", "train.device=\"cuda:1\""]
        );
    }

    #[test]
    fn how_much_is_printed_can_be_said_anywhere() {
        assert_eq!(parse("--config a.toml").1, Verbosity::Normal);
        assert_eq!(parse("-q --config a.toml").1, Verbosity::Quiet);
        assert_eq!(parse("eval --checkpoint x -v").1, Verbosity::Verbose);
        assert!(Cli::try_parse_from(["lpr-train", "-q", "-v", "--config", "x"]).is_err());
    }

    #[test]
    fn the_other_commands_are_understood() {
        let (Command::Eval(args), _) = parse("eval --checkpoint d --data a --data b --json") else {
            panic!()
        };
        assert_eq!((args.data.len(), args.json), (2, true));
        let (Command::Data(DataCommand::Check(args)), _) =
            parse("data check a b --text-column body")
        else {
            panic!()
        };
        assert_eq!((args.sources.len(), args.text_column.as_str()), (2, "body"));
        let (Command::Config(ConfigCommand::Check { files, config }), _) =
            parse("config check a --override b.c=1")
        else {
            panic!()
        };
        assert_eq!((files.len(), config.overrides.len()), (1, 1));
        assert!(matches!(
            parse("config schema").0,
            Command::Config(ConfigCommand::Schema)
        ));
        assert!(matches!(
            parse("config init x").0,
            Command::Config(ConfigCommand::Init { path: Some(_) })
        ));
    }

    #[test]
    fn what_is_missing_is_a_usage_error_with_code_2() {
        for words in [
            &["lpr-train", "eval"][..],
            &["lpr-train", "data", "check"],
            &["lpr-train", "--bogus"],
        ] {
            assert_eq!(
                Cli::try_parse_from(words).expect_err("refused").exit_code(),
                2,
                "{words:?}"
            );
        }
    }
}
