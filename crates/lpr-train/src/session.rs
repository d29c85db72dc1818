//! Everything a run must remember, and how it goes into a checkpoint and comes back.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::Device;
use lpr_data::{DataConfig, DataFingerprint, DataLoader, DataPosition, Split, Tokenizer};
use lpr_kernels::devices::{self, DeviceName, Platform, UnknownDevice};
use lpr_kernels::{ProductPrecision, has_bf16_products, set_product_precision};
use lpr_model::CausalLm;
use lpr_model::estimate::estimate;
use lpr_model::parameters::{ParameterMismatch, TensorMap, with_parameter_values};
use serde::{Deserialize, Serialize};

use crate::balance::{LoadCounts, LoadTracker};
use crate::checkpoint::{Checkpoint, CheckpointError, Retention};
use crate::config::{Precision, RunConfig};
use crate::error::TrainError;
use crate::fault::{self, Point};
use crate::idle::IdleExperts;
use crate::load::LayerLoad;
use crate::memory::{self, Memory};
use crate::optimizer::Optimizer;
use crate::record::EvalRecord;
use crate::stability::Stability;
use crate::weights_file;

/// The weights in a checkpoint.
pub const MODEL_FILE: &str = "model.safetensors";
/// The optimizer's averages in a checkpoint.
pub const OPTIMIZER_FILE: &str = "optimizer.safetensors";
/// The configuration in a checkpoint.
pub const CONFIG_FILE: &str = "config.toml";

/// The state of a run beside weights and optimizer. The learning rate and all seeds are functions of
/// the step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// Optimizer steps done.
    pub step: u64,
    /// Where the next batch starts.
    pub data: DataPosition,
    /// What the training data was: the files of each source, and the tokenizer.
    pub data_fingerprint: DataFingerprint,
    /// Exact counts per layer since the last logged step.
    pub window: Vec<LoadCounts>,
    /// Smoothed loads per layer.
    pub trackers: Vec<LoadTracker>,
    /// How long experts have been without a token.
    pub idle: IdleExperts,
    /// The last losses, and what was done about steps out of line.
    #[serde(default)]
    pub stability: Stability,
    /// The first evaluation of the run.
    pub first_evaluation: Option<EvalPoint>,
    /// The newest evaluation of the run.
    pub last_evaluation: Option<EvalPoint>,
}

/// The figures of an evaluation that the end of a run compares.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EvalPoint {
    /// Optimizer steps done.
    pub step: u64,
    /// Mean cross-entropy per target, in nats.
    pub loss: f64,
    /// Exact, without padding, mean over layers.
    pub gini: f64,
    /// Exact, without padding, mean over layers.
    pub min_max_ratio: f64,
}

impl RunState {
    /// Before the first step.
    pub fn new(config: &RunConfig, data_fingerprint: DataFingerprint) -> Self {
        let decoder = config.model.decoder();
        let (layers, experts) = (decoder.num_moe_layers(), decoder.moe.num_experts);
        Self {
            step: 0,
            data: DataPosition::default(),
            data_fingerprint,
            window: vec![LoadCounts::new(experts); layers],
            trackers: vec![LoadTracker::new(experts); layers],
            idle: IdleExperts::new(layers, experts),
            stability: Stability::default(),
            first_evaluation: None,
            last_evaluation: None,
        }
    }

    /// Whether the lists have the lengths that the model of `config` needs.
    fn fits(&self, config: &RunConfig) -> bool {
        let decoder = config.model.decoder();
        let (layers, experts) = (decoder.num_moe_layers(), decoder.moe.num_experts);
        let counts = |c: &LoadCounts| [c.with_padding.len(), c.without_padding.len()];
        let loads = |t: &LoadTracker| [t.hard.len(), t.soft.len()];
        self.window.len() == layers
            && self.window.iter().all(|c| counts(c) == [experts; 2])
            && self.trackers.len() == layers
            && self.trackers.iter().all(|t| loads(t) == [experts; 2])
            && self.idle.fits(layers, experts)
    }

    /// Remembers an evaluation.
    pub fn add_evaluation(&mut self, record: &EvalRecord) {
        let point = EvalPoint {
            step: record.step,
            loss: record.eval.loss,
            gini: record.eval.balance.gini,
            min_max_ratio: record.eval.balance.min_max_ratio,
        };
        self.first_evaluation.get_or_insert(point);
        self.last_evaluation = Some(point);
    }

    /// Whether the weights as they are were evaluated.
    pub fn is_evaluated(&self) -> bool {
        self.last_evaluation
            .is_some_and(|point| point.step == self.step)
    }

    /// Takes in the load of every micro-batch and layer of a step.
    pub fn add_loads(&mut self, micro_batches: &[Vec<LayerLoad>]) {
        self.idle.add_step(micro_batches);
        for layers in micro_batches {
            for (layer, load) in layers.iter().enumerate() {
                self.window[layer].add(&load.counts);
                self.trackers[layer].update(&load.counts.with_padding, &load.weight_sums);
            }
        }
    }
}

/// Opens the tokenizer of a config and checks that the model has a row for each of its ids.
///
/// # Errors
/// If it cannot be opened, or has more ids than `model.vocab_size`.
pub fn open_tokenizer(config: &RunConfig) -> Result<Arc<Tokenizer>, TrainError> {
    fault::reached(Point::TokenizerOpen);
    let tokenizer = Tokenizer::fetch(&config.data.tokenizer, &config.data.hub)?;
    let vocab_size = config.model.decoder().vocab_size;
    if tokenizer.vocab_size() > vocab_size {
        return Err(TrainError::Vocabulary {
            tokenizer: config.data.tokenizer.clone(),
            tokenizer_size: tokenizer.vocab_size(),
            model_size: vocab_size,
        });
    }
    Ok(Arc::new(tokenizer))
}

/// The validation data of a config, from its start.
///
/// # Errors
/// If it cannot be opened.
pub fn open_validation(
    config: &RunConfig,
    tokenizer: &Arc<Tokenizer>,
) -> Result<DataLoader, TrainError> {
    let data = DataConfig {
        sequence_length: config.eval_max_length(),
        ..config.data.clone()
    };
    Ok(DataLoader::open(
        &data,
        Split::Validation,
        config.eval_rows_per_batch(),
        tokenizer.clone(),
        &DataPosition::default(),
    )?)
}

/// The device that a config names. What its products multiply is set for the whole process.
///
/// # Errors
/// If this build or machine does not have it, or it does not have the config's precision.
pub fn open_device(config: &RunConfig) -> Result<Device, TrainError> {
    let refused = |reason: String| TrainError::Device {
        device: config.train.device.clone(),
        reason,
    };
    let name = device_name(config)?;
    let device = devices::open(name).map_err(|error| {
        refused(format!(
            "{error}; --device cpu (or train.device = \"cpu\") computes on the CPU"
        ))
    })?;
    let precision = match config.train.precision {
        Precision::F32 => ProductPrecision::F32,
        Precision::Bf16 if has_bf16_products(&device) => ProductPrecision::Bf16,
        Precision::Bf16 => {
            return Err(refused(
                "it has no products of 16-bit brain floats (of CPUs, those with AVX-512 BF16 have \
                 them); use train.precision = \"f32\""
                    .to_owned(),
            ));
        }
    };
    set_product_precision(&device, precision);
    Ok(device)
}

/// The device of a config by its parts. `--device` of some commands does not pass the config's rules.
fn device_name(config: &RunConfig) -> Result<DeviceName, TrainError> {
    let name = config.train.device.parse();
    name.map_err(|error: UnknownDevice| TrainError::Usage(format!("the device {error}")))
}

/// Refuses a config whose training cannot fit into memory, before anything large is made. Burn does
/// not tell how much memory a GPU has: there nothing is refused.
///
/// # Errors
/// With the estimate, what there is, and what to change.
pub fn check_memory(config: &RunConfig) -> Result<(), TrainError> {
    if device_name(config)?.platform != Platform::Cpu {
        return Ok(());
    }
    let length = config.data.sequence_length;
    let model = estimate(&config.model.decoder(), &config.router, length);
    let needed = Memory::new(config, &model);
    let refusal = memory::available().and_then(|available| needed.refusal(available, config));
    refusal.map_or(Ok(()), |reason| {
        Err(TrainError::Device {
            device: config.train.device.clone(),
            reason,
        })
    })
}

/// A model with the initial weights of a config, on `device`, which may have autodiff.
pub fn initial_model(config: &RunConfig, device: &Device) -> CausalLm {
    CausalLm::new(
        &config.model.decoder(),
        &config.router,
        config.train.seed,
        device,
    )
}

/// The config that a checkpoint was made with.
///
/// # Errors
/// If it cannot be read or is not valid here.
pub fn checkpoint_config(checkpoint: &Checkpoint) -> Result<RunConfig, TrainError> {
    let path = checkpoint.file(CONFIG_FILE)?;
    Ok(RunConfig::load(&[path], &[])?)
}

/// Refuses a state that does not belong to its checkpoint or to `config`, whoever wrote it.
///
/// # Errors
/// If it is of another step or of a model of another shape.
pub fn check_state(
    checkpoint: &Checkpoint,
    state: &RunState,
    config: &RunConfig,
) -> Result<(), TrainError> {
    let reason = if state.step != checkpoint.step() {
        format!("its state is that of step {}", state.step)
    } else if !state.fits(config) {
        "its state is that of a model with other layers or experts".to_owned()
    } else {
        return Ok(());
    };
    let path = checkpoint.path().to_path_buf();
    Err(CheckpointError::Invalid { path, reason }.into())
}

/// The model of a checkpoint, on `device`, which may have autodiff.
///
/// # Errors
/// If the weights cannot be read or do not fit `config`.
pub fn load_model(
    checkpoint: &Checkpoint,
    config: &RunConfig,
    device: &Device,
) -> Result<CausalLm, TrainError> {
    let path = checkpoint.file(MODEL_FILE)?;
    let model = initial_model(config, device);
    with_parameter_values(model, read_tensors(&path)?).map_err(|error| misfit(path, &error))
}

/// The optimizer of a checkpoint, for its `model` and `state`.
///
/// # Errors
/// If its state cannot be read or does not fit the model.
pub fn load_optimizer(
    checkpoint: &Checkpoint,
    config: &RunConfig,
    model: &CausalLm,
    state: &RunState,
) -> Result<Optimizer, TrainError> {
    let path = checkpoint.file(OPTIMIZER_FILE)?;
    let num_updates = state.stability.num_updates(state.step);
    Optimizer::new(&config.optimizer)
        .with_state(model, num_updates, read_tensors(&path)?)
        .map_err(|error| misfit(path, &error))
}

fn read_tensors(path: &Path) -> Result<TensorMap, TrainError> {
    let read = fault::at(Point::ReadTensors).and_then(|()| weights_file::read(path));
    Ok(read.map_err(|error| CheckpointError::io(path, error))?)
}

fn misfit(path: PathBuf, error: &ParameterMismatch) -> TrainError {
    let reason = error.to_string();
    CheckpointError::Invalid { path, reason }.into()
}

/// Which checkpoints a config keeps.
pub fn retention(config: &RunConfig) -> Retention {
    Retention {
        keep_last: config.checkpoint.keep_last,
        keep_every: config.checkpoint.keep_every,
        keep_best: config.checkpoint.keep_best,
    }
}

/// About how large a checkpoint of this config is: weights and two averages.
pub fn checkpoint_bytes(config: &RunConfig) -> u64 {
    let sequence_length = config.data.sequence_length;
    let estimate = estimate(&config.model.decoder(), &config.router, sequence_length);
    estimate.total_params as u64 * 3 * size_of::<f32>() as u64
}

/// The validation loss of the weights in a checkpoint, if they were evaluated.
pub fn validation_loss(checkpoint: &Checkpoint) -> Option<f64> {
    let state: RunState = checkpoint.state().ok()?;
    let point = state.last_evaluation?;
    (point.step == checkpoint.step()).then_some(point.loss)
}
