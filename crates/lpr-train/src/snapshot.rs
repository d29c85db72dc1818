//! What a checkpoint is made of, held fast while training goes on.
//!
//! A snapshot shares the memory of weights and averages, so taking one copies nothing but the small
//! state. The optimizer's next step finds them shared and writes its results into new memory
//! instead (see [`lpr_kernels::AdamW::update`]), parameter by parameter, unless that parameter has
//! been written to the file by then. So a run needs, until the file is written, at most twice the
//! memory of weights and averages: 12 more bytes a parameter, and a copy of the largest tensor.

use std::path::Path;

use burn::module::Param;
use burn::tensor::Tensor;
use lpr_model::CausalLm;
use lpr_model::parameters::{ParameterVisitor, visit_parameters};

use crate::checkpoint::{self, CheckpointError, Retention, WriteFile};
use crate::config::RunConfig;
use crate::optimizer::Optimizer;
use crate::session::{self, RunState};
use crate::weights_file::{self, Held};

/// A run between two steps, ready to be written by another thread.
pub struct Snapshot {
    model: Vec<(String, Held)>,
    optimizer: Vec<(String, Held)>,
    state: RunState,
    config: String,
    config_hash: String,
    retention: Retention,
}

impl Snapshot {
    /// Takes hold of everything a checkpoint needs.
    pub fn take(
        config: &RunConfig,
        model: &CausalLm,
        optimizer: &Optimizer,
        state: &RunState,
    ) -> Self {
        struct Weights(Vec<(String, Held)>);
        impl ParameterVisitor for Weights {
            fn visit<const D: usize>(&mut self, name: &str, parameter: &Param<Tensor<D>>) {
                let held = Held::new(parameter.val().inner());
                self.0.push((name.to_owned(), held));
            }
        }
        let mut weights = Weights(Vec::new());
        visit_parameters(model, &mut weights);
        let averages = optimizer.averages().into_iter();
        let averages = averages.map(|(name, tensor)| (name, Held::new(tensor)));
        Self {
            model: weights.0,
            optimizer: averages.collect(),
            state: state.clone(),
            config: config.to_toml(),
            config_hash: config.hash(),
            retention: session::retention(config),
        }
    }

    /// Optimizer steps done.
    pub fn step(&self) -> u64 {
        self.state.step
    }

    /// Saves the checkpoint below `checkpoints`, then removes those that need not be kept.
    ///
    /// Returns what the user should know about checkpoints that could not be removed.
    ///
    /// # Errors
    /// If it cannot be written; older checkpoints are then untouched.
    pub fn write(self, checkpoints: &Path) -> Result<Vec<String>, CheckpointError> {
        let Self {
            model, optimizer, ..
        } = self;
        let files: Vec<(&str, WriteFile<'_>)> = vec![
            (
                session::MODEL_FILE,
                Box::new(|out| weights_file::write(out, model)),
            ),
            (
                session::OPTIMIZER_FILE,
                Box::new(|out| weights_file::write(out, optimizer)),
            ),
            (
                session::CONFIG_FILE,
                Box::new(|out| out.write_all(self.config.as_bytes())),
            ),
        ];
        let step = self.state.step;
        checkpoint::save(checkpoints, step, files, &self.state, &self.config_hash)?;
        let pruned = checkpoint::prune(checkpoints, self.retention, &session::validation_loss);
        // The checkpoint is there, whatever became of the old ones.
        Ok(pruned.map_or_else(
            |error| vec![format!("cannot look for old checkpoints: {error}")],
            |pruned| pruned.warnings,
        ))
    }
}
